"""Activations on their own and the gradient of a bias, on the CPU.

small     the definition in NumPy, in the type that is computed in; compiles nothing
rows      one loop over rows of elements, after axes that lie one behind the other became one
planes, channels
          the sums of `bias_grad`, along rows or across adjacent channels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastconv import tuning
from fastconv.backends.base import Launch
from fastconv.backends.cpu.pool_common import adjacent, computed, kernels, lift, operand, storage
from fastconv.backends.reference import ACTIVATIONS, DERIVATIVES
from fastconv.problem import ACTIVATIONS as NAMES
from fastconv.problem import ActivationProblem, Ints, PoolProblem

Array = np.ndarray

SMALL_ELEMENTS = 2**14
TASK_ELEMENTS = 2**15
UNIT = {1: (0, 1), 2: (0,), 3: ()}


def plan(op: str, problem: Any) -> Launch:
    size = math.prod(problem.dims("x"))
    if size <= SMALL_ELEMENTS and tuning.autotune() != "off":
        run = SMALL[op](problem)
        return Launch(run, "small", f"{size} elements take less time than a thread pool needs to start")
    if op == "bias_grad":
        return Launch(bias_grad(problem), "sums", "sums along rows of planes, or across channels that are adjacent")
    return Launch(activation(op, problem), "rows", "one pass over memory", {"task": TASK_ELEMENTS})


# ---------------------------------------------------------------- in NumPy


def wide(array: Array) -> Array:
    """16-bit floats in float32; the other dtypes as they are."""
    return array.astype(np.float32) if array.itemsize == 2 and array.dtype.kind not in "iu" else array


def small_fprop(problem: ActivationProblem) -> Callable[..., None]:
    def run(y: Array, x: Array) -> None:
        with np.errstate(all="ignore"):
            y[...] = ACTIVATIONS[problem.activation](wide(x))

    return run


def small_dgrad(problem: ActivationProblem) -> Callable[..., None]:
    def run(dx: Array, dy: Array, saved: Array) -> None:
        with np.errstate(all="ignore"):
            dx[...] = wide(dy) * DERIVATIVES[problem.activation](wide(saved))

    return run


def small_bias_grad(problem: PoolProblem) -> Callable[..., None]:
    axes = (0, *range(2, problem.ndim + 2))

    def run(db: Array, dy: Array) -> None:
        with np.errstate(all="ignore"):
            db[...] = np.add.reduce(wide(dy), axes, np.float64)

    return run


# ---------------------------------------------------------------- rows of elements


def merge(arrays: Sequence[Array]) -> tuple[Ints, list[Ints]]:
    """(shape, element strides per array) of the same elements with as few axes as there can be, at least one."""
    axes = [axis for axis in range(arrays[0].ndim) if arrays[0].shape[axis] != 1]
    axes.sort(key=lambda axis: -abs(arrays[0].strides[axis]))
    shape: list[int] = []
    steps: list[list[int]] = []  # per axis, of each array
    for axis in axes:
        n, own = arrays[0].shape[axis], [array.strides[axis] // array.itemsize for array in arrays]
        if shape and all(outer == n * inner for outer, inner in zip(steps[-1], own, strict=True)):
            shape[-1] *= n
            steps[-1] = own
        else:
            shape.append(n)
            steps.append(own)
    if not shape:
        shape, steps = [1], [[1] * len(arrays)]
    return tuple(shape), [tuple(step[i] for step in steps) for i in range(len(arrays))]


def activation(op: str, problem: ActivationProblem) -> Callable[..., None]:
    code = NAMES.index(problem.activation) + 1

    def run(*arrays: Array) -> None:
        if arrays[0].size == 0:
            return
        shape, steps = merge(arrays)
        n, rows = shape[-1], math.prod(shape[:-1])
        group = max(1, TASK_ELEMENTS // n)
        tasks = -(-rows // group) * -(-n // TASK_ELEMENTS)
        outer, strides = np.array(shape[:-1], np.int64), np.array(steps, np.int64)
        addresses = [array.ctypes.data for array in arrays]
        kinds = storage(arrays[1].dtype), (computed if op == "activation_fprop" else storage)(arrays[-1].dtype)
        entry = getattr(kernels("elementwise"), op)
        entry(tasks, group, TASK_ELEMENTS, rows, n, code, *kinds, *addresses, outer, strides)

    return run


# ---------------------------------------------------------------- the gradient of a bias


def rows_of(dy: Array, sizes: Ints, unit: Ints) -> tuple[tuple[int, ...], Ints]:
    """dy's operand and extents, with spatial axes that lie one behind the other made one."""
    address, n, c, a, b, w = operand(dy, unit)
    if (b == w * sizes[2] or sizes[1] == 1) and (a == w * sizes[2] * sizes[1] or sizes[0] == 1):
        return (address, n, c, 0, 0, w), (1, 1, math.prod(sizes))
    return (address, n, c, a, b, w), sizes


def bias_grad(problem: PoolProblem) -> Callable[..., None]:
    unit = UNIT[problem.ndim]
    sizes = lift(problem.size, 1, unit)
    N, K = problem.N, problem.C

    def run(db: Array, dy: Array) -> None:
        if dy.size == 0:
            db[...] = 0
            return
        X, S, module = storage(dy.dtype), computed(dy.dtype), kernels("elementwise")
        if adjacent(dy, 16):
            rows = N * sizes[0] * sizes[1]
            part = max(1, TASK_ELEMENTS // (K * sizes[2]), rows // 64)
            sums = np.empty((-(-rows // part), K))
            module.bias_grad_channels(len(sums), part, N, K, X, S, operand(dy, unit), sizes, sums.ctypes.data)
        else:
            sums = np.empty((N, K))
            module.bias_grad_planes(N * K, K, X, S, *rows_of(dy, sizes, unit), sums.ctypes.data)
        with np.errstate(all="ignore"):
            db[...] = sums.sum(0)

    return run


SMALL: dict[str, Callable[[Any], Callable[..., None]]] = {
    "bias_grad": small_bias_grad,
    "activation_fprop": small_fprop,
    "activation_dgrad": small_dgrad,
}

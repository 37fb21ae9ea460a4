"""Convolution of tiny problems in plain NumPy: one im2col, one BLAS product, nothing to compile.

The unfolded input is at most half a megabyte here, and the product so small that BLAS stays on one
thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.backends.reference import ACTIVATIONS, taps_of
from fastconv.problem import ConvProblem, Ints


def conv(op: str, problem: ConvProblem) -> Callable[..., None]:
    run = {"conv_fprop": fprop, "conv_dgrad": dgrad, "conv_wgrad": wgrad}[op](problem)

    def quietly(*arrays: np.ndarray | None) -> None:
        with np.errstate(all="ignore"):  # infinities and NaNs are values here
            run(*arrays)

    return quietly


def product_dtype(problem: ConvProblem) -> np.dtype:
    """float64 also for int8 operands: BLAS multiplies it, and 2**53 holds every such sum exactly."""
    return np.dtype(np.float64 if problem.dtype in ("float64", "int32") else np.float32)


def unfolder(problem: ConvProblem) -> Callable[[np.ndarray], np.ndarray]:
    """x -> its cells as [N, G, C/G, ksize, out], a view of a zero-padded copy."""
    window, G = problem.window, problem.groups
    dtype = product_dtype(problem)
    padded = tuple(n + low + high for n, (low, high) in zip(problem.size, window.pad, strict=True))
    shape = (problem.N, problem.C, *padded)
    inside: Any = (..., *(slice(low, low + n) for n, (low, _) in zip(problem.size, window.pad, strict=True)))
    strides = [dtype.itemsize]
    for n in padded[:0:-1]:
        strides.insert(0, strides[0] * n)
    plane = math.prod(padded) * dtype.itemsize
    view = (problem.N, G, problem.C // G, *window.ksize, *problem.out)
    steps: Ints = (plane * problem.C, plane * (problem.C // G), plane)
    steps += tuple(s * d for s, d in zip(strides, window.dilation, strict=True))
    steps += tuple(s * step for s, step in zip(strides, window.stride, strict=True))

    def unfold(x: np.ndarray) -> np.ndarray:
        copy = np.zeros(shape, dtype)
        copy[inside] = x
        return np.ndarray(view, dtype, copy, 0, steps)

    return unfold


def finish(problem: ConvProblem, y: np.ndarray, total: np.ndarray, bias: np.ndarray | None) -> None:
    """y = act(total + bias), narrowed; int32 sums wrap."""
    if bias is not None:
        total += bias.astype(total.dtype, copy=False).reshape(-1, *(1,) * problem.ndim)
    if problem.activation is not None:
        total = ACTIVATIONS[problem.activation](total)
    y[...] = total.astype(np.int64) if problem.dtype == "int32" else total


def fill(problem: ConvProblem, part: np.ndarray, bias: np.ndarray | None) -> None:
    """The pixels of a gradient that no tap reaches: only bias and activation."""
    with np.errstate(all="ignore"):
        finish(problem, part, np.zeros(part.shape, product_dtype(problem)), bias)


def fprop(problem: ConvProblem) -> Callable[..., None]:
    unfold, dtype, G = unfolder(problem), product_dtype(problem), problem.groups
    rows, cells, K = problem.C // G * problem.window.taps, math.prod(problem.out), problem.K
    dims = problem.dims("y")

    def run(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        weights = w.astype(dtype, copy=False).reshape(G, K // G, rows)
        total = weights @ unfold(x).reshape(problem.N, G, rows, cells)
        finish(problem, y, total.reshape(dims), bias)

    return run


def wgrad(problem: ConvProblem) -> Callable[..., None]:
    unfold, dtype, G = unfolder(problem), product_dtype(problem), problem.groups
    rows, pixels, K = problem.C // G * problem.window.taps, math.prod(problem.out), problem.K
    cells, dims = problem.N * pixels, problem.dims("w")

    def run(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
        grad = dy.astype(dtype, copy=False).reshape(problem.N, G, K // G, pixels)
        met = unfold(x).reshape(problem.N, G, rows, pixels)
        total = grad.transpose(1, 2, 0, 3).reshape(G, K // G, cells) @ met.transpose(1, 0, 3, 2).reshape(G, cells, rows)
        dw[...] = _narrow(problem, total.reshape(dims))

    return run


def dgrad(problem: ConvProblem) -> Callable[..., None]:
    dtype, G, window = product_dtype(problem), problem.groups, problem.window
    C, K, cells = problem.C // G, problem.K // G, math.prod(problem.out)
    padded = tuple(n + low + high for n, (low, high) in zip(problem.size, window.pad, strict=True))
    inside: Any = (..., *(slice(low, low + n) for n, (low, _) in zip(problem.size, window.pad, strict=True)))
    reached: list[Any] = [(..., *cells) for _, cells in taps_of(problem)]

    def run(dx: np.ndarray, dy: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        weights = w.astype(dtype, copy=False).reshape(G, K, C * window.taps).transpose(0, 2, 1)
        spread = weights @ dy.astype(dtype, copy=False).reshape(problem.N, G, K, cells)
        spread = spread.reshape(problem.N, problem.C, window.taps, *problem.out)
        total = np.zeros((problem.N, problem.C, *padded), dtype)
        for tap, at in enumerate(reached):
            total[at] += spread[:, :, tap]
        finish(problem, dx, total[inside], bias)

    return run


def _narrow(problem: ConvProblem, total: np.ndarray) -> np.ndarray:
    return total.astype(np.int64) if problem.dtype == "int32" else total

"""Activations and the gradient of a bias in Numba CUDA."""

from __future__ import annotations

from typing import Any

from fastconv.backends.base import Launch
from fastconv.backends.numba_cuda.launcher import THREADS, Grid, Ints, Kernel, dtype_name, lifted, over, size_of, steps
from fastconv.kernels.numba_cuda import elementwise


def plan(op: str, problem: Any) -> Launch:
    if op == "bias_grad":
        return Launch(bias_grad, "blocks", "one block a channel")
    name = problem.activation

    def fprop(y: Any, x: Any) -> None:
        if size_of(y):
            kernel = Kernel.of(elementwise.activation_fprop, dtype_name(y), dtype_name(x), name)
            kernel(over(size_of(y)), (y, x), geometry(y, x))

    def dgrad(dx: Any, dy: Any, saved: Any) -> None:
        if size_of(dx):
            kernel = Kernel.of(elementwise.activation_dgrad, *map(dtype_name, (dx, dy, saved)), name)
            kernel(over(size_of(dx)), (dx, dy, saved), geometry(dx, dy, saved))

    return Launch(fprop if op == "activation_fprop" else dgrad, "elementwise", "one thread an element")


def geometry(first: Any, *more: Any) -> Ints:
    """Extents and strides of arrays of up to five axes, in the user's order, as five."""
    missing = 5 - len(first.shape)
    sizes = (1,) * missing + tuple(first.shape)
    for array in (first, *more):
        sizes += (0,) * missing + steps(array)
    return sizes


def bias_grad(db: Any, dy: Any) -> None:
    n, k, *space = dy.shape
    sizes = (n, *(1,) * (3 - len(space)), *space, int(lifted(dy)[1] == 1 and k > 1), *steps(db), *lifted(dy))
    kernel = Kernel.of(elementwise.bias_grad, dtype_name(db), dtype_name(dy), THREADS)
    kernel(Grid(k, THREADS), (db, dy), sizes)

"""Activations and the gradient of a bias in Numba CUDA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastconv.backends.base import Launch
from fastconv.backends.forms import by_form
from fastconv.backends.numba_cuda.launcher import (
    THREADS,
    Call,
    Grid,
    Ints,
    channels_last,
    dtype_name,
    lifted,
    over,
    steps,
)
from fastconv.kernels.numba_cuda import elementwise


def plan(op: str, problem: Any) -> Launch:
    if op == "bias_grad":
        return Launch(by_form(bias_grad), "blocks", "one block a channel", {"blocks": problem.C, "threads": THREADS})
    factory = getattr(elementwise, op)

    def prepare(*arrays: Any) -> Callable[..., None]:
        dtypes = tuple(dtype_name(array) for array in arrays)
        grid = over(math.prod(problem.size))
        return Call(factory, (*dtypes, problem.activation), grid, dtypes, geometry(*arrays))

    return Launch(by_form(prepare), "elementwise", "one thread an element")


def geometry(first: Any, *more: Any) -> Ints:
    """Extents and strides of arrays of up to five axes, in the user's order, as five."""
    missing = 5 - len(first.shape)
    sizes = (1,) * missing + tuple(first.shape)
    for array in (first, *more):
        sizes += (0,) * missing + steps(array)
    return sizes


def bias_grad(db: Any, dy: Any) -> Callable[..., None]:
    n, k, *space = dy.shape
    sizes = (n, *(1,) * (3 - len(space)), *space, channels_last(dy), *steps(db), *lifted(dy))
    dtypes = dtype_name(db), dtype_name(dy)
    return Call(elementwise.bias_grad, (*dtypes, THREADS), Grid(k, THREADS), dtypes, sizes)

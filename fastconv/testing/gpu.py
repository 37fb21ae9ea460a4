"""The tests on a real GPU: the same bodies, NumPy arrays in and out, computed on CuPy arrays.

The library never moves data between devices. `through_gpu` does it for tests, around every call that names a GPU
backend: operands are copied to the GPU with their strides, results come back, and so does what was written to `out`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastconv import arrays, dispatch
from fastconv.ops import signal

GPU_BACKENDS = ("raw", "numba")


def needed(backend: str) -> bool:
    """Whether a backend, as it is now, takes arrays on a GPU only."""
    return backend in GPU_BACKENDS and "numpy" not in dispatch.get(backend).kinds


def to_gpu(array: np.ndarray) -> Any:
    """A copy on the GPU, with the array's own order of axes in memory."""
    cupy = sys.modules["cupy"]
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    copy = cupy.asarray(np.ascontiguousarray(array.transpose(order)))
    return copy.transpose(tuple(int(axis) for axis in np.argsort(order))) if array.ndim else copy


def to_host(result: Any) -> np.ndarray:
    host: np.ndarray = result.get()
    return host


@contextmanager
def through_gpu() -> Iterator[None]:
    """Inside the ``with`` block, calls on NumPy arrays that name a GPU backend run on CuPy arrays."""
    import cupy  # noqa: F401  to_gpu finds it among the loaded modules

    admit, run, by_row_blocks = dispatch.admit, dispatch.run, signal.by_row_blocks

    def admit_and_copy(names: tuple[str, ...], operands: tuple[Any, ...], backend: Any) -> arrays.Operands:
        asked = backend.backend if type(backend) is dispatch.Inquiry else backend
        on_host = all(operand is None or isinstance(operand, np.ndarray) for operand in operands)
        if not on_host or dispatch.named(asked) not in GPU_BACKENDS:
            return admit(names, operands, backend)
        host = arrays.admit(names, operands)
        views = tuple(None if array is None else to_gpu(arrays.native(array)) for array in host.arrays)
        return arrays.Operands(views, "cuda", to_host)

    try:
        dispatch.admit = admit_and_copy
        dispatch.run, signal.by_row_blocks = copying_out(run), copying_out(by_row_blocks)
        yield
    finally:
        dispatch.admit, dispatch.run, signal.by_row_blocks = admit, run, by_row_blocks


def copying_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose last arguments are `out` and the backend, given an `out` on the GPU that is copied back."""

    def call(*arguments: Any) -> Any:
        *head, out, backend = arguments
        (operands,) = (argument for argument in head if isinstance(argument, arrays.Operands))
        if operands.wrap is not to_host or not isinstance(out, np.ndarray):
            return function(*arguments)
        target = to_gpu(out)
        result = function(*head, target, backend)
        out[...] = target.get()
        return (out, *result[1:]) if isinstance(result, tuple) else out

    return call

"""Pointers under Numba's CUDA simulator, which runs kernels as Python threads on NumPy arrays."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

#: What kernels see in place of dtypes that a pointer has no type for.
BITS = {"bfloat16": np.uint16, "bool": np.uint8, "complex64": np.float32, "complex128": np.float64}


@lru_cache(maxsize=1)
def simulated() -> bool:
    """Whether Numba runs CUDA kernels in its simulator, as it decides once per process."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


class Memory:
    """An array as a pointer to its first element: what lies `offset` elements from it.

    Offsets may be negative, as in a reversed view. One outside of the array's memory, or a write to a read-only
    array, is an error.
    """

    __slots__ = ("_cells", "_origin")

    def __init__(self, array: np.ndarray):
        array = np.asarray(array)  # of a scalar, whose own address does not last
        cells = np.dtype(BITS.get(array.dtype.name, array.dtype))
        ends = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
        below, above = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
        count = (above - below + array.itemsize) // cells.itemsize if array.size else 0
        self._origin = -below // cells.itemsize
        first, read_only = array.__array_interface__["data"]
        self._cells = np.asarray(_Span(array, (first + below, read_only), count, cells.str))

    def __getitem__(self, offset: int) -> Any:
        return self._cells[self._at(offset)]

    def __setitem__(self, offset: int, value: Any) -> None:
        self._cells[self._at(offset)] = value

    def _at(self, offset: int) -> int:
        at = offset + self._origin
        if not 0 <= at < len(self._cells):
            raise IndexError(f"offset {offset} lies outside of the {len(self._cells)} elements from {-self._origin} on")
        return at


@contextmanager
def running() -> Iterator[None]:
    """Inside the ``with`` block simulated kernels run quicker, and always right.

    Python switches threads often: the simulator's own one polls the others, which wait for it meanwhile. And the
    threads of a block share their arrays: two that ask for one at once got one each.
    """
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    before, allocate = sys.getswitchinterval(), FakeCUDAShared.array
    lock = threading.Lock()

    def shared_array(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Any:
        if shape == 0:
            return allocate(self, shape, dtype, alignment)
        caller = sys._getframe(1)
        with lock:
            place = caller.f_code.co_filename, caller.f_lineno
            if place not in self._allocations:
                self._allocations[place] = np.full(shape, 85 if np.dtype(dtype).kind in "iu" else np.nan, dtype)
            return self._allocations[place]

    sys.setswitchinterval(1e-5)
    FakeCUDAShared.array = shared_array
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns where a GPU gives inf, or wraps
            yield
    finally:
        FakeCUDAShared.array = allocate
        sys.setswitchinterval(before)


class _Span:
    """All elements between the lowest and the highest address of an array, those in its gaps too."""

    def __init__(self, array: np.ndarray, data: tuple[int, bool], count: int, typestr: str):
        self._owner = array
        self.__array_interface__ = {"data": data, "shape": (count,), "typestr": typestr, "version": 3}

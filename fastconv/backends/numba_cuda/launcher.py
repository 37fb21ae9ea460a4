"""From a kernel's factory and arrays to a launch: on a GPU, or under Numba's simulator.

On a GPU a kernel compiles to PTX the first time that these dtypes need it, is kept on disk, and is launched with
one argument a pointer and one 64-bit number for each entry of its geometry. Nothing of an array but its address is
looked at again: its shape and strides are in the geometry, which a launch keeps for arrays of the same strides.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import name_of
from fastconv.backends.numba_cuda import ptx
from fastconv.backends.numba_cuda.simulator import Memory, quick_threads, simulated

Ints = tuple[int, ...]
THREADS = 4 if simulated() else 256  # of a block in kernels that any number suits; the simulator's are slow to start
BLOCKS = 1 if simulated() else 2**16  # at most, in kernels whose threads take every gridsize-th result
MAX_BLOCKS = 2**31 - 1


class Grid(NamedTuple):
    """How many blocks of how many threads, their bytes of shared memory beyond what the kernel declares.

    `residents` is how many of the blocks one multiprocessor should have registers for.
    """

    blocks: int
    threads: int
    shared: int = 0
    residents: int = 1


def over(results: int) -> Grid:
    """A grid in which every thread takes one of so many results, or every gridsize-th."""
    return Grid(max(1, min(-(-results // THREADS), BLOCKS)), THREADS)


def dtype_name(array: Any) -> str:
    return name_of(array.dtype)


def steps(array: Any) -> Ints:
    """Strides in elements; of complex arrays in reals."""
    size = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    return tuple(stride // size for stride in array.strides)


def lifted(array: Any) -> Ints:
    """Element strides of a canonical operand [N, C, spatial] with three spatial axes."""
    n, c, *space = steps(array)
    return (n, c, *(0,) * (3 - len(space)), *space)


def size_of(array: Any) -> int:
    return int(np.prod(array.shape, dtype=np.int64))


class Flat(NamedTuple):
    """A flat array that a kernel takes as an array, as atomic functions want it, and not as a pointer."""

    array: Any


class Kernel:
    """One kernel for given dtypes and constants, launched over and over."""

    __slots__ = ("_factory", "_key", "_loaded")

    def __init__(self, factory: Callable[..., Any], key: tuple[Any, ...]):
        self._factory, self._key = factory, key
        self._loaded: dict[Any, Any] = {}

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(factory: Callable[..., Any], *key: Any) -> Kernel:
        """The kernel that ``factory(*key)`` builds; one per process, so that it compiles once."""
        return Kernel(factory, key)

    def __call__(self, grid: Grid, operands: tuple[Any, ...], *values: Any) -> None:
        """Launch on `operands`, arrays or None, and `values`: the geometry, or a float before it."""
        if simulated():
            self._simulate(grid, operands, values)
            return
        device, stream = ptx.current()
        key = device, signature(operands, values)
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = self._loaded[key] = ptx.load(device, built(self._factory, self._key), self._key, key[1])
        ptx.launch(stream, loaded, grid, arguments(operands, values))

    def _simulate(self, grid: Grid, operands: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        kernel = built(self._factory, self._key)
        arrays = [operand.array if type(operand) is Flat else operand for operand in operands]
        memories = [None if array is None else Memory(array) for array in arrays]
        with quick_threads(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns where a GPU gives inf, or wraps
            kernel[grid.blocks, grid.threads, 0, grid.shared](*memories, *values)


@lru_cache(maxsize=4096)
def built(factory: Callable[..., Any], key: tuple[Any, ...]) -> Any:
    """The Numba function of a kernel; nothing compiles here."""
    return factory(*key)


def signature(operands: tuple[Any, ...], values: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a kernel is compiled for: per operand its dtype, per value how many integers it has, 0 for a float."""
    dtypes = tuple(
        [f"{name_of(o.array.dtype)}[:]" if type(o) is Flat else "uint8" if o is None else name_of(o.dtype) for o in operands]
    )
    return dtypes, tuple([len(value) if type(value) is tuple else 0 for value in values])


def arguments(operands: tuple[Any, ...], values: tuple[Any, ...]) -> list[Any]:
    """What the launch passes: an address for each pointer, and each number of the geometry by itself."""
    found: list[Any] = []
    for operand in operands:
        if type(operand) is Flat:
            size, itemsize = size_of(operand.array), operand.array.dtype.itemsize
            found += (0, 0, size, itemsize, address(operand.array), size, itemsize)  # Numba's array
        else:
            found.append(0 if operand is None else address(operand))
    for value in values:
        if type(value) is tuple:
            found += value
        else:
            found.append(ctypes.c_double(value))
    return found


def address(array: Any) -> int:
    """The address of an array's first element in the GPU's memory."""
    try:
        return int(array.pointer)
    except AttributeError:
        return int(array.__cuda_array_interface__["data"][0])


def scratch(shape: Ints, dtype: Any) -> Any:
    """Memory for the length of a call: CuPy's, from its pool and in its stream's order, else Numba's."""
    if simulated():
        return np.empty(shape, dtype)
    if "cupy" in sys.modules:
        return sys.modules["cupy"].empty(shape, dtype)
    from fastconv.kernels.numba_cuda.target import cuda

    return cuda.device_array(shape, dtype)


def to_host(array: Any) -> np.ndarray:
    """A scratch array's values, once the launches before are done."""
    if isinstance(array, np.ndarray):
        return array
    values: np.ndarray = array.get() if hasattr(array, "get") else array.copy_to_host()
    return values

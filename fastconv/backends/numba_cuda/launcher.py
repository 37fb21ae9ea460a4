"""From a kernel's factory and arrays to a launch: on a GPU, or under Numba's simulator.

What a launch depends on is worked out once for arrays of the same dtypes and strides (`by_form`): the kernel, its grid
and its geometry. A call then passes one argument for each address and one for each number of the geometry.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import name_of
from fastconv.backends.numba_cuda import ptx
from fastconv.backends.numba_cuda.simulator import Memory, running, simulated

Ints = tuple[int, ...]
THREADS = 4 if simulated() else 256  # of a block in kernels that any number suits; the simulator's are slow to start
BLOCKS = 1 if simulated() else 2**16  # at most, in kernels whose threads take every gridsize-th result


class Grid(NamedTuple):
    """How many blocks of how many threads, and their bytes of shared memory beyond what the kernel declares.

    `residents` is how many of the blocks one multiprocessor should have registers for.
    """

    blocks: int
    threads: int
    shared: int = 0
    residents: int = 1


def over(results: int) -> Grid:
    """A grid in which every thread takes one of so many results, or every gridsize-th."""
    return Grid(max(1, min(-(-results // THREADS), BLOCKS)), THREADS)


# ---------------------------------------------------------------- arrays


def dtype_name(array: Any) -> str:
    return name_of(array.dtype)


def steps(array: Any) -> Ints:
    """Strides in elements; of complex arrays in reals."""
    size = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    return tuple([stride // size for stride in array.strides])


def lifted(array: Any) -> Ints:
    """Element strides of a canonical operand [N, C, spatial] with three spatial axes."""
    n, c, *space = steps(array)
    return (n, c, *(0,) * (3 - len(space)), *space)


def channels_last(array: Any) -> int:
    """1 where neighbouring channels lie next to each other."""
    return int(array.shape[1] > 1 and array.strides[1] == array.dtype.itemsize)


def address(array: Any) -> int:
    """The address of an array's first element in the GPU's memory: CuPy's, a view by address, Numba's."""
    if hasattr(array, "data"):
        return int(array.data.ptr)
    if hasattr(array, "pointer"):
        return int(array.pointer)
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


# ---------------------------------------------------------------- launches


def kernel(factory: Callable[..., Any], *key: Any) -> Any:
    """The Numba function ``factory(*key)``, one per process; nothing compiles here."""
    return _built(factory, key)


@lru_cache(maxsize=4096)
def _built(factory: Callable[..., Any], key: tuple[Any, ...]) -> Any:
    return factory(*key)


class Call:
    """A kernel with its grid and values: ``call(*operands)`` launches it.

    `dtypes` are those of the operands, None for one that is not there; one that ends in ``[:]`` stands for a flat
    array of Numba's, as atomic functions want it, where all others are pointers. `values` are the geometry, and floats.
    """

    __slots__ = ("_factory", "_flat", "_grid", "_key", "_loaded", "_numbers", "_signature", "_values")

    def __init__(
        self,
        factory: Callable[..., Any],
        key: tuple[Any, ...],
        grid: Grid,
        dtypes: tuple[str | None, ...],
        *values: Any,
    ):
        self._factory, self._key, self._grid, self._values = factory, key, grid, values
        lengths = tuple(len(value) if isinstance(value, tuple) else 0 for value in values)
        self._signature = tuple(dtype or "uint8" for dtype in dtypes), lengths
        self._flat = any(dtype and dtype.endswith("[:]") for dtype in dtypes)
        self._loaded: dict[int, Any] = {}
        self._numbers: list[Any] = []
        for value in values:
            self._numbers += value if isinstance(value, tuple) else [ctypes.c_double(value)]

    def __call__(self, *operands: Any) -> None:
        if simulated():
            self._simulate(operands)
            return
        device, stream = ptx.current()
        loaded = self._loaded.get(device)
        if loaded is None:
            function = kernel(self._factory, *self._key)
            loaded = self._loaded[device] = ptx.load(device, function, self._key, self._signature, self._grid)
        arguments = [0 if operand is None else address(operand) for operand in operands]
        if self._flat:
            arguments = self._arrays(operands, arguments)
        ptx.launch(stream, self._grid, loaded, arguments + self._numbers)

    def _arrays(self, operands: tuple[Any, ...], addresses: list[int]) -> list[int]:
        """The arguments with flat arrays as Numba passes them."""
        arguments: list[int] = []
        for operand, place, dtype in zip(operands, addresses, self._signature[0], strict=True):
            if dtype.endswith("[:]"):
                size, itemsize = int(operand.size), operand.dtype.itemsize
                arguments += [0, 0, size, itemsize, place, size, itemsize]
            else:
                arguments.append(place)
        return arguments

    def _simulate(self, operands: tuple[Any, ...]) -> None:
        function = kernel(self._factory, *self._key)
        memories = [None if operand is None else Memory(operand) for operand in operands]
        with running():
            function[self._grid.blocks, self._grid.threads, 0, self._grid.shared](*memories, *self._values)

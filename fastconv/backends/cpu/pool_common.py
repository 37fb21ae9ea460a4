"""What the pooling and elementwise kernels are told: storages, operands, windows, divisors."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv.arrays import name_of
from fastconv.backends.cpu.calls import address
from fastconv.problem import Ints, PoolProblem

Array = np.ndarray
Run = Callable[..., None]

MOST_WORK = 2**25  # bytes of a thread's scratch
SPREAD_LANES = 16  # channels of a block that lie far apart


@lru_cache(maxsize=8)
def kernels(name: str) -> SimpleNamespace:
    """A module of kernels with its entry points in the disk cache; importing Numba waits until one is needed."""
    import importlib

    from fastconv.compiler.host import host_kernels

    module = importlib.import_module(f"fastconv.kernels.numba_cpu.{name}")
    return host_kernels(module, *module.ENTRIES)


@lru_cache(maxsize=64)
def storage(dtype: np.dtype | str) -> Any:
    from fastconv.kernels.numba_cpu.memory import STORAGE

    return STORAGE[dtype if isinstance(dtype, str) else name_of(dtype)]


@lru_cache(maxsize=32)
def computed(dtype: np.dtype) -> Any:
    """The storage that values of a dtype are computed in."""
    from fastconv.kernels.numba_cpu.memory import computed_name

    return storage(computed_name(name_of(dtype)))


@lru_cache(maxsize=32)
def labels(S: Any) -> Any:
    """The storage of whole numbers in lanes of the width of another one's."""
    return storage(f"int{8 * itemsize(S)}")


def itemsize(storage: Any) -> int:
    from fastconv.kernels.numba_cpu.memory import itemsize

    return int(itemsize(storage.name))


def lift(values: Any, fill: Any, unit: Ints) -> tuple[Any, ...]:
    """Values along the spatial axes with `fill` put in for the unit axes."""
    rest = iter(values)
    return tuple(fill if axis in unit else next(rest) for axis in range(3))


#: The unit axes of a problem of 1, 2 or 3 axes. Tiles of a gradient are cut along the first two.
UNIT = {1: (1, 2), 2: (1,), 3: ()}
#: The same with lanes along W, the last one.
ROW_UNIT = {1: (0, 1), 2: (1,), 3: ()}


def split_of(units: int) -> tuple[int, int, int]:
    """(tasks, blocks, blocks of a task): tasks for every core, each long enough to repay its set-up."""
    run = max(1, units // 64)
    return -(-units // run), units, run


def operand(array: Array, unit: Ints) -> tuple[int, ...]:
    """(address, element strides of N, C and three spatial axes)."""
    return (address(array), *strides(array, unit))


def strides(array: Array, unit: Ints) -> Ints:
    """The element strides of N, C and three spatial axes."""
    return _element_strides(array.strides, array.itemsize, unit)


@lru_cache(maxsize=1024)
def _element_strides(strides: Ints, itemsize: int, unit: Ints) -> Ints:
    elements = [stride // itemsize for stride in strides]
    return (elements[0], elements[1], *lift(elements[2:], 0, unit))


class Windows:
    """The windows of a problem as the kernels take them: per axis and output, (first cell, cells, first tap)."""

    def __init__(self, problem: PoolProblem):
        self.unit = UNIT[problem.ndim]
        axes = range(problem.ndim)
        self.sizes = lift(problem.size, 1, self.unit)
        self.outs = lift(problem.out, 1, self.unit)
        self.steps = lift([problem.step(axis) for axis in axes], 1, self.unit)
        self.frame = lift(problem.frame, 1, self.unit)
        tables = [
            np.column_stack([np.array(problem.cells(axis), np.int64).reshape(-1, 2), problem.first_taps(axis)])
            for axis in axes
        ]
        self.tables = lift(tables, np.array([[0, 1, 0]], np.int64), self.unit)
        self.problem = problem


def divisors_of(problem: PoolProblem, unit: Ints) -> tuple[Array, ...]:
    """Per axis, factors of what the sum of a window is divided by; 1 where that is over no cell."""
    ones = [np.ones(n) for n in problem.out]
    if problem.divisor is not None:
        ones[0] *= problem.divisor
        return lift(ones, np.ones(1), unit)
    counts = [
        problem.padded_counts(axis) if problem.count_include_pad else [count for _, count in problem.cells(axis)]
        for axis in range(problem.ndim)
    ]
    return lift([np.maximum(count, 1.0) for count in counts], np.ones(1), unit)


def adjacent(array: Array, channels: int = 1) -> bool:
    """Whether at least `channels` channels lie next to each other."""
    return array.strides[1] == array.itemsize and array.shape[1] >= channels

"""What the convolution kernels are told: axes, taps and strides, always with three spatial axes."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import name_of
from fastconv.problem import ConvProblem, Ints


@cache  # the name of a dtype takes NumPy microseconds
def storage(dtype: np.dtype) -> Any:
    from fastconv.kernels.numba_cpu.memory import STORAGE

    return STORAGE[name_of(dtype)]


def compute_dtype(problem: ConvProblem) -> np.dtype:
    """What products are summed in."""
    return np.dtype(problem.dtype if problem.dtype in ("float64", "int32") else np.float32)


def lift(values: Ints, fill: int) -> Ints:
    """Values per spatial axis as three: 1-D and 2-D problems have leading unit axes."""
    return (fill,) * (3 - len(values)) + tuple(values)


def strides_of(array: np.ndarray) -> Ints:
    """Element strides of a canonical operand, its spatial axes lifted to three."""
    steps = [stride // array.itemsize for stride in array.strides]
    return (*steps[:2], *lift(tuple(steps[2:]), 0))


class Axis(NamedTuple):
    """One axis of a pass: `outputs` results read source cells ``o * step + offset`` for each (tap, offset)."""

    outputs: int
    source: int
    step: int
    taps: tuple[tuple[int, int], ...]
    start: int  # of the outputs in the result, and
    stride: int  # how far apart they lie there


def forward_axes(problem: ConvProblem) -> tuple[Axis, ...]:
    window = problem.window
    per_axis = zip(problem.out, problem.size, window.ksize, window.stride, window.dilation, window.pad, strict=True)
    axes = [
        Axis(out, size, s, tuple((r, r * d - low) for r in range(k)), 0, 1) for out, size, k, s, d, (low, _) in per_axis
    ]
    return (Axis(1, 1, 1, ((0, 0),), 0, 1),) * (3 - problem.ndim) + tuple(axes)


def backward_axes(problem: ConvProblem) -> Iterator[tuple[Axis, ...]]:
    """dgrad as one gather per residue of dx's cells modulo the stride: ``p = (i + pad - r * dilation) / stride``."""
    window = problem.window
    choices: list[list[Axis]] = [[Axis(1, 1, 1, ((0, 0),), 0, 1)]] * (3 - problem.ndim)
    for axis, (out, size) in enumerate(zip(problem.out, problem.size, strict=True)):
        k, s, d, (low, _) = window.ksize[axis], window.stride[axis], window.dilation[axis], window.pad[axis]
        choices.append(
            [
                Axis(
                    -(-(size - start) // s), out, 1,
                    tuple((r, (start + low - r * d) // s) for r in range(k) if (start + low - r * d) % s == 0),
                    start, s,
                )
                for start in range(min(s, size))
            ]
        )  # fmt: skip
    yield from itertools.product(*choices)


def tap_table(axes: tuple[Axis, ...]) -> tuple[np.ndarray, list[Ints]]:
    """The kernel's int64[T, 9] (see gemm.py), and the tap's place in the window."""
    rows, places = [], []
    for combination in itertools.product(*(axis.taps for axis in axes)):
        offsets, ranges = [], []
        for axis, (_, offset) in zip(axes, combination, strict=True):
            low = min(max(0, -(offset // axis.step)), axis.outputs)
            high = min(max(low, (axis.source - 1 - offset) // axis.step + 1), axis.outputs)
            offsets.append(offset)
            ranges += [low, high]
        rows.append(offsets + ranges)
        places.append(tuple(place for place, _ in combination))
    return np.array(rows, np.int64).reshape(-1, 9), places


class Pass(NamedTuple):
    """One call of the gather kernel: its axes, taps and the taps' places in the window."""

    axes: tuple[Axis, ...]
    taps: np.ndarray
    places: list[Ints]

    @classmethod
    def of(cls, axes: tuple[Axis, ...]) -> Pass:
        return cls(axes, *tap_table(axes))

    def part(self, ndim: int) -> list[slice]:
        """Which cells of the result this pass fills."""
        return [slice(axis.start, None, axis.stride) for axis in self.axes[3 - ndim :]]

    def numbers(self, ksize: Ints) -> list[int]:
        """The taps' row-major numbers in the window."""
        strides = [math.prod(lift(ksize, 1)[axis + 1 :]) for axis in range(3)]
        return [sum(map(operator.mul, place, strides)) for place in self.places]

    @property
    def pointwise(self) -> bool:
        """One tap, every pixel reads itself: the spatial axes can be seen as one."""
        return len(self.places) == 1 and all(
            axis.step == 1 and axis.taps[0][1] == 0 and axis.outputs == axis.source for axis in self.axes
        )

"""What the convolution kernels are told: axes, taps and strides, always with three spatial axes."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import name_of
from fastconv.problem import ACTIVATIONS, ConvProblem, Ints

FLOAT = np.dtype("float32")
PACKED_BYTES = 32 * 2**20  # of rearranged weights at a time
COMPUTED = {name: np.dtype(name) for name in ("float64", "int32")}  # the others in float32


@lru_cache(maxsize=64)  # the name of a dtype takes NumPy microseconds
def storage(dtype: np.dtype) -> Any:
    from fastconv.kernels.numba_cpu.memory import STORAGE

    return STORAGE[name_of(dtype)]


def compute_dtype(problem: ConvProblem) -> np.dtype:
    """What products are summed in."""
    return COMPUTED.get(problem.dtype, FLOAT)


def extents(problem: ConvProblem, forward: bool) -> tuple[int, int]:
    """The channels of a group that a pass makes, and those that it sums over."""
    M, C = problem.K // problem.groups, problem.C // problem.groups
    return (M, C) if forward else (C, M)


def activation_code(problem: ConvProblem) -> int:
    """The number that kernels know an activation by; 0 is none."""
    return 0 if problem.activation is None else ACTIVATIONS.index(problem.activation) + 1


def lift(values: Ints, fill: int) -> Ints:
    """Values per spatial axis as three: 1-D and 2-D problems have leading unit axes."""
    return (fill,) * (3 - len(values)) + tuple(values)


def strides_of(array: np.ndarray) -> Ints:
    """Element strides of a canonical operand, its spatial axes lifted to three."""
    return _in_elements(array.strides, array.itemsize)


@lru_cache(maxsize=1024)
def _in_elements(strides: Ints, itemsize: int) -> Ints:
    steps = [stride // itemsize for stride in strides]
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
        offsets: list[int] = []
        ranges: list[int] = []
        for axis, (_, offset) in zip(axes, combination, strict=True):
            offsets.append(offset)
            ranges += reached(axis, offset)
        rows.append(offsets + ranges)
        places.append(tuple(place for place, _ in combination))
    return np.array(rows, np.int64).reshape(-1, 9), places


def reached(axis: Axis, offset: int) -> tuple[int, int]:
    """The outputs [low, high) that a tap with this offset gives a source cell."""
    low = min(max(0, -(offset // axis.step)), axis.outputs)
    return low, min(max(low, (axis.source - 1 - offset) // axis.step + 1), axis.outputs)


def unpadded(axes: tuple[Axis, ...]) -> Iterator[tuple[Axis, ...]]:
    """A pass cut where the taps that meet the source change: in each part every tap meets it everywhere."""
    choices: list[list[Axis]] = []
    for axis in axes:
        ranges = {tap: reached(axis, tap[1]) for tap in axis.taps}
        cuts = sorted({0, axis.outputs, *itertools.chain.from_iterable(ranges.values())})
        choices.append(
            [
                axis._replace(
                    outputs=last - first,
                    taps=tuple(
                        (place, offset + first * axis.step)
                        for (place, offset), (low, high) in ranges.items()
                        if low <= first and last <= high
                    ),
                    start=axis.start + first * axis.stride,
                )
                for first, last in itertools.pairwise(cuts)
            ]
        )
    yield from itertools.product(*choices)


@dataclass(frozen=True, eq=False)
class Pass:
    """One call of the gather kernel: its axes, taps and the taps' places in the window. Each is a key of its own."""

    axes: tuple[Axis, ...]
    taps: np.ndarray
    places: list[Ints]

    @classmethod
    def of(cls, axes: tuple[Axis, ...]) -> Pass:
        return cls(axes, *tap_table(axes))

    def part(self, ndim: int) -> Any:
        """Which cells of the canonical result this pass fills, as an index."""
        cells = [slice(a.start, a.start + a.outputs * a.stride, a.stride) for a in self.axes[3 - ndim :]]
        return (slice(None), slice(None), *cells)

    def offset(self, part: np.ndarray) -> int:
        """Bytes from the result's first cell to the first one of that part of it."""
        axes = self.axes[5 - part.ndim :]
        return sum(a.start * stride // a.stride for a, stride in zip(axes, part.strides[2:], strict=True))

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

    @property
    def meets_border(self) -> bool:
        """Whether some output meets no source cell at some tap."""
        return any(reached(axis, offset) != (0, axis.outputs) for axis in self.axes for _, offset in axis.taps)


class Walk(NamedTuple):
    """What a pass over operands with these strides is told; a pointwise one has its axes merged where they allow it."""

    taps: np.ndarray
    counts: Ints
    steps: Ints
    x: Ints
    y: Ints


@lru_cache(maxsize=1024)
def walk(one: Pass, x: Ints, y: Ints) -> Walk:
    counts = tuple(axis.outputs for axis in one.axes)
    steps = tuple(axis.step for axis in one.axes)
    contiguous = all(s[2] == counts[1] * s[3] or counts[0] == 1 for s in (x, y)) and all(
        s[3] == counts[2] * s[4] or counts[0] * counts[1] == 1 for s in (x, y)
    )
    if not one.pointwise or not contiguous:
        return Walk(one.taps, counts, steps, x, y)
    total = math.prod(counts)
    return Walk(np.array([[0, 0, 0, 0, 1, 0, 1, 0, total]], np.int64), (1, 1, total), steps, x, y)


@lru_cache(maxsize=1024)
def weight_strides(one: Pass, forward: bool, per_group: int, strides: Ints) -> tuple[int, int, int, np.ndarray, int]:
    """Element strides (group, output channel, reduced channel) of w[g, m, c, t], its taps' offsets, and their step.

    The step is that of the rows (c, t), if they have one; else 0.
    """
    k, c, *space = strides
    offsets = np.array([sum(r * s for r, s in zip(place, space, strict=True)) for place in one.places], np.int64)
    wm, wc = (k, c) if forward else (c, k)
    T = len(one.places)
    step = int(offsets[1]) if T > 1 else wc
    linear = (offsets == np.arange(T) * step).all() and wc == T * step
    return k * per_group, wm, wc, offsets, step if linear else 0


def chunks(G: int, M: int, row_bytes: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Ranges (g0, g1, m0, m1) whose rearranged filters stay within PACKED_BYTES; whole groups where they fit."""
    group_bytes = -(-M // rows) * rows * row_bytes
    if group_bytes <= PACKED_BYTES:
        step = max(1, PACKED_BYTES // group_bytes)
        yield from ((g, min(G, g + step), 0, M) for g in range(0, G, step))
        return
    step = max(rows, PACKED_BYTES // (rows * row_bytes) * rows)
    for g in range(G):
        yield from ((g, g + 1, m, min(M, m + step)) for m in range(0, M, step))


@lru_cache(maxsize=1024)
def cut(G: int, rows: int, most_rows: int, columns: int, most_columns: int, count: int) -> tuple[int, int]:
    """Into how many parts rows and columns are cut, so that `count` threads have about the same to do.

    Tasks are the parts of rows of each part of columns of each group, and each thread takes as many of them in a
    row: where the parts of columns go round, it gets whole ones. Every part of columns packs the rows again, which
    costs some columns' products, and every part of rows reads the columns again. Results do not depend on it.
    """

    def cost(choice: tuple[int, int]) -> float:
        a, b = choice
        if G * b % count == 0:
            share = G * b // count * rows * -(-columns // b)
        else:
            share = -(-G * a * b // count) * -(-rows // a) * -(-columns // b)
        return share * (1 + 0.3 * b / columns + 0.1 * a / rows)

    least_a, least_b = -(-rows // most_rows), -(-columns // most_columns)
    a = range(least_a, min(rows, max(least_a + 2 * count, 4 * count)) + 1)
    b = range(least_b, min(columns, max(least_b + count, 4 * count)) + 1)
    return min(itertools.product(a, b), key=cost)

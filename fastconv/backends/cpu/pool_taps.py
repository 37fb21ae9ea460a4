"""The gradient of max pooling from where its maxima are, and from x, of which they are found first."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv.arrays import dtype_of, name_of
from fastconv.backends.base import Launch
from fastconv.backends.cpu import pool_small
from fastconv.backends.cpu.calls import address, by_form
from fastconv.backends.cpu.pool_channels import channel_gradient
from fastconv.backends.cpu.pool_common import (
    MOST_WORK,
    ROW_UNIT,
    SPREAD_LANES,
    Array,
    Run,
    adjacent,
    computed,
    itemsize,
    kernels,
    labels,
    lift,
    operand,
    split_of,
    storage,
    strides,
)
from fastconv.backends.cpu.pool_rows import Rows, up
from fastconv.backends.cpu.workspace import scratch, threads, workspace
from fastconv.errors import ShapeError
from fastconv.problem import Ints, PoolProblem

BLOCK_BYTES = 2**18  # of the rows of dx that a block scatters to: inside a core's second-level cache
LINES_BYTES = 2**15  # of the lines of a block: inside a core's first-level cache
MOST_CELLS = 2**30  # of a plane, whose offsets lanes of 32 bits hold
TABLES = 4096  # bytes of the kernel's lists of taps


def taps(op: str, problem: PoolProblem, why: str) -> Launch:
    """Along the numbers of taps: with lanes along C where the channels of dx are adjacent, else plane by plane."""
    along_c, along_w, by_one = channel_gradient(op, problem), gather(problem), scatter(problem)

    def run(dx: Array, dy: Array, places: Array) -> None:
        if dx.size == 0:
            return
        if adjacent(dx, SPREAD_LANES):
            along_c(dx, dy, places)
        elif along_w is not None and in_rows(dx):
            along_w(dx, dy, places)
        else:
            by_one(dx, dy, places)

    return Launch(run, "taps", why)


def in_rows(array: Array) -> bool:
    """Whether neighbours along the last axis lie next to each other."""
    return array.strides[-1] == array.itemsize


def rows_of(problem: PoolProblem, unit: Ints) -> tuple[int, tuple[int, int, int]]:
    """(rows of dx in a block, its tasks)."""
    sizes, frame = lift(problem.size, 1, unit), lift(problem.frame, 1, unit)
    row = itemsize(computed(dtype_of(problem.dtype))) * sizes[1] * sizes[2]
    rows = min(sizes[0], max(BLOCK_BYTES // row, 4 * frame[0]))
    return rows, split_of(problem.N * problem.C * -(-sizes[0] // rows))


class Lines(Rows):
    """Blocks of rows of dx, and the lines of the outputs that reach one: pool_gather.py."""

    def __init__(self, problem: PoolProblem):
        super().__init__(problem)
        lanes = 64 // self.item  # at most
        before = up(self.ksizes[2], lanes)
        cells = self.outs[2] if self.strides[2] == 2 else self.sizes[2]
        length = before + up(max(cells, self.sizes[2] // self.strides[2]) + self.lows[2] + 1, lanes) + lanes
        fit = LINES_BYTES // (2 * self.item * length * self.outs[1])
        rows = max((fit - 1) * self.strides[0] - self.ksizes[0] + 2, self.ksizes[0])
        self.rows = min(self.sizes[0], rows)
        self.blocks = -(-self.sizes[0] // self.rows)
        most = min(self.outs[0], (self.rows + self.ksizes[0] - 2) // self.strides[0] + 1) * self.outs[1]
        self.g = self.geometry((length, before, most))
        self.tables = tuple(self.table(axis) for axis in range(2))
        of = self.sizes, self.outs, self.strides, self.ksizes, self.lows
        self.reaches = tuple(reach(*[values[axis] for values in of]) for axis in range(2))
        self.work_bytes = 2 * self.item * most * length + 2048


def gather(problem: PoolProblem) -> Run | None:
    """With lanes along W, along taps or indices, where the kernel takes the problem."""
    window, S = problem.window, computed(dtype_of(problem.dtype))
    if window is None or set(window.dilation) != {1} or window.stride[-1] > 2 or storage(problem.dtype) is not S:
        return None
    lines = Lines(problem)
    if math.prod(problem.size) >= MOST_CELLS or lines.work_bytes > MOST_WORK:
        return None
    unit, C, tasks = lines.unit, problem.C, split_of(problem.N * problem.C * lines.blocks)

    def bind(dx: Array, dy: Array, places: Array) -> Run:
        gs, ps, xs = (strides(array, unit) for array in (dy, places, dx))
        kernel, I, L = kernels("pool_gather").gather, storage(places.dtype), labels(S)
        nbytes = lines.work_bytes * threads()

        def call(dx: Array, dy: Array, places: Array) -> None:
            status = np.zeros(1, np.int64)
            held = scratch(nbytes)  # until the kernel returns
            of = (address(dy), *gs), (address(places), *ps), (address(dx), *xs)
            kernel(
                *tasks, S, S, I, L, *of, C, lines.rows, lines.g, lines.tables, lines.reaches, status,
                held.address, lines.work_bytes,
            )  # fmt: skip
            if status[0]:
                raise ShapeError(pool_small.foreign(problem, places))

        return call

    return by_form(bind)


def reach(size: int, out: int, stride: int, ksize: int, low: int) -> Array:
    """Per cell of an axis, the first output that meets it, how many do, and by which tap the first does."""
    place = np.arange(size) + low
    first = np.maximum(0, -((ksize - 1 - place) // stride))
    count = np.minimum(out, place // stride + 1) - first
    return np.stack([first, np.maximum(count, 0), place - first * stride], 1)


def scatter(problem: PoolProblem) -> Run:
    """Output by output, for every window and all memory."""
    unit, axes, C = ROW_UNIT[problem.ndim], range(problem.ndim), problem.C
    sizes, frame = lift(problem.size, 1, unit), lift(problem.frame, 1, unit)
    steps = lift([problem.step(axis) for axis in axes], 1, unit)
    begins = [
        [first - tap * problem.step(axis) for (first, _), tap in zip(cells, problem.first_taps(axis), strict=True)]
        for axis, cells in ((axis, problem.cells(axis)) for axis in axes)
    ]
    starts = lift([np.array(begin, np.int64) for begin in begins], np.zeros(1, np.int64), unit)
    G, S = storage(problem.dtype), computed(dtype_of(problem.dtype))
    rows, tasks = rows_of(problem, unit)
    work_bytes = TABLES + (0 if G is S else itemsize(S) * rows * sizes[1] * sizes[2]) + 64

    def run(dx: Array, dy: Array, places: Array) -> None:
        held = scratch(work_bytes * threads())  # until the kernel returns
        kernels("pool_taps").scatter_taps(
            *tasks, G, S, operand(dy, unit), operand(places, unit), operand(dx, unit), C, rows, starts, steps, frame,
            sizes, held.address, work_bytes,
        )  # fmt: skip

    return run


def find_first(problem: PoolProblem, forward: Any, backward: Launch) -> Run:
    """The gradient from x: the forward pass, for its places alone, and the gradient from these."""
    forwards: dict[str, Run] = {}

    def run(dx: Array, dy: Array, x: Array) -> None:
        name = name_of(x.dtype)
        if name not in forwards:
            forwards[name] = forward(replace(problem, dtype=name)).run
        y = kept("maxima", problem, x, x.dtype)
        places = kept("places", problem, x, np.dtype(problem.dtype_of("places")))
        forwards[name](y, places, x)
        backward.run(dx, dy, places)

    return run


def kept(slot: str, problem: PoolProblem, like: Array, dtype: np.dtype) -> Array:
    """A canonical array of the output's extents in this thread's memory, its channels adjacent where those of x are."""
    N, C, *outs = problem.dims("y")
    count = N * C * math.prod(outs)
    flat = workspace(count * dtype.itemsize, slot)[: count * dtype.itemsize].view(dtype)
    if adjacent(like, SPREAD_LANES):
        return flat.reshape(N, *outs, C).transpose(0, problem.ndim + 1, *range(1, problem.ndim + 1))
    return flat.reshape(N, C, *outs)

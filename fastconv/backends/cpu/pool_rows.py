"""Pooling with lanes along W: blocks of planes, their scratch, and the calls of their kernels; whole planes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.arrays import dtype_of
from fastconv.backends.base import Launch
from fastconv.backends.cpu.calls import address, by_form
from fastconv.backends.cpu.elementwise import rows_of
from fastconv.backends.cpu.pool_channels import channels
from fastconv.backends.cpu.pool_common import (
    ROW_UNIT,
    SPREAD_LANES,
    Array,
    Run,
    adjacent,
    computed,
    divisors_of,
    kernels,
    lift,
    operand,
    split_of,
    storage,
    strides,
)
from fastconv.backends.cpu.workspace import scratch, threads
from fastconv.problem import Ints, PoolProblem, Window

BLOCK_CELLS = 2**15  # of a block of a gradient, padding counted
BLOCK_BYTES = 2**15  # of the padded rows of a block: inside a core's first-level cache
OVERRUN = 64  # elements that loops over vectors may run beyond a row


class Rows:
    """Regular windows with unit axes put in, as the kernels with lanes along W take them."""

    def __init__(self, problem: PoolProblem):
        window = problem.window or even_window(problem)
        unit = self.unit = ROW_UNIT[problem.ndim]
        self.sizes, self.outs = lift(problem.size, 1, unit), lift(problem.out, 1, unit)
        self.strides, self.dilations = lift(window.stride, 1, unit), lift(window.dilation, 1, unit)
        self.lows, self.ksizes = lift([low for low, _ in window.pad], 0, unit), lift(window.ksize, 1, unit)
        self.extents = tuple((k - 1) * d + 1 for k, d in zip(self.ksizes, self.dilations, strict=True))
        self.item = 8 if problem.dtype in ("float64", "int64", "uint64", "uint32") else 4  # bytes, computed in

    def table(self, axis: int) -> Array:
        """Per output index along an axis: the first cell that its window meets, how many, and the tap of the first."""
        start = np.arange(self.outs[axis]) * self.strides[axis] - self.lows[axis]
        step, n = self.dilations[axis], self.sizes[axis]
        tap = np.maximum(0, -(start // step))
        stop = np.minimum(self.ksizes[axis], -((start - n) // step))
        return np.stack([start + tap * step, stop - tap, tap], 1)

    def geometry(self, *more: Ints) -> Array:
        """The rows of `g`, as pool_rows.py has them, and more."""
        rows = (self.sizes, self.outs, self.strides, self.dilations, self.lows, self.ksizes)
        return np.array([*rows, *more], np.int64)


class Forward(Rows):
    """Blocks of `rows` rows of outputs: pool_rows.py."""

    def __init__(self, problem: PoolProblem):
        super().__init__(problem)
        lanes = 64 // self.item  # at most
        before = up(self.lows[2], lanes)
        reach = up(self.outs[2], lanes) * self.strides[2] + self.extents[2] + 2 * lanes
        line = before + up(max(reach, self.sizes[2] + lanes), lanes)
        row = self.sizes[1] * line
        fit = BLOCK_BYTES // (self.item * row)
        self.rows = min(self.outs[0], max((fit - self.extents[0]) // self.strides[0] + 1, 1))
        self.blocks = -(-self.outs[0] // self.rows)
        met = min(self.sizes[0], (self.rows - 1) * self.strides[0] + self.extents[0])
        self.g = self.geometry((line, before, met * self.sizes[1]))
        self.tables = tuple(self.table(axis) for axis in range(2))
        folded = self.rows * self.outs[1] * line
        self.work_bytes = self.item * (met * row + folded + self.outs[2]) + 2048
        # Both are exact in float32: the rows that a window spans lie in the workspace, which MOST_WORK bounds.
        self.by_taps = (self.ksizes[1] * self.ksizes[2], self.ksizes[2], 1)
        cells = (self.sizes[1] * self.sizes[2], self.sizes[2], 1)
        self.by_cells = tuple(d * n for d, n in zip(self.dilations, cells, strict=True))


class Backward(Rows):
    """Blocks of `rows` rows of dx: pool_rows_dgrad.py."""

    def __init__(self, problem: PoolProblem):
        super().__init__(problem)
        places = (self.outs[2] - 1) * self.strides[2] + 1
        before = self.extents[2] - 1
        y_row = before + max(places, self.sizes[2] + self.lows[2]) + OVERRUN
        plain = max(self.sizes[2], self.outs[2], 2 * self.ksizes[0] * self.ksizes[1]) + OVERRUN
        across = self.outs[1] * y_row
        self.rows = min(self.sizes[0], max(BLOCK_CELLS // across * self.strides[0] - self.extents[0], self.extents[0]))
        self.blocks = -(-self.sizes[0] // self.rows)
        reach = min(self.outs[0], (self.rows + self.extents[0] - 2) // self.strides[0] + 1)
        self.g = self.geometry((y_row, before, plain))
        self.work_bytes = self.item * (reach * across + 2 * y_row) + 16 * plain + 4096


def up(n: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-n // to) * to


def even_window(problem: PoolProblem) -> Window:
    """The window of adaptive bins that all have one size."""
    ksize = tuple(n // m for n, m in zip(problem.size, problem.out, strict=True))
    return Window(ksize, ksize, (1,) * problem.ndim, ((0, 0),) * problem.ndim)


def rows(op: str, problem: PoolProblem, why: str) -> Launch:
    """With channels as lanes at once where the memory of a call has its channels adjacent."""
    geometry = Backward(problem) if op.endswith("dgrad") else Forward(problem)
    along_w = row_gradient(problem, geometry) if op.endswith("dgrad") else row_forward(op, problem, geometry)
    along_c = channels(op, problem, why).run
    source = -1 if op in ("maxpool_indices", "maxpool_places") else 0

    def run(result: Array, *operands: Array) -> None:
        last = adjacent(result, SPREAD_LANES) and adjacent(operands[source])
        (along_c if last else along_w)(result, *operands)

    config = {"rows": geometry.rows, "blocks": geometry.blocks}
    return Launch(run, "rows", why, config, workspace=geometry.work_bytes)


def row_forward(op: str, problem: PoolProblem, geometry: Any) -> Run:
    unit, g, rows, work_bytes = geometry.unit, geometry.g, geometry.rows, geometry.work_bytes
    tasks = split_of(problem.N * problem.C * geometry.blocks)
    divisors, tables = divisors_of(problem, unit), geometry.tables
    C, X, S = problem.C, storage(problem.dtype), computed(dtype_of(problem.dtype))

    def bind(y: Array, *operands: Array) -> Run:
        if y.size == 0:
            return lambda *arrays: None
        module, xs, ys = kernels("pool_rows"), strides(operands[-1], unit), strides(y, unit)
        nbytes = work_bytes * threads()
        if op in ("maxpool_indices", "maxpool_places"):
            ps, I = strides(operands[0], unit), storage(operands[0].dtype)
            by = geometry.by_taps if I is storage("uint8") else geometry.by_cells

            def note(y: Array, places: Array, x: Array) -> None:
                held = scratch(nbytes)  # until the kernel returns
                of = (address(x), *xs), (address(y), *ys), (address(places), *ps)
                module.max_places(*tasks, X, S, I, *of, C, rows, g, tables, by, held.address, work_bytes)

            return note
        kernel = module.max_fprop if op == "maxpool_fprop" else module.avg_fprop

        def fold(y: Array, x: Array) -> None:
            held = scratch(nbytes)  # until the kernel returns
            of = (address(x), *xs), (address(y), *ys)
            kernel(*tasks, X, S, *of, C, rows, g, tables, divisors, held.address, work_bytes)

        return fold

    return by_form(bind)


def row_gradient(problem: PoolProblem, geometry: Any) -> Run:
    """Of average pooling."""
    unit, g, work_bytes = geometry.unit, geometry.g, geometry.work_bytes
    C, rows, tasks = problem.C, geometry.rows, split_of(problem.N * problem.C * geometry.blocks)
    G, S, divisors = storage(problem.dtype), computed(dtype_of(problem.dtype)), divisors_of(problem, unit)

    def run(dx: Array, dy: Array) -> None:
        if dx.size == 0:
            return
        held = scratch(work_bytes * threads())  # until the kernel returns
        work = held.address
        dys, dxs = operand(dy, unit), operand(dx, unit)
        kernels("pool_rows_dgrad").avg_dgrad(*tasks, G, S, dys, dxs, C, rows, g, divisors, work, work_bytes)

    return run


# ---------------------------------------------------------------- whole planes


def planes(op: str, problem: PoolProblem, why: str) -> Launch:
    """The average of each plane; with channels as lanes where they are adjacent."""
    along_c, unit = channels(op, problem, why).run, ROW_UNIT[problem.ndim]
    sizes = lift(problem.size, 1, unit)
    divisor = math.prod(float(factors[0]) for factors in divisors_of(problem, unit))
    count, X, S = problem.N * problem.C, storage(problem.dtype), computed(dtype_of(problem.dtype))

    def run(y: Array, x: Array) -> None:
        if x.size == 0 or adjacent(x, SPREAD_LANES):
            along_c(y, x)
            return
        xs, extents = rows_of(x, sizes, unit)
        kernels("pool_rows").avg_planes(count, X, S, xs, operand(y, unit), problem.C, extents, divisor)

    return Launch(run, "planes", why)

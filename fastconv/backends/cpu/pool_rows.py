"""Pooling with lanes along W: blocks of planes, their scratch, and the calls of their kernels; whole planes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.arrays import dtype_of
from fastconv.backends.base import Launch
from fastconv.backends.cpu.pool_channels import channel_gradient, channels
from fastconv.backends.cpu.pool_common import (
    SPREAD_LANES,
    Array,
    Run,
    address_of,
    adjacent,
    computed,
    divisors_of,
    itemsize,
    kernels,
    lift,
    operand,
    storage,
)
from fastconv.backends.cpu.workspace import threads, workspace
from fastconv.problem import Ints, PoolProblem, Window

BLOCK_CELLS = 2**15  # of a block of one plane, padding counted
OVERRUN = 64  # elements that loops over vectors may run beyond a row

ROW_UNIT = {1: (0, 1), 2: (1,), 3: ()}


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
        self.tap_offsets = np.indices(self.ksizes).reshape(3, -1).T * self.dilations

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
        return np.array([(*row, 0) for row in rows] + list(more), np.int64)


class Forward(Rows):
    """Blocks of `rows` rows of outputs: pool_rows.py."""

    def __init__(self, problem: PoolProblem):
        super().__init__(problem)
        row = self.sizes[1] * self.sizes[2]
        self.rows = min(self.outs[0], max((BLOCK_CELLS // row - self.extents[0]) // self.strides[0] + 1, 1))
        self.blocks = -(-self.outs[0] // self.rows)
        self.g, self.tables = self.geometry(), tuple(self.table(axis) for axis in range(2))
        self.shifts = _flat(self.tap_offsets, self.sizes)
        copied = min(self.sizes[0], (self.rows - 1) * self.strides[0] + self.extents[0]) * row
        self.work_bytes = self.item * (copied + self.outs[2]) + 16 * self.ksizes[0] * self.ksizes[1] + 2048


class Backward(Rows):
    """Blocks of `rows` rows of dx: pool_rows_dgrad.py."""

    def __init__(self, problem: PoolProblem, op: str):
        super().__init__(problem)
        places = (self.outs[2] - 1) * self.strides[2] + 1
        before = self.extents[2] - 1
        across = (self.outs[1] - 1) * self.strides[1] + self.extents[1]
        x_row = places + before + OVERRUN
        y_row = before + max(places, self.sizes[2] + self.lows[2]) + OVERRUN
        plain = max(self.sizes[2], self.outs[2], 2 * self.ksizes[0] * self.ksizes[1]) + OVERRUN
        self.rows = min(self.sizes[0], max(BLOCK_CELLS // (x_row * across) - self.extents[0], self.extents[0]))
        self.blocks = -(-self.sizes[0] // self.rows)
        reach = min(self.outs[0], (self.rows + self.extents[0] - 2) // self.strides[0] + 1)
        x_cells = ((reach - 1) * self.strides[0] + self.extents[0]) * across * x_row
        y_cells = reach * self.outs[1] * y_row
        self.g = self.geometry((x_row, y_row, before, plain))
        self.taps = _flat(self.tap_offsets, (0, across, x_row))
        cells = 2 * y_cells + x_cells if op == "maxpool_dgrad" else y_cells
        self.work_bytes = self.item * (cells + 2 * y_row) + 16 * plain + 4096


def _flat(places: Array, extents: Ints) -> Array:
    return np.ascontiguousarray((places[:, 0] * extents[1] + places[:, 1]) * extents[2] + places[:, 2], np.int64)


def even_window(problem: PoolProblem) -> Window:
    """The window of adaptive bins that all have one size."""
    ksize = tuple(n // m for n, m in zip(problem.size, problem.out, strict=True))
    return Window(ksize, ksize, (1,) * problem.ndim, ((0, 0),) * problem.ndim)


def rows(op: str, problem: PoolProblem, why: str) -> Launch:
    """With channels as lanes at once where the memory of a call has its channels adjacent."""
    geometry = Backward(problem, op) if op.endswith("dgrad") else Forward(problem)
    along_w = row_gradient(op, problem, geometry) if op.endswith("dgrad") else row_forward(op, problem, geometry)
    along_c = channels(op, problem, why).run
    source = -1 if op == "maxpool_indices" else 0

    def run(result: Array, *operands: Array) -> None:
        last = adjacent(result, SPREAD_LANES) and adjacent(operands[source])
        (along_c if last else along_w)(result, *operands)

    config = {"rows": geometry.rows, "blocks": geometry.blocks}
    return Launch(run, "rows", why, config, workspace=geometry.work_bytes)


def split_of(units: int) -> tuple[int, int, int]:
    """(tasks, blocks, blocks of a task): tasks for every core, each long enough to repay its set-up."""
    run = max(1, units // 64)
    return -(-units // run), units, run


def row_forward(op: str, problem: PoolProblem, geometry: Any) -> Run:
    unit, g, rows, work_bytes = geometry.unit, geometry.g, geometry.rows, geometry.work_bytes
    tasks = split_of(problem.N * problem.C * geometry.blocks)
    divisors, tables, shifts = divisors_of(problem, unit), geometry.tables, geometry.shifts
    C, X, S = problem.C, storage(problem.dtype), computed(dtype_of(problem.dtype))

    def run(y: Array, *operands: Array) -> None:
        x = operands[-1]
        if x.size == 0:
            return
        module, xs, ys = kernels("pool_rows"), operand(x, unit), operand(y, unit)
        scratch = workspace(work_bytes * threads())  # held until the kernel returns
        work = address_of(scratch)
        if op == "maxpool_indices":
            places = operand(operands[0], unit)
            module.max_indices(*tasks, X, S, xs, ys, places, C, rows, g, tables, shifts, work, work_bytes)
        elif op == "maxpool_fprop":
            module.max_fprop(*tasks, X, S, xs, ys, C, rows, g, tables, divisors, work, work_bytes)
        else:
            module.avg_fprop(*tasks, X, S, xs, ys, C, rows, g, tables, divisors, work, work_bytes)

    return run


def row_gradient(op: str, problem: PoolProblem, geometry: Any) -> Run:
    unit, taps, g, work_bytes = geometry.unit, geometry.taps, geometry.g, geometry.work_bytes
    C, rows, tasks = problem.C, geometry.rows, split_of(problem.N * problem.C * geometry.blocks)
    G, S = storage(problem.dtype), computed(dtype_of(problem.dtype))
    divisors, along_c = divisors_of(problem, unit), channel_gradient(op, problem)
    if op == "maxpool_dgrad":
        divisors = tuple(np.ones_like(factors) for factors in divisors)

    def run(dx: Array, dy: Array, x: Any = None) -> None:
        if dx.size == 0:
            return
        scratch = workspace(work_bytes * threads())  # held until the kernel returns
        work = address_of(scratch)
        module, dxs, dys = kernels("pool_rows_dgrad"), operand(dx, unit), operand(dy, unit)
        if op == "avgpool_dgrad":
            module.avg_dgrad(*tasks, G, S, dys, dxs, C, rows, g, divisors, work, work_bytes)
            return
        X, SX, xs = storage(x.dtype), computed(x.dtype), operand(x, unit)
        if itemsize(SX) != itemsize(S):  # lanes of x are not lanes of dy
            along_c(dx, dy, x)
            return
        module.max_dgrad(*tasks, X, SX, G, S, xs, dys, dxs, C, rows, g, taps, divisors, work, work_bytes)

    return run


# ---------------------------------------------------------------- whole planes


def planes(op: str, problem: PoolProblem, why: str) -> Launch:
    """The average of each plane; with channels as lanes where they are adjacent."""
    along_c, unit = channels(op, problem, why).run, ROW_UNIT[problem.ndim]
    sizes = lift(problem.size, 1, unit)
    divisor = math.prod(float(factors[0]) for factors in divisors_of(problem, unit))

    def run(y: Array, x: Array) -> None:
        if x.size == 0 or adjacent(x, SPREAD_LANES):
            along_c(y, x)
            return
        from fastconv.backends.cpu.elementwise import rows_of

        N, C = x.shape[:2]
        sums = np.empty((N, C))
        X, S, module = storage(x.dtype), computed(x.dtype), kernels("elementwise")
        module.bias_grad_planes(N * C, C, X, S, *rows_of(x, sizes, unit), sums.ctypes.data)
        with np.errstate(all="ignore"):
            y[...] = (sums / divisor).reshape(y.shape)

    return Launch(run, "planes", why)

"""Pooling along indices: max unpooling, its gradient, and the gradient of a max pooling whose indices are given."""

from __future__ import annotations

import math

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu import pool_small
from fastconv.backends.cpu.pool_common import (
    MOST_WORK,
    SPREAD_LANES,
    UNIT,
    Array,
    Run,
    Windows,
    adjacent,
    computed,
    itemsize,
    kernels,
    lift,
    operand,
    storage,
)
from fastconv.backends.cpu.pool_taps import gather, in_rows
from fastconv.backends.cpu.workspace import scratch, threads
from fastconv.backends.reference import check_indices
from fastconv.errors import ShapeError
from fastconv.problem import PoolProblem


def index(op: str, problem: PoolProblem, why: str) -> Launch:
    if op == "maxpool_places_dgrad":
        return Launch(scatter(problem), "index", why)
    unit = UNIT[problem.ndim]
    sizes, outs = lift(problem.size, 1, unit), lift(problem.out, 1, unit)
    cells = math.prod(sizes)

    def run(result: Array, source: Array, indices: Array) -> None:
        if result.size == 0:
            return
        check_indices(indices, problem, low=0)
        N, C = result.shape[:2]
        lanes = max(1, min(C, SPREAD_LANES, MOST_WORK // cells)) if adjacent(result) else 1
        B, I = storage(f"uint{8 * result.itemsize}"), storage(indices.dtype)
        module = kernels("pool_index")
        operands = [operand(array, unit) for array in (source, indices, result)]
        if op == "maxunpool_fprop":
            module.unpool(B, I, *operands, N, C, lanes, outs, sizes)
            return
        work_bytes = cells * lanes + 64
        held = scratch(work_bytes * threads())  # until the kernel returns
        work = held.address
        module.unpool_dgrad(B, I, *operands, N, C, lanes, outs, sizes, work, work_bytes)

    return Launch(run, "index", why, {"lanes": SPREAD_LANES})


def scatter(problem: PoolProblem) -> Run:
    """The gradient of a max pooling along given indices."""
    windows = Windows(problem)
    unit, sizes, cells = windows.unit, windows.sizes, math.prod(windows.sizes)
    along_w = gather(problem) if problem.layout == "NCHW" else None

    def run(dx: Array, dy: Array, indices: Array) -> None:
        if dx.size == 0:
            return
        if along_w is not None and in_rows(dx) and not adjacent(dx, SPREAD_LANES):
            along_w(dx, dy, indices)
            return
        G, S, I = storage(dy.dtype), computed(dy.dtype), storage(indices.dtype)
        N, C = dx.shape[:2]
        dxs = operand(dx, unit)
        even = (sizes[0] == 1 or dxs[3] == sizes[1] * sizes[2] * dxs[5]) and (
            sizes[1] == 1 or dxs[4] == sizes[2] * dxs[5]
        )
        direct = even and G is S
        fit = SPREAD_LANES if direct else MOST_WORK // (itemsize(S) * cells)
        lanes = max(1, min(C, SPREAD_LANES, fit)) if adjacent(dx) else 1
        work_bytes = itemsize(S) * lanes * (1 if direct else cells + 1) + 128
        held = scratch(work_bytes * threads())  # until the kernel returns
        work = held.address
        status = np.zeros(1, np.int64)
        kernels("pool_index").scatter(
            N * -(-C // lanes), G, S, I, operand(dy, unit), operand(indices, unit), dxs, C, lanes, direct,
            windows.tables, windows.steps, sizes, status, work, work_bytes,
        )  # fmt: skip
        if status[0]:
            raise ShapeError(pool_small.foreign(problem, indices))

    return run

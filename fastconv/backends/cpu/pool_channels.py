"""Pooling with channels as lanes: blocks of channels, tiles of gradients, and the calls of their kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu.pool_common import (
    MOST_WORK,
    SPREAD_LANES,
    Array,
    Run,
    Windows,
    adjacent,
    computed,
    divisors_of,
    kernels,
    labels,
    operand,
    storage,
)
from fastconv.backends.cpu.workspace import scratch, threads
from fastconv.problem import Ints, PoolProblem

LANES = 512  # channels of a block that are adjacent
TILE_LANES = 256  # the same in a gradient
TILE_BYTES = 2**19  # of a gradient's tile: inside a core's second-level cache
TASK_CELLS = 2**15  # of the cells that one forward task reads


def channels(op: str, problem: PoolProblem, why: str) -> Launch:
    run = channel_gradient(op, problem) if op.endswith("dgrad") else channel_forward(op, problem)
    return Launch(run, "channels", why, {"lanes": LANES, "tile_bytes": TILE_BYTES})


def lanes_of(array: Array, most: int) -> int:
    """Channels per block: even parts of at most `most` where they are adjacent."""
    C = array.shape[1]
    if not adjacent(array) or most < SPREAD_LANES:
        return min(C, SPREAD_LANES, most)
    even = -(-C // -(-C // most))
    return min(C, -(-even // SPREAD_LANES) * SPREAD_LANES)


def channel_forward(op: str, problem: PoolProblem) -> Run:
    windows = Windows(problem)
    unit, tables, steps, sizes = windows.unit, windows.tables, windows.steps, windows.sizes
    divisors = divisors_of(problem, unit) if op == "avgpool_fprop" else None
    near = is_near(windows)
    row_cells = windows.outs[1] * windows.outs[2] * problem.taps

    def run(y: Array, *operands: Array) -> None:
        x = operands[-1]
        if x.size == 0:
            return
        lanes = lanes_of(x, LANES)
        rows = max(1, TASK_CELLS // (row_cells * lanes))
        N, C = x.shape[:2]
        tasks = N * -(-C // lanes) * -(-windows.outs[0] // rows)
        X, S = storage(x.dtype), computed(x.dtype)
        work_bytes = 3 * (8 * lanes + 128)
        held = scratch(work_bytes * threads())  # until the kernel returns
        work = held.address
        module, xs, ys = kernels("pool_channels"), operand(x, unit), operand(y, unit)
        if op == "maxpool_fprop":
            module.max_fprop(tasks, X, S, xs, ys, C, lanes, rows, tables, steps, work, work_bytes)
        elif op in ("maxpool_indices", "maxpool_places"):
            places, vectors = operands[0], near and adjacent(x) and X is S
            I, frame = storage(places.dtype), windows.frame if places.dtype == np.uint8 else sizes
            module.max_places(
                tasks, X, S, I, xs, ys, operand(places, unit), C, lanes, rows, tables, steps, frame, vectors, work,
                work_bytes,
            )  # fmt: skip
        elif op == "avgpool_fprop":
            module.avg_fprop(tasks, X, S, xs, ys, C, lanes, rows, tables, steps, divisors, work, work_bytes)
        else:
            module.lp_fprop(tasks, X, S, xs, ys, C, lanes, rows, tables, steps, problem.p, work, work_bytes)

    return run


def is_near(windows: Windows) -> bool:
    """Whether every offset inside a window is a whole number of every type: then vectors of that type hold it."""
    extents = [int(table[:, 1].max()) * step for table, step in zip(windows.tables, windows.steps, strict=True)]
    return (extents[0] * windows.sizes[1] + extents[1]) * windows.sizes[2] + extents[2] < 2**24


def tiles_of(windows: Windows, dx: Array) -> tuple[int, Ints]:
    """(channels of a block, rows of a gradient's tile along the first two axes).

    A tile visits the windows around it too: fewer channels and more rows where windows overlap.
    """
    sizes, item = windows.sizes, max(dx.itemsize, 4)
    extents = [int(table[:, 1].max()) * step for table, step in zip(windows.tables, windows.steps, strict=True)]
    most = TILE_LANES
    while True:
        lanes = lanes_of(dx, most)
        row = sizes[2] * lanes * item
        tile_b = min(sizes[1], max(1, TILE_BYTES // row))
        tile_a = min(sizes[0], max(1, TILE_BYTES // (row * tile_b)))
        if (
            most == 1
            or (most <= SPREAD_LANES and 2 * row <= MOST_WORK)
            or (tile_a >= min(sizes[0], 4 * extents[0]) and tile_b >= min(sizes[1], extents[1]))
        ):
            return lanes, (tile_a, tile_b)
        most //= 2


def channel_gradient(op: str, problem: PoolProblem) -> Run:
    windows = Windows(problem)
    unit, tables, steps, sizes = windows.unit, windows.tables, windows.steps, windows.sizes
    divisors = divisors_of(problem, unit) if op == "avgpool_dgrad" else None

    def run(dx: Array, dy: Array, saved: Any = None) -> None:
        if dx.size == 0:
            return
        N, C = dx.shape[:2]
        G, S = storage(dy.dtype), computed(dy.dtype)
        lanes, tiles = tiles_of(windows, dx)
        tasks = N * -(-C // lanes) * -(-sizes[0] // tiles[0]) * -(-sizes[1] // tiles[1])
        work_bytes = 4 * (8 * lanes + 128) + 8 * lanes * tiles[0] * tiles[1] * sizes[2]
        held = scratch(work_bytes * threads())  # until the kernel returns
        work = held.address
        module, dxs, dys = kernels("pool_channels_dgrad"), operand(dx, unit), operand(dy, unit)
        if op == "avgpool_dgrad":
            module.avg_dgrad(tasks, G, S, dys, dxs, C, lanes, tiles, tables, steps, sizes, divisors, work, work_bytes)
            return
        X, given = storage(saved.dtype), operand(saved, unit)
        if op == "lppool_dgrad":
            module.lp_dgrad(
                tasks, X, G, S, given, dys, dxs, C, lanes, tiles, tables, steps, sizes, problem.p, work, work_bytes
            )
            return
        frame = windows.frame
        module.max_dgrad(
            tasks, G, S, labels(S), dys, given, dxs, C, lanes, tiles, tables, steps, frame, sizes, work, work_bytes
        )

    return run

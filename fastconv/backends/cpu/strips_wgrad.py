"""The gradient to the weights from strips on the CPU: how kernels/numba_cpu/strips_wgrad.py is called."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu.calls import Call, address, by_form
from fastconv.backends.cpu.passes import Pass, compute_dtype, forward_axes, storage, strides_of, weight_strides
from fastconv.backends.cpu.workspace import scratch, threads
from fastconv.problem import ConvProblem, Ints

STRIP_BYTES = 192 * 2**10  # of x and dy at a time: they are read for every tap, from L2
TASKS = 32  # at least, where there are strips enough; not by the threads, so that sums do not depend on them


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import strips_wgrad

    return host_kernels(strips_wgrad, "wgrad")


def tile_of(M: int, groups: int, lanes: int) -> Any:
    """The register tile for M filters of a group; half a vector of filters is faster than x spread for two groups."""
    from fastconv.kernels.numba_cpu.strips_vectors import WGRAD_TILES, WGRAD_WIDE

    if lanes < M:
        return WGRAD_WIDE
    share = max(2, 1 << (M - 1).bit_length())
    return WGRAD_TILES[share if groups > 1 and 2 * share < lanes else 0]


class Cut(NamedTuple):
    """How the work is cut, and the bytes that it needs."""

    tile: Any
    strip: Any
    parts: int
    tasks: int
    sums_bytes: int
    work_bytes: int


@lru_cache(maxsize=1024)
def cut(problem: ConvProblem, x: Ints, y: Ints) -> Cut:
    """The strips of operands with these strides."""
    from fastconv.kernels.numba_cpu import simd
    from fastconv.kernels.numba_cpu.strips_wgrad import Strip

    _, one, two = forward_axes(problem)
    G, C, M = problem.groups, problem.C // problem.groups, problem.K // problem.groups
    itemsize = compute_dtype(problem).itemsize
    lanes = simd.VECTOR_BYTES // itemsize
    tile = tile_of(M, G, lanes)
    bunch = lanes // tile.share if tile.share else 1
    channels, unit = (-(-C // tile.share) * tile.share, simd.VECTOR_BYTES) if tile.share else (C, itemsize)
    (R, d1, first1), (S, d2, first2) = map(_taps, (one, two))
    row = tile.nv * simd.VECTOR_BYTES
    pitch = (two.outputs - 1) * two.step + (S - 1) * d2 + 1
    tiles = -(-G // bunch) * -(-M // (tile.nv * lanes))

    def height(rows: int) -> int:
        return (rows - 1) * one.step + (R - 1) * d1 + 1

    def nbytes(rows: int) -> int:
        return height(rows) * pitch * channels * unit + rows * two.outputs * row

    most = max(1, one.outputs * problem.N * tiles // TASKS)
    rows = max((r for r in range(1, min(one.outputs, most) + 1) if nbytes(r) <= STRIP_BYTES), default=1)
    parts = min(-(-TASKS // tiles), problem.N * -(-one.outputs // rows))
    strip = Strip(
        problem.N, G, M, C, R, S, rows, height(rows), pitch, channels, bunch, one.outputs, two.outputs,
        one.source, two.source, first1, first2, one.step, two.step, d1, d2, *x[:2], *x[3:], *y[:2], *y[3:],
    )  # fmt: skip
    sums = (R * S * channels + tile.rows) * row
    work = nbytes(rows) + (pitch * simd.VECTOR_BYTES if tile.share else 0) + tile.rows * unit
    return Cut(tile, strip, parts, tiles * parts, -(-sums // 64) * 64, -(-work // 64) * 64)


def _taps(axis: Any) -> Ints:
    """How many taps an axis has, how far apart, and the offset of the first."""
    offsets = [offset for _, offset in axis.taps]
    return len(offsets), offsets[1] - offsets[0] if len(offsets) > 1 else 1, offsets[0]


def plan(problem: ConvProblem, why: str) -> Launch:
    one = Pass.of(forward_axes(problem))
    dtype = compute_dtype(problem)
    M = problem.K // problem.groups

    def bind(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> Call:
        tile, strip, parts, tasks, sums_bytes, work_bytes = cut(problem, strides_of(x), strides_of(dy))
        wg, wm, wc, offsets, _ = weight_strides(one, True, M, strides_of(dw))
        types = storage(x.dtype), storage(dy.dtype), storage(dtype), storage(dw.dtype)
        kernel, count = kernels().wgrad, threads()

        def call(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
            work = scratch(count * work_bytes + tasks * sums_bytes)
            kernel(
                tile, *types, strip, address(x), address(dy), address(dw), wg, wm, wc, offsets, parts,
                work.address + count * work_bytes, sums_bytes, work.address, work_bytes,
            )  # fmt: skip

        return call

    plainly = by_form(bind)

    def run(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
        if problem.N == 0:
            dw[...] = 0
        elif dw.size:
            plainly(dw, dy, x)

    return Launch(run, "strips", why, {}, STRIP_BYTES)

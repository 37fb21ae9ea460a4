"""Winograd's gradient to the weights of dense float32 problems with stride 1.

    dw[k, c, r, s] = sum over n, o of dy[n, k, o] * x[n, c, o - pad + dilation * (r, s)]

is, per tile of m x m outputs, a filtering of the tile's pixels of x by its m x m pixels of dy: F(r x r, m x m)
on the same n = m + r - 1 points as the forward pass, and so with the same transform of x (winograd.py),

    D[q, k, c] = sum over tiles of Y[q, tile, k] * V[q, tile, c],    dw = A^T D A.

Lanes hold the channels that are adjacent in dw, if any are: c or k. The other ones are the rows. A task owns
some vectors of each and a share of the tiles, and adds block after block of tiles in order to its D, which
stays in the cache. Shares depend on the problem alone and are added in order: results do not depend on
the number of threads.

What D rounds off grows with the products of all pixels of a tile, also of those that meet in no tap: about
with Q = (sum over tiles of |Y tile|^2 |V tile|^2)^(1/2), which is one more plane of D. So a filter is kept where
one of its results is LEAST * Q at least, or where the sum of the sizes of a tap's products is. Otherwise
(data with few products, or none, and results that are not finite) it is computed again by the sums.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import load, store
from fastconv.kernels.numba_cpu.pool_vectors import keep, plus, whole
from fastconv.kernels.numba_cpu.product import multiply
from fastconv.kernels.numba_cpu.simd import NV, ROWS, VECTOR_BYTES
from fastconv.kernels.numba_cpu.winograd import LEAST, S, transform_tiles
from fastconv.kernels.numba_cpu.winograd_transforms import LANES, transform_gradient, turn_out

ROW_PART, LANE_PART = 4, 6  # vectors of channels of a task, at most
TILES = 32  # of a block


class Weights(NamedTuple):
    """dw in elements: strides of the rows, the lanes and the taps, and whether the rows are dy's channels."""

    row: int
    lane: int
    w0: int
    w1: int
    rows_are_dy: bool


class Room(NamedTuple):
    """Byte offsets in a thread's workspace; `v_row`, `v_plane` and `pitch` serve both sides' tiles."""

    rows: int
    lanes: int
    sums: int
    packed: int
    planes: int
    total: int
    v_row: int
    v_plane: int
    pitch: int


@njit(nogil=True)
def accumulate(FR, FL, gr, gl, room, rows, lanes, r0, r1, l0, l1, b0, b1, blocks, scratch, sums):
    """D of the vectors [r0, r1) of rows and [l0, l1) of lanes over the blocks [b0, b1) of tiles."""
    cells = gr.N * gr.TH * gr.TW
    width = l1 - l0
    plane = (((r1 - r0) * LANES + ROWS) * width + 1) * VECTOR_BYTES
    count = min(r1 * LANES, gr.C) - r0 * LANES
    a, b = scratch + room.rows, scratch + room.lanes
    for block in range(b0, b1):
        first, last = cells * block // blocks, cells * (block + 1) // blocks
        packed = scratch + room.packed
        start = r0 * LANES
        transform_tiles(FR, gr, room, rows, first, last, start, start + count, a - start * 4, packed)
        start = l0 * LANES
        transform_tiles(FL, gl, room, lanes, first, last, start, min(l1 * LANES, gl.C), b - start * 4, packed)
        tiles = (last - first) * gr.dilation1
        for q in range(FR.planes):
            for i in range(0, count, ROWS):
                left, panels = 0, (width + NV - 1) // NV
                for p in range(panels):
                    right = width * (p + 1) // panels
                    source, target = a + q * room.v_plane + i * 4, sums + q * plane + (i * width + left) * VECTOR_BYTES
                    multiply(
                        S, right - left, block == b0, False, 0, tiles, source, room.v_row, 4, source, 4,
                        b + q * room.v_plane + left * VECTOR_BYTES, room.v_row, 0,
                        target, width * VECTOR_BYTES, 0, target, width * VECTOR_BYTES,
                    )  # fmt: skip
                    left = right


@njit(nogil=True)
def direct(gx, gy, x, y, k, c, i, j):
    """One weight's gradient by its sum."""
    total = np.float32(0)
    for n in range(gx.N):
        for p in range(gy.H):
            row = p - gx.pad0 + i * gx.dilation0
            for q in range(gy.W):
                total += product(gx, gy, x, y, n, k, c, p, q, row, q - gx.pad1 + j * gx.dilation1)
        if total != total:
            break  # it stays NaN
    return total


@njit(nogil=True)
def product(gx, gy, x, y, n, k, c, p, q, row, col):
    """dy at (p, q) times x at (row, col): 0 beyond the image, which an infinite dy makes NaN."""
    inside = 0 <= row < gx.H and 0 <= col < gx.W
    value = load(S, x, n * gx.xn + c * gx.xc + row * gx.x0 + col * gx.x1) if inside else np.float32(0)
    return value * load(S, y, n * gy.xn + k * gy.xc + p * gy.x0 + q * gy.x1)


@njit(nogil=True)
def has_size(gx, gy, x, y, k, c, r, needed):
    """Whether the sizes of the products of the middle tap sum up to `needed`."""
    i, j = r // 2 * gx.dilation0 - gx.pad0, r // 2 * gx.dilation1 - gx.pad1
    total = np.float32(0)
    for n in range(gx.N):
        for p in range(gy.H):
            for q in range(gy.W):
                total += abs(product(gx, gy, x, y, n, k, c, p, q, p + i, q + j))
            if total >= needed:
                return True
    return False


@njit(nogil=True)
def again(gx, gy, x, y, k, c, r, needed, taps, lane):
    """The taps of one filter by their sums, unless they are finite and have the size that is needed."""
    check = np.float32(0)
    for t in range(r * r):
        check += load(S, taps + t * VECTOR_BYTES, lane) * np.float32(0)
    if check == check and has_size(gx, gy, x, y, k, c, r, needed):
        return
    for t in range(r * r):
        store(S, taps + t * VECTOR_BYTES, lane, direct(gx, gy, x, y, k, c, t // r, t % r))


@njit(nogil=True)
def finish(D, gr, gl, room, rows, lanes, sums, part_bytes, splits, r0, r1, l0, l1, w, g, scratch):
    """dw of the vectors [r0, r1) of rows and [l0, l1) of lanes, from the sums of every share of the tiles."""
    width = l1 - l0
    plane = (((r1 - r0) * LANES + ROWS) * width + 1) * VECTOR_BYTES
    planes = scratch + room.planes
    r = D.r
    taps = planes + D.planes * VECTOR_BYTES
    gx, x, gy, y = (gl, lanes, gr, rows) if g.rows_are_dy else (gr, rows, gl, lanes)
    for i in range(r0 * LANES, min(r1 * LANES, gr.C)):
        for v in range(l0, l1):
            source = sums + ((i - r0 * LANES) * width + v - l0) * VECTOR_BYTES
            for q in range(D.planes):
                total = whole(S, source + q * plane)
                for split in range(1, splits):
                    total = plus(total, whole(S, source + q * plane + split * part_bytes))
                keep(total, planes + q * VECTOR_BYTES)
            bad = transform_gradient(D, planes, VECTOR_BYTES, np.float32(LEAST**2), taps)
            count = min(LANES, gl.C - v * LANES)
            for lane in range(count):
                if bad >> lane & 1:
                    needed = LEAST * math.sqrt(load(S, planes + (D.planes - 1) * VECTOR_BYTES, lane))
                    k, c = (i, v * LANES + lane) if g.rows_are_dy else (v * LANES + lane, i)
                    again(gx, gy, x, y, k, c, r, needed, taps, lane)
            target = w + (i * g.row + v * LANES * g.lane) * 4
            if g.w1 == 1 and g.w0 == r:
                for t in range(0, r * r, LANES):
                    turn_out(taps + t * VECTOR_BYTES, target + t * 4, g.lane * 4, count, r * r - t)
            else:
                for t in range(r * r):
                    at = target + (t // r * g.w0 + t % r * g.w1) * 4
                    for lane in range(count):
                        store(S, at, lane * g.lane, load(S, taps + t * VECTOR_BYTES, lane))


@njit(nogil=True)
def cut(g, part, parts):
    """The vectors of channels [first, last) of a part."""
    vectors = (g.C + LANES - 1) // LANES
    return vectors * part // parts, vectors * (part + 1) // parts


@njit(parallel=True, nogil=True)
def wgrad(D, FR, FL, gr, gl, room, rows, lanes, w, g, row_parts, lane_parts, splits, blocks, sums, part_bytes, work):
    """dw at `w`; D is the form of dy's tiles, and so is FR or FL. `sums` holds the sums of several shares of tiles."""
    parts = row_parts * lane_parts
    for index in prange(parts * splits):
        task, split = divmod(np.int64(index), splits)
        rp, lp = divmod(task, lane_parts)
        (r0, r1), (l0, l1) = cut(gr, rp, row_parts), cut(gl, lp, lane_parts)
        b0, b1 = blocks * split // splits, blocks * (split + 1) // splits
        scratch = work + get_thread_id() * room.total
        d = scratch + room.sums if splits == 1 else sums + (task * splits + split) * part_bytes
        accumulate(FR, FL, gr, gl, room, rows, lanes, r0, r1, l0, l1, b0, b1, blocks, scratch, d)
        if splits == 1:
            finish(D, gr, gl, room, rows, lanes, d, 0, 1, r0, r1, l0, l1, w, g, scratch)
    if splits > 1:
        for index in prange(parts):
            task = np.int64(index)
            rp, lp = divmod(task, lane_parts)
            (r0, r1), (l0, l1) = cut(gr, rp, row_parts), cut(gl, lp, lane_parts)
            d = sums + task * splits * part_bytes
            scratch = work + get_thread_id() * room.total
            finish(D, gr, gl, room, rows, lanes, d, part_bytes, splits, r0, r1, l0, l1, w, g, scratch)

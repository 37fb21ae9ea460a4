"""Fused Winograd convolution, F(m x m, r x r): fprop and dgrad of dense float32 problems with stride 1.

    y[n, k, o] = act(bias[k] + sum over c, r, s of w[k, c, r, s] * x[n, c, o - pad + dilation * (r, s)])

For each tile of m x m outputs and each of q = (m + r - 1)^2 planes, with the transforms of
winograd_transforms.py,

    M[q, tile, k] = sum over c of V[q, tile, c] * U[q, c, k]

is a product of matrices that takes (m r / (m + r - 1))^2 times fewer multiplications than the sums above: 4
for F(4,3). dgrad is the same with dy as the source and the filters turned round, which the strides of w do.
A dilated convolution is one of each phase of the pixels; the phases of a row lie beside each other in its tiles.

Lanes hold channels throughout: rows of pixels are turned into vectors of channels as they are packed, and back
as they are stored, and where channels are adjacent neither is needed. Everything between lies in scratch:

    V   of a block of tiles, [q][tile][C]; U of a panel of up to NV vectors of k, [q][c][k]; M of both

`by_tiles` deals out blocks of tiles and keeps the whole of U, transformed first; `by_filters` deals out panels
and keeps the whole of V, for few tiles and many filters, so that U never leaves the cache.

What this rounds off grows with the products of all pixels of a tile and all taps, also of those that meet in no
output: about with Q = (sum over c of |x tile|^2 |w|^2)^(1/2), which is one more plane of M. So a tile is kept where
one of its outputs is LEAST * Q at least, or where the sizes of an output's products add up to that. Otherwise (data
with few products, or none, and outputs that are not finite) it is computed again by the sums. So the error is
bounded, and what a NaN or an infinity touches are the outputs whose windows hold it, and no others.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.memory import STORAGE, load, store
from fastconv.kernels.numba_cpu.pool_vectors import give, keep, part
from fastconv.kernels.numba_cpu.simd import NV, ROWS, VECTOR_BYTES, get, outer, prefetch, put, zeros
from fastconv.kernels.numba_cpu.winograd_transforms import (
    LANES,
    transform_filter,
    transform_input,
    transform_output,
    turn_in,
    turn_out,
)

S = STORAGE["float32"]
LEAST = 0.12  # of Q: leaves an output with an error of 20 roundoffs of Q within 1e-5 of the size of its sum
COLUMNS = 48  # of pixels packed at a time: six rows of a vector of channels stay in the first cache
AHEAD = 8  # channels of U that are fetched before they are needed
CHUNK = 64  # channels of the filters that are transformed at a time
ANY, LANES_ADJACENT, TAPS_ADJACENT, TAPS_REVERSED = range(4)  # how the filters lie


class Geometry(NamedTuple):
    """Extents and element strides; M filters of C channels, tiles in TH rows of `cells` of dilation1 tiles."""

    N: int
    C: int
    M: int
    H: int
    W: int
    P: int
    Q: int
    pad0: int
    pad1: int
    dilation0: int
    dilation1: int
    TH: int
    TW: int
    xn: int
    xc: int
    x0: int
    x1: int
    yn: int
    ym: int
    y0: int
    y1: int
    wm: int
    wc: int
    w0: int
    w1: int
    w_form: int
    padded: bool  # whether there are zeros beyond the image, as in fprop, or nothing


class Room(NamedTuple):
    """Byte offsets in a thread's workspace, and the pitches of V and of the packed rows."""

    v: int
    u: int
    sums: int
    packed: int
    stage: int
    total: int
    v_row: int
    v_plane: int
    pitch: int


# ---------------------------------------------------------------- the tiles of a block


@njit(nogil=True)
def locate(F, g, cell):
    """Of a cell, dilation1 tiles side by side: its image, the first output row of its tiles, and its place along it."""
    rest, tx = divmod(cell, g.TW)
    image, v = divmod(rest, g.TH)
    return image, v // g.dilation0 * F.m * g.dilation0 + v % g.dilation0, tx


@njit(nogil=True)
def piece(F, g, cell, last):
    """How many cells from `cell` on, and before `last`, lie side by side and are packed together."""
    fitting = max(1, (COLUMNS // g.dilation1 - F.n) // F.m + 1)
    return min(fitting, last - cell, g.TW - cell % g.TW)


@njit(nogil=True)
def pack(g, x, row0, col0, rows, columns, lanes, target, pitch):
    """`rows` x `columns` pixels of `lanes` channels from (row0, col0) on as vectors, 0 beyond the image."""
    for i in range(rows):
        row = row0 + i * g.dilation0
        width = g.W if 0 <= row < g.H else 0
        source = x + (row * g.x0 + col0 * g.x1) * 4
        if g.x1 == 1:
            for j in range(0, columns, LANES):
                low, high = -col0 - j, width - col0 - j
                turn_in(source + j * 4, g.xc * 4, lanes, low, high, target + j * VECTOR_BYTES, VECTOR_BYTES)
        else:
            for j in range(columns):
                at = source + j * g.x1 * 4
                inside = lanes if 0 <= col0 + j < width else 0
                if g.xc == 1:
                    keep(part(S, at, inside), target + j * VECTOR_BYTES)
                else:
                    for lane in range(LANES):
                        value = load(S, at, lane * g.xc) if lane < inside else np.float32(0)
                        store(S, target + j * VECTOR_BYTES, lane, value)
        target += pitch


@njit(nogil=True)
def transform_tiles(F, g, room, x, first, last, c0, c1, v, packed):
    """V of the channels [c0, c1) of the cells [first, last), at `v`."""
    d = g.dilation1
    cell = first
    while cell < last:
        count = piece(F, g, cell, last)
        image, row, tx = locate(F, g, cell)
        row0, col0 = row - g.pad0, tx * F.m * d - g.pad1
        columns = ((count - 1) * F.m + F.n) * d
        whole = row0 >= 0 and col0 >= 0 and row0 + (F.n - 1) * g.dilation0 < g.H and col0 + columns <= g.W
        for c in range(c0, c1, LANES):
            lanes = min(LANES, g.C - c)
            source = x + (image * g.xn + c * g.xc) * 4
            if whole and g.xc == 1 and lanes == LANES:
                source += (row0 * g.x0 + col0 * g.x1) * 4
                down, right = g.dilation0 * g.x0 * 4, g.x1 * 4
            else:
                pack(g, source, row0, col0, F.n, columns, lanes, packed, room.pitch)
                source, down, right = packed, room.pitch, VECTOR_BYTES
            for j in range(count):
                for phase in range(d):
                    at = source + (j * F.m * d + phase) * right
                    target = v + ((cell - first + j) * d + phase) * room.v_row + c * 4
                    transform_input(F, at, down, right * d, target, room.v_plane)
        cell += count


@njit(nogil=True)
def complete(F, room, tiles, c0, c1, v):
    """Zeros for the tiles that complete ROWS: no result needs them, but denormals there would slow the products."""
    nothing = part(S, v, 0)
    for q in range(F.planes):
        for tile in range(tiles, (tiles + ROWS - 1) // ROWS * ROWS):
            for c in range(c0, c1, LANES):
                keep(nothing, v + q * room.v_plane + tile * room.v_row + c * 4)


# ---------------------------------------------------------------- the filters


@njit(nogil=True)
def pack_filters(F, g, w, k, c0, c1, target):
    """Filters of LANES output channels from k on: the taps of channels [c0, c1) as vectors, in memory's order."""
    T = F.r * F.r
    lanes = min(LANES, g.M - k)
    source = w + (k * g.wm + c0 * g.wc) * 4
    if g.w_form == TAPS_REVERSED:
        source -= (T - 1) * 4
    if g.w_form >= TAPS_ADJACENT and g.wc == T:
        total = (c1 - c0) * T
        for j in range(0, total, LANES):
            turn_in(source + j * 4, g.wm * 4, lanes, 0, total - j, target + j * VECTOR_BYTES, VECTOR_BYTES)
        return
    for _ in range(c0, c1):
        if g.w_form >= TAPS_ADJACENT:
            for j in range(0, T, LANES):
                turn_in(source + j * 4, g.wm * 4, lanes, 0, T - j, target + j * VECTOR_BYTES, VECTOR_BYTES)
        else:
            for t in range(T):
                at = source + (t // F.r * g.w0 + t % F.r * g.w1) * 4
                if g.w_form == LANES_ADJACENT:
                    keep(part(S, at, lanes), target + t * VECTOR_BYTES)
                else:
                    for lane in range(LANES):
                        value = load(S, at, lane * g.wm) if lane < lanes else np.float32(0)
                        store(S, target + t * VECTOR_BYTES, lane, value)
        source += g.wc * 4
        target += T * VECTOR_BYTES


@njit(nogil=True)
def transform_filters(F, g, w, v0, nv, c0, c1, u, plane, packed):
    """U of `nv` vectors of output channels from the vector v0 on, and of the channels [c0, c1), at `u`."""
    T = F.r * F.r
    first, step = (T - 1, -VECTOR_BYTES) if g.w_form == TAPS_REVERSED else (0, VECTOR_BYTES)
    for b0 in range(c0, c1, LANES):
        b1 = min(c1, b0 + LANES)
        for j in range(nv):
            pack_filters(F, g, w, (v0 + j) * LANES, b0, b1, packed)
            for c in range(b1 - b0):
                source = packed + (c * T + first) * VECTOR_BYTES
                target = u + ((b0 - c0 + c) * nv + j) * VECTOR_BYTES
                transform_filter(F, source, F.r * step, step, target, plane)


# ---------------------------------------------------------------- the results


@njit(nogil=True)
def direct(F, g, x, w, image, k, row, col, sizes, needed):
    """One output by its sum; or the sum of the sizes of its products, up to `needed`."""
    total = np.float32(0)
    for c in range(g.C):
        for i in range(F.r):
            at0 = row - g.pad0 + i * g.dilation0
            for j in range(F.r):
                at1 = col - g.pad1 + j * g.dilation1
                inside = 0 <= at0 < g.H and 0 <= at1 < g.W
                if inside or g.padded:
                    at = image * g.xn + c * g.xc + at0 * g.x0 + at1 * g.x1
                    value = load(S, x, at) if inside else np.float32(0)  # which an infinite weight makes NaN
                    product = value * load(S, w, k * g.wm + c * g.wc + i * g.w0 + j * g.w1)
                    total += abs(product) if sizes else product
        if total != total or (sizes and total >= needed):
            break  # it stays NaN, or it is enough
    return total


@njit(nogil=True)
def has_size(F, g, x, w, image, k, row, col, needed):
    """Whether the sizes of the products of one of a tile's outputs add up to `needed`."""
    for i in range(F.m):
        for j in range(F.m):
            at0, at1 = row + i * g.dilation0, col + j * g.dilation1
            if at0 < g.P and at1 < g.Q and direct(F, g, x, w, image, k, at0, at1, True, needed) >= needed:
                return True
    return False


@njit(nogil=True)
def again(F, g, x, w, bias, floor, image, k, row, col, lanes, sums, plane, target, pitch):
    """A tile's outputs by their sums to `target`, in the lanes whose bits are set and whose outputs have no size."""
    sizes = sums + (F.planes - 1) * plane
    for lane in range(min(LANES, g.M - k)):
        if lanes >> lane & 1:
            needed = np.float32(LEAST * math.sqrt(load(S, sizes, lane)))
            if are_finite(F, sums, plane, lane) and has_size(F, g, x, w, image, k + lane, row, col, needed):
                continue
            for i in range(F.m):
                for j in range(F.m):
                    at0, at1 = row + i * g.dilation0, col + j * g.dilation1
                    if at0 < g.P and at1 < g.Q:
                        value = direct(F, g, x, w, image, k + lane, at0, at1, False, needed) + load(S, bias, k + lane)
                        value = floor if value <= floor else value
                        store(S, target + i * pitch + j * g.dilation1 * VECTOR_BYTES, lane, value)


@njit(nogil=True)
def are_finite(F, sums, plane, lane):
    """Whether a tile's sums are, in one lane."""
    check = np.float32(0)
    for q in range(F.planes):
        check += load(S, sums + q * plane, lane) * np.float32(0)
    return check == check


@njit(nogil=True)
def deliver(g, y, stage, pitch, rows, row, columns, lanes, code):
    """Store staged vectors of `lanes` channels, `rows` x `columns` pixels from output row `row` on, at y."""
    for i in range(rows):
        if row + i * g.dilation0 >= g.P:
            return
        source, target = stage + i * pitch, y + i * g.dilation0 * g.y0 * 4
        if code > 1:
            for j in range(columns * LANES):
                store(S, source, j, activate(code, load(S, source, j)))
        if g.y1 == 1:
            for j in range(0, columns, LANES):
                turn_out(source + j * VECTOR_BYTES, target + j * 4, g.ym * 4, lanes, columns - j)
        else:
            for j in range(columns):
                at = target + j * g.y1 * 4
                if g.ym == 1:
                    give(part(S, source + j * VECTOR_BYTES, LANES), at, lanes)
                else:
                    for lane in range(lanes):
                        store(S, at, lane * g.ym, load(S, source + j * VECTOR_BYTES, lane))


@njit(nogil=True)
def finish(F, g, room, first, last, v0, nv, sums, plane, stage, bias, code, x, w, y):
    """The outputs of the cells [first, last) from their planes of sums, of `nv` vectors of channels from v0 on."""
    d = g.dilation1
    floor, least = np.float32(0 if code == 1 else -np.inf), np.float32(LEAST**2)
    cell = first
    while cell < last:
        count = piece(F, g, cell, last)
        image, row, tx = locate(F, g, cell)
        for v in range(nv):
            k = (v0 + v) * LANES
            for j in range(count):
                for phase in range(d):
                    tile = (cell - first + j) * d + phase
                    column = (tx + j) * F.m * d + phase
                    target = stage + (j * F.m * d + phase) * VECTOR_BYTES
                    source = sums + (tile * nv + v) * VECTOR_BYTES
                    rows = (g.P - row + g.dilation0 - 1) // g.dilation0
                    columns = (g.Q - column + d - 1) // d
                    doubtful = transform_output(
                        F, source, plane, least, rows, columns, bias + k * 4, floor, target, room.pitch,
                        d * VECTOR_BYTES,
                    )  # fmt: skip
                    if doubtful:
                        again(
                            F, g, x, w, bias, floor, image, k, row, column, doubtful, source, plane, target, room.pitch
                        )
            start = tx * F.m * d
            columns = min(count * F.m * d, g.Q - start)
            target = y + (image * g.yn + k * g.ym + row * g.y0 + start * g.y1) * 4
            deliver(g, target, stage, room.pitch, F.m, row, columns, min(LANES, g.M - k), code)
        cell += count


@njit(nogil=True)
def fetch(v, v_row):
    """Ask for a line of each of ROWS tiles."""
    for i in range(ROWS):
        prefetch(v + i * v_row)


@njit(nogil=True)
def fetch_row(u, nv):
    for j in range(nv):
        prefetch(u + j * VECTOR_BYTES)


@njit(nogil=True)
def multiply(nv, fresh, C, v, v_row, v_next, u, sums):
    """ROWS tiles by `nv` vectors: sums (+)= v u over C channels, while the tiles at `v_next` are fetched."""
    u_row = nv * VECTOR_BYTES
    if nv == 1:
        tile1 = zeros(S, ROWS, 1) if fresh else get(S, ROWS, 1, sums, u_row)
        for c0 in range(0, C, LANES):
            fetch(v_next + c0 * 4, v_row)
            for c in range(c0, min(C, c0 + LANES)):
                prefetch(u + (c + AHEAD) * u_row)
                tile1 = outer(tile1, ROWS, 1, v + c * 4, v_row, u + c * u_row)
        put(tile1, ROWS, 1, sums, u_row)
    elif nv == 2 or NV == 2:
        tile2 = zeros(S, ROWS, 2) if fresh else get(S, ROWS, 2, sums, u_row)
        for c0 in range(0, C, LANES):
            fetch(v_next + c0 * 4, v_row)
            for c in range(c0, min(C, c0 + LANES)):
                fetch_row(u + (c + AHEAD) * u_row, 2)
                tile2 = outer(tile2, ROWS, 2, v + c * 4, v_row, u + c * u_row)
        put(tile2, ROWS, 2, sums, u_row)
    else:
        tile3 = zeros(S, ROWS, 3) if fresh else get(S, ROWS, 3, sums, u_row)
        for c0 in range(0, C, LANES):
            fetch(v_next + c0 * 4, v_row)
            for c in range(c0, min(C, c0 + LANES)):
                fetch_row(u + (c + AHEAD) * u_row, 3)
                tile3 = outer(tile3, ROWS, 3, v + c * 4, v_row, u + c * u_row)
        put(tile3, ROWS, 3, sums, u_row)


@njit(nogil=True)
def products(F, room, tiles, nv, c, count, fresh, v, u, u_plane, sums, sum_plane):
    """M (+)= V U over the `count` channels from c on, plane by plane."""
    for q in range(F.planes):
        plane = v + q * room.v_plane + c * 4
        for t in range(0, tiles, ROWS):
            v_next = plane + ((t + ROWS) * room.v_row if t + ROWS < tiles else room.v_plane)
            multiply(
                nv, fresh, count, plane + t * room.v_row, room.v_row, v_next, u + q * u_plane,
                sums + q * sum_plane + t * nv * VECTOR_BYTES,
            )  # fmt: skip


@njit(nogil=True)
def panel_start(g, p, panels):
    """The first vector of output channels of a panel."""
    return (g.M + LANES - 1) // LANES * p // panels


@njit(nogil=True)
def panel_address(F, g, u, p, panels):
    """Where a panel lies in the whole of U: planes of C rows, each plane a vector longer against conflicts."""
    return u + F.planes * (panel_start(g, p, panels) * g.C + p) * VECTOR_BYTES


@njit(parallel=True, nogil=True)
def filters(F, g, w, u, panels, packed, packed_bytes):
    """The whole of U; tasks are panels by chunks of channels."""
    chunks = (g.C + CHUNK - 1) // CHUNK
    for index in prange(panels * chunks):
        p, chunk = divmod(np.int64(index), chunks)
        v0 = panel_start(g, p, panels)
        nv = panel_start(g, p + 1, panels) - v0
        plane = (g.C * nv + 1) * VECTOR_BYTES
        target = panel_address(F, g, u, p, panels) + chunk * CHUNK * nv * VECTOR_BYTES
        scratch = packed + get_thread_id() * packed_bytes
        transform_filters(F, g, w, v0, nv, chunk * CHUNK, min(g.C, chunk * CHUNK + CHUNK), target, plane, scratch)


@njit(parallel=True, nogil=True)
def by_tiles(F, g, room, x, u, w, bias, code, y, blocks, panels, work):
    """Tasks are blocks of cells; each transforms its tiles and multiplies them with every panel."""
    cells = g.N * g.TH * g.TW
    for index in prange(blocks):
        b = np.int64(index)
        first, last = cells * b // blocks, cells * (b + 1) // blocks
        scratch = work + get_thread_id() * room.total
        v, sums = scratch + room.v, scratch + room.sums
        transform_tiles(F, g, room, x, first, last, 0, g.C, v, scratch + room.packed)
        tiles = (last - first) * g.dilation1
        complete(F, room, tiles, 0, g.C, v)
        for p in range(panels):
            v0 = panel_start(g, p, panels)
            nv = panel_start(g, p + 1, panels) - v0
            plane = ((tiles + ROWS) * nv + 1) * VECTOR_BYTES
            source = panel_address(F, g, u, p, panels)
            products(F, room, tiles, nv, 0, g.C, True, v, source, (g.C * nv + 1) * VECTOR_BYTES, sums, plane)
            finish(F, g, room, first, last, v0, nv, sums, plane, scratch + room.stage, bias, code, x, w, y)


@njit(parallel=True, nogil=True)
def by_filters(F, g, room, x, u, w, bias, code, y, v, blocks, block_bytes, panels, chunk, work):
    """Tasks are panels of filters, once all tiles are transformed, at `v`; U is made a `chunk` of channels at a time.

    With u = 0; else U is there. With several blocks, `chunk` is C.
    """
    cells = g.N * g.TH * g.TW
    parts = (g.C + LANES - 1) // LANES
    for index in prange(blocks * parts):
        b, c = divmod(np.int64(index), parts)
        first, last = cells * b // blocks, cells * (b + 1) // blocks
        packed = work + get_thread_id() * room.total + room.packed
        c0, c1, target = c * LANES, min(g.C, c * LANES + LANES), v + b * block_bytes
        transform_tiles(F, g, room, x, first, last, c0, c1, target, packed)
        complete(F, room, (last - first) * g.dilation1, c0, c1, target)
    for index in prange(panels):
        p = np.int64(index)
        scratch = work + get_thread_id() * room.total
        v0 = panel_start(g, p, panels)
        nv = panel_start(g, p + 1, panels) - v0
        for c in range(0, g.C, chunk):
            count = min(chunk, g.C - c)
            source, u_plane = scratch + room.u, (chunk * nv + 1) * VECTOR_BYTES
            if u == 0:
                transform_filters(F, g, w, v0, nv, c, c + count, source, u_plane, scratch + room.packed)
            else:
                source = panel_address(F, g, u, p, panels) + c * nv * VECTOR_BYTES
                u_plane = (g.C * nv + 1) * VECTOR_BYTES
            for b in range(blocks):
                first, last = cells * b // blocks, cells * (b + 1) // blocks
                tiles = (last - first) * g.dilation1
                plane = ((tiles + ROWS) * nv + 1) * VECTOR_BYTES
                sums = scratch + room.sums
                products(F, room, tiles, nv, c, count, c == 0, v + b * block_bytes, source, u_plane, sums, plane)
                if c + count == g.C:
                    finish(F, g, room, first, last, v0, nv, sums, plane, scratch + room.stage, bias, code, x, w, y)

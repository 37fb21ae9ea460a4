"""Gradients of pooling with channels as lanes, for every window and every layout.

dx[n, c, cell] = sum over the windows p that meet the cell of its share of dy[n, c, p]

A task owns a tile of dx, (image, `tiles` rows along A and B, block of `lanes` channels), and runs over every
window that meets it: nothing is shared, and each cell adds its windows in row-major order however the tiles
lie. The tile is dx itself where that is as it is computed in and its channels are adjacent. Workspace per
thread: three rows of lanes, and a tile in the type computed in.
"""

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import (
    Kind,
    clip,
    fill,
    number,
    power,
    touching,
)
from fastconv.kernels.numba_cpu.pool_channels import (
    divide,
    first_of,
    get,
    norm_window,
    offset,
    put,
    room,
    window_at,
)
from fastconv.kernels.numba_cpu.pool_vectors import (
    give,
    keep,
    matching,
    numbers,
    part,
    plus,
    same,
    splat,
    whole,
)
from fastconv.kernels.numba_cpu.simd import width

BYTE = STORAGE["uint8"]


# ---------------------------------------------------------------- gradients: what one window gives one cell


ALL, PLACED = map(Kind, ("all", "placed"))


@njit(nogil=True)
def slope(S, value, norm, p):
    """sign(x) * (|x| / y)^(p - 1), 0 where x is 0."""
    one = number(S, 1)
    size = power(one if value == 0 else abs(value) / (one if norm == 0 else norm), p - 1)
    signed = -size if value < 0 else size
    return value if value != value else (zero(S) if value == 0 else signed)


@njit(nogil=True, error_model="numpy")
def spread_slopes(X, S, x, base, window, steps, tile, n, sums, share, norms, p):
    """Add what a window of Lp pooling gives to each of its cells inside the tile."""
    a, a_count, b, b_count, w, w_count = window
    a0, a1, b0, b1 = tile
    i0, i1 = clip(a, a_count, steps[0], a0, a1)
    j0, j1 = clip(b, b_count, steps[1], b0, b1)
    for i in range(i0, i1):
        for j in range(j0, j1):
            cell_a, cell_b = a + i * steps[0], b + j * steps[1]
            row = base + cell_a * x[3] + cell_b * x[4]
            for k in range(w_count):
                cell_w = w + k * steps[2]
                at = row + cell_w * x[5]
                target = sums[0] + (cell_a * sums[1] + cell_b * sums[2] + cell_w * sums[3]) * size(S)
                for lane in range(n):
                    value, norm = number(S, load(X, x[0], at + lane * x[2])), load(S, norms, lane)
                    gift = load(S, share, lane) * slope(S, value, norm, p)
                    store(S, target, lane, load(S, target, lane) + gift)


@njit(nogil=True)
def spread(kind, S, L, window, steps, first, frame, tile, n, sums, share, taps):
    """Add the lanes of `share` to every cell of a window inside the tile, or each to the cell of its tap.

    `taps` are bytes, compared as integers `L`; the window's first cell has the tap `first`.
    """
    a, a_count, b, b_count, w, w_count = window
    i0, i1 = clip(a, a_count, steps[0], tile[0], tile[1])
    j0, j1 = clip(b, b_count, steps[1], tile[2], tile[3])
    step, rest = width(S) * size(S), n % width(S)
    full = n // width(S) * step
    for i in range(i0, i1):
        for j in range(j0, j1):
            row = sums[0] + ((a + i * steps[0]) * sums[1] + (b + j * steps[1]) * sums[2] + w * sums[3]) * size(S)
            tap = first + (i * frame[1] + j) * frame[2]
            for k in range(w_count):
                target, mine = row + k * steps[2] * sums[3] * size(S), splat(L, number(L, tap + k))
                for at in range(0, full, step):
                    gift = gift_of(kind, S, L, taps + at // size(S), width(S), mine, whole(S, share + at))
                    keep(plus(whole(S, target + at), gift), target + at)
                if rest:
                    gift = gift_of(kind, S, L, taps + full // size(S), rest, mine, part(S, share + full, rest))
                    give(plus(part(S, target + full, rest), gift), target + full, rest)


def gift_of(kind, S, L, taps, count, mine, share):
    """What `count` lanes give to the cell of the tap `mine`."""
    raise NotImplementedError("only inside kernels")


@overload(gift_of)
def _gift_of(kind, S, L, taps, count, mine, share):
    if kind.kind == "all":
        return lambda kind, S, L, taps, count, mine, share: share

    def matched(kind, S, L, taps, count, mine, share):
        return matching(numbers(L, taps, 0, count), mine, share)

    return matched


@njit(nogil=True)
def tile_of(task, sizes, tile_a, tile_b, lanes, C):
    """(image, tile, first channel, channels) of a gradient's task."""
    blocks, across = -(-C // lanes), -(-sizes[1] // tile_b)
    block, rest = task % blocks, task // blocks
    b0, rest = rest % across * tile_b, rest // across
    down = -(-sizes[0] // tile_a)
    a0 = rest % down * tile_a
    tile = (a0, min(a0 + tile_a, sizes[0]), b0, min(b0 + tile_b, sizes[1]))
    return rest // down, tile, block * lanes, min(lanes, C - block * lanes)


@njit(nogil=True)
def open_tile(S, Y, dx, base, tile, sizes, lanes, n, scratch):
    """(address of cell 0, strides of A, B, W) of a tile of zeros: in dx itself where it is as it is computed in."""
    a0, a1, b0, b1 = tile
    if same(Y, S) and dx[2] == 1:
        sums = dx[0] + base * size(S), dx[3], dx[4], dx[5]
    else:
        by_a = (b1 - b0) * sizes[2] * lanes
        sums = scratch - (a0 * by_a + b0 * sizes[2] * lanes) * size(S), by_a, sizes[2] * lanes, lanes
    for a in range(a0, a1):
        for b in range(b0, b1):
            row = sums[0] + (a * sums[1] + b * sums[2]) * size(S)
            if sums[3] == n:
                fill(S, row, sizes[2] * n, zero(S))
            else:
                for w in range(sizes[2]):
                    fill(S, row + w * sums[3] * size(S), n, zero(S))
    return sums


@njit(nogil=True)
def deliver(S, Y, total, dx, base, tile, sizes, lanes, n):
    """The finished tile to dx, where it is not there yet."""
    a0, a1, b0, b1 = tile
    source = total
    if same(Y, S) and dx[2] == 1:
        return
    for a in range(a0, a1):
        for b in range(b0, b1):
            for w in range(sizes[2]):
                put(S, Y, source, dx, base + a * dx[3] + b * dx[4] + w * dx[5], n)
                source += lanes * size(S)


@njit(nogil=True, error_model="numpy")
def max_tile(task, G, S, L, dy, places, dx, C, lanes, tiles, tables, steps, frame, sizes, share):
    copies, total = share + room(lanes), share + 2 * room(lanes)
    image, tile, c, n = tile_of(task, sizes, tiles[0], tiles[1], lanes, C)
    a0, a1 = touching(tables[0], steps[0], tile[0], tile[1])
    b0, b1 = touching(tables[1], steps[1], tile[2], tile[3])
    sums = open_tile(S, G, dx, image * dx[1] + c * dx[2], tile, sizes, lanes, n, total)
    for a in range(a0, a1):
        for b in range(b0, b1):
            for w in range(len(tables[2])):
                window, at = window_at(tables, a, b, w), offset(places, image, c, a, b, w)
                get(G, S, dy, offset(dy, image, c, a, b, w), n, share)
                taps = places[0] + at
                if places[2] != 1:
                    taps = copies
                    for lane in range(n):
                        store(BYTE, copies, lane, np.uint8(load(BYTE, places[0], at + lane * places[2])))
                first = first_of(BYTE, tables, a, b, w, frame)
                spread(PLACED, S, L, window, steps, first, frame, tile, n, sums, share, taps)
    deliver(S, G, total, dx, image * dx[1] + c * dx[2], tile, sizes, lanes, n)


@njit(nogil=True, error_model="numpy")
def avg_tile(task, G, S, dy, dx, C, lanes, tiles, tables, steps, sizes, divisors, share):
    total = share + room(lanes)
    image, tile, c, n = tile_of(task, sizes, tiles[0], tiles[1], lanes, C)
    a0, a1 = touching(tables[0], steps[0], tile[0], tile[1])
    b0, b1 = touching(tables[1], steps[1], tile[2], tile[3])
    sums = open_tile(S, G, dx, image * dx[1] + c * dx[2], tile, sizes, lanes, n, total)
    for a in range(a0, a1):
        for b in range(b0, b1):
            for w in range(len(tables[2])):
                get(G, S, dy, offset(dy, image, c, a, b, w), n, share)
                divide(S, share, n, divisors[0][a] * divisors[1][b] * divisors[2][w])
                window = window_at(tables, a, b, w)
                spread(ALL, S, S, window, steps, 0, sizes, tile, n, sums, share, share)
    deliver(S, G, total, dx, image * dx[1] + c * dx[2], tile, sizes, lanes, n)


@njit(nogil=True, error_model="numpy")
def lp_tile(task, X, G, S, x, dy, dx, C, lanes, tiles, tables, steps, sizes, p, share):
    norm, scale, total = share + room(lanes), share + 2 * room(lanes), share + 3 * room(lanes)
    image, tile, c, n = tile_of(task, sizes, tiles[0], tiles[1], lanes, C)
    a0, a1 = touching(tables[0], steps[0], tile[0], tile[1])
    b0, b1 = touching(tables[1], steps[1], tile[2], tile[3])
    sums = open_tile(S, G, dx, image * dx[1] + c * dx[2], tile, sizes, lanes, n, total)
    base = image * x[1] + c * x[2]
    for a in range(a0, a1):
        for b in range(b0, b1):
            for w in range(len(tables[2])):
                window = window_at(tables, a, b, w)
                norm_window(X, S, x, base, window, steps, n, norm, scale, p)
                get(G, S, dy, offset(dy, image, c, a, b, w), n, share)
                spread_slopes(X, S, x, base, window, steps, tile, n, sums, share, norm, p)
    deliver(S, G, total, dx, image * dx[1] + c * dx[2], tile, sizes, lanes, n)


# ---------------------------------------------------------------- entry points


@njit(parallel=True, nogil=True)
def max_dgrad(tasks, G, S, L, dy, places, dx, C, lanes, tiles, tables, steps, frame, sizes, work, work_bytes):
    """Along the numbers of taps in a frame; `L` holds them in lanes of the width of `S`."""
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        max_tile(task, G, S, L, dy, places, dx, C, lanes, tiles, tables, steps, frame, sizes, scratch)


@njit(parallel=True, nogil=True)
def avg_dgrad(tasks, G, S, dy, dx, C, lanes, tiles, tables, steps, sizes, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        avg_tile(task, G, S, dy, dx, C, lanes, tiles, tables, steps, sizes, divisors, scratch)


@njit(parallel=True, nogil=True)
def lp_dgrad(tasks, X, G, S, x, dy, dx, C, lanes, tiles, tables, steps, sizes, p, work, work_bytes):
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        lp_tile(task, X, G, S, x, dy, dx, C, lanes, tiles, tables, steps, sizes, p, scratch)


ENTRIES = ("max_dgrad", "avg_dgrad", "lp_dgrad")

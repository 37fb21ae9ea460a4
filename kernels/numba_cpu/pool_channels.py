"""Pooling with channels as lanes: the algorithm that is right for every window and every layout.

Forward:  y[n, c, p] = fold over the cells of window p of x[n, c, cell]
Gradient: dx[n, c, cell] = sum over the windows p that meet the cell of its share of dy[n, c, p]

Lanes are `lanes` channels, adjacent in channels-last memory; any other stride works and is slower.
Forward, a task is (image, `rows` output rows along A, block of channels). In a gradient, a task owns a
tile of dx, (image, `tile_a` x `tile_b` rows, block of channels), and runs over every window that
meets it: nothing is shared, and each cell adds its windows in row-major order however the tiles lie.

Workspace per thread: a few rows of lanes, and for a gradient its tile, in the type computed in.
"""

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import (
    MAX,
    POWER,
    SIZE,
    SUM,
    Kind,
    beats,
    clip,
    fill,
    fold,
    lowest,
    number,
    power,
    touching,
)
from fastconv.kernels.numba_cpu.pool_vectors import (
    copy,
    finish,
    give,
    join,
    keep,
    matching,
    newer,
    nothing,
    over,
    part,
    plus,
    same,
    splat,
    whole,
)
from fastconv.kernels.numba_cpu.simd import lanes as lanes_of
from fastconv.kernels.numba_cpu.simd import width

PLACE = STORAGE["int64"]


# ---------------------------------------------------------------- one window


@njit(nogil=True)
def window_at(tables, a, b, w):
    """(first, count) along each axis of the window of output (a, b, w)."""
    ta, tb, tw = tables
    return ta[a, 0], ta[a, 1], tb[b, 0], tb[b, 1], tw[w, 0], tw[w, 1]


def fold_adjacent(kind, X, S, x, base, window, steps, n, y, at, divisor):
    """A window in registers, straight to y, for maxima and averages; False where channels are not adjacent."""
    raise NotImplementedError("only inside kernels")


@overload(fold_adjacent)
def _fold_adjacent(kind, X, S, x, base, window, steps, n, y, at, divisor):
    if X.stored != S.stored:
        return lambda kind, X, S, x, base, window, steps, n, y, at, divisor: False
    return _fold_vectors


def _fold_vectors(kind, X, S, x, base, window, steps, n, y, at, divisor):
    if x[2] != 1 or y[2] != 1:
        return False
    a, a_count, b, b_count, w, w_count = window
    corner = x[0] + (base + a * x[3] + b * x[4] + w * x[5]) * size(S)
    by_a, by_b, by_w = steps[0] * x[3] * size(S), steps[1] * x[4] * size(S), steps[2] * x[5] * size(S)
    lanes, step, target = width(S), width(S) * size(S), y[0] + at * size(S)
    done = 0
    while done + 4 * lanes <= n:
        total0 = total1 = total2 = total3 = nothing(kind, S)
        for i in range(a_count):
            for j in range(b_count):
                cell = corner + i * by_a + j * by_b
                for _ in range(w_count):
                    total0, total1 = join(kind, total0, whole(S, cell)), join(kind, total1, whole(S, cell + step))
                    total2 = join(kind, total2, whole(S, cell + 2 * step))
                    total3 = join(kind, total3, whole(S, cell + 3 * step))
                    cell += by_w
        keep(finish(kind, S, total0, divisor), target)
        keep(finish(kind, S, total1, divisor), target + step)
        keep(finish(kind, S, total2, divisor), target + 2 * step)
        keep(finish(kind, S, total3, divisor), target + 3 * step)
        corner, target, done = corner + 4 * step, target + 4 * step, done + 4 * lanes
    while done < n:
        count = min(lanes, n - done)
        total0 = nothing(kind, S)
        for i in range(a_count):
            for j in range(b_count):
                cell = corner + i * by_a + j * by_b
                for _ in range(w_count):
                    total0 = join(kind, total0, part(S, cell, count))
                    cell += by_w
        give(finish(kind, S, total0, divisor), target, count)
        corner, target, done = corner + step, target + step, done + lanes
    return True


@njit(nogil=True)
def fold_window(kind, X, S, x, base, window, steps, n, total, scale, p):
    """Fold every cell of a window into `n` lanes of scratch that hold what a fold of nothing gives.

    `base` is the offset of image and channel.
    """
    a, a_count, b, b_count, w, w_count = window
    for i in range(a_count):
        for j in range(b_count):
            row = base + (a + i * steps[0]) * x[3] + (b + j * steps[1]) * x[4] + w * x[5]
            for k in range(w_count):
                at = row + k * steps[2] * x[5]
                if x[2] == 1:
                    for lane in range(n):
                        cell = load(X, x[0], at + lane)
                        store(S, total, lane, fold(kind, load(S, total, lane), cell, load(S, scale, lane), p))
                else:
                    for lane in range(n):
                        cell = load(X, x[0], at + lane * x[2])
                        store(S, total, lane, fold(kind, load(S, total, lane), cell, load(S, scale, lane), p))


@njit(nogil=True)
def meet(X, S, x, index, flat, best, place, lane):
    """Keep a value and its flat offset where it beats the maximum so far."""
    value, kept = load(X, x, index), load(S, best, lane)
    wins = beats(value, kept)
    store(S, best, lane, value if wins else kept)
    store(PLACE, place, lane, flat if wins else load(PLACE, place, lane))


@njit(nogil=True)
def find_window(X, S, x, base, window, steps, sizes, n, best, place):
    """The maximum of a window and the flat offset of its first place, per lane; -1 of no cell."""
    a, a_count, b, b_count, w, w_count = window
    first = (a * sizes[1] + b) * sizes[2] + w
    fill(S, best, n, lowest(X))
    fill(PLACE, place, n, first if a_count * b_count * w_count > 0 else -1)
    for i in range(a_count):
        for j in range(b_count):
            row = base + (a + i * steps[0]) * x[3] + (b + j * steps[1]) * x[4] + w * x[5]
            flat_row = ((a + i * steps[0]) * sizes[1] + b + j * steps[1]) * sizes[2] + w
            for k in range(w_count):
                at, flat = row + k * steps[2] * x[5], flat_row + k * steps[2]
                if x[2] == 1:
                    for lane in range(n):
                        meet(X, S, x[0], at + lane, flat, best, place, lane)
                else:
                    for lane in range(n):
                        meet(X, S, x[0], at + lane * x[2], flat, best, place, lane)


@njit(nogil=True)
def find_adjacent(S, x, base, window, steps, sizes, n, best, place):
    """`find_window` in registers, for adjacent channels; places are relative to the first cell, in the type of x."""
    a, a_count, b, b_count, w, w_count = window
    corner = x[0] + (base + a * x[3] + b * x[4] + w * x[5]) * size(S)
    by_a, by_b, by_w = steps[0] * x[3] * size(S), steps[1] * x[4] * size(S), steps[2] * x[5] * size(S)
    lanes, step = width(S), width(S) * size(S)
    for done in range(0, n, 2 * lanes):
        count0, count1 = min(lanes, n - done), max(0, min(lanes, n - done - lanes))
        best0 = best1 = splat(S, lowest(S))
        place0 = place1 = splat(S, zero(S))
        for i in range(a_count):
            for j in range(b_count):
                cell, flat = corner + i * by_a + j * by_b, (i * steps[0] * sizes[1] + j * steps[1]) * sizes[2]
                for _ in range(w_count):
                    here = splat(S, number(S, flat))
                    value0, value1 = part(S, cell, count0), part(S, cell + step, count1)
                    place0, place1 = newer(value0, best0, here, place0), newer(value1, best1, here, place1)
                    best0, best1 = newer(value0, best0, value0, best0), newer(value1, best1, value1, best1)
                    cell, flat = cell + by_w, flat + steps[2]
        keep(best0, best)
        keep(best1, best + step)
        keep(place0, place)
        keep(place1, place + step)
        corner, best, place = corner + 2 * step, best + 2 * step, place + 2 * step


@njit(nogil=True)
def norm_window(X, S, x, base, window, steps, n, total, scale, p):
    """(sum |x|^p)^(1/p) of a window per lane, scaled by its largest so that nothing overflows."""
    one = number(S, 1)
    fill(S, scale, n, zero(S))
    fold_window(SIZE, X, S, x, base, window, steps, n, scale, scale, p)
    for lane in range(n):
        largest = load(S, scale, lane)
        store(S, scale, lane, largest if largest > 0 and largest < np.inf else one)
    fill(S, total, n, zero(S))
    fold_window(POWER, X, S, x, base, window, steps, n, total, scale, p)
    for lane in range(n):
        root = load(S, total, lane) ** number(S, 1.0 / p)
        store(S, total, lane, load(S, scale, lane) * root)


@njit(nogil=True)
def put(S, Y, total, y, base, n):
    """Lanes of scratch to their channels of y."""
    if y[2] == 1:
        if same(Y, S):
            copy(S, total, n, y[0] + base * size(S))
            return
        for lane in range(n):
            store(Y, y[0], base + lane, load(S, total, lane))
    else:
        for lane in range(n):
            store(Y, y[0], base + lane * y[2], load(S, total, lane))


@njit(nogil=True)
def get(Y, S, y, base, n, total):
    """Channels of y to lanes of scratch."""
    if same(Y, S) and y[2] == 1:
        copy(S, y[0] + base * size(S), n, total)
        return
    for lane in range(n):
        store(S, total, lane, load(Y, y[0], base + lane * y[2]))


# ---------------------------------------------------------------- forward


@njit(nogil=True)
def block_of(task, rows, outs, lanes, C):
    """(image, first output row, past the last, first channel, channels) of a forward task."""
    blocks, chunks = -(-C // lanes), -(-outs // rows)
    block, rest = task % blocks, task // blocks
    a = rest % chunks * rows
    return rest // chunks, a, min(a + rows, outs), block * lanes, min(lanes, C - block * lanes)


@njit(nogil=True)
def offset(y, image, c, a, b, w):
    return image * y[1] + c * y[2] + a * y[3] + b * y[4] + w * y[5]


@njit(nogil=True)
def max_block(task, X, S, x, y, C, lanes, rows, tables, steps, total):
    ta, tb, tw = tables
    image, a0, a1, c, n = block_of(task, rows, len(ta), lanes, C)
    base = image * x[1] + c * x[2]
    for a in range(a0, a1):
        for b in range(len(tb)):
            for w in range(len(tw)):
                window, at = window_at(tables, a, b, w), offset(y, image, c, a, b, w)
                if not fold_adjacent(MAX, X, S, x, base, window, steps, n, y, at, 1.0):
                    fill(S, total, n, lowest(X))
                    fold_window(MAX, X, S, x, base, window, steps, n, total, total, 0.0)
                    put(S, X, total, y, at, n)


@njit(nogil=True)
def indices_block(task, X, S, x, y, indices, C, lanes, rows, tables, steps, sizes, vectors, best):
    ta, tb, tw = tables
    place, near = best + room(lanes), best + 2 * room(lanes)
    image, a0, a1, c, n = block_of(task, rows, len(ta), lanes, C)
    base = image * x[1] + c * x[2]
    for a in range(a0, a1):
        for b in range(len(tb)):
            for w in range(len(tw)):
                window = window_at(tables, a, b, w)
                if vectors:
                    find_adjacent(S, x, base, window, steps, sizes, n, best, near)
                    flatten(S, near, window, sizes, n, place)
                else:
                    find_window(X, S, x, base, window, steps, sizes, n, best, place)
                put(S, X, best, y, offset(y, image, c, a, b, w), n)
                put(PLACE, PLACE, place, indices, offset(indices, image, c, a, b, w), n)


@njit(nogil=True)
def flatten(S, near, window, sizes, n, place):
    """Flat offsets from places relative to the first cell of a window; -1 where it has no cell."""
    a, a_count, b, b_count, w, w_count = window
    first = (a * sizes[1] + b) * sizes[2] + w
    if a_count * b_count * w_count == 0:
        fill(PLACE, place, n, -1)
        return
    for lane in range(n):
        store(PLACE, place, lane, first + np.int64(load(S, near, lane)))


@njit(nogil=True, error_model="numpy")
def avg_block(task, X, S, x, y, C, lanes, rows, tables, steps, divisors, total):
    ta, tb, tw = tables
    image, a0, a1, c, n = block_of(task, rows, len(ta), lanes, C)
    base = image * x[1] + c * x[2]
    for a in range(a0, a1):
        for b in range(len(tb)):
            for w in range(len(tw)):
                window, at = window_at(tables, a, b, w), offset(y, image, c, a, b, w)
                divisor = divisors[0][a] * divisors[1][b] * divisors[2][w]
                if not fold_adjacent(SUM, X, S, x, base, window, steps, n, y, at, divisor):
                    fill(S, total, n, zero(S))
                    fold_window(SUM, X, S, x, base, window, steps, n, total, total, 0.0)
                    divide(S, total, n, divisor)
                    put(S, X, total, y, at, n)


@njit(nogil=True, error_model="numpy")
def divide(S, total, n, divisor):
    """Divide lanes of scratch, to the end of the last vector."""
    by = splat(S, number(S, divisor))
    for at in range(total, total + n * size(S), width(S) * size(S)):
        keep(over(whole(S, at), by), at)


@njit(nogil=True, error_model="numpy")
def lp_block(task, X, S, x, y, C, lanes, rows, tables, steps, p, total):
    ta, tb, tw = tables
    image, a0, a1, c, n = block_of(task, rows, len(ta), lanes, C)
    base = image * x[1] + c * x[2]
    for a in range(a0, a1):
        for b in range(len(tb)):
            for w in range(len(tw)):
                window = window_at(tables, a, b, w)
                norm_window(X, S, x, base, window, steps, n, total, total + room(lanes), p)
                put(S, X, total, y, offset(y, image, c, a, b, w), n)


# ---------------------------------------------------------------- gradients: what one window gives one cell


ALL, PLACED, SLOPE = map(Kind, ("all", "placed", "slope"))


def share_of(kind, S, share, flat, place, value, norm, p):
    """What a window with gradient `share` gives to one of its cells."""
    raise NotImplementedError("only inside kernels")


@overload(share_of)
def _share_of(kind, S, share, flat, place, value, norm, p):
    return {
        "placed": lambda kind, S, share, flat, place, value, norm, p: share if place == flat else zero(S),
        "slope": lambda kind, S, share, flat, place, value, norm, p: share * slope(S, value, norm, p),
    }[kind.kind]


@njit(nogil=True)
def slope(S, value, norm, p):
    """sign(x) * (|x| / y)^(p - 1), 0 where x is 0."""
    one = number(S, 1)
    size = power(one if value == 0 else abs(value) / (one if norm == 0 else norm), p - 1)
    signed = -size if value < 0 else size
    return value if value != value else (zero(S) if value == 0 else signed)


@njit(nogil=True, error_model="numpy")
def spread(kind, X, S, x, base, window, steps, sizes, tile, n, sums, share, scratch, p):
    """Add what a window gives to each of its cells inside the tile."""
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
                flat = (cell_a * sizes[1] + cell_b) * sizes[2] + cell_w
                at = row + cell_w * x[5]
                target = sums[0] + (cell_a * sums[1] + cell_b * sums[2] + cell_w * sums[3]) * size(S)
                for lane in range(n):
                    place, norm = load(PLACE, scratch, lane), load(S, scratch, lane)
                    value = number(S, load(X, x[0], at + lane * x[2]))
                    gift = share_of(kind, S, load(S, share, lane), flat, place, value, norm, p)
                    store(S, target, lane, load(S, target, lane) + gift)


def spread_near(kind, S, SX, window, steps, sizes, tile, n, sums, share, near):
    """`spread` in vectors: to every cell, or to the one at `near` from the window's first, in the type of x."""
    raise NotImplementedError("only inside kernels")


@overload(spread_near)
def _spread_near(kind, S, SX, window, steps, sizes, tile, n, sums, share, near):
    if lanes_of(S.stored) == lanes_of(SX.stored):
        return _spread_near_vectors
    return lambda kind, S, SX, window, steps, sizes, tile, n, sums, share, near: None


def _spread_near_vectors(kind, S, SX, window, steps, sizes, tile, n, sums, share, near):
    a, a_count, b, b_count, w, w_count = window
    i0, i1 = clip(a, a_count, steps[0], tile[0], tile[1])
    j0, j1 = clip(b, b_count, steps[1], tile[2], tile[3])
    step, rest = width(S) * size(S), n % width(S)
    full = n // width(S) * step
    for i in range(i0, i1):
        for j in range(j0, j1):
            row = sums[0] + ((a + i * steps[0]) * sums[1] + (b + j * steps[1]) * sums[2] + w * sums[3]) * size(S)
            flat = (i * steps[0] * sizes[1] + j * steps[1]) * sizes[2]
            for k in range(w_count):
                target, mine = row + k * steps[2] * sums[3] * size(S), splat(SX, number(SX, flat + k * steps[2]))
                for at in range(0, full, step):
                    gift = gift_of(kind, SX, near + at, mine, whole(S, share + at))
                    keep(plus(whole(S, target + at), gift), target + at)
                if rest:
                    gift = gift_of(kind, SX, near + full, mine, part(S, share + full, rest))
                    give(plus(part(S, target + full, rest), gift), target + full, rest)


def gift_of(kind, SX, near, mine, share):
    raise NotImplementedError("only inside kernels")


@overload(gift_of)
def _gift_of(kind, SX, near, mine, share):
    if kind.kind == "all":
        return lambda kind, SX, near, mine, share: share
    return lambda kind, SX, near, mine, share: matching(whole(SX, near), mine, share)


@njit(nogil=True)
def room(lanes):
    """Bytes of scratch for a row of lanes, which vectors may overrun."""
    return lanes * 8 + 128


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
def max_tile(task, X, SX, G, S, x, dy, dx, C, lanes, tiles, tables, steps, sizes, vectors, share):
    place, best, total = share + room(lanes), share + 2 * room(lanes), share + 3 * room(lanes)
    image, tile, c, n = tile_of(task, sizes, tiles[0], tiles[1], lanes, C)
    a0, a1 = touching(tables[0], steps[0], tile[0], tile[1])
    b0, b1 = touching(tables[1], steps[1], tile[2], tile[3])
    sums = open_tile(S, G, dx, image * dx[1] + c * dx[2], tile, sizes, lanes, n, total)
    base = image * x[1] + c * x[2]
    for a in range(a0, a1):
        for b in range(b0, b1):
            for w in range(len(tables[2])):
                window = window_at(tables, a, b, w)
                get(G, S, dy, offset(dy, image, c, a, b, w), n, share)
                if vectors:
                    find_adjacent(SX, x, base, window, steps, sizes, n, best, place)
                    spread_near(PLACED, S, SX, window, steps, sizes, tile, n, sums, share, place)
                    continue
                find_window(X, SX, x, base, window, steps, sizes, n, best, place)
                spread(PLACED, X, S, x, base, window, steps, sizes, tile, n, sums, share, place, 0.0)
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
                spread_near(ALL, S, S, window, steps, sizes, tile, n, sums, share, share)
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
                spread(SLOPE, X, S, x, base, window, steps, sizes, tile, n, sums, share, norm, p)
    deliver(S, G, total, dx, image * dx[1] + c * dx[2], tile, sizes, lanes, n)


# ---------------------------------------------------------------- entry points


@njit(parallel=True, nogil=True)
def max_fprop(tasks, X, S, x, y, C, lanes, rows, tables, steps, work, work_bytes):
    for task in prange(tasks):
        max_block(task, X, S, x, y, C, lanes, rows, tables, steps, work + get_thread_id() * work_bytes)


@njit(parallel=True, nogil=True)
def max_indices(tasks, X, S, x, y, indices, C, lanes, rows, tables, steps, sizes, vectors, work, work_bytes):
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        indices_block(task, X, S, x, y, indices, C, lanes, rows, tables, steps, sizes, vectors, scratch)


@njit(parallel=True, nogil=True)
def avg_fprop(tasks, X, S, x, y, C, lanes, rows, tables, steps, divisors, work, work_bytes):
    for task in prange(tasks):
        avg_block(task, X, S, x, y, C, lanes, rows, tables, steps, divisors, work + get_thread_id() * work_bytes)


@njit(parallel=True, nogil=True)
def lp_fprop(tasks, X, S, x, y, C, lanes, rows, tables, steps, p, work, work_bytes):
    for task in prange(tasks):
        lp_block(task, X, S, x, y, C, lanes, rows, tables, steps, p, work + get_thread_id() * work_bytes)


@njit(parallel=True, nogil=True)
def max_dgrad(tasks, X, SX, G, S, x, dy, dx, C, lanes, tiles, tables, steps, sizes, vectors, work, work_bytes):
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        max_tile(task, X, SX, G, S, x, dy, dx, C, lanes, tiles, tables, steps, sizes, vectors, scratch)


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


ENTRIES = ("max_fprop", "max_indices", "avg_fprop", "lp_fprop", "max_dgrad", "avg_dgrad", "lp_dgrad")

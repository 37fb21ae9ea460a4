"""Pooling with channels as lanes: the algorithm that is right for every window and every layout.

y[n, c, p] = fold over the cells of window p of x[n, c, cell]

Lanes are `lanes` channels. Where they are adjacent and as they are computed in, a window is folded in
registers; any other memory works and is slower. A task is (image, `rows` output rows along A, block of
channels). Workspace per thread: three rows of lanes.
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
    beats,
    fill,
    fold,
    lowest,
    number,
)
from fastconv.kernels.numba_cpu.pool_vectors import (
    copy,
    finish,
    give,
    give_numbers,
    join,
    keep,
    newer,
    nothing,
    over,
    part,
    plus,
    same,
    splat,
    whole,
)
from fastconv.kernels.numba_cpu.simd import width

PLACE, BYTE = STORAGE["int64"], STORAGE["uint8"]


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
def meet(X, S, x, index, mine, best, place, lane):
    """Keep a value and its number where it beats the maximum so far."""
    value, kept = load(X, x, index), load(S, best, lane)
    wins = beats(value, kept)
    store(S, best, lane, value if wins else kept)
    store(PLACE, place, lane, mine if wins else load(PLACE, place, lane))


@njit(nogil=True)
def find_window(X, S, x, base, window, steps, first, pitch, n, best, place):
    """The maximum of a window and the number of its first place, per lane; -1 of no cell.

    The first cell has the number `first`, its neighbours along an axis lie `pitch` apart.
    """
    a, a_count, b, b_count, w, w_count = window
    fill(S, best, n, lowest(X))
    fill(PLACE, place, n, first if a_count * b_count * w_count > 0 else -1)
    for i in range(a_count):
        for j in range(b_count):
            row = base + (a + i * steps[0]) * x[3] + (b + j * steps[1]) * x[4] + w * x[5]
            number_row = first + i * pitch[0] + j * pitch[1]
            for k in range(w_count):
                at, mine = row + k * steps[2] * x[5], number_row + k * pitch[2]
                if x[2] == 1:
                    for lane in range(n):
                        meet(X, S, x[0], at + lane, mine, best, place, lane)
                else:
                    for lane in range(n):
                        meet(X, S, x[0], at + lane * x[2], mine, best, place, lane)


@njit(nogil=True)
def find_adjacent(S, x, base, window, steps, first, pitch, n, best, place):
    """`find_window` in registers, for adjacent channels; the numbers are in the type of x."""
    a, a_count, b, b_count, w, w_count = window
    corner = x[0] + (base + a * x[3] + b * x[4] + w * x[5]) * size(S)
    by_a, by_b, by_w = steps[0] * x[3] * size(S), steps[1] * x[4] * size(S), steps[2] * x[5] * size(S)
    lanes, step = width(S), width(S) * size(S)
    for done in range(0, n, 2 * lanes):
        count0, count1 = min(lanes, n - done), max(0, min(lanes, n - done - lanes))
        best0 = best1 = splat(S, lowest(S))
        place0 = place1 = splat(S, number(S, first))
        for i in range(a_count):
            for j in range(b_count):
                cell, mine = corner + i * by_a + j * by_b, first + i * pitch[0] + j * pitch[1]
                for _ in range(w_count):
                    here = splat(S, number(S, mine))
                    value0, value1 = part(S, cell, count0), part(S, cell + step, count1)
                    place0, place1 = newer(value0, best0, here, place0), newer(value1, best1, here, place1)
                    best0, best1 = newer(value0, best0, value0, best0), newer(value1, best1, value1, best1)
                    cell, mine = cell + by_w, mine + pitch[2]
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


@njit(nogil=True)
def room(lanes):
    """Bytes of scratch for a row of lanes, which vectors may overrun."""
    return lanes * 8 + 128


# ---------------------------------------------------------------- tasks


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
def places_block(task, X, S, I, x, y, places, C, lanes, rows, tables, steps, frame, vectors, best):
    ta, tb, tw = tables
    pitch = pitch_of(I, steps, frame)
    place, near = best + room(lanes), best + 2 * room(lanes)
    image, a0, a1, c, n = block_of(task, rows, len(ta), lanes, C)
    base = image * x[1] + c * x[2]
    for a in range(a0, a1):
        for b in range(len(tb)):
            for w in range(len(tw)):
                window, at = window_at(tables, a, b, w), offset(places, image, c, a, b, w)
                first = first_of(I, tables, a, b, w, frame)
                if vectors:
                    find_adjacent(S, x, base, window, steps, 0, pitch, n, best, near)
                    hand_out(I, S, near, window, first, n, place, places, at)
                else:
                    find_window(X, S, x, base, window, steps, first, pitch, n, best, place)
                    put(PLACE, I, place, places, at, n)
                put(S, X, best, y, offset(y, image, c, a, b, w), n)


def pitch_of(I, steps, frame):
    """From one number of a cell to that of its neighbours: numbers of taps in a frame, or indices in an extent."""
    raise NotImplementedError("only inside kernels")


@overload(pitch_of)
def _pitch_of(I, steps, frame):
    if I.stored == "uint8":
        return lambda I, steps, frame: (frame[1] * frame[2], frame[2], 1)
    return lambda I, steps, frame: (steps[0] * frame[1] * frame[2], steps[1] * frame[2], steps[2])


def first_of(I, tables, a, b, w, frame):
    """The number of the first cell of the window of output (a, b, w)."""
    raise NotImplementedError("only inside kernels")


@overload(first_of)
def _first_of(I, tables, a, b, w, frame):
    column = 2 if I.stored == "uint8" else 0

    def first(I, tables, a, b, w, frame):
        return (tables[0][a, column] * frame[1] + tables[1][b, column]) * frame[2] + tables[2][w, column]

    return first


@njit(nogil=True)
def hand_out(I, S, near, window, first, n, place, places, at):
    """Numbers in the type of x, relative to the first cell of a window, to where they go; -1 where it has no cell."""
    if window[1] * window[3] * window[5] == 0:
        fill(PLACE, place, n, -1)
    elif same(I, BYTE) and places[2] == 1:
        for lane in range(0, n, width(S)):
            number0 = plus(whole(S, near + lane * size(S)), splat(S, number(S, first)))
            give_numbers(number0, places[0] + at + lane, n - lane)
        return
    else:
        for lane in range(n):
            store(PLACE, place, lane, first + np.int64(load(S, near, lane)))
    put(PLACE, I, place, places, at, n)


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


# ---------------------------------------------------------------- entry points


@njit(parallel=True, nogil=True)
def max_fprop(tasks, X, S, x, y, C, lanes, rows, tables, steps, work, work_bytes):
    for task in prange(tasks):
        max_block(task, X, S, x, y, C, lanes, rows, tables, steps, work + get_thread_id() * work_bytes)


@njit(parallel=True, nogil=True)
def max_places(tasks, X, S, I, x, y, places, C, lanes, rows, tables, steps, frame, vectors, work, work_bytes):
    """`frame` is the extent of x, or for the numbers of taps that of a window."""
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        places_block(task, X, S, I, x, y, places, C, lanes, rows, tables, steps, frame, vectors, scratch)


@njit(parallel=True, nogil=True)
def avg_fprop(tasks, X, S, x, y, C, lanes, rows, tables, steps, divisors, work, work_bytes):
    for task in prange(tasks):
        avg_block(task, X, S, x, y, C, lanes, rows, tables, steps, divisors, work + get_thread_id() * work_bytes)


@njit(parallel=True, nogil=True)
def lp_fprop(tasks, X, S, x, y, C, lanes, rows, tables, steps, p, work, work_bytes):
    for task in prange(tasks):
        lp_block(task, X, S, x, y, C, lanes, rows, tables, steps, p, work + get_thread_id() * work_bytes)


ENTRIES = ("max_fprop", "max_places", "avg_fprop", "lp_fprop")

"""Pooling with lanes along W: regular windows over planes whose rows are adjacent in memory (or not).

y[n, c, p] = fold over the taps t of x[n, c, p * stride - pad + t * dilation]

A vector holds adjacent outputs of one row. The rows that a window meets are folded first, in registers and as
they lie in memory; then the taps along W are shifts of what that gives, of which stride 2 takes the even or odd
places. Only vectors that reach over the edge of a row are masked. An index needs its taps in row-major order:
there each row is taken apart before it is compared.

A task is a run of blocks, (plane, `rows` rows of outputs along A). Geometry `g`: sizes, outs, strides,
dilations, low pads and ksizes of A, B, W each; `tables` of A and B, per output index: the first cell that its
window meets, how many, and the tap of the first. `shifts` holds the offset of each tap in the flat
extent. Every window has a cell. Workspace per thread: the rows of x that a block meets where they are not as
they are computed in, and some rows of outputs.
"""

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.elementwise import sum_run
from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store
from fastconv.kernels.numba_cpu.pool import MAX, SUM, fill, lowest, number
from fastconv.kernels.numba_cpu.pool_vectors import (
    between,
    evens,
    give_lanes,
    give_numbers,
    join,
    keep,
    newer,
    nothing,
    odds,
    over,
    plus,
    same,
    splat,
    times,
    whole,
)
from fastconv.kernels.numba_cpu.simd import width

INDEX = STORAGE["int64"]


@njit(nogil=True, error_model="numpy")
def room(S, count):
    """Bytes of scratch for `count` elements, which loops may overrun by two vectors."""
    return (count * size(S) + 255) // 64 * 64


@njit(nogil=True, error_model="numpy")
def row_of(g, i):
    return g[i, 0], g[i, 1], g[i, 2]


@njit(nogil=True, error_model="numpy")
def geometry(g):
    """The rows of the array g as tuples."""
    return row_of(g, 0), row_of(g, 1), row_of(g, 2), row_of(g, 3), row_of(g, 4), row_of(g, 5)


@njit(nogil=True, error_model="numpy")
def met(g, low, high):
    """The rows of x along A that outputs [low, high) meet."""
    first = low * g[2][0] - g[4][0]
    last = (high - 1) * g[2][0] - g[4][0] + (g[5][0] - 1) * g[3][0] + 1
    return max(first, 0), min(last, g[0][0])


@njit(nogil=True, error_model="numpy")
def bring(X, S, g, x, base, first, last, scratch):
    """(address of row 0, bytes between rows along A and B) of rows [first, last): those of x, or copies."""
    if same(X, S) and x[5] == 1:
        return x[0] + base * size(S), x[3] * size(S), x[4] * size(S)
    row, target = g[0][2] * size(S), scratch
    for a in range(first, last):
        for b in range(g[0][1]):
            at = base + a * x[3] + b * x[4]
            for w in range(g[0][2]):
                store(S, target, w, load(X, x[0], at + w * x[5]))
            target += row
    return scratch - first * g[0][1] * row, g[0][1] * row, row


@njit(nogil=True, error_model="numpy", forceinline=True)
def list_rows(ksizes, steps, plane, table_a, a, table_b, b, rows):
    """Write the addresses of the rows of x that output row (a, b) meets, and the number of the first tap of each.

    Gives how many rows they are, and the highest of their addresses.
    """
    corner = plane[0] + table_a[a, 0] * plane[1] + table_b[b, 0] * plane[2]
    count, highest = 0, np.int64(0)
    for i in range(table_a[a, 1]):
        for j in range(table_b[b, 1]):
            row = corner + i * steps[0] * plane[1] + j * steps[1] * plane[2]
            highest = max(highest, row)
            store(INDEX, rows, 2 * count, row)
            tap = ((table_a[a, 2] + i) * ksizes[1] + table_b[b, 2] + j) * ksizes[2]
            store(INDEX, rows, 2 * count + 1, tap)
            count += 1
    return count, highest


@njit(nogil=True, error_model="numpy")
def end_of(S, sizes, plane):
    """The address past the last cell of a plane."""
    return plane[0] + max(0, (sizes[0] - 1) * plane[1]) + max(0, (sizes[1] - 1) * plane[2]) + sizes[2] * size(S)


@njit(nogil=True, error_model="numpy", forceinline=True)
def seen(S, first, count, g, highest, end):
    """How many cells of a row a vector of outputs may read, of which `count` are used and the first begins at `first`.

    Where no window in use passes the row's end, all up to the plane's end: what else is read goes to no output.
    """
    n = g[0][2]
    last = first + (min(count, width(S)) - 1) * g[2][2] + (g[5][2] - 1) * g[3][2]
    return (end - highest) // size(S) if last < n else n


# ---------------------------------------------------------------- cells of a row


@njit(nogil=True, error_model="numpy", forceinline=True)
def cells(S, stride, row, at, n, beyond, line):
    """The cells at, at + stride, ... of a row of n, and `beyond` outside; `line` is scratch for strides above 2."""
    lanes, step = width(S), width(S) * size(S)
    start = row + at * size(S)
    if stride == 1:
        return between(S, start, -at, n - at, beyond)
    if stride == 2:
        return evens(
            between(S, start, -at, n - at, beyond), between(S, start + step, -at - lanes, n - at - lanes, beyond)
        )
    keep(beyond, line)
    for i in range(max(0, -(at // stride)), min(lanes, -((at - n) // stride))):
        store(S, line, i, load(S, row, at + i * stride))
    return whole(S, line)


@njit(nogil=True, error_model="numpy", forceinline=True)
def column(kind, S, stride, at, n, rows, count, line):
    """`cells`, folded over the rows of a window."""
    total = beyond = nothing(kind, S)
    if stride == 1 and at >= 0 and at + width(S) <= n:
        if count == 3:  # unrolled
            for i in range(3):
                total = join(kind, total, whole(S, load(INDEX, rows, 2 * i) + at * size(S)))
            return total
        for i in range(count):
            total = join(kind, total, whole(S, load(INDEX, rows, 2 * i) + at * size(S)))
    else:
        for i in range(count):
            total = join(kind, total, cells(S, stride, load(INDEX, rows, 2 * i), at, n, beyond, line))
    return total


@njit(nogil=True, error_model="numpy", forceinline=True)
def columns(kind, S, at, n, rows, count):
    """Two vectors that lie side by side, folded over the rows of a window."""
    lanes, step = width(S), width(S) * size(S)
    total0 = total1 = beyond = nothing(kind, S)
    if at >= 0 and at + 2 * lanes <= n:
        if count == 2 or count == 3:  # unrolled
            for i in range(2):
                cell = load(INDEX, rows, 2 * i) + at * size(S)
                total0, total1 = join(kind, total0, whole(S, cell)), join(kind, total1, whole(S, cell + step))
            if count == 3:
                cell = load(INDEX, rows, 4) + at * size(S)
                total0, total1 = join(kind, total0, whole(S, cell)), join(kind, total1, whole(S, cell + step))
            return total0, total1
        for i in range(count):
            cell = load(INDEX, rows, 2 * i) + at * size(S)
            total0, total1 = join(kind, total0, whole(S, cell)), join(kind, total1, whole(S, cell + step))
    else:
        for i in range(count):
            cell = load(INDEX, rows, 2 * i) + at * size(S)
            total0 = join(kind, total0, between(S, cell, -at, n - at, beyond))
            total1 = join(kind, total1, between(S, cell + step, -at - lanes, n - at - lanes, beyond))
    return total0, total1


@njit(nogil=True, error_model="numpy", forceinline=True)
def fold_at(kind, S, first, n, stride, dilation, ksize, rows, count, line):
    """A vector of outputs, whose first window begins at the cell `first`."""
    total = nothing(kind, S)
    if stride == 2 and dilation == 1:  # two taps share what they load
        for t in range(0, ksize, 2):
            a, b = columns(kind, S, first + t, n, rows, count)
            total = join(kind, total, evens(a, b))
            if t + 1 < ksize:
                total = join(kind, total, odds(a, b))
    else:
        for t in range(ksize):
            total = join(kind, total, column(kind, S, stride, first + t * dilation, n, rows, count, line))
    return total


@njit(nogil=True, error_model="numpy", forceinline=True)
def meet(S, value, mine, best, tap):
    """(best, tap) once `value`, of tap `mine`, has been compared."""
    return newer(value, best, value, best), newer(value, best, splat(S, number(S, mine)), tap)


@njit(nogil=True, error_model="numpy", forceinline=True)
def find_at(S, first, n, stride, dilation, ksize, rows, count, skips, line):
    """(the maxima of a vector of outputs, the numbers of their taps).

    `skips` is what comes to the first tap of the first row where taps fall before x.
    """
    best = beyond = splat(S, lowest(S))
    tap = plus(splat(S, number(S, load(INDEX, rows, 1))), skips)
    for i in range(count):
        row, mine = load(INDEX, rows, 2 * i), load(INDEX, rows, 2 * i + 1)
        if stride == 2 and dilation == 1:
            for t in range(0, ksize, 2):
                a = cells(S, 1, row, first + t, n, beyond, line)
                b = cells(S, 1, row, first + t + width(S), n, beyond, line)
                best, tap = meet(S, evens(a, b), mine + t, best, tap)
                if t + 1 < ksize:
                    best, tap = meet(S, odds(a, b), mine + t + 1, best, tap)
        else:
            for t in range(ksize):
                value = cells(S, stride, row, first + t * dilation, n, beyond, line)
                best, tap = meet(S, value, mine + t, best, tap)
    return best, tap


@njit(nogil=True, error_model="numpy")
def skip_taps(S, g, skips):
    """How many taps of each output of a row fall before x."""
    strides, dilations, lows = g[2], g[3], g[4]
    for w in range(g[1][2]):
        store(S, skips, w, number(S, max(0, -((w * strides[2] - lows[2]) // dilations[2]))))


# ---------------------------------------------------------------- forward


def settle(kind, S, total, by, along_w):
    """What becomes of a fold: a sum is divided by its divisors along A and B, and along W."""
    raise NotImplementedError("only inside kernels")


@overload(settle)
def _settle(kind, S, total, by, along_w):
    if kind.kind == "max":
        return lambda kind, S, total, by, along_w: total
    return lambda kind, S, total, by, along_w: over(total, times(splat(S, number(S, by)), whole(S, along_w)))


@njit(nogil=True, error_model="numpy", forceinline=True)
def put(S, Y, value, y, at, stride, low, high, line):
    """The lanes [low, high) of a vector, its first at element `at` of y and the others `stride` apart."""
    if same(Y, S) and stride == 1:
        give_lanes(value, y + at * size(S), low, high)
        return
    keep(value, line)
    for i in range(max(low, 0), min(high, width(S))):
        store(Y, y, at + i * stride, load(S, line, i))


@njit(nogil=True, error_model="numpy")
def block_of(unit, rows, outs, C):
    """(image, channel, first output row, past the last) of one block of one plane."""
    blocks = -(-outs // rows)
    plane, low = unit // blocks, unit % blocks * rows
    return plane // C, plane % C, low, min(low + rows, outs)


@njit(nogil=True, error_model="numpy")
def fold_task(kind, first, last, X, S, x, y, C, rows, layout, tables, divisors, scratch):
    g, (table_a, table_b), (da, db, dw) = geometry(layout), tables, divisors
    sizes, outs, strides, dilations, lows, ksizes = g
    taken = scratch + room(S, width(S))
    along_w = taken + room(INDEX, 2 * ksizes[0] * ksizes[1])
    copies = along_w + room(S, outs[2])
    fill(S, along_w, outs[2] + width(S), number(S, 1))  # nothing slow in idle lanes
    for w in range(outs[2]):
        store(S, along_w, w, number(S, dw[w]))
    for unit in range(first, last):
        image, c, low, high = block_of(unit, rows, outs[0], C)
        top, bottom = met(g, low, high)
        plane = bring(X, S, g, x, image * x[1] + c * x[2], top, bottom, copies)
        end = end_of(S, sizes, plane)
        for a in range(low, high):
            for b in range(outs[1]):
                count, highest = list_rows(ksizes, dilations, plane, table_a, a, table_b, b, taken)
                by, at = da[a] * db[b], image * y[1] + c * y[2] + a * y[3] + b * y[4]
                for w in range(0, outs[2], width(S)):
                    cell = w * strides[2] - lows[2]
                    n = seen(S, cell, outs[2] - w, g, highest, end)
                    total = fold_at(kind, S, cell, n, strides[2], dilations[2], ksizes[2], taken, count, scratch)
                    total = settle(kind, S, total, by, along_w + w * size(S))
                    put(S, X, total, y[0], at + w * y[5], y[5], 0, outs[2] - w, scratch)


def note(I, S, tap, places, at, w, count, start, stride, shifts, line):
    """Where `count` maxima of a row from the output w on are: the numbers of their taps in bytes, or their indices."""
    raise NotImplementedError("only inside kernels")


@overload(note)
def _note(I, S, tap, places, at, w, count, start, stride, shifts, line):
    return _note_taps if I.stored == "uint8" else _note_indices


def _note_taps(I, S, tap, places, at, w, count, start, stride, shifts, line):
    if places[5] == 1:
        give_numbers(tap, places[0] + at + w, count)
        return
    keep(tap, line)
    for i in range(min(width(S), count)):
        store(I, places[0], at + (w + i) * places[5], load(S, line, i))


def _note_indices(I, S, tap, places, at, w, count, start, stride, shifts, line):
    keep(tap, line)
    for i in range(min(width(S), count)):  # the window's start may lie outside
        shift = shifts[np.uint64(load(S, line, i))]
        store(I, places[0], at + (w + i) * places[5], start + (w + i) * stride + shift)


@njit(nogil=True, error_model="numpy")
def find_task(first, last, X, S, I, x, y, places, C, rows, layout, tables, shifts, scratch):
    g, (table_a, table_b) = geometry(layout), tables
    sizes, outs, strides, dilations, lows, ksizes = g
    taken = scratch + room(S, width(S))
    skips = taken + room(INDEX, 2 * ksizes[0] * ksizes[1])
    copies = skips + room(S, outs[2])
    skip_taps(S, g, skips)
    for unit in range(first, last):
        image, c, low, high = block_of(unit, rows, outs[0], C)
        top, bottom = met(g, low, high)
        plane = bring(X, S, g, x, image * x[1] + c * x[2], top, bottom, copies)
        end = end_of(S, sizes, plane)
        for a in range(low, high):
            for b in range(outs[1]):
                count, highest = list_rows(ksizes, dilations, plane, table_a, a, table_b, b, taken)
                at = image * y[1] + c * y[2] + a * y[3] + b * y[4]
                place = image * places[1] + c * places[2] + a * places[3] + b * places[4]
                start = ((a * strides[0] - lows[0]) * sizes[1] + b * strides[1] - lows[1]) * sizes[2] - lows[2]
                for w in range(0, outs[2], width(S)):
                    cell, skip = w * strides[2] - lows[2], whole(S, skips + w * size(S))
                    n = seen(S, cell, outs[2] - w, g, highest, end)
                    best, tap = find_at(S, cell, n, strides[2], dilations[2], ksizes[2], taken, count, skip, scratch)
                    put(S, X, best, y[0], at + w * y[5], y[5], 0, outs[2] - w, scratch)
                    note(I, S, tap, places, place, w, outs[2] - w, start, strides[2], shifts, scratch)


# ---------------------------------------------------------------- entry points: `units` blocks, `run` to a task


@njit(parallel=True, nogil=True)
def max_fprop(tasks, units, run, X, S, x, y, C, rows, g, tables, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        fold_task(MAX, task * run, last, X, S, x, y, C, rows, g, tables, divisors, scratch)


@njit(parallel=True, nogil=True)
def avg_fprop(tasks, units, run, X, S, x, y, C, rows, g, tables, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        fold_task(SUM, task * run, last, X, S, x, y, C, rows, g, tables, divisors, scratch)


@njit(parallel=True, nogil=True)
def max_places(tasks, units, run, X, S, I, x, y, places, C, rows, g, tables, shifts, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        find_task(task * run, last, X, S, I, x, y, places, C, rows, g, tables, shifts, scratch)


@njit(parallel=True, nogil=True, error_model="numpy")
def avg_planes(planes, X, S, x, y, C, sizes, divisor):
    """The average of each plane of x, added up in float64."""
    for plane in prange(planes):
        image, c, total = plane // C, plane % C, 0.0
        for a in range(sizes[0]):
            for b in range(sizes[1]):
                total += sum_run(X, S, x[0], image * x[1] + c * x[2] + a * x[3] + b * x[4], x[5], sizes[2])
        store(X, y[0], image * y[1] + c * y[2], number(S, total / divisor))


ENTRIES = ("max_fprop", "avg_fprop", "max_places", "avg_planes")

"""Pooling with lanes along W: regular windows over planes whose rows are adjacent in memory (or not).

y[n, c, p] = fold over the taps t of x[n, c, p * stride - pad + t * dilation]

A vector holds adjacent outputs of one row. A block of outputs goes by lines in scratch, rows with what a fold begins
with on both sides, so that no vector of outputs needs a mask: the rows that a window meets fold to one line, as they
lie in memory; then the taps along W are shifts of that, of which stride 2 takes the even or odd places. An index needs
its taps in row-major order: there each row of x has a line, and is taken apart before it is compared.

A task is a run of blocks, (plane, `rows` rows of outputs along A). Geometry `g`: sizes, outs, strides, dilations, low
pads and ksizes of A, B, W each; at last the length of a line in elements, the places before its first cell, and how
many lines of x a block has at most. `tables` of A and B, per output index: the first cell that its window meets, how
many, and the tap of the first. `by` is what a step along A, B and W adds to the place of a tap: to its number or, in
the flat extent, to its offset. Every window has a cell. Workspace per thread: the lines of a block, of x too where its
rows are not adjacent or not as they are computed in, and some rows of outputs.
"""

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.elementwise import sum_run
from fastconv.kernels.numba_cpu.memory import load, size, store
from fastconv.kernels.numba_cpu.pool import MAX, SUM, Kind, fill, lowest, number
from fastconv.kernels.numba_cpu.pool_vectors import (
    after,
    copy_over,
    evens,
    first_lanes,
    give_indices,
    give_lanes,
    give_numbers,
    join,
    keep,
    newer,
    nothing,
    odds,
    over,
    part,
    plus,
    same,
    splat,
    times,
    whole,
)
from fastconv.kernels.numba_cpu.simd import width


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
def layout_of(g):
    """The rows of the array g as tuples, the lengths last."""
    return row_of(g, 0), row_of(g, 1), row_of(g, 2), row_of(g, 3), row_of(g, 4), row_of(g, 5), row_of(g, 6)


@njit(nogil=True, error_model="numpy")
def met(g, low, high):
    """The rows of x along A that outputs [low, high) meet."""
    first = low * g[2][0] - g[4][0]
    last = (high - 1) * g[2][0] - g[4][0] + (g[5][0] - 1) * g[3][0] + 1
    return max(first, 0), min(last, g[0][0])


# ---------------------------------------------------------------- lines: padded rows in scratch


@njit(nogil=True, error_model="numpy")
def lines_as_plane(S, g, lines, top):
    """(address of row 0, bytes between rows along A and B) of lines that begin with row `top` along A."""
    pitch = g[6][0] * size(S)
    return lines + g[6][1] * size(S) - top * g[0][1] * pitch, g[0][1] * pitch, pitch


@njit(nogil=True, error_model="numpy")
def spread(S, vector, address, count):
    """A vector over and over, until `count` elements are written."""
    for done in range(0, count, width(S)):
        keep(vector, address + done * size(S))


@njit(nogil=True, error_model="numpy", forceinline=True)
def rows_at(plane, steps, table_a, a, table_b, b):
    """The rows of a plane that output row (a, b) meets.

    (address of the first, how many along A, bytes between them, how many along B, bytes between them)
    """
    corner = plane[0] + table_a[a, 0] * plane[1] + table_b[b, 0] * plane[2]
    return corner, table_a[a, 1], steps[0] * plane[1], table_b[b, 1], steps[1] * plane[2]


@njit(nogil=True, error_model="numpy")
def copy_lines(X, S, g, x, base, first, last, beyond, lines):
    """The rows [first, last) of x along A, each on a line of its own."""
    n, pitch = g[0][2], g[6][0] * size(S)
    target = lines + g[6][1] * size(S)
    for a in range(first, last):
        for b in range(g[0][1]):
            at = base + a * x[3] + b * x[4]
            if same(X, S) and x[5] == 1:
                copy_over(S, x[0] + at * size(S), n, target, beyond)
            else:
                for w in range(n):
                    store(S, target, w, load(X, x[0], at + w * x[5]))
            target += pitch


@njit(nogil=True, error_model="numpy", forceinline=True)
def some(S, address, count):
    """A vector of which only the first `count` lanes are needed, if it has as many."""
    return whole(S, address) if count >= width(S) else part(S, address, count)


@njit(nogil=True, error_model="numpy", forceinline=True)
def fold_down(kind, S, cell, step, ksize, count):
    """A vector folded over `ksize` rows, `step` bytes apart."""
    total = join(kind, some(S, cell, count), some(S, cell + step, count))
    if ksize == 3:
        return join(kind, total, some(S, cell + 2 * step, count))
    for i in range(2, ksize):
        total = join(kind, total, some(S, cell + i * step, count))
    return total


@njit(nogil=True, error_model="numpy")
def fold_inside(kind, S, row, step, stride, ksize, outs, n, beyond, line, pitch):
    """Per output row the fold of `ksize` rows of n cells on a line.

    In bytes, the rows of a window lie `step` apart, windows `stride`, and lines `pitch`.
    """
    lanes, rest = width(S), n % width(S)
    for _ in range(outs):
        cell, target = row, line
        for _ in range(n // lanes):
            keep(fold_down(kind, S, cell, step, ksize, lanes), target)
            cell, target = cell + lanes * size(S), target + lanes * size(S)
        if rest:
            keep(first_lanes(fold_down(kind, S, cell, step, ksize, rest), rest, beyond), target)
        row, line = row + stride, line + pitch


@njit(nogil=True, error_model="numpy")
def fold_rows(kind, S, rows, n, beyond, line):
    """The fold of all rows of a window on a line."""
    for done in range(0, n, width(S)):
        total = beyond
        for i in range(rows[1]):
            for j in range(rows[3]):
                cell = rows[0] + i * rows[2] + j * rows[4] + done * size(S)
                total = join(kind, total, some(S, cell, n - done))
        keep(first_lanes(total, n - done, beyond), line + done * size(S))


@njit(nogil=True, error_model="numpy")
def inside(g, table_a):
    """The rows [first, last) of outputs along A whose windows lie in x, where rows fold one after the other."""
    first, last = g[1][0], 0
    if g[1][1] == 1 and g[5][1] == 1 and g[5][0] > 1:
        for a in range(g[1][0]):
            if table_a[a, 1] == g[5][0]:
                first, last = min(first, a), a + 1
    return first, last


@njit(nogil=True, error_model="numpy", forceinline=True)
def fold_lines(kind, S, g, plane, low, high, within, table_a, table_b, beyond, lines):
    """For each row of outputs [low, high), a line of the rows that its windows meet, folded."""
    n, pitch, ksize = g[0][2], g[6][0] * size(S), g[5][0]
    line, first, last = lines + g[6][1] * size(S), max(low, within[0]), min(high, within[1])
    if first < last:
        row = plane[0] + (first * g[2][0] - g[4][0]) * plane[1] + table_b[0, 0] * plane[2]
        target, step = line + (first - low) * pitch, g[3][0] * plane[1]
        fold_inside(kind, S, row, step, g[2][0] * plane[1], ksize, last - first, n, beyond, target, pitch)
    a = low
    while a < high:
        if first <= a < last:
            a = last
            continue
        for b in range(g[1][1]):
            rows = rows_at(plane, g[3], table_a, a, table_b, b)
            fold_rows(kind, S, rows, n, beyond, line + ((a - low) * g[1][1] + b) * pitch)
        a += 1


@njit(nogil=True, error_model="numpy", forceinline=True)
def cells(S, stride, cell, count, beyond, spare):
    """The cells at an address and `stride` apart; `spare` is scratch for strides above 2."""
    if stride == 1:
        return whole(S, cell)
    if stride == 2:
        return evens(whole(S, cell), whole(S, cell + width(S) * size(S)))
    keep(beyond, spare)
    for i in range(min(count, width(S))):
        store(S, spare, i, load(S, cell, i * stride))
    return whole(S, spare)


# ---------------------------------------------------------------- forward

#: Windows of 2 or 3 adjacent cells along W that step by 2, and all others.
TWO, THREE, ANY = map(Kind, ("2", "3", "any"))


@njit(nogil=True, error_model="numpy")
def pairs_of(g):
    """The cells along W of a window that has a form of its own, else 0."""
    return g[5][2] if g[2][2] == 2 and g[3][2] == 1 and 2 <= g[5][2] <= 3 else 0


def settle(kind, S, total, by, along_w):
    """What becomes of a fold: a sum is divided by its divisors along A and B, and along W."""
    raise NotImplementedError("only inside kernels")


@overload(settle)
def _settle(kind, S, total, by, along_w):
    if kind.kind == "max":
        return lambda kind, S, total, by, along_w: total
    return lambda kind, S, total, by, along_w: over(total, times(splat(S, number(S, by)), whole(S, along_w)))


@njit(nogil=True, error_model="numpy", forceinline=True)
def put(S, Y, value, y, at, stride, count, spare):
    """The first `count` lanes of a vector at element `at` of y and on, `stride` apart."""
    if same(Y, S) and stride == 1:
        give_lanes(value, y + at * size(S), 0, count)
        return
    keep(value, spare)
    for i in range(min(count, width(S))):
        store(Y, y, at + i * stride, load(S, spare, i))


def fold_window(form, kind, S, g, cell, count, beyond, spare):
    """A vector of outputs, `count` of them in use, from the line of their rows; `cell` is where the first begins."""
    raise NotImplementedError("only inside kernels")


@overload(fold_window)
def _fold_window(form, kind, S, g, cell, count, beyond, spare):
    if form.kind == "any":
        return _fold_any
    ksize = int(form.kind)

    def fold_pairs(form, kind, S, g, cell, count, beyond, spare):
        step = width(S) * size(S)
        a, b = whole(S, cell), whole(S, cell + step)
        first = evens(a, b)
        total = join(kind, first, odds(a, b))
        return join(kind, total, after(first, whole(S, cell + 2 * step))) if ksize == 3 else total

    return fold_pairs


def _fold_any(form, kind, S, g, cell, count, beyond, spare):
    total = beyond
    for t in range(g[5][2]):
        total = join(kind, total, cells(S, g[2][2], cell + t * g[3][2] * size(S), count, beyond, spare))
    return total


@njit(nogil=True, error_model="numpy")
def put_lines(form, kind, S, Y, g, line, low, high, y, base, divisors, along_w, beyond, spare):
    """The rows of outputs [low, high), each from its line."""
    outs, step, pitch = g[1], width(S) * size(S), g[6][0] * size(S)
    for a in range(low, high):
        for b in range(outs[1]):
            by, at, cell = divisors[0][a] * divisors[1][b], base + a * y[3] + b * y[4], line
            for w in range(0, outs[2], width(S)):
                total = fold_window(form, kind, S, g, cell, outs[2] - w, beyond, spare)
                total = settle(kind, S, total, by, along_w + w * size(S))
                put(S, Y, total, y[0], at + w * y[5], y[5], outs[2] - w, spare)
                cell += g[2][2] * step
            line += pitch


@njit(nogil=True, error_model="numpy")
def block_of(unit, rows, outs, C):
    """(image, channel, first output row) of one block of one plane."""
    blocks = -(-outs // rows)
    plane = unit // blocks
    return plane // C, plane % C, unit % blocks * rows


@njit(nogil=True, error_model="numpy", forceinline=True)
def block_after(block, rows, outs, C):
    image, c, low = block
    if low + rows < outs:
        return image, c, low + rows
    return (image, c + 1, 0) if c + 1 < C else (image + 1, 0, 0)


@njit(nogil=True, error_model="numpy")
def fold_task(kind, first, last, X, S, x, y, C, rows, layout, tables, divisors, scratch):
    g, (table_a, table_b), along = layout_of(layout), tables, divisors[2]
    outs, beyond, pairs, within = g[1], nothing(kind, S), pairs_of(g), inside(g, table_a)
    along_w = scratch + room(S, width(S))
    lines = along_w + room(S, outs[2] + width(S))
    copies = lines + room(S, rows * outs[1] * g[6][0])
    fill(S, along_w, outs[2] + width(S), number(S, 1))  # nothing slow in idle lanes
    for w in range(outs[2]):
        store(S, along_w, w, number(S, along[w]))
    spread(S, beyond, lines, rows * outs[1] * g[6][0])
    block = block_of(first, rows, outs[0], C)
    for _ in range(first, last):
        image, c, low = block
        high = min(low + rows, outs[0])
        block = block_after(block, rows, outs[0], C)
        base = image * x[1] + c * x[2]
        if same(X, S) and x[5] == 1:
            plane = x[0] + base * size(S), x[3] * size(S), x[4] * size(S)
        else:
            top, bottom = met(g, low, high)
            copy_lines(X, S, g, x, base, top, bottom, beyond, copies)
            plane = lines_as_plane(S, g, copies, top)
        fold_lines(kind, S, g, plane, low, high, within, table_a, table_b, beyond, lines)
        cell = lines + (g[6][1] - g[4][2]) * size(S)
        at = image * y[1] + c * y[2]
        if pairs == 3:
            put_lines(THREE, kind, S, X, g, cell, low, high, y, at, divisors, along_w, beyond, scratch)
        elif pairs == 2:
            put_lines(TWO, kind, S, X, g, cell, low, high, y, at, divisors, along_w, beyond, scratch)
        else:
            put_lines(ANY, kind, S, X, g, cell, low, high, y, at, divisors, along_w, beyond, scratch)


@njit(nogil=True, error_model="numpy", forceinline=True)
def meet(S, value, mine, best, tap):
    """(best, tap) once `value`, of tap `mine`, has been compared."""
    return newer(value, best, value, best), newer(value, best, splat(S, number(S, mine)), tap)


def find_window(form, S, g, rows, mine, by, count, beyond, skip, spare):
    """(the maxima of a vector of outputs, the places of their taps), whose first window begins at `rows`.

    The place of a tap is `mine` for the first one of the first row, and `by` more for each step along A, B and W;
    `skip` comes to the first where taps fall before x.
    """
    raise NotImplementedError("only inside kernels")


@overload(find_window)
def _find_window(form, S, g, rows, mine, by, count, beyond, skip, spare):
    if form.kind == "any":
        return _find_any
    ksize = int(form.kind)

    def find_pairs(form, S, g, rows, mine, by, count, beyond, skip, spare):
        step, best, tap = width(S) * size(S), beyond, plus(splat(S, number(S, mine)), skip)
        for i in range(rows[1]):
            for j in range(rows[3]):
                cell, at = rows[0] + i * rows[2] + j * rows[4], mine + i * by[0] + j * by[1]
                a, b = whole(S, cell), whole(S, cell + step)
                first = evens(a, b)
                best, tap = meet(S, first, at, best, tap)
                best, tap = meet(S, odds(a, b), at + by[2], best, tap)
                if ksize == 3:
                    best, tap = meet(S, after(first, whole(S, cell + 2 * step)), at + 2 * by[2], best, tap)
        return best, tap

    return find_pairs


def _find_any(form, S, g, rows, mine, by, count, beyond, skip, spare):
    best, tap = beyond, plus(splat(S, number(S, mine)), skip)
    for i in range(rows[1]):
        for j in range(rows[3]):
            cell, at = rows[0] + i * rows[2] + j * rows[4], mine + i * by[0] + j * by[1]
            for t in range(g[5][2]):
                value = cells(S, g[2][2], cell + t * g[3][2] * size(S), count, beyond, spare)
                best, tap = meet(S, value, at + t * by[2], best, tap)
    return best, tap


def note(I, S, place, places, at, w, count, start, stride, spare):
    """Where `count` maxima of a row from the output w on are: the numbers of their taps in bytes, or their indices."""
    raise NotImplementedError("only inside kernels")


@overload(note)
def _note(I, S, place, places, at, w, count, start, stride, spare):
    return _note_taps if I.stored == "uint8" else _note_indices


def _note_taps(I, S, place, places, at, w, count, start, stride, spare):
    if places[5] == 1:
        give_numbers(place, places[0] + at + w, count)
        return
    keep(place, spare)
    for i in range(min(width(S), count)):
        store(I, places[0], at + (w + i) * places[5], load(S, spare, i))


def _note_indices(I, S, place, places, at, w, count, start, stride, spare):
    if places[5] == 1:
        give_indices(place, places[0] + (at + w) * size(I), count, start + w * stride, stride)
        return
    keep(place, spare)
    for i in range(min(width(S), count)):  # the window's start may lie outside
        store(I, places[0], at + (w + i) * places[5], start + (w + i) * stride + np.int64(load(S, spare, i)))


@njit(nogil=True, error_model="numpy")
def find_lines(form, S, X, I, g, plane, low, high, table_a, table_b, by, y, base, places, place, skips, beyond, spare):
    """The rows of outputs [low, high) with their places."""
    sizes, outs, strides, lows, step = g[0], g[1], g[2], g[4], width(S) * size(S)
    for a in range(low, high):
        for b in range(outs[1]):
            start = ((a * strides[0] - lows[0]) * sizes[1] + b * strides[1] - lows[1]) * sizes[2] - lows[2]
            mine = table_a[a, 2] * by[0] + table_b[b, 2] * by[1]
            at, where = base + a * y[3] + b * y[4], place + a * places[3] + b * places[4]
            corner, count_a, step_a, count_b, step_b = rows_at(plane, g[3], table_a, a, table_b, b)
            corner -= lows[2] * size(S)
            for w in range(0, outs[2], width(S)):
                rows, skip = (corner, count_a, step_a, count_b, step_b), whole(S, skips + w * size(S))
                best, tap = find_window(form, S, g, rows, mine, by, outs[2] - w, beyond, skip, spare)
                put(S, X, best, y[0], at + w * y[5], y[5], outs[2] - w, spare)
                note(I, S, tap, places, where, w, outs[2] - w, start, strides[2], spare)
                corner += strides[2] * step


@njit(nogil=True, error_model="numpy")
def skip_taps(S, g, by, skips):
    """What the taps that fall before x add to the place of each output of a row."""
    strides, dilations, lows = g[2], g[3], g[4]
    for w in range(g[1][2]):
        store(S, skips, w, number(S, max(0, -((w * strides[2] - lows[2]) // dilations[2])) * by))


@njit(nogil=True, error_model="numpy")
def find_task(first, last, X, S, I, x, y, places, C, rows, layout, tables, by, scratch):
    g, (table_a, table_b), beyond = layout_of(layout), tables, splat(S, lowest(S))
    outs, pairs = g[1], pairs_of(g)
    skips = scratch + room(S, width(S))
    lines = skips + room(S, outs[2] + width(S))
    skip_taps(S, g, by[2], skips)
    spread(S, beyond, lines, g[6][2] * g[6][0])
    block = block_of(first, rows, outs[0], C)
    for _ in range(first, last):
        image, c, low = block
        high = min(low + rows, outs[0])
        block = block_after(block, rows, outs[0], C)
        top, bottom = met(g, low, high)
        copy_lines(X, S, g, x, image * x[1] + c * x[2], top, bottom, beyond, lines)
        plane = lines_as_plane(S, g, lines, top)
        at, place = image * y[1] + c * y[2], image * places[1] + c * places[2]
        if pairs == 3:
            find_lines(
                THREE, S, X, I, g, plane, low, high, table_a, table_b, by, y, at, places, place, skips, beyond, scratch
            )  # fmt: skip
        elif pairs == 2:
            find_lines(
                TWO, S, X, I, g, plane, low, high, table_a, table_b, by, y, at, places, place, skips, beyond, scratch
            )  # fmt: skip
        else:
            find_lines(
                ANY, S, X, I, g, plane, low, high, table_a, table_b, by, y, at, places, place, skips, beyond, scratch
            )  # fmt: skip


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
def max_places(tasks, units, run, X, S, I, x, y, places, C, rows, g, tables, by, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        find_task(task * run, last, X, S, I, x, y, places, C, rows, g, tables, by, scratch)


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

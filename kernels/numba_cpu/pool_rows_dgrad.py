"""Gradients of pooling with lanes along W, gathered row by row.

dx[n, c, i] = sum over the taps t of dy[n, c, p], or of its share, where window p begins t * dilation before i

Rows of dy are spread to the places where their windows begin, with zeros between them. Then the cell w of a
row meets tap t of the window that begins at w + pad - t * dilation: a shift, whatever the stride. For a
maximum, the tap that has it is found first, for a window at every place of the row; those between two
outputs cost time and give nothing, which is cheaper than taking rows apart for strides up to 4.

A task is a run of blocks; a block is `rows` rows of dx along A of one plane, with every output that reaches
them. Nothing is shared, and each cell adds its taps in the same order however the blocks lie.

Geometry `g` is that of pool_rows.py and a last row: the lengths in elements of a row of x with its padding,
of a row of dy with its places, of the zeros before these, and of a plain row or list. Every window has a cell.
Workspace per thread: the block's rows of x, of taps and of dy, and three rows more.
"""

from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import Kind, fill, lowest, number
from fastconv.kernels.numba_cpu.pool_rows import geometry, room
from fastconv.kernels.numba_cpu.pool_vectors import (
    copy,
    copy_over,
    give,
    keep,
    lower,
    matching,
    newer,
    over,
    part,
    plus,
    same,
    splat,
    times,
    upper,
    whole,
)
from fastconv.kernels.numba_cpu.simd import width

LIST = STORAGE["int64"]


@njit(nogil=True)
def layout_of(g):
    """The rows of the array g as tuples, the lengths last."""
    return (*geometry(g), (g[6, 0], g[6, 1], g[6, 2], g[6, 3]))


# ---------------------------------------------------------------- rows into scratch


@njit(nogil=True, forceinline=True)
def straight(X, S, x, at, step, n, line):
    """The address of n adjacent elements in the type computed in: those of x, or copies on the scratch `line`."""
    if same(X, S) and step == 1:
        return x + at * size(S)
    for i in range(n):
        store(S, line, i, load(X, x, at + i * step))
    return line


@njit(nogil=True)
def pad_rows(X, S, g, x, base, low, high, target, line):
    """The rows of x that outputs [low, high) along A meet, in scratch that holds padding around them."""
    sizes, outs, strides, dilations, lows, ksizes, lengths = g
    depth = (high - low - 1) * strides[0] + (ksizes[0] - 1) * dilations[0] + 1
    across = (outs[1] - 1) * strides[1] + (ksizes[1] - 1) * dilations[1] + 1
    row, bottom = target, splat(S, lowest(X))
    for i in range(depth):
        a = low * strides[0] + i - lows[0]
        for j in range(across):
            b = j - lows[1]
            if a < 0 or a >= sizes[0] or b < 0 or b >= sizes[1]:
                fill(S, row, lengths[0], lowest(X))
            else:
                n = min(sizes[2], lengths[0] - lows[2])
                source = straight(X, S, x[0], base + a * x[3] + b * x[4], x[5], n, line)
                copy_over(S, source, n, row + lows[2] * size(S), bottom)
            row += lengths[0] * size(S)


def weigh(kind, S, value, by, along_w):
    """Shares of a vector of dy: of an average, divided by its divisors along the row."""
    raise NotImplementedError("only inside kernels")


@overload(weigh)
def _weigh(kind, S, value, by, along_w):
    if kind.kind == "all":
        return lambda kind, S, value, by, along_w: over(value, times(by, whole(S, along_w)))
    return lambda kind, S, value, by, along_w: value


@njit(nogil=True, forceinline=True)
def place_row(kind, S, source, n, stride, by, along_w, row):
    """Shares with `stride` - 1 zeros after each, in whole vectors, which later loads need not wait for."""
    lanes, step, nothing = width(S), width(S) * size(S), splat(S, zero(S))
    for done in range(0, n, lanes):
        value = weigh(kind, S, part(S, source, n - done), by, along_w)
        if stride == 1:
            keep(value, row)
        elif stride == 2:
            keep(lower(value, nothing), row)
            keep(upper(value, nothing), row + step)
        else:
            keep(value, source)
            for w in range(min(lanes, n - done)):
                store(S, row, w * stride, load(S, source, w))
        source, along_w, row = source + step, along_w + step, row + stride * step


@njit(nogil=True)
def place_rows(kind, G, S, g, dy, base, low, high, divisors, along_w, target, line):
    """Rows of dy with each output where its window begins; along W, divisors are in scratch."""
    outs, strides, lengths = g[1], g[2], g[6]
    row = target + lengths[2] * size(S)
    for a in range(low, high):
        for b in range(outs[1]):
            by = splat(S, number(S, divisors[0][a] * divisors[1][b]))
            source = straight(G, S, dy[0], base + a * dy[3] + b * dy[4], dy[5], outs[2], line)
            if strides[2] > 2 and source != line:
                copy(S, source, outs[2], line)
                source = line
            place_row(kind, S, source, outs[2], strides[2], by, along_w, row)
            row += lengths[1] * size(S)


@njit(nogil=True)
def skipped(place, pad, dilation):
    """How many taps of the window at a padded place fall before the input."""
    return 0 if place >= pad else (pad - place + dilation - 1) // dilation


# ---------------------------------------------------------------- taps


@njit(nogil=True)
def find_rows(S, g, cells, low, high, taps, tap, skips):
    """Per place of each row of outputs, the number of the tap with the first maximum of a window there.

    `taps` are their offsets in scratch; `skips` counts along W the taps of each place that fall before the input.
    """
    outs, strides, dilations, lows, ksizes, lengths = g[1], g[2], g[3], g[4], g[5], g[6]
    step = width(S) * size(S)
    across = (outs[1] - 1) * strides[1] + (ksizes[1] - 1) * dilations[1] + 1
    count = ((outs[2] - 1) * strides[2] + 1) * size(S)
    bottom = splat(S, lowest(S))
    target = tap + lengths[2] * size(S)
    for a in range(low, high):
        for b in range(outs[1]):
            row = cells + ((a - low) * strides[0] * across + b * strides[1]) * lengths[0] * size(S)
            skip_a = skipped(a * strides[0], lows[0], dilations[0])
            skip = (skip_a * ksizes[1] + skipped(b * strides[1], lows[1], dilations[1])) * ksizes[2]
            first = splat(S, number(S, skip))
            at = 0
            while count - at > step:
                best0 = best1 = bottom
                tap0, tap1 = plus(first, whole(S, skips + at)), plus(first, whole(S, skips + at + step))
                for t in range(len(taps)):
                    cell, mine = row + at + taps[t] * size(S), splat(S, number(S, t))
                    value0, value1 = whole(S, cell), whole(S, cell + step)
                    tap0, tap1 = newer(value0, best0, mine, tap0), newer(value1, best1, mine, tap1)
                    best0, best1 = newer(value0, best0, value0, best0), newer(value1, best1, value1, best1)
                keep(tap0, target + at)
                keep(tap1, target + at + step)
                at += 2 * step
            if at < count:
                best0, tap0 = bottom, plus(first, whole(S, skips + at))
                for t in range(len(taps)):
                    value0, mine = whole(S, row + at + taps[t] * size(S)), splat(S, number(S, t))
                    tap0, best0 = newer(value0, best0, mine, tap0), newer(value0, best0, value0, best0)
                keep(tap0, target + at)
            target += lengths[1] * size(S)


# ---------------------------------------------------------------- the gather


@njit(nogil=True, forceinline=True)
def quotient(n, by):
    """n // by for n >= 0, without a division where `by` is 1 or 2."""
    if by == 1:
        return n
    return n >> 1 if by == 2 else n // by


@njit(nogil=True, forceinline=True)
def list_rows(g, a, b, low, high, entries):
    """The rows of outputs that reach row (a, b) of dx, as (row of the block, number of its first tap)."""
    outs, strides, dilations, lows, ksizes = g[1], g[2], g[3], g[4], g[5]
    count, in_a, in_b = 0, a + lows[0], b + lows[1]
    p = min(quotient(in_a, strides[0]), high - 1)
    while p >= low and in_a - p * strides[0] <= (ksizes[0] - 1) * dilations[0]:
        into_a = in_a - p * strides[0]
        if dilations[0] == 1 or into_a % dilations[0] == 0:
            q = min(quotient(in_b, strides[1]), outs[1] - 1)
            while q >= 0 and in_b - q * strides[1] <= (ksizes[1] - 1) * dilations[1]:
                into_b = in_b - q * strides[1]
                if dilations[1] == 1 or into_b % dilations[1] == 0:
                    store(LIST, entries, 2 * count, (p - low) * outs[1] + q)
                    tap = quotient(into_a, dilations[0]) * ksizes[1] + quotient(into_b, dilations[1])
                    store(LIST, entries, 2 * count + 1, tap * ksizes[2])
                    count += 1
                q -= 1
        p -= 1
    return count


ALL, PLACED = map(Kind, ("all", "placed"))


def gift(kind, S, tap, t, share):
    """What places give through tap t: all they have, or, where t is their tap, that."""
    raise NotImplementedError("only inside kernels")


@overload(gift)
def _gift(kind, S, tap, t, share):
    if kind.kind == "all":
        return lambda kind, S, tap, t, share: share
    return lambda kind, S, tap, t, share: matching(whole(S, tap), splat(S, number(S, t)), share)


@njit(nogil=True, forceinline=True)
def gather_row(kind, S, SX, g, entries, count, share, tap, target, n):
    """One row of dx from the listed rows of outputs."""
    dilation, pad, ksize, lengths = g[3][2], g[4][2], g[5][2], g[6]
    lanes, step, by = width(S), width(S) * size(S), dilation * size(S)
    done = 0
    while n - done > lanes:
        sum0 = sum1 = splat(S, zero(S))
        for e in range(count):
            row, t = load(LIST, entries, 2 * e), load(LIST, entries, 2 * e + 1)
            at = (row * lengths[1] + lengths[2] + pad + done) * size(S)
            for _ in range(ksize):
                sum0 = plus(sum0, gift(kind, SX, tap + at, t, whole(S, share + at)))
                sum1 = plus(sum1, gift(kind, SX, tap + at + step, t, whole(S, share + at + step)))
                at, t = at - by, t + 1
        place = target + done * size(S)
        keep(sum0, place)
        if n - done >= 2 * lanes:
            keep(sum1, place + step)
        else:
            give(sum1, place + step, n - done - lanes)
        done += 2 * lanes
    if done < n:
        sum0 = splat(S, zero(S))
        for e in range(count):
            row, t = load(LIST, entries, 2 * e), load(LIST, entries, 2 * e + 1)
            at = (row * lengths[1] + lengths[2] + pad + done) * size(S)
            for _ in range(ksize):
                sum0 = plus(sum0, gift(kind, SX, tap + at, t, whole(S, share + at)))
                at, t = at - by, t + 1
        give(sum0, target + done * size(S), n - done)


@njit(nogil=True)
def gather_rows(kind, G, S, SX, g, dx, base, first, last, low, high, share, tap, entries, line):
    """Rows [first, last) of dx along A."""
    sizes = g[0]
    for a in range(first, last):
        for b in range(sizes[1]):
            count = list_rows(g, a, b, low, high, entries)
            at = base + a * dx[3] + b * dx[4]
            direct = same(G, S) and dx[5] == 1
            target = dx[0] + at * size(S) if direct else line
            gather_row(kind, S, SX, g, entries, count, share, tap, target, sizes[2])
            if not direct:
                for w in range(sizes[2]):
                    store(G, dx[0], at + w * dx[5], load(S, line, w))


@njit(nogil=True)
def block_of(unit, rows, g, C):
    """(image, channel, rows [first, last) of dx along A, outputs [low, high) that reach them)."""
    sizes, outs, strides, dilations, lows, ksizes = g[0], g[1], g[2], g[3], g[4], g[5]
    blocks = -(-sizes[0] // rows)
    plane, first = unit // blocks, unit % blocks * rows
    last = min(first + rows, sizes[0])
    low = max(0, -(-(first + lows[0] - (ksizes[0] - 1) * dilations[0]) // strides[0]))
    high = min(outs[0], (last - 1 + lows[0]) // strides[0] + 1)
    return plane // C, plane % C, first, last, min(low, high), high


@njit(nogil=True)
def rows_of(rows, g):
    """(rows of outputs, rows of x) that a block holds at most."""
    outs, strides, dilations, ksizes = g[1], g[2], g[3], g[5]
    extent = (ksizes[0] - 1) * dilations[0] + 1
    reach = min(outs[0], (rows + extent - 2) // strides[0] + 1)
    across = (outs[1] - 1) * strides[1] + (ksizes[1] - 1) * dilations[1] + 1
    return reach * outs[1], ((reach - 1) * strides[0] + extent) * across


@njit(nogil=True)
def max_task(first, last, X, SX, G, S, x, dy, dx, C, rows, layout, taps, divisors, scratch):
    g = layout_of(layout)
    lows, dilations, lengths = g[4], g[3], g[6]
    out_rows, x_rows = rows_of(rows, g)
    share = scratch
    tap = share + room(S, out_rows * lengths[1])
    cells = tap + room(SX, out_rows * lengths[1])
    skips = cells + room(SX, x_rows * lengths[0])
    line = skips + room(SX, lengths[1])
    entries = line + room(LIST, lengths[3])
    fill(S, share, out_rows * lengths[1], zero(S))
    fill(SX, cells, x_rows * lengths[0], lowest(X))
    for w in range(lengths[1]):
        store(SX, skips, w, number(SX, skipped(w, lows[2], dilations[2])))
    for unit in range(first, last):
        image, c, start, stop, low, high = block_of(unit, rows, g, C)
        if low < high:
            pad_rows(X, SX, g, x, image * x[1] + c * x[2], low, high, cells, line)
            find_rows(SX, g, cells, low, high, taps, tap, skips)
            place_rows(PLACED, G, S, g, dy, image * dy[1] + c * dy[2], low, high, divisors, share, share, line)
        base = image * dx[1] + c * dx[2]
        gather_rows(PLACED, G, S, SX, g, dx, base, start, stop, low, high, share, tap, entries, line)


@njit(nogil=True, error_model="numpy")
def avg_task(first, last, G, S, dy, dx, C, rows, layout, divisors, scratch):
    g = layout_of(layout)
    lengths = g[6]
    out_rows, _ = rows_of(rows, g)
    share = scratch
    along_w = share + room(S, out_rows * lengths[1])
    line = along_w + room(S, lengths[1])
    entries = line + room(LIST, lengths[3])
    fill(S, share, out_rows * lengths[1], zero(S))
    fill(S, along_w, lengths[1], number(S, 1))
    for w in range(g[1][2]):
        store(S, along_w, w, number(S, divisors[2][w]))
    for unit in range(first, last):
        image, c, start, stop, low, high = block_of(unit, rows, g, C)
        if low < high:
            place_rows(ALL, G, S, g, dy, image * dy[1] + c * dy[2], low, high, divisors, along_w, share, line)
        base = image * dx[1] + c * dx[2]
        gather_rows(ALL, G, S, S, g, dx, base, start, stop, low, high, share, share, entries, line)


# ---------------------------------------------------------------- entry points: `units` blocks, `run` to a task


@njit(parallel=True, nogil=True)
def max_dgrad(tasks, units, run, X, SX, G, S, x, dy, dx, C, rows, g, taps, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        max_task(task * run, last, X, SX, G, S, x, dy, dx, C, rows, g, taps, divisors, scratch)


@njit(parallel=True, nogil=True)
def avg_dgrad(tasks, units, run, G, S, dy, dx, C, rows, g, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        avg_task(task * run, last, G, S, dy, dx, C, rows, g, divisors, scratch)


ENTRIES = ("max_dgrad", "avg_dgrad")

"""The gradient of average pooling with lanes along W, gathered row by row.

dx[n, c, i] = sum over the taps t of the share of dy[n, c, p] where window p begins t * dilation before i

Rows of dy are spread to the places where their windows begin, with zeros between them. Then the cell w of a
row meets tap t of the window that begins at w + pad - t * dilation: a shift, whatever the stride; the places
between two outputs cost time and give nothing, which is cheaper than taking rows apart for strides up to 4.

A task is a run of blocks; a block is `rows` rows of dx along A of one plane, with every output that reaches
them. Nothing is shared, and each cell adds its taps in the same order however the blocks lie.

Geometry `g` is that of pool_rows.py and a last row: the lengths in elements of a row of dy with its places, of the
zeros before these, and of a plain row or list. Every window has a cell. Workspace per thread: the block's rows of dy,
and two rows more.
"""

from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import fill, number
from fastconv.kernels.numba_cpu.pool_rows import geometry, room, row_of
from fastconv.kernels.numba_cpu.pool_vectors import (
    copy,
    give,
    keep,
    lower,
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
    return (*geometry(g), row_of(g, 6))


# ---------------------------------------------------------------- rows into scratch


@njit(nogil=True, forceinline=True)
def straight(X, S, x, at, step, n, line):
    """The address of n adjacent elements in the type computed in: those of x, or copies on the scratch `line`."""
    if same(X, S) and step == 1:
        return x + at * size(S)
    for i in range(n):
        store(S, line, i, load(X, x, at + i * step))
    return line


@njit(nogil=True, forceinline=True)
def place_row(S, source, n, stride, by, along_w, row):
    """Shares with `stride` - 1 zeros after each, in whole vectors, which later loads need not wait for."""
    lanes, step, nothing = width(S), width(S) * size(S), splat(S, zero(S))
    for done in range(0, n, lanes):
        value = over(part(S, source, n - done), times(by, whole(S, along_w)))
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
def place_rows(G, S, g, dy, base, low, high, divisors, along_w, target, line):
    """Rows of dy with each output where its window begins; along W, divisors are in scratch."""
    outs, strides, lengths = g[1], g[2], g[6]
    row = target + lengths[1] * size(S)
    for a in range(low, high):
        for b in range(outs[1]):
            by = splat(S, number(S, divisors[0][a] * divisors[1][b]))
            source = straight(G, S, dy[0], base + a * dy[3] + b * dy[4], dy[5], outs[2], line)
            if strides[2] > 2 and source != line:
                copy(S, source, outs[2], line)
                source = line
            place_row(S, source, outs[2], strides[2], by, along_w, row)
            row += lengths[0] * size(S)


# ---------------------------------------------------------------- the gather


@njit(nogil=True, forceinline=True)
def quotient(n, by):
    """n // by for n >= 0, without a division where `by` is 1 or 2."""
    if by == 1:
        return n
    return n >> 1 if by == 2 else n // by


@njit(nogil=True, forceinline=True)
def list_rows(g, a, b, low, high, entries):
    """The rows of the block's outputs that reach row (a, b) of dx."""
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
                    store(LIST, entries, count, (p - low) * outs[1] + q)
                    count += 1
                q -= 1
        p -= 1
    return count


@njit(nogil=True, forceinline=True)
def gather_row(S, g, entries, count, share, target, n):
    """One row of dx from the listed rows of outputs."""
    dilation, pad, ksize, lengths = g[3][2], g[4][2], g[5][2], g[6]
    lanes, step, by = width(S), width(S) * size(S), dilation * size(S)
    done = 0
    while n - done > lanes:
        sum0 = sum1 = splat(S, zero(S))
        for e in range(count):
            at = (load(LIST, entries, e) * lengths[0] + lengths[1] + pad + done) * size(S)
            for _ in range(ksize):
                sum0, sum1 = plus(sum0, whole(S, share + at)), plus(sum1, whole(S, share + at + step))
                at -= by
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
            at = (load(LIST, entries, e) * lengths[0] + lengths[1] + pad + done) * size(S)
            for _ in range(ksize):
                sum0 = plus(sum0, whole(S, share + at))
                at -= by
        give(sum0, target + done * size(S), n - done)


@njit(nogil=True)
def gather_rows(G, S, g, dx, base, first, last, low, high, share, entries, line):
    """Rows [first, last) of dx along A."""
    sizes = g[0]
    for a in range(first, last):
        for b in range(sizes[1]):
            count = list_rows(g, a, b, low, high, entries)
            at = base + a * dx[3] + b * dx[4]
            direct = same(G, S) and dx[5] == 1
            target = dx[0] + at * size(S) if direct else line
            gather_row(S, g, entries, count, share, target, sizes[2])
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
    """How many rows of outputs a block holds at most."""
    outs, strides, dilations, ksizes = g[1], g[2], g[3], g[5]
    return min(outs[0], (rows + (ksizes[0] - 1) * dilations[0] - 1) // strides[0] + 1) * outs[1]


@njit(nogil=True, error_model="numpy")
def avg_task(first, last, G, S, dy, dx, C, rows, layout, divisors, scratch):
    g = layout_of(layout)
    lengths = g[6]
    length = rows_of(rows, g) * lengths[0]
    share = scratch
    along_w = share + room(S, length)
    line = along_w + room(S, lengths[0])
    entries = line + room(LIST, lengths[2])
    fill(S, share, length, zero(S))
    fill(S, along_w, lengths[0], number(S, 1))
    for w in range(g[1][2]):
        store(S, along_w, w, number(S, divisors[2][w]))
    for unit in range(first, last):
        image, c, start, stop, low, high = block_of(unit, rows, g, C)
        if low < high:
            place_rows(G, S, g, dy, image * dy[1] + c * dy[2], low, high, divisors, along_w, share, line)
        base = image * dx[1] + c * dx[2]
        gather_rows(G, S, g, dx, base, start, stop, low, high, share, entries, line)


# ---------------------------------------------------------------- entry points: `units` blocks, `run` to a task


@njit(parallel=True, nogil=True)
def avg_dgrad(tasks, units, run, G, S, dy, dx, C, rows, g, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        avg_task(task * run, last, G, S, dy, dx, C, rows, g, divisors, scratch)


ENTRIES = ("avg_dgrad",)

"""Gradients of pooling with lanes along W, gathered row by row.

dx[n, c, i] = sum over the taps t of dy[n, c, p], or of its share, where i = p * stride - pad + t * dilation

Cells of one phase f of the stride, i + pad = q * stride + f, lie side by side in a vector: its taps are those
with t * dilation % stride = f, and the window that a tap belongs to is a shift, p = q - t * dilation // stride.
Stride 2 weaves its two phases together again. For a maximum, the tap that has it is found first.

A task is a run of blocks; a block is `rows` rows of dx along A of one plane, with every output that reaches
them. Nothing is shared, and each cell adds its taps in the same order however the blocks lie.

Geometry `g` and `tables` are those of pool_rows.py. `lengths`: elements of a row of dy with zeros around it, of
the zeros before it, output rows of a block, and the range of q. `phases` (an address) has a row per phase: the
number of its taps, and each with its shift. Every window has a cell. Workspace per thread: the block's rows of
taps and of dy, of x where they are not as they are computed in, and some rows more.
"""

from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.memory import load, size, store, zero
from fastconv.kernels.numba_cpu.pool import Kind, fill, number
from fastconv.kernels.numba_cpu.pool_rows import (
    INDEX,
    bring,
    end_of,
    find_at,
    geometry,
    list_rows,
    met,
    put,
    room,
    seen,
    skip_taps,
)
from fastconv.kernels.numba_cpu.pool_vectors import (
    between,
    keep,
    lower,
    matching,
    over,
    plus,
    same,
    splat,
    times,
    upper,
    whole,
)
from fastconv.kernels.numba_cpu.simd import width

# ---------------------------------------------------------------- rows of shares and of taps


def weigh(kind, S, value, by, along_w):
    """Shares of a vector of dy: of an average, divided by its divisors along the row."""
    raise NotImplementedError("only inside kernels")


@overload(weigh)
def _weigh(kind, S, value, by, along_w):
    if kind.kind == "all":
        return lambda kind, S, value, by, along_w: over(value, times(splat(S, number(S, by)), whole(S, along_w)))
    return lambda kind, S, value, by, along_w: value


@njit(nogil=True, error_model="numpy")
def share_rows(kind, G, S, g, lengths, dy, base, low, high, divisors, along_w, share, line):
    """Shares of the outputs [low, high), with zeros around each row."""
    outs, nothing = g[1], splat(S, zero(S))
    da, db = divisors[0], divisors[1]
    row = share + lengths[1] * size(S)
    for a in range(low, high):
        for b in range(outs[1]):
            at = base + a * dy[3] + b * dy[4]
            source, by = dy[0] + at * size(S), da[a] * db[b]
            if not (same(G, S) and dy[5] == 1):
                source = line
                for w in range(outs[2]):
                    store(S, line, w, load(G, dy[0], at + w * dy[5]))
            for w in range(0, outs[2], width(S)):  # whole vectors, which later loads need not wait for
                value = weigh(
                    kind, S, between(S, source + w * size(S), 0, outs[2] - w, nothing), by, along_w + w * size(S)
                )
                keep(value, row + w * size(S))
            row += lengths[0] * size(S)


@njit(nogil=True, error_model="numpy")
def tap_rows(S, g, lengths, tables, plane, low, high, tap, rows, skips, line):
    """The number of the tap with the first maximum of each output of [low, high)."""
    sizes, outs, strides, dilations, lows, ksizes = g
    table_a, table_b = tables
    row, end = tap + lengths[1] * size(S), end_of(S, sizes, plane)
    for a in range(low, high):
        for b in range(outs[1]):
            count, highest = list_rows(ksizes, dilations, plane, table_a, a, table_b, b, rows)
            for w in range(0, outs[2], width(S)):
                cell, skip = w * strides[2] - lows[2], whole(S, skips + w * size(S))
                n = seen(S, cell, outs[2] - w, g, highest, end)
                _, mine = find_at(S, cell, n, strides[2], dilations[2], ksizes[2], rows, count, skip, line)
                keep(mine, row + w * size(S))
            row += lengths[0] * size(S)


# ---------------------------------------------------------------- the gather


@njit(nogil=True, error_model="numpy", forceinline=True)
def quotient(n, by):
    """n // by for n >= 0, without a division where `by` is 1 or 2."""
    if by == 1:
        return n
    return n >> 1 if by == 2 else n // by


@njit(nogil=True, error_model="numpy", forceinline=True)
def givers(g, a, b, low, high, entries):
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
                    store(INDEX, entries, 2 * count, (p - low) * outs[1] + q)
                    tap = quotient(into_a, dilations[0]) * ksizes[1] + quotient(into_b, dilations[1])
                    store(INDEX, entries, 2 * count + 1, tap * ksizes[2])
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


@njit(nogil=True, error_model="numpy", forceinline=True)
def gather(kind, S, SX, phase, entries, count, length, share, tap, q):
    """What the cells q, q + 1, ... of a phase are given; `phase` is the address of its taps and shifts."""
    total, taps = splat(S, zero(S)), load(INDEX, phase, 0)
    for e in range(count):
        row, first = load(INDEX, entries, 2 * e) * length + q, load(INDEX, entries, 2 * e + 1)
        for i in range(taps):
            at = (row - load(INDEX, phase, 2 * i + 2)) * size(S)
            mine = first + load(INDEX, phase, 2 * i + 1)
            total = plus(total, gift(kind, SX, tap + at, mine, whole(S, share + at)))
    return total


@njit(nogil=True, error_model="numpy")
def gather_row(kind, G, S, SX, g, lengths, phases, dx, at, entries, count, share, tap, line):
    """One row of dx, whose cell 0 is element `at`."""
    n, stride, low, length, by = g[0][2], g[2][2], g[4][2], lengths[0], (2 * g[5][2] + 1) * size(INDEX)
    share, tap, lanes = share + lengths[1] * size(S), tap + lengths[1] * size(S), width(S)
    for q in range(lengths[3], lengths[4], lanes):
        cell = q * stride - low
        if stride == 1:
            total = gather(kind, S, SX, phases, entries, count, length, share, tap, q)
            put(S, G, total, dx[0], at + cell * dx[5], dx[5], 0, n - cell, line)
        elif stride == 2:
            even = gather(kind, S, SX, phases, entries, count, length, share, tap, q)
            odd = gather(kind, S, SX, phases + by, entries, count, length, share, tap, q)
            put(S, G, lower(even, odd), dx[0], at + cell * dx[5], dx[5], -cell, n - cell, line)
            cell += lanes
            put(S, G, upper(even, odd), dx[0], at + cell * dx[5], dx[5], 0, n - cell, line)
        else:
            for f in range(stride):
                keep(gather(kind, S, SX, phases + f * by, entries, count, length, share, tap, q), line)
                for i in range(min(lanes, -((cell + f - n) // stride))):
                    w = cell + f + i * stride
                    if w >= 0:
                        store(G, dx[0], at + w * dx[5], load(S, line, i))


@njit(nogil=True, error_model="numpy")
def gather_rows(kind, G, S, SX, g, lengths, phases, dx, base, first, last, low, high, share, tap, entries, line):
    """Rows [first, last) of dx along A."""
    for a in range(first, last):
        for b in range(g[0][1]):
            count, at = givers(g, a, b, low, high, entries), base + a * dx[3] + b * dx[4]
            gather_row(kind, G, S, SX, g, lengths, phases, dx, at, entries, count, share, tap, line)


@njit(nogil=True, error_model="numpy")
def rows_of(unit, rows, g, C):
    """(image, channel, rows [first, last) of dx along A, outputs [low, high) that reach them)."""
    sizes, outs, strides, dilations, lows, ksizes = g[0], g[1], g[2], g[3], g[4], g[5]
    blocks = -(-sizes[0] // rows)
    plane, first = unit // blocks, unit % blocks * rows
    last = min(first + rows, sizes[0])
    low = max(0, -(-(first + lows[0] - (ksizes[0] - 1) * dilations[0]) // strides[0]))
    high = min(outs[0], (last - 1 + lows[0]) // strides[0] + 1)
    return plane // C, plane % C, first, last, min(low, high), high


@njit(nogil=True, error_model="numpy")
def max_task(first, last, X, SX, G, S, x, dy, dx, C, rows, layout, lengths, tables, phases, divisors, scratch):
    g = geometry(layout)
    outs, ksizes = g[1], g[5]
    line = scratch
    entries = line + room(S, outs[2])
    skips = entries + room(INDEX, 2 * ksizes[0] * ksizes[1])
    share = skips + room(SX, outs[2])
    tap = share + room(S, lengths[2] * lengths[0])
    copies = tap + room(SX, lengths[2] * lengths[0])
    fill(S, share, lengths[2] * lengths[0], zero(S))
    skip_taps(SX, g, skips)
    for unit in range(first, last):
        image, c, start, stop, low, high = rows_of(unit, rows, g, C)
        if low < high:
            top, bottom = met(g, low, high)
            plane = bring(X, SX, g, x, image * x[1] + c * x[2], top, bottom, copies)
            tap_rows(SX, g, lengths, tables, plane, low, high, tap, entries, skips, line)
            base = image * dy[1] + c * dy[2]
            share_rows(PLACED, G, S, g, lengths, dy, base, low, high, divisors, share, share, line)
        base = image * dx[1] + c * dx[2]
        gather_rows(PLACED, G, S, SX, g, lengths, phases, dx, base, start, stop, low, high, share, tap, entries, line)


@njit(nogil=True, error_model="numpy")
def avg_task(first, last, G, S, dy, dx, C, rows, layout, lengths, phases, divisors, scratch):
    g, dw = geometry(layout), divisors[2]
    outs, ksizes = g[1], g[5]
    line = scratch
    entries = line + room(S, outs[2])
    along_w = entries + room(INDEX, 2 * ksizes[0] * ksizes[1])
    share = along_w + room(S, outs[2])
    fill(S, share, lengths[2] * lengths[0], zero(S))
    fill(S, along_w, outs[2] + width(S), number(S, 1))
    for w in range(outs[2]):
        store(S, along_w, w, number(S, dw[w]))
    for unit in range(first, last):
        image, c, start, stop, low, high = rows_of(unit, rows, g, C)
        if low < high:
            base = image * dy[1] + c * dy[2]
            share_rows(ALL, G, S, g, lengths, dy, base, low, high, divisors, along_w, share, line)
        base = image * dx[1] + c * dx[2]
        gather_rows(ALL, G, S, S, g, lengths, phases, dx, base, start, stop, low, high, share, share, entries, line)


# ---------------------------------------------------------------- entry points: `units` blocks, `run` to a task


@njit(parallel=True, nogil=True)
def max_dgrad(
    tasks, units, run, X, SX, G, S, x, dy, dx, C, rows, g, lengths, tables, phases, divisors, work, work_bytes
):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        max_task(task * run, last, X, SX, G, S, x, dy, dx, C, rows, g, lengths, tables, phases, divisors, scratch)


@njit(parallel=True, nogil=True)
def avg_dgrad(tasks, units, run, G, S, dy, dx, C, rows, g, lengths, phases, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        avg_task(task * run, last, G, S, dy, dx, C, rows, g, lengths, phases, divisors, scratch)


ENTRIES = ("max_dgrad", "avg_dgrad")

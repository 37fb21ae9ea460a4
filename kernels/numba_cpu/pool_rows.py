"""Pooling with lanes along W: regular windows over planes whose rows are adjacent in memory (or not).

Forward:  y[n, c, p] = fold over the taps t of x[n, c, p * stride - pad + t * dilation]
Gradient: dx[n, c, p * stride - pad + t * dilation] += dy[n, c, p] where t is window p's tap, or its share

A block of a plane is copied into scratch split by phases of the stride: the padded cell s * j + f along an
axis lies at place j of phase f. There every tap is a constant offset,

    phase = t * dilation % stride,   place = p + t * dilation // stride

and one flat loop over all outputs p of the block, whatever its rows are, folds a tap with unit stride for
any stride, dilation and rank. What the loop computes between the rows is never looked at.

A task is a run of blocks: (plane, `rows` rows of outputs along A) forward, (plane, `rows` places of the
first phase along A) in a gradient, which also visits the outputs around its block and keeps only its own
rows: nothing is shared, and each cell adds its taps in the same order however the blocks lie.

Geometry `g`: sizes, outs, strides, dilations, low pads, ksizes, and places per phase, of A, B, W each.
`taps` holds the offset of each tap in scratch, `shifts` (an address) that in the
flat extent. Every window has a cell. Workspace per thread: forward, the phases and one or two
rows of outputs; in a gradient the phases twice.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import MAX, SUM, beats, fill, fold, lowest, number

TAP, INDEX = STORAGE["int32"], STORAGE["int64"]


@njit(nogil=True)
def three(g, i):
    return g[i, 0], g[i, 1], g[i, 2]


@njit(nogil=True)
def geometry(g):
    """The rows of the array g as tuples."""
    return three(g, 0), three(g, 1), three(g, 2), three(g, 3), three(g, 4), three(g, 5), three(g, 6)


# ---------------------------------------------------------------- rows in and out of phases


@njit(nogil=True)
def span(phase, pad, stride, n, places):
    """(first cell of a phase, its place, how many cells of the phase there are)."""
    first = (phase - pad) % stride
    place = (first + pad) // stride
    return first, place, max(0, min((n - first + stride - 1) // stride, places - place))


@njit(nogil=True)
def split_row(X, S, x, at, step, n, pad, stride, extent, places, row, plane):
    """A row of x to its phases: the row of the first at address `row`, `plane` bytes between phases."""
    for phase in range(min(stride, extent)):
        first, place, count = span(phase, pad, stride, n, places)
        target, source, by = row + phase * plane + place * size(S), at + first * step, stride * step
        if by == 1:
            for i in range(count):
                store(S, target, i, load(X, x, source + i))
        elif by == 2:
            for i in range(count):
                store(S, target, i, load(X, x, source + 2 * i))
        else:
            for i in range(count):
                store(S, target, i, load(X, x, source + i * by))


@njit(nogil=True)
def join_row(S, Y, row, plane, y, at, step, n, pad, stride, places):
    """The phases of a row to a row of y; 0 where no window reaches."""
    reached = min(n, places * stride - pad)
    if stride == 2 and step == 1:
        join_pairs(S, Y, row, plane, y, at, reached, pad)
    else:
        for phase in range(stride):
            first, place, count = span(phase, pad, stride, n, places)
            source = row + phase * plane + place * size(S)
            if stride == 1 and step == 1:
                for i in range(count):
                    store(Y, y, at + i, load(S, source, i))
            else:
                for i in range(count):
                    store(Y, y, at + (first + i * stride) * step, load(S, source, i))
    for w in range(max(reached, 0), n):
        store(Y, y, at + w * step, zero(S))


@njit(nogil=True)
def join_pairs(S, Y, row, plane, y, at, n, pad):
    """Stride 2 with adjacent cells: both phases in one loop, so that whole vectors are stored."""
    odd = pad % 2
    if odd and n > 0:
        store(Y, y, at, load(S, row + plane, pad // 2))
    even = row + (pad + odd) // 2 * size(S)
    other, start, pairs = even + plane, at + odd, max(0, (n - odd) // 2)
    for i in range(pairs):
        store(Y, y, start + 2 * i, load(S, even, i))
        store(Y, y, start + 2 * i + 1, load(S, other, i))
    if n > odd and (n - odd) % 2:
        store(Y, y, start + 2 * pairs, load(S, even, pairs))


@njit(nogil=True)
def split_block(X, S, pads, g, x, base, low, count, rows, phases):
    """`count` places along A from `low` on to scratch; `pads` is what lies outside, filled in before along B and W."""
    sizes, strides, dilations, lows, ksizes, places = g[0], g[2], g[3], g[4], g[5], g[6]
    plane = rows * places[1] * places[2] * size(S)
    for i in range(count * strides[0]):
        place, phase_a = i // strides[0], i % strides[0]
        a = (low + place) * strides[0] + phase_a - lows[0]
        if phase_a > dilations[0] * (ksizes[0] - 1):  # no tap is of this phase
            continue
        for j in range(places[1] * strides[1]):
            b = j - lows[1]
            phase = (phase_a * strides[1] + j % strides[1]) * strides[2]
            row = phases + phase * plane + (place * places[1] + j // strides[1]) * places[2] * size(S)
            if a < 0 or a >= sizes[0]:
                for f in range(strides[2]):
                    fill(S, row + f * plane, places[2], pads)
            elif 0 <= b < sizes[1]:
                extent = dilations[2] * (ksizes[2] - 1) + 1
                at = base + a * x[3] + b * x[4]
                split_row(X, S, x[0], at, x[5], sizes[2], lows[2], strides[2], extent, places[2], row, plane)


# ---------------------------------------------------------------- one tap, or a few, of all outputs


@njit(nogil=True)
def fold_taps(kind, S, phases, taps, total, count):
    """total = the fold of all taps, three or two at a time to spare the trips through scratch."""
    t, zero_ = 0, zero(S)
    while t < len(taps):
        rest = len(taps) - t
        c0 = phases + taps[t] * size(S)
        if rest == 3 or rest > 4:
            c1, c2 = phases + taps[t + 1] * size(S), phases + taps[t + 2] * size(S)
            if t == 0:
                for i in range(count):
                    pair = fold(kind, load(S, c0, i), load(S, c1, i), zero_, 0.0)
                    store(S, total, i, fold(kind, pair, load(S, c2, i), zero_, 0.0))
            else:
                for i in range(count):
                    pair = fold(kind, load(S, c0, i), load(S, c1, i), zero_, 0.0)
                    pair = fold(kind, pair, load(S, c2, i), zero_, 0.0)
                    store(S, total, i, fold(kind, load(S, total, i), pair, zero_, 0.0))
            t += 3
        elif rest >= 2:
            c1 = phases + taps[t + 1] * size(S)
            if t == 0:
                for i in range(count):
                    store(S, total, i, fold(kind, load(S, c0, i), load(S, c1, i), zero_, 0.0))
            else:
                for i in range(count):
                    pair = fold(kind, load(S, c0, i), load(S, c1, i), zero_, 0.0)
                    store(S, total, i, fold(kind, load(S, total, i), pair, zero_, 0.0))
            t += 2
        else:
            for i in range(count):
                store(S, total, i, load(S, c0, i))
            t += 1


@njit(nogil=True)
def find_taps(S, phases, taps, best, tap, count, low):
    """The maximum over all taps and the number of the tap that has it; `tap` holds each window's first tap."""
    fill(S, best, count, low)
    t = 0
    while t < len(taps):
        c0 = phases + taps[t] * size(S)
        if t + 2 < len(taps):
            c1, c2 = phases + taps[t + 1] * size(S), phases + taps[t + 2] * size(S)
            for i in range(count):
                kept, place = load(S, best, i), load(TAP, tap, i)
                value = load(S, c0, i)
                wins = beats(value, kept)
                kept, place = value if wins else kept, t if wins else place
                value = load(S, c1, i)
                wins = beats(value, kept)
                kept, place = value if wins else kept, t + 1 if wins else place
                value = load(S, c2, i)
                wins = beats(value, kept)
                store(S, best, i, value if wins else kept)
                store(TAP, tap, i, t + 2 if wins else place)
            t += 3
        else:
            for i in range(count):
                value, kept = load(S, c0, i), load(S, best, i)
                wins = beats(value, kept)
                store(S, best, i, value if wins else kept)
                store(TAP, tap, i, t if wins else load(TAP, tap, i))
            t += 1


@njit(nogil=True)
def skipped(p, axis, g):
    """How many taps of the window of output p fall before the input along an axis."""
    before = g[4][axis] - p * g[2][axis]
    return 0 if before <= 0 else -(-before // g[3][axis])


@njit(nogil=True)
def first_taps(g, low, high, tap):
    """The number of the first tap inside the input, of every output."""
    outs, strides, lows, ksizes, places = g[1], g[2], g[4], g[5], g[6]
    for a in range(low, high):
        for b in range(outs[1]):
            row = tap + ((a - low) * places[1] + b) * places[2] * size(TAP)
            lead = (skipped(a, 0, g) * ksizes[1] + skipped(b, 1, g)) * ksizes[2]
            fill(TAP, row, outs[2], lead)
            for w in range(min(outs[2], -(-lows[2] // strides[2]))):
                store(TAP, row, w, lead + skipped(w, 2, g))


@njit(nogil=True)
def flat_count(g, rows):
    """Outputs of `rows` rows along A in the flat loop, to the last one."""
    outs, places = g[1], g[6]
    return ((rows - 1) * places[1] + outs[1] - 1) * places[2] + outs[2]


# ---------------------------------------------------------------- forward


@njit(nogil=True, error_model="numpy")
def write_values(S, Y, g, total, y, base, low, high):
    outs, places = g[1], g[6]
    for a in range(low, high):
        for b in range(outs[1]):
            row = total + ((a - low) * places[1] + b) * places[2] * size(S)
            at = base + a * y[3] + b * y[4]
            if y[5] == 1:
                for w in range(outs[2]):
                    store(Y, y[0], at + w, load(S, row, w))
            else:
                for w in range(outs[2]):
                    store(Y, y[0], at + w * y[5], load(S, row, w))


@njit(nogil=True, error_model="numpy")
def divide_rows(S, g, total, low, high, divisors):
    """Divide each output by its divisor, da[a] * db[b] * dw[w]."""
    outs, places = g[1], g[6]
    for a in range(low, high):
        for b in range(outs[1]):
            row = total + ((a - low) * places[1] + b) * places[2] * size(S)
            by, along_w = divisors[0][a] * divisors[1][b], divisors[2]
            for w in range(outs[2]):
                store(S, row, w, load(S, row, w) / number(S, by * along_w[w]))


@njit(nogil=True)
def write_indices(g, tap, shifts, y, base, low, high):
    """The flat offset of each output's tap: that of the window's start, which may lie outside, and `shifts[tap]`."""
    sizes, outs, strides, lows, places = g[0], g[1], g[2], g[4], g[6]
    for a in range(low, high):
        for b in range(outs[1]):
            row = tap + ((a - low) * places[1] + b) * places[2] * size(TAP)
            at = base + a * y[3] + b * y[4]
            start = (a * strides[0] - lows[0]) * sizes[1] + b * strides[1] - lows[1]
            start = start * sizes[2] - lows[2]
            for w in range(outs[2]):
                shift = load(INDEX, shifts, np.int64(load(TAP, row, w)))
                store(INDEX, y[0], at + w * y[5], start + w * strides[2] + shift)


@njit(nogil=True)
def outputs_of(unit, blocks, rows, outs, C):
    """(image, channel, first output row, past the last) of one block of one plane."""
    plane, low = unit // blocks, unit % blocks * rows
    return plane // C, plane % C, low, min(low + rows, outs)


@njit(nogil=True)
def max_task(first, last, X, S, x, y, indices, C, rows, layout, taps, shifts, phases):
    g = geometry(layout)
    outs, strides, places = g[1], g[2], g[6]
    held = rows + places[0] - outs[0]
    plane = held * places[1] * places[2] * size(S)
    best = phases + strides[0] * strides[1] * strides[2] * plane
    tap = best + plane
    fill(S, phases, (best - phases) // size(S), lowest(X))
    for unit in range(first, last):
        image, c, low, high = outputs_of(unit, -(-outs[0] // rows), rows, outs[0], C)
        count = flat_count(g, high - low)
        split_block(X, S, lowest(X), g, x, image * x[1] + c * x[2], low, high - low + held - rows, held, phases)
        if indices[0] == 0:
            fold_taps(MAX, S, phases, taps, best, count)
        else:
            first_taps(g, low, high, tap)
            find_taps(S, phases, taps, best, tap, count, lowest(X))
            write_indices(g, tap, shifts, indices, image * indices[1] + c * indices[2], low, high)
        write_values(S, X, g, best, y, image * y[1] + c * y[2], low, high)


@njit(nogil=True)
def avg_task(first, last, X, S, x, y, C, rows, layout, taps, divisors, phases):
    g = geometry(layout)
    outs, strides, places = g[1], g[2], g[6]
    held = rows + places[0] - outs[0]
    plane = held * places[1] * places[2] * size(S)
    total = phases + strides[0] * strides[1] * strides[2] * plane
    fill(S, phases, (total - phases) // size(S), zero(S))
    for unit in range(first, last):
        image, c, low, high = outputs_of(unit, -(-outs[0] // rows), rows, outs[0], C)
        split_block(X, S, zero(S), g, x, image * x[1] + c * x[2], low, high - low + held - rows, held, phases)
        fold_taps(SUM, S, phases, taps, total, flat_count(g, high - low))
        divide_rows(S, g, total, low, high, divisors)
        write_values(S, X, g, total, y, image * y[1] + c * y[2], low, high)


# ---------------------------------------------------------------- gradients


@njit(nogil=True)
def read_rows(Y, S, g, y, base, low, high, total):
    """Rows of dy; what lies between them in scratch stays 0."""
    outs, places = g[1], g[6]
    for a in range(low, high):
        for b in range(outs[1]):
            row = total + ((a - low) * places[1] + b) * places[2] * size(S)
            at = base + a * y[3] + b * y[4]
            if y[5] == 1:
                for w in range(outs[2]):
                    store(S, row, w, load(Y, y[0], at + w))
            else:
                for w in range(outs[2]):
                    store(S, row, w, load(Y, y[0], at + w * y[5]))


@njit(nogil=True)
def read_taps(I, g, indices, base, low, high, tap):
    """Checked indices as tap numbers, -1 for none: the one row of cells that the index lies in gives the tap."""
    sizes, outs, strides, dilations, lows, ksizes, places = g
    for a in range(low, high):
        for b in range(outs[1]):
            row = ((a - low) * places[1] + b) * places[2]
            at = base + a * indices[3] + b * indices[4]
            for w in range(outs[2]):
                flat, t = int(load(I, indices[0], at + w * indices[5])), -1
                for i in range(ksizes[0]):
                    for j in range(ksizes[1]):
                        cell_a, cell_b = (
                            a * strides[0] - lows[0] + i * dilations[0],
                            b * strides[1] - lows[1] + j * dilations[1],
                        )
                        cell = flat - (cell_a * sizes[1] + cell_b) * sizes[2]
                        if flat >= 0 and 0 <= cell_b < sizes[1] and 0 <= cell < sizes[2]:
                            into = cell - (w * strides[2] - lows[2])
                            t = (i * ksizes[1] + j) * ksizes[2] + (into if dilations[2] == 1 else into // dilations[2])
                store(TAP, tap, row + w, t)


@njit(nogil=True)
def give_taps(S, taps, share, tap, sums, count):
    """Each output's gradient to its tap's cell."""
    for t in range(len(taps)):
        target = sums + taps[t] * size(S)
        for i in range(count):
            gift = load(S, share, i) if load(TAP, tap, i) == t else zero(S)
            store(S, target, i, load(S, target, i) + gift)


@njit(nogil=True)
def give_all(S, taps, share, sums, count):
    for t in range(len(taps)):
        target = sums + taps[t] * size(S)
        for i in range(count):
            store(S, target, i, load(S, target, i) + load(S, share, i))


@njit(nogil=True)
def join_block(S, Y, g, sums, dx, base, own, stop, low, count, rows):
    """The finished places [own, stop) along A to dx; scratch holds `count` of them from `low` on."""
    sizes, strides, lows, places = g[0], g[2], g[4], g[6]
    plane = rows * places[1] * places[2] * size(S)
    for padded in range(own * strides[0], stop * strides[0]):
        a, place = padded - lows[0], padded // strides[0] - low
        if a < 0 or a >= sizes[0]:
            continue
        for b in range(sizes[1]):
            at, in_b = base + a * dx[3] + b * dx[4], b + lows[1]
            if 0 <= place < count and in_b // strides[1] < places[1]:
                phase = (padded % strides[0] * strides[1] + in_b % strides[1]) * strides[2]
                row = sums + phase * plane + (place * places[1] + in_b // strides[1]) * places[2] * size(S)
                join_row(S, Y, row, plane, dx[0], at, dx[5], sizes[2], lows[2], strides[2], places[2])
            else:
                for w in range(sizes[2]):
                    store(Y, dx[0], at + w * dx[5], zero(S))


@njit(nogil=True)
def places_of(unit, rows, g, C):
    """(image, channel, own places [own, stop) along A, outputs [low, high) that reach them)."""
    sizes, outs, strides, lows, places = g[0], g[1], g[2], g[4], g[6]
    every = -(-(sizes[0] + lows[0]) // strides[0])
    blocks = -(-every // rows)
    plane, own = unit // blocks, unit % blocks * rows
    stop, shift = min(own + rows, every), places[0] - outs[0]
    low, high = max(0, own - shift), min(outs[0], stop)
    return plane // C, plane % C, own, stop, low, high


@njit(nogil=True)
def max_back(first, last, X, SX, G, S, I, x, dy, indices, dx, C, rows, layout, taps, sums):
    g = geometry(layout)
    outs, strides, places = g[1], g[2], g[6]
    shift = places[0] - outs[0]
    held = rows + 2 * shift
    plane = held * places[1] * places[2]
    phases = strides[0] * strides[1] * strides[2]
    share = sums + phases * plane * size(S)
    tap = share + plane * size(S)
    best = tap + plane * 8
    cells = best + plane * 8
    fill(S, share, plane, zero(S))
    if indices[0] == 0:
        fill(SX, cells, phases * plane, lowest(X))
    for unit in range(first, last):
        image, c, own, stop, low, high = places_of(unit, rows, g, C)
        if low < high:
            count = flat_count(g, high - low)
            fill(S, sums, phases * plane, zero(S))
            read_rows(G, S, g, dy, image * dy[1] + c * dy[2], low, high, share)
            if indices[0] != 0:
                read_taps(I, g, indices, image * indices[1] + c * indices[2], low, high, tap)
            else:
                split_block(X, SX, lowest(X), g, x, image * x[1] + c * x[2], low, high - low + shift, held, cells)
                first_taps(g, low, high, tap)
                find_taps(SX, cells, taps, best, tap, count, lowest(X))
            give_taps(S, taps, share, tap, sums, count)
        base = image * dx[1] + c * dx[2]
        join_block(S, G, g, sums, dx, base, own, stop, low, max(0, high - low + shift), held)


@njit(nogil=True)
def avg_back(first, last, G, S, dy, dx, C, rows, layout, taps, divisors, sums):
    g = geometry(layout)
    outs, strides, places = g[1], g[2], g[6]
    shift = places[0] - outs[0]
    held = rows + 2 * shift
    plane = held * places[1] * places[2]
    phases = strides[0] * strides[1] * strides[2]
    share = sums + phases * plane * size(S)
    fill(S, share, plane, zero(S))
    for unit in range(first, last):
        image, c, own, stop, low, high = places_of(unit, rows, g, C)
        if low < high:
            fill(S, sums, phases * plane, zero(S))
            read_rows(G, S, g, dy, image * dy[1] + c * dy[2], low, high, share)
            divide_rows(S, g, share, low, high, divisors)
            give_all(S, taps, share, sums, flat_count(g, high - low))
        base = image * dx[1] + c * dx[2]
        join_block(S, G, g, sums, dx, base, own, stop, low, max(0, high - low + shift), held)


# ---------------------------------------------------------------- entry points: `units` blocks, `run` to a task


@njit(parallel=True, nogil=True)
def max_fprop(tasks, units, run, X, S, x, y, indices, C, rows, g, taps, shifts, work, work_bytes):
    """With the indices where they have an address."""
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        max_task(task * run, min(task * run + run, units), X, S, x, y, indices, C, rows, g, taps, shifts, scratch)


@njit(parallel=True, nogil=True)
def avg_fprop(tasks, units, run, X, S, x, y, C, rows, g, taps, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        avg_task(task * run, min(task * run + run, units), X, S, x, y, C, rows, g, taps, divisors, scratch)


@njit(parallel=True, nogil=True)
def max_dgrad(tasks, units, run, X, SX, G, S, I, x, dy, indices, dx, C, rows, g, taps, work, work_bytes):
    """From x, or from checked indices where they have an address."""
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        max_back(task * run, last, X, SX, G, S, I, x, dy, indices, dx, C, rows, g, taps, scratch)


@njit(parallel=True, nogil=True)
def avg_dgrad(tasks, units, run, G, S, dy, dx, C, rows, g, taps, divisors, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        avg_back(task * run, last, G, S, dy, dx, C, rows, g, taps, divisors, scratch)


ENTRIES = ("max_fprop", "avg_fprop", "max_dgrad", "avg_dgrad")

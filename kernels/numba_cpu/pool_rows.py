"""Pooling with lanes along W: regular windows over planes whose rows are adjacent in memory (or not).

y[n, c, p] = fold over the taps t of x[n, c, p * stride - pad + t * dilation]

A block of a plane is copied into scratch split by phases of the stride: the padded cell s * j + f along an
axis lies at place j of phase f. There every tap is a constant offset,

    phase = t * dilation % stride,   place = p + t * dilation // stride

and one flat loop over all outputs p of the block, whatever its rows are, folds a tap with unit stride for
any stride, dilation and rank. What the loop computes between the rows is never looked at.

A task is a run of blocks, (plane, `rows` rows of outputs along A). Geometry `g`: sizes, outs, strides,
dilations, low pads, ksizes, and places per phase, of A, B, W each. `taps` holds the offset of each tap in
scratch, `shifts` (an address) that in the flat extent. Every window has a cell. Workspace per thread: the
phases, and the outputs with their taps.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import MAX, SUM, fill, lowest, number
from fastconv.kernels.numba_cpu.pool_vectors import (
    copy,
    join,
    keep,
    newer,
    same,
    splat,
    unzip,
    whole,
)
from fastconv.kernels.numba_cpu.simd import width

INDEX = STORAGE["int64"]


@njit(nogil=True)
def room(S, count):
    """Bytes of scratch for `count` elements, which loops may overrun by two vectors."""
    return (count * size(S) + 255) // 64 * 64


@njit(nogil=True)
def row_of(g, i):
    return g[i, 0], g[i, 1], g[i, 2], g[i, 3]


@njit(nogil=True)
def geometry(g):
    """The rows of the array g as tuples."""
    return row_of(g, 0), row_of(g, 1), row_of(g, 2), row_of(g, 3), row_of(g, 4), row_of(g, 5), row_of(g, 6)


# ---------------------------------------------------------------- rows in and out of phases


@njit(nogil=True)
def span(phase, pad, stride, n, places):
    """(first cell of a phase, its place, how many cells of the phase there are)."""
    first = (phase - pad) % stride
    place = (first + pad) // stride
    return first, place, max(0, min((n - first + stride - 1) // stride, places - place))


@njit(nogil=True, forceinline=True)
def straight(X, S, x, at, step, n, line):
    """The address of n adjacent elements in the type computed in: those of x, or copies on the scratch `line`."""
    if same(X, S) and step == 1:
        return x + at * size(S)
    for i in range(n):
        store(S, line, i, load(X, x, at + i * step))
    return line


@njit(nogil=True, forceinline=True)
def split_row(X, S, x, at, step, n, pad, lead, stride, extent, places, row, plane, line):
    """A row of x to its phases: the row of the first at address `row`, `plane` bytes between phases."""
    if stride <= 2:
        n = min(n, places * stride - pad)
        source = straight(X, S, x, at, step, n, line)
        target = row + lead * size(S)
        if stride == 1:
            copy(S, source, n, target)
        elif pad == 2 * lead:
            unzip(S, source, n, target, target + plane)
        elif n > 0:  # the first cell is of the second phase
            store(S, target + plane, 0, load(S, source, 0))
            unzip(S, source + size(S), n - 1, target + size(S), target + plane + size(S))
        return
    for phase in range(min(stride, extent)):
        first, place, count = span(phase, pad, stride, n, places)
        target, source, by = row + phase * plane + place * size(S), at + first * step, stride * step
        for i in range(count):
            store(S, target, i, load(X, x, source + i * by))


@njit(nogil=True)
def split_block(X, S, pads, g, x, base, low, count, rows, phases, line):
    """`count` places along A from `low` on to scratch; `pads` is what lies outside, filled in before along B and W."""
    sizes, strides, dilations, lows, ksizes, places = g[0], g[2], g[3], g[4], g[5], g[6]
    plane = rows * places[1] * places[2] * size(S)
    extent = dilations[2] * (ksizes[2] - 1) + 1
    lead = lows[2] // strides[2]
    for phase_a in range(min(strides[0], dilations[0] * (ksizes[0] - 1) + 1)):
        for phase_b in range(strides[1]):
            phase = phases + (phase_a * strides[1] + phase_b) * strides[2] * plane
            for place_a in range(count):
                a = (low + place_a) * strides[0] + phase_a - lows[0]
                for place_b in range(places[1]):
                    b = place_b * strides[1] + phase_b - lows[1]
                    row = phase + (place_a * places[1] + place_b) * places[2] * size(S)
                    if a < 0 or a >= sizes[0]:
                        for f in range(strides[2]):
                            fill(S, row + f * plane, places[2], pads)
                    elif 0 <= b < sizes[1]:
                        at, n = base + a * x[3] + b * x[4], sizes[2]
                        split_row(
                            X, S, x[0], at, x[5], n, lows[2], lead, strides[2], extent, places[2], row, plane, line
                        )


# ---------------------------------------------------------------- one tap, or a few, of all outputs


@njit(nogil=True)
def fold_taps(kind, S, phases, taps, total, count):
    """total = the fold of all taps, two vectors of outputs at a time."""
    step = width(S) * size(S)
    for at in range(0, count * size(S), 2 * step):
        cells = phases + taps[0] * size(S) + at
        total0, total1 = whole(S, cells), whole(S, cells + step)
        for t in range(1, len(taps)):
            cells = phases + taps[t] * size(S) + at
            total0, total1 = join(kind, total0, whole(S, cells)), join(kind, total1, whole(S, cells + step))
        keep(total0, total + at)
        keep(total1, total + at + step)


@njit(nogil=True)
def find_taps(S, phases, taps, best, tap, count):
    """The maximum over all taps and the number of the tap that has it; `tap` holds each window's first tap."""
    step = width(S) * size(S)
    low = splat(S, lowest(S))
    for at in range(0, count * size(S), 2 * step):
        best0, best1, tap0, tap1 = low, low, whole(S, tap + at), whole(S, tap + at + step)
        for t in range(len(taps)):
            cells, mine = phases + taps[t] * size(S) + at, splat(S, number(S, t))
            value0, value1 = whole(S, cells), whole(S, cells + step)
            tap0, tap1 = newer(value0, best0, mine, tap0), newer(value1, best1, mine, tap1)
            best0, best1 = newer(value0, best0, value0, best0), newer(value1, best1, value1, best1)
        keep(best0, best + at)
        keep(best1, best + at + step)
        keep(tap0, tap + at)
        keep(tap1, tap + at + step)


@njit(nogil=True)
def skipped(p, axis, g):
    """How many taps of the window of output p fall before the input along an axis."""
    before = g[4][axis] - p * g[2][axis]
    return 0 if before <= 0 else -(-before // g[3][axis])


@njit(nogil=True)
def first_taps(S, g, low, high, tap):
    """The number of the first tap inside the input, of every output."""
    outs, strides, lows, ksizes, places = g[1], g[2], g[4], g[5], g[6]
    for a in range(low, high):
        for b in range(outs[1]):
            row = tap + ((a - low) * places[1] + b) * places[2] * size(S)
            lead = (skipped(a, 0, g) * ksizes[1] + skipped(b, 1, g)) * ksizes[2]
            fill(S, row, outs[2], number(S, lead))
            for w in range(min(outs[2], -(-lows[2] // strides[2]))):
                store(S, row, w, number(S, lead + skipped(w, 2, g)))


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
            if same(Y, S) and y[5] == 1:
                copy(S, row, outs[2], y[0] + at * size(S))
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
def write_indices(S, g, tap, shifts, y, base, low, high):
    """The flat offset of each output's tap: that of the window's start, which may lie outside, and `shifts[tap]`."""
    sizes, outs, strides, lows, places = g[0], g[1], g[2], g[4], g[6]
    for a in range(low, high):
        for b in range(outs[1]):
            row = tap + ((a - low) * places[1] + b) * places[2] * size(S)
            at = base + a * y[3] + b * y[4]
            start = (a * strides[0] - lows[0]) * sizes[1] + b * strides[1] - lows[1]
            start = start * sizes[2] - lows[2]
            for w in range(outs[2]):
                shift = load(INDEX, shifts, np.int64(load(S, row, w)))
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
    plane = held * places[1] * places[2]
    every = strides[0] * strides[1] * strides[2] * plane
    best = phases + room(S, every)
    tap = best + room(S, plane)
    line = tap + room(S, plane)
    fill(S, phases, every, lowest(X))
    for unit in range(first, last):
        image, c, low, high = outputs_of(unit, -(-outs[0] // rows), rows, outs[0], C)
        count = flat_count(g, high - low)
        split_block(X, S, lowest(X), g, x, image * x[1] + c * x[2], low, high - low + held - rows, held, phases, line)
        if indices[0] == 0:
            fold_taps(MAX, S, phases, taps, best, count)
        else:
            first_taps(S, g, low, high, tap)
            find_taps(S, phases, taps, best, tap, count)
            write_indices(S, g, tap, shifts, indices, image * indices[1] + c * indices[2], low, high)
        write_values(S, X, g, best, y, image * y[1] + c * y[2], low, high)


@njit(nogil=True)
def avg_task(first, last, X, S, x, y, C, rows, layout, taps, divisors, phases):
    g = geometry(layout)
    outs, strides, places = g[1], g[2], g[6]
    held = rows + places[0] - outs[0]
    plane = held * places[1] * places[2]
    every = strides[0] * strides[1] * strides[2] * plane
    total = phases + room(S, every)
    line = total + room(S, plane)
    fill(S, phases, every, zero(S))
    for unit in range(first, last):
        image, c, low, high = outputs_of(unit, -(-outs[0] // rows), rows, outs[0], C)
        split_block(X, S, zero(S), g, x, image * x[1] + c * x[2], low, high - low + held - rows, held, phases, line)
        fold_taps(SUM, S, phases, taps, total, flat_count(g, high - low))
        divide_rows(S, g, total, low, high, divisors)
        write_values(S, X, g, total, y, image * y[1] + c * y[2], low, high)


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


ENTRIES = ("max_fprop", "avg_fprop")

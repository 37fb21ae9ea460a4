"""The gradient of max pooling in planes of pixels, along the tap numbers that the forward pass kept.

dx[n, c, start[p] + cell of tap places[n, c, p]] += dy[n, c, p]

A task is a run of blocks, `rows` rows of dx along A of one plane; nothing is shared, and every cell has one order of
sums. Taps are numbered in `frame`.

gather_taps   dense windows that step by 1 or 2 along W, rows of adjacent values as they are computed in: vectors of
              cells of dx. `reach` holds per axis and cell the first output that meets it, how many do, and by which
              tap the first does. Steps of 2 give even and odd taps to even and odd places of a row.
scatter_taps  every other: a block of zeros, to which the outputs that reach it add theirs. `starts` holds per axis
              where the windows begin, padding counted; taps lie `steps` apart. Workspace per thread: what each tap
              adds to an offset and to a row, and the block in the type computed in, where dx does not hold that.
"""

from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import fill, number
from fastconv.kernels.numba_cpu.pool_vectors import (
    between,
    give_lanes,
    lower,
    matching,
    numbers,
    plus,
    same,
    splat,
    upper,
)
from fastconv.kernels.numba_cpu.simd import width

BYTE, LIST = STORAGE["uint8"], STORAGE["int64"]
TAPS = 256
NO_TAP = 255


# ---------------------------------------------------------------- gather


@njit(nogil=True, forceinline=True)
def labels(L, address, low, high, first, last):
    """The tap numbers of the lanes [low, high); others may be read up to the bounds of their plane."""
    if address >= first and address + width(L) <= last:
        return numbers(L, address, 0, width(L))
    return numbers(L, address, low, high)


@njit(nogil=True, forceinline=True)
def gather_singles(S, L, dy, places, bounds, reach_a, reach_b, strides, frame, n, pad, row, size_w):
    """A row of dx from n outputs in each row that reaches it, whose windows step by 1."""
    nothing = splat(S, zero(S))
    for w in range(0, size_w, width(S)):
        total = nothing
        for i in range(reach_a[1]):
            for j in range(reach_b[1]):
                at = (reach_a[0] + i) * dy[1] + (reach_b[0] + j) * dy[2]
                taps = places[0] + (reach_a[0] + i) * places[1] + (reach_b[0] + j) * places[2]
                tap = ((reach_a[2] - i * strides[0]) * frame[1] + reach_b[2] - j * strides[1]) * frame[2]
                for t in range(frame[2]):
                    q = w + pad - t
                    share = between(S, dy[0] + (at + q) * size(S), -q, n - q, nothing)
                    label = labels(L, taps + q, -q, n - q, bounds[0], bounds[1])
                    total = plus(total, matching(label, splat(L, number(L, tap + t)), share))
        give_lanes(total, row + w * size(S), 0, size_w - w)


@njit(nogil=True, forceinline=True)
def gather_pairs(S, L, dy, places, bounds, reach_a, reach_b, strides, frame, n, pad, row, size_w):
    """A row of dx from n outputs in each row that reaches it, whose windows step by 2."""
    nothing, lanes = splat(S, zero(S)), width(S)
    for pair in range(0, (size_w - 1 + pad) // 2 + 1, lanes):
        even = odd = nothing
        for i in range(reach_a[1]):
            for j in range(reach_b[1]):
                at = (reach_a[0] + i) * dy[1] + (reach_b[0] + j) * dy[2]
                taps = places[0] + (reach_a[0] + i) * places[1] + (reach_b[0] + j) * places[2]
                tap = ((reach_a[2] - i * strides[0]) * frame[1] + reach_b[2] - j * strides[1]) * frame[2]
                for t in range(0, frame[2], 2):
                    q = pair - t // 2
                    share = between(S, dy[0] + (at + q) * size(S), -q, n - q, nothing)
                    label = labels(L, taps + q, -q, n - q, bounds[0], bounds[1])
                    even = plus(even, matching(label, splat(L, number(L, tap + t)), share))
                    if t + 1 < frame[2]:
                        odd = plus(odd, matching(label, splat(L, number(L, tap + t + 1)), share))
        w = 2 * pair - pad
        give_lanes(lower(even, odd), row + w * size(S), -w, size_w - w)
        if size_w - w > lanes:
            give_lanes(upper(even, odd), row + (w + lanes) * size(S), -w - lanes, size_w - w - lanes)


@njit(nogil=True)
def gather_task(first, last, S, L, dy, places, dx, C, rows, reaches, strides, frame, sizes, outs, pad):
    reach_a, reach_b = reaches
    blocks = -(-sizes[0] // rows)
    for unit in range(first, last):
        plane, low = unit // blocks, unit % blocks * rows
        image, c = plane // C, plane % C
        share = dy[0] + (image * dy[1] + c * dy[2]) * size(S), dy[3], dy[4]
        taps = places[0] + image * places[1] + c * places[2], places[3], places[4]
        bounds = taps[0], taps[0] + (outs[0] - 1) * places[3] + (outs[1] - 1) * places[4] + outs[2]
        for a in range(low, min(low + rows, sizes[0])):
            by_a = reach_a[a, 0], reach_a[a, 1], reach_a[a, 2]
            for b in range(sizes[1]):
                by_b = reach_b[b, 0], reach_b[b, 1], reach_b[b, 2]
                row = dx[0] + (image * dx[1] + c * dx[2] + a * dx[3] + b * dx[4]) * size(S)
                if strides[2] == 1:
                    gather_singles(
                        S, L, share, taps, bounds, by_a, by_b, strides, frame, outs[2], pad, row, sizes[2]
                    )  # fmt: skip
                else:
                    gather_pairs(
                        S, L, share, taps, bounds, by_a, by_b, strides, frame, outs[2], pad, row, sizes[2]
                    )  # fmt: skip


@njit(parallel=True, nogil=True)
def gather_taps(tasks, units, run, S, L, dy, places, dx, C, rows, reaches, strides, frame, sizes, outs, pad):
    for task in prange(tasks):
        last = min(task * run + run, units)
        gather_task(task * run, last, S, L, dy, places, dx, C, rows, reaches, strides, frame, sizes, outs, pad)


# ---------------------------------------------------------------- scatter


@njit(nogil=True)
def list_taps(frame, steps, by, offsets, rows):
    """What each tap adds to the offset of a cell, and to its row."""
    tap = 0
    for i in range(frame[0]):
        for j in range(frame[1]):
            for k in range(frame[2]):
                store(LIST, offsets, tap, i * steps[0] * by[0] + j * steps[1] * by[1] + k * steps[2] * by[2])
                store(LIST, rows, tap, i * steps[0])
                tap += 1


@njit(nogil=True)
def clear(S, block, low, high, sizes, by):
    """Zero the rows [low, high) of a block."""
    for a in range(low, high):
        for b in range(sizes[1]):
            row = block + (a * by[0] + b * by[1]) * size(S)
            if by[2] == 1:
                fill(S, row, sizes[2], zero(S))
            else:
                for w in range(sizes[2]):
                    store(S, row, w * by[2], zero(S))


@njit(nogil=True, forceinline=True)
def add(G, S, dy, source, tap, block, at, offsets):
    target = at + load(LIST, offsets, tap)
    store(S, block, target, load(S, block, target) + number(S, load(G, dy, source)))


@njit(nogil=True)
def add_row(G, S, dy, source, places, at, block, corner, by_w, start_w, offsets):
    """Add a row of outputs whose windows lie in the block."""
    for w in range(len(start_w)):
        tap = load(BYTE, places[0], at + w * places[5])
        if tap != NO_TAP:
            add(G, S, dy[0], source + w * dy[5], tap, block, corner + start_w[w] * by_w, offsets)


@njit(nogil=True)
def add_some(G, S, dy, source, places, at, block, corner, by_w, start_w, offsets, rows, low, high):
    """`add_row` of the taps in rows [low, high) of their windows."""
    for w in range(len(start_w)):
        tap = load(BYTE, places[0], at + w * places[5])
        if tap != NO_TAP and low <= load(LIST, rows, tap) < high:
            add(G, S, dy[0], source + w * dy[5], tap, block, corner + start_w[w] * by_w, offsets)


@njit(nogil=True)
def scatter_task(first, last, G, S, dy, places, dx, C, rows, starts, steps, frame, sizes, scratch):
    start_a, start_b, start_w = starts
    blocks, extent = -(-sizes[0] // rows), (frame[0] - 1) * steps[0] + 1
    tap_offsets, tap_rows, sums = scratch, scratch + 8 * TAPS, scratch + 16 * TAPS
    by = dx[3], dx[4], dx[5]
    if not same(G, S):
        by = sizes[1] * sizes[2], sizes[2], 1
    list_taps(frame, steps, by, tap_offsets, tap_rows)
    for unit in range(first, last):
        plane, low = unit // blocks, unit % blocks * rows
        image, c, high = plane // C, plane % C, min(low + rows, sizes[0])
        base = image * dx[1] + c * dx[2]
        block = dx[0] + base * size(S) if same(G, S) else sums - low * by[0] * size(S)
        clear(S, block, low, high, sizes, by)
        for a in range(len(start_a)):
            if start_a[a] + extent <= low or start_a[a] >= high:
                continue
            inside = blocks == 1 or (start_a[a] >= low and start_a[a] + extent <= high)
            for b in range(len(start_b)):
                source = image * dy[1] + c * dy[2] + a * dy[3] + b * dy[4]
                at = image * places[1] + c * places[2] + a * places[3] + b * places[4]
                corner = start_a[a] * by[0] + start_b[b] * by[1]
                if inside:
                    add_row(G, S, dy, source, places, at, block, corner, by[2], start_w, tap_offsets)
                else:
                    add_some(
                        G, S, dy, source, places, at, block, corner, by[2], start_w, tap_offsets, tap_rows,
                        low - start_a[a], high - start_a[a],
                    )  # fmt: skip
        if not same(G, S):
            for a in range(low, high):
                for b in range(sizes[1]):
                    row = block + (a * by[0] + b * by[1]) * size(S)
                    for w in range(sizes[2]):
                        store(G, dx[0], base + a * dx[3] + b * dx[4] + w * dx[5], load(S, row, w))


@njit(parallel=True, nogil=True)
def scatter_taps(tasks, units, run, G, S, dy, places, dx, C, rows, starts, steps, frame, sizes, work, work_bytes):
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        scatter_task(task * run, last, G, S, dy, places, dx, C, rows, starts, steps, frame, sizes, scratch)


ENTRIES = ("gather_taps", "scatter_taps")

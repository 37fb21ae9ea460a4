"""The gradient of max pooling in planes of pixels, output by output along the tap numbers that the forward pass kept.

dx[n, c, start[p] + cell of tap places[n, c, p]] += dy[n, c, p]

For every window and all memory. A task is a run of blocks, `rows` rows of dx along A of one plane; nothing is shared,
and every cell has one order of sums. A block begins with zeros, to which the outputs that reach it add theirs. Taps
are numbered in `frame` and lie `steps` apart; `starts` holds per axis where the windows begin, padding counted.
Workspace per thread: what each tap adds to an offset and to a row, and the block in the type computed in, where dx
does not hold that.
"""

from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import fill, number
from fastconv.kernels.numba_cpu.pool_vectors import same

BYTE, LIST = STORAGE["uint8"], STORAGE["int64"]
TAPS = 256
NO_TAP = 255


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


ENTRIES = ("scatter_taps",)

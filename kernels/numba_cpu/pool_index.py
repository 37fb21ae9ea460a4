"""Kernels that follow indices: the gradient of a max pooling whose indices are given, max unpooling, its gradient.

    scatter:  dx[n, c, indices[n, c, p]] += dy[n, c, p], for indices that are cells of window p; -1 is none
    unpool:   x[n, c, indices[n, c, p]] = y[n, c, p], 0 elsewhere; of several, the last p stays
    gradient: dy[n, c, p] = dx[n, c, indices[n, c, p]] where p stayed, else 0

A task is (image, `lanes` channels), whole planes, so that the order in a plane is the order of p. The last two
trust their indices to be in [0, cells) and move values as unsigned integers of their size. Workspace per
thread: the gradient's one byte per cell and lane; `scatter`'s planes in float32 for 16-bit floats, and for
memory whose cells do not lie evenly.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import fill, number

SEEN = STORAGE["uint8"]


@njit(nogil=True)
def offset(y, image, c, a, b, w):
    return image * y[1] + c * y[2] + a * y[3] + b * y[4] + w * y[5]


@njit(nogil=True)
def put_window(S, I, share, indices, at, lanes, window, steps, sizes, per_row, sums, cell, lane_step):
    """Add the gradients of one output, a lane per channel, to the cells their indices name; False for a wrong index."""
    a, a_last, b, b_last, w, w_last = window
    right = True
    for lane in range(lanes):
        flat = np.int64(load(I, indices[0], at + lane * indices[2]))
        row = np.int64((flat + 0.5) * per_row[0])  # exact, and faster than a division
        in_w = flat - row * sizes[2]
        in_a = row if sizes[1] == 1 else np.int64((row + 0.5) * per_row[1])
        in_b = row - in_a * sizes[1]
        inside = a <= in_a <= a_last and b <= in_b <= b_last and w <= in_w <= w_last
        if steps[0] * steps[1] * steps[2] != 1:
            inside &= (in_a - a) % steps[0] == 0 and (in_b - b) % steps[1] == 0 and (in_w - w) % steps[2] == 0
        if inside:
            target = flat * cell + lane * lane_step
            store(S, sums, target, load(S, sums, target) + load(S, share, lane))
        elif flat != -1:
            right = False
    return right


@njit(nogil=True)
def row_is_right(I, indices, at, a, a_last, b, b_last, tw, steps, sizes, per_row):
    """Whether every index of a row of outputs is none or a cell of its window; a loop without branches."""
    wrong = 0
    for w in range(len(tw)):
        flat = np.int64(load(I, indices[0], at + w * indices[5]))
        row = np.int64((flat + 0.5) * per_row[0])  # exact, and faster than a division
        in_w = flat - row * sizes[2]
        in_a = row if sizes[1] == 1 else np.int64((row + 0.5) * per_row[1])
        in_b = row - in_a * sizes[1]
        first, last = tw[w, 0], tw[w, 0] + (tw[w, 1] - 1) * steps[2]
        outside = (in_a < a) | (in_a > a_last) | (in_b < b) | (in_b > b_last) | (in_w < first) | (in_w > last)
        if steps[0] * steps[1] * steps[2] != 1:
            outside |= ((in_a - a) % steps[0] != 0) | ((in_b - b) % steps[1] != 0) | ((in_w - first) % steps[2] != 0)
        wrong |= outside & (flat != -1)
    return wrong == 0


@njit(nogil=True)
def put_row(G, S, I, dy, source, indices, at, count, sums, cell):
    """Add a row of checked outputs of one channel."""
    for w in range(count):
        flat = np.int64(load(I, indices[0], at + w * indices[5]))
        if flat >= 0:
            value = load(S, sums, flat * cell) + number(S, load(G, dy[0], source + w * dy[5]))
            store(S, sums, flat * cell, value)


@njit(nogil=True)
def scatter_planes(task, G, S, I, dy, indices, dx, C, lanes, direct, tables, steps, sizes, scratch):
    """The planes of `lanes` channels; straight in dx where its cells lie evenly and are as they are computed in."""
    ta, tb, tw = tables
    blocks, cells = -(-C // lanes), sizes[0] * sizes[1] * sizes[2]
    image, c = task // blocks, task % blocks * lanes
    n = min(lanes, C - c)
    per_row = 1.0 / sizes[2], 1.0 / sizes[1]
    sums, cell, lane_step = scratch + room(S, lanes), lanes, 1
    if direct:
        sums, cell, lane_step = dx[0] + (image * dx[1] + c * dx[2]) * size(S), dx[5], dx[2]
    clear(S, sums, cells, cell, n, lane_step)
    right = True
    for a in range(len(ta)):
        for b in range(len(tb)):
            a_last, b_last = ta[a, 0] + (ta[a, 1] - 1) * steps[0], tb[b, 0] + (tb[b, 1] - 1) * steps[1]
            if n == 1:
                at = offset(indices, image, c, a, b, 0)
                if row_is_right(I, indices, at, ta[a, 0], a_last, tb[b, 0], b_last, tw, steps, sizes, per_row):
                    put_row(G, S, I, dy, offset(dy, image, c, a, b, 0), indices, at, len(tw), sums, cell)
                else:
                    right = False
                continue
            for w in range(len(tw)):
                source = offset(dy, image, c, a, b, w)
                for lane in range(n):
                    store(S, scratch, lane, load(G, dy[0], source + lane * dy[2]))
                window = ta[a, 0], a_last, tb[b, 0], b_last, tw[w, 0], tw[w, 0] + (tw[w, 1] - 1) * steps[2]
                at = offset(indices, image, c, a, b, w)
                right &= put_window(S, I, scratch, indices, at, n, window, steps, sizes, per_row, sums, cell, lane_step)
    if not direct:
        for k in range(cells):
            at = unravel(k, dx, sizes) + image * dx[1] + c * dx[2]
            for lane in range(n):
                store(G, dx[0], at + lane * dx[2], load(S, sums, k * lanes + lane))
    return right


@njit(nogil=True)
def room(S, count):
    return (count * size(S) + 63) // 64 * 64


@njit(nogil=True)
def clear(S, address, cells, cell, lanes, lane_step):
    """Zero the planes of some channels."""
    if cell == 1:
        for lane in range(lanes):
            fill(S, address + lane * lane_step * size(S), cells, zero(S))
    else:
        for k in range(cells):
            for lane in range(lanes):
                store(S, address, k * cell + lane * lane_step, zero(S))


@njit(parallel=True, nogil=True)
def scatter(tasks, G, S, I, dy, indices, dx, C, lanes, direct, tables, steps, sizes, status, work, work_bytes):
    """status[0] = 1 where an index is none of its window's; it is not followed."""
    for task in prange(tasks):
        scratch = work + get_thread_id() * work_bytes
        if not scatter_planes(task, G, S, I, dy, indices, dx, C, lanes, direct, tables, steps, sizes, scratch):
            status[0] = 1


@njit(nogil=True)
def unravel(flat, x, sizes):
    """The offset in a plane of x of a flat spatial offset."""
    if x[5] == 1 and x[4] == sizes[2] and x[3] == sizes[1] * sizes[2]:
        return flat
    row, w = flat // sizes[2], flat % sizes[2]
    return row // sizes[1] * x[3] + row % sizes[1] * x[4] + w * x[5]


@njit(parallel=True, nogil=True)
def unpool(X, I, y, indices, x, N, C, lanes, outs, sizes):
    blocks = -(-C // lanes)
    for task in prange(N * blocks):
        image, c = task // blocks, task % blocks * lanes
        n = min(lanes, C - c)
        plane = image * x[1] + c * x[2]
        for a in range(sizes[0]):
            for b in range(sizes[1]):
                for w in range(sizes[2]):
                    for lane in range(n):
                        store(X, x[0], plane + a * x[3] + b * x[4] + w * x[5] + lane * x[2], zero(X))
        for a in range(outs[0]):
            for b in range(outs[1]):
                for w in range(outs[2]):
                    source, at = offset(y, image, c, a, b, w), offset(indices, image, c, a, b, w)
                    for lane in range(n):
                        flat = np.int64(load(I, indices[0], at + lane * indices[2]))
                        target = plane + lane * x[2] + unravel(flat, x, sizes)
                        store(X, x[0], target, load(X, y[0], source + lane * y[2]))


@njit(parallel=True, nogil=True)
def unpool_dgrad(X, I, dx, indices, dy, N, C, lanes, outs, sizes, work, work_bytes):
    """From the last output to the first: whoever finds its cell unseen is the one that stayed."""
    blocks, cells = -(-C // lanes), sizes[0] * sizes[1] * sizes[2]
    for task in prange(N * blocks):
        seen = work + get_thread_id() * work_bytes
        image, c = task // blocks, task % blocks * lanes
        n = min(lanes, C - c)
        for k in range(cells * lanes):
            store(SEEN, seen, k, 0)
        plane = image * dx[1] + c * dx[2]
        for p in range(outs[0] * outs[1] * outs[2] - 1, -1, -1):
            a, b, w = p // outs[2] // outs[1], p // outs[2] % outs[1], p % outs[2]
            target, at = offset(dy, image, c, a, b, w), offset(indices, image, c, a, b, w)
            for lane in range(n):
                flat = np.int64(load(I, indices[0], at + lane * indices[2]))
                stayed = load(SEEN, seen, flat * lanes + lane) == 0
                store(SEEN, seen, flat * lanes + lane, 1)
                value = load(X, dx[0], plane + lane * dx[2] + unravel(flat, dx, sizes))
                store(X, dy[0], target + lane * dy[2], value if stayed else zero(X))


ENTRIES = ("scatter", "unpool", "unpool_dgrad")

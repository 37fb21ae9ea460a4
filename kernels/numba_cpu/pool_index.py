"""Kernels that follow indices: the check of a pooling's indices, max unpooling and its gradient.

    check:    indices[n, c, p] is -1 or the flat offset of a cell of window p
    unpool:   x[n, c, indices[n, c, p]] = y[n, c, p], 0 elsewhere; of several, the last p stays
    gradient: dy[n, c, p] = dx[n, c, indices[n, c, p]] where p stayed, else 0

A task of the check is (image, output row, `lanes` channels); of the others (image, `lanes` channels), whole
planes, so that the order in a plane is the order of p. Unpooling trusts its indices to be in [0, cells).
Workspace per thread: the gradient's one byte per cell and lane. Values move as unsigned
integers of their size.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import STORAGE, load, store, zero

SEEN = STORAGE["uint8"]


@njit(nogil=True)
def offset(y, image, c, a, b, w):
    return image * y[1] + c * y[2] + a * y[3] + b * y[4] + w * y[5]


@njit(nogil=True)
def belongs(flat, window, steps, sizes):
    """Whether a flat offset is a cell of a window: look for the row of the window that it lies in."""
    a, a_count, b, b_count, w, w_count = window
    found = False
    for i in range(a_count):
        for j in range(b_count):
            into = flat - (((a + i * steps[0]) * sizes[1] + b + j * steps[1]) * sizes[2] + w)
            found |= 0 <= into < w_count * steps[2] and (steps[2] == 1 or into % steps[2] == 0)
    return found


@njit(parallel=True, nogil=True)
def check(I, indices, N, C, lanes, tables, steps, sizes, status):
    """status[0] = 1 where an index is none of its window's."""
    ta, tb, tw = tables
    blocks = -(-C // lanes)
    for task in prange(N * blocks * len(ta)):
        a, rest = task % len(ta), task // len(ta)
        c, image = rest % blocks * lanes, rest // blocks
        bad = False
        for b in range(len(tb)):
            for w in range(len(tw)):
                window = ta[a, 0], ta[a, 1], tb[b, 0], tb[b, 1], tw[w, 0], tw[w, 1]
                at = offset(indices, image, c, a, b, w)
                for lane in range(min(lanes, C - c)):
                    flat = np.int64(load(I, indices[0], at + lane * indices[2]))
                    bad |= flat != -1 and not belongs(flat, window, steps, sizes)
        if bad:
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


ENTRIES = ("check", "unpool", "unpool_dgrad")

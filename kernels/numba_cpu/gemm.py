"""Tiled im2col + GEMM: the convolution that is right for every dense or grouped problem.

One geometry describes forward and backward (see `Geometry`): output pixel o of image n reads source
pixel ``o * step + offset[t]`` for each tap t,

    y[n, m, o] = act(bias[m] + sum over c, t of w[m, c, t] * x[n, c, o * step + offset[t]])

which is fprop with x as the source, and dgrad with dy as the source: one call for each residue of dx's
pixels modulo the stride, with the taps that reach it.

`gather`, per thread and task: a panel of im2col, [BLOCK rows (c, t)][up to NV vectors of pixels], is
packed into L2, and tiles of ROWS output channels are multiplied from it and stored with bias and
activation. Nothing larger than a panel is ever unfolded.

Every result belongs to one task, which adds in one order: the bits do not depend on the number of threads. The
weights' gradient is in gemm_wgrad.py.

Numbers: float32 and 16-bit floats multiply and add in float32, float64 in float64, int8 in int32.
"""

from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.memory import computed_name, load, size, store
from fastconv.kernels.numba_cpu.product import multiply
from fastconv.kernels.numba_cpu.simd import NV, ROWS, VECTOR_BYTES, get, move, move_every, put, width

BLOCK = 384  # rows (c, t) of a gather panel: 72 KiB of float32 at three vectors, beside ROWS rows of weights
BUNDLE = 4  # panels of BLOCK rows that share a pass over the weights; they fill a third of an L2 of 1 MiB
LONGEST = 32  # panels of few rows that do; their results are whole stretches of y
FEW_BLOCKS = 3  # of output channels that read pixels where they lie: packing would cost as much as it saves


class Geometry(NamedTuple):
    """Extents and element strides of one pass; spatial axes are always three."""

    N: int
    G: int
    M: int  # output channels of a group
    C: int  # source channels of a group
    P0: int
    P1: int
    P2: int
    step0: int
    step1: int
    step2: int
    xn: int
    xc: int
    x0: int
    x1: int
    x2: int
    yn: int
    ym: int
    y0: int
    y1: int
    y2: int


# Per tap: its offset along each axis, then per axis the outputs [low, high) that it meets a source pixel for.
# taps: int64[T, 9] = (offset0, offset1, offset2, low0, high0, low1, high1, low2, high2)


# ---------------------------------------------------------------- rows of pixels


def copy_row(X, S, source, step, target, low, high, count):
    """target[:count] = source[:count * step:step] inside [low, high), 0 outside; widened from X to S."""
    raise NotImplementedError("only inside kernels")


@overload(copy_row)
def _copy_row(X, S, source, step, target, low, high, count):
    def each(X, S, source, step, target, low, high, count):
        for j in range(low):
            store(S, target, j, 0)
        for j in range(low, high):
            store(S, target, j, load(X, source, j * step))
        for j in range(max(low, high), count):
            store(S, target, j, 0)

    if not X.stored == S.stored == computed_name(X.stored):
        return each
    elements = njit(nogil=True)(each)

    def vectors(X, S, source, step, target, low, high, count):
        if step == 1:
            whole = count // width(S) * width(S) if low == 0 and high >= count else 0
            for j in range(0, whole, width(S)):
                at = j * size(S)
                put(get(S, 1, 1, source + at, 0), 1, 1, target + at, 0)
            for j in range(whole, count, width(S)):
                at = j * size(S)
                move(S, source + at, target + at, low - j, high - j, count - j)
        elif step == 2:
            for j in range(0, count, width(S)):
                at = j * size(S)
                move_every(S, 2, source + 2 * at, target + at, low - j, high - j, count - j)
        elif step == 4:
            for j in range(0, count, width(S)):
                at = j * size(S)
                move_every(S, 4, source + 4 * at, target + at, low - j, high - j, count - j)
        else:
            elements(X, S, source, step, target, low, high, count)

    return vectors


@njit(nogil=True)
def locate(g, p):
    """The image and the place along each axis of output pixel p, counted over all images."""
    rest, o2 = divmod(p, g.P2)
    rest, o1 = divmod(rest, g.P1)
    n, o0 = divmod(rest, g.P0)
    return n, o0, o1, o2


@njit(nogil=True)
def adjoining(g, o0, o1, o2):
    """How many pixels of y, from this one on, lie `y2` apart: those of its row, and of the rows that go on with it."""
    count = g.P2 - o2
    if g.y1 == g.P2 * g.y2:
        count += (g.P1 - 1 - o1) * g.P2
        if g.y0 == g.P1 * g.y1:
            count += (g.P0 - 1 - o0) * g.P1 * g.P2
    return count


@njit(nogil=True)
def stretch(taps, t, o0, o1, o2, count):
    """The part [low, high) of the `count` outputs of a row from o2 on that meet the source at a tap."""
    low = min(max(taps[t, 7] - o2, 0), count)
    high = min(max(taps[t, 8] - o2, low), count)
    if taps[t, 3] <= o0 < taps[t, 4] and taps[t, 5] <= o1 < taps[t, 6]:
        return low, high
    return low, low


@njit(nogil=True)
def clear_tail(S, panel, rows, count, row_bytes):
    """Zero what the rows of a panel hold beyond their `count` pixels, up to a whole vector.

    No result needs these lanes, but whatever lies there is multiplied, and denormals take a hundred times as long.
    """
    stop = (count + width(S) - 1) // width(S) * width(S)
    for r in range(rows):
        for j in range(count, stop):
            store(S, panel + r * row_bytes, j, 0)


@njit(nogil=True)
def pack(X, S, g, taps, x, first, last, r0, r1, panel, row_bytes):
    """panel[r - r0, :] = the source pixels that outputs [first, last) meet for row r = c * T + t; 0 beyond."""
    T = taps.shape[0]
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        count = min(g.P2 - o2, last - p)
        pixel = n * g.xn + o0 * g.step0 * g.x0 + o1 * g.step1 * g.x1 + o2 * g.step2 * g.x2
        for t in range(T):
            low, high = stretch(taps, t, o0, o1, o2, count)
            offset = pixel + taps[t, 0] * g.x0 + taps[t, 1] * g.x1 + taps[t, 2] * g.x2
            for c in range((r0 - t + T - 1) // T, (r1 - t + T - 1) // T):
                target = panel + (c * T + t - r0) * row_bytes + (p - first) * size(S)
                copy_row(X, S, x + (offset + c * g.xc) * size(X), g.step2 * g.x2, target, low, high, count)
        p += count
    clear_tail(S, panel, r1 - r0, last - first, row_bytes)


# ---------------------------------------------------------------- fprop and dgrad


def lies_as(S, A, step, count, low, high, room):
    """Whether `count` pixels, whole vectors, can be read or written where they lie in an array that A stores.

    They do if they are adjacent in one row, `room` pixels from its end, and all inside [low, high).
    """
    raise NotImplementedError("only inside kernels")


@overload(lies_as)
def _lies_as(S, A, step, count, low, high, room):
    if S.stored != A.stored:
        return lambda S, A, step, count, low, high, room: False
    return lambda S, A, step, count, low, high, room: step == 1 and count <= room and low == 0 and high == count


FIRST, LAST, VECTORS, IN_X, IN_Y = range(5)  # of what `find_panels` finds


@njit(nogil=True)
def find_panels(X, S, Y, g, taps, q0, q1, panels):
    """Of each panel [q0, q1): first and last pixel, vectors, and where it begins in x and in y if it lies so; else -1.

    In x it lies as in a packed panel, in y as in a tile.
    """
    pixels = g.N * g.P0 * g.P1 * g.P2
    found = np.empty((q1 - q0, 5), np.int64)
    for q in range(q0, q1):
        first, last = panel_start(S, pixels, q, panels), panel_start(S, pixels, q + 1, panels)
        nv = (last - first + width(S) - 1) // width(S)
        one = found[q - q0]
        one[FIRST], one[LAST], one[VECTORS], one[IN_X], one[IN_Y] = first, last, nv, -1, -1
        n, o0, o1, o2 = locate(g, first)
        count = nv * width(S)
        if taps.shape[0] == 1:
            low, high = stretch(taps, 0, o0, o1, o2, count)
            if lies_as(S, X, g.step2 * g.x2, count, low, high, min(g.P2 - o2, last - first)):
                pixel = n * g.xn + (o0 * g.step0 + taps[0, 0]) * g.x0 + (o1 * g.step1 + taps[0, 1]) * g.x1
                one[IN_X] = pixel + o2 + taps[0, 2]
        if lies_as(S, Y, g.y2, count, 0, count, min(adjoining(g, o0, o1, o2), last - first)):
            one[IN_Y] = n * g.yn + o0 * g.y0 + o1 * g.y1 + o2
    return found


@njit(nogil=True)
def deliver(S, Y, g, code, c, c_row, rows, y, first, last):
    """Store `rows` output channels of the pixels [first, last) from a tile in memory, run by run."""
    if code > 1:
        for i in range(rows):
            for j in range(last - first):
                store(S, c + i * c_row, j, activate(code, load(S, c + i * c_row, j)))
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        count = min(adjoining(g, o0, o1, o2), last - p)
        pixel = n * g.yn + o0 * g.y0 + o1 * g.y1 + o2 * g.y2
        source = c + (p - first) * size(S)
        for i in range(rows):
            scatter_row(S, Y, source + i * c_row, y + (pixel + i * g.ym) * size(Y), g.y2, count)
        p += count


def scatter_row(S, Y, source, target, step, count):
    """target[:count * step:step] = source[:count], narrowed from S to Y."""
    raise NotImplementedError("only inside kernels")


@overload(scatter_row)
def _scatter_row(S, Y, source, target, step, count):
    def each(S, Y, source, target, step, count):
        for j in range(count):
            store(Y, target, j * step, load(S, source, j))

    def vectors(S, Y, source, target, step, count):
        if step == 1:
            whole = count // width(S) * width(S)
            for j in range(0, whole, width(S)):
                at = j * size(S)
                put(get(S, 1, 1, source + at, 0), 1, 1, target + at, 0)
            if whole < count:
                at = whole * size(S)
                move(S, source + at, target + at, 0, count - whole, count - whole)
        else:
            for j in range(count):
                store(Y, target, j * step, load(S, source, j))

    return vectors if S.stored == Y.stored else each


@njit(nogil=True)
def panel_start(S, pixels, panel, panels):
    """The first pixel of a panel: whole vectors are dealt out evenly, and only the last one has idle lanes."""
    vectors = (pixels + width(S) - 1) // width(S)
    return min(pixels, vectors * panel // panels * width(S))


@njit(nogil=True)
def gather_task(X, S, Y, g, taps, x, a, a_block, a_row, a_step, bias, code, y, found, b0, b1, unfolded):
    """The channel blocks [b0, b1) of a bundle of panels; x, a, bias and y begin at the group's."""
    K = g.C * taps.shape[0]
    panel_bytes = min(BLOCK, K) * NV * VECTOR_BYTES
    sums = unfolded + found.shape[0] * panel_bytes
    for r0 in range(0, K, BLOCK):
        r1 = min(K, r0 + BLOCK)
        for q in range(found.shape[0]):
            if found[q, IN_X] < 0:
                pack(
                    X, S, g, taps, x, found[q, FIRST], found[q, LAST], r0, r1, unfolded + q * panel_bytes,
                    found[q, VECTORS] * VECTOR_BYTES,
                )  # fmt: skip
        for b in range(b0, b1):
            weights = a + b * a_block + r0 * a_step
            target = y + b * ROWS * g.ym * size(Y)
            rows = min(ROWS, g.M - b * ROWS)
            for q in range(found.shape[0]):
                nv = found[q, VECTORS]
                panel, panel_row, keep = unfolded + q * panel_bytes, nv * VECTOR_BYTES, 0
                if found[q, IN_X] >= 0 and (b == b0 or b1 - b0 <= FEW_BLOCKS):
                    keep = 0 if b1 - b0 <= FEW_BLOCKS else panel
                    panel, panel_row = x + (found[q, IN_X] + r0 * g.xc) * size(X), g.xc * size(X)
                # With one block of rows the sums leave at once, and one tile's place serves all.
                c = sums + ((b - b0) * found.shape[0] + q if K > BLOCK else 0) * ROWS * NV * VECTOR_BYTES
                out, out_row = c, nv * VECTOR_BYTES
                inside = r1 == K and found[q, IN_Y] >= 0 and rows == ROWS and code <= 1
                if inside:
                    out, out_row = target + found[q, IN_Y] * size(Y), g.ym * size(Y)
                multiply(
                    S, nv, r0 == 0, r1 == K, code, r1 - r0, weights, a_step, a_row, weights + a_block, a_row,
                    panel, panel_row, keep, c, nv * VECTOR_BYTES, bias + b * ROWS * size(S), out, out_row,
                )  # fmt: skip
                if r1 == K and not inside:
                    deliver(S, Y, g, code, c, nv * VECTOR_BYTES, rows, target, found[q, FIRST], found[q, LAST])


@njit(parallel=True, nogil=True)
def gather(
    X, S, Y, g, taps, x, a, a_group, a_block, a_row, a_step, bias, code, y, panels, bundles, splits, work, work_bytes
):
    """y = act(bias + w * x); see the head of this file.

    Weights are at `a` in S: channel i of block b of group g and row r at bytes
    ``g * a_group + b * a_block + i * a_row + r * a_step``, complete blocks of ROWS channels; `bias` is
    S[G, blocks * ROWS]. Pixels are cut into `panels` of up to NV vectors, and these into `bundles`, which
    read a block's weights together. Tasks are G x `splits` of the channel blocks x `bundles`;
    each thread uses `work_bytes` at `work`: a bundle of panels, and where the rows (c, t) take
    several of them, the sums so far.
    """
    blocks = (g.M + ROWS - 1) // ROWS
    for index in prange(g.G * splits * bundles):
        task = np.int64(index)  # prange counts in uint64, which mixes with int64 to float64
        rest, bundle = divmod(task, bundles)
        group, split = divmod(rest, splits)
        found = find_panels(X, S, Y, g, taps, panels * bundle // bundles, panels * (bundle + 1) // bundles, panels)
        gather_task(
            X, S, Y, g, taps, x + group * g.C * g.xc * size(X), a + group * a_group, a_block, a_row, a_step,
            bias + group * blocks * ROWS * size(S), code, y + group * g.M * g.ym * size(Y), found,
            blocks * split // splits, blocks * (split + 1) // splits, work + get_thread_id() * work_bytes,
        )  # fmt: skip


@njit(parallel=True, nogil=True)
def pack_weights(W, S, G, M, C, T, chunk, wg, wm, wc, wt, w, a):
    """a[G, blocks, C * T, ROWS] in S, zeros beyond M, from w[g, m, c, t] with element strides; wt[T] are offsets.

    Tasks are chunks of `chunk` channels by blocks of ROWS, the blocks running fastest: so the filters
    are read about in the order in which they lie: chunk = C where a filter is contiguous, less in dgrad.
    """
    blocks, chunks = (M + ROWS - 1) // ROWS, (C + chunk - 1) // chunk
    for index in prange(G * chunks * blocks):
        rest, b = divmod(np.int64(index), blocks)
        group, part = divmod(rest, chunks)
        rows = min(ROWS, M - b * ROWS)
        for c in range(part * chunk, min(C, (part + 1) * chunk)):
            for t in range(T):
                source = w + (group * wg + b * ROWS * wm + c * wc + wt[t]) * size(W)
                target = a + (((group * blocks + b) * C + c) * T + t) * ROWS * size(S)
                if rows == ROWS:
                    for i in range(ROWS):  # unrolled
                        store(S, target, i, load(W, source, i * wm))
                else:
                    for i in range(ROWS):
                        store(S, target, i, load(W, source, i * wm) if i < rows else 0)

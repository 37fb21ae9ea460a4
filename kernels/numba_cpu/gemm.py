"""Tiled im2col + GEMM: the convolution that is right for every dense or grouped problem.

One geometry describes forward and backward (see `Geometry`): output pixel o of image n reads source
pixel ``o * step + offset[t]`` for each tap t,

    y[n, m, o] = act(bias[m] + sum over c, t of w[m, c, t] * x[n, c, o * step + offset[t]])

which is fprop with x as the source, and dgrad with dy as the source: one call for each residue of dx's
pixels modulo the stride, with the taps that reach it.

`gather`, per thread and task: a panel of im2col, [BLOCK rows (c, t)][up to NV vectors of pixels], is
packed into L2, and tiles of ROWS output channels are multiplied from it and stored with bias and
activation. Nothing larger than a panel is ever unfolded.

``dw[m, c, t] = sum over n, o of dy[n, m, o] * x[n, c, o * step + offset[t]]`` is `wgrad_dot` for many
pixels and `wgrad_outer` for few. Every result belongs to one task, which adds in one order: the bits
do not depend on the number of threads.

Numbers: float32 and 16-bit floats multiply and add in float32, float64 in float64, int8 in int32.
"""

from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.memory import computed_name, load, size, store, zero
from fastconv.kernels.numba_cpu.simd import (
    DOT_COLS,
    DOT_ROWS,
    NV,
    ROWS,
    VECTOR_BYTES,
    add_from,
    add_sums,
    add_to_rows,
    dot,
    get,
    move,
    move_every,
    outer,
    prefetch,
    put,
    relu,
    width,
    zeros,
)
from fastconv.kernels.numba_cpu.winograd_transforms import turn_in

BLOCK = 384  # rows (c, t) of a gather panel: 72 KiB of float32 at three vectors, beside ROWS rows of weights
BUNDLE = 4  # panels that share a pass over the weights; they fill a third of an L2 of 1 MiB
DOT_M = 8 * DOT_ROWS  # output channels of one task of wgrad_dot
DOT_K = 40 * DOT_COLS  # rows (c, t) of one
DOT_PIXELS = 1024  # of one panel; long enough that the sums over lanes cost little
OUTER_M = 64 * ROWS  # output channels of one task of wgrad_outer
OUTER_PIXELS = 128  # of one panel, which has SLACK more for what is written beyond its last pixel
SLACK = 16
FEW_BLOCKS = 3  # of output channels that read pixels where they lie: packing would cost as much as it saves
OUTER_RUN = 32 * OUTER_PIXELS  # pixels that are summed before their sum is added: one long sum would be inexact


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


@njit(nogil=True)
def fetch(a, a_row):
    """Ask for a line of each of ROWS rows."""
    for i in range(ROWS):
        prefetch(a + i * a_row)


@njit(nogil=True)
def multiply(S, nv, fresh, last, code, K, a, a_step, a_row, a_next, b, b_row, c, c_row, bias, out, out_row):
    """One tile of `nv` vectors: out = (c +) a @ b over K rows; with `last`, bias and ReLU while it is in registers.

    The K products are added up first: many calls round off less than one sum of them all. The lines of `a_next`,
    as many as those of ROWS rows of a, are fetched meanwhile.
    """
    lanes = width(S)
    if nv == 1:
        tile1 = zeros(S, ROWS, 1)
        for k0 in range(0, K, lanes):
            fetch(a_next + k0 * size(S), a_row)
            for k in range(k0, min(K, k0 + lanes)):
                tile1 = outer(tile1, ROWS, 1, a + k * a_step, a_row, b + k * b_row)
        if not fresh:
            tile1 = add_from(tile1, ROWS, 1, c, c_row)
        if last:
            tile1 = add_to_rows(tile1, ROWS, 1, bias)
            if code == 1:
                tile1 = relu(tile1, ROWS, 1)
        put(tile1, ROWS, 1, out, out_row)
    elif nv == 2 or NV == 2:
        tile2 = zeros(S, ROWS, 2)
        for k0 in range(0, K, lanes):
            fetch(a_next + k0 * size(S), a_row)
            for k in range(k0, min(K, k0 + lanes)):
                tile2 = outer(tile2, ROWS, 2, a + k * a_step, a_row, b + k * b_row)
        if not fresh:
            tile2 = add_from(tile2, ROWS, 2, c, c_row)
        if last:
            tile2 = add_to_rows(tile2, ROWS, 2, bias)
            if code == 1:
                tile2 = relu(tile2, ROWS, 2)
        put(tile2, ROWS, 2, out, out_row)
    else:
        tile3 = zeros(S, ROWS, 3)
        for k0 in range(0, K, lanes):
            fetch(a_next + k0 * size(S), a_row)
            for k in range(k0, min(K, k0 + lanes)):
                tile3 = outer(tile3, ROWS, 3, a + k * a_step, a_row, b + k * b_row)
        if not fresh:
            tile3 = add_from(tile3, ROWS, 3, c, c_row)
        if last:
            tile3 = add_to_rows(tile3, ROWS, 3, bias)
            if code == 1:
                tile3 = relu(tile3, ROWS, 3)
        put(tile3, ROWS, 3, out, out_row)


def unpacked(X, S, g, taps, blocks, nv, first, last):
    """Where in x the pixels [first, last) begin, if few blocks read them and they lie there as in a panel; else -1."""
    raise NotImplementedError("only inside kernels")


@overload(unpacked)
def _unpacked(X, S, g, taps, blocks, nv, first, last):
    if X.stored != S.stored:
        return lambda X, S, g, taps, blocks, nv, first, last: -1

    def whole(X, S, g, taps, blocks, nv, first, last):
        count = nv * width(S)
        if blocks > FEW_BLOCKS or taps.shape[0] > 1 or g.step2 * g.x2 != 1 or last - first < count:
            return -1
        n, o0, o1, o2 = locate(g, first)
        if o2 + count > g.P2 or stretch(taps, 0, o0, o1, o2, count) != (0, count):
            return -1
        pixel = n * g.xn + (o0 * g.step0 + taps[0, 0]) * g.x0 + (o1 * g.step1 + taps[0, 1]) * g.x1
        return pixel + o2 + taps[0, 2]

    return whole


def straight(S, Y, g, code, rows, nv, first, last):
    """Where in y the pixels [first, last) begin, if a tile can be stored there as it is; else -1."""
    raise NotImplementedError("only inside kernels")


@overload(straight)
def _straight(S, Y, g, code, rows, nv, first, last):
    if S.stored != Y.stored:
        return lambda S, Y, g, code, rows, nv, first, last: -1

    def whole(S, Y, g, code, rows, nv, first, last):
        if code > 1 or rows < ROWS or g.y2 != 1 or last - first < nv * width(S):
            return -1
        n, o0, o1, o2 = locate(g, first)
        return n * g.yn + o0 * g.y0 + o1 * g.y1 + o2 if o2 + last - first <= g.P2 else -1

    return whole


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
        count = min(g.P2 - o2, last - p)
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


@njit(parallel=True, nogil=True)
def gather(
    X, S, Y, g, taps, x, a, a_group, a_block, a_row, a_step, bias, code, y, panels, bundles, splits, work, work_bytes
):
    """y = act(bias + w * x); see the head of this file.

    Weights are at `a` in S: channel i of block b of group g and row r at bytes
    ``g * a_group + b * a_block + i * a_row + r * a_step``, complete blocks of ROWS channels; `bias` is
    S[G, blocks * ROWS]. Pixels are cut into `panels` of up to NV vectors, and these into `bundles` of up
    to BUNDLE, which read a block's weights together. Tasks are G x `bundles` x `splits` of the channel
    blocks; each thread uses `work_bytes` at `work`: a bundle of panels, and where the rows (c, t) take
    several of them, the sums so far.
    """
    K = g.C * taps.shape[0]
    pixels = g.N * g.P0 * g.P1 * g.P2
    blocks = (g.M + ROWS - 1) // ROWS
    tile_bytes = ROWS * NV * VECTOR_BYTES
    panel_bytes = min(BLOCK, K) * NV * VECTOR_BYTES
    for index in prange(g.G * bundles * splits):
        task = np.int64(index)  # prange counts in uint64, which mixes with int64 to float64
        rest, split = divmod(task, splits)
        group, bundle = divmod(rest, bundles)
        q0, q1 = panels * bundle // bundles, panels * (bundle + 1) // bundles
        b0, b1 = blocks * split // splits, blocks * (split + 1) // splits
        unfolded = work + get_thread_id() * work_bytes
        sums = unfolded + BUNDLE * panel_bytes
        source = x + group * g.C * g.xc * size(X)
        for r0 in range(0, K, BLOCK):
            r1 = min(K, r0 + BLOCK)
            for q in range(q0, q1):
                first, last = panel_start(S, pixels, q, panels), panel_start(S, pixels, q + 1, panels)
                nv = (last - first + width(S) - 1) // width(S)
                if unpacked(X, S, g, taps, b1 - b0, nv, first, last) < 0:
                    panel = unfolded + (q - q0) * panel_bytes
                    pack(X, S, g, taps, source, first, last, r0, r1, panel, nv * VECTOR_BYTES)
            for b in range(b0, b1):
                weights = a + group * a_group + b * a_block + r0 * a_step
                biases = bias + (group * blocks + b) * ROWS * size(S)
                target = y + (group * g.M + b * ROWS) * g.ym * size(Y)
                for q in range(q0, q1):
                    first, last = panel_start(S, pixels, q, panels), panel_start(S, pixels, q + 1, panels)
                    nv = (last - first + width(S) - 1) // width(S)
                    row_bytes = nv * VECTOR_BYTES
                    # With one block of rows the sums leave at once, and one tile's place serves all.
                    c = sums + ((b - b0) * BUNDLE + q - q0) * tile_bytes if K > BLOCK else sums
                    rows = min(ROWS, g.M - b * ROWS)
                    place = straight(S, Y, g, code, rows, nv, first, last) if r1 == K else -1
                    panel, panel_row = unfolded + (q - q0) * panel_bytes, row_bytes
                    pixel = unpacked(X, S, g, taps, b1 - b0, nv, first, last)
                    if pixel >= 0:
                        panel, panel_row = source + (pixel + r0 * g.xc) * size(X), g.xc * size(X)
                    out, out_row = (c, row_bytes) if place < 0 else (target + place * size(Y), g.ym * size(Y))
                    multiply(
                        S, nv, r0 == 0, r1 == K, code, r1 - r0, weights, a_step, a_row, weights + a_block,
                        panel, panel_row, c, row_bytes, biases, out, out_row,
                    )  # fmt: skip
                    if r1 == K and place < 0:
                        deliver(S, Y, g, code, c, row_bytes, rows, target, first, last)


@njit(parallel=True, nogil=True)
def pack_weights(W, S, w, G, M, C, T, chunk, wg, wm, wc, wt, a):
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


# ---------------------------------------------------------------- wgrad


@njit(nogil=True)
def pack_rows(Y, S, g, y, first, last, m0, m1, panel, row_bytes):
    """panel[m - m0, :] = dy[m] at the outputs [first, last); 0 to whole vectors."""
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        count = min(g.P2 - o2, last - p)
        pixel = n * g.yn + o0 * g.y0 + o1 * g.y1 + o2 * g.y2
        target = panel + (p - first) * size(S)
        for m in range(m0, m1):
            copy_row(Y, S, y + (pixel + m * g.ym) * size(Y), g.y2, target, 0, count, count)
            target += row_bytes
        p += count
    clear_tail(S, panel, m1 - m0, last - first, row_bytes)


@njit(nogil=True)
def clear(S, address, count):
    for j in range(count):
        store(S, address, j, 0)


@njit(nogil=True)
def add(S, sums, terms, count):
    for j in range(count):
        store(S, sums, j, load(S, sums, j) + load(S, terms, j))


@njit(nogil=True)
def clear_rows(S, panel, rows, unit, row_bytes):
    """Zero the rows beyond `rows` that complete a tile of `unit`, as `clear_tail` does lanes."""
    stop = (rows + unit - 1) // unit * unit
    clear(S, panel + rows * row_bytes, (stop - rows) * row_bytes // size(S))


@njit(nogil=True)
def put_row(S, W, sums, w, wc, wt, r0, r1):
    """Store the sums of rows r = c * T + t in [r0, r1) of one output channel, one input channel at a time."""
    T = wt.shape[0]
    if wc == T and wt[T - 1] == T - 1:  # filters lie as the rows do; offsets grow, so the last one tells
        scatter_row(S, W, sums, w + r0 * size(W), 1, r1 - r0)
        return
    c, t = divmod(r0, T)
    for r in range(r1 - r0):
        store(W, w, c * wc + wt[t], load(S, sums, r))
        t += 1
        if t == T:
            t = 0
            c += 1


@njit(parallel=True, nogil=True)
def wgrad_dot(X, Y, S, W, g, taps, x, y, w, wg, wm, wc, wt, m_tasks, k_tasks, work, work_bytes):
    """dw[group, m, c, t], at element strides and tap offsets wt[T], for many pixels.

    x is the source, y the output's gradient. Both are packed as rows of pixels and multiplied lane by
    lane; the lanes are summed once a panel. Tasks are G x `m_tasks` x `k_tasks`, of at most DOT_M
    output channels and DOT_K rows (c, t).
    """
    T = taps.shape[0]
    K = g.C * T
    pixels = g.N * g.P0 * g.P1 * g.P2
    for index in prange(g.G * m_tasks * k_tasks):
        task = np.int64(index)  # prange counts in uint64, which mixes with int64 to float64
        group, rest = divmod(task, m_tasks * k_tasks)
        m_task, k_task = divmod(rest, k_tasks)
        m0, m1 = g.M * m_task // m_tasks, g.M * (m_task + 1) // m_tasks
        r0, r1 = K * k_task // k_tasks, K * (k_task + 1) // k_tasks
        row_bytes = DOT_PIXELS * size(S)
        grads = work + get_thread_id() * work_bytes
        unfolded = grads + DOT_M * row_bytes
        sums = unfolded + DOT_K * row_bytes
        clear(S, sums, DOT_M * DOT_K)
        clear_rows(S, grads, m1 - m0, DOT_ROWS, row_bytes)
        clear_rows(S, unfolded, r1 - r0, DOT_COLS, row_bytes)
        for first in range(0, pixels, DOT_PIXELS):
            last = min(pixels, first + DOT_PIXELS)
            pack_rows(Y, S, g, y + group * g.M * g.ym * size(Y), first, last, m0, m1, grads, row_bytes)
            pack(X, S, g, taps, x + group * g.C * g.xc * size(X), first, last, r0, r1, unfolded, row_bytes)
            steps = (last - first + width(S) - 1) // width(S)
            for i in range(0, m1 - m0, DOT_ROWS):
                for j in range(0, r1 - r0, DOT_COLS):
                    tile = zeros(S, DOT_ROWS, DOT_COLS)
                    a, b = grads + i * row_bytes, unfolded + j * row_bytes
                    for k in range(steps):
                        at = k * width(S) * size(S)
                        tile = dot(tile, DOT_ROWS, DOT_COLS, a + at, row_bytes, b + at, row_bytes)
                    add_sums(tile, DOT_ROWS, DOT_COLS, sums + (i * DOT_K + j) * size(S), DOT_K * size(S))
        for i in range(m1 - m0):
            row = w + (group * wg + (m0 + i) * wm) * size(W)
            put_row(S, W, sums + i * DOT_K * size(S), row, wc, wt, r0, r1)


@njit(parallel=True, nogil=True)
def wgrad_outer(X, Y, S, W, g, taps, x, y, w, wg, wm, wc, wt, m_tasks, k_tasks, work, work_bytes):
    """As `wgrad_dot`, for few pixels, where summing lanes would cost more than the products.

    The source is packed as columns, [pixels][rows (c, t) in lanes], and tiles of ROWS output channels
    are multiplied as in `gather`. Tasks are of at most OUTER_M output channels and one tile of rows.
    """
    T = taps.shape[0]
    K = g.C * T
    pixels = g.N * g.P0 * g.P1 * g.P2
    for index in prange(g.G * m_tasks * k_tasks):
        task = np.int64(index)
        group, rest = divmod(task, m_tasks * k_tasks)
        m_task, k_task = divmod(rest, k_tasks)
        m0, m1 = g.M * m_task // m_tasks, g.M * (m_task + 1) // m_tasks
        r0, r1 = K * k_task // k_tasks, K * (k_task + 1) // k_tasks
        grad_bytes, row_bytes = OUTER_PIXELS * size(S), NV * VECTOR_BYTES
        nv = (r1 - r0 + width(S) - 1) // width(S)
        grads = work + get_thread_id() * work_bytes
        unfolded = grads + OUTER_M * grad_bytes
        sums = unfolded + (OUTER_PIXELS + SLACK) * row_bytes
        run = sums + OUTER_M * row_bytes
        count = (m1 - m0) * nv * width(S)
        clear(S, sums, count)
        clear_rows(S, grads, m1 - m0, ROWS, grad_bytes)
        clear_tail(S, unfolded, OUTER_PIXELS, r1 - r0, row_bytes)
        for first in range(0, pixels, OUTER_PIXELS):
            last = min(pixels, first + OUTER_PIXELS)
            pack_rows(Y, S, g, y + group * g.M * g.ym * size(Y), first, last, m0, m1, grads, grad_bytes)
            pack_columns(X, S, g, taps, x + group * g.C * g.xc * size(X), first, last, r0, r1, unfolded)
            for i in range(0, m1 - m0, ROWS):
                a, c = grads + i * grad_bytes, run + i * nv * VECTOR_BYTES
                multiply(
                    S, nv, first % OUTER_RUN == 0, False, 0, last - first, a, size(S), grad_bytes, a,
                    unfolded, row_bytes, c, nv * VECTOR_BYTES, 0, c, nv * VECTOR_BYTES,
                )  # fmt: skip
            if last % OUTER_RUN == 0 or last == pixels:
                add(S, sums, run, count)
        for i in range(m1 - m0):
            row = w + (group * wg + (m0 + i) * wm) * size(W)
            put_row(S, W, sums + i * nv * VECTOR_BYTES, row, wc, wt, r0, r1)


def turn_rows(X, S, source, row, rows, low, high, count, target):
    """Columns of NV vectors: `count` adjacent elements of `rows` rows `row` bytes apart, 0 outside [low, high)."""
    raise NotImplementedError("only inside kernels")


@overload(turn_rows)
def _turn_rows(X, S, source, row, rows, low, high, count, target):
    def each(X, S, source, row, rows, low, high, count, target):
        for j in range(count):
            for r in range(rows):
                value = load(X, source + r * row, j) if low <= j < high else zero(S)
                store(S, target + j * NV * VECTOR_BYTES, r, value)

    def vectors(X, S, source, row, rows, low, high, count, target):
        for r in range(0, rows, width(S)):
            for j in range(0, count, width(S)):
                at = target + j * NV * VECTOR_BYTES + r * size(S)
                turn_in(source + r * row + j * 4, row, rows - r, low - j, high - j, at, NV * VECTOR_BYTES)

    return vectors if X.stored == S.stored == "float32" else each


@njit(nogil=True)
def pack_columns(X, S, g, taps, x, first, last, r0, r1, panel):
    """panel[p - first, r - r0] = the source pixel that output p meets for row r = c * T + t."""
    T = taps.shape[0]
    lanes = NV * width(S)
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        count = min(g.P2 - o2, last - p)
        pixel = n * g.xn + o0 * g.step0 * g.x0 + o1 * g.step1 * g.x1 + o2 * g.step2 * g.x2
        for t in range(T):
            low, high = stretch(taps, t, o0, o1, o2, count)
            offset = pixel + taps[t, 0] * g.x0 + taps[t, 1] * g.x1 + taps[t, 2] * g.x2
            step = g.step2 * g.x2
            if T == 1 and step == 1:
                target = panel + (p - first) * lanes * size(S)
                turn_rows(X, S, x + (offset + r0 * g.xc) * size(X), g.xc * size(X), r1 - r0, low, high, count, target)
                continue
            for c in range((r0 - t + T - 1) // T, (r1 - t + T - 1) // T):
                target = panel + ((p - first) * lanes + c * T + t - r0) * size(S)
                source = x + (offset + c * g.xc) * size(X)
                for j in range(low):
                    store(S, target, j * lanes, 0)
                for j in range(low, high):
                    store(S, target, j * lanes, load(X, source, j * step))
                for j in range(high, count):
                    store(S, target, j * lanes, 0)
        p += count

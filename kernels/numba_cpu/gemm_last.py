"""Tiled im2col + GEMM of arrays whose channels are adjacent (NHWC): lanes are output channels.

With the geometry and the taps of gemm.py, pixel(p, t) being the source pixel that output pixel p meets at tap t,

    y[p, m] = act(bias[m] + sum over t, c of x[pixel(p, t), c] * w[t, c, m])
    dw[t, c, m] = sum over p of x[pixel(p, t), c] * dy[p, m]

`gather_last` (fprop and dgrad): tiles of ROWS pixels by up to NV vectors of channels. Scalars are broadcast from
rows (t, c) of the source: in place where a pass is pointwise, else copied, C or more adjacent ones at a time, for a
block of pixels. Vectors come from panels of filters, [rows (t, c)][NV vectors], made by `pack_panels`. DEPTH rows at
a time, so that a part of a panel stays in L1 while the pixels of a task pass by. Sums are kept in y itself where
it can hold them.

`wgrad_last`: tiles of ROWS rows (t, c) by up to NV vectors of channels, summed over blocks of pixels of which
both operands are packed, pixels first.

Every result belongs to one task, which adds in one order: the bits do not depend on the number of threads.
"""

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.gemm import copy_row, locate, scatter_row, stretch
from fastconv.kernels.numba_cpu.gemm_wgrad import OUTER_RUN, add, clear
from fastconv.kernels.numba_cpu.memory import load, size, store
from fastconv.kernels.numba_cpu.product import multiply
from fastconv.kernels.numba_cpu.simd import (
    NV,
    ROWS,
    VECTOR_BYTES,
    add_to_columns,
    get,
    outer,
    put,
    relu,
    width,
    zeros,
)
from fastconv.kernels.numba_cpu.winograd_transforms import turn_in

DEPTH = 192  # rows (t, c) of a part of a panel: 36 KiB of float32 at three vectors
BUNDLE = 16  # tiles of pixels of one task of gather_last, at most
SPLIT = 32  # panels of filters of one task of gather_last, at most
WGRAD_TILES = 32  # tiles of rows (t, c) of one task of wgrad_last, at most
WGRAD_PANELS = 4  # panels of output channels of one
WGRAD_PIXELS = 128  # of a packed block; OUTER_RUN is a multiple
ROW_PAD = 64  # bytes between packed rows, which would else compete for the same lines of a cache


@njit(nogil=True)
def panel_vector(vectors, panel, panels):
    """The first vector of a panel: they are dealt out evenly."""
    return vectors * panel // panels


@njit(nogil=True)
def pack_pixels(X, S, g, taps, run, x, first, last, r0, r1, rows, row_bytes):
    """rows[p - first, r - r0] = x[pixel(p, t), c] for r = t * C + c in [r0, r1), 0 where the tap meets none.

    Of each `run` taps the sources are adjacent: they are copied together.
    """
    T, length = taps.shape[0], run * g.C
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        count = min(g.P2 - o2, last - p)
        pixel = n * g.xn + o0 * g.step0 * g.x0 + o1 * g.step1 * g.x1 + o2 * g.step2 * g.x2
        target = rows + (p - first) * row_bytes
        for t in range(r0 // length * run, min(T, (r1 + length - 1) // length * run), run):
            e0, e1 = max(0, r0 - t * g.C), min(length, r1 - t * g.C)
            offset = pixel + taps[t, 0] * g.x0 + taps[t, 1] * g.x1 + taps[t, 2] * g.x2 + e0
            # Of a run, the first tap is the last one to enter the source and the last one is the first to leave it.
            low, _ = stretch(taps, t, o0, o1, o2, count)
            _, high = stretch(taps, t + run - 1, o0, o1, o2, count)
            for j in range(count):
                begin, end = 0, e1 - e0
                if not low <= j < high:
                    begin, end = meet(taps, t, run, o0, o1, o2 + j)
                    begin = min(max(begin * g.C - e0, 0), e1 - e0)
                    end = min(max(end * g.C - e0, begin), e1 - e0)
                source = x + (offset + j * g.step2 * g.x2) * size(X)
                at = target + j * row_bytes + (t * g.C + e0 - r0) * size(S)
                copy_row(X, S, source, 1, at, begin, end, e1 - e0)
        p += count


@njit(nogil=True)
def meet(taps, t, run, o0, o1, o2):
    """The part [begin, end) of `run` taps from t on that meet the source at an output."""
    begin = end = 0
    for u in range(t, t + run):
        low, high = stretch(taps, u, o0, o1, o2, 1)
        begin += low == high and end == 0
        end = u - t + 1 if low < high else end
    return begin, end


@njit(nogil=True)
def multiply_last(S, nv, fresh, last, code, K, a, a_row, b, c, c_row, bias):
    """One tile of `nv` vectors: c (+)= a @ b over K rows; with `last`, bias and ReLU while it is in registers."""
    if nv == 1:
        tile1 = zeros(S, ROWS, 1) if fresh else get(S, ROWS, 1, c, c_row)
        for k in range(K):
            tile1 = outer(tile1, ROWS, 1, a + k * size(S), a_row, b + k * VECTOR_BYTES)
        if last:
            tile1 = add_to_columns(tile1, ROWS, 1, bias)
            if code == 1:
                tile1 = relu(tile1, ROWS, 1)
        put(tile1, ROWS, 1, c, c_row)
    elif nv == 2 or NV == 2:
        tile2 = zeros(S, ROWS, 2) if fresh else get(S, ROWS, 2, c, c_row)
        for k in range(K):
            tile2 = outer(tile2, ROWS, 2, a + k * size(S), a_row, b + k * 2 * VECTOR_BYTES)
        if last:
            tile2 = add_to_columns(tile2, ROWS, 2, bias)
            if code == 1:
                tile2 = relu(tile2, ROWS, 2)
        put(tile2, ROWS, 2, c, c_row)
    else:
        tile3 = zeros(S, ROWS, 3) if fresh else get(S, ROWS, 3, c, c_row)
        for k in range(K):
            tile3 = outer(tile3, ROWS, 3, a + k * size(S), a_row, b + k * 3 * VECTOR_BYTES)
        if last:
            tile3 = add_to_columns(tile3, ROWS, 3, bias)
            if code == 1:
                tile3 = relu(tile3, ROWS, 3)
        put(tile3, ROWS, 3, c, c_row)


@njit(nogil=True)
def deliver_last(S, Y, g, code, sums, row_bytes, count, y, first, last):
    """Store `count` channels of the pixels [first, last) from rows of sums."""
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        stretch_end = min(last, p + g.P2 - o2)
        target = y + (n * g.yn + o0 * g.y0 + o1 * g.y1 + o2 * g.y2) * size(Y)
        while p < stretch_end:
            source = sums + (p - first) * row_bytes
            if code > 1:
                for m in range(count):
                    store(S, source, m, activate(code, load(S, source, m)))
            scatter_row(S, Y, source, target, 1, count)
            target += g.y2 * size(Y)
            p += 1


@njit(parallel=True, nogil=True)
def gather_last(X, S, Y, g, taps, run, x, x_row, a, bias, code, y, y_row, panels, bundles, splits, work, work_bytes):
    """y = act(bias + w * x); see the head of this file.

    Panels of filters are at `a`, [G][panels][rows (t, c)][vectors], and `bias` is S[G, whole vectors]. `x_row` and
    `y_row` are the bytes from one pixel to the next where rows of x are read, and sums kept in y, in place;
    else 0. Tasks are G x `splits` of the panels x `bundles` of tiles of pixels; each thread uses `work_bytes` at
    `work`: up to DEPTH rows and the sums of a bundle's pixels.
    """
    K = g.C * taps.shape[0]
    pixels = g.N * g.P0 * g.P1 * g.P2
    tiles = (pixels + ROWS - 1) // ROWS
    vectors = (g.M + width(S) - 1) // width(S)
    pack_row = min(DEPTH, K) * size(S) + ROW_PAD
    for index in prange(g.G * splits * bundles):
        task = np.int64(index)  # prange counts in uint64, which mixes with int64 to float64
        rest, bundle = divmod(task, bundles)
        group, split = divmod(rest, splits)
        first, last = tiles * bundle // bundles * ROWS, min(pixels, tiles * (bundle + 1) // bundles * ROWS)
        whole = first + (last - first) // ROWS * ROWS
        q0, q1 = panels * split // splits, panels * (split + 1) // splits
        v0, v1 = panel_vector(vectors, q0, panels), panel_vector(vectors, q1, panels)
        sums_row = (v1 - v0) * VECTOR_BYTES
        packed = work + get_thread_id() * work_bytes
        sums = packed + BUNDLE * ROWS * pack_row
        source = x + group * g.C * size(X)
        target = y + (group * g.M + v0 * width(S)) * size(Y)
        packed_from = whole if x_row else first  # the last, incomplete tile is never in place
        summed_from = whole if y_row else first
        for r0 in range(0, K, DEPTH):
            r1 = min(K, r0 + DEPTH)
            pack_pixels(X, S, g, taps, run, source, packed_from, last, r0, r1, packed, pack_row)
            if last > whole:
                for p in range(last, whole + ROWS):
                    clear(S, packed + (p - packed_from) * pack_row, r1 - r0)
            for q in range(q0, q1):
                v, v_end = panel_vector(vectors, q, panels), panel_vector(vectors, q + 1, panels)
                nv = v_end - v
                panel = a + (group * vectors * K + v * K + r0 * nv) * VECTOR_BYTES
                biases = bias + (group * vectors + v) * VECTOR_BYTES
                for p in range(first, last, ROWS):
                    rows, rows_row = packed + (p - packed_from) * pack_row, pack_row
                    if p < packed_from:
                        rows, rows_row = source + p * x_row + r0 * size(S), x_row
                    c, c_row = sums + (p - summed_from) * sums_row + (v - v0) * VECTOR_BYTES, sums_row
                    if p < summed_from:
                        c, c_row = target + p * y_row + (v - v0) * VECTOR_BYTES, y_row
                    multiply_last(S, nv, r0 == 0, r1 == K, code, r1 - r0, rows, rows_row, panel, c, c_row, biases)
        channels = min(g.M, v1 * width(S)) - v0 * width(S)
        deliver_last(S, Y, g, code, sums, sums_row, channels, target, summed_from, last)


def turn_filters(W, S, source, row, rows, count, target, step):
    """target[c, lane] = source[lane, c] for lanes `row` bytes apart, 0 beyond `rows` of them; `step` bytes per c."""
    raise NotImplementedError("only inside kernels")


@overload(turn_filters)
def _turn_filters(W, S, source, row, rows, count, target, step):
    def each(W, S, source, row, rows, count, target, step):
        for c in range(count):
            for lane in range(width(S)):
                store(S, target + c * step, lane, load(W, source + lane * row, c) if lane < rows else 0)

    tail = njit(nogil=True)(each)

    def vectors(W, S, source, row, rows, count, target, step):
        whole = count // width(S) * width(S)
        for c in range(0, whole, width(S)):
            turn_in(source + c * size(W), row, rows, 0, width(S), target + c * step, step)
        tail(W, S, source + whole * size(W), row, rows, count - whole, target + whole * step, step)

    return vectors if W.stored == S.stored == "float32" else each


@njit(parallel=True, nogil=True)
def pack_panels(W, S, G, M, C, wg, wm, wc, wt, panels, w, a):
    """a[G][panels][T * C rows][vectors], zeros beyond M, from w[g, m, c, t] with element strides; wt[T] are offsets.

    Tasks are panels by taps.
    """
    T = wt.shape[0]
    vectors = (M + width(S) - 1) // width(S)
    for index in prange(G * panels * T):
        rest, t = divmod(np.int64(index), T)
        group, q = divmod(rest, panels)
        v, v_end = panel_vector(vectors, q, panels), panel_vector(vectors, q + 1, panels)
        step = (v_end - v) * VECTOR_BYTES
        panel = a + (group * vectors + v) * C * T * VECTOR_BYTES + t * C * step
        m = v * width(S)
        source = w + (group * wg + m * wm + wt[t]) * size(W)
        lanes = (v_end - v) * width(S)
        if wm == 1:
            for c in range(C):
                copy_row(W, S, source + c * wc * size(W), 1, panel + c * step, 0, min(lanes, M - m), lanes)
        elif wc == 1:
            for j in range(v_end - v):
                at = source + j * width(S) * wm * size(W)
                turn_filters(W, S, at, wm * size(W), M - m - j * width(S), C, panel + j * VECTOR_BYTES, step)
        else:
            for c in range(C):
                for j in range(lanes):
                    store(S, panel + c * step, j, load(W, source, c * wc + j * wm) if m + j < M else 0)


# ---------------------------------------------------------------- wgrad


@njit(nogil=True)
def put_rows(S, W, sums, row_bytes, count, C, w, wm, wc, wt, r0, r1):
    """Store the sums of the rows r = t * C + c in [r0, r1), `count` channels of each."""
    for r in range(r0, r1):
        t, c = divmod(r, C)
        source = sums + (r - r0) * row_bytes
        target = w + (wt[t] + c * wc) * size(W)
        if wm == 1:
            scatter_row(S, W, source, target, 1, count)
        else:
            for m in range(count):
                store(W, target, m * wm, load(S, source, m))


@njit(nogil=True)
def pack_gradients(Y, S, g, y, first, last, count, lanes, panel):
    """panel[p - first, :] = `count` channels of dy at p, 0 to `lanes`."""
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        stretch_end = min(last, p + g.P2 - o2)
        source = y + (n * g.yn + o0 * g.y0 + o1 * g.y1 + o2 * g.y2) * size(Y)
        while p < stretch_end:
            copy_row(Y, S, source, 1, panel + (p - first) * lanes * size(S), 0, count, lanes)
            source += g.y2 * size(Y)
            p += 1


@njit(parallel=True, nogil=True)
def wgrad_last(
    X, Y, S, W, g, taps, run, x, x_row, y, y_row, w, wg, wm, wc, wt, panels, r_tasks, m_tasks, work, work_bytes
):
    """dw[group, t, c, m], at element strides and tap offsets wt[T]; x is the source, y the output's gradient.

    `x_row` and `y_row` are the bytes from one pixel to the next where rows of either are read in place; else 0. What
    is so read of y is packed by the first tile that reads it. Tasks are G x `r_tasks` of the tiles of rows (t, c) x
    `m_tasks` of the panels; each thread uses `work_bytes` at `work`: both operands of a block of pixels, the sums of
    a run of pixels and those of all.
    """
    K = g.C * taps.shape[0]
    tiles = (K + ROWS - 1) // ROWS
    pixels = g.N * g.P0 * g.P1 * g.P2
    vectors = (g.M + width(S) - 1) // width(S)
    pack_row = WGRAD_TILES * ROWS * size(S) + ROW_PAD
    for index in prange(g.G * r_tasks * m_tasks):
        task = np.int64(index)
        rest, m_task = divmod(task, m_tasks)
        group, r_task = divmod(rest, r_tasks)
        r0, r1 = tiles * r_task // r_tasks * ROWS, min(K, tiles * (r_task + 1) // r_tasks * ROWS)
        r_end = (r1 + ROWS - 1) // ROWS * ROWS
        q0, q1 = panels * m_task // m_tasks, panels * (m_task + 1) // m_tasks
        v0, v1 = panel_vector(vectors, q0, panels), panel_vector(vectors, q1, panels)
        sums_row = (v1 - v0) * VECTOR_BYTES
        packed = work + get_thread_id() * work_bytes
        panel = packed + WGRAD_PIXELS * pack_row
        sums = panel + WGRAD_PIXELS * NV * VECTOR_BYTES
        part = sums + WGRAD_TILES * ROWS * WGRAD_PANELS * NV * VECTOR_BYTES
        for j in range(WGRAD_PIXELS):
            clear(S, packed + j * pack_row + (r1 - r0) * size(S), r_end - r1)
        for first in range(0, pixels, WGRAD_PIXELS):
            last = min(pixels, first + WGRAD_PIXELS)
            source = x + group * g.C * size(X)
            rows, rows_step = packed, pack_row
            if x_row and r1 == r_end:
                rows, rows_step = source + first * x_row + r0 * size(X), x_row
            else:
                pack_pixels(X, S, g, taps, run, source, first, last, r0, r1, packed, pack_row)
            for q in range(q0, q1):
                v, v_end = panel_vector(vectors, q, panels), panel_vector(vectors, q + 1, panels)
                lanes, nv = (v_end - v) * width(S), v_end - v
                grads = y + (group * g.M + v * width(S)) * size(Y)
                if not y_row:
                    pack_gradients(Y, S, g, grads, first, last, min(lanes, g.M - v * width(S)), lanes, panel)
                for i in range(0, r_end - r0, ROWS):
                    a, c = rows + i * size(S), part + i * sums_row + (v - v0) * VECTOR_BYTES
                    b, b_row, keep = panel, nv * VECTOR_BYTES, 0
                    if y_row and i == 0:
                        b, b_row, keep = grads + first * y_row, y_row, panel
                    multiply(
                        S, nv, first % OUTER_RUN == 0, False, 0, last - first, a, rows_step, size(S), a, size(S),
                        b, b_row, keep, c, sums_row, 0, c, sums_row,
                    )  # fmt: skip
            if last % OUTER_RUN == 0 or last == pixels:
                add(S, sums, part, (r_end - r0) * (v1 - v0) * width(S), last <= OUTER_RUN)
        channels = min(g.M, v1 * width(S)) - v0 * width(S)
        target = w + (group * wg + v0 * width(S) * wm) * size(W)
        put_rows(S, W, sums, sums_row, channels, g.C, target, wm, wc, wt, r0, r1)

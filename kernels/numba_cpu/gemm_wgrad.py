"""The gradient to the weights as a product of matrices, for every dense or grouped problem.

    dw[m, c, t] = sum over n, o of dy[n, m, o] * x[n, c, o * step + offset[t]]

with gemm.py's geometry and taps: `wgrad_dot` for many pixels, `wgrad_outer` for few and for 1x1 filters. Every
result belongs to one task, which adds in one order: the bits do not depend on the number of threads.
"""

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.gemm import adjoining, clear_tail, copy_row, lies_as, locate, pack, scatter_row, stretch
from fastconv.kernels.numba_cpu.memory import load, size, store, zero
from fastconv.kernels.numba_cpu.product import multiply
from fastconv.kernels.numba_cpu.simd import DOT_COLS, DOT_ROWS, NV, ROWS, VECTOR_BYTES, add_sums, dot, width, zeros
from fastconv.kernels.numba_cpu.winograd_transforms import turn_in

DOT_M = 8 * DOT_ROWS  # output channels of one task of wgrad_dot
DOT_K = 40 * DOT_COLS  # rows (c, t) of one
DOT_PIXELS = 1024  # of one panel; long enough that the sums over lanes cost little
DOT_ROW = DOT_PIXELS + 16  # elements from row to row; a power of two would put all rows into one set of the cache
OUTER_M = 64 * ROWS  # output channels of one task of wgrad_outer
OUTER_PIXELS = 128  # of one panel, which has SLACK more for what is written beyond its last pixel
SLACK = 16
STAGE_ROW = OUTER_PIXELS + 16  # elements from row to row of what waits to be turned
OUTER_RUN = 32 * OUTER_PIXELS  # pixels that are summed before their sum is added: one long sum would be inexact


@njit(nogil=True)
def pack_rows(Y, S, g, y, first, last, rows, panel, row_bytes):
    """panel[m, :] = dy[m] at the outputs [first, last) for `rows` channels; 0 to whole vectors."""
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        count = min(adjoining(g, o0, o1, o2), last - p)
        pixel = n * g.yn + o0 * g.y0 + o1 * g.y1 + o2 * g.y2
        target = panel + (p - first) * size(S)
        for m in range(rows):
            copy_row(Y, S, y + (pixel + m * g.ym) * size(Y), g.y2, target, 0, count, count)
            target += row_bytes
        p += count
    clear_tail(S, panel, rows, last - first, row_bytes)


@njit(nogil=True)
def clear(S, address, count):
    for j in range(count):
        store(S, address, j, 0)


@njit(nogil=True)
def add(S, sums, terms, count, fresh):
    """sums[:count] += terms, or with `fresh` = terms."""
    for j in range(count):
        store(S, sums, j, load(S, terms, j) if fresh else load(S, sums, j) + load(S, terms, j))


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
        row_bytes = DOT_ROW * size(S)
        grads = work + get_thread_id() * work_bytes
        unfolded = grads + DOT_M * row_bytes
        sums = unfolded + DOT_K * row_bytes
        clear(S, sums, DOT_M * DOT_K)
        clear_rows(S, grads, m1 - m0, DOT_ROWS, row_bytes)
        clear_rows(S, unfolded, r1 - r0, DOT_COLS, row_bytes)
        for first in range(0, pixels, DOT_PIXELS):
            last = min(pixels, first + DOT_PIXELS)
            pack_rows(Y, S, g, y + (group * g.M + m0) * g.ym * size(Y), first, last, m1 - m0, grads, row_bytes)
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


@njit(nogil=True)
def rows_in_place(Y, S, g, y, first, last, rows):
    """Where in dy the pixels [first, last) of complete tiles of `rows` rows lie next to each other; else -1."""
    n, o0, o1, o2 = locate(g, first)
    count = last - first
    if rows % ROWS == 0 and lies_as(S, Y, g.y2, count, 0, count, adjoining(g, o0, o1, o2)):
        return n * g.yn + o0 * g.y0 + o1 * g.y1 + o2
    return -1


@njit(parallel=True, nogil=True)
def wgrad_outer(X, Y, S, W, g, taps, x, y, w, wg, wm, wc, wt, m_tasks, k_tasks, work, work_bytes):
    """As `wgrad_dot`, for few pixels, where summing lanes would cost more than the products.

    The source is packed as columns, [pixels][rows (c, t) in lanes], and tiles of ROWS output channels
    are multiplied as in `gather`. Tasks are of at most OUTER_M output channels and one tile of rows.
    """
    T = taps.shape[0]
    K = g.C * T
    pixels = g.N * g.P0 * g.P1 * g.P2
    vectors = (K + width(S) - 1) // width(S)
    for index in prange(g.G * m_tasks * k_tasks):
        task = np.int64(index)
        group, rest = divmod(task, m_tasks * k_tasks)
        m_task, k_task = divmod(rest, k_tasks)
        m0, m1 = g.M * m_task // m_tasks, g.M * (m_task + 1) // m_tasks
        r0 = vectors * k_task // k_tasks * width(S)
        r1 = min(K, vectors * (k_task + 1) // k_tasks * width(S))
        nv = (r1 - r0 + width(S) - 1) // width(S)
        grad_bytes, row_bytes = OUTER_PIXELS * size(S), NV * VECTOR_BYTES
        tile_row = nv * VECTOR_BYTES
        grads = work + get_thread_id() * work_bytes
        unfolded = grads + OUTER_M * grad_bytes
        sums = unfolded + (OUTER_PIXELS + SLACK) * row_bytes
        run = sums + OUTER_M * row_bytes
        stage = run + OUTER_M * row_bytes
        source = x + group * g.C * g.xc * size(X)
        dy = y + (group * g.M + m0) * g.ym * size(Y)
        dw = w + (group * wg + m0 * wm) * size(W)
        adjacent = wc == T and wt[T - 1] == T - 1  # filters lie as the rows do; offsets grow, so the last one tells
        one_run = pixels <= OUTER_RUN
        straight = one_run and adjacent and (m1 - m0) % ROWS == 0 and lies_as(S, W, 1, nv * width(S), 0, r1 - r0, K)
        clear_rows(S, grads, m1 - m0, ROWS, grad_bytes)
        clear_tail(S, unfolded, OUTER_PIXELS, r1 - r0, row_bytes)
        for first in range(0, pixels, OUTER_PIXELS):
            last = min(pixels, first + OUTER_PIXELS)
            a, a_row = grads, grad_bytes
            place = rows_in_place(Y, S, g, y, first, last, m1 - m0)
            if place < 0:
                pack_rows(Y, S, g, dy, first, last, m1 - m0, grads, grad_bytes)
            else:
                a, a_row = dy + place * size(Y), g.ym * size(Y)
            pack_columns(X, S, g, taps, source, first, last, r0, r1, unfolded, stage)
            for i in range(0, m1 - m0, ROWS):
                c = run + i * tile_row
                out, out_row = c, tile_row
                if straight and last == pixels:
                    out, out_row = dw + (i * wm + r0) * size(W), wm * size(W)
                multiply(
                    S, nv, first % OUTER_RUN == 0, False, 0, last - first, a + i * a_row, size(S), a_row,
                    a + (i + ROWS) * a_row, a_row, unfolded, row_bytes, 0, c, tile_row, 0, out, out_row,
                )  # fmt: skip
            if not one_run and (last % OUTER_RUN == 0 or last == pixels):
                add(S, sums, run, (m1 - m0) * nv * width(S), last <= OUTER_RUN)
        if not straight:
            for i in range(m1 - m0):
                put_row(S, W, (run if one_run else sums) + i * tile_row, dw + i * wm * size(W), wc, wt, r0, r1)


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
def pack_columns(X, S, g, taps, x, first, last, r0, r1, panel, stage):
    """panel[p - first, r - r0] = the source pixel that output p meets for row r = c * T + t.

    Adjacent pixels under one tap are turned straight from the source, others from rows packed at `stage`.
    """
    lanes = NV * width(S)
    if taps.shape[0] > 1 or g.step2 * g.x2 != 1:
        pack(X, S, g, taps, x, first, last, r0, r1, stage, STAGE_ROW * size(S))
        turn_rows(S, S, stage, STAGE_ROW * size(S), r1 - r0, 0, last - first, last - first, panel)
        return
    p = first
    while p < last:
        n, o0, o1, o2 = locate(g, p)
        count = min(g.P2 - o2, last - p)
        pixel = n * g.xn + (o0 * g.step0 + taps[0, 0]) * g.x0 + (o1 * g.step1 + taps[0, 1]) * g.x1 + o2 + taps[0, 2]
        low, high = stretch(taps, 0, o0, o1, o2, count)
        source = x + (pixel + r0 * g.xc) * size(X)
        turn_rows(X, S, source, g.xc * size(X), r1 - r0, low, high, count, panel + (p - first) * lanes * size(S))
        p += count

"""Depthwise convolution: one filter per channel, so that nothing is shared and memory sets the pace.

    y[n, c, o] = act(bias[c] + sum over t of w[c, t] * x[n, c, o * step + offset[t]])

Geometry and taps are gemm.py's, with G channels of one each; dgrad is the same with dy as the source.

`planes`, for arrays whose last axis is contiguous: a task is a row of outputs of one channel, the sums
of a row lie in the thread's workspace, and each tap adds a scaled stretch of a source row.
`channels`, for channels-last arrays: a task is a row of outputs, and each tap adds w[t, :] * x[:] over
the channels of a pixel. The gradients to the weights sum a tap's products in one order.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.memory import load, size, store, zero

LANES = 64  # channels at a time: four vectors of float32 with AVX-512
REASSOCIATE = {"reassoc", "contract", "nsz"}  # lets a sum run in several lanes; NaN and infinity keep their meaning


@njit(nogil=True, fastmath=REASSOCIATE)
def add_scaled(X, S, sums, source, step, weight, low, high):
    """sums[low:high] += weight * source[low * step : high * step : step]"""
    if step == 1:
        for j in range(low, high):
            store(S, sums, j, load(S, sums, j) + weight * load(X, source, j))
    elif step == 2:
        for j in range(low, high):
            store(S, sums, j, load(S, sums, j) + weight * load(X, source, 2 * j))
    else:
        for j in range(low, high):
            store(S, sums, j, load(S, sums, j) + weight * load(X, source, j * step))


@njit(nogil=True)
def finish(S, Y, code, sums, y, step, count):
    """y[:count * step:step] = act(sums)"""
    if code == 0:
        for j in range(count):
            store(Y, y, j * step, load(S, sums, j))
    else:
        for j in range(count):
            store(Y, y, j * step, activate(code, load(S, sums, j)))


@njit(nogil=True)
def meets(taps, t, o0, o1):
    return taps[t, 3] <= o0 < taps[t, 4] and taps[t, 5] <= o1 < taps[t, 6]


@njit(parallel=True, nogil=True)
def planes(X, S, Y, g, taps, x, w, bias, code, y, work, work_bytes):
    """Rows of one channel; `w` is S[G, T] and `bias` S[G]. Each thread sums a row of P2 at `work`."""
    T = taps.shape[0]
    for index in prange(g.N * g.G):
        n, c = divmod(np.int64(index), g.G)
        sums = work + get_thread_id() * work_bytes
        for row in range(g.P0 * g.P1):
            o0, o1 = divmod(row, g.P1)
            for j in range(g.P2):
                store(S, sums, j, load(S, bias, c))
            source = n * g.xn + c * g.xc + o0 * g.step0 * g.x0 + o1 * g.step1 * g.x1
            for t in range(T):
                if meets(taps, t, o0, o1):
                    offset = source + taps[t, 0] * g.x0 + taps[t, 1] * g.x1 + taps[t, 2] * g.x2
                    weight = load(S, w, c * T + t)
                    add_scaled(X, S, sums, x + offset * size(X), g.step2 * g.x2, weight, taps[t, 7], taps[t, 8])
            target = n * g.yn + c * g.ym + o0 * g.y0 + o1 * g.y1
            finish(S, Y, code, sums, y + target * size(Y), g.y2, g.P2)


@njit(nogil=True, fastmath=REASSOCIATE)
def add_products(X, S, sums, source, weights, count):
    """sums[:count] += weights[:count] * source[:count]"""
    for j in range(count):
        store(S, sums, j, load(S, sums, j) + load(S, weights, j) * load(X, source, j))


@njit(parallel=True, nogil=True)
def channels(X, S, Y, g, taps, x, w, bias, code, y, work, work_bytes):
    """Pixels of all channels, LANES at a time; `w` is S[T, G] and `bias` S[G]; x and y have channels last."""
    T = taps.shape[0]
    for index in prange(g.N * g.P0 * g.P1):
        rest, o1 = divmod(np.int64(index), g.P1)
        n, o0 = divmod(rest, g.P0)
        sums = work + get_thread_id() * work_bytes
        for o2 in range(g.P2):
            source = n * g.xn + o0 * g.step0 * g.x0 + o1 * g.step1 * g.x1 + o2 * g.step2 * g.x2
            target = n * g.yn + o0 * g.y0 + o1 * g.y1 + o2 * g.y2
            for c in range(0, g.G, LANES):
                count = min(LANES, g.G - c)
                for j in range(count):
                    store(S, sums, j, load(S, bias, c + j))
                for t in range(T):
                    if meets(taps, t, o0, o1) and taps[t, 7] <= o2 < taps[t, 8]:
                        offset = source + c + taps[t, 0] * g.x0 + taps[t, 1] * g.x1 + taps[t, 2] * g.x2
                        add_products(X, S, sums, x + offset * size(X), w + (t * g.G + c) * size(S), count)
                finish(S, Y, code, sums, y + (target + c) * size(Y), 1, count)


# ---------------------------------------------------------------- the gradient to the weights


@njit(nogil=True, fastmath=REASSOCIATE)
def dot_row(X, Y, S, x, x_step, y, y_step, low, high):
    """sum over j in [low, high) of x[j * x_step] * y[j * y_step]"""
    total = zero(S)
    if x_step == 1 and y_step == 1:
        for j in range(low, high):
            total += load(X, x, j) * load(Y, y, j)
    else:
        for j in range(low, high):
            total += load(X, x, j * x_step) * load(Y, y, j * y_step)
    return total


@njit(parallel=True, nogil=True)
def wgrad_planes(X, Y, S, W, g, taps, x, y, w, wm, wt):
    """dw[c, t] at element stride wm and tap offsets wt[T]; a task is one channel's tap."""
    T = taps.shape[0]
    for index in prange(g.G * T):
        c, t = divmod(np.int64(index), T)
        total = zero(S)
        for n in range(g.N):
            for o0 in range(taps[t, 3], taps[t, 4]):
                for o1 in range(taps[t, 5], taps[t, 6]):
                    source = n * g.xn + c * g.xc + (o0 * g.step0 + taps[t, 0]) * g.x0
                    source += (o1 * g.step1 + taps[t, 1]) * g.x1 + taps[t, 2] * g.x2
                    grad = n * g.yn + c * g.ym + o0 * g.y0 + o1 * g.y1
                    total += dot_row(
                        X, Y, S, x + source * size(X), g.step2 * g.x2, y + grad * size(Y), g.y2, taps[t, 7], taps[t, 8]
                    )
        store(W, w, c * wm + wt[t], total)


@njit(nogil=True, fastmath=REASSOCIATE)
def add_pixel(X, Y, S, sums, x, y, count):
    """sums[:count] += x[:count] * y[:count]"""
    for j in range(count):
        store(S, sums, j, load(S, sums, j) + load(X, x, j) * load(Y, y, j))


@njit(parallel=True, nogil=True)
def wgrad_channels(X, Y, S, W, g, taps, x, y, w, wm, wt, work, work_bytes):
    """dw[c, t] for channels-last arrays; a task is a tap of LANES channels, summed at `work`."""
    T = taps.shape[0]
    parts = (g.G + LANES - 1) // LANES
    for index in prange(parts * T):
        part, t = divmod(np.int64(index), T)
        c, count = part * LANES, min(LANES, g.G - part * LANES)
        sums = work + get_thread_id() * work_bytes
        for j in range(count):
            store(S, sums, j, zero(S))
        for n in range(g.N):
            for o0 in range(taps[t, 3], taps[t, 4]):
                for o1 in range(taps[t, 5], taps[t, 6]):
                    source = n * g.xn + c + (o0 * g.step0 + taps[t, 0]) * g.x0
                    source += (o1 * g.step1 + taps[t, 1]) * g.x1 + taps[t, 2] * g.x2
                    grad = n * g.yn + c + o0 * g.y0 + o1 * g.y1
                    for o2 in range(taps[t, 7], taps[t, 8]):
                        at = x + (source + o2 * g.step2 * g.x2) * size(X)
                        add_pixel(X, Y, S, sums, at, y + (grad + o2 * g.y2) * size(Y), count)
        for j in range(count):
            store(W, w, (c + j) * wm + wt[t], load(S, sums, j))

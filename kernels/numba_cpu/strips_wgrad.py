"""The gradient to the weights from strips, without im2col: for groups of few channels, and for images.

    dw[m, c, r, s] = sum over n, q, o of dy[n, m, q, o] * x[n, c, q * step1 + offset1[r], o * step2 + offset2[s]]

A strip holds some rows of outputs of dy and the rows of x that they read, padded with the border's zeros, both
turned so that channels are adjacent: x[row, column, c], dy[q, o, m]. There, for one row of taps, (s, c) is one run of
adjacent elements that starts anew at each pixel, and a step of the register tile is the outer product of `rows`
of them, broadcast, and of `nv` vectors of filters:

    sums[r, (s, c), m] += x[q * step1 + r, o * step2 + (s, c)] * dy[q, o, m]

A group of fewer filters than a vector has lanes shares it with others: lanes are (group, filter), and each element of
x is a vector, too, that holds the channel of each lane's group. It is spread once and read for every tap.

Numbers: every tap of every pixel is one term; strips are added in their order, and parts of them in the order of the
parts, whose number does not depend on the threads.
"""

from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.gemm import copy_row, scatter_row
from fastconv.kernels.numba_cpu.gemm_wgrad import add, clear
from fastconv.kernels.numba_cpu.memory import load, size, store
from fastconv.kernels.numba_cpu.simd import VECTOR_BYTES, add_from, dot, outer, width, zeros
from fastconv.kernels.numba_cpu.strips import turn_results
from fastconv.kernels.numba_cpu.strips_vectors import put_lanes, spread

SCALAR_CHANNELS = 4  # up to which elements are turned one by one


class Strip(NamedTuple):
    """How strips are cut and packed."""

    N: int
    G: int
    M: int  # filters of a group
    C: int  # channels of a group
    R: int  # taps along each axis
    S: int
    rows: int  # of outputs in a strip
    height: int  # of its rows of x
    pitch: int  # pixels of a row of x
    channels: int  # elements of a packed pixel of x
    bunch: int  # groups in a vector
    P: int  # outputs along each axis
    Q: int
    H: int
    W: int
    first1: int  # the offset of the first tap
    first2: int
    step1: int
    step2: int
    dilation1: int
    dilation2: int
    xn: int
    xc: int
    x1: int
    x2: int
    yn: int
    ym: int
    y1: int
    y2: int


# ---------------------------------------------------------------- packing


@njit(nogil=True)
def turn_channels(X, S, source, row, pixel, count, channels, target, step):
    """target[j * step + c] = source[c * row + j * pixel] for j < count and c < channels."""
    if row == 1:
        for j in range(count):
            at = target + j * step * size(S)
            copy_row(X, S, source + j * pixel * size(X), 1, at, 0, channels, channels)
    elif pixel == 1 and channels > SCALAR_CHANNELS:
        turn_results(X, S, source, row * size(X), channels, count, target, step)
    else:
        for j in range(count):
            for c in range(channels):
                store(S, target, j * step + c, load(X, source, j * pixel + c * row))


@njit(nogil=True)
def turn_groups(X, S, share, source, row, pixel, count, groups, apart, channels, target, step):
    """`turn_channels` of several groups, whose channels are `apart`, to runs of `share` elements."""
    if channels == apart == share:
        turn_channels(X, S, source, row, pixel, count, groups * channels, target, step)
        return
    for g in range(groups):
        at = source + g * apart * row * size(X)
        turn_channels(X, S, at, row, pixel, count, channels, target + g * share * size(S), step)


def lay_pixels(F, X, S, k, source, count, groups, target, stage):
    """`count` pixels of a row of x, as the tile reads them."""
    raise NotImplementedError("only inside kernels")


@overload(lay_pixels)
def _lay_pixels(F, X, S, k, source, count, groups, target, stage):
    share = F.tile.share

    def alone(F, X, S, k, source, count, groups, target, stage):
        turn_channels(X, S, source, k.xc, k.x2, count, k.C, target, k.channels)

    def shared(F, X, S, k, source, count, groups, target, stage):
        for c in range(0, k.C, share):
            at = source + c * k.xc * size(X)
            turn_groups(X, S, share, at, k.xc, k.x2, count, groups, k.C, min(share, k.C - c), stage, width(S))
            for j in range(count):
                spread(S, share, stage + j * VECTOR_BYTES, target + (j * k.channels + c) * VECTOR_BYTES)

    return shared if share else alone


@njit(nogil=True)
def pack_source(F, X, S, k, unit, x, q0, groups, strip, stage):
    """strip[i, j, c] = x[c, q0 * step1 + first1 + i, first2 + j], zeros beyond x; elements of `unit` bytes."""
    top = q0 * k.step1 + k.first1
    low1 = min(max(0, -top), k.height)
    high1 = max(low1, min(k.height, k.H - top))
    low2 = min(max(0, -k.first2), k.pitch)
    high2 = max(low2, min(k.pitch, k.W - k.first2))
    pixel = k.channels * unit
    line = k.pitch * pixel
    clear(S, strip, low1 * line // size(S))
    for i in range(low1, high1):
        at = strip + i * line
        clear(S, at, low2 * pixel // size(S))
        source = x + ((top + i) * k.x1 + (k.first2 + low2) * k.x2) * size(X)
        lay_pixels(F, X, S, k, source, high2 - low2, groups, at + low2 * pixel, stage)
        clear(S, at + high2 * pixel, (k.pitch - high2) * pixel // size(S))
    clear(S, strip + high1 * line, (k.height - high1) * line // size(S))


def pack_grads(F, Y, S, k, y, rows, groups, filters, grads):
    """grads[q, o, m] = dy[m, q, o], `nv` vectors to a pixel."""
    raise NotImplementedError("only inside kernels")


@overload(pack_grads)
def _pack_grads(F, Y, S, k, y, rows, groups, filters, grads):
    nv, share = F.tile.nv, F.tile.share

    def packed(F, Y, S, k, y, rows, groups, filters, grads):
        step = nv * width(S)
        for q in range(rows):
            at, line = grads + q * k.Q * nv * VECTOR_BYTES, y + q * k.y1 * size(Y)
            turn_groups(Y, S, share, line, k.ym, k.y2, k.Q, groups, k.M, filters, at, step)

    return packed


# ---------------------------------------------------------------- tiles


def multiply_pixels(F, S, fresh, rows, count, a, a_line, a_step, b, b_line, b_step, sums, kept):
    """(sums +) the products of `rows` lines of `count` pixels; the first `kept` rows of the tile are stored."""
    raise NotImplementedError("only inside kernels")


@overload(multiply_pixels)
def _multiply_pixels(F, S, fresh, rows, count, a, a_line, a_step, b, b_line, b_step, sums, kept):
    height, nv, share = F.tile.rows, F.tile.nv, F.tile.share

    def alone(F, S, fresh, rows, count, a, a_line, a_step, b, b_line, b_step, sums, kept):
        tile = zeros(S, height, nv)
        for q in range(rows):
            at, to = a + q * a_line, b + q * b_line
            for _ in range(count):
                tile = outer(tile, height, nv, at, size(S), to)
                at += a_step
                to += b_step
        if not fresh:
            tile = add_from(tile, height, nv, sums, nv * VECTOR_BYTES)
        put_lanes(tile, height, nv, sums, nv * VECTOR_BYTES, 0, nv * width(S), kept)

    def shared(F, S, fresh, rows, count, a, a_line, a_step, b, b_line, b_step, sums, kept):
        tile = zeros(S, height, 1)
        for q in range(rows):
            at, to = a + q * a_line, b + q * b_line
            for _ in range(count):
                tile = dot(tile, 1, height, to, 0, at, VECTOR_BYTES)
                at += a_step
                to += b_step
        if not fresh:
            tile = add_from(tile, height, 1, sums, VECTOR_BYTES)
        put_lanes(tile, height, 1, sums, VECTOR_BYTES, 0, width(S), kept)

    return shared if share else alone


@njit(nogil=True)
def multiply_rows(F, S, k, unit, fresh, rows, strip, grads, sums):
    """All taps of a strip of `rows` rows of outputs."""
    row, pixel = F.nv * VECTOR_BYTES, k.channels * unit
    runs, length = (1, k.S * k.channels) if k.dilation2 == 1 else (k.S, k.channels)
    for r in range(k.R):
        for run in range(runs):
            a = strip + (r * k.dilation1 * k.pitch + run * k.dilation2) * pixel
            out = sums + (r * k.S + run) * k.channels * row
            for e in range(0, length, F.rows):
                multiply_pixels(
                    F, S, fresh, rows, k.Q, a + e * unit, k.step1 * k.pitch * pixel, k.step2 * pixel, grads,
                    k.Q * row, row, out + e * row, min(F.rows, length - e),
                )  # fmt: skip


@njit(nogil=True)
def clear_idle(F, S, k, unit, filters, grads, strip, terms):
    """Zero what is computed with but never packed: lanes without a filter, terms beyond the last pixel, their sums.

    No result needs these, but denormals there take a hundred times as long.
    """
    if filters < F.nv * width(S):
        clear(S, grads, (strip - grads) // size(S))  # with `stage`, which lies between
    clear(S, strip + k.height * k.pitch * k.channels * unit, F.rows * unit // size(S))
    clear(S, terms + k.R * k.S * k.channels * F.nv * VECTOR_BYTES, F.rows * F.nv * width(S))


# ---------------------------------------------------------------- results


@njit(nogil=True)
def put_filters(F, S, W, k, groups, filters, sums, w, wg, wm, wc, wt):
    """dw[g, m, c, t] from sums[t, c, (g, m)]."""
    row, T = F.nv * VECTOR_BYTES, wt.shape[0]
    for g in range(groups):
        source, target = sums + g * F.share * size(S), w + g * wg * size(W)
        if wc == 1:
            for t in range(T):
                at = source + t * k.channels * row
                turn_results(S, W, at, row, k.C, filters, target + wt[t] * size(W), wm)
        elif wt[T - 1] == T - 1:  # taps are adjacent; offsets grow, so the last one tells
            for c in range(k.C):
                at = source + c * row
                turn_results(S, W, at, k.channels * row, T, filters, target + c * wc * size(W), wm)
        else:
            for t in range(T):
                for c in range(k.C):
                    at = source + (t * k.channels + c) * row
                    scatter_row(S, W, at, target + (c * wc + wt[t]) * size(W), wm, filters)


@njit(parallel=True, nogil=True)
def wgrad(F, X, Y, S, W, k, x, y, w, wg, wm, wc, wt, parts, sums, sums_bytes, work, work_bytes):
    """dw[g, m, c, t], at element strides and tap offsets wt[T].

    Tasks are bunches of groups x tiles of filters x `parts` of all strips; each has `sums_bytes` at `sums`, each
    thread `work_bytes` at `work`: x, dy and a row that waits to be spread.
    """
    row = F.nv * VECTOR_BYTES
    unit = VECTOR_BYTES if F.share else size(S)
    lanes = F.nv * width(S)
    bunches, tiles = (k.G + k.bunch - 1) // k.bunch, (k.M + lanes - 1) // lanes
    strips = (k.P + k.rows - 1) // k.rows
    for index in prange(bunches * tiles * parts):
        task = np.int64(index)  # prange counts in uint64, which mixes with int64 to float64
        place, part = divmod(task, parts)
        bunch, tile = divmod(place, tiles)
        g0, m0 = bunch * k.bunch, tile * lanes
        groups, filters = min(k.bunch, k.G - g0), min(lanes, k.M - m0)
        grads = work + get_thread_id() * work_bytes
        stage = grads + k.rows * k.Q * row
        strip = stage + (k.pitch * VECTOR_BYTES if F.share else 0)
        terms = sums + task * sums_bytes
        first, last = k.N * strips * part // parts, k.N * strips * (part + 1) // parts
        clear_idle(F, S, k, unit, filters, grads, strip, terms)
        for number in range(first, last):
            n, s = divmod(number, strips)
            q0 = s * k.rows
            rows = min(k.rows, k.P - q0)
            source = x + (n * k.xn + g0 * k.C * k.xc) * size(X)
            dy = y + (n * k.yn + (g0 * k.M + m0) * k.ym + q0 * k.y1) * size(Y)
            pack_source(F, X, S, k, unit, source, q0, groups, strip, stage)
            pack_grads(F, Y, S, k, dy, rows, groups, filters, grads)
            multiply_rows(F, S, k, unit, number == first, rows, strip, grads, terms)
        if parts == 1:
            put_filters(F, S, W, k, groups, filters, terms, w + (g0 * wg + m0 * wm) * size(W), wg, wm, wc, wt)
    if parts > 1:
        for index in prange(bunches * tiles):
            place = np.int64(index)
            bunch, tile = divmod(place, tiles)
            g0, m0 = bunch * k.bunch, tile * lanes
            groups, filters = min(k.bunch, k.G - g0), min(lanes, k.M - m0)
            total = sums + place * parts * sums_bytes
            for part in range(1, parts):
                add(S, total, total + part * sums_bytes, k.R * k.S * k.channels * lanes, False)
            put_filters(F, S, W, k, groups, filters, total, w + (g0 * wg + m0 * wm) * size(W), wg, wm, wc, wt)

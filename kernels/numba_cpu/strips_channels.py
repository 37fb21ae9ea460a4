"""Convolution of groups whose results fill vectors, from strips whose channels are adjacent, without im2col.

    y[n, m, o] = act(bias[m] + sum over c, t of w[m, c, t] * x[n, c, o * step + offset[t]])

A strip holds the rows of one group's source that some rows of outputs read, padded with the border's zeros:
x[row, c, column]. Filters are turned to w[c, t, m]. A step of the register tile
is the outer product of `rows` pixels of a row of outputs, broadcast, and `nv` vectors of result channels:

    y[o + i, m] += x[(o + i) * step + offset[t], c] * w[c, t, m]

So small images do not leave lanes idle. All residues of a dgrad are passes over the same strip of dy, each with its
own taps; their results are put where they belong among the pixels, and rows of those are turned back at last.

Numbers: as in gemm.py. Every result belongs to one task, which adds in one order.
"""

from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import overload

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.gemm import copy_row
from fastconv.kernels.numba_cpu.gemm_wgrad import clear
from fastconv.kernels.numba_cpu.memory import load, size, store
from fastconv.kernels.numba_cpu.simd import VECTOR_BYTES, add_to_columns, outer, relu, width, zeros
from fastconv.kernels.numba_cpu.strips import turn_pixels, turn_results
from fastconv.kernels.numba_cpu.strips_vectors import put_lanes
from fastconv.kernels.numba_cpu.strips_wgrad import turn_channels


class Strip(NamedTuple):
    """How strips are cut and packed."""

    N: int
    G: int
    M: int  # results of a group
    C: int  # source channels of a group
    T: int  # taps of a filter
    rows: int  # of outputs of a pass
    height: int  # rows of a strip
    pitch: int  # pixels of its rows
    outputs: int  # rows of outputs of a pass in all
    first1: int  # the least offset of a tap, along either axis
    first2: int
    step1: int
    H: int  # extents of the source
    W: int
    P: int  # extents of the result
    Q: int
    stride1: int  # how far apart the outputs of a pass lie in it
    stride2: int
    xn: int
    xc: int
    x1: int
    x2: int
    yn: int
    ym: int
    y1: int
    y2: int


# terms: int64[C * T, 2], of each channel and tap the elements from an output's place in a strip to what it reads, and
# the number of its weights; of all passes.
# passes: int64[P, 6] = (first term, last term, rows of outputs, columns, first row in y, first column).


# ---------------------------------------------------------------- packing


@njit(nogil=True)
def pack_strip(X, S, k, x, q0, strip):
    """strip[i, c, j] = x[c, q0 * step1 + first1 + i, first2 + j], zeros beyond x."""
    top = q0 * k.step1 + k.first1
    low1 = min(max(0, -top), k.height)
    high1 = max(low1, min(k.height, k.H - top))
    low2 = min(max(0, -k.first2), k.pitch)
    high2 = max(low2, min(k.pitch, k.W - k.first2))
    line = k.C * k.pitch * size(S)
    clear(S, strip, low1 * k.C * k.pitch)
    for i in range(low1, high1):
        at = strip + i * line
        source = x + ((top + i) * k.x1 + k.first2 * k.x2) * size(X)
        if k.xc == 1:
            clear(S, at, k.C * k.pitch)
            inside = source + low2 * k.x2 * size(X)
            turn_pixels(X, S, inside, k.x2, high2 - low2, k.C, at + low2 * size(S), k.pitch)
        else:
            for c in range(k.C):
                row = at + c * k.pitch * size(S)
                copy_row(X, S, source + c * k.xc * size(X), k.x2, row, low2, high2, k.pitch)
    clear(S, strip + high1 * line, (k.height - high1) * k.C * k.pitch)


@njit(parallel=True, nogil=True)
def pack_filters(F, W, S, G, M, C, wg, wm, wc, wt, w, a):
    """a[G][tile][c][t][vectors of a tile] from w[g, m, c, t]; lanes beyond M are left as they are."""
    T, lanes = wt.shape[0], F.nv * width(S)
    tiles = (M + lanes - 1) // lanes
    adjacent = wt[T - 1] == T - 1  # offsets grow, so the last one tells
    for index in prange(G * tiles):
        group, tile = divmod(np.int64(index), tiles)  # prange counts in uint64, which mixes with int64 to float64
        channels = min(lanes, M - tile * lanes)
        source = w + (group * wg + tile * lanes * wm) * size(W)
        target = a + np.int64(index) * C * T * lanes * size(S)
        if adjacent and wc == T:
            turn_channels(W, S, source, wm, 1, C * T, channels, target, lanes)
        elif adjacent:
            for c in range(C):
                at = target + c * T * lanes * size(S)
                turn_channels(W, S, source + c * wc * size(W), wm, 1, T, channels, at, lanes)
        else:
            for t in range(T):
                at = target + t * lanes * size(S)
                turn_channels(W, S, source + wt[t] * size(W), wm, wc, C, channels, at, T * lanes)


# ---------------------------------------------------------------- tiles


def multiply_channels(F, S, code, terms, b, a, bias, y, y_row, channels, count):
    """`count` pixels of a tile, with bias and ReLU while they are in registers, to y, a pixel every `y_row` bytes."""
    raise NotImplementedError("only inside kernels")


@overload(multiply_channels)
def _multiply_channels(F, S, code, terms, b, a, bias, y, y_row, channels, count):
    rows, nv, step = F.tile.rows, F.tile.nv, F.tile.step

    def multiplied(F, S, code, terms, b, a, bias, y, y_row, channels, count):
        tile = zeros(S, rows, nv)
        for r in range(terms.shape[0]):
            place, filters = a + terms[r, 0] * size(S), b + terms[r, 1] * nv * VECTOR_BYTES
            tile = outer(tile, rows, nv, place, step * size(S), filters)
        tile = add_to_columns(tile, rows, nv, bias)
        if code == 1:
            tile = relu(tile, rows, nv)
        put_lanes(tile, rows, nv, y, y_row, 0, channels, count)

    return multiplied


@njit(nogil=True)
def multiply_strip(F, S, k, code, terms, passes, q0, strip, filters, bias, tile, y, y1, y2):
    """All passes of a strip for one tile of channels, to y at bytes `y1` and `y2` from pixel to pixel."""
    lanes = F.nv * width(S)
    channels = min(lanes, k.M - tile * lanes)
    for f in range(passes.shape[0]):
        own = terms[passes[f, 0] : passes[f, 1]]
        for q in range(min(k.rows, passes[f, 2] - q0)):
            out = y + (q * k.stride1 + passes[f, 4]) * y1 + passes[f, 5] * y2
            for o in range(0, passes[f, 3], F.rows):
                multiply_channels(
                    F, S, code, own, filters, strip + (q * k.step1 * k.C * k.pitch + o * F.step) * size(S), bias,
                    out + o * k.stride2 * y2, k.stride2 * y2, channels, min(F.rows, passes[f, 3] - o),
                )  # fmt: skip


@njit(nogil=True)
def put_rows(F, S, Y, k, code, rows, channels, stage, y):
    """Store `rows` rows of pixels of y from stage[row, column, m]."""
    row = F.nv * VECTOR_BYTES
    if code > 1:
        for p in range(rows * k.Q):
            for m in range(channels):
                store(S, stage + p * row, m, activate(code, load(S, stage + p * row, m)))
    lines, count = (1, rows * k.Q) if k.y1 == k.Q * k.y2 else (rows, k.Q)
    for i in range(lines):
        source, target = stage + i * k.Q * row, y + i * k.y1 * size(Y)
        if k.y2 == 1:
            turn_results(S, Y, source, row, count, channels, target, k.ym)
        else:
            for o in range(count):
                for m in range(channels):
                    store(Y, target, o * k.y2 + m * k.ym, load(S, source + o * row, m))


@njit(parallel=True, nogil=True)
def gather(F, X, S, Y, k, straight, terms, passes, x, a, a_group, bias, code, y, work, work_bytes):
    """y = act(bias + w * x); see the head of this file.

    `a` is what `pack_filters` makes, `a_group` bytes a group; `bias` is S[G, whole tiles of vectors]. With `straight`
    tiles are stored in y, whose channels are adjacent, from registers. Tasks are N x G x strips; each thread uses
    `work_bytes` at `work`: a strip, and the pixels of its results.
    """
    lanes = F.nv * width(S)
    tiles = (k.M + lanes - 1) // lanes
    strips = (k.outputs + k.rows - 1) // k.rows
    row = F.nv * VECTOR_BYTES
    for index in prange(k.N * k.G * strips):
        rest, number = divmod(np.int64(index), strips)
        n, g = divmod(rest, k.G)
        q0 = number * k.rows
        i0 = q0 * k.stride1
        rows = min(k.rows * k.stride1, k.P - i0)
        stage = work + get_thread_id() * work_bytes
        strip = stage + k.rows * k.stride1 * k.Q * row
        pack_strip(X, S, k, x + (n * k.xn + g * k.C * k.xc) * size(X), q0, strip)
        for tile in range(tiles):
            filters = a + g * a_group + tile * k.C * k.T * row
            biases = bias + (g * tiles + tile) * row
            target = y + (n * k.yn + (g * k.M + tile * lanes) * k.ym + i0 * k.y1) * size(Y)
            if straight:
                multiply_strip(
                    F, S, k, code, terms, passes, q0, strip, filters, biases, tile, target, k.y1 * size(Y),
                    k.y2 * size(Y),
                )  # fmt: skip
            else:
                multiply_strip(F, S, k, code, terms, passes, q0, strip, filters, biases, tile, stage, k.Q * row, row)
                put_rows(F, S, Y, k, code, rows, min(lanes, k.M - tile * lanes), stage, target)

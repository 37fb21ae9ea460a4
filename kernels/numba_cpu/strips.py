"""Convolution straight from strips of the source, without im2col: for few channels, of x or of y or of a group.

    y[n, m, o] = act(bias[m] + sum over c, t of w[m, c, t] * x[n, c, o * step + offset[t]])

A strip holds what some rows of outputs read: channel by channel, split into the phases of the step, each row padded
with the border's zeros to one pitch. There, every output reads tap t at a fixed distance from its own place, across
rows too: a strip is one long row of pixels,

    y[m, p] = sum over c, t of w[m, c, t] * strip[c, place[t] + p],    p = row * pitch + column

and a step of the register tile is an outer product of `rows` weights and `nv` vectors that are loaded where they lie.
The columns between two rows of outputs are computed and not stored. So a cell is copied once, not once for each tap,
and a product of three rows (the gradient to an image) fills the registers with vectors of pixels.

All residues of a dgrad are passes over the same strip of dy, each with its own taps and results; rows of those that
interleave along the last axis are stored together.

Numbers: as in gemm.py. Every result belongs to one task, which adds in one order.
"""

from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange
from numba.extending import (
    overload,
)

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.gemm import copy_row, scatter_row
from fastconv.kernels.numba_cpu.gemm_wgrad import clear
from fastconv.kernels.numba_cpu.memory import load, size, store
from fastconv.kernels.numba_cpu.simd import (
    VECTOR_BYTES,
    add_from,
    add_to_rows,
    put,
    relu,
    width,
    zeros,
)
from fastconv.kernels.numba_cpu.strips_vectors import outer_by_fewer, put_lanes, turn, weave_row


class Strip(NamedTuple):
    """How strips are cut and packed."""

    N: int
    G: int
    M: int  # results of a group
    C: int  # source channels of a group
    rows: int  # of outputs
    height: int  # of a packed plane
    pitch: int  # elements of a packed row
    plane: int  # elements of the plane of a phase
    channel: int  # elements of all planes of a channel
    block: int  # channels of a group in a strip
    bunch: int  # groups in a strip
    outputs: int  # rows of outputs in all
    first1: int  # the least offset of a tap, along either axis
    first2: int
    step1: int
    step2: int
    H: int  # extents of the source
    W: int
    weave: int  # passes whose results interleave along the last axis
    xn: int
    xc: int
    x1: int
    x2: int
    yn: int
    ym: int
    y1: int
    y2: int


# phases: int64[F, 2], the residues of the source's rows and columns, counted from the first, that a plane holds.
# passes: int64[P, 5] = (first tap, last tap, rows of outputs, columns, place in y), and per tap its place in elements.


# ---------------------------------------------------------------- packing


@njit(nogil=True)
def met(first, step, extent, count):
    """The places i of [0, count) whose cells first + i * step are inside [0, extent)."""
    low = min(max(0, -(first // step)), count)
    return low, min(max(low, (extent - 1 - first) // step + 1), count)


@njit(nogil=True)
def pack_strip(X, S, k, phases, x, q0, c0, c1, strip):
    """strip[c - c0, phase, i, j] = x[c, (q0 + i) * step1 + residue1, j * step2 + residue2], zeros beyond x."""
    for c in range(c0, c1):
        for f in range(phases.shape[0]):
            row, column = q0 * k.step1 + k.first1 + phases[f, 0], k.first2 + phases[f, 1]
            low1, high1 = met(row, k.step1, k.H, k.height)
            low2, high2 = met(column, k.step2, k.W, k.pitch)
            target = strip + ((c - c0) * k.channel + f * k.plane) * size(S)
            source = x + (c * k.xc + row * k.x1 + column * k.x2) * size(X)
            clear(S, target, low1 * k.pitch)
            for i in range(low1, high1):
                at, line = target + i * k.pitch * size(S), source + i * k.step1 * k.x1 * size(X)
                copy_row(X, S, line, k.step2 * k.x2, at, low2, high2, k.pitch)
            clear(S, target + high1 * k.pitch * size(S), k.plane - high1 * k.pitch)


@njit(nogil=True)
def pack_strip_last(X, S, k, phases, x, q0, c0, c1, strip):
    """`pack_strip` of a source whose channels are adjacent."""
    for f in range(phases.shape[0]):
        row, column = q0 * k.step1 + k.first1 + phases[f, 0], k.first2 + phases[f, 1]
        low1, high1 = met(row, k.step1, k.H, k.height)
        low2, high2 = met(column, k.step2, k.W, k.pitch)
        source = x + (c0 + row * k.x1 + (column + low2 * k.step2) * k.x2) * size(X)
        for c in range(c1 - c0):
            clear(S, strip + (c * k.channel + f * k.plane) * size(S), low1 * k.pitch + low2)
        for i in range(low1, high1):
            at = strip + (f * k.plane + i * k.pitch + low2) * size(S)
            turn_pixels(
                X, S, source + i * k.step1 * k.x1 * size(X), k.step2 * k.x2, high2 - low2, c1 - c0, at, k.channel
            )
            for c in range(c1 - c0):  # to the first column of the next row
                clear(S, at + (c * k.channel + high2 - low2) * size(S), k.pitch - high2 + low2)
        for c in range(c1 - c0):
            stop = high1 * k.pitch
            clear(S, strip + (c * k.channel + f * k.plane + stop) * size(S), k.plane - stop)


def turn_pixels(X, S, source, step, count, channels, target, channel):
    """target[c, j] = source[j, c], `step` and `channel` elements apart."""
    raise NotImplementedError("only inside kernels")


@overload(turn_pixels)
def _turn_pixels(X, S, source, step, count, channels, target, channel):
    def each(X, S, source, step, count, channels, target, channel):
        for j in range(count):
            for c in range(channels):
                store(S, target + c * channel * size(S), j, load(X, source + j * step * size(X), c))

    def vectors(X, S, source, step, count, channels, target, channel):
        for c in range(0, channels, width(S)):
            for j in range(0, count, width(S)):
                turn(
                    source + (j * step + c) * 4, step * 4, min(width(S), count - j), min(width(S), channels - c),
                    target + (c * channel + j) * 4, channel * 4,
                )  # fmt: skip

    return vectors if X.stored == S.stored == "float32" else each


# ---------------------------------------------------------------- tiles


def multiply_strip(F, S, fresh, last, code, C, T, taps, a, a_row, a_step, b, channel, sums, sums_row, bias, y,
                   ym, y1, p, pitch, P1, P2, count):  # fmt: skip
    """The pixels of a tile from p on: (sums +) w * strip; with `last`, bias and ReLU while they are in registers.

    Stored in y, in rows of P2 of each `pitch` pixels, where it has an address; else in sums.
    """
    raise NotImplementedError("only inside kernels")


@overload(multiply_strip)
def _multiply_strip(F, S, fresh, last, code, C, T, taps, a, a_row, a_step, b, channel, sums, sums_row, bias, y,
                    ym, y1, p, pitch, P1, P2, count):  # fmt: skip
    rows, nv = F.tile.rows, F.tile.nv

    def multiplied(F, S, fresh, last, code, C, T, taps, a, a_row, a_step, b, channel, sums, sums_row, bias, y,
                   ym, y1, p, pitch, P1, P2, count):  # fmt: skip
        tile = zeros(S, rows, nv)
        for c in range(C):
            at = b + c * channel
            for t in range(T):
                tile = outer_by_fewer(tile, rows, nv, a, a_row, at + taps[t] * size(S))
                a += a_step
        if not fresh:
            tile = add_from(tile, rows, nv, sums, sums_row)
        if last:
            tile = add_to_rows(tile, rows, nv, bias)
            if code == 1:
                tile = relu(tile, rows, nv)
        if y:
            pixels = nv * width(S)
            for q in range(p // pitch, min(P1, (p + pixels - 1) // pitch + 1)):
                low = q * pitch - p
                target = y + q * y1 - low * size(S)
                put_lanes(tile, rows, nv, target, ym, max(0, low), min(pixels, low + P2), count)
        else:
            put(tile, rows, nv, sums, sums_row)

    return multiplied


# ---------------------------------------------------------------- results


def weave(S, Y, ways, source, source_row, target, step, counts, whole):
    """target[i * step + j * ways * step] = source[i, j] for j < counts[i, 3]; `whole` of them in one row."""
    raise NotImplementedError("only inside kernels")


@overload(weave)
def _weave(S, Y, ways, source, source_row, target, step, counts, whole):
    def rows(S, Y, ways, source, source_row, target, step, counts, whole):
        for i in range(ways):
            scatter_row(S, Y, source + i * source_row, target + i * step * size(Y), ways * step, counts[i, 3])

    each = njit(nogil=True)(rows)

    def vectors(S, Y, ways, source, source_row, target, step, counts, whole):
        if step == 1 and ways == 2:
            for j in range(0, whole, 2 * width(S)):
                weave_row(S, 2, source + j // 2 * size(S), source_row, target + j * size(S), whole - j)
        elif step == 1 and ways == 4:
            for j in range(0, whole, 4 * width(S)):
                weave_row(S, 4, source + j // 4 * size(S), source_row, target + j * size(S), whole - j)
        else:
            each(S, Y, ways, source, source_row, target, step, counts, whole)

    return vectors if S.stored == Y.stored else rows


def turn_results(S, Y, source, row, channels, count, target, step):
    """target[j, m] = source[m, j]: `channels` rows `row` bytes apart to `count` pixels `step` elements apart."""
    raise NotImplementedError("only inside kernels")


@overload(turn_results)
def _turn_results(S, Y, source, row, channels, count, target, step):
    def each(S, Y, source, row, channels, count, target, step):
        for j in range(count):
            for m in range(channels):
                store(Y, target + j * step * size(Y), m, load(S, source + m * row, j))

    def vectors(S, Y, source, row, channels, count, target, step):
        for m in range(0, channels, width(S)):
            for j in range(0, count, width(S)):
                turn(
                    source + m * row + j * 4, row, min(width(S), channels - m), min(width(S), count - j),
                    target + (j * step + m) * 4, step * 4,
                )  # fmt: skip

    return vectors if S.stored == Y.stored == "float32" else each


@njit(nogil=True)
def activate_rows(S, code, source, row, rows, count):
    for m in range(rows):
        for o in range(count):
            store(S, source + m * row, o, activate(code, load(S, source + m * row, o)))


@njit(nogil=True)
def put_strip(S, Y, k, turned, code, passes, q0, sums, sums_row, between, channels, y):
    """Store `channels` rows of a strip's results, those of a pass `between` bytes apart."""
    for f in range(0, passes.shape[0], k.weave):
        woven = passes[f : f + k.weave]
        whole = 0
        for i in range(k.weave):
            whole += woven[i, 3]
        for q in range(min(k.rows, woven[0, 2] - q0)):
            source = sums + f * between + q * k.pitch * size(S)
            target = y + (woven[0, 4] + (q0 + q) * k.y1) * size(Y)
            if code > 1:
                for i in range(k.weave):
                    activate_rows(S, code, source + i * between, sums_row, channels, woven[i, 3])
            if turned:
                for i in range(k.weave):
                    turn_results(
                        S, Y, source + i * between, sums_row, channels, woven[i, 3], target + i * k.y2 * size(Y),
                        k.weave * k.y2,
                    )  # fmt: skip
                continue
            for m in range(channels):
                weave(S, Y, k.weave, source + m * sums_row, between, target + m * k.ym * size(Y), k.y2, woven, whole)


# ---------------------------------------------------------------- fprop and dgrad


@njit(parallel=True, nogil=True)
def gather(F, X, S, Y, k, turned, straight, phases, taps, passes, x, a, a_group, a_block, a_row, a_step, bias, code, y,
           work, work_bytes):  # fmt: skip
    """y = act(bias + w * x); see the head of this file.

    Channel i of block b of group g, row r = c * taps + t of a pass: its weight is at `a`, at bytes
    ``g * a_group + b * a_block + i * a_row + r * a_step`` where filters of one pass lie so, else as `pack_filters`
    packs them, a_block being 0; `bias` is S[G, whole blocks of F.rows]. With `turned` the channels of x and of y are
    adjacent; with `straight` tiles are stored in y from registers. Tasks are N x bunches of groups x strips; each
    thread uses `work_bytes` at `work`: a strip, and the sums of all passes.
    """
    blocks = (k.M + F.rows - 1) // F.rows
    strips = (k.outputs + k.rows - 1) // k.rows
    bunches = (k.G + k.bunch - 1) // k.bunch
    step = F.nv * width(S)
    longest = 0
    for f in range(passes.shape[0]):
        longest = max(longest, (k.rows - 1) * k.pitch + passes[f, 3])
    sums_row = (longest + step - 1) // step * step * size(S)
    for index in prange(k.N * bunches * strips):
        rest, number = divmod(np.int64(index), strips)  # prange counts in uint64, which mixes with int64 to float64
        n, bunch = divmod(rest, bunches)
        q0, g0 = number * k.rows, bunch * k.bunch
        groups = min(k.G - g0, k.bunch)
        between = groups * blocks * F.rows * sums_row
        strip = work + get_thread_id() * work_bytes
        sums = strip + (k.bunch * k.block * k.channel + step) * size(S) // VECTOR_BYTES * VECTOR_BYTES + VECTOR_BYTES
        source = x + (n * k.xn + g0 * k.C * k.xc) * size(X)
        target = y + (n * k.yn + g0 * k.M * k.ym) * size(Y)
        for c0 in range(0, k.C, k.block):
            c1 = min(k.C, c0 + k.block)
            packed = groups * k.C if k.bunch > 1 else c1  # a bunch of several has all channels of its groups
            if turned:
                pack_strip_last(X, S, k, phases, source, q0, c0, packed, strip)
            else:
                pack_strip(X, S, k, phases, source, q0, c0, packed, strip)
            clear(S, strip + (packed - c0) * k.channel * size(S), step)
            for f in range(passes.shape[0]):
                t0, t1 = passes[f, 0], passes[f, 1]
                rows = min(k.rows, passes[f, 2] - q0)
                pixels = (rows - 1) * k.pitch + passes[f, 3] if rows > 0 else 0
                places = taps[t0:t1]
                for unit in range(groups * blocks):
                    g, b = divmod(unit, blocks)
                    weights = a + (g0 + g) * a_group + (t0 * k.C * blocks + c0 * (t1 - t0)) * a_step
                    weights += b * (a_block if a_block else k.C * (t1 - t0) * a_step)
                    terms = sums + f * between + unit * F.rows * sums_row
                    biases = bias + ((g0 + g) * blocks + b) * F.rows * size(S)
                    out = target + (passes[f, 4] + (g * k.M + b * F.rows) * k.ym + q0 * k.y1) * size(Y)
                    for p in range(0, pixels, step):
                        multiply_strip(
                            F, S, c0 == 0, c1 == k.C, code, c1 - c0, t1 - t0, places, weights, a_row, a_step,
                            strip + (g * k.C * k.channel + p) * size(S), k.channel * size(S), terms + p * size(S),
                            sums_row, biases, out if straight and c1 == k.C else 0, k.ym * size(Y), k.y1 * size(Y),
                            p, k.pitch, rows, passes[f, 3], min(F.rows, k.M - b * F.rows),
                        )  # fmt: skip
        if not straight:
            runs = groups if k.M % F.rows else 1  # of adjacent channels
            for g in range(runs):
                put_strip(
                    S, Y, k, turned, code, passes, q0, sums + g * blocks * F.rows * sums_row, sums_row, between,
                    groups * k.M // runs, target + g * k.M * k.ym * size(Y),
                )  # fmt: skip


@njit(parallel=True, nogil=True)
def pack_filters(F, W, S, passes, G, M, C, wg, wm, wc, wt, w, a):
    """a[G][pass][block of F.rows][c][tap of the pass][F.rows], zeros beyond M, from w[g, m, c, t]; see gemm.py."""
    blocks = (M + F.rows - 1) // F.rows
    for index in prange(G * blocks):
        group, b = divmod(np.int64(index), blocks)
        rows = min(F.rows, M - b * F.rows)
        for f in range(passes.shape[0]):
            t0, t1 = passes[f, 0], passes[f, 1]
            target = a + ((group * wt.shape[0] + t0) * blocks + b * (t1 - t0)) * C * F.rows * size(S)
            for c in range(C):
                for t in range(t0, t1):
                    source = w + (group * wg + b * F.rows * wm + c * wc + wt[t]) * size(W)
                    for i in range(F.rows):
                        store(S, target, i, load(W, source, i * wm) if i < rows else 0)
                    target += F.rows * size(S)

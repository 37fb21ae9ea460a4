"""Dense and grouped convolution as a product of matrices that are never stored (implicit GEMM).

    fprop, dgrad    y[m, o] = act(bias[m] + sum over i of w[m, i] * cell(i, o))       i = (tap, channel)
    wgrad           dw[m, i] = sum over o of dy[m, o] * cell(i, o)
    cell(i, o) = x[n, c, o * step + start + tap * reach], 0 outside of x              o = (n, pixel)

The passes and their numbers step, start, reach are those of conv_direct.py: dgrad is one launch for each residue
modulo the stride. docs/tiled_fprop.md goes through `gather` line by line.

A block of THREADS = (BM / TM) * (BN / TN) threads computes a tile of BM x BN results of one group. BK summands at a
time, it loads BM x BK factors and BK x BN cells into shared memory, in the type that is summed in:

    shared memory   a[BK][BM + 1], b[BK][BN + 1]       the odd rows keep threads that store along a column apart
    loading         THREADS / BK threads a row i; each walks i -> i + BK in mixed radix, without a division
    computing       thread (tm, tn) sums TM x TN results in registers: m = tm + j * BM / TM, o = tn + k * BN / TN

Neighbouring threads take neighbouring results and cells in memory, by pixels or, of channels-last arrays, by channels.
Where the filter has one tap the walk has one digit (`pointwise`): a 1x1 convolution is a plain product.

wgrad sums over all pixels: where the tiles are too few for the GPU, each part of the pixels has its own blocks,
which write float sums to a workspace, and `sum_parts` adds them in one order. No atomics.
Limits: extents and channels below 2**31, offsets in 64 bits; at most 2**31 - 1 blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastconv.kernels.numba_cuda.elementwise import activation as activation_of
from fastconv.kernels.numba_cuda.memory import reader, writer
from fastconv.kernels.numba_cuda.target import cuda


class Tile(NamedTuple):
    """The results of a block (BM x BN), of a thread (TM x TN), and the summands loaded at a time (BK)."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        return (self.BM // self.TM) * (self.BN // self.TN)


def gather(
    y: str, x: str, w: str, bias: str | None, acc: Any, activation: str | None, tile: Tile, pointwise: bool
) -> Any:
    """The kernel of fprop and dgrad for operands of these dtypes."""
    read_x, read_w, read_bias, write = reader(x, acc), reader(w, acc), reader(bias or y, acc), writer(y)
    biased, activate = bias is not None, activation_of(activation, acc)
    BM, BN, BK, TM, TN = tile
    ROWS, COLS = BM // TM, BN // TN  # threads along m, along o
    LANES = ROWS * COLS // BK  # threads that load one row
    A, B = BM // LANES, BN // LANES  # elements of a row that a thread loads
    a_shape, b_shape, sums_shape = (BK, BM + 1), (BK, BN + 1), (TM, TN)

    @cuda.jit
    def conv_gemm_gather(y, x, w, bias, geometry):
        (
            N, G, M, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            step_d, step_h, step_w, start_d, start_h, start_w, reach_d, reach_h, reach_w,
            y0, yn, yk, yz, yp, yq, xn, xc, xd, xh, xw, w0, wg, wm, wc, wt, wr, ws, bias_step,
        ) = geometry  # fmt: skip
        a = cuda.shared.array(a_shape, acc)
        b = cuda.shared.array(b_shape, acc)
        sums = cuda.local.array(sums_shape, acc)
        base = cuda.local.array(B, np.int64)  # of the pixels that this thread loads: the sample's offset,
        corner_d = cuda.local.array(B, np.int32)  # and the cell that tap 0 meets
        corner_h = cuda.local.array(B, np.int32)
        corner_w = cuda.local.array(B, np.int32)

        # Which tile: blocks next to each other share pixels.
        pixels, tiles_m = N * Z * P * Q, (M + BM - 1) // BM
        block = cuda.blockIdx.x
        m0 = block % tiles_m * BM
        g = block // tiles_m % G
        o0 = block // tiles_m // G * BN

        thread = cuda.threadIdx.x
        row, lane = thread // LANES, thread % LANES
        tm, tn = thread // COLS, thread % COLS
        if channels_last:
            row, lane = thread % BK, thread // BK
            tm, tn = thread % ROWS, thread // ROWS

        for k in range(B):
            o = o0 + lane + k * LANES
            q, p, z, n = o % Q, o // Q % P, o // Q // P % Z, o // Q // P // Z
            base[k] = n * xn + g * C * xc
            corner_d[k] = z * step_d + start_d if o < pixels else D + (T - 1) * abs(reach_d)  # outside at every tap
            corner_h[k] = p * step_h + start_h
            corner_w[k] = q * step_w + start_w
        for j in range(TM):
            for k in range(TN):
                sums[j, k] = acc(0)

        # The summand i of this thread's row as digits: channel c, then the taps s, r, t.
        c, s, r, t = row, 0, 0, 0
        total = C * T * R * S
        for i0 in range(0, total, BK):
            if not pointwise:
                while c >= C:
                    c -= C
                    s += 1
                    if s == S:
                        s = 0
                        r += 1
                        if r == R:
                            r = 0
                            t += 1
            inside = i0 + row < total
            weight = w0 + g * wg + c * wc + t * wt + r * wr + s * ws
            for j in range(A):
                m = m0 + lane + j * LANES
                a[row, lane + j * LANES] = read_w(w[weight + m * wm]) if inside and m < M else acc(0)
            for k in range(B):
                d = corner_d[k] + t * reach_d
                h = corner_h[k] + r * reach_h
                v = corner_w[k] + s * reach_w
                within = inside and d >= 0 and d < D and h >= 0 and h < H and v >= 0 and v < W
                cell = base[k] + c * xc + d * xd + h * xh + v * xw
                b[row, lane + k * LANES] = read_x(x[cell]) if within else acc(0)
            c += BK
            cuda.syncthreads()
            for i in range(BK):
                for j in range(TM):
                    for k in range(TN):
                        sums[j, k] += a[i, tm + j * ROWS] * b[i, tn + k * COLS]
            cuda.syncthreads()

        for k in range(TN):
            o = o0 + tn + k * COLS
            q, p, z, n = o % Q, o // Q % P, o // Q // P % Z, o // Q // P // Z
            target = y0 + n * yn + z * yz + p * yp + q * yq
            for j in range(TM):
                m = m0 + tm + j * ROWS
                if m < M and o < pixels:
                    value = sums[j, k]
                    if biased:
                        value += read_bias(bias[(g * M + m) * bias_step])
                    y[target + (g * M + m) * yk] = write(activate(value))

    return conv_gemm_gather


def wgrad(dw: str, dy: str, x: str, acc: Any, tile: Tile) -> Any:
    """The kernel for operands of these dtypes; `dw` is that of the workspace where the pixels have parts."""
    read_y, read_x, write = reader(dy, acc), reader(x, acc), writer(dw)
    BM, BN, BK, TM, TN = tile
    ROWS, COLS = BM // TM, BN // TN
    LANES = ROWS * COLS // BK
    A, B = BM // LANES, BN // LANES
    a_shape, b_shape, sums_shape = (BK, BM + 1), (BK, BN + 1), (TM, TN)

    @cuda.jit
    def conv_gemm_wgrad(dw, dy, x, geometry):
        (
            parts, part_step, channels_last, N, G, M, C, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            wk, wc, wt, wr, ws, yn, yk, yz, yp, yq, xn, xc, xd, xh, xw,
        ) = geometry  # fmt: skip
        a = cuda.shared.array(a_shape, acc)
        b = cuda.shared.array(b_shape, acc)
        sums = cuda.local.array(sums_shape, acc)
        base = cuda.local.array(B, np.int64)  # of the columns (tap, channel) that this thread loads: their offset,
        tap_d = cuda.local.array(B, np.int32)  # and how far the tap lies from a pixel's corner
        tap_h = cuda.local.array(B, np.int32)
        tap_w = cuda.local.array(B, np.int32)

        columns, tiles_m = C * T * R * S, (M + BM - 1) // BM
        tiles_n = (columns + BN - 1) // BN
        block = cuda.blockIdx.x
        m0 = block % tiles_m * BM
        i0 = block // tiles_m % tiles_n * BN
        g = block // tiles_m // tiles_n % G
        part = block // tiles_m // tiles_n // G

        thread = cuda.threadIdx.x
        row, lane = thread % BK, thread // BK  # pixels lie next to each other
        tm, tn = thread // COLS, thread % COLS
        if channels_last:
            row, lane = thread // LANES, thread % LANES

        for k in range(B):
            i = i0 + lane + k * LANES
            c, s, r, t = i % C, i // C % S, i // C // S % R, i // C // S // R
            base[k] = (g * C + c) * xc
            tap_d[k] = t * dilation_d - pad_d if i < columns else D  # outside at every pixel
            tap_h[k] = r * dilation_h - pad_h
            tap_w[k] = s * dilation_w - pad_w
        for j in range(TM):
            for k in range(TN):
                sums[j, k] = acc(0)

        # The pixels of this part, BK at a time; the one of this thread's row as digits q, p, z, n.
        pixels = N * Z * P * Q
        each = ((pixels + parts - 1) // parts + BK - 1) // BK * BK
        first, end = part * each, min(pixels, (part + 1) * each)
        o = first + row
        q, p, z, n = o % Q, o // Q % P, o // Q // P % Z, o // Q // P // Z
        for start in range(first, end, BK):
            inside = start + row < end
            grad = n * yn + g * M * yk + z * yz + p * yp + q * yq
            for j in range(A):
                m = m0 + lane + j * LANES
                a[row, lane + j * LANES] = read_y(dy[grad + m * yk]) if inside and m < M else acc(0)
            for k in range(B):
                d = z * stride_d + tap_d[k]
                h = p * stride_h + tap_h[k]
                v = q * stride_w + tap_w[k]
                within = inside and d >= 0 and d < D and h >= 0 and h < H and v >= 0 and v < W
                cell = base[k] + n * xn + d * xd + h * xh + v * xw
                b[row, lane + k * LANES] = read_x(x[cell]) if within else acc(0)
            q += BK
            while q >= Q:
                q -= Q
                p += 1
                if p == P:
                    p = 0
                    z += 1
                    if z == Z:
                        z = 0
                        n += 1
            cuda.syncthreads()
            for i in range(BK):
                for j in range(TM):
                    for k in range(TN):
                        sums[j, k] += a[i, tm + j * ROWS] * b[i, tn + k * COLS]
            cuda.syncthreads()

        for k in range(TN):
            i = i0 + tn + k * COLS
            c, s, r, t = i % C, i // C % S, i // C // S % R, i // C // S // R
            target = part * part_step + c * wc + t * wt + r * wr + s * ws
            for j in range(TM):
                m = m0 + tm + j * ROWS
                if m < M and i < columns:
                    dw[target + (g * M + m) * wk] = write(sums[j, k])

    return conv_gemm_wgrad


def sum_parts(dw: str, acc: Any) -> Any:
    """The kernel that adds the parts of a workspace of sums, one thread a weight, and stores them in dw's dtype."""
    write = writer(dw)

    @cuda.jit
    def conv_gemm_sum_parts(dw, sums, geometry):
        parts, part_step, K, C, T, R, S, wk, wc, wt, wr, ws = geometry
        for index in range(cuda.grid(1), K * C * T * R * S, cuda.gridsize(1)):
            total = acc(0)
            for part in range(parts):
                total += sums[part * part_step + index]
            s, r, t = index % S, index // S % R, index // S // R % T
            c, k = index // S // R // T % C, index // S // R // T // C
            dw[k * wk + c * wc + t * wt + r * wr + s * ws] = write(total)

    return conv_gemm_sum_parts

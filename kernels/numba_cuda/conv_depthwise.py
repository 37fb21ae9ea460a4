"""Depthwise convolution: few channels a group, so that a product of matrices has nothing to share.

    fprop, dgrad    y[n, k, o] = act(bias[k] + sum over c, t of w[k, c, t] * x[n, c, o * step + start + t * reach])
    wgrad           dw[k, c, t] = sum over n, p of dy[n, k, p] * x[n, c, p * stride - pad + t * dilation]

over the C channels of the group, 1 unless there is a channel multiplier. The passes are those of conv_direct.py.

gather: a block computes a tile of one plane [n, k, z], ROWS * EACH rows by COLS columns, a thread EACH results of
one column. For each channel and each tap along D it loads the cells that the tile meets, halo included, into shared
memory once; every tap along H and W then reads them from there.

    shared memory   ((ROWS * EACH - 1) * step_h + (R - 1) * |reach_h| + 1) * (the same along W), as they are summed

wgrad: a block sums the weights [k, c, t] of one filter plane over its part of the tiles of all planes. For each
tile it loads dy and the cells that it meets; thread (tap, share) adds every share-th pixel of the tile for its tap.
At the end one thread a tap adds the shares in order. Parts are added by `conv_gemm.sum_parts`. No atomics.
Limits: the tile fits into 48 KB, R * S is at most the threads of a block, extents are below 2**31.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastconv.kernels.numba_cuda.elementwise import activation as activation_of
from fastconv.kernels.numba_cuda.memory import reader, writer
from fastconv.kernels.numba_cuda.target import cuda, types


class Plane(NamedTuple):
    """A block's threads, ROWS x COLS, and how many rows each of them computes."""

    ROWS: int
    COLS: int
    EACH: int

    @property
    def threads(self) -> int:
        return self.ROWS * self.COLS

    def halo(self, step: int, reach: int, taps: int, axis: int) -> int:
        """How many cells a tile meets along H (axis 0) or W (axis 1)."""
        results = self.ROWS * self.EACH if axis == 0 else self.COLS
        return (results - 1) * step + max(taps - 1, 0) * abs(reach) + 1


def gather(y: str, x: str, w: str, bias: str | None, acc: Any, activation: str | None, plane: Plane) -> Any:
    """The kernel of fprop and dgrad for operands of these dtypes."""
    read_x, read_w, read_bias, write = reader(x, acc), reader(w, acc), reader(bias or y, acc), writer(y)
    biased, activate = bias is not None, activation_of(activation, acc)
    shared = getattr(types, np.dtype(acc).name)
    ROWS, COLS, EACH = plane
    THREADS = plane.threads

    @cuda.jit
    def conv_depthwise_gather(y, x, w, bias, geometry):
        (
            _, G, M, C, _, Z, P, Q, D, H, W, T, R, S,
            step_d, step_h, step_w, start_d, start_h, start_w, reach_d, reach_h, reach_w,
            y0, yn, yk, yz, yp, yq, xn, xc, xd, xh, xw, w0, wg, wm, wc, wt, wr, ws, bias_step,
        ) = geometry  # fmt: skip
        halo = cuda.shared.array(0, shared)
        sums = cuda.local.array(EACH, acc)
        tiles_p, tiles_q = (P + ROWS * EACH - 1) // (ROWS * EACH), (Q + COLS - 1) // COLS
        block = cuda.blockIdx.x
        q0 = block % tiles_q * COLS
        p0 = block // tiles_q % tiles_p * (ROWS * EACH)
        block = block // tiles_q // tiles_p
        z, k, n = block % Z, block // Z % (G * M), block // Z // (G * M)
        g, m = k // M, k % M
        thread = cuda.threadIdx.x
        row, col = thread // COLS, thread % COLS

        # The cells that the tile meets; a negative reach goes below the first one's.
        below_h, below_w = min(0, (R - 1) * reach_h), min(0, (S - 1) * reach_w)
        height = (ROWS * EACH - 1) * step_h + max(R - 1, 0) * abs(reach_h) + 1
        width = (COLS - 1) * step_w + max(S - 1, 0) * abs(reach_w) + 1
        first_h, first_w = p0 * step_h + start_h + below_h, q0 * step_w + start_w + below_w
        for j in range(EACH):
            sums[j] = acc(0)
        for c in range(C):
            for t in range(T):
                d = z * step_d + start_d + t * reach_d
                if d < 0 or d >= D:  # for all threads of the block alike
                    continue
                source = n * xn + (g * C + c) * xc + d * xd
                cuda.syncthreads()
                for i in range(thread, height * width, THREADS):
                    h, v = first_h + i // width, first_w + i % width
                    within = h >= 0 and h < H and v >= 0 and v < W
                    halo[i] = read_x(x[source + h * xh + v * xw]) if within else acc(0)
                cuda.syncthreads()
                weight = w0 + g * wg + m * wm + c * wc + t * wt
                for r in range(R):
                    for s in range(S):
                        factor = read_w(w[weight + r * wr + s * ws])
                        cell = (row * step_h + r * reach_h - below_h) * width + col * step_w + s * reach_w - below_w
                        for j in range(EACH):
                            sums[j] += factor * halo[cell + j * ROWS * step_h * width]
        for j in range(EACH):
            p, q = p0 + row + j * ROWS, q0 + col
            if p < P and q < Q:
                value = sums[j]
                if biased:
                    value += read_bias(bias[k * bias_step])
                y[y0 + n * yn + k * yk + z * yz + p * yp + q * yq] = write(activate(value))

    return conv_depthwise_gather


def wgrad(dw: str, dy: str, x: str, acc: Any, plane: Plane) -> Any:
    """The kernel for operands of these dtypes; `dw` is that of the workspace where the tiles have parts."""
    read_y, read_x, write = reader(dy, acc), reader(x, acc), writer(dw)
    shared = getattr(types, np.dtype(acc).name)
    ROWS, COLS, EACH = plane
    THREADS, TILE = plane.threads, ROWS * EACH * COLS

    @cuda.jit
    def conv_depthwise_wgrad(dw, dy, x, geometry):
        (
            parts, part_step, _, N, G, M, C, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            wk, wc, wt, wr, ws, yn, yk, yz, yp, yq, xn, xc, xd, xh, xw,
        ) = geometry  # fmt: skip
        halo = cuda.shared.array(0, shared)
        grads = cuda.shared.array(TILE, acc)
        totals = cuda.shared.array(THREADS, acc)
        tiles_p, tiles_q = (P + ROWS * EACH - 1) // (ROWS * EACH), (Q + COLS - 1) // COLS
        block = cuda.blockIdx.x
        t, c, k, part = block % T, block // T % C, block // T // C % (G * M), block // T // C // (G * M)
        thread = cuda.threadIdx.x
        taps = R * S
        shares = THREADS // taps
        tap, share = thread % taps, thread // taps
        r, s = tap // S, tap % S
        height = (ROWS * EACH - 1) * stride_h + (R - 1) * dilation_h + 1
        width = (COLS - 1) * stride_w + (S - 1) * dilation_w + 1
        total = acc(0)
        for tile in range(part, N * Z * tiles_p * tiles_q, parts):
            q0 = tile % tiles_q * COLS
            p0 = tile // tiles_q % tiles_p * (ROWS * EACH)
            z, n = tile // tiles_q // tiles_p % Z, tile // tiles_q // tiles_p // Z
            d = z * stride_d - pad_d + t * dilation_d
            if d < 0 or d >= D:  # for all threads of the block alike
                continue
            cuda.syncthreads()
            for i in range(thread, TILE, THREADS):
                p, q = p0 + i // COLS, q0 + i % COLS
                within = p < P and q < Q
                grads[i] = read_y(dy[n * yn + k * yk + z * yz + p * yp + q * yq]) if within else acc(0)
            source = n * xn + (k // M * C + c) * xc + d * xd
            for i in range(thread, height * width, THREADS):
                h, v = p0 * stride_h - pad_h + i // width, q0 * stride_w - pad_w + i % width
                within = h >= 0 and h < H and v >= 0 and v < W
                halo[i] = read_x(x[source + h * xh + v * xw]) if within else acc(0)
            cuda.syncthreads()
            if share < shares:
                for i in range(share, TILE, shares):
                    h, v = i // COLS * stride_h + r * dilation_h, i % COLS * stride_w + s * dilation_w
                    total += grads[i] * halo[h * width + v]
        totals[thread] = total
        cuda.syncthreads()
        if thread < taps:
            for other in range(1, shares):
                total += totals[thread + other * taps]
            dw[part * part_step + k * wk + c * wc + t * wt + r * wr + s * ws] = write(total)

    return conv_depthwise_wgrad

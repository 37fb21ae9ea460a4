"""Max pooling, the places of its maxima, and its gradient.

    y[n, c, p] = max of the cells of window p                      indices[n, c, p] = the first maximum's flat offset
    dx[n, c, i] = sum of dy[n, c, p] over the windows p with indices[n, c, p] = i

Inside of the library a place is the number of the first maximum's tap in a byte, where its window has few enough.
fprop: one thread an output, and every gridsize-th after it, over the window in row-major order; a NaN is larger
than any number, and the first of equals wins. gather: one thread a cell of dx, over the outputs whose windows
span it, so that no two threads write one cell and every sum has one order. scatter: the same for indices that lie
outside of their windows, which a user may pass; one thread a plane [n, c], which adds its outputs in order.
No shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.kernels.numba_cuda.memory import computed, place, reader, writer
from fastconv.kernels.numba_cuda.pool_window import cells, outputs, skipped, tap
from fastconv.kernels.numba_cuda.target import cuda

NO_TAP = 255  # of the bytes that number taps


def lowest(dtype: Any) -> Any:
    """What the maximum of no cell is."""
    return np.iinfo(dtype).min if np.dtype(dtype).kind in "iu" else -np.inf


def fprop(y: str, x: str, places: str | None) -> Any:
    """The kernel for operands of these dtypes; places that are bytes are the numbers of taps."""
    acc = computed(y)
    with_places, by_tap = places is not None, places == "uint8"
    read, write, low = reader(x, acc), writer(y), acc(lowest(acc))

    @cuda.jit
    def pool_max_fprop(y, places, x, geometry):
        (
            N, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            yn, yc, yz, yp, yq, xn, xc, xd, xh, xw, jn, jc, jz, jp, jq,
        ) = geometry  # fmt: skip
        for index in range(cuda.grid(1), N * C * Z * P * Q, cuda.gridsize(1)):
            n, c, z, p, q = place(index, C, Z, P, Q, channels_last)
            d0, depth = cells(z, D, Z, T, stride_d, pad_d, dilation_d)
            h0, height = cells(p, H, P, R, stride_h, pad_h, dilation_h)
            w0, width = cells(q, W, Q, S, stride_w, pad_w, dilation_w)
            best, where = low, -1
            if by_tap:
                before_d = skipped(d0, z, stride_d, pad_d, dilation_d)
                before_h = skipped(h0, p, stride_h, pad_h, dilation_h)
                before_w = skipped(w0, q, stride_w, pad_w, dilation_w)
            for t in range(depth):
                for r in range(height):
                    for s in range(width):
                        d, h, w = d0 + t * dilation_d, h0 + r * dilation_h, w0 + s * dilation_w
                        value = read(x[n * xn + c * xc + d * xd + h * xh + w * xw])
                        if where < 0 or value > best or (value != value and best == best):
                            best = value
                            if by_tap:
                                where = ((before_d + t) * R + before_h + r) * S + before_w + s
                            else:
                                where = (d * H + h) * W + w
            y[n * yn + c * yc + z * yz + p * yp + q * yq] = write(best)
            if with_places:
                places[n * jn + c * jc + z * jz + p * jp + q * jq] = where & NO_TAP if by_tap else where

    return pool_max_fprop


def gather(dx: str, dy: str, by_tap: bool) -> Any:
    """The kernel for operands of these dtypes, along indices or along the numbers of taps."""
    acc = computed(dx)
    read, write = reader(dy, acc), writer(dx)

    @cuda.jit
    def pool_max_gather(dx, dy, places, geometry):
        (
            N, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            xn, xc, xd, xh, xw, yn, yc, yz, yp, yq, jn, jc, jz, jp, jq,
        ) = geometry  # fmt: skip
        for index in range(cuda.grid(1), N * C * D * H * W, cuda.gridsize(1)):
            n, c, d, h, w = place(index, C, D, H, W, channels_last)
            z0, z1 = outputs(d, D, Z, T, stride_d, pad_d, dilation_d)
            p0, p1 = outputs(h, H, P, R, stride_h, pad_h, dilation_h)
            q0, q1 = outputs(w, W, Q, S, stride_w, pad_w, dilation_w)
            mine = (d * H + h) * W + w
            total = acc(0)
            for z in range(z0, z1):
                t = tap(d, z, D, Z, stride_d, pad_d, dilation_d) if by_tap else 0
                for p in range(p0, p1):
                    r = tap(h, p, H, P, stride_h, pad_h, dilation_h) if by_tap else 0
                    for q in range(q0, q1):
                        if by_tap:
                            s = tap(w, q, W, Q, stride_w, pad_w, dilation_w)
                            mine = (t * R + r) * S + s if min(t, r, s) >= 0 else -1
                        if places[n * jn + c * jc + z * jz + p * jp + q * jq] == mine:
                            total += read(dy[n * yn + c * yc + z * yz + p * yp + q * yq])
            dx[n * xn + c * xc + d * xd + h * xh + w * xw] = write(total)

    return pool_max_gather


def scatter(dx: str, dy: str) -> Any:
    """The kernel that adds ``dy[p]`` to ``total[indices[p]]``, of the type that is summed in; `total` holds zeros."""
    acc = computed(dx)
    read = reader(dy, acc)

    @cuda.jit
    def pool_max_scatter(total, dy, indices, geometry):
        N, C, Z, P, Q, plane, yn, yc, yz, yp, yq, jn, jc, jz, jp, jq = geometry
        for index in range(cuda.grid(1), N * C, cuda.gridsize(1)):
            n, c = index // C, index % C
            for z in range(Z):
                for p in range(P):
                    for q in range(Q):
                        cell = np.int64(indices[n * jn + c * jc + z * jz + p * jp + q * jq])
                        if cell >= 0:
                            total[index * plane + cell] += read(dy[n * yn + c * yc + z * yz + p * yp + q * yq])

    return pool_max_scatter


def index_range(threads: int) -> Any:
    """Per block: the smallest index, the largest, and how many lie outside of their windows.

    One block takes every gridsize-th output; its threads, a power of two, join their findings in a tree.
    """

    @cuda.jit
    def pool_index_range(found, indices, geometry):
        (
            N, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            jn, jc, jz, jp, jq,
        ) = geometry  # fmt: skip
        lows = cuda.shared.array(threads, np.int64)
        highs = cuda.shared.array(threads, np.int64)
        strays = cuda.shared.array(threads, np.int64)
        thread = cuda.threadIdx.x
        low, high, stray = 0, 0, 0
        for index in range(cuda.grid(1), N * C * Z * P * Q, cuda.gridsize(1)):
            n, c, z, p, q = place(index, C, Z, P, Q, channels_last)
            cell = np.int64(indices[n * jn + c * jc + z * jz + p * jp + q * jq])
            low, high = min(low, cell), max(high, cell)
            if cell >= 0:
                d, h, w = cell // W // H, cell // W % H, cell % W
                z0, z1 = outputs(d, D, Z, T, stride_d, pad_d, dilation_d)
                p0, p1 = outputs(h, H, P, R, stride_h, pad_h, dilation_h)
                q0, q1 = outputs(w, W, Q, S, stride_w, pad_w, dilation_w)
                if z < z0 or z >= z1 or p < p0 or p >= p1 or q < q0 or q >= q1:
                    stray += 1
        lows[thread], highs[thread], strays[thread] = low, high, stray
        half = threads // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                lows[thread] = min(lows[thread], lows[thread + half])
                highs[thread] = max(highs[thread], highs[thread + half])
                strays[thread] += strays[thread + half]
            half //= 2
        if thread == 0:
            block = cuda.blockIdx.x
            found[3 * block] = lows[0]
            found[3 * block + 1] = highs[0]
            found[3 * block + 2] = strays[0]

    return pool_index_range

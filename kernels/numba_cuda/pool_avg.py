"""Average pooling and its gradient.

    y[n, c, p] = (sum of the cells of window p) / divisor(p)
    dx[n, c, i] = sum of dy[n, c, p] / divisor(p) over the windows p that have the cell i

The divisor is a given number, or counts cells: those of the padded input, or those of the input alone; over no cell
it is 1. fprop: one thread an output, and every gridsize-th after it. gather: one thread a cell of dx, so that no two
threads write one cell and every sum has one order. No shared memory.
"""

from __future__ import annotations

from typing import Any

from fastconv.kernels.numba_cuda.memory import computed, place, reader, writer
from fastconv.kernels.numba_cuda.pool_window import cells, meets, outputs, padded
from fastconv.kernels.numba_cuda.target import cuda, device


@device
def count(o, n, m, ksize, stride, pad, high, dilation, with_pad):
    """How many cells of an axis the divisor counts."""
    if with_pad:
        return padded(o, n, m, ksize, stride, pad, high, dilation)
    return cells(o, n, m, ksize, stride, pad, dilation)[1]


def fprop(y: str, x: str) -> Any:
    """The kernel for operands of these dtypes."""
    acc = computed(y)
    read, write = reader(x, acc), writer(y)

    @cuda.jit
    def pool_avg_fprop(y, x, geometry):
        (
            N, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            high_d, high_h, high_w, divisor, with_pad, yn, yc, yz, yp, yq, xn, xc, xd, xh, xw,
        ) = geometry  # fmt: skip
        for index in range(cuda.grid(1), N * C * Z * P * Q, cuda.gridsize(1)):
            n, c, z, p, q = place(index, C, Z, P, Q, channels_last)
            d0, depth = cells(z, D, Z, T, stride_d, pad_d, dilation_d)
            h0, height = cells(p, H, P, R, stride_h, pad_h, dilation_h)
            w0, width = cells(q, W, Q, S, stride_w, pad_w, dilation_w)
            total = acc(0)
            for t in range(depth):
                for r in range(height):
                    for s in range(width):
                        d, h, w = d0 + t * dilation_d, h0 + r * dilation_h, w0 + s * dilation_w
                        total += read(x[n * xn + c * xc + d * xd + h * xh + w * xw])
            by = divisor
            if divisor == 0:
                by = count(z, D, Z, T, stride_d, pad_d, high_d, dilation_d, with_pad)
                by *= count(p, H, P, R, stride_h, pad_h, high_h, dilation_h, with_pad)
                by *= count(q, W, Q, S, stride_w, pad_w, high_w, dilation_w, with_pad)
                by = max(by, 1)
            y[n * yn + c * yc + z * yz + p * yp + q * yq] = write(total / acc(by))

    return pool_avg_fprop


def gather(dx: str, dy: str) -> Any:
    """The kernel for operands of these dtypes."""
    acc = computed(dx)
    read, write = reader(dy, acc), writer(dx)

    @cuda.jit
    def pool_avg_gather(dx, dy, geometry):
        (
            N, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            high_d, high_h, high_w, divisor, with_pad, xn, xc, xd, xh, xw, yn, yc, yz, yp, yq,
        ) = geometry  # fmt: skip
        for index in range(cuda.grid(1), N * C * D * H * W, cuda.gridsize(1)):
            n, c, d, h, w = place(index, C, D, H, W, channels_last)
            z0, z1 = outputs(d, D, Z, T, stride_d, pad_d, dilation_d)
            p0, p1 = outputs(h, H, P, R, stride_h, pad_h, dilation_h)
            q0, q1 = outputs(w, W, Q, S, stride_w, pad_w, dilation_w)
            total = acc(0)
            for z in range(z0, z1):
                if not meets(d, z, stride_d, pad_d, dilation_d):
                    continue
                depth = count(z, D, Z, T, stride_d, pad_d, high_d, dilation_d, with_pad)
                for p in range(p0, p1):
                    if not meets(h, p, stride_h, pad_h, dilation_h):
                        continue
                    area = depth * count(p, H, P, R, stride_h, pad_h, high_h, dilation_h, with_pad)
                    for q in range(q0, q1):
                        if not meets(w, q, stride_w, pad_w, dilation_w):
                            continue
                        by = divisor
                        if divisor == 0:
                            by = max(area * count(q, W, Q, S, stride_w, pad_w, high_w, dilation_w, with_pad), 1)
                        total += read(dy[n * yn + c * yc + z * yz + p * yp + q * yq]) / acc(by)
            dx[n * xn + c * xc + d * xd + h * xh + w * xw] = write(total)

    return pool_avg_gather

"""Lp pooling and its gradient.

    y[n, c, w] = (sum over the cells of window w of |x|^p)^(1/p)
    dx[n, c, i] = sum over the windows w that have the cell i of dy[n, c, w] * sign(x[i]) * (|x[i]| / y[w])^(p - 1)

fprop: one thread an output, and every gridsize-th after it; it divides by the window's largest value first, so that
no power overflows. gather: one thread a cell of dx; y comes in the type that is computed in. Where x is 0 the
gradient is 0. No shared memory.
"""

from __future__ import annotations

import math
from typing import Any

from fastconv.kernels.numba_cuda.memory import place, reader, writer
from fastconv.kernels.numba_cuda.pool_window import cells, meets, outputs
from fastconv.kernels.numba_cuda.target import cuda


def fprop(y: str, x: str, acc: Any) -> Any:
    """The kernel for operands of these dtypes."""
    read, write = reader(x, acc), writer(y)

    @cuda.jit
    def pool_lp_fprop(y, x, power, geometry):
        (
            N, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            yn, yc, yz, yp, yq, xn, xc, xd, xh, xw,
        ) = geometry  # fmt: skip
        exponent, root = acc(power), acc(1.0 / power)
        for index in range(cuda.grid(1), N * C * Z * P * Q, cuda.gridsize(1)):
            n, c, z, p, q = place(index, C, Z, P, Q, channels_last)
            d0, depth = cells(z, D, Z, T, stride_d, pad_d, dilation_d)
            h0, height = cells(p, H, P, R, stride_h, pad_h, dilation_h)
            w0, width = cells(q, W, Q, S, stride_w, pad_w, dilation_w)
            corner = n * xn + c * xc + d0 * xd + h0 * xh + w0 * xw
            td, th, tw = dilation_d * xd, dilation_h * xh, dilation_w * xw
            largest = acc(0)
            for t in range(depth):
                for r in range(height):
                    for s in range(width):
                        size = abs(read(x[corner + t * td + r * th + s * tw]))
                        if size > largest or size != size:
                            largest = size
            scale = acc(1)
            if largest > acc(0) and not math.isinf(largest):
                scale = largest
            total = acc(0)
            for t in range(depth):
                for r in range(height):
                    for s in range(width):
                        total += (abs(read(x[corner + t * td + r * th + s * tw])) / scale) ** exponent
            y[n * yn + c * yc + z * yz + p * yp + q * yq] = write(scale * total**root)

    return pool_lp_fprop


def gather(dx: str, dy: str, x: str, acc: Any) -> Any:
    """The kernel for operands of these dtypes; `norms` are the outputs in the type `acc`, in C order."""
    read_y, read_x, write = reader(dy, acc), reader(x, acc), writer(dx)

    @cuda.jit
    def pool_lp_gather(dx, dy, x, norms, power, geometry):
        (
            N, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            gn, gc, gd, gh, gw, yn, yc, yz, yp, yq, xn, xc, xd, xh, xw,
        ) = geometry  # fmt: skip
        exponent = acc(power - 1.0)
        for index in range(cuda.grid(1), N * C * D * H * W, cuda.gridsize(1)):
            n, c, d, h, w = place(index, C, D, H, W, channels_last)
            value = read_x(x[n * xn + c * xc + d * xd + h * xh + w * xw])
            size, sign = abs(value), acc(1) if value > acc(0) else acc(-1)
            z0, z1 = outputs(d, D, Z, T, stride_d, pad_d, dilation_d)
            p0, p1 = outputs(h, H, P, R, stride_h, pad_h, dilation_h)
            q0, q1 = outputs(w, W, Q, S, stride_w, pad_w, dilation_w)
            total = acc(0)
            for z in range(z0, z1):
                for p in range(p0, p1):
                    for q in range(q0, q1):
                        if (
                            meets(d, z, stride_d, pad_d, dilation_d)
                            and meets(h, p, stride_h, pad_h, dilation_h)
                            and meets(w, q, stride_w, pad_w, dilation_w)
                        ):
                            norm = norms[(((n * C + c) * Z + z) * P + p) * Q + q]
                            slope = acc(0)
                            if value != acc(0):
                                slope = sign * (size / norm) ** exponent
                            total += read_y(dy[n * yn + c * yc + z * yz + p * yp + q * yq]) * slope
            dx[n * gn + c * gc + d * gd + h * gh + w * gw] = write(total)

    return pool_lp_gather

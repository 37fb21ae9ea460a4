"""Convolution and its gradients as their definitions, right for every problem.

fprop and dgrad, one thread an output:

    y[n, m, o] = act(bias[m] + sum over c, t of w[m, c, t] * x[n, c, o * step + start + t * reach])

over the channels c and the taps t of its group; cells outside of x are zero. In fprop step is the stride,
start is -pad, reach is the dilation. dgrad is the same sum over dy: of the cells of dx with one residue
modulo the stride, the taps that meet an output lie evenly apart, and o * stride + residue is met by them at
o + start + t * reach, reach negative. So dgrad is one launch for each residue.

wgrad, one thread a weight:

    dw[k, c, t] = sum over n, p of dy[n, k, p] * x[n, c, p * stride - pad + t * dilation]

Threads take every gridsize-th result, so that any number of blocks computes all of them. Neighbouring threads
have neighbouring results in memory, channels-last arrays included. No shared memory; every operand is read again
by each thread that needs it, through the caches.
"""

from __future__ import annotations

from typing import Any

from fastconv.kernels.numba_cuda.elementwise import activation as activation_of
from fastconv.kernels.numba_cuda.memory import place, reader, writer
from fastconv.kernels.numba_cuda.target import cuda


def gather(y: str, x: str, w: str, bias: str | None, acc: Any, activation: str | None, only_nan: bool = False) -> Any:
    """The kernel for operands of these dtypes.

    With `only_nan` it computes again what is NaN in y: kernels that multiply a bad weight by the zeros around x leave
    a NaN where the definition, which has no product there, has none.
    """
    read_x, read_w, read_bias, write = reader(x, acc), reader(w, acc), reader(bias or y, acc), writer(y)
    read_y = reader(y, acc)
    biased, activate = bias is not None, activation_of(activation, acc)

    @cuda.jit
    def conv_direct_gather(y, x, w, bias, geometry):
        (
            N, G, M, C, channels_last, Z, P, Q, D, H, W, T, R, S,
            step_d, step_h, step_w, start_d, start_h, start_w, reach_d, reach_h, reach_w,
            y0, yn, yk, yz, yp, yq, xn, xc, xd, xh, xw, w0, wg, wm, wc, wt, wr, ws, bias_step,
        ) = geometry  # fmt: skip
        for index in range(cuda.grid(1), N * G * M * Z * P * Q, cuda.gridsize(1)):
            n, k, z, p, q = place(index, G * M, Z, P, Q, channels_last)
            target = y0 + n * yn + k * yk + z * yz + p * yp + q * yq
            if only_nan:
                before = read_y(y[target])
                if before == before:
                    continue
            g, m = k // M, k % M
            total = acc(0)
            for t in range(T):
                d = z * step_d + start_d + t * reach_d
                if d < 0 or d >= D:
                    continue
                for r in range(R):
                    h = p * step_h + start_h + r * reach_h
                    if h < 0 or h >= H:
                        continue
                    for s in range(S):
                        v = q * step_w + start_w + s * reach_w
                        if v < 0 or v >= W:
                            continue
                        source = n * xn + g * C * xc + d * xd + h * xh + v * xw
                        weight = w0 + g * wg + m * wm + t * wt + r * wr + s * ws
                        for c in range(C):
                            total += read_x(x[source + c * xc]) * read_w(w[weight + c * wc])
            if biased:
                total += read_bias(bias[k * bias_step])
            y[target] = write(activate(total))

    return conv_direct_gather


def wgrad(dw: str, dy: str, x: str, acc: Any) -> Any:
    """The kernel for operands of these dtypes."""
    read_y, read_x, write = reader(dy, acc), reader(x, acc), writer(dw)

    @cuda.jit
    def conv_direct_wgrad(dw, dy, x, geometry):
        (
            N, G, M, C, Z, P, Q, D, H, W, T, R, S,
            stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dilation_d, dilation_h, dilation_w,
            wk, wc, wt, wr, ws, yn, yk, yz, yp, yq, xn, xc, xd, xh, xw,
        ) = geometry  # fmt: skip
        for index in range(cuda.grid(1), G * M * C * T * R * S, cuda.gridsize(1)):
            k, c, t, r, s = place(index, C, T, R, S, 0)
            source = (k // M * C + c) * xc
            total = acc(0)
            for n in range(N):
                for z in range(Z):
                    d = z * stride_d - pad_d + t * dilation_d
                    if d < 0 or d >= D:
                        continue
                    for p in range(P):
                        h = p * stride_h - pad_h + r * dilation_h
                        if h < 0 or h >= H:
                            continue
                        for q in range(Q):
                            v = q * stride_w - pad_w + s * dilation_w
                            if v >= 0 and v < W:
                                grad = read_y(dy[n * yn + k * yk + z * yz + p * yp + q * yq])
                                total += grad * read_x(x[source + n * xn + d * xd + h * xh + v * xw])
            dw[k * wk + c * wc + t * wt + r * wr + s * ws] = write(total)

    return conv_direct_wgrad

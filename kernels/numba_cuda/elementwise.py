"""Activations, their gradient, and the gradient of a bias.

    y[i] = act(x[i])
    dx[i] = dy[i] * act'(saved[i])        saved is act's output, for gelu and silu its input
    db[k] = sum over n, p of dy[n, k, p]

The first two: one thread an element, and every gridsize-th after it. The third: one block a channel; each
thread sums every THREADS-th pixel, then the block adds its threads' sums in a tree, in one order. Shared memory:
one sum for each thread.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.kernels.numba_cuda.memory import computed, place, reader, writer
from fastconv.kernels.numba_cuda.target import cuda, device


@lru_cache(maxsize=64)
def activation(name: str | None, acc: Any) -> Any:
    """The activation of that name, on values of the type `acc`; None is the identity."""
    zero, one, six, half = acc(0), acc(1), acc(6), 0.5

    @device
    def identity(x):
        return x

    @device
    def relu(x):
        return zero if x <= zero else x

    @device
    def relu6(x):
        return zero if x <= zero else (six if x >= six else x)

    @device
    def leaky_relu(x):
        return x if x > zero else acc(0.01) * x

    @device
    def sigmoid(x):
        small = acc(math.exp(-abs(x)))  # never overflows
        return (one if x >= zero else small) / (one + small)

    @device
    def tanh(x):
        return acc(math.tanh(x))

    @device
    def gelu(x):
        if math.isinf(x):
            return relu(x)
        return acc(half) * x * acc(math.erfc(-x * acc(math.sqrt(half))))

    @device
    def silu(x):
        if math.isinf(x):
            return relu(x)
        return x * sigmoid(x)

    return {
        None: identity, "relu": relu, "relu6": relu6, "leaky_relu": leaky_relu, "sigmoid": sigmoid, "tanh": tanh,
        "gelu": gelu, "silu": silu,
    }[name]  # fmt: skip


@lru_cache(maxsize=64)
def derivative(name: str, acc: Any) -> Any:
    """The derivative of that activation, from what is saved for it."""
    zero, one, six, half = acc(0), acc(1), acc(6), 0.5
    density = 1.0 / math.sqrt(2.0 * math.pi)
    sigmoid = activation("sigmoid", acc)

    @device
    def relu(y):
        return zero if y <= zero else one

    @device
    def relu6(y):
        return zero if y <= zero or y >= six else one

    @device
    def leaky_relu(y):
        return acc(0.01) if y <= zero else one

    @device
    def of_sigmoid(y):
        return y * (one - y)

    @device
    def tanh(y):
        return one - y * y

    @device
    def gelu(x):
        below = acc(half) * acc(math.erfc(-x * acc(math.sqrt(half))))
        if math.isinf(x):
            return below
        return below + x * acc(density) * acc(math.exp(-acc(half) * x * x))

    @device
    def silu(x):
        if math.isinf(x):
            return sigmoid(x)
        return sigmoid(x) * (one + x * sigmoid(-x))

    return {
        "relu": relu, "relu6": relu6, "leaky_relu": leaky_relu, "sigmoid": of_sigmoid, "tanh": tanh, "gelu": gelu,
        "silu": silu,
    }[name]  # fmt: skip


def fill(x: str) -> Any:
    """The kernel that writes one number to all of a flat array."""
    to = np.dtype(x).type

    @cuda.jit
    def elementwise_fill(x, geometry):
        count, value = geometry
        for index in range(cuda.grid(1), count, cuda.gridsize(1)):
            x[index] = to(value)

    return elementwise_fill


def activation_fprop(y: str, x: str, name: str | None) -> Any:
    """The kernel for operands of these dtypes."""
    acc = computed(y)
    read, write, activate = reader(x, acc), writer(y), activation(name, acc)

    @cuda.jit
    def activation_fprop(y, x, geometry):
        N, C, D, H, W, yn, yc, yd, yh, yw, xn, xc, xd, xh, xw = geometry
        for index in range(cuda.grid(1), N * C * D * H * W, cuda.gridsize(1)):
            n, c, d, h, v = place(index, C, D, H, W, 0)
            value = read(x[n * xn + c * xc + d * xd + h * xh + v * xw])
            y[n * yn + c * yc + d * yd + h * yh + v * yw] = write(activate(value))

    return activation_fprop


def activation_dgrad(dx: str, dy: str, saved: str, name: str) -> Any:
    """The kernel for operands of these dtypes."""
    acc = computed(dx)
    read_y, read, write, slope = reader(dy, acc), reader(saved, acc), writer(dx), derivative(name, acc)

    @cuda.jit
    def activation_dgrad(dx, dy, saved, geometry):
        N, C, D, H, W, xn, xc, xd, xh, xw, yn, yc, yd, yh, yw, sn, sc, sd, sh, sw = geometry
        for index in range(cuda.grid(1), N * C * D * H * W, cuda.gridsize(1)):
            n, c, d, h, v = place(index, C, D, H, W, 0)
            grad = read_y(dy[n * yn + c * yc + d * yd + h * yh + v * yw])
            value = read(saved[n * sn + c * sc + d * sd + h * sh + v * sw])
            dx[n * xn + c * xc + d * xd + h * xh + v * xw] = write(grad * slope(value))

    return activation_dgrad


def bias_grad(db: str, dy: str, threads: int) -> Any:
    """The kernel for operands of these dtypes and blocks of `threads`, a power of two."""
    acc = computed(db)
    read, write = reader(dy, acc), writer(db)

    @cuda.jit
    def bias_grad(db, dy, geometry):
        N, Z, P, Q, channels_last, bk, yn, yk, yz, yp, yq = geometry
        sums = cuda.shared.array(threads, acc)
        thread, k = cuda.threadIdx.x, cuda.blockIdx.x
        total = acc(0)
        for index in range(thread, N * Z * P * Q, threads):
            n, _, z, p, q = place(index, 1, Z, P, Q, channels_last)
            total += read(dy[n * yn + k * yk + z * yz + p * yp + q * yq])
        sums[thread] = total
        half = threads // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                sums[thread] += sums[thread + half]
            half //= 2
        if thread == 0:
            db[k * bk] = write(sums[0])

    return bias_grad

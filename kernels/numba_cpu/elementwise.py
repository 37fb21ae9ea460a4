"""Activations, their derivatives, and sums over all but the channels.

`activate` is for any kernel to inline. Codes follow the order of ``fastconv.problem.ACTIVATIONS``, 0 being
none. Floats compute in their own type; integers know none, relu and relu6. A NaN stays one.

    activation_fprop    y = act(x)
    activation_dgrad    dx = dy * act'(saved), saved being y, or x for gelu and silu
    bias_grad_planes    sums[n, k] = sum over p of dy[n, k, p], where channels lie far apart
    bias_grad_channels  sums[r, k] = sum over the rows of part r of dy[n, k, p], where channels are adjacent

Elementwise, arrays come as `rows` of `n` elements: `shape` of the rows' axes, and element strides per array
of those axes and of the row. A task is some rows, or a chunk of one. Sums add 1024 elements, or four
pixels, in the type computed in and those sums in float64; a task has its own sums, and adding them up in
order is left to the caller. No workspace.
"""

import math

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from fastconv.kernels.numba_cpu.functions import error_complement, exponential, hyperbolic_tangent
from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import Kind, number
from fastconv.kernels.numba_cpu.pool_vectors import lane_sum, part, plus, splat, whole
from fastconv.kernels.numba_cpu.simd import width

NONE, RELU, RELU6, LEAKY_RELU, SIGMOID, TANH, GELU, SILU = range(8)
KINDS = tuple(map(Kind, ("none", "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "gelu", "silu")))
TOTAL = STORAGE["float64"]


# ---------------------------------------------------------------- activations


def act(kind, value):
    """The activation `kind` of one float."""
    raise NotImplementedError("only inside kernels")


@overload(act)
def _act(kind, value):
    f = np.float32 if value == types.float32 else np.float64
    zero_, one, six, slope, half, root, lowest = map(f, (0, 1, 6, 0.01, 0.5, -math.sqrt(0.5), -np.inf))
    return {
        "none": lambda kind, value: value,
        "relu": lambda kind, value: zero_ if value <= zero_ else value,
        "relu6": lambda kind, value: zero_ if value <= zero_ else (six if value >= six else value),
        "leaky_relu": lambda kind, value: slope * value if value <= zero_ else value,
        "sigmoid": lambda kind, value: one / (one + exponential(-value)),
        "tanh": lambda kind, value: hyperbolic_tangent(value),
        "gelu": lambda kind, value: zero_ if value == lowest else value * (half * error_complement(root * value)),
        "silu": lambda kind, value: zero_ if value == lowest else value / (one + exponential(-value)),
    }[kind.kind]


def slope(kind, saved):
    """The derivative of an activation at its output, or at its input for gelu and silu."""
    raise NotImplementedError("only inside kernels")


@overload(slope)
def _slope(kind, saved):
    f = np.float32 if saved == types.float32 else np.float64
    zero_, one, six, leak, half, root, norm, inf = map(
        f, (0, 1, 6, 0.01, 0.5, -math.sqrt(0.5), 1 / math.sqrt(2 * math.pi), np.inf)
    )

    def gelu(kind, saved):
        finite = zero_ if abs(saved) == inf else saved
        return half * error_complement(root * saved) + finite * (norm * exponential(-half * saved * saved))

    def silu(kind, saved):
        finite = zero_ if abs(saved) == inf else saved
        return (one + finite / (one + exponential(saved))) / (one + exponential(-saved))

    return {
        "none": lambda kind, saved: one,
        "relu": lambda kind, saved: zero_ if saved <= zero_ else one,
        "relu6": lambda kind, saved: zero_ if saved <= zero_ or saved >= six else one,
        "leaky_relu": lambda kind, saved: leak if saved <= zero_ else one,
        "sigmoid": lambda kind, saved: saved * (one - saved),
        "tanh": lambda kind, saved: one - saved * saved,
        "gelu": gelu,
        "silu": silu,
    }[kind.kind]


def activate(code, value):
    """The activation `code` of one value, in the value's type."""
    raise NotImplementedError("only inside kernels")


@overload(activate)
def _activate(code, value):
    if isinstance(value, types.Integer):
        return _activate_int
    return _activate_float


def _activate_float(code, value):
    if code == RELU:
        return act(KINDS[RELU], value)
    if code == RELU6:
        return act(KINDS[RELU6], value)
    if code == LEAKY_RELU:
        return act(KINDS[LEAKY_RELU], value)
    if code == SIGMOID:
        return act(KINDS[SIGMOID], value)
    if code == TANH:
        return act(KINDS[TANH], value)
    if code == GELU:
        return act(KINDS[GELU], value)
    if code == SILU:
        return act(KINDS[SILU], value)
    return value


def _activate_int(code, value):
    if code == NONE:
        return value
    if value <= 0:
        return type(value)(0)
    return type(value)(6) if code == RELU6 and value > 6 else value


# ---------------------------------------------------------------- rows


@njit(nogil=True)
def row_offset(row, shape, strides):
    """The offset of a row from its number."""
    offset = 0
    for axis in range(len(shape) - 1, -1, -1):
        offset += row % shape[axis] * strides[axis]
        row //= shape[axis]
    return offset


@njit(nogil=True, error_model="numpy")
def act_row(kind, X, S, x, at, x_step, y, to, y_step, n):
    if x_step == 1 and y_step == 1:
        for i in range(n):
            store(X, y, to + i, act(kind, load(X, x, at + i)))
    else:
        for i in range(n):
            store(X, y, to + i * y_step, act(kind, load(X, x, at + i * x_step)))


@njit(nogil=True, error_model="numpy")
def slope_row(kind, G, X, dy, g, g_step, x, at, x_step, dx, to, step, n):
    if g_step == 1 and x_step == 1 and step == 1:
        for i in range(n):
            store(G, dx, to + i, load(G, dy, g + i) * slope(kind, load(X, x, at + i)))
    else:
        for i in range(n):
            store(G, dx, to + i * step, load(G, dy, g + i * g_step) * slope(kind, load(X, x, at + i * x_step)))


@njit(nogil=True)
def act_code(code, X, S, x, at, x_step, y, to, y_step, n):
    """The loop of that code: each is compiled for its own activation."""
    if code == RELU:
        act_row(KINDS[RELU], X, S, x, at, x_step, y, to, y_step, n)
    elif code == RELU6:
        act_row(KINDS[RELU6], X, S, x, at, x_step, y, to, y_step, n)
    elif code == LEAKY_RELU:
        act_row(KINDS[LEAKY_RELU], X, S, x, at, x_step, y, to, y_step, n)
    elif code == SIGMOID:
        act_row(KINDS[SIGMOID], X, S, x, at, x_step, y, to, y_step, n)
    elif code == TANH:
        act_row(KINDS[TANH], X, S, x, at, x_step, y, to, y_step, n)
    elif code == GELU:
        act_row(KINDS[GELU], X, S, x, at, x_step, y, to, y_step, n)
    else:
        act_row(KINDS[SILU], X, S, x, at, x_step, y, to, y_step, n)


@njit(nogil=True)
def slope_code(code, G, X, dy, g, g_step, x, at, x_step, dx, to, step, n):
    if code == RELU:
        slope_row(KINDS[RELU], G, X, dy, g, g_step, x, at, x_step, dx, to, step, n)
    elif code == RELU6:
        slope_row(KINDS[RELU6], G, X, dy, g, g_step, x, at, x_step, dx, to, step, n)
    elif code == LEAKY_RELU:
        slope_row(KINDS[LEAKY_RELU], G, X, dy, g, g_step, x, at, x_step, dx, to, step, n)
    elif code == SIGMOID:
        slope_row(KINDS[SIGMOID], G, X, dy, g, g_step, x, at, x_step, dx, to, step, n)
    elif code == TANH:
        slope_row(KINDS[TANH], G, X, dy, g, g_step, x, at, x_step, dx, to, step, n)
    elif code == GELU:
        slope_row(KINDS[GELU], G, X, dy, g, g_step, x, at, x_step, dx, to, step, n)
    else:
        slope_row(KINDS[SILU], G, X, dy, g, g_step, x, at, x_step, dx, to, step, n)


@njit(parallel=True, nogil=True)
def activation_fprop(tasks, group, chunk, rows, n, code, X, S, y, x, shape, strides):
    """`strides[array]` for y and x; `group` rows a task, or one and `chunk` of its elements."""
    chunks = -(-n // chunk)
    for task in prange(tasks):
        first, start = task // chunks * group, task % chunks * chunk
        for row in range(first, min(first + group, rows)):
            to, at = row_offset(row, shape, strides[0]), row_offset(row, shape, strides[1])
            y_step, x_step = strides[0, -1], strides[1, -1]
            count = min(chunk, n - start)
            act_code(code, X, S, x, at + start * x_step, x_step, y, to + start * y_step, y_step, count)


@njit(parallel=True, nogil=True)
def activation_dgrad(tasks, group, chunk, rows, n, code, G, X, dx, dy, x, shape, strides):
    chunks = -(-n // chunk)
    for task in prange(tasks):
        first, start = task // chunks * group, task % chunks * chunk
        for row in range(first, min(first + group, rows)):
            step, g_step, x_step = strides[0, -1], strides[1, -1], strides[2, -1]
            to = row_offset(row, shape, strides[0]) + start * step
            g = row_offset(row, shape, strides[1]) + start * g_step
            at = row_offset(row, shape, strides[2]) + start * x_step
            slope_code(code, G, X, dy, g, g_step, x, at, x_step, dx, to, step, min(chunk, n - start))


# ---------------------------------------------------------------- sums


def sum_run(X, S, x, at, step, n):
    """A float64 sum of sums of up to 1024 elements."""
    raise NotImplementedError("only inside kernels")


@overload(sum_run)
def _sum_run(X, S, x, at, step, n):
    if X.stored == S.stored:
        return _sum_either
    return lambda X, S, x, at, step, n: sum_each(X, S, x, at, step, n)


def _sum_either(X, S, x, at, step, n):
    if step == 1:
        return sum_vectors(S, x + at * size(S), n)
    return sum_each(X, S, x, at, step, n)


@njit(nogil=True)
def sum_vectors(S, cell, n):
    step, lanes, total = width(S) * size(S), width(S), 0.0
    for first in range(0, n, 1024):
        count = min(1024, n - first)
        part0 = part1 = splat(S, zero(S))
        for _ in range(count // (2 * lanes)):
            part0, part1 = plus(part0, whole(S, cell)), plus(part1, whole(S, cell + step))
            cell += 2 * step
        rest = count % (2 * lanes)
        part0 = plus(part0, part(S, cell, min(rest, lanes)))
        part1 = plus(part1, part(S, cell + step, max(rest - lanes, 0)))
        total += lane_sum(plus(part0, part1))
    return total


@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def sum_each(X, S, x, at, step, n):
    total = 0.0
    for first in range(0, n, 1024):
        last, some = min(first + 1024, n), number(S, 0)
        if step == 1:
            for i in range(first, last):
                some += load(X, x, at + i)
        else:
            for i in range(first, last):
                some += load(X, x, at + i * step)
        total += some
    return total


@njit(parallel=True, nogil=True)
def bias_grad_planes(tasks, K, X, S, dy, sizes, sums):
    for task in prange(tasks):
        plane = task // K * dy[1] + task % K * dy[2]
        total = 0.0
        for a in range(sizes[0]):
            for b in range(sizes[1]):
                total += sum_run(X, S, dy[0], plane + a * dy[3] + b * dy[4], dy[5], sizes[2])
        store(TOTAL, sums, task, total)


@njit(nogil=True)
def add_pixels(X, S, x, at, step, count, K, sums):
    """sums[:K] += pixels, four at a time."""
    for w in range(0, count - 3, 4):
        p0 = at + w * step
        p1, p2, p3 = p0 + step, p0 + 2 * step, p0 + 3 * step
        for k in range(K):
            pairs = (load(X, x, p0 + k) + load(X, x, p1 + k)) + (load(X, x, p2 + k) + load(X, x, p3 + k))
            store(TOTAL, sums, k, load(TOTAL, sums, k) + pairs)
    for w in range(count - count % 4, count):
        for k in range(K):
            store(TOTAL, sums, k, load(TOTAL, sums, k) + load(X, x, at + w * step + k))


@njit(parallel=True, nogil=True)
def bias_grad_channels(tasks, part, N, K, X, S, dy, sizes, sums):
    """A task adds `part` of the N * A * B rows of pixels."""
    for task in prange(tasks):
        own = sums + task * K * 8
        for k in range(K):
            store(TOTAL, own, k, 0.0)
        for row in range(task * part, min(task * part + part, N * sizes[0] * sizes[1])):
            a, b = row // sizes[1] % sizes[0], row % sizes[1]
            at = row // sizes[1] // sizes[0] * dy[1] + a * dy[3] + b * dy[4]
            add_pixels(X, S, dy[0], at, dy[5], sizes[2], K, own)


ENTRIES = ("activation_fprop", "activation_dgrad", "bias_grad_planes", "bias_grad_channels")

"""The `reference` backend: every op as a definition in float64 NumPy that one can check by eye.

Shapes are canonical: x[N, C, size], w[K, C/groups, ksize], y[N, K, out]. The loops run over the
taps of the window; what one tap contributes is one line. Gradients are written as definitions too,
the adjoint of each line, and the tests hold the two against each other.

Floats compute in float64, integers in int64 (unsigned 64-bit in uint64), complex in complex128.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastconv.backends.base import Launch
from fastconv.errors import ShapeError
from fastconv.problem import NO_TAP, ActivationProblem, ConvProblem, PoolProblem, SignalProblem

Array = Any  # NumPy's stubs know no index that is a tuple built at run time


def wide(array: Array) -> Array:
    """The same values in the widest dtype of their kind."""
    kind = array.dtype.kind
    if kind in "iub":
        return array.astype(np.uint64 if array.dtype == np.uint64 else np.int64)
    return array.astype(np.complex128 if kind == "c" else np.float64)


def flat(array: Array, axis: int) -> Array:
    """The axes from `axis` on as one; also of an array without elements, where -1 could be any number."""
    return array.reshape(*array.shape[:axis], math.prod(array.shape[axis:]))


# ---------------------------------------------------------------- convolution


def taps_of(problem: ConvProblem) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Each tap of the window with the slice of the padded input that it meets, one cell per output."""
    window = problem.window
    for tap in np.ndindex(*window.ksize):
        starts = [t * d for t, d in zip(tap, window.dilation, strict=True)]
        yield (
            tap,
            tuple(
                slice(start, start + s * (p - 1) + 1, s)
                for start, s, p in zip(starts, window.stride, problem.out, strict=True)
            ),
        )


def padded(x: Array, problem: ConvProblem) -> Array:
    return np.pad(x, ((0, 0), (0, 0), *problem.window.pad))


def grouped(array: Array, groups: int, axis: int) -> Array:
    """Split the channel axis into (groups, channels of a group)."""
    shape = array.shape
    return array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])


def conv_fprop(problem: ConvProblem, y: Array, x: Array, w: Array, bias: Array | None) -> None:
    """y[n, k, p] = act(bias[k] + sum over c, r of w[k, c, r] * xpad[n, c, p * stride + r * dilation])"""
    G = problem.groups
    xpad = grouped(padded(wide(x), problem), G, 1)
    weights = grouped(wide(w), G, 0)
    total = np.zeros((problem.N, G, problem.K // G, *problem.out), xpad.dtype)
    for tap, cells in taps_of(problem):
        total += np.einsum("ngc...,gkc->ngk...", xpad[:, :, :, *cells], weights[:, :, :, *tap], optimize=True)
    y[...] = epilogue(problem, total.reshape(problem.dims("y")), bias)


def conv_dgrad(problem: ConvProblem, dx: Array, dy: Array, w: Array, bias: Array | None) -> None:
    """dxpad[n, c, p * stride + r * dilation] += sum over k of w[k, c, r] * dy[n, k, p]; then crop."""
    G = problem.groups
    grad = grouped(wide(dy), G, 1)
    weights = grouped(wide(w), G, 0)
    sizes = [n + low + high for n, (low, high) in zip(problem.size, problem.window.pad, strict=True)]
    total = np.zeros((problem.N, G, problem.C // G, *sizes), grad.dtype)
    for tap, cells in taps_of(problem):
        total[:, :, :, *cells] += np.einsum("ngk...,gkc->ngc...", grad, weights[:, :, :, *tap], optimize=True)
    inside = [slice(low, low + n) for n, (low, _) in zip(problem.size, problem.window.pad, strict=True)]
    dx[...] = epilogue(problem, total.reshape(problem.N, problem.C, *sizes)[:, :, *inside], bias)


def conv_wgrad(problem: ConvProblem, dw: Array, dy: Array, x: Array) -> None:
    """dw[k, c, r] = sum over n, p of dy[n, k, p] * xpad[n, c, p * stride + r * dilation]"""
    G = problem.groups
    xpad = grouped(padded(wide(x), problem), G, 1)
    grad = grouped(wide(dy), G, 1)
    grad = flat(grad, 3)
    for tap, cells in taps_of(problem):
        one = np.einsum("ngkp,ngcp->gkc", grad, flat(xpad[:, :, :, *cells], 3), optimize=True)
        dw[:, :, *tap] = one.reshape(dw.shape[:2])


def bias_grad(problem: PoolProblem, db: Array, dy: Array) -> None:
    """db[k] = sum over n, p of dy[n, k, p]"""
    db[...] = wide(dy).sum(axis=(0, *range(2, dy.ndim)))


def epilogue(problem: ConvProblem, total: Array, bias: Array | None) -> Array:
    if bias is not None:
        total = total + wide(bias).reshape(-1, *(1,) * problem.ndim)
    return total if problem.activation is None else ACTIVATIONS[problem.activation](total)


# ---------------------------------------------------------------- activations


def erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x) if x.size else x


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": relu,
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "gelu": lambda x: np.where(np.isinf(x), relu(x), 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))),
    "silu": lambda x: np.where(np.isneginf(x), 0.0, x * sigmoid(x)),
}


def normal_pdf(x: Array) -> Array:
    return np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi)


#: The derivative, from the activation's output y (from its input for gelu and silu).
DERIVATIVES: dict[str, Callable[[Array], Array]] = {
    "relu": lambda y: np.where(y <= 0, 0.0, 1.0),
    "relu6": lambda y: np.where((y <= 0) | (y >= 6), 0.0, 1.0),
    "leaky_relu": lambda y: np.where(y <= 0, 0.01, 1.0),
    "sigmoid": lambda y: y * (1.0 - y),
    "tanh": lambda y: 1.0 - y * y,
    "gelu": lambda x: 0.5 * (1.0 + erf(x / np.sqrt(2.0))) + np.where(np.isinf(x), 0.0, x) * normal_pdf(x),
    "silu": lambda x: sigmoid(x) * (1.0 + np.where(np.isinf(x), 0.0, x) * sigmoid(-x)),
}


def activation_fprop(problem: ActivationProblem, y: Array, x: Array) -> None:
    y[...] = ACTIVATIONS[problem.activation](wide(x))


def activation_dgrad(problem: ActivationProblem, dx: Array, dy: Array, saved: Array) -> None:
    dx[...] = wide(dy) * DERIVATIVES[problem.activation](wide(saved))


# ---------------------------------------------------------------- pooling


def windows_of(problem: PoolProblem) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Each output position with the slice of the input that its window meets (padding left out)."""
    axes = []
    for axis in range(problem.ndim):
        step = problem.step(axis)
        axes.append([slice(first, first + count * step, step) for first, count in problem.cells(axis)])
    positions = itertools.product(*(range(n) for n in problem.out))
    yield from zip(positions, itertools.product(*axes), strict=True)


def cells_of(x: Array, window: tuple[slice, ...]) -> Array:
    """x[N, C, window] with the window's cells flat, in row-major order."""
    return flat(x[:, :, *window], 2)


def first_maximum(cells: Array) -> Array:
    """Per row, the place of the first maximum; a NaN is larger than any number."""
    if cells.dtype.kind == "f":
        nan = np.isnan(cells)
        return np.where(nan.any(-1), nan.argmax(-1), np.where(nan, -np.inf, cells).argmax(-1))
    return cells.argmax(-1)


def offsets_of(problem: PoolProblem) -> Array:
    """The flat offset of every cell of the spatial extent, in its shape."""
    return np.arange(np.prod(problem.size, dtype=np.int64)).reshape(problem.size)


def lowest(dtype: np.dtype) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def maxpool_fprop(problem: PoolProblem, y: Array, x: Array) -> None:
    """y[n, c, p] = max of the cells of window p; of no cell, minus infinity or the integer's minimum"""
    for p, window in windows_of(problem):
        y[:, :, *p] = cells_of(x, window).max(-1, initial=lowest(x.dtype))


def maxpool_indices(problem: PoolProblem, y: Array, indices: Array, x: Array) -> None:
    """indices[n, c, p] = the flat offset of the first maximum of window p; of no cell, -1"""
    maxpool_fprop(problem, y, x)
    offsets = offsets_of(problem)
    for p, window in windows_of(problem):
        met = offsets[window].reshape(-1)
        indices[:, :, *p] = met[first_maximum(cells_of(x, window))] if met.size else -1


def maxpool_dgrad(problem: PoolProblem, dx: Array, dy: Array, x: Array, indices: Array | None) -> None:
    """dx[n, c, indices[n, c, p]] += dy[n, c, p]"""
    if indices is None:
        indices = np.empty(problem.dims("y"), np.int64)
        maxpool_indices(problem, np.empty(problem.dims("y"), x.dtype), indices, x)
    check_indices(indices, problem, low=-1)
    total = np.zeros((*dx.shape[:2], int(np.prod(problem.size))), wide(dy).dtype)
    for p, _ in windows_of(problem):
        at, grad = indices[:, :, *p, None], wide(dy[:, :, *p, None])
        np.put_along_axis(total, at, np.take_along_axis(total, at, -1) + np.where(at < 0, 0, grad), -1)
    dx[...] = total.reshape(dx.shape)


def maxpool_places(problem: PoolProblem, y: Array, places: Array, x: Array) -> None:
    """places[n, c, p] = the number of the first maximum's tap, or its index where a byte cannot hold that"""
    if places.dtype == np.int64:
        maxpool_indices(problem, y, places, x)
        return
    maxpool_fprop(problem, y, x)
    for p, window in windows_of(problem):
        numbers = taps_met(problem, p).reshape(-1)
        places[:, :, *p] = numbers[first_maximum(cells_of(x, window))] if numbers.size else NO_TAP


def taps_met(problem: PoolProblem, p: tuple[int, ...]) -> Array:
    """The numbers of the taps by which window p meets its cells, in their shape."""
    numbers: Array = np.arange(math.prod(problem.frame)).reshape(problem.frame)
    spans = [(problem.first_taps(axis)[i], problem.cells(axis)[i][1]) for axis, i in enumerate(p)]
    return numbers[tuple(slice(tap, tap + count) for tap, count in spans)]


def maxpool_places_dgrad(problem: PoolProblem, dx: Array, dy: Array, places: Array) -> None:
    """dx[n, c, the cell of tap places[n, c, p]] += dy[n, c, p]"""
    indices = places
    if places.dtype != np.int64:
        offsets, cells = offsets_of(problem), np.full(NO_TAP + 1, -1)
        found: Array = np.empty(places.shape, np.int64)
        for p, window in windows_of(problem):
            cells[taps_met(problem, p)] = offsets[window]
            found[:, :, *p] = cells[places[:, :, *p]]
        indices = found
    maxpool_dgrad(problem, dx, dy, dx, indices)


def check_indices(indices: Array, problem: PoolProblem, low: int) -> None:
    cells = int(np.prod(problem.size))
    if indices.size and not (low <= indices.min() and indices.max() < cells):
        raise ShapeError(
            f"indices must lie in [0, {cells}), the {'x'.join(map(str, problem.size))} cells of the extent: "
            f"got {indices.min()} to {indices.max()}"
        )


def divisors_of(problem: PoolProblem) -> Array:
    """What the sum of each window is divided by; 1 where the average is over no cell."""
    if problem.divisor is not None:
        return np.full(problem.out, problem.divisor)
    axes = range(problem.ndim)
    if problem.count_include_pad:
        counts: list[Any] = [problem.padded_counts(axis) for axis in axes]
    else:
        counts = [[count for _, count in problem.cells(axis)] for axis in axes]
    return np.maximum(functools.reduce(np.multiply.outer, counts), 1)


def avgpool_fprop(problem: PoolProblem, y: Array, x: Array) -> None:
    """y[n, c, p] = (sum of the cells of window p) / divisor"""
    divisors = divisors_of(problem)
    for p, window in windows_of(problem):
        y[:, :, *p] = wide(cells_of(x, window)).sum(-1) / divisors[p]


def avgpool_dgrad(problem: PoolProblem, dx: Array, dy: Array) -> None:
    """dx[n, c, window p] += dy[n, c, p] / divisor"""
    total = np.zeros(dx.shape, np.float64)
    spread = (1,) * problem.ndim
    divisors = divisors_of(problem)
    for p, window in windows_of(problem):
        share = wide(dy[:, :, *p]) / divisors[p]
        total[:, :, *window] += share.reshape(*dx.shape[:2], *spread)
    dx[...] = total


def norm(cells: Array, p: float) -> Array:
    """(sum |cells|^p)^(1/p) over the last axis, scaled by the largest so that nothing overflows."""
    largest = np.abs(cells).max(-1, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return scale * (np.abs(cells) / scale[..., None]).__pow__(p).sum(-1) ** (1.0 / p)


def lppool_fprop(problem: PoolProblem, y: Array, x: Array) -> None:
    """y[n, c, w] = (sum over the cells of window w of |x|^p)^(1/p)"""
    for at, window in windows_of(problem):
        y[:, :, *at] = norm(wide(cells_of(x, window)), problem.p)


def lppool_dgrad(problem: PoolProblem, dx: Array, dy: Array, x: Array) -> None:
    """dx[n, c, i] += dy[n, c, w] * sign(x) * (|x| / y[n, c, w])^(p - 1); nothing where y is 0"""
    total = np.zeros(dx.shape, np.float64)
    for at, window in windows_of(problem):
        met = wide(x[:, :, *window])
        y = norm(flat(met, 2), problem.p).reshape(*met.shape[:2], *(1,) * problem.ndim)
        ratio = np.abs(met) / np.where(y == 0, 1.0, y)
        slope = np.where(met == 0, 0.0, np.sign(met) * np.where(met == 0, 1.0, ratio) ** (problem.p - 1.0))
        total[:, :, *window] += wide(dy[:, :, *at]).reshape(y.shape) * slope
    dx[...] = total


def maxunpool_fprop(problem: PoolProblem, x: Array, y: Array, indices: Array) -> None:
    """x[n, c, indices[n, c, p]] = y[n, c, p], 0 elsewhere; of several, the last p in row-major order"""
    check_indices(indices, problem, low=0)
    total = np.zeros((*x.shape[:2], int(np.prod(problem.size))), x.dtype)
    for p in np.ndindex(*problem.out):
        np.put_along_axis(total, indices[:, :, *p, None], y[:, :, *p, None], -1)
    x[...] = total.reshape(x.shape)


def maxunpool_dgrad(problem: PoolProblem, dy: Array, dx: Array, indices: Array) -> None:
    """dy[n, c, p] = dx[n, c, indices[n, c, p]] where p was the last to be written there, else 0"""
    check_indices(indices, problem, low=0)
    writer = np.full((*dx.shape[:2], int(np.prod(problem.size))), -1)
    for number, p in enumerate(np.ndindex(*problem.out)):
        np.put_along_axis(writer, indices[:, :, *p, None], np.full((*dx.shape[:2], 1), number), -1)
    values = flat(dx, 2)
    for number, p in enumerate(np.ndindex(*problem.out)):
        at = indices[:, :, *p, None]
        won = np.take_along_axis(writer, at, -1) == number
        dy[:, :, *p] = np.where(won, np.take_along_axis(values, at, -1), 0)[..., 0]


# ---------------------------------------------------------------- signals


def correlate(problem: SignalProblem, out: Array, in1: Array, in2: Array) -> None:
    """full[j] = sum over i of in1[j - (n2 - 1) + i] * in2[i]; out is the part that begins at start.

    in2 comes conjugated (correlate) or reversed (convolve) already.
    """
    a, b = wide(in1), wide(in2)
    full = np.zeros(problem.full, np.result_type(a, b))
    for tap in np.ndindex(*b.shape):
        at = tuple(slice(m - 1 - t, m - 1 - t + n) for t, m, n in zip(tap, b.shape, a.shape, strict=True))
        full[at] += a * b[tap]
    part = full[tuple(slice(s, s + n) for s, n in zip(problem.start, problem.out, strict=True))]
    out[...] = part != 0 if out.dtype == bool else part


# ---------------------------------------------------------------- the backend


class ReferenceBackend:
    """Float64 definitions; takes every problem on NumPy arrays."""

    name = "reference"
    kinds = ("numpy",)

    def unavailable(self) -> str | None:
        return None

    def rejects(self, op: str, problem: Any) -> str | None:
        return None

    def plan(self, op: str, problem: Any) -> Launch:
        definition: Callable[..., None] = globals()[op]

        def run(*arrays: Array | None) -> None:
            with np.errstate(all="ignore"):  # infinities and NaNs are values here
                definition(problem, *arrays)

        return Launch(run, "definition", "the definition of the op, in float64")


backend = ReferenceBackend()

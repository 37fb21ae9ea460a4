"""Each op against its equation written as plain loops over every index: what the reference itself is held to."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import fastconv
from fastconv.testing import cases, compare, selftest

SMALL = ["two_strides", "stride_skips", "asymmetric", "pad_wide", "grouped", "depthwise_multiplier", "nhwc",
         "nchw_ohwi", "conv1d_strided", "conv3d_strided", "conv3d_grouped", "bias_relu"]  # fmt: skip


def indices(shape):
    return itertools.product(*map(range, shape))


def to_canonical(problem, role, array):
    """[N, C, spatial] or [K, C, ksize] from the user's array."""
    order = problem.order(role)
    if order in ("NHWC", "OHWI"):
        return np.moveaxis(array, -1, 1)
    return np.moveaxis(array, (-1, -2), (0, 1)) if order == "HWIO" else array


def conv_by_loops(problem, x, w, dy=None):
    """(y, dx, dw) of a convolution without bias, by one loop over every product there is."""
    window, G = problem.window, problem.groups
    y, dx, dw = np.zeros(problem.dims("y")), np.zeros(x.shape), np.zeros(w.shape)
    for n, k in indices((problem.N, problem.K)):
        group = k // (problem.K // G)
        for p in indices(problem.out):
            for c, *r in indices(w.shape[1:]):
                at = [
                    i * s + t * d - low
                    for i, s, t, d, (low, _) in zip(p, window.stride, r, window.dilation, window.pad, strict=True)
                ]
                if all(0 <= a < size for a, size in zip(at, problem.size, strict=True)):
                    from_x, from_w = (n, group * w.shape[1] + c, *at), (k, c, *r)
                    y[n, k, *p] += w[from_w] * x[from_x]
                    if dy is not None:
                        dx[from_x] += w[from_w] * dy[n, k, *p]
                        dw[from_w] += x[from_x] * dy[n, k, *p]
    return y, dx, dw


@pytest.mark.parametrize("name", SMALL)
def test_conv(backend, name):
    problem = cases.conv(name, dtype="float64")
    x, w, bias = cases.conv_integers(problem, "conv_fprop")
    dy = cases.conv_integers(problem, "conv_dgrad", seed=1)[0]
    views = [to_canonical(problem, role, array) for role, array in (("x", x), ("w", w), ("y", dy))]
    y, dx, dw = conv_by_loops(problem, *views)
    if bias is not None:
        y += bias.reshape(-1, *[1] * problem.ndim)
    if problem.activation == "relu":
        y = np.maximum(y, 0)
    for op, operands, role, expected in (
        ("conv_fprop", (x, w, bias), "y", y), ("conv_dgrad", (dy, w), "x", dx), ("conv_wgrad", (dy, x), "w", dw),
    ):  # fmt: skip
        actual = cases.conv_call(op, selftest.for_op(op, problem), operands, backend=backend)
        compare.equal(to_canonical(problem, role, actual), expected, selftest.repro(backend, op, problem))


@pytest.mark.parametrize("name", ["padded", "asymmetric", "dilated", "ceil_padded", "exclude_pad_ceil", "pool3d_mixed",
                                  "dilated_no_cell", "divisor"])  # fmt: skip
def test_pool(backend, name):
    """Maxima with their places, averages with their divisors, and norms, window by window."""
    problem = cases.pool(name, dtype="float64")
    x = cases.pool_integers(problem, "x")
    largest, at = cases.pool_call("max", problem, x, return_indices=True, backend=backend)
    average = cases.pool_call("avg", problem, x, backend=backend)
    norm = cases.pool_call("lp", problem, x, backend=backend)
    view, largest, at, average, norm = (to_canonical(problem, "x", array) for array in (x, largest, at, average, norm))
    window = problem.window
    for n, c, *p in indices(problem.dims("y")):
        cells, padded = [], 0
        for tap in indices(window.ksize):
            cell = [i * s + t * d - low for i, s, t, d, (low, _) in
                    zip(p, window.stride, tap, window.dilation, window.pad, strict=True)]  # fmt: skip
            inside = all(0 <= a < size for a, size in zip(cell, problem.size, strict=True))
            padded += all(a < size + high for a, size, (_, high) in zip(cell, problem.size, window.pad, strict=True))
            if inside:
                offset = int(np.ravel_multi_index(cell, problem.size))
                cells.append((-view[n, c, *cell], offset))
        best = min(cells, default=(math.inf, -1))
        assert (largest[n, c, *p], at[n, c, *p]) == (-best[0], best[1])
        divisor = problem.divisor or (padded if problem.count_include_pad else len(cells)) or 1
        assert average[n, c, *p] == pytest.approx(-sum(value for value, _ in cells) / divisor, rel=1e-14, abs=0)
        assert norm[n, c, *p] == pytest.approx(math.hypot(*(value for value, _ in cells)), rel=1e-14, abs=0)


@pytest.mark.parametrize(("mode", "start"), [("full", (0, 0)), ("same", (1, 0)), ("valid", (2, 1))])
def test_signal(backend, mode, start):
    """full[j] = sum over i of in1[j - (n2 - 1) + i] * conj(in2[i])"""
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-4, 5, s) + 1j * rng.integers(-4, 5, s) for s in ((5, 4), (3, 2)))
    full = np.zeros((7, 5), np.complex128)
    for j in indices(full.shape):
        for i in indices(b.shape):
            at = tuple(j[axis] - (b.shape[axis] - 1) + i[axis] for axis in (0, 1))
            if all(0 <= at[axis] < a.shape[axis] for axis in (0, 1)):
                full[j] += a[at] * b[i].conj()
    y = fastconv.correlate(a, b, mode, backend=backend)
    assert np.array_equal(y, full[start[0] :, start[1] :][: y.shape[0], : y.shape[1]])
    flipped = fastconv.convolve(a, b[::-1, ::-1].conj(), mode, backend=backend)
    assert np.array_equal(flipped, y)


def test_activations(backend):
    """Each function by its formula, with Python's own mathematics."""
    x = np.array([-700.0, -30, -5, -1, -0.5, -0.0, 0.0, 0.25, 1, 5.5, 6, 7, 30, 700])

    def sigmoid(v):
        return 1 / (1 + math.exp(-v)) if v > -700 else math.exp(v)

    formulas = {
        "relu": lambda v: max(v, 0.0), "relu6": lambda v: min(max(v, 0.0), 6.0),
        "leaky_relu": lambda v: v if v > 0 else 0.01 * v, "sigmoid": sigmoid, "tanh": math.tanh,
        "gelu": lambda v: 0.5 * v * math.erfc(-v / math.sqrt(2)), "silu": lambda v: v * sigmoid(v),
    }  # fmt: skip
    for name, formula in formulas.items():
        y = fastconv.conv1d(x[None, None], np.ones((1, 1, 1)), activation=name, backend=backend)[0, 0]
        expected = np.array([formula(v) for v in x])
        assert np.all(np.abs(y - expected) <= 1e-14 * (1 + np.abs(x))), name


def test_derivatives_at_the_kinks(backend):
    """ReLU's derivative at 0 is 0, at both zeros; relu6 stops at 6; the leaky slope is 0.01."""
    x = np.array([-1.0, -0.0, 0.0, 1.0, 6.0, 7.0])[None, None]
    expected = {"relu": [0, 0, 0, 1, 1, 1], "relu6": [0, 0, 0, 1, 0, 0], "leaky_relu": [0.01, 0.01, 0.01, 1, 1, 1]}
    for name, slopes in expected.items():
        y, pullback = fastconv.conv1d_vjp(x, np.ones((1, 1, 1)), activation=name, backend=backend)
        assert pullback(np.ones(y.shape))[0].reshape(-1).tolist() == slopes

"""NaN and infinities: they reach the outputs whose windows contain them, and no others."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv.testing import cases, selftest

NAMES = ["dense", "strided", "dilated", "depthwise", "grouped", "pointwise", "conv1d", "conv3d", "nhwc",
         "mid_3x3", "mid_5x5", "mid_strided", "mid_1x1", "mid_depthwise", "mid_nhwc"]  # fmt: skip


@pytest.mark.parametrize("precision", [None, "ieee"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad"])
def test_conv(backend, op, name, value, precision):
    """One bad element of x (or dy): exactly the outputs that the reference says are touched."""
    problem = selftest.for_op(op, cases.conv(name, precision=precision))
    data, w, *bias = cases.conv_floats(problem, op)
    w = np.abs(w) + np.float32(0.5)  # no weight is 0, so that an infinity stays one
    data.flat[data.size // 2 + 3 if data.size > 8 else 0] = value
    expected = cases.conv_call(op, problem, (data, w, *bias), backend="reference")
    actual = cases.conv_call(op, problem, (data, w, *bias), backend=backend)
    line = selftest.repro(backend, op, problem)
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected)), line
    assert np.array_equal(actual[~np.isfinite(actual)], expected[~np.isfinite(expected)], equal_nan=True), line


@pytest.mark.parametrize("name", ["dense", "depthwise", "mid_3x3", "mid_1x1"])
def test_zeros_do_not_hide_a_nan(backend, name):
    """0 * NaN is NaN: no algorithm may skip zeros in the weights."""
    problem = cases.conv(name, bias=None)
    x = np.full(problem.shape("x"), np.nan, np.float32)
    y = cases.conv_call("conv_fprop", problem, (x, np.zeros(problem.shape("w"), np.float32), None), backend=backend)
    assert np.isnan(y).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["dense", "grouped", "conv1d", "conv3d", "dilated", "depthwise", "nhwc",
                                  "depthwise_nhwc", "mid_3x3", "mid_strided", "mid_depthwise"])  # fmt: skip
def test_dgrad_of_a_bad_weight(backend, name, value, dtype):
    """It touches what it has a product with: beyond dy there is none, as there is no 0 times infinity."""
    problem = selftest.for_op("conv_dgrad", cases.conv(name, dtype=dtype))
    dy, w, *bias = cases.conv_floats(problem, "conv_dgrad")
    w.flat[1] = value
    dy = np.abs(dy) + dy.dtype.type(0.5)
    expected = cases.conv_call("conv_dgrad", problem, (dy, w, *bias), backend="reference")
    actual = cases.conv_call("conv_dgrad", problem, (dy, w, *bias), backend=backend)
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))
    assert np.array_equal(actual[~np.isfinite(actual)], expected[~np.isfinite(expected)], equal_nan=True)


@pytest.mark.parametrize("name", ["dense", "mid_1x1", "mid_depthwise"])
def test_wgrad(backend, name):
    """A NaN in x touches the taps that meet it, of its own channel only."""
    problem = cases.conv(name, bias=None, activation=None)
    dy, x = cases.conv_floats(problem, "conv_wgrad")
    x[0, 1, x.shape[2] // 2, 0] = np.nan
    actual = cases.conv_call("conv_wgrad", problem, (dy, x), backend=backend)
    expected = cases.conv_call("conv_wgrad", problem, (dy, x), backend="reference")
    assert np.array_equal(np.isnan(actual), np.isnan(expected))


@pytest.mark.parametrize(
    "name", ["overlap", "padded", "nhwc", "ceil_padded", "dilated", "pool3d", "adaptive", "mid_overlap"]
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pool(backend, kind, name, dtype):
    """Every pooling passes NaN on, and infinities as they add up; the gradient goes to the first NaN."""
    problem = cases.pool(name, dtype=dtype)
    x = cases.pool_floats(problem, "x")
    bad = cases.generator(problem, 9).random(x.shape)
    for low, value in ((0.0, np.nan), (0.04, np.inf), (0.08, -np.inf)):
        x[(bad >= low) & (bad < low + 0.04)] = value
    dy = cases.pool_integers(problem, "y", seed=1)
    actual, pullback = cases.pool_call(kind, problem, x, vjp=True, backend=backend)
    expected, reference = cases.pool_call(kind, problem, x, vjp=True, backend="reference")
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    assert np.array_equal(np.isnan(a), np.isnan(e))
    assert np.array_equal(a[np.isinf(e)], e[np.isinf(e)])
    assert np.array_equal(np.isfinite(a), np.isfinite(e))
    if kind == "max":
        assert np.array_equal(a, e, equal_nan=True)
        assert np.array_equal(pullback(dy), reference(dy))


def test_max_pool_of_nan_and_minus_infinity(backend):
    """The first NaN wins, even against infinity; a window of -inf has its first cell as its maximum."""
    x = np.array([[[np.inf, np.nan, np.nan, 1, -np.inf, -np.inf]]], np.float32)
    y, indices = fastconv.max_pool1d(x, 3, return_indices=True, backend=backend)
    assert np.array_equal(y, [[[np.nan, 1]]], equal_nan=True)
    assert indices.tolist() == [[[1, 3]]]
    y, indices = fastconv.max_pool1d(x[..., 4:], 2, padding=1, return_indices=True, backend=backend)
    assert y.tolist() == [[[-np.inf, -np.inf]]]
    assert indices.tolist() == [[[0, 1]]]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_max_pool_of_the_smallest_integers(backend, dtype):
    """The padding's minimum does not displace a cell that holds the minimum."""
    low = np.iinfo(dtype).min
    x = np.full((1, 1, 4), low, dtype)
    y, indices = fastconv.max_pool1d(x, 3, 2, 1, return_indices=True, backend=backend)
    assert y.tolist() == [[[low, low]]]
    assert indices.tolist() == [[[0, 1]]]


@pytest.mark.parametrize("activation", selftest.ACTIVATIONS)
def test_activations_at_infinity(backend, activation):
    """Limits at the infinities, NaN for NaN, in the value and in the gradient."""
    x = np.array([[[-np.inf, np.inf, np.nan, -88.0, 88.0, -1e30, 1e30]]], np.float32)
    ones = np.ones((1, 1, 1), np.float32)
    results = []
    for name in (backend, "reference"):
        y, pullback = fastconv.conv1d_vjp(x, ones, activation=activation, backend=name)
        results.append((y, pullback(np.ones_like(y))[0]))
    for actual, expected in zip(*results, strict=True):
        assert np.array_equal(np.isnan(actual), np.isnan(expected))
        finite = np.isfinite(expected)
        assert np.array_equal(actual[~finite], expected[~finite], equal_nan=True)
        assert np.all(np.abs(actual[finite] - expected[finite]) <= 1e-6 * (1 + np.abs(expected[finite])))

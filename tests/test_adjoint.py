"""Every gradient is the adjoint of its forward op, exactly, on small integers.

    <dy, conv(x, w)> = <conv_dgrad(dy, w), x> = <conv_wgrad(dy, x), w>

holds with equality where every sum is exact. float64 sums of these products stay below 2**53, so
one wrong, missing or doubled term shows.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv.testing import cases, compare, selftest

NAMES = [*cases.CONV, "mid_3x3", "mid_strided", "mid_1x1", "mid_depthwise", "mid_grouped", "mid_nhwc"]


def dot(a: np.ndarray, b: np.ndarray) -> int:
    """The inner product of integer-valued arrays, exactly."""
    a, b = compare.wide(a), compare.wide(b)
    assert a.shape == b.shape
    assert (a == np.trunc(a)).all()
    assert (b == np.trunc(b)).all()
    return int((a.astype(np.int64) * b.astype(np.int64)).sum())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_conv(backend, name, dtype):
    problem = cases.conv(name, dtype=dtype, bias=None, activation=None, precision="ieee")
    x, w, _ = cases.conv_integers(problem, "conv_fprop")
    dy = cases.conv_integers(problem, "conv_dgrad", seed=1)[0]
    y = cases.conv_call("conv_fprop", problem, (x, w), backend=backend)
    dx = cases.conv_call("conv_dgrad", problem, (dy, w), backend=backend)
    dw = cases.conv_call("conv_wgrad", problem, (dy, x), backend=backend)
    assert dot(dy, y) == dot(dx, x) == dot(dw, w), problem


@pytest.mark.parametrize("name", NAMES)
def test_conv_transpose(backend, name):
    """It is the adjoint of the convolution with the same weights, and its vjp the adjoint of it."""
    problem = cases.conv(name, dtype="float64", bias=None, activation=None)
    x, w, _ = cases.conv_integers(problem, "conv_fprop")
    dy = cases.conv_integers(problem, "conv_dgrad", seed=1)[0]
    y = cases.conv_call("conv_fprop", problem, (x, w), backend=backend)
    transposed = cases.conv_call("conv_transpose", problem, (dy, w), backend=backend)
    assert dot(dy, y) == dot(transposed, x), problem


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_conv_vjp(backend, ndim, layout, transposed):
    """The pullback's three gradients, each against the forward: y is linear in x, in w and in the bias."""
    rng = np.random.default_rng(ndim)
    size, channels = (7, 6, 5)[:ndim], 4
    x = rng.integers(-4, 5, (2, channels, *size) if layout == "NCHW" else (2, *size, channels)).astype(np.float64)
    ksize = (3, 2, 2)[:ndim]
    w = rng.integers(-4, 5, (channels, 3, *ksize) if layout == "NCHW" else (*ksize, 3, channels)).astype(np.float64)
    if not transposed:
        w = w.swapaxes(0, 1) if layout == "NCHW" else w.swapaxes(-1, -2)
    bias = rng.integers(-4, 5, 3).astype(np.float64)
    name = f"conv_transpose{ndim}d_vjp" if transposed else f"conv{ndim}d_vjp"
    y, pullback = getattr(fastconv, name)(x, w, bias, stride=2, padding=1, layout=layout, backend=backend)
    dy = rng.integers(-4, 5, y.shape).astype(np.float64)
    dx, dw, db = pullback(dy)
    shift = np.broadcast_to(bias.reshape(-1, *[1] * ndim if layout == "NCHW" else []), y.shape)
    assert dot(dy, y - shift) == dot(dx, x) == dot(dw, w)
    assert dot(dy, shift) == dot(db, bias)


@pytest.mark.parametrize("name", [*cases.POOL, *cases.POOL_MID])
def test_max_pool(backend, name):
    """At a given x, max pooling picks: <dy, picked(x)> = <dgrad(dy), x>."""
    problem = cases.pool(name, dtype="float64")
    x, dy = cases.pool_integers(problem, "x"), cases.pool_integers(problem, "y", seed=1)
    y = cases.pool_call("max", problem, x, backend=backend)
    y[np.isinf(y)] = 0  # windows over no cell
    assert dot(dy, y) == dot(selftest.max_dgrad(problem, dy, x, backend), x), problem


@pytest.mark.parametrize("name", [name for name in [*cases.POOL, *cases.POOL_MID] if cases.pool(name).window])
def test_avg_pool(backend, name):
    """With 8 as the divisor, eight times every average is an integer."""
    problem = cases.pool(name, dtype="float64", divisor=8)
    x, dy = cases.pool_integers(problem, "x"), cases.pool_integers(problem, "y", seed=1)
    y, dx = selftest.avg(problem, x, False, backend), selftest.avg(problem, dy, True, backend)
    assert dot(dy, 8 * y) == dot(8 * dx, x), problem


@pytest.mark.parametrize("name", [name for name in cases.POOL if not cases.pool(name).window])
def test_adaptive_avg_pool(backend, name):
    """The data are multiples of every number of cells that a bin here has."""
    problem = cases.pool(name, dtype="float64")
    x, dy = (2520 * cases.pool_integers(problem, role) for role in ("x", "y"))
    y, dx = (np.round(selftest.avg(problem, data, data is dy, backend)) for data in (x, dy))
    assert dot(dy, y) == dot(dx, x), problem


@pytest.mark.parametrize("name", ["halve", "overlap", "nhwc", "pool1d", "pool3d"])
def test_max_unpool(backend, name):
    """Also where windows overlap and two values meet in one place."""
    problem = cases.pool(name, dtype="float64")
    x = cases.pool_integers(problem, "x")
    y, indices = cases.pool_call("max", problem, x, return_indices=True, backend=backend)
    values, dx = cases.pool_integers(problem, "y", seed=2), cases.pool_integers(problem, "x", seed=3)
    assert values.shape == y.shape
    function = getattr(fastconv, f"max_unpool{problem.ndim}d_vjp")
    window = problem.window
    filled, pullback = function(
        values, indices, window.ksize, window.stride, output_size=problem.size, layout=problem.layout, backend=backend
    )
    assert dot(dx, filled) == dot(pullback(dx), values)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("name", cases.SIGNAL)
@pytest.mark.parametrize("op", ["correlate", "convolve"])
def test_signal(backend, op, name, mode, dtype):
    """Re <dy, y> = Re <d1, in1> = Re <d2, in2>, on real and complex integers."""
    rng = np.random.default_rng(5)

    def draw(shape):
        values = rng.integers(-4, 5, shape).astype(dtype)
        return values + 1j * rng.integers(-4, 5, shape) if dtype == "complex128" else values

    in1, in2 = (draw(shape) for shape in cases.SIGNAL[name])
    y, pullback = getattr(fastconv, f"{op}_vjp")(in1, in2, mode, method="direct", backend=backend)
    dy = draw(y.shape)
    d1, d2 = pullback(dy)
    inner = [np.vdot(a, b).real for a, b in ((dy, y), (d1, in1), (d2, in2))]
    assert inner[0] == inner[1] == inner[2]
    assert d1.shape == in1.shape
    assert d2.shape == in2.shape

"""Pullbacks against finite differences, and ops with their gradients against PyTorch where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv.testing import cases, compare, selftest

# ---------------------------------------------------------------- finite differences


def directional(function, arrays, seed=0):
    """(the pullback's slope along a random direction, the central difference's) of a random linear form of y."""
    rng = np.random.default_rng(seed)
    y, pullback = function(*arrays)
    dy = rng.standard_normal(y.shape)
    gradients = pullback(dy)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    directions = [rng.standard_normal(array.shape) for array in arrays]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    h = 1e-5
    ends = [
        (dy * function(*(a + sign * h * d for a, d in zip(arrays, directions, strict=True)))[0]).sum()
        for sign in (1, -1)
    ]
    scale = sum((np.abs(g) * np.abs(d)).sum() for g, d in zip(gradients, directions, strict=True))
    return slope, (ends[0] - ends[1]) / (2 * h), scale


def assert_slopes(function, arrays):
    """Central differences err by h**2 and by roundoff over h: 1e-7 of the scale covers both."""
    slope, difference, scale = directional(function, arrays)
    assert abs(slope - difference) <= 1e-7 * scale


@pytest.mark.parametrize("activation", [None, "sigmoid", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_conv_slopes(backend, layout, transposed, activation):
    """Smooth activations; those with kinks are held exactly in test_definitions."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 6, 5) if layout == "NCHW" else (2, 6, 5, 3))
    shape = (3, 4) if transposed else (4, 3)
    w = rng.standard_normal((*shape, 3, 2) if layout == "NCHW" else (3, 2, *reversed(shape)))
    bias = rng.standard_normal(4)
    vjp = fastconv.conv_transpose2d_vjp if transposed else fastconv.conv2d_vjp
    arguments = {"stride": 2, "padding": 1, "layout": layout, "activation": activation, "backend": backend}
    assert_slopes(lambda x, w, bias: vjp(x, w, bias, **arguments), (x, w, bias))


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
def test_lp_pool_slopes(backend, p):
    x = np.random.default_rng(2).standard_normal((2, 3, 7, 6))
    assert_slopes(lambda x: fastconv.lp_pool2d_vjp(x, p, 3, 2, 1, backend=backend), (x,))
    assert_slopes(lambda x: fastconv.global_lp_pool_vjp(x, p, backend=backend), (x,))


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("op", ["correlate", "convolve"])
def test_signal_slopes(backend, op, method, mode):
    rng = np.random.default_rng(3)
    in1, in2 = rng.standard_normal((7, 6)), rng.standard_normal((3, 2))
    vjp = getattr(fastconv, f"{op}_vjp")
    assert_slopes(lambda a, b: vjp(a, b, mode, method=method, backend=backend), (in1, in2))


# ---------------------------------------------------------------- what a vjp promises


def test_a_pullback_may_be_called_again(backend):
    x, w = np.ones((1, 2, 5, 5)), np.ones((3, 2, 3, 3))
    y, pullback = fastconv.conv2d_vjp(x, w, backend=backend)
    first, second = pullback(y), pullback(2 * y)
    assert np.array_equal(2 * first[0], second[0])
    assert np.array_equal(2 * first[1], second[1])
    assert np.array_equal(pullback(y)[1], first[1])


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1)])
def test_gradients_have_the_shapes_of_their_primals(backend, shape):
    x, w, bias = np.ones((1, 2, 5, 5)), np.ones((4, 2, 3, 3)), np.ones(shape)
    y, pullback = fastconv.conv2d_vjp(x, w, bias, activation="relu", backend=backend)
    assert [gradient.shape for gradient in pullback(y)] == [x.shape, w.shape, shape]
    y, pullback = fastconv.conv2d_vjp(x[0], w, backend=backend)
    dx, dw, db = pullback(y)
    assert (dx.shape, dw.shape, db) == (x[0].shape, w.shape, None)


def test_vjp_with_out_and_indices(backend):
    x, w = np.ones((1, 2, 5, 5)), np.ones((4, 2, 3, 3))
    out = np.full((1, 4, 3, 3), np.nan)
    y, pullback = fastconv.conv2d_vjp(x, w, activation="gelu", out=out, backend=backend)
    assert y is out
    assert pullback(y)[0].shape == x.shape
    (pooled, indices), back = fastconv.max_pool2d_vjp(x, 2, return_indices=True, backend=backend)
    assert indices.dtype == np.int64
    assert back(pooled).sum() == pooled.sum()


def test_the_pullback_runs_on_the_vjp_backend(backend):
    """`backend=` of the vjp is that of its pullback, whatever is set when it runs."""
    x, w = np.ones((1, 2, 5, 5)), np.ones((4, 2, 3, 3))
    y, pullback = fastconv.conv2d_vjp(x, w, np.ones(4), activation="silu", backend=backend)
    expected = fastconv.conv2d_vjp(x, w, np.ones(4), activation="silu", backend=backend)[1](y)
    with fastconv.use_backend("reference"):
        for got, wanted in zip(pullback(y), expected, strict=True):
            compare.same_bits(got, wanted, "pullback")


# ---------------------------------------------------------------- PyTorch

TORCH_CONV = [
    name for name in cases.CONV if cases.conv(name).layout == "NCHW" and cases.conv(name).weight_layout == "OIHW"
]
#: Torch pads both ends alike, by at most half of the window, and average pooling has no dilation.
POOLS = [
    "halve", "overlap", "padded", "stride1", "stride_skips", "ceil", "ceil_padded", "ceil_dropped", "exclude_pad",
    "exclude_pad_ceil", "divisor", "whole", "unbatched", "pool1d", "pool1d_ceil", "pool3d",
]  # fmt: skip


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def pad_of(window):
    """Torch's order for `pad`: the last axis first."""
    return [end for pair in reversed(window.pad) for end in pair]


@pytest.mark.parametrize("name", TORCH_CONV)
def test_conv_against_torch(backend, torch, name):
    """y, dx, dw and db of the same problem, exactly: integers in float64."""
    problem = cases.conv(name, dtype="float64")
    x, w, bias = cases.conv_integers(problem, "conv_fprop")
    window, flat_bias = problem.window, None if bias is None else bias.reshape(-1)
    leaves = [None if array is None else torch.tensor(array, requires_grad=True) for array in (x, w, flat_bias)]
    convolve = getattr(torch.nn.functional, f"conv{problem.ndim}d")
    padded = torch.nn.functional.pad(leaves[0], pad_of(window))
    theirs = convolve(padded, leaves[1], leaves[2], window.stride, 0, window.dilation, problem.groups)
    theirs = {"relu": torch.relu, "relu6": torch.nn.functional.relu6, None: lambda y: y}[problem.activation](theirs)
    y, pullback = getattr(fastconv, f"conv{problem.ndim}d_vjp")(
        x,
        w,
        bias,
        window.stride,
        window.pad,
        window.dilation,
        problem.groups,
        activation=problem.activation,
        backend=backend,
    )
    compare.equal(y, theirs.detach().numpy(), str(problem))
    dy = cases.conv_integers(selftest.for_op("conv_dgrad", problem), "conv_dgrad", seed=1)[0]
    theirs.backward(torch.from_numpy(dy))
    for got, leaf in zip(pullback(dy), leaves, strict=True):
        if leaf is not None:
            compare.equal(got.reshape(leaf.shape), leaf.grad.numpy(), str(problem))


@pytest.mark.parametrize("output_padding", [0, 1])
@pytest.mark.parametrize(("groups", "dilation", "padding"), [(1, 1, 0), (2, 1, 1), (1, 2, 2), (2, 3, 1)])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_transposed_against_torch(backend, torch, ndim, groups, dilation, padding, output_padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (2, 4, 5, 4, 3)[: ndim + 2]).astype(np.float64)
    w = rng.integers(-4, 5, (4, 3, 3, 2, 2)[: ndim + 2]).astype(np.float64)
    bias = rng.integers(-4, 5, 3 * groups).astype(np.float64)
    theirs = getattr(torch.nn.functional, f"conv_transpose{ndim}d")(
        *(torch.from_numpy(array) for array in (x, w, bias)), 2, padding, output_padding, groups, dilation
    )
    ours = getattr(fastconv, f"conv_transpose{ndim}d")(
        x, w, bias, 2, padding, output_padding, groups, dilation, backend=backend
    )
    compare.equal(ours, theirs.numpy(), f"conv_transpose{ndim}d {groups=} {dilation=} {padding=} {output_padding=}")


def torch_pool(torch, kind, problem, x, **options):
    window = problem.window
    function = getattr(torch.nn.functional, f"{kind}_pool{problem.ndim}d")
    pads = [low for low, _ in window.pad]
    return function(x, window.ksize, window.stride, pads, ceil_mode=window.rounding == "ceil", **options)


@pytest.mark.parametrize("name", [*POOLS, "ceil_dilated"])
def test_max_pool_against_torch(backend, torch, name):
    problem = cases.pool(name, dtype="float64", divisor=None)
    x = cases.pool_integers(problem, "x")
    leaf = torch.tensor(x, requires_grad=True)
    options = {"dilation": problem.window.dilation, "return_indices": True}
    theirs, places = torch_pool(torch, "max", problem, leaf, **options)
    (y, indices), pullback = cases.pool_call("max", problem, x, vjp=True, return_indices=True, backend=backend)
    compare.equal(y, theirs.detach().numpy(), str(problem))
    compare.equal(indices, places.numpy(), str(problem))
    dy = cases.pool_integers(problem, "y", seed=1)
    theirs.backward(torch.from_numpy(dy))
    compare.equal(pullback(dy), leaf.grad.numpy(), str(problem))


@pytest.mark.parametrize("name", POOLS)
def test_avg_pool_against_torch(backend, torch, name):
    problem = cases.pool(name, dtype="float64")
    options = {"count_include_pad": problem.count_include_pad}
    if problem.ndim > 1:
        options["divisor_override"] = problem.divisor
    x, dy = cases.pool_floats(problem, "x"), cases.pool_floats(problem, "y", seed=1)
    leaf = torch.tensor(x, requires_grad=True)
    theirs = torch_pool(torch, "avg", problem, leaf, **options)
    theirs.backward(torch.from_numpy(dy))
    y, pullback = cases.pool_call("avg", problem, x, vjp=True, backend=backend)
    for got, wanted, data in ((y, theirs.detach().numpy(), x), (pullback(dy), leaf.grad.numpy(), dy)):
        scale = np.full(wanted.shape, np.abs(data).max(initial=0) * problem.taps)
        compare.within(got, wanted, scale, 2, str(problem))


@pytest.mark.parametrize(
    "name", [name for name in cases.POOL if cases.pool(name).bins and cases.pool(name).layout == "NCHW"]
)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_adaptive_pool_against_torch(backend, torch, kind, name):
    problem = cases.pool(name, dtype="float64")
    x, dy = cases.pool_floats(problem, "x"), cases.pool_floats(problem, "y", seed=1)
    leaf = torch.tensor(x, requires_grad=True)
    theirs = getattr(torch.nn.functional, f"adaptive_{kind}_pool{problem.ndim}d")(leaf, problem.bins)
    theirs.backward(torch.from_numpy(dy))
    y, pullback = cases.pool_call(kind, problem, x, vjp=True, backend=backend)
    for got, wanted, data in ((y, theirs.detach().numpy(), x), (pullback(dy), leaf.grad.numpy(), dy)):
        scale = np.full(wanted.shape, np.abs(data).max() * problem.taps)
        compare.within(got, wanted, scale, 2, str(problem))


@pytest.mark.parametrize("activation", selftest.ACTIVATIONS)
def test_activations_against_torch(backend, torch, activation):
    functions = torch.nn.functional
    apply = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}.get(activation) or getattr(functions, activation)
    x = np.linspace(-9, 9, 181)[None, None]
    leaf = torch.tensor(x, requires_grad=True)
    theirs = apply(leaf)
    theirs.backward(torch.ones_like(theirs))
    y, pullback = fastconv.conv1d_vjp(x, np.ones((1, 1, 1)), activation=activation, backend=backend)
    assert np.abs(y - theirs.detach().numpy()).max() <= 1e-14
    assert np.abs(pullback(np.ones_like(y))[0] - leaf.grad.numpy()).max() <= 1e-14


def test_unpool_against_torch(backend, torch):
    x = cases.pool_floats(cases.pool("halve", dtype="float64"), "x")
    y, indices = fastconv.max_pool2d(x, 2, return_indices=True, backend=backend)
    tensors = torch.from_numpy(y), torch.from_numpy(indices)
    theirs = torch.nn.functional.max_unpool2d(*tensors, 2).numpy()
    compare.equal(fastconv.max_unpool2d(y, indices, 2, backend=backend), theirs, "max_unpool2d")
    larger = torch.nn.functional.max_unpool2d(*tensors, 2, output_size=(9, 7)).numpy()
    ours = fastconv.max_unpool2d(y, indices, 2, output_size=(9, 7), backend=backend)
    compare.equal(ours, larger, "max_unpool2d output_size")
    whole = fastconv.max_unpool2d(y, indices, 2, output_size=(2, 3, 9, 7), backend=backend)
    compare.equal(whole, larger, "max_unpool2d output_size")

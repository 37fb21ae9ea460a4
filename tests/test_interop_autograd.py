"""fastconv under HIPS autograd: values of fastconv, gradients to any order."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("autograd")

import autograd.numpy as anp
from autograd import elementwise_grad, grad, jacobian, value_and_grad
from autograd.test_util import check_grads

import fastconv
import fastconv.interop.autograd as fc
from fastconv import BackendError, DTypeError, ShapeError
from fastconv.interop.rules import execute

RNG = np.random.default_rng(7)
X1, X2, X3 = (RNG.permutation(2 * 2 * math.prod(s)).reshape(2, 2, *s) / 10 - 3 for s in ((6,), (5, 4), (4, 3, 3)))
W1, W2, W3 = (RNG.standard_normal((4, 2, *k)) for k in ((3,), (3, 2), (2, 2, 2)))
T1, T2, T3 = (RNG.standard_normal((2, 3, *k)) for k in ((3,), (3, 2), (2, 2, 2)))
B = RNG.standard_normal(4)
LAST = X2.transpose(0, 2, 3, 1)
PLACES = np.array([[[1, 2, 5]] * 2] * 2)

#: name: the function of its arrays, given the functions of either module.
OPS = {
    "conv1d": (lambda f, x, w, b: f.conv1d(x, w, b, stride=2, padding=1), (X1, W1, B)),
    "conv2d": (lambda f, x, w: f.conv2d(x, w, stride=(2, 1), padding=((1, 0), (1, 1)), dilation=(1, 2)), (X2, W2)),
    "conv3d": (lambda f, x, w: f.conv3d(x, w, padding="same"), (X3, W3)),
    "groups": (lambda f, x, w: f.conv2d(x, w, groups=2), (X2, W2[:, :1])),
    "NHWC": (
        lambda f, x, w, b: f.conv2d(x, w, b, padding=1, layout="NHWC"),
        (LAST, W2.transpose(2, 3, 1, 0), B.reshape(4, 1, 1)),
    ),
    "unbatched": (lambda f, x, w: f.conv2d(x, w, B), (X2[0], W2)),
    "dgrad": (lambda f, dy, w: f.conv1d_dgrad(dy, w, (2, 2, 8), stride=2), (RNG.standard_normal((2, 4, 3)), W1)),
    "wgrad": (lambda f, dy, x: f.conv1d_wgrad(dy, x, (4, 2, 3), padding=1), (RNG.standard_normal((2, 4, 6)), X1)),
    "conv_transpose1d": (lambda f, x, w, b: f.conv_transpose1d(x, w, b, stride=2), (X1, T1, B[:3])),
    "conv_transpose2d": (lambda f, x, w: f.conv_transpose2d(x, w, stride=2, output_padding=1), (X2, T2)),
    "conv_transpose3d": (lambda f, x, w: f.conv_transpose3d(x, w), (X3, T3)),
    "max_pool1d": (lambda f, x: f.max_pool1d(x, 3, 2, 1) ** 2, (X1,)),
    "max_pool2d": (lambda f, x: f.max_pool2d(x, 2, 1, layout="NHWC") ** 2, (LAST,)),
    "max_pool3d": (lambda f, x: f.max_pool3d(x, 2, 1) ** 2, (X3,)),
    "max_pool, indices": (lambda f, x: f.max_pool2d(x, 2, return_indices=True)[0] ** 2, (X2,)),
    "avg_pool2d": (lambda f, x: f.avg_pool2d(x, 3, 2, 1, count_include_pad=False) ** 2, (X2,)),
    "lp_pool1d": (lambda f, x: f.lp_pool1d(x + 5, 1, 2), (X1,)),
    "lp_pool2d": (lambda f, x: f.lp_pool2d(x + 0.013, 2, 2, 1), (X2,)),
    "lp_pool3d": (lambda f, x: f.lp_pool3d(x + 0.013, 3, 2, 1), (X3,)),
    "adaptive_max_pool2d": (lambda f, x: f.adaptive_max_pool2d(x, (2, 3)) ** 2, (X2,)),
    "adaptive_avg_pool1d": (lambda f, x: f.adaptive_avg_pool1d(x, 4) ** 2, (X1,)),
    "global_max_pool": (lambda f, x: f.global_max_pool(x) ** 2, (X2,)),
    "global_avg_pool": (lambda f, x: f.global_avg_pool(x) ** 2, (X2,)),
    "global_lp_pool": (lambda f, x: f.global_lp_pool(x + 0.013, 2.5), (X2,)),
    "max_unpool1d": (lambda f, y: f.max_unpool1d(y, PLACES, 2) ** 2, (X1[..., :3],)),
}


@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients(name):
    """The values are fastconv's bits; gradients to the second order against differences."""
    function, arrays = OPS[name]
    assert np.array_equal(function(fc, *arrays), function(fastconv, *arrays))
    check_grads(lambda *a: function(fc, *a), modes=["rev"], order=2)(*arrays)


@pytest.mark.parametrize("name", ["conv1d", "max_pool2d", "avg_pool2d", "lp_pool2d"])
def test_gradients_are_the_pullback_s(name):
    """Of the first order, exactly fastconv's own."""
    function, arrays = OPS[name]
    small = tuple(np.random.default_rng(1).permutation(a.size).reshape(a.shape) - 3.0 for a in arrays)
    if name == "lp_pool2d":
        y, pullback = fastconv.lp_pool2d_vjp(small[0] + 0.013, 2, 2, 1)
        expected = (pullback(np.ones_like(y)),)
    elif name == "conv1d":
        y, pullback = fastconv.conv1d_vjp(*small, stride=2, padding=1)
        expected = pullback(np.ones_like(y))
    elif name == "max_pool2d":
        y, pullback = fastconv.max_pool2d_vjp(small[0], 2, 1, layout="NHWC")
        expected = (pullback(2 * y),)
    else:
        y, pullback = fastconv.avg_pool2d_vjp(small[0], 3, 2, 1, count_include_pad=False)
        expected = (pullback(2 * y),)
    for at, gradient in enumerate(expected):
        found = grad(lambda *a: anp.sum(function(fc, *a)), at)(*small)
        np.testing.assert_allclose(found, gradient, rtol=1e-13)


def test_a_max_pooling_finds_its_maxima_once(monkeypatch):
    """Its gradient, and the gradient of that, go by the places that the forward pass has found."""
    ran = []
    monkeypatch.setattr(fc, "execute", lambda op, *rest: ran.append(op) or execute(op, *rest))
    assert fc.max_pool2d(X2, 2).shape == (2, 2, 2, 2)
    slope = grad(lambda x: anp.sum(fc.max_pool2d(x, 2) ** 2))
    elementwise_grad(slope)(X2)
    assert ran[0] == "maxpool_fprop"
    assert sorted(set(ran[1:])) == ["maxpool_places", "maxpool_places_dgrad", "maxpool_select"]
    assert ran.count("maxpool_places") == 1


def test_fourth_order():
    """d^4/dt^4 of sum(conv(x, t*w)^4) = 24 * sum(conv(x, w)^4), on integers."""
    x, w = np.arange(6.0).reshape(1, 1, 6) % 4, np.array([[[1.0, -2, 1]]])
    along = lambda t: anp.sum(fc.conv1d(x, t * w) ** 4)  # noqa: E731
    fourth = along
    for _ in range(4):
        fourth = grad(fourth)
    assert fourth(1.5) == 24 * (fastconv.conv1d(x, w) ** 4).sum()


def test_hessian_of_a_quadratic():
    x = np.arange(16.0).reshape(1, 1, 4, 4) % 5 - 2
    hessian = jacobian(jacobian(lambda w: anp.sum(fc.conv2d(x, w) ** 2) / 2))(np.ones((1, 1, 2, 2))).reshape(4, 4)
    windows = np.stack([x[0, 0, r : r + 3, s : s + 3].ravel() for r in (0, 1) for s in (0, 1)])
    assert np.array_equal(hessian, windows @ windows.T)


def test_dtypes_follow_the_operands():
    x, w = X1.astype(np.float32), W1.astype(np.float16)
    assert fc.conv1d(x, w).dtype == np.float32
    assert elementwise_grad(fc.conv1d, 1)(x, w).dtype == np.float16
    assert elementwise_grad(fc.conv1d, 0)(x, w).dtype == np.float32


def test_indices_are_plain_arrays():
    def unpooled(x):
        y, indices = fc.max_pool2d(x, 2, return_indices=True)
        assert isinstance(indices, np.ndarray)
        return fc.max_unpool2d(y, indices, 2, output_size=(5, 4))

    check_grads(unpooled, modes=["rev"], order=2)(X2)


def test_errors_are_fastconv_s():
    with pytest.raises(ShapeError, match="groups=3 must divide C=2"):
        grad(lambda w: anp.sum(fc.conv1d(X1, w, groups=3)))(W1)
    with pytest.raises(DTypeError, match=r"wrap it in numpy\.asarray"):
        fc.conv1d([[[1.0, 2]]], W1)
    with pytest.raises(BackendError, match="no backend 'cudnn'"):
        fc.conv1d(X1, W1, backend="cudnn")
    with pytest.raises(TypeError, match="out"):
        fc.conv1d(X1, W1, out=X1)


def test_training_loop():
    """The loss of a small regression falls to what its noiseless target allows."""
    x = np.random.default_rng(0).standard_normal((8, 2, 13))
    target = fastconv.avg_pool1d(fastconv.conv1d(x, W1), 2)
    loss = value_and_grad(lambda w: anp.mean((fc.avg_pool1d(fc.conv1d(x, w), 2) - target) ** 2))
    w = np.zeros_like(W1)
    first, _ = loss(w)
    for _ in range(100):
        value, gradient = loss(w)
        w = w - gradient
    assert value < 1e-2 * first

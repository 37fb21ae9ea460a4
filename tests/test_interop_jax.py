"""fastconv under JAX: equal to jax.lax, under jit, vmap and grad, to the second order."""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np
import pytest

jax = pytest.importorskip("jax", "0.5")

import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import fastconv  # noqa: E402
import fastconv.interop.jax as fc  # noqa: E402
from fastconv import BackendError, DTypeError, ShapeError  # noqa: E402
from fastconv.interop.rules import execute  # noqa: E402

LAX_LAYOUTS = {
    ("NCHW", 1): ("NCH", "OIH", "NCH"), ("NCHW", 2): ("NCHW", "OIHW", "NCHW"), ("NCHW", 3): ("NCDHW", "OIDHW", "NCDHW"),
    ("NHWC", 1): ("NHC", "HIO", "NHC"), ("NHWC", 2): ("NHWC", "HWIO", "NHWC"), ("NHWC", 3): ("NDHWC", "DHWIO", "NDHWC"),
}  # fmt: skip

#: x's spatial extents, ksize, stride, (low, high) pads, dilation, channels, filters, groups.
GEOMETRIES = [
    ((9,), (3,), (1,), ((0, 0),), (1,), 2, 3, 1),
    ((12,), (4,), (3,), ((2, 1),), (2,), 4, 2, 2),
    ((7, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3, 4, 1),
    ((9, 8), (3, 2), (2, 3), ((2, 0), (1, 3)), (2, 1), 2, 4, 2),
    ((8, 8), (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1), 4, 8, 4),
    ((5, 5), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 3, 2, 1),
    ((11, 4), (5, 3), (4, 1), ((4, 4), (2, 2)), (1, 2), 1, 2, 1),
    ((5, 6, 4), (2, 3, 2), (2, 1, 1), ((1, 0), (1, 1), (0, 1)), (1, 1, 2), 2, 2, 1),
]


def integers(shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), dtype)


def operands(layout, size, ksize, C, K, groups, N=2, dtype=np.float32):
    x_shape = (N, C, *size) if layout == "NCHW" else (N, *size, C)
    w_shape = (K, C // groups, *ksize) if layout == "NCHW" else (*ksize, C // groups, K)
    return integers(x_shape, 1, dtype), integers(w_shape, 2, dtype)


def conv(ndim):
    return getattr(fc, f"conv{ndim}d")


def exact(actual, expected):
    assert isinstance(actual, jax.Array)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(np.asarray(actual), np.asarray(expected))


# ---------------------------------------------------------------- values and gradients against jax.lax


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_conv_equals_lax(geometry, layout):
    """The value and both gradients, exactly, eagerly and compiled."""
    size, ksize, stride, pads, dilation, C, K, groups = geometry
    x, w = operands(layout, size, ksize, C, K, groups)

    def ours(x, w):
        return conv(len(size))(x, w, None, stride, pads, dilation, groups, layout=layout)

    def theirs(x, w):
        names = LAX_LAYOUTS[layout, len(size)]
        return lax.conv_general_dilated(
            x, w, stride, pads, rhs_dilation=dilation, dimension_numbers=names, feature_group_count=groups
        )

    y, pullback = jax.vjp(theirs, x, w)
    dy = integers(y.shape, 3)
    for wrap in (lambda f: f, jax.jit):
        ours_y, ours_pullback = jax.vjp(wrap(ours), x, w)
        exact(ours_y, y)
        for one, other in zip(wrap(ours_pullback)(dy), pullback(dy), strict=True):
            exact(one, other)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_conv_transpose_is_the_adjoint_of_lax(ndim):
    x, w = integers((2, 4, *(4, 3, 2)[:ndim])), integers((4, 3, *(3, 2, 2)[:ndim]))
    y = getattr(fc, f"conv_transpose{ndim}d")(x, w, stride=2, padding=1, output_padding=1)
    forward = lambda y: lax.conv_general_dilated(y, w, (2,) * ndim, [(1, 1)] * ndim)  # noqa: E731
    _, adjoint = jax.vjp(forward, jnp.zeros_like(y))
    exact(y, adjoint(x)[0])


def test_bias_and_its_gradient():
    for layout, axes in (("NCHW", (0, 2, 3)), ("NHWC", (0, 1, 2))):
        x, w = operands(layout, (5, 5), (3, 3), 2, 4, 1)
        b = integers((4,), 5)
        apply = lambda b, x=x, w=w, layout=layout: fc.conv2d(x, w, b, padding=1, layout=layout)  # noqa: E731
        y, pullback = jax.vjp(apply, b)
        exact(y - apply(jnp.zeros(4)), jnp.broadcast_to(b if layout == "NHWC" else b[:, None, None], y.shape))
        dy = integers(y.shape, 6)
        exact(pullback(dy)[0], dy.sum(axes))


POOLS = [
    ((9,), (3,), (2,), ((1, 1),), (1,)),
    ((8, 7), (3, 2), (2, 1), ((1, 1), (0, 1)), (1, 1)),
    ((9, 9), (2, 3), (3, 2), ((0, 0), (2, 1)), (2, 1)),
    ((5, 4, 6), (2, 2, 3), (1, 2, 3), ((0, 1), (1, 0), (1, 1)), (1, 1, 1)),
]


@pytest.mark.parametrize("geometry", POOLS, ids=str)
def test_pooling_equals_lax(geometry):
    """Max and sum pooling and their gradients; the values differ, so that there are no ties."""
    size, ksize, stride, pads, dilation = geometry
    ndim, shape = len(size), (2, 3, *size)
    x = jnp.asarray(np.random.default_rng(0).permutation(math.prod(shape)).reshape(shape), jnp.float32)
    window = ((1, 1, *ksize), (1, 1, *stride), ((0, 0), (0, 0), *pads), (1, 1, *(1,) * ndim), (1, 1, *dilation))
    best = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *window)  # noqa: E731
    total = lambda x: lax.reduce_window(x, 0.0, lax.add, *window)  # noqa: E731
    max_pool = lambda x: getattr(fc, f"max_pool{ndim}d")(x, ksize, stride, pads, dilation)  # noqa: E731
    sum_pool = lambda x: getattr(fc, f"avg_pool{ndim}d")(x, ksize, stride, pads, dilation, divisor=1)  # noqa: E731
    for ours, theirs in ((max_pool, best), (sum_pool, total)):
        y, pullback = jax.vjp(jax.jit(ours), x)
        exact(y, theirs(x))
        dy = integers(y.shape, 3)
        plain = dilation == (1,) * ndim  # lax has no gradient of a dilated maximum
        if ours is sum_pool or plain:
            exact(pullback(dy)[0], jax.vjp(theirs, x)[1](dy)[0])


def test_every_other_pooling_equals_fastconv():
    x = integers((2, 3, 6, 5))
    for name, arguments in {
        "adaptive_max_pool2d": ((2, 3),), "adaptive_avg_pool2d": (2,), "lp_pool2d": (2, 2), "global_max_pool": (),
        "global_avg_pool": (), "global_lp_pool": (),
    }.items():  # fmt: skip
        ours = jax.jit(lambda x, name=name, arguments=arguments: getattr(fc, name)(x, *arguments))
        exact(ours(x), getattr(fastconv, name)(x, *arguments))


# ---------------------------------------------------------------- orders of derivatives

RNG = np.random.default_rng(7)
X1, X2, X3 = (RNG.permutation(2 * 2 * math.prod(s)).reshape(2, 2, *s) / 10 - 3 for s in ((6,), (5, 4), (4, 3, 3)))
W1, W2, W3 = (RNG.standard_normal((4, 2, *k)) for k in ((3,), (3, 2), (2, 2, 2)))
T1, T2, T3 = (RNG.standard_normal((2, 3, *k)) for k in ((3,), (3, 2), (2, 2, 2)))
B = RNG.standard_normal(4)
LAST = X2.transpose(0, 2, 3, 1)

SMOOTH = {
    "conv1d": (lambda x, w, b: fc.conv1d(x, w, b, stride=2, padding=1), (X1, W1, B)),
    "conv2d": (lambda x, w, b: fc.conv2d(x, w, b, (2, 1), ((1, 0), (1, 1)), (1, 2)), (X2, W2, B)),
    "conv3d": (lambda x, w: fc.conv3d(x, w, padding="same"), (X3, W3)),
    "groups": (lambda x, w: fc.conv2d(x, w, groups=2), (X2, W2[:, :1])),
    "NHWC": (lambda x, w: fc.conv2d(x, w, padding=1, layout="NHWC"), (LAST, W2.transpose(2, 3, 1, 0))),
    "unbatched": (lambda x, w: fc.conv2d(x, w), (X2[0], W2)),
    "dgrad": (lambda dy, w: fc.conv1d_dgrad(dy, w, (2, 2, 8), stride=2), (RNG.standard_normal((2, 4, 3)), W1)),
    "wgrad": (lambda dy, x: fc.conv1d_wgrad(dy, x, (4, 2, 3), padding=1), (RNG.standard_normal((2, 4, 6)), X1)),
    "conv_transpose1d": (lambda x, w, b: fc.conv_transpose1d(x, w, b, stride=2), (X1, T1, B[:3])),
    "conv_transpose2d": (lambda x, w: fc.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1), (X2, T2)),
    "conv_transpose3d": (fc.conv_transpose3d, (X3, T3)),
    "max_pool1d": (lambda x: fc.max_pool1d(x, 3, 2, 1) ** 2, (X1,)),
    "max_pool2d": (lambda x: fc.max_pool2d(x, 2, 1) ** 2, (X2,)),
    "max_pool2d NHWC": (lambda x: fc.max_pool2d(x, 2, 1, layout="NHWC") ** 2, (LAST,)),
    "max_pool3d": (lambda x: fc.max_pool3d(x, 2, 1) ** 2, (X3,)),
    "max_pool, indices": (lambda x: fc.max_pool2d(x, 2, return_indices=True)[0] ** 2, (X2,)),
    "avg_pool2d": (lambda x: fc.avg_pool2d(x, 3, 2, 1, count_include_pad=False) ** 2, (X2,)),
    "lp_pool1d, 1": (lambda x: fc.lp_pool1d(x + 5, 1, 2), (X1,)),
    "lp_pool2d, 2": (lambda x: fc.lp_pool2d(x + 0.013, 2, 2, 1), (X2,)),
    "lp_pool2d, 3": (lambda x: fc.lp_pool2d(x + 0.013, 3, 3, 2, 1), (X2,)),
    "adaptive_max_pool2d": (lambda x: fc.adaptive_max_pool2d(x, (2, 3)) ** 2, (X2,)),
    "adaptive_avg_pool1d": (lambda x: fc.adaptive_avg_pool1d(x, 4) ** 2, (X1,)),
    "global_max_pool": (lambda x: fc.global_max_pool(x) ** 2, (X2,)),
    "global_avg_pool": (lambda x: fc.global_avg_pool(x) ** 2, (X2,)),
    "global_lp_pool": (lambda x: fc.global_lp_pool(x + 0.013, 2.5), (X2,)),
    "max_unpool1d": (lambda y: fc.max_unpool1d(y, jnp.array([[[1, 2, 5]] * 2] * 2), 2) ** 2, (X1[..., :3],)),
}  # fmt: skip


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_to_the_second_order(name, x64):
    """Against differences, in float64."""
    function, arrays = SMOOTH[name]
    check_grads(function, tuple(map(jnp.asarray, arrays)), order=2, modes=["rev"])


def test_a_max_pooling_finds_its_maxima_once(monkeypatch):
    """Its gradient, and the gradient of that, go by the places that the forward pass has found."""
    ran = []
    monkeypatch.setattr(fc, "execute", lambda op, *rest: ran.append(op) or execute(op, *rest))
    x = integers((1, 2, 6, 6))
    slope = jax.grad(lambda x: jnp.sum(fc.max_pool2d(x, 2) ** 2))
    slope(x)
    assert ran == ["maxpool_places", "maxpool_places_dgrad"]
    ran.clear()
    jax.grad(lambda x: jnp.sum(slope(x) ** 2))(x)
    assert ran.count("maxpool_places") == 1
    assert set(ran) == {"maxpool_places", "maxpool_places_dgrad", "maxpool_select"}


def test_more_taps_than_a_byte_counts():
    """Their places are indices, of which JAX makes int32."""
    x = integers((1, 2, 40, 40))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(fc.max_pool2d(x, 17, 3) ** 2)))(x)
    y, pullback = fastconv.max_pool2d_vjp(np.asarray(x), 17, 3)
    assert np.array_equal(slope, pullback(2 * y))


def test_third_order(x64):
    check_grads(lambda x, w: jnp.sin(fc.max_pool1d(fc.conv1d(x, w), 2)), (X1, W1), order=3, modes=["rev"])


def test_hessian_of_a_quadratic(x64):
    """jacrev of jacrev, compiled: exact on integers."""
    x, w = operands("NCHW", (4, 4), (2, 2), 1, 1, 1, N=1, dtype=np.float64)
    hessian = jax.jit(jax.jacrev(jax.jacrev(lambda w: (fc.conv2d(x, w) ** 2).sum() / 2)))(w).reshape(4, 4)
    windows = np.stack([np.asarray(x)[0, 0, r : r + 3, s : s + 3].ravel() for r in (0, 1) for s in (0, 1)])
    exact(hessian, jnp.asarray(windows @ windows.T))


def test_forward_mode_is_refused():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: fc.avg_pool1d(x, 2), (jnp.ones((1, 1, 4)),), (jnp.ones((1, 1, 4)),))


def test_only_the_gradients_that_are_wanted(monkeypatch):
    """Images need no gradient: nothing computes it."""
    ran = []
    monkeypatch.setattr(fc, "execute", lambda op, *rest, original=fc.execute: ran.append(op) or original(op, *rest))
    x, w = operands("NCHW", (5, 5), (3, 3), 2, 2, 1)
    jax.grad(lambda w: fc.conv2d(x, w).sum())(w)
    assert ran == ["conv_fprop", "conv_wgrad"]


# ---------------------------------------------------------------- vmap


def stacked(function, arrays, axes):
    """What vmap means: the calls one by one."""
    count = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    one = lambda i: [a if axis is None else jnp.take(a, i, axis) for a, axis in zip(arrays, axes, strict=True)]  # noqa: E731
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[function(*one(i)) for i in range(count)])


VMAPPED = {
    "x": (lambda x, w: fc.conv2d(x, w, padding=1, stride=2), [(3, 2, 4, 5, 5), (6, 4, 3, 3)], (0, None)),
    "w": (lambda x, w: fc.conv2d(x, w, padding=1, groups=2), [(2, 4, 5, 5), (3, 6, 2, 3, 3)], (None, 0)),
    "both": (lambda x, w: fc.conv1d(x, w, stride=2), [(2, 3, 4, 7), (6, 4, 3, 3)], (1, 3)),
    "bias": (lambda x, w, b: fc.conv1d(x, w, b), [(2, 4, 7), (6, 4, 3), (3, 6)], (None, None, 0)),
    "NHWC": (lambda x, w: fc.conv2d(x, w, layout="NHWC"), [(3, 2, 5, 5, 4), (3, 3, 4, 6, 3)], (0, 4)),
    "unbatched": (lambda x, w: fc.conv2d(x, w), [(4, 5, 5, 3), (6, 4, 3, 3)], (3, None)),
    "unbatched w": (lambda x, w: fc.conv2d(x, w, layout="NHWC"), [(5, 5, 4), (3, 3, 3, 4, 6)], (None, 0)),
    "dgrad": (lambda dy, w: fc.conv1d_dgrad(dy, w, (2, 4, 7)), [(3, 2, 6, 5), (6, 4, 3)], (0, None)),
    "wgrad": (lambda dy, x: fc.conv1d_wgrad(dy, x, (6, 4, 3)), [(3, 2, 6, 5), (2, 4, 7)], (0, None)),
    "wgrad NHWC": (lambda g, x: fc.conv1d_wgrad(g, x, (3, 4, 6), layout="NHWC"), [(3, 2, 5, 6), (3, 2, 7, 4)], (0, 0)),
    "transpose": (lambda x, w, b: fc.conv_transpose1d(x, w, b, 2), [(3, 2, 4, 5), (3, 4, 6, 3), (3, 6)], (0, 0, 0)),
    "indices": (lambda x: fc.max_pool2d(x, 2, return_indices=True), [(2, 3, 4, 6, 6)], (1,)),
    "pool": (lambda x: fc.avg_pool2d(x, 3, 2, 1, layout="NHWC"), [(6, 6, 4, 3)], (3,)),
    "max grad": (lambda x, g: jax.vjp(lambda x: fc.max_pool1d(x, 2), x)[1](g)[0], [(2, 4, 6), (3, 2, 4, 3)], (None, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", VMAPPED)
def test_vmap(name):
    function, shapes, axes = VMAPPED[name]
    arrays = [integers(shape, seed) for seed, shape in enumerate(shapes)]
    expected = stacked(function, arrays, axes)
    for wrap in (lambda f: f, jax.jit):
        jax.tree.map(exact, wrap(jax.vmap(function, axes))(*arrays), expected)


def test_vmap_is_one_call(monkeypatch):
    ran = []
    monkeypatch.setattr(fc, "execute", lambda op, *rest, original=fc.execute: ran.append(op) or original(op, *rest))
    jax.vmap(lambda x, w: fc.conv1d(x, w), (0, 0))(integers((8, 2, 4, 7)), integers((8, 6, 4, 3)))
    assert ran == ["conv_fprop"]


def test_vmap_of_vmap_of_grad():
    """Per-example gradients for several weights, and one axis of each kind inside the other."""
    x, w = integers((3, 2, 4, 7)), integers((2, 6, 4, 3), 1)
    gradient = jax.grad(lambda w, x: (fc.conv1d(x, w) ** 2).sum())
    found = jax.jit(jax.vmap(jax.vmap(gradient, (None, 0)), (0, None)))(w, x)
    for i, j in itertools.product(range(2), range(3)):
        exact(found[i, j], gradient(w[i], x[j]))


# ---------------------------------------------------------------- dtypes, errors, devices


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_float_dtypes(dtype):
    x, w = operands("NCHW", (5, 5), (3, 3), 2, 2, 1, dtype=dtype)
    y = jax.jit(fc.conv2d)(x, w)
    exact(y, jnp.asarray(fastconv.conv2d(np.asarray(x), np.asarray(w))))
    dx, dw = jax.grad(lambda *a: fc.conv2d(*a).sum(), (0, 1))(x, w)
    assert dx.dtype == dw.dtype == dtype


def test_mixed_dtypes_give_each_its_own_gradient():
    x, w = integers((1, 2, 5)), integers((2, 2, 3), dtype=jnp.float16)
    assert fc.conv1d(x, w).dtype == jnp.float32
    dx, dw = jax.jit(jax.grad(lambda *a: fc.conv1d(*a).sum(), (0, 1)))(x, w)
    assert (dx.dtype, dw.dtype) == (jnp.float32, jnp.float16)


def test_bytes_and_integers():
    x, w = integers((1, 2, 5), dtype=np.int8), integers((2, 2, 3), dtype=np.int8)
    exact(jax.jit(fc.conv1d)(x, w), jnp.asarray(fastconv.conv1d(np.asarray(x), np.asarray(w))))
    exact(jax.jit(lambda x: fc.max_pool1d(x, 2))(x), jnp.asarray(fastconv.max_pool1d(np.asarray(x), 2)))


@pytest.mark.parametrize("wide", [False, True])
def test_indices_have_jax_s_own_integers(wide):
    with jax.enable_x64(wide):
        x = integers((2, 3, 6, 6))
        for wrap in (lambda f: f, jax.jit):
            _, indices = wrap(lambda x: fc.max_pool2d(x, 2, return_indices=True))(x)
            assert indices.dtype == (jnp.int64 if wide else jnp.int32)
            assert np.array_equal(indices, fastconv.max_pool2d(np.asarray(x), 2, return_indices=True)[1])


def test_integer_operands_have_no_gradient():
    """Unpooling is differentiated with the indices among its arguments, which JAX gives its float0."""
    y, indices = fc.max_pool2d(integers((1, 1, 4, 4)), 2, return_indices=True)
    back, pullback = jax.vjp(lambda y, i: fc.max_unpool2d(y, i, 2), y, indices)
    dy, di = pullback(jnp.ones_like(back))
    assert dy.shape == y.shape
    assert di.dtype == jax.dtypes.float0


def test_numpy_arrays_are_taken():
    exact(fc.conv1d(np.ones((1, 1, 3), np.float32), np.ones((1, 1, 2), np.float32)), jnp.full((1, 1, 2), 2.0))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_errors_are_fastconv_s(wrap):
    x, w = integers((1, 4, 5)), integers((2, 2, 3))
    with pytest.raises(ShapeError, match="groups=3 must divide C=4"):
        wrap(lambda x, w: fc.conv1d(x, w, groups=3))(x, w)
    with pytest.raises(DTypeError, match="int32"):
        wrap(lambda x: fc.avg_pool1d(x, 2))(x.astype(jnp.int32))
    with pytest.raises(BackendError, match="no backend 'cudnn'"):
        wrap(lambda x: fc.avg_pool1d(x, 2, backend="cudnn"))(x)
    with pytest.raises(TypeError, match="activation"):
        fc.conv1d(x, w, groups=2, activation="relu")


def test_backend_by_name():
    x, w = operands("NCHW", (5, 5), (3, 3), 2, 2, 1)
    exact(jax.jit(lambda *a: fc.conv2d(*a, backend="reference"))(x, w), fc.conv2d(x, w))


def test_compiling_for_a_gpu_is_refused():
    """Cross-lowering needs no GPU; on the CPU the same program compiles."""
    traced = jax.jit(fc.conv1d).trace(jnp.ones((1, 1, 5)), jnp.ones((1, 1, 3)))
    traced.lower(lowering_platforms=("cpu",))
    with pytest.raises(BackendError, match="conv_fprop inside jit runs on the CPU only, this is compiled for cuda"):
        traced.lower(lowering_platforms=("cuda",))


@pytest.mark.gpu
def test_gpu_arrays_outside_of_jit():
    """By DLPack, on the device."""
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError as error:
        pytest.skip(f"JAX has no GPU: {error}")
    x, w = (jax.device_put(array, device) for array in operands("NCHW", (9, 9), (3, 3), 2, 4, 1))
    y, pullback = jax.vjp(fc.conv2d, x, w)
    assert y.devices() == {device}
    exact(y, lax.conv_general_dilated(x, w, (1, 1), "VALID"))
    assert pullback(y)[1].devices() == {device}


def test_threads_and_large_arrays():
    """Callbacks of several programs at once, with arrays beyond what JAX copies inline, all return."""
    x, w = integers((8, 8, 96, 96)), integers((8, 8, 3, 3), 1)
    step = jax.jit(jax.value_and_grad(lambda w, x: (fc.conv2d(x, w, padding=1) ** 2).mean()))
    expected = step(w, x)
    results = []
    threads = [threading.Thread(target=lambda: results.append([step(w, x) for _ in range(4)][-1])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3
    for result in results:
        jax.tree.map(exact, result, expected)


def test_training_loop():
    """A small classifier under jit: its loss falls as with jax.lax, step for step."""
    x = integers((16, 1, 8, 8)) / 4
    labels = jnp.asarray(np.arange(16) % 3)

    def loss(weights, conv, pool):
        hidden = pool(jax.nn.relu(conv(x, weights[0])))
        logits = hidden.reshape(16, -1) @ weights[1]
        return -jax.nn.log_softmax(logits)[jnp.arange(16), labels].mean()

    ours = (lambda x, w: fc.conv2d(x, w, padding=1), lambda h: fc.max_pool2d(h, 2))
    theirs = (
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)), precision="highest"),
        lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"),
    )
    losses = []
    for functions in (ours, theirs):
        step = jax.jit(jax.value_and_grad(lambda weights, f=functions: loss(weights, *f)))
        weights, history = [integers((4, 1, 3, 3), 3) / 8, integers((64, 3), 4) / 32], []
        for _ in range(12):
            value, gradients = step(weights)
            history.append(float(value))
            weights = [w - 0.3 * g for w, g in zip(weights, gradients, strict=True)]
        losses.append(history)
    assert losses[0][-1] < 0.6 * losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)

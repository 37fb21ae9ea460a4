"""CuPy's cudnn module on fastconv: its functions, and sigpy's convolutions on them.

NumPy arrays stand in for CuPy's where a program only asks for functions; where it matters what kind of array goes in
and comes out, a stand-in for CuPy does, its kernels running on the emulator.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import fastconv
import fastconv.interop.cupy_cudnn as cudnn
from fastconv import DTypeError, ShapeError
from fastconv.testing import emulator, standin

TUNING = {"auto_tune": True, "tensor_core": "auto"}
BACK = {**TUNING, "deterministic": False}


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


@pytest.fixture
def modules():
    """What `install` provides."""
    pytest.importorskip("cupy")
    cudnn.install()
    yield
    cudnn.uninstall()


# ---------------------------------------------------------------- the functions


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(("groups", "bias"), [(1, True), (2, False)])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_convolution(ndim, groups, bias, layout):
    """Results go into the arrays that were passed, whatever they held; nothing is returned."""
    pad, stride, dilation = (2, 1, 0)[:ndim], (2, 1, 2)[:ndim], (1, 2, 1)[:ndim]
    size, ksize = (7, 8, 6)[:ndim], (3, 2, 3)[:ndim]
    names = {"layout": ("NCHW", "NHWC")[layout], "weight_layout": ("OIHW", "OHWI")[layout]}
    shaped = lambda N, C, size: (N, C, *size) if layout == 0 else (N, *size, C)  # noqa: E731
    x, w, b = integers(0, *shaped(2, 4, size)), integers(1, *shaped(6, 4 // groups, ksize)), integers(2, 6)
    b, db = (b, integers(3, 4)) if bias else (None, None)
    call = getattr(fastconv, f"conv{ndim}d")
    expected = call(x, w, b, stride, pad, dilation, groups, **names)
    y = np.full_like(expected, np.nan)
    layouts = {"d_layout": layout, "w_layout": layout}
    window = (pad, stride, dilation, groups)
    assert cudnn.convolution_forward(x, w, b, y, *window, **TUNING, **layouts) is None
    assert np.array_equal(y, expected)

    dx, dw = np.full_like(x, np.nan), np.full_like(w, np.nan)
    assert cudnn.convolution_backward_data(w, y, db, dx, *window, **BACK, **layouts) is None
    grad = getattr(fastconv, f"conv{ndim}d_dgrad")(y, w, x.shape, stride, pad, dilation, groups, **names)
    if bias:
        grad += db.reshape(-1, *(1,) * ndim) if layout == 0 else db
    assert np.array_equal(dx, grad)
    assert cudnn.convolution_backward_filter(x, y, dw, *window, **BACK, **layouts) is None
    grad = getattr(fastconv, f"conv{ndim}d_wgrad")(y, x, w.shape, stride, pad, dilation, groups, **names)
    assert np.array_equal(dw, grad)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize(("out", "rounding"), [((4, 3), "floor"), ((5, 4), "ceil")])
def test_pooling(mode, out, rounding):
    """A larger y has last partial windows, as Chainer's cover_all."""
    x, y = integers(0, 2, 3, 8, 6), np.full((2, 3, *out), np.nan, np.float32)
    window = {"ksize": (3, 2), "stride": (2, 2), "padding": ((1, 1), (0, 0)), "rounding": rounding}
    if rounding == "ceil":
        x = integers(0, 2, 3, 8, 7)
    name, more = ("max_pool2d", {}) if mode in (0, 3) else ("avg_pool2d", {"count_include_pad": mode == 1})
    assert cudnn.pooling_forward(x, y, (3, 2), (2, 2), (1, 0), mode) is y
    expected, pullback = getattr(fastconv, f"{name}_vjp")(x, **window, **more)
    assert np.array_equal(y, expected)
    dy = integers(1, *y.shape)
    assert np.array_equal(cudnn.pooling_backward(x, y, dy, (3, 2), (2, 2), (1, 0), mode), pullback(dy))


@pytest.mark.parametrize("mode", range(5))
def test_activation(mode):
    """Against the formulas, and the derivative against differences."""
    x = np.random.default_rng(0).standard_normal((3, 4, 5)) * 2
    coef = 0.75
    formula = (
        lambda x: 1 / (1 + np.exp(-x)),
        lambda x: np.maximum(x, 0),
        np.tanh,
        lambda x: np.minimum(np.maximum(x, 0), coef),
        lambda x: np.where(x > 0, x, coef * (np.exp(x) - 1)),
    )[mode]
    y = cudnn.activation_forward(x, mode, coef)
    np.testing.assert_allclose(y, formula(x), rtol=1e-14)
    slope = (formula(x + 1e-6) - formula(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(cudnn.activation_backward(x, y, np.full_like(x, 3), mode, coef), 3 * slope, atol=1e-8)
    small = x.astype(np.float32)
    assert cudnn.activation_forward(small, mode, coef).dtype == np.float32
    assert cudnn.activation_backward(small, small, small, mode, coef).dtype == np.float32


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("algorithm", [0, 1, 2])
def test_softmax(algorithm, axis):
    x = np.random.default_rng(0).standard_normal((3, 4, 5)) * 5
    share = np.exp(x) / np.exp(x).sum(axis, keepdims=True)
    y = cudnn.softmax_forward(x, axis, algorithm)
    np.testing.assert_allclose(y, np.log(share) if algorithm == 2 else share, rtol=1e-13, atol=1e-15)
    dy = np.random.default_rng(1).standard_normal(x.shape)
    step = 1e-6 * dy[::-1]
    change = cudnn.softmax_forward(x + step, axis, algorithm) - cudnn.softmax_forward(x - step, axis, algorithm)
    np.testing.assert_allclose(
        (cudnn.softmax_backward(y, dy, axis, algorithm) * step).sum(), (dy * change).sum() / 2, rtol=1e-6
    )
    assert np.isfinite(cudnn.softmax_forward(x * 1e4, axis, algorithm)).all()


def test_errors():
    x, w, y = integers(0, 1, 1, 5, 5), integers(1, 1, 1, 3, 3), np.empty((1, 1, 3, 3), np.float32)
    window = ((0, 0), (1, 1), (1, 1), 1)
    with pytest.raises(ShapeError, match="out must have the shape"):
        cudnn.convolution_forward(x, w, None, np.empty((1, 1, 4, 4), np.float32), *window, **TUNING)
    with pytest.raises(ShapeError, match='tensor_core must be "auto"'):
        cudnn.convolution_forward(x, w, None, y, *window, auto_tune=False, tensor_core="sometimes")
    with pytest.raises(ShapeError, match="d_layout and w_layout"):
        cudnn.convolution_forward(x, w, None, y, *window, **TUNING, d_layout=2)
    with pytest.raises(DTypeError):
        cudnn.convolution_forward(x.astype(int), w, None, y, *window, **TUNING)
    with pytest.raises(ShapeError, match="1 to 3 spatial axes"):
        cudnn.pooling_forward(x[0, 0], y, (2,), (2,), (0,), 0)
    with pytest.raises(ShapeError, match="2 spatial axes"):
        cudnn.pooling_forward(x, y, (2,), (2,), (0,), 0)
    for call in (cudnn.activation_forward, lambda x, mode: cudnn.softmax_forward(x, 1, mode)):
        with pytest.raises(ShapeError, match="constants"):
            call(x, 7)
    with pytest.raises(DTypeError, match="activations take"):
        cudnn.activation_forward(x.astype(int), 1)


# ---------------------------------------------------------------- the modules


def test_install_and_uninstall(modules):
    """Both ways to import them find them; afterwards none does."""
    import cupy
    import cupy.cuda.cudnn as low
    from cupy import cudnn as high

    assert importlib.util.find_spec("cupy.cuda.cudnn") is not None
    assert high is cupy.cudnn is importlib.import_module("cupy.cudnn")
    assert importlib.import_module("cupyx.cudnn").pooling_forward is high.pooling_forward
    assert low.available
    assert low.getVersion() >= 7000
    assert low.CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING == 2
    high.set_max_workspace_size(2**20)
    assert high.get_max_workspace_size() == 2**20
    with pytest.raises(AttributeError, match=r"cupy\.cudnn\.rnn_forward_training is not provided"):
        _ = high.rnn_forward_training
    cudnn.install()  # a second time changes nothing
    assert cupy.cudnn is high
    cudnn.uninstall()
    assert importlib.util.find_spec("cupy.cuda.cudnn") is None
    assert not hasattr(cupy, "cudnn")
    cudnn.uninstall()


def test_what_was_there_comes_back(modules, monkeypatch):
    """On a CuPy that has its own."""
    import cupy

    cudnn.uninstall()
    own = object()
    monkeypatch.setitem(sys.modules, "cupy.cudnn", own)
    monkeypatch.setattr(cupy, "cudnn", own, raising=False)
    cudnn.install()
    assert cupy.cudnn is not own
    cudnn.uninstall()
    assert cupy.cudnn is own is sys.modules["cupy.cudnn"]


# ---------------------------------------------------------------- arrays on a GPU


class StandInDevice(emulator.EmulatedDevice):
    """The emulator on the arrays of a stand-in for CuPy."""

    kinds = ("cuda",)

    def pointer(self, view):
        return view.data.ptr


@pytest.mark.skipif(emulator.unavailable() is not None, reason="the emulator needs a C++ compiler")
def test_arrays_that_say_they_are_on_a_gpu(monkeypatch):
    """CuPy in, CuPy out, in the arrays that were passed: on the raw backend's kernels."""
    monkeypatch.setitem(sys.modules, "cupy", standin.module())
    x, w = integers(0, 2, 2, 6, 5), integers(1, 4, 2, 3, 3)
    y = fastconv.conv2d(x, w, padding=1)
    on = lambda array: standin.ndarray(array.copy())  # noqa: E731
    out, dx, dw = on(np.zeros_like(y)), on(np.zeros_like(x)), on(np.zeros_like(w))
    window = ((1, 1), (1, 1), (1, 1), 1)
    with emulator.using(StandInDevice()):
        cudnn.convolution_forward(on(x), on(w), None, out, *window, **TUNING)
        cudnn.convolution_backward_data(on(w), on(y), None, dx, *window, **BACK)
        cudnn.convolution_backward_filter(on(x), on(y), dw, *window, **BACK)
        relu = cudnn.activation_forward(out, 1)
        pooled = cudnn.pooling_forward(out, on(np.zeros((2, 4, 3, 2), np.float32)), (2, 2), (2, 2), (0, 0), 0)
    assert np.array_equal(out.get(), y)
    assert np.array_equal(dx.get(), fastconv.conv2d_dgrad(y, w, x.shape, padding=1))
    assert np.array_equal(dw.get(), fastconv.conv2d_wgrad(y, x, w.shape, padding=1))
    assert np.array_equal(relu.get(), np.maximum(y, 0))
    assert np.array_equal(pooled.get(), fastconv.max_pool2d(y, 2))


# ---------------------------------------------------------------- sigpy

SIGPY = r"""
import itertools, types
import numpy as np
from fastconv.interop import cupy_cudnn
cupy_cudnn.install()
import cupy, sigpy as sp, sigpy.conv

assert sp.config.cudnn_enabled and sigpy.conv.cudnn is cupy.cudnn
calls = []
for name in ("convolution_forward", "convolution_backward_data", "convolution_backward_filter"):
    def counted(*args, name=name, original=getattr(cupy.cudnn, name), **kwargs):
        calls.append(name)
        return original(*args, **kwargs)
    setattr(cupy.cudnn, name, counted)

# NumPy under another name: sigpy takes its way for GPU arrays, and asks this module for functions.
ON_GPU = types.ModuleType("on_gpu")
ON_GPU.__getattr__ = lambda name: getattr(ARRAYS, name)
sigpy.conv.backend = types.SimpleNamespace(get_array_module=lambda array: ON_GPU)

def data(rng, *shape, kind):
    array = rng.integers(-3, 4, shape).astype(kind)
    if kind.startswith("complex"):
        array = array + 1j * rng.integers(-3, 4, shape).astype(kind)
    return array.astype(kind)

rng, total = np.random.default_rng(0), 0
for D, mode, multi, kind in itertools.product((1, 2, 3), ("full", "valid"), (False, True), ("float32", "complex64")):
    size, ksize = (7, 6, 5)[:D], (3, 2, 3)[:D]
    x = data(rng, 2, *((3,) if multi else ()), *size, kind=kind)
    w = data(rng, *((4, 3) if multi else ()), *ksize, kind=kind)
    for strides in (None, (2, 1, 2)[:D]):
        options = dict(mode=mode, strides=strides, multi_channel=multi)
        y = sp.convolve(x, w, **options)
        expected = sigpy.conv._convolve(x, w, **options)
        assert y.dtype == expected.dtype and np.abs(y - expected).max() <= 1e-3, (D, mode, multi, kind)
        g = data(rng, *y.shape, kind=kind)
        dx = sp.convolve_data_adjoint(g, w, x.shape, **options)
        assert np.abs(dx - sigpy.conv._convolve_data_adjoint(g, w, x.shape, **options)).max() <= 1e-3
        dw = sp.convolve_filter_adjoint(g, x, w.shape, **options)
        assert np.abs(dw - sigpy.conv._convolve_filter_adjoint(g, x, w.shape, **options)).max() <= 1e-3
        assert abs(np.vdot(g, y) - np.vdot(dx, x)) <= 1e-4 * (1 + abs(np.vdot(g, y)))
        assert abs(np.vdot(g, y) - np.vdot(dw, w)) <= 1e-4 * (1 + abs(np.vdot(g, y)))
        total += 1
assert total == 48 and set(calls) == {
    "convolution_forward", "convolution_backward_data", "convolution_backward_filter"}

# An app: the image that a blurred one came from, by conjugate gradients on the operator and its adjoint.
image = rng.standard_normal((12, 12)).astype("float32")
blur = np.array([[0.1, 0.2, 0.1], [0.2, 1.0, 0.2], [0.1, 0.2, 0.1]], "float32")
operator = sp.linop.ConvolveData(image.shape, blur, mode="full")
found = sp.app.LinearLeastSquares(operator, operator * image, max_iter=60, show_pbar=False).run()
assert np.abs(found - image).max() < 1e-3
print(len(calls))
"""


def run_sigpy(arrays):
    pytest.importorskip("sigpy")
    pytest.importorskip("cupy")
    code = SIGPY.replace("ARRAYS", arrays)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_sigpy():
    """Unmodified sigpy: convolve and its adjoints equal its own CPU results, and an app converges on them."""
    assert run_sigpy("np") > 400  # calls of the three functions


@pytest.mark.gpu
def test_sigpy_on_a_gpu():
    """The same with CuPy arrays, sigpy choosing its way by itself."""
    sigpy, cupy = pytest.importorskip("sigpy"), pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        pytest.skip("CuPy has no GPU")
    code = (
        "import numpy as np, fastconv.interop.cupy_cudnn as c; c.install()\n"
        "import cupy, sigpy as sp, sigpy.conv\n"
        "x, w = np.arange(30.).reshape(5, 6), np.arange(6.).reshape(2, 3) - 2\n"
        "y = sp.convolve(cupy.asarray(x), cupy.asarray(w))\n"
        "assert np.array_equal(y.get(), sp.convolve(x, w))\n"
        "dx = sp.convolve_data_adjoint(y, cupy.asarray(w), x.shape)\n"
        "assert np.array_equal(dx.get(), sp.convolve_data_adjoint(y.get(), w, x.shape))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert sigpy.__version__

"""The way of arrays on a GPU through the library, on a stand-in for CuPy whose memory is the host's.

Kernels run on the emulator. What only a GPU can show (streams, graphs, several devices, other libraries' tensors) is
in tests/test_gpu.py.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastconv
from fastconv import BackendError, DTypeError, ShapeError, gpu_arrays
from fastconv.backends.raw import device as raw_device
from fastconv.testing import cases, emulator, gpu, selftest, standin

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason="the emulator needs a C++ compiler")
RNG = np.random.default_rng(3)
X, W = (RNG.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 3, 6, 7), (4, 3, 3, 3)))


class StandInDevice(emulator.EmulatedDevice):
    """The emulator on the stand-in's arrays."""

    kinds = ("cuda",)

    def pointer(self, view):
        return view.data.ptr


DEVICE = StandInDevice()


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in in CuPy's place, and an emulated GPU behind the raw backend."""
    module = standin.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    with emulator.using(DEVICE):
        yield module


def on(*arrays, device=0):
    return tuple(standin.ndarray(array.copy(), device) for array in arrays)


def test_cupy_in_cupy_out(cupy):
    """The backend follows from the arrays; values and gradients are those of NumPy arrays."""
    x, w = on(X, W)
    y, pullback = fastconv.conv2d_vjp(x, w, padding=1, activation="relu")
    expected, reference = fastconv.conv2d_vjp(X, W, padding=1, activation="relu", backend="reference")
    assert isinstance(y, standin.ndarray)
    assert np.array_equal(y.get(), expected)
    for got, wanted in zip(pullback(on(expected)[0])[:2], reference(expected)[:2], strict=True):
        assert isinstance(got, standin.ndarray)
        assert np.array_equal(got.get(), wanted)
    assert fastconv.explain("conv2d", x, w).backend == "raw"


def test_pooling_with_indices(cupy):
    (x,) = on(X)
    y, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    expected = fastconv.max_pool2d(X, 2, return_indices=True, backend="reference")
    assert np.array_equal(y.get(), expected[0])
    assert np.array_equal(indices.get(), expected[1])
    assert indices.dtype == np.int64
    values = fastconv.max_unpool2d(y, indices, 2, output_size=(6, 7))
    assert np.array_equal(values.get(), fastconv.max_unpool2d(*expected, 2, output_size=(6, 7), backend="reference"))


def test_out_and_plan(cupy):
    x, w = on(X, W)
    out = cupy.empty((2, 4, 4, 5), np.float32)
    assert fastconv.conv2d(x, w, out=out) is out
    expected = fastconv.conv2d(X, W, backend="reference")
    assert np.array_equal(out.get(), expected)
    plan = fastconv.plan("conv2d", x, w)
    assert np.array_equal(plan(x, w).get(), expected)
    with pytest.raises(ShapeError, match=r"\[2, 4, 4, 5\]"):
        fastconv.conv2d(x, w, out=cupy.empty((2, 4, 4, 4), np.float32))
    with pytest.raises(ShapeError, match="shares memory"):
        fastconv.max_pool2d(x, 1, out=x)
    with pytest.raises(DTypeError, match="kind"):
        fastconv.conv2d(x, w, out=np.empty((2, 4, 4, 5), np.float32))


def test_channels_last_stays(cupy):
    """An NCHW view over NHWC memory gives one."""
    (x,) = on(np.ascontiguousarray(X.transpose(0, 2, 3, 1)))
    y = fastconv.max_pool2d(x.transpose((0, 3, 1, 2)), 2)
    assert y.strides == (3 * 3 * 3 * 4, 4, 3 * 3 * 4, 3 * 4)
    assert np.array_equal(y.get(), fastconv.max_pool2d(X, 2, backend="reference"))


def test_refusals(cupy):
    """Nothing moves between devices silently."""
    x, w = on(X, W)
    with pytest.raises(DTypeError, match="one kind"):
        fastconv.conv2d(x, W)
    with pytest.raises(DTypeError, match=r"one GPU.*\[0, 1\]"):
        fastconv.conv2d(x, *on(W, device=1))
    with pytest.raises(BackendError, match="takes numpy arrays, these are cuda"):
        fastconv.conv2d(x, w, backend="cpu")
    with pytest.raises(BackendError, match="takes cuda arrays, these are numpy"):
        fastconv.conv2d(X, W, backend="raw")


def test_the_arrays_own_gpu_is_current(cupy, monkeypatch):
    """A call on arrays of GPU 1 launches there, and leaves the current GPU as it was."""
    seen = []
    launch = DEVICE.launch
    monkeypatch.setattr(DEVICE, "launch", lambda *args: (seen.append(standin.current[0]), launch(*args)))
    fastconv.max_pool2d(*on(X, device=1), 2)
    assert set(seen) == {1}
    assert standin.current == [0]


def test_signals(cupy):
    """Reversals, boundaries and fill values are made of the arrays' own library."""
    image, kernel = (array[0, 0] for array in (X, W))
    for boundary in ("fill", "wrap", "symm"):
        got = fastconv.convolve2d(*on(image, kernel), "same", boundary, 2)
        assert np.array_equal(got.get(), fastconv.convolve2d(image, kernel, "same", boundary, 2, backend="reference"))
    y, pullback = fastconv.correlate_vjp(*on(image, kernel), "valid")
    expected, reference = fastconv.correlate_vjp(image, kernel, "valid", backend="reference")
    assert np.array_equal(y.get(), expected)
    for got, wanted in zip(pullback(y), reference(expected), strict=True):
        assert np.array_equal(got.get(), wanted)


def test_another_library_comes_back_as_its_own(cupy, monkeypatch):
    """An array that only speaks ``__cuda_array_interface__`` is taken, and given back by its module's from_dlpack."""

    class Tensor:
        def __init__(self, host):
            self.host, self.dtype, self.shape = host, host.dtype, host.shape

        @property
        def __cuda_array_interface__(self):
            return {**self.host.__array_interface__, "version": 3}

    Tensor.__module__ = "otherlib"
    monkeypatch.setitem(sys.modules, "otherlib", SimpleNamespace(from_dlpack=lambda view: Tensor(view.host)))
    y = fastconv.conv2d(Tensor(X), Tensor(W))
    assert type(y) is Tensor
    assert np.array_equal(y.host, fastconv.conv2d(X, W, backend="reference"))


@pytest.mark.parametrize("name", ["dense", "nhwc", "bias_relu", "unbatched", "depthwise", "conv1d", "conv3d"])
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad", "conv_transpose"])
def test_the_way_of_the_tests(cupy, op, name):
    """`through_gpu`, by which the shared test bodies reach a GPU, changes nothing that they see."""
    with gpu.through_gpu():
        selftest.check_conv("raw", op, cases.conv(name))


def test_the_way_of_the_tests_for_pools_and_signals(cupy):
    with gpu.through_gpu():
        selftest.check_maxpool("raw", "max_pool", cases.pool("nhwc"))
        selftest.check_avgpool("raw", "avg_pool", cases.pool("exclude_pad"))
        selftest.check_signal("raw", "correlate2d", "in1=6x7 in2=3x2 mode=same dtype=float64 boundary=wrap")


# ---------------------------------------------------------------- without CuPy


def test_views_by_address():
    """Where there is only Numba, a device array is taken by its address, strides and dtype."""
    host = X.transpose(0, 2, 3, 1)
    array = SimpleNamespace(__cuda_array_interface__={**host.__array_interface__, "version": 3})
    view = gpu_arrays.CudaView.of(array)
    assert (view.shape, view.strides, view.dtype, view.owner) == (host.shape, host.strides, host.dtype, array)
    back = view.transpose((0, 3, 1, 2))
    assert (back.shape, back.strides, back.flags.c_contiguous) == (X.shape, X.strides, True)
    assert view[None].shape == (1, *host.shape)
    assert view.reshape(2, 1, 6, 7, 3).strides == (X.strides[0], 4, *host.strides[1:])
    assert back.astype(np.float32) is back
    with pytest.raises(DTypeError, match="needs CuPy"):
        back.astype(np.float64)
    with pytest.raises(DTypeError, match="needs CuPy"):
        back.reshape(2, 126)
    assert back.__cuda_array_interface__["data"][0] == X.__array_interface__["data"][0]


def test_shared_memory_is_seen_by_address():
    """`out` overlapping an input is found from addresses alone; interleaved slices do not overlap."""
    from fastconv.arrays import share_memory

    whole = np.zeros((4, 8), np.float32)
    one, other = (SimpleNamespace(shape=part.shape, dtype=part.dtype, __cuda_array_interface__=part.__array_interface__)
                  for part in (whole[:, ::2], whole[:, 1::2]))  # fmt: skip
    assert share_memory(one, one)
    assert not share_memory(one, other)
    assert raw_device.kinds() == ("cuda",)

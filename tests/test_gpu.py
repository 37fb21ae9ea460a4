"""What only a GPU can show: streams, graphs, several devices, and tensors of other libraries.

The shared test bodies run there too, on backends named "raw on gpu" and "numba on gpu" (tests/conftest.py).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv import dispatch
from fastconv.backends.raw import conv, conv_direct, conv_wgmma, cupy_device
from fastconv.problem import ConvProblem
from fastconv.testing import gpu, selftest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cupy_device.unavailable() is not None, reason=str(cupy_device.unavailable())),
]
RNG = np.random.default_rng(11)
X = RNG.integers(-4, 5, (2, 16, 12, 10)).astype(np.float32)
W = RNG.integers(-4, 5, (24, 16, 3, 3)).astype(np.float32)
Y = fastconv.conv2d(X, W, padding=1, backend="reference")


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.mark.parametrize("backend", ["raw", "numba"])
def test_current_stream(cupy, backend):
    """The launch is ordered after what the current stream holds, and the default stream is left alone."""
    x, w = cupy.zeros(X.shape, X.dtype), cupy.asarray(W)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for _ in range(20):
            x[...] = cupy.asarray(X)
        y = fastconv.conv2d(x, w, padding=1, backend=backend)
    stream.synchronize()
    assert np.array_equal(y.get(), Y)


def test_graph_capture(cupy):
    """After a first call, a call is captured in a CUDA graph and replayed on other values in the same memory."""
    x, w = cupy.asarray(X), cupy.asarray(W)
    out = cupy.empty(Y.shape, Y.dtype)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        fastconv.conv2d(x, w, padding=1, out=out, backend="raw")
        stream.begin_capture()
        fastconv.conv2d(x, w, padding=1, out=out, backend="raw")
        graph = stream.end_capture()
        x *= 2
        graph.launch(stream)
    stream.synchronize()
    assert np.array_equal(out.get(), 2 * Y)


def test_every_device(cupy):
    """A call runs on the device of its arrays, whichever is current."""
    for number in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(number):
            x, w = cupy.asarray(X), cupy.asarray(W)
        y = fastconv.conv2d(x, w, padding=1)
        assert y.device.id == number
        assert np.array_equal(y.get(), Y)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["raw", "numba"])
def test_torch_tensors(backend, dtype):
    """CUDA tensors in, CUDA tensors out, of their dtype, without a copy."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    x, w = (torch.from_numpy(array).cuda().to(getattr(torch, dtype)) for array in (X, W))
    y, pullback = fastconv.conv2d_vjp(x, w, padding=1, backend=backend)
    assert (type(y), y.dtype, y.device) == (torch.Tensor, x.dtype, x.device)
    rounded = torch.from_numpy(Y).to(x.dtype).float().numpy()
    assert np.array_equal(y.float().cpu().numpy(), rounded)
    assert all(type(gradient) is torch.Tensor for gradient in pullback(y)[:2])
    out = torch.empty_like(y)
    assert fastconv.conv2d(x, w, padding=1, out=out, backend=backend) is out
    assert torch.equal(out, y)


def test_numba_device_arrays():
    cuda = pytest.importorskip("numba.cuda")
    x, w = cuda.to_device(X), cuda.to_device(W)
    y = fastconv.conv2d(x, w, padding=1, backend="numba")
    assert np.array_equal(y.copy_to_host(), Y)


#: Unequal pads, strides and windows along every axis: an order of axes that is taken the wrong way round shows.
SKEW = (
    "conv1d n=2 c=72 size=300 k=72 ksize=5 stride=2 pad=3:1",
    "conv2d n=3 c=72 size=19x23 k=136 ksize=3x5 pad=2:0x1:3 stride=1x2 dilation=2x1 bias=136 layout=NHWC",
    "conv3d n=2 c=24 size=7x9x11 k=264 ksize=1x2x3 pad=0x1:0x2:1 stride=2x1x1 layout=NHWC",
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("line", SKEW)
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad"])
def test_tensor_maps_of_the_driver(op, line, dtype, monkeypatch):
    """On Hopper, what TMA copies by maps that the driver encoded: exact on integers, tile by tile."""
    arch = cupy_device.current().properties.arch
    if arch != conv_wgmma.ARCH:
        pytest.skip(f"wgmma is of {conv_wgmma.ARCH}, this GPU has {arch}")
    problem = selftest.for_op(op, replace(ConvProblem.parse(line), dtype=dtype))
    monkeypatch.setattr(conv, "ALGORITHMS", {"wgmma": conv_wgmma, "direct": conv_direct})
    monkeypatch.setattr(conv_wgmma, "cost", lambda *arguments: 0.0)
    for tile in conv_wgmma.TILES:
        monkeypatch.setattr(conv_wgmma, "TILES", (tile,))
        dispatch.forget()
        with gpu.through_gpu():
            selftest.conv_exact("raw", op, problem)
    dispatch.forget()

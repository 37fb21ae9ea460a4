"""What only a GPU can show: streams, graphs, several devices, and tensors of other libraries.

The shared test bodies run there too, on backends named "raw on gpu" and "numba on gpu" (tests/conftest.py).
"""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv.backends.raw import cupy_device

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

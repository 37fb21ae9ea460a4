"""Arrays of other libraries: taken without a copy, given back as their own kind."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv import DTypeError, ShapeError
from fastconv.testing import cases

X = np.arange(2 * 3 * 6 * 5, dtype=np.float64).reshape(2, 3, 6, 5) % 7 - 3
W = np.arange(4 * 3 * 3 * 3, dtype=np.float64).reshape(4, 3, 3, 3) % 5 - 2


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors(backend, torch, dtype):
    """Tensors of every float dtype give tensors of that dtype, with the values that NumPy arrays give."""
    x, w = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in (X, W))
    expected = fastconv.conv2d(*(array.astype(cases.dtype_of(dtype)) for array in (X, W)), padding=1, backend=backend)
    y, pullback = fastconv.conv2d_vjp(x, w, padding=1, backend=backend)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == x.dtype
    assert np.array_equal(y.double().numpy(), expected.astype(np.float64))
    dx, dw, db = pullback(torch.ones_like(y))
    assert [type(dx), type(dw), db] == [torch.Tensor, torch.Tensor, None]
    assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
    pooled, indices = fastconv.max_pool2d(x, 2, return_indices=True, backend=backend)
    assert isinstance(pooled, torch.Tensor)
    assert indices.dtype == torch.int64


def test_torch_without_a_copy(backend, torch):
    """What is written through `out=` is seen by the tensor; strided and channels_last tensors are views too."""
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    out = torch.full((2, 4, 4, 3), torch.nan, dtype=torch.float64)
    assert fastconv.conv2d(x, w, out=out, backend=backend) is out
    assert np.array_equal(out.numpy(), fastconv.conv2d(X, W, backend="reference"))
    last = x.to(memory_format=torch.channels_last)
    y = fastconv.conv2d(last, w, backend=backend)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, out)
    assert torch.equal(fastconv.conv2d(x.flip(0)[::1], w, backend=backend), out.flip(0))


def test_torch_integers_and_signals(backend, torch):
    x, w = (torch.from_numpy(array).to(torch.int8) for array in (X, W))
    y = fastconv.conv2d(x, w, backend=backend)
    assert y.dtype == torch.int32
    assert np.array_equal(y.numpy(), fastconv.conv2d(X, W, backend="reference"))
    row = fastconv.correlate(torch.arange(5), torch.tensor([1, 2]), backend=backend)
    assert isinstance(row, torch.Tensor)
    assert row.tolist() == fastconv.correlate(np.arange(5), np.array([1, 2])).tolist()


def test_torch_refusals(backend, torch):
    """Mixed kinds, a foreign out, a tensor that needs grad: DTypeError, not a silent copy."""
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    with pytest.raises(DTypeError, match="one kind"):
        fastconv.conv2d(x, W, backend=backend)
    with pytest.raises(DTypeError, match="out"):
        fastconv.conv2d(x, w, out=np.empty((2, 4, 4, 3)), backend=backend)
    with pytest.raises(DTypeError, match="out"):
        fastconv.conv2d(X, W, out=torch.empty(2, 4, 4, 3, dtype=torch.float64), backend=backend)
    with pytest.raises(ShapeError, match=r"\[2, 4, 4, 4\]"):
        fastconv.conv2d(x, w, out=torch.empty(2, 4, 4, 4, dtype=torch.float64), backend=backend)
    with pytest.raises(DTypeError, match="grad"):
        fastconv.conv2d(x.requires_grad_(), w, backend=backend)
    with pytest.raises(DTypeError, match=r"numpy\.ndarray"):
        fastconv.conv2d_vjp(w.detach(), w, backend=backend)[1](np.ones((4, 4, 1, 1)))


def test_jax_arrays(backend):
    jax = pytest.importorskip("jax")
    x, w = jax.numpy.asarray(X, "float32"), jax.numpy.asarray(W, "float32")
    y, pullback = fastconv.conv2d_vjp(x, w, backend=backend)
    assert isinstance(y, jax.Array)
    assert np.array_equal(y, fastconv.conv2d(X, W, backend="reference"))
    dx, dw, _ = pullback(y)
    assert isinstance(dx, jax.Array)
    assert dw.shape == w.shape


class OwnArray:
    """A minimal array that speaks DLPack, of a module without `from_dlpack`."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_a_library_that_cannot_take_results_back(backend):
    with pytest.raises(DTypeError, match="from_dlpack"):
        fastconv.max_pool2d(OwnArray(X), 2, backend=backend)


def test_numpy_subclasses_are_numpy(backend):
    class Tagged(np.ndarray):
        pass

    y = fastconv.conv2d(X.view(Tagged), W, backend=backend)
    assert type(y) is np.ndarray
    assert np.array_equal(y, fastconv.conv2d(X, W, backend="reference"))

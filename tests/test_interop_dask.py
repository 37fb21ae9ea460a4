"""Dask arrays on fastconv: equal to the whole array's result, for any chunks, on every scheduler."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dask")

import dask
import dask.array as da

import fastconv
import fastconv.interop.dask as fc
from fastconv import BackendError, DTypeError, ShapeError

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def synchronous():
    """One thread, unless a test says otherwise: blocks are small, and failures have short traces."""
    with dask.config.set(scheduler="synchronous"):
        yield


def integers(rng, shape, dtype=np.float64):
    return rng.integers(-3, 4, shape).astype(dtype)


def chunked(rng, array, tiny=False):
    """The array in random, uneven chunks along every axis, a few hundred at most; `tiny`: of single cells along one."""
    chunks, single = [], rng.integers(1, array.ndim) if tiny and array.ndim < 5 else None
    for axis, n in enumerate(array.shape):
        cuts = min(n - 1, rng.integers(0, 3 if array.ndim < 5 else 2))
        ends = rng.choice(np.arange(1, n), cuts, replace=False) if n > 1 else []
        chunks.append((1,) * n if axis == single else tuple(int(c) for c in np.diff([0, *sorted(ends), n])))
    return da.from_array(array, chunks=tuple(chunks))


def exact(actual, expected):
    assert isinstance(actual, da.Array)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    found = actual.compute()
    assert type(found) is np.ndarray
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def random_window(rng, ndim, pooling=False):
    """A stride, padding and dilation with sizes that they fit."""
    ksize = tuple(int(k) for k in rng.integers(1, 4, ndim))
    dilation = tuple(int(d) for d in rng.integers(1, 4, ndim))
    extent = [d * (k - 1) + 1 for k, d in zip(ksize, dilation, strict=True)]
    stride = tuple(int(s) for s in rng.integers(1, 5, ndim))
    limits = [e - 1 if pooling else 2 * e for e in extent]  # a convolution may be padded beyond its window
    pads = tuple((int(rng.integers(0, m + 1)), int(rng.integers(0, m + 1))) for m in limits)
    size = tuple(int(e + rng.integers(0, 7)) for e in extent)
    return size, ksize, {"stride": stride, "padding": pads, "dilation": dilation}


def op(name, ndim):
    head, _, tail = name.partition("_dgrad" if name.endswith("_dgrad") else "_wgrad")
    suffix = name[len(head) :]
    return f"{head}{ndim}d{suffix}{tail}"


def both(name, ndim):
    return getattr(fc, op(name, ndim)), getattr(fastconv, op(name, ndim))


@pytest.mark.parametrize("seed", range(18))
def test_convolution_and_gradients(seed):
    """Random geometries and chunks along every axis of every operand; exact on integers."""
    rng = np.random.default_rng(seed)
    ndim, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2]))
    size, ksize, window = random_window(rng, ndim)
    layout = ("NCHW", "NHWC")[seed % 2]
    N, C, K = (int(n) for n in (rng.integers(1, 4), 2 * rng.integers(1, 3), 2 * rng.integers(1, 3)))
    x = integers(rng, (N, C, *size) if layout == "NCHW" else (N, *size, C))
    w = integers(rng, (K, C // groups, *ksize) if layout == "NCHW" else (*ksize, C // groups, K))
    bias = integers(rng, K)
    window |= {"groups": groups, "layout": layout}
    tiny = seed % 3 == 0
    dx, dw = chunked(rng, x, tiny), chunked(rng, w)
    ours, whole = both("conv", ndim)
    y = whole(x, w, bias, **window)
    exact(ours(dx, dw, chunked(rng, bias), **window), y)
    dy = integers(rng, y.shape)
    ours, whole = both("conv_dgrad", ndim)
    exact(ours(chunked(rng, dy, tiny), dw, x.shape, **window), whole(dy, w, x.shape, **window))
    ours, whole = both("conv_wgrad", ndim)
    exact(ours(chunked(rng, dy, tiny), dx, w.shape, **window), whole(dy, x, w.shape, **window))


@pytest.mark.parametrize("seed", range(18))
def test_pooling_and_gradients(seed):
    """Max, average and Lp pooling, with every rounding; ties are among the maxima."""
    rng = np.random.default_rng(seed)
    ndim = int(rng.integers(1, 4))
    size, ksize, window = random_window(rng, ndim, pooling=True)
    window |= {"layout": ("NCHW", "NHWC")[seed % 2], "rounding": ("floor", "ceil")[seed // 2 % 2]}
    x = integers(rng, (2, 3, *size) if window["layout"] == "NCHW" else (2, *size, 3))
    tiny = seed % 3 == 0
    dx = chunked(rng, x, tiny)
    ours, whole = both("max_pool", ndim)
    y = whole(x, ksize, **window)
    exact(ours(dx, ksize, **window), y)
    dy = integers(rng, y.shape)
    ours, whole = both("max_pool_dgrad", ndim)
    exact(ours(chunked(rng, dy, tiny), dx, ksize, **window), whole(dy, x, ksize, **window))
    more = ({}, {"count_include_pad": False}, {"divisor": 2})[seed % 3]
    ours, whole = both("avg_pool", ndim)
    exact(ours(dx, ksize, **window, **more), whole(x, ksize, **window, **more))
    ours, whole = both("avg_pool_dgrad", ndim)
    found = ours(chunked(rng, dy, tiny), x.shape, ksize, **window, **more)
    np.testing.assert_allclose(found.compute(), whole(dy, x.shape, ksize, **window, **more), atol=1e-14)
    ours, whole = both("lp_pool", ndim)
    np.testing.assert_allclose(ours(dx, 2, ksize, **window).compute(), whole(x, 2, ksize, **window), rtol=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_conv_transpose(seed):
    rng = np.random.default_rng(seed)
    ndim, groups = int(rng.integers(1, 4)), int(rng.choice([1, 2]))
    size, ksize, window = random_window(rng, ndim)
    window |= {"groups": groups, "padding": tuple((0, k // 2) for k in ksize)}
    x, w = integers(rng, (2, 4, *size)), integers(rng, (4, 3, *ksize))
    bias = integers(rng, 3 * groups)
    ours, whole = both("conv_transpose", ndim)
    exact(ours(chunked(rng, x), chunked(rng, w), bias, **window), whole(x, w, bias, **window))


@pytest.mark.parametrize("name", ["correlate", "convolve"])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_signals(name, mode):
    """Any number of axes; integers exactly, in2 as an array, a list or in chunks, and larger than in1 too."""
    ours, whole = getattr(fc, name), getattr(fastconv, name)
    rng = np.random.default_rng(1)
    for shape1, shape2 in (
        ((17,), (4,)),
        ((3,), (8,)),
        ((9, 7), (2, 5)),
        ((5, 4, 6), (2, 3, 1)),
        ((3, 2, 4, 3), (2, 2, 3, 1)),
    ):
        for dtype in (np.int64, np.complex128, bool):
            in1, in2 = rng.integers(-3, 4, shape1).astype(dtype), rng.integers(-3, 4, shape2).astype(dtype)
            exact(ours(chunked(rng, in1), in2, mode, "direct"), whole(in1, in2, mode))
        in1, in2 = rng.standard_normal(shape1), rng.standard_normal(shape2)
        np.testing.assert_allclose(
            ours(chunked(rng, in1), chunked(rng, in2), mode, "fft").compute(), whole(in1, in2, mode)
        )
    exact(ours(da.arange(9, chunks=2), [1, 2], mode), whole(np.arange(9), [1, 2], mode))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_dtypes(dtype):
    """Each block is computed as the whole array would be; a weight gradient of 16 bits is summed in 32."""
    rng = np.random.default_rng(0)
    x, w = (integers(rng, shape, fastconv.arrays.dtype_of(dtype)) for shape in ((3, 4, 9, 8), (2, 4, 3, 3)))
    y = fastconv.conv2d(x, w, padding=1)
    exact(fc.conv2d(chunked(rng, x), w, padding=1), y)
    if dtype != "int8":
        dy = np.ones_like(y)
        exact(
            fc.conv2d_wgrad(chunked(rng, dy), x, w.shape, padding=1), fastconv.conv2d_wgrad(dy, x, w.shape, padding=1)
        )


def test_unbatched_and_words():
    rng = np.random.default_rng(0)
    x, w = integers(rng, (4, 11, 10)), integers(rng, (3, 4, 3, 4))
    for padding in ("same", "same_lower", "valid", "full"):
        exact(
            fc.conv2d(chunked(rng, x), w, stride=2, padding=padding), fastconv.conv2d(x, w, stride=2, padding=padding)
        )


def test_chunks_follow_the_input():
    """A chunk of the result where a chunk of x is, of filters where one of w is; chunks without a window vanish."""
    x = da.ones((4, 2, 32, 9), chunks=((3, 1), (1, 1), (8, 8, 16), (4, 1, 1, 3)))
    w = da.ones((6, 2, 3, 3), chunks=((4, 2), 2, 1, 3))
    assert fc.conv2d(x, w, padding=1, stride=(2, 3)).chunks == ((3, 1), (4, 2), (5, 4, 7), (2, 1))
    assert fc.max_pool2d(x, 2).chunks == ((3, 1), (1, 1), (4, 4, 8), (2, 1, 1))


def test_a_lazy_chain_with_its_gradients():
    """Two layers and a pooling, and the chain rule back to both weights, in blocks all the way."""
    rng = np.random.default_rng(3)
    x, w1, w2 = integers(rng, (2, 1, 24, 20)), integers(rng, (3, 1, 3, 3)), integers(rng, (2, 3, 3, 3))

    def loss_gradients(f, x):
        h = f.conv2d(x, w1, padding=1)
        p = f.max_pool2d(h, 2)
        y = f.conv2d(p, w2, padding=1)
        dw2, dp = f.conv2d_wgrad(y, p, w2.shape, padding=1), f.conv2d_dgrad(y, w2, p.shape, padding=1)
        return f.conv2d_wgrad(f.max_pool2d_dgrad(dp, h, 2), x, w1.shape, padding=1), dw2

    for found, expected in zip(loss_gradients(fc, chunked(rng, x)), loss_gradients(fastconv, x), strict=True):
        exact(found, expected)


# ---------------------------------------------------------------- errors


def test_errors_come_when_the_graph_is_built():
    x, w = da.ones((1, 8, 14, 14), chunks=7), np.ones((16, 8, 3, 3))
    with pytest.raises(ShapeError, match="groups=3 must divide C=8"):
        fc.conv2d(x, w, groups=3)
    with pytest.raises(DTypeError, match="convert with astype"):
        fc.conv2d(x.astype(int), w)
    with pytest.raises(TypeError, match="return_indices"):
        fc.max_pool2d(x, 2, return_indices=True)
    with pytest.raises(ShapeError, match="compute_chunk_sizes"):
        fc.correlate(da.arange(9, chunks=3)[da.arange(9, chunks=3) > 2], [1])
    with pytest.raises(ShapeError, match="same number of axes"):
        fc.correlate(x, [1.0])


def test_a_named_backend_is_the_blocks_():
    x, w = da.ones((1, 2, 9), chunks=4), np.ones((2, 2, 3))
    exact(fc.conv1d(x, w, backend="reference"), fastconv.conv1d(x.compute(), w))
    with pytest.raises(BackendError, match="no backend 'cudnn'"):
        fc.conv1d(x, w, backend="cudnn").compute()


# ---------------------------------------------------------------- kinds of blocks

OTHER = types.ModuleType("other_arrays")  # a library of arrays, as CuPy is one: its own type, and DLPack


class Other(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that is no NumPy array, and that NumPy's functions give back as its own kind."""

    __module__ = "other_arrays"
    __array_priority__ = 100

    def __init__(self, inner):
        self.inner = inner

    shape, dtype, ndim, size, nbytes, itemsize = (
        property(lambda self, name=name: getattr(self.inner, name))
        for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize")
    )

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return wrapped(getattr(ufunc, method)(*(bare(a) for a in inputs), **kwargs))

    def __array_function__(self, function, kinds, args, kwargs):
        return wrapped(function(*bare(args), **bare(kwargs)))

    def __array__(self, *args, **kwargs):
        raise TypeError("other arrays do not become NumPy arrays silently")

    def __getitem__(self, key):
        return Other(self.inner[key])

    def __setitem__(self, key, value):
        self.inner[key] = bare(value)

    def __len__(self):
        return len(self.inner)

    def __dlpack__(self, **kwargs):
        return self.inner.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.inner.__dlpack_device__()

    def copy(self):
        return Other(self.inner.copy())

    def astype(self, *args, **kwargs):
        return Other(self.inner.astype(*args, **kwargs))

    def reshape(self, *shape):
        return Other(self.inner.reshape(*shape))

    def transpose(self, *axes):
        return Other(self.inner.transpose(*axes))


def bare(value):
    if isinstance(value, list | tuple):
        return type(value)(map(bare, value))
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items()}
    return value.inner if isinstance(value, Other) else value


def wrapped(value):
    return Other(value) if isinstance(value, np.ndarray) else value


OTHER.from_dlpack = lambda array: Other(np.from_dlpack(array))
OTHER.Other = Other


def test_blocks_keep_their_kind(monkeypatch):
    """Blocks of another library stay its own all the way, halos, padding, gaps and sums included."""
    monkeypatch.setitem(sys.modules, "other_arrays", OTHER)
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 2, 9, 8)), integers(rng, (3, 2, 2, 2))
    window = {"stride": (3, 2), "padding": 1}
    dx, dw = (da.from_array(Other(array), chunks=4, asarray=False) for array in (x, w))
    y = fastconv.conv2d(x, w, **window)
    dy = da.from_array(Other(y), chunks=2, asarray=False)
    cases = [
        (fc.conv2d(dx, dw, **window), y),
        (fc.conv2d_dgrad(dy, dw, x.shape, **window), fastconv.conv2d_dgrad(y, w, x.shape, **window)),
        (fc.conv2d_wgrad(dy, dx, w.shape, **window), fastconv.conv2d_wgrad(y, x, w.shape, **window)),
        (fc.max_pool2d(dx, 2), fastconv.max_pool2d(x, 2)),
        (fc.correlate(dx[0, 0], dw[0, 0]), fastconv.correlate(x[0, 0], w[0, 0])),
    ]
    for found, expected in cases:
        assert isinstance(found._meta, Other)
        result = found.compute()
        assert isinstance(result, Other)
        assert np.array_equal(result.inner, expected)


@pytest.mark.gpu
def test_cupy_blocks():
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        pytest.skip("CuPy has no GPU")
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 2, 9, 8), np.float32), integers(rng, (3, 2, 2, 2), np.float32)
    dx = da.from_array(cupy.asarray(x), chunks=4, asarray=False)
    y = fc.conv2d(dx, cupy.asarray(w), padding=1).compute()
    assert isinstance(y, cupy.ndarray)
    assert np.array_equal(cupy.asnumpy(y), fastconv.conv2d(x, w, padding=1))


# ---------------------------------------------------------------- schedulers, threads, memory


def test_threads_and_processes():
    """The same bits from every scheduler that Dask has on one machine."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 65, 60)).astype(np.float32), rng.standard_normal((8, 4, 3, 3)).astype(np.float32)
    y = fc.conv2d(da.from_array(x, chunks=(1, 4, 20, 20)), w, padding=1)
    expected = y.compute()
    assert np.array_equal(y.compute(scheduler="threads", num_workers=2), expected)
    assert np.array_equal(y.compute(scheduler="processes", num_workers=2), expected)


def test_a_block_has_one_numba_thread(monkeypatch):
    """Or as many as the configuration had when the graph was built; the thread's own number is left as it was."""
    numba = pytest.importorskip("numba")
    seen = []
    original = fc.dispatch.execute
    monkeypatch.setattr(fc.dispatch, "execute", lambda *args: seen.append(numba.get_num_threads()) or original(*args))
    before = numba.get_num_threads()
    x = da.ones((1, 1, 8), chunks=4)
    fc.avg_pool1d(x, 2).compute()
    with dask.config.set({"fastconv.threads": 10**6}):
        y = fc.avg_pool1d(x, 2)
    y.compute()
    assert seen == [1, 1] + [numba.config.NUMBA_NUM_THREADS] * 2
    assert numba.get_num_threads() == before


def test_memory_is_bounded_by_a_few_blocks():
    """Of an array of 96 blocks, few are alive at once while its pooled convolution is summed."""
    alive, most, lock = 0, 0, threading.Lock()

    class Block(np.ndarray):
        def __del__(self):
            nonlocal alive
            if self.base is None:
                with lock:
                    alive -= 1

    def make(block_info=None):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return np.ones(block_info[None]["chunk-shape"]).view(Block).copy()

    x = da.map_blocks(make, chunks=((1,), (1,), (8,) * 96, (16,)), dtype=float, meta=np.empty((0,) * 4))
    y = fc.max_pool2d(fc.conv2d(x, np.ones((2, 1, 3, 3)), padding=1), 2)
    total = y.sum().compute(scheduler="threads", num_workers=2)
    assert (
        total
        == fastconv.max_pool2d(fastconv.conv2d(np.ones((1, 1, 768, 16)), np.ones((2, 1, 3, 3)), padding=1), 2).sum()
    )
    assert 2 <= most <= 16


def test_an_array_several_times_larger_than_the_worker_s_memory():
    """The example on a distributed cluster: it checks its values, and that no worker came near its limit."""
    pytest.importorskip("distributed")
    command = [sys.executable, str(EXAMPLES / "dask_larger_than_memory.py")]
    command += ["--gib", "1.25", "--workers", "1", "--memory", "400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dashboard: http" in done.stdout
    assert "peak of" in done.stdout

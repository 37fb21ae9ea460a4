"""Arrays as they come: any strides, read-only, byte-swapped, channels_last, empty or missing batches, `out=`."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv import DTypeError, ShapeError
from fastconv.testing import cases, compare, selftest


def transposed(array):
    """The same values with the axes in reversed order in memory."""
    return np.ascontiguousarray(array.T).T


def sliced(array):
    """The same values, every second element of a larger array."""
    base = np.full([2 * n for n in array.shape], 77, array.dtype)
    view = base[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def negative(array):
    """The same values read backwards."""
    return np.ascontiguousarray(np.flip(array))[(slice(None, None, -1),) * array.ndim]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def channels_last(array):
    """An NCHW view over NHWC memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1) if array.ndim > 2 else array


VIEWS = [transposed, sliced, negative, read_only, swapped, misaligned, channels_last]
NAMES = ["dense", "depthwise", "pointwise", "grouped", "strided", "nhwc", "bias_relu", "conv1d", "conv3d", "mid_1x1",
         "mid_5x5", "mid_depthwise"]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad", "conv_transpose"])
def test_conv_of_views(backend, op, name, view):
    """Every operand through the view at once: the values decide, not where they lie."""
    problem = selftest.for_op(op, cases.conv(name, precision="ieee"))
    operands = cases.conv_integers(problem, op)
    expected = cases.conv_call(op, problem, operands, backend="reference")
    views = [None if array is None else view(array) for array in operands]
    actual = cases.conv_call(op, problem, views, backend=backend)
    compare.equal(actual, expected, f"{selftest.repro(backend, op, problem)} of {view.__name__} arrays")
    assert actual.dtype.isnative
    for array, before in zip(views, operands, strict=True):
        assert array is None or np.array_equal(array, before)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["overlap", "padded", "nhwc", "ceil", "pool1d", "pool3d", "adaptive", "mid_overlap"])
@pytest.mark.parametrize("kind", ["max", "avg", "lp"])
def test_pool_of_views(backend, kind, name, view):
    """Maxima are equal; sums may run in another order over other strides, each within the rounding of a sum."""
    problem = cases.pool(name)
    if kind == "lp" and problem.window is None:
        return
    line = f"{kind} {problem} of {view.__name__} arrays on {backend}"
    x, dy = cases.pool_integers(problem, "x"), cases.pool_integers(problem, "y", seed=1)
    expected, pullback = cases.pool_call(kind, problem, x, vjp=True, backend="reference")
    actual, of_view = cases.pool_call(kind, problem, view(x), vjp=True, backend=backend)
    scales, positive = cases.pool_call(kind, problem, np.abs(x), vjp=True, backend="reference")
    results = ((actual, expected, scales), (of_view(view(dy)), pullback(dy), positive(np.abs(dy))))
    for got, wanted, scale in results:
        if kind == "max":
            compare.equal(got, wanted, line)
        else:
            compare.within(got, compare.wide(wanted), compare.wide(scale), 4 * (problem.taps + 16), line)


def test_broadcast_with_stride_0(backend):
    """Images, filters and gradients that repeat one value or one plane, without its memory."""
    x = np.broadcast_to(np.arange(6.0, dtype=np.float32), (2, 3, 5, 6))
    w = np.broadcast_to(np.float32(2), (4, 3, 3, 3))
    dy = np.broadcast_to(np.float32(1), (2, 4, 3, 4))
    solid = [np.ascontiguousarray(array) for array in (x, w, dy)]
    for op, (a, b), tail in (
        ("conv2d", (0, 1), ()),
        ("conv2d_dgrad", (2, 1), (x.shape,)),
        ("conv2d_wgrad", (2, 0), (w.shape,)),
    ):
        function = getattr(fastconv, op)
        actual = function((x, w, dy)[a], (x, w, dy)[b], *tail, backend=backend)
        compare.equal(actual, function(solid[a], solid[b], *tail, backend="reference"), op)
    pooled = fastconv.max_pool2d(x, 2, backend=backend)
    compare.equal(pooled, fastconv.max_pool2d(solid[0], 2, backend="reference"), "max_pool2d")


def test_channels_last_memory_is_kept(backend):
    """An NCHW view over NHWC memory gives a result that lies in NHWC memory too."""
    x = channels_last(np.ones((2, 8, 6, 5), np.float32))
    w = np.ones((4, 8, 3, 3), np.float32)
    results = [
        fastconv.conv2d(x, w, backend=backend), fastconv.max_pool2d(x, 2, backend=backend),
        fastconv.avg_pool2d(x, 2, backend=backend),
    ]  # fmt: skip
    for y in results:
        assert y.shape[1] in (4, 8)
        assert np.moveaxis(y, 1, -1).flags.c_contiguous
    assert fastconv.conv2d(np.ascontiguousarray(x), w, backend=backend).flags.c_contiguous


@pytest.mark.parametrize("name", [name for name in cases.CONV if cases.conv(name).N == 1])
def test_unbatched(backend, name):
    """[C, H, W] gives what [1, C, H, W] gives, without the first axis."""
    problem = selftest.for_op("conv_fprop", cases.conv(name, precision="ieee", batched=True))
    single = cases.replace(problem, batched=False)
    for op in ("conv_fprop", "conv_dgrad", "conv_wgrad", "conv_transpose"):
        whole, part = selftest.for_op(op, problem), selftest.for_op(op, single)
        operands = cases.conv_integers(whole, op)
        expected = cases.conv_call(op, whole, operands, backend=backend)
        roles = cases.CONV_OPERANDS[op]
        fewer = [a[0] if role in "xy" else a for role, a in zip(roles, operands, strict=True)]
        actual = cases.conv_call(op, part, fewer, backend=backend)
        compare.equal(actual, expected if op == "conv_wgrad" else expected[0], selftest.repro(backend, op, part))


def test_empty_batch(backend):
    """No images: empty results of the right shape, and gradients of the weights that are 0."""
    x, w = np.zeros((0, 3, 5, 6), np.float32), np.ones((4, 3, 3, 3), np.float32)
    y, pullback = fastconv.conv2d_vjp(x, w, np.ones(4, np.float32), activation="relu", backend=backend)
    assert y.shape == (0, 4, 3, 4)
    dx, dw, db = pullback(y)
    assert dx.shape == x.shape
    assert not dw.any()
    assert dw.shape == w.shape
    assert db.tolist() == [0, 0, 0, 0]
    assert fastconv.conv_transpose2d(y, w, backend=backend).shape == (0, 3, 5, 6)
    for pool in (fastconv.max_pool2d_vjp, fastconv.avg_pool2d_vjp):
        pooled, back = pool(x, 2, backend=backend)
        assert pooled.shape == (0, 3, 2, 3)
        assert back(pooled).shape == x.shape
    assert fastconv.global_max_pool(x, backend=backend).shape == (0, 3, 1, 1)


def test_mixed_floats_promote_as_numpy(backend):
    x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((3, 2, 3, 3), np.float64)
    assert fastconv.conv2d(x, w, backend=backend).dtype == np.float64
    half, brain = x.astype(np.float16), x.astype(cases.dtype_of("bfloat16"))
    assert fastconv.conv2d(half, w.astype(np.float32), backend=backend).dtype == np.float32
    assert fastconv.conv2d(half, w.astype(np.float16), backend=backend).dtype == np.float16
    assert fastconv.conv2d(brain, w.astype(np.float32), backend=backend).dtype == np.float32
    assert fastconv.conv2d(half, w.astype(np.float16), np.ones(3), backend=backend).dtype == np.float64
    y, pullback = fastconv.conv2d_vjp(x, w, np.ones(3, np.float16), backend=backend)
    assert [gradient.dtype for gradient in pullback(y)] == [np.float32, np.float64, np.float16]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_accumulates_in_float32(backend, dtype):
    """3000 ones: a float16 sum would stop at 2048, a bfloat16 one at 256."""
    ones = np.ones((1, 3000, 1, 1), cases.dtype_of(dtype))
    assert float(fastconv.conv2d(ones, ones, backend=backend).item()) == float(np.array(3000, ones.dtype))
    row = np.ones((1, 1, 3000), ones.dtype)
    assert float(fastconv.avg_pool1d(row, 3000, backend=backend).item()) == 1
    wgrad = fastconv.conv1d_wgrad(row, row, (1, 1, 1), backend=backend)
    assert float(wgrad.item()) == float(np.array(3000, ones.dtype))
    assert float(fastconv.bias_grad(row, backend=backend).item()) == float(np.array(3000, ones.dtype))


# ---------------------------------------------------------------- out=


def good_call(backend, out, x=None, w=None):
    x = np.ones((2, 3, 5, 6), np.float32) if x is None else x
    w = np.ones((4, 3, 3, 3), np.float32) if w is None else w
    return fastconv.conv2d(x, w, out=out, backend=backend)


def test_out_may_have_any_strides(backend):
    expected = good_call("reference", None)
    shape = expected.shape
    for out in (transposed(np.empty(shape, np.float32)), sliced(expected), channels_last(expected), negative(expected)):
        out[...] = np.nan
        assert good_call(backend, out) is out
        compare.equal(out, expected, "conv2d into a strided out")


def test_out_in_part_of_an_array(backend):
    """Concatenation without a copy; what lies beside is not touched."""
    whole = np.full((2, 10, 3, 4), 5, np.float32)
    good_call(backend, whole[:, 2:6])
    compare.equal(whole[:, 2:6], good_call("reference", None), "conv2d into a slice")
    assert (whole[:, :2] == 5).all()
    assert (whole[:, 6:] == 5).all()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((2, 4, 3, 3), np.float32), ShapeError, r"\[2, 4, 3, 4\].*\[2, 4, 3, 3\]"),
        (np.empty((4, 3, 4), np.float32), ShapeError, r"\[2, 4, 3, 4\].*\[4, 3, 4\]"),
        (np.empty((2, 4, 3, 4), np.float64), DTypeError, "float32.*float64"),
        (np.empty((2, 4, 3, 4), np.int32), DTypeError, "float32.*int32"),
        (np.empty((2, 4, 3, 4), np.float32).astype(">f4"), DTypeError, "float32.*>f4"),
        (read_only(np.empty((2, 4, 3, 4), np.float32)), ShapeError, "read-only"),
        (np.broadcast_to(np.float32(0), (2, 4, 3, 4)), ShapeError, "read-only|stride 0"),
        ([[1.0]], DTypeError, "list"),
        ("out", DTypeError, "str"),
    ],
)
def test_bad_out(backend, out, error, message):
    with pytest.raises(error, match=message):
        good_call(backend, out)


def test_writable_stride_0_out(backend):
    out = np.lib.stride_tricks.as_strided(np.empty(4, np.float32), (2, 4, 3, 4), (0, 4, 0, 0))
    with pytest.raises(ShapeError, match="stride 0"):
        good_call(backend, out)


def test_out_that_overlaps_an_input(backend):
    """Refused, and the input keeps its values; interleaved memory that shares no element is no overlap."""
    x = np.ones((2, 4, 5, 6), np.float32)
    w = np.ones((4, 4, 1, 1), np.float32)
    for out in (x, x[::-1], x[:, ::-1]):
        with pytest.raises(ShapeError, match="shares memory"):
            good_call(backend, out, x, w)
    assert (x == 1).all()
    both = np.ones((2, 8, 5, 6), np.float32)
    good_call(backend, both[:, 1::2], both[:, ::2], w)
    assert (both[:, 1::2] == 4).all()
    assert (both[:, ::2] == 1).all()


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_bad_out_of_pooling(backend, name):
    x = np.ones((1, 2, 4, 4), np.float32)
    with pytest.raises(ShapeError, match=r"\[1, 2, 2, 2\]"):
        getattr(fastconv, name)(x, 2, out=np.empty((1, 2, 2, 3), np.float32), backend=backend)
    with pytest.raises(ShapeError, match="shares memory"):
        getattr(fastconv, name)(x, 1, out=x, backend=backend)


def test_repeated_calls_with_out_allocate_no_output(backend):
    """With `out` given, nothing of the output's size is allocated again."""
    import tracemalloc

    x, w = np.ones((1, 1, 400, 500), np.float32), np.ones((8, 1, 1, 1), np.float32)
    out = np.empty((1, 8, 400, 500), np.float32)
    if backend == "reference":  # computes in float64 arrays of its own
        return
    good_call(backend, out, x, w)
    tracemalloc.start()
    good_call(backend, out, x, w)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < out.nbytes / 2

"""correlate, convolve and their 2-D forms against SciPy: modes, methods, boundaries, dtypes, lists, scalars."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv.testing import cases, compare

scipy_signal = pytest.importorskip("scipy.signal")

DTYPES = ["float32", "float64", "complex64", "complex128", "int8", "uint8", "int16", "int32", "int64", "uint64"]
MODES = ["full", "same", "valid"]


def pair(shapes, dtype, low=-4):
    rng = np.random.default_rng(11)
    low = max(low, 0) if np.dtype(dtype).kind in "ub" else low
    arrays = [rng.integers(low, 5, shape) for shape in shapes]
    if np.dtype(dtype).kind == "c":
        arrays = [array + 1j * rng.integers(low, 5, array.shape) for array in arrays]
    return [np.asarray(array).astype(dtype) for array in arrays]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in cases.SIGNAL if name != "0d"])
@pytest.mark.parametrize("op", ["correlate", "convolve"])
def test_direct(backend, op, name, mode, dtype):
    in1, in2 = pair(cases.SIGNAL[name], dtype)
    expected = getattr(scipy_signal, op)(in1, in2, mode, "direct")
    actual = getattr(fastconv, op)(in1, in2, mode, "direct", backend=backend)
    compare.equal(actual, expected, f"fastconv.{op}, {name}, {mode}, {dtype}, {backend}")


@pytest.mark.parametrize("method", ["fft", "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["1d", "1d_longer_second", "1d_long", "2d", "2d_mid", "3d"])
def test_fft_and_auto(backend, name, mode, dtype, method):
    """Integers are exact by every method; floats within the rounding of a transform of data of that norm."""
    in1, in2 = pair(cases.SIGNAL[name], dtype)
    expected = scipy_signal.correlate(in1, in2, mode, "direct")
    actual = fastconv.correlate(in1, in2, mode, method, backend=backend)
    line = f"fastconv.correlate, {name}, {mode}, {method}, {dtype}, {backend}"
    if actual.dtype.kind in "iu":
        compare.equal(actual, expected, line)
        return
    compare.same_form(actual, expected, line)
    roundoff = 2.0**-24 if dtype in ("float32", "complex64") else 2.0**-53
    bound = 64 * roundoff * np.linalg.norm(in1) * np.linalg.norm(in2)
    compare.within_limit(actual, compare.wide(expected), np.full(expected.shape, bound), line)


@pytest.mark.parametrize("method", ["direct", "fft", "auto"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_integers_wrap_alike(backend, dtype, method):
    """Values over the whole range: exact modulo 2**bits, whatever the method."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng(2)
    in1, in2 = (rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True) for n in (50, 13))
    bits = 2 ** (8 * info.dtype.itemsize)
    expected = np.array(
        [sum(int(a) * int(b) for a, b in zip(in1[j : j + 13], in2, strict=True)) for j in range(38)], object
    )
    actual = fastconv.correlate(in1, in2, "valid", method, backend=backend)
    assert actual.dtype == dtype
    assert [int(value) % bits for value in actual] == [int(value) % bits for value in expected]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128", "int16", "int64", "uint8"])
@pytest.mark.parametrize("boundary", ["fill", "wrap", "symm"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shapes", [((6, 7), (3, 2)), ((5, 5), (4, 4)), ((3, 2), (5, 6)), ((1, 9), (1, 4)), ((40, 33), (7, 8))]
)
@pytest.mark.parametrize("op", ["correlate2d", "convolve2d"])
def test_two_axes(backend, op, shapes, mode, boundary, dtype):
    in1, in2 = pair(shapes, dtype)
    if dtype == "complex128" and op == "correlate2d" and shapes == ((3, 2), (5, 6)) and mode == "valid":
        # SciPy swaps the inputs here and then conjugates the wrong one.
        expected = scipy_signal.correlate(in1, in2, mode, "direct")
    else:
        expected = getattr(scipy_signal, op)(in1, in2, mode, boundary, 0)
    actual = getattr(fastconv, op)(in1, in2, mode, boundary, backend=backend)
    compare.equal(actual, expected, f"fastconv.{op}, {shapes}, {mode}, {boundary}, {dtype}, {backend}")


@pytest.mark.parametrize("fillvalue", [0, 3, -2, 1.5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["correlate2d", "convolve2d"])
def test_fill_value(backend, op, mode, fillvalue):
    in1, in2 = pair(((6, 7), (3, 4)), "float64")
    expected = getattr(scipy_signal, op)(in1, in2, mode, "fill", fillvalue)
    actual = getattr(fastconv, op)(in1, in2, mode, "fill", fillvalue, backend=backend)
    compare.equal(actual, expected, f"fastconv.{op}, {mode}, fillvalue={fillvalue}, {backend}")


@pytest.mark.parametrize(
    "dtypes",
    [
        ("int8", "float32"), ("float32", "float64"), ("int32", "uint8"), ("float32", "complex64"),
        ("int64", "uint64"), ("bool", "int16"), ("float32", "complex128"),
    ],
)  # fmt: skip
def test_mixed_dtypes_promote_as_numpy(backend, dtypes):
    in1, in2 = (pair(((7,), (3,)), dtype)[i] for i, dtype in enumerate(dtypes))
    actual = fastconv.correlate(in1, in2, backend=backend)
    assert actual.dtype == np.promote_types(*dtypes)
    wide = np.complex128 if actual.dtype.kind == "c" else np.float64
    assert np.array_equal(
        actual.astype(wide), scipy_signal.correlate(in1.astype(wide), in2.astype(wide), method="direct")
    )


@pytest.mark.parametrize("method", ["direct", "fft", "auto"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["correlate", "convolve"])
def test_bools(backend, op, mode, method):
    """An "or" of "and"s, in bool."""
    rng = np.random.default_rng(0)
    in1, in2 = rng.random((6, 7)) < 0.3, rng.random((2, 3)) < 0.5
    counted = getattr(scipy_signal, op)(in1.astype(int), in2.astype(int), mode, "direct")
    actual = getattr(fastconv, op)(in1, in2, mode, method, backend=backend)
    assert actual.dtype == bool
    assert np.array_equal(actual, counted > 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("method", ["direct", "auto"])
def test_half_precision_sums_in_float32(backend, dtype, method):
    """2048 ones and twos: a float16 accumulator would stop at 2048, a bfloat16 one at 256."""
    ones = np.ones(3001, cases.dtype_of(dtype))
    actual = fastconv.correlate(ones, ones[:3000], "valid", method, backend=backend)
    assert actual.dtype == ones.dtype
    assert np.array_equal(actual, np.full(2, 3000).astype(ones.dtype))


def test_lists_and_scalars(backend):
    """As SciPy takes them."""
    assert np.array_equal(
        fastconv.correlate([1, 2, 3], (0, 1), backend=backend), scipy_signal.correlate([1, 2, 3], (0, 1))
    )
    assert fastconv.convolve(2, 3, backend=backend) == scipy_signal.convolve(2, 3) == 6
    assert fastconv.correlate(2 + 1j, 3j, backend=backend) == scipy_signal.correlate(2 + 1j, 3j)
    assert np.array_equal(fastconv.correlate2d([[1, 2]], [[3]], backend=backend), [[3, 6]])


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_strided_views(backend, method):
    """Transposed, reversed, sliced and broadcast inputs, read-only and byte-swapped ones."""
    rng = np.random.default_rng(4)
    base = rng.integers(-4, 5, (14, 16)).astype(np.float64)
    kernel = rng.integers(-4, 5, (3, 2)).astype(np.float64)
    swapped = base.astype(base.dtype.newbyteorder())
    frozen = base.copy()
    frozen.flags.writeable = False
    for view in (base.T, base[::-1, ::2], base[2:9, ::-3], np.broadcast_to(base[0], (5, 16)), swapped, frozen):
        for other in (kernel, kernel[::-1, ::-1], kernel.astype(">f8")):
            expected = scipy_signal.correlate(view.astype(np.float64), other.astype(np.float64), "same", "direct")
            actual = fastconv.correlate(view, other, "same", method, backend=backend)
            assert np.abs(actual - expected).max() <= (0 if method == "direct" else 1e-10)
            assert actual.dtype == np.float64
            assert actual.dtype.isnative


@pytest.mark.parametrize("op", ["correlate", "convolve", "correlate2d", "convolve2d"])
def test_out(backend, op):
    in1, in2 = pair(((6, 7), (3, 2)), "float32")
    out = np.full((6, 7), np.nan, np.float32)
    assert getattr(fastconv, op)(in1, in2, "same", out=out, backend=backend) is out
    compare.equal(out, getattr(scipy_signal, op)(in1, in2, "same"), op)
    wrapped = np.full((6, 7), np.nan, np.float32)
    fastconv.correlate2d(in1, in2, "same", "wrap", out=wrapped, backend=backend)
    compare.equal(wrapped, scipy_signal.correlate2d(in1, in2, "same", "wrap"), op)


@pytest.mark.parametrize("boundary", ["fill", "wrap", "symm"])
def test_boundaries_in_blocks_of_rows(backend, boundary, monkeypatch):
    """The extended input is made a few rows at a time; the seams do not show."""
    from fastconv.ops import signal

    monkeypatch.setattr(signal, "BLOCK_BYTES", 2048)
    in1, in2 = pair(((61, 37), (8, 5)), "int32")
    expected = scipy_signal.convolve2d(in1, in2, "same", boundary, 2)
    compare.equal(fastconv.convolve2d(in1, in2, "same", boundary, 2, backend=backend), expected, boundary)

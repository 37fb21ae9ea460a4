"""Pooling on the cpu backend: what vectors read beyond a row's end reaches no output; gradients along taps."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

import fastconv

WINDOWS = [(3, 2, 0, 1), (3, 2, 1, 1), (2, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 2), (3, 3, 0, 1), (5, 4, 2, 1)]


def surrounded(width: int) -> np.ndarray:
    """A slice of whole numbers, NaN on all sides of every row."""
    outer = np.full((2, 9, 25, width + 6), np.nan, np.float32)
    x = outer[:, 1:8, 2:23, 3:-3]
    x[...] = np.random.default_rng(0).integers(-9, 9, x.shape)
    return x


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("width", [7, 15, 33, 55])
@pytest.mark.parametrize(("ksize", "stride", "padding", "dilation"), WINDOWS)
def test_neighbours_stay_out(ksize, stride, padding, dilation, width, flip):
    """Slices, also with their rows from last to first, give what a copy of them gives."""
    x = surrounded(width)[:, :, ::-1] if flip else surrounded(width)
    args = ksize, stride, padding, dilation
    y, indices = fastconv.max_pool2d(x, *args, return_indices=True, backend="cpu")
    expected = fastconv.max_pool2d(x.copy(), *args, return_indices=True, backend="reference")
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(fastconv.max_pool2d(x, *args, backend="cpu"), y)
    if dilation == 1:
        mean = fastconv.avg_pool2d(x, ksize, stride, padding, backend="cpu")
        reference = fastconv.avg_pool2d(x.copy(), ksize, stride, padding, backend="reference")
        np.testing.assert_allclose(mean, reference, rtol=1e-6, atol=1e-6)


def gradients(x, dy, *args, **options):
    """By the taps that the forward pass kept, and by its indices."""
    y, pullback = fastconv.max_pool2d_vjp(x, *args, backend="cpu", **options)
    _, indices = fastconv.max_pool2d(x, *args, return_indices=True, backend="cpu", **options)
    return pullback(dy(y.shape)), fastconv.max_pool2d_dgrad(dy(y.shape), x, *args, indices=indices, **options)


def whole_numbers(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).integers(-9, 9, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (5, 1, 2), (3, 3, 0)])
def test_blocks_of_a_large_plane(window, dtype):
    """A plane of several blocks, whose windows reach over their borders."""
    x = whole_numbers((1, 2, 300, 517), dtype)
    by_taps, by_indices = gradients(x, lambda shape: whole_numbers(shape, dtype, 1), *window)
    np.testing.assert_array_equal(by_taps, by_indices)


@pytest.mark.parametrize("window", [(3, 2, 1), (3, 1, 1)])
def test_gradients_of_any_strides(window):
    """Of dy that is not adjacent, or repeats itself, no vectors are read."""
    x = whole_numbers((2, 20, 33, 34))
    for dy in (
        lambda shape: whole_numbers((*shape[:3], 2 * shape[3]), seed=1)[..., ::2],
        lambda shape: np.broadcast_to(np.float32(3), shape),
    ):
        by_taps, by_indices = gradients(x, dy, *window)
        np.testing.assert_array_equal(by_taps, by_indices)


@pytest.mark.parametrize(
    ("size", "window"), [(27, (3, 2)), (28, (2, 2)), (30, (3, 2, 1)), (13, (3, 2)), (31, (2, 2, 1))]
)
def test_gradients_in_planes(size, window):
    """Of an odd and an even last row, in blocks and borders, the sums that the definition has."""
    x = whole_numbers((2, 20, size, size + 4))
    by_taps, by_indices = gradients(x, lambda shape: whole_numbers(shape, seed=1), *window)
    y = fastconv.max_pool2d(x, *window, backend="reference")
    expected = fastconv.max_pool2d_dgrad(whole_numbers(y.shape, seed=1), x, *window, backend="reference")
    np.testing.assert_array_equal(by_taps, expected)
    np.testing.assert_array_equal(by_indices, expected)


@pytest.mark.parametrize("wrong", [9 * 40 - 1, 9 * 40 + 2, 12 * 40, -2, 2**32 + 9 * 40, -(2**31)])
def test_an_index_of_another_window(wrong):
    """The cells beside a window raise, and so does what is one only in 32 bits; -1 is followed nowhere."""
    x = whole_numbers((1, 24, 40, 40))
    y, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True, backend="cpu")
    dy = whole_numbers(y.shape, seed=1)
    some = indices.copy()
    some[0, :, ::3] = -1
    expected = fastconv.max_pool2d_dgrad(np.where(some < 0, 0, dy), x, 3, 2, 1, indices=indices, backend="reference")
    found = fastconv.max_pool2d_dgrad(dy, x, 3, 2, 1, indices=some, backend="cpu")
    np.testing.assert_array_equal(found, expected)
    indices[0, 3, 5, 0] = wrong
    with pytest.raises(fastconv.ShapeError, match=rf"indices\[0, 3, 5, 0\] = {wrong}"):
        fastconv.max_pool2d_dgrad(dy, x, 3, 2, 1, indices=indices, backend="cpu")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_gradient_does_not_need_x_again(layout):
    """The vjp keeps where the maxima are, and lets x go."""
    x = whole_numbers((2, 32, 14, 32))
    y, pullback = fastconv.max_pool2d_vjp(x, 3, 2, layout=layout, backend="cpu")
    dy = whole_numbers(y.shape, seed=1)
    expected = fastconv.max_pool2d_dgrad(dy, x.copy(), 3, 2, layout=layout, backend="reference")
    kept = weakref.ref(x)
    del x
    assert kept() is None
    np.testing.assert_array_equal(pullback(dy), expected)

"""Pooling along rows on the cpu backend: what vectors read beyond a row's end reaches no output."""

from __future__ import annotations

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
@pytest.mark.parametrize("width", [15, 33, 55])
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

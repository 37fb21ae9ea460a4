"""Dask: `map_overlap` with SciPy's function, the way to do it without fastconv, and `fastconv.interop.dask`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import scipy.ndimage
import scipy.signal

from fastconv.benchmarks.dropins.measure import Program, Results
from fastconv.interop import dask as fc


def computed(array: da.Array) -> Results:
    return [array.compute(scheduler="threads")]


def own_correlate(x: da.Array, w: np.ndarray) -> da.Array:
    def block(part: Any) -> Any:
        return scipy.signal.correlate(part, w, "same")

    return x.map_overlap(block, depth=tuple(n // 2 for n in w.shape), boundary=0, dtype=x.dtype)


def own_max_pool(x: da.Array, ksize: int) -> da.Array:
    def block(part: Any) -> Any:
        return scipy.ndimage.maximum_filter(part, ksize, mode="constant", cval=-np.inf)

    return x.map_overlap(block, depth=ksize // 2, boundary=-np.inf, dtype=x.dtype)


def programs() -> Iterator[Program]:
    image = np.random.default_rng(0).standard_normal((4096, 4096), np.float32)
    x = da.from_array(image, chunks=1024)
    for extent in (3, 15):
        w = np.random.default_rng(1).standard_normal((extent, extent), np.float32)
        yield Program(
            f"correlate 4096x4096 with {extent}x{extent}, chunks of 1024x1024",
            lambda w=w: computed(own_correlate(x, w)), ours=lambda w=w: computed(fc.correlate(x, w, "same")),
        )  # fmt: skip
    pooled = partial(fc.max_pool2d, ksize=3, stride=1, padding=1)
    yield Program(
        "max pool 3/1/1, 4096x4096, chunks of 1024x1024",
        lambda: computed(own_max_pool(x, 3)), ours=lambda: computed(pooled(x[None])[0]),
    )  # fmt: skip

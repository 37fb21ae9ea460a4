"""TMA descriptors of the emulated device: what cuTensorMapEncodeTiled and ...Im2col make, with their limits.

The order of axes is the driver's, fastest first. A descriptor is 16 words of 64 bits, as ``CUtensorMap`` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv.backends.raw.tensor_map import SWIZZLE, Boxes, Geometry
from fastconv.errors import ShapeError

#: The struct Map in bulk.cpp.
MAP = np.dtype(
    [("address", "u8"), ("stride", "u8", 5), ("size", "u4", 5), ("box", "u2", 5), ("step", "u1", 5), ("rank", "u1"),
     ("bytes", "u1"), ("swizzle", "u1"), ("im2col", "u1"), ("unused", "u1"), ("lower", "i2", 3), ("upper", "i2", 3),
     ("channels", "u2"), ("pixels", "u2"), ("magic", "u4")],
)  # fmt: skip
MAGIC = 0x7E4504A9
SWIZZLES = {0: 16, 32: 32, 64: 64, 128: 128}  # bytes of a tile's row whose chunks are permuted


def tiled(view: Any, box: Sequence[int], *, steps: Sequence[int] | None = None, swizzle: int = 0) -> np.ndarray:
    """The descriptor of boxes of an array.

    Parameters
    ----------
    view : array
        1 to 5 axes; the last is contiguous and the others' strides are multiples of 16 bytes.
    box : sequence of int
        Extents of a box, in the order of the view's axes.
    steps : sequence of int, optional
        Distances between a box's elements, 1 to 8 per axis.
    swizzle : int
        0, 32, 64 or 128 bytes.

    Raises
    ------
    ShapeError
        What the driver refuses, and rows that are narrower than the swizzle.
    """
    words = _encode(view, steps, swizzle)
    if len(box) != view.ndim or not all(1 <= extent <= 256 for extent in box):
        raise ShapeError(f"box={tuple(box)} must have {view.ndim} extents of 1 to 256")
    words["box"][: view.ndim] = box[::-1]
    _check_row(box[-1] * view.itemsize, swizzle)
    return _words(words)


def im2col(
    view: Any, lower: Sequence[int], upper: Sequence[int], channels: int, pixels: int, *,
    steps: Sequence[int] | None = None, swizzle: int = 0,
) -> np.ndarray:  # fmt: skip
    """The descriptor of runs of pixels of an array ``[N, (D, (H,)) W, C]``.

    Parameters
    ----------
    view : array
        3 to 5 axes, as of `tiled`.
    lower, upper : sequence of int
        The first pixel of a run's box, and the last one's distance from the array's last, per spatial axis. For a
        convolution these are ``-pad_low`` and ``pad_high - dilation * (ksize - 1)``.
    channels, pixels : int
        What one copy moves: up to 256 and 1024.
    steps : sequence of int, optional
        The stride of the convolution per spatial axis, 1 to 8.
    swizzle : int
        0, 32, 64 or 128 bytes.

    Raises
    ------
    ShapeError
        What the driver refuses, and rows that are narrower than the swizzle.
    """
    axes = view.ndim - 2
    words = _encode(view, None if steps is None else (1, *steps, 1), swizzle)
    if axes not in (1, 2, 3) or len(lower) != axes or len(upper) != axes:
        raise ShapeError(f"im2col needs 3 to 5 axes and a corner per spatial axis: got {view.ndim}, {lower}, {upper}")
    reach = {1: 2**15, 2: 2**7, 3: 2**4}[axes]
    if not all(-reach <= corner < reach for corner in (*lower, *upper)):
        raise ShapeError(f"corners {tuple(lower)}, {tuple(upper)} are outside of {-reach} to {reach - 1}")
    if not 1 <= channels <= 256 or not 1 <= pixels <= 1024:
        raise ShapeError(f"a copy moves up to 256 channels of 1024 pixels: got {channels}, {pixels}")
    words["im2col"], words["channels"], words["pixels"] = 1, channels, pixels
    words["lower"][:axes], words["upper"][:axes] = lower[::-1], upper[::-1]
    _check_row(channels * view.itemsize, swizzle)
    return _words(words)


def of(geometry: Geometry, address: int) -> np.ndarray:
    """The descriptor of what the raw backend asks for."""
    placed: Any = SimpleNamespace(
        __array_interface__={
            "data": (address, False),
            "shape": geometry.shape,
            "strides": geometry.strides,
            "typestr": "<u2",
            "version": 3,
        }
    )
    view = np.asarray(placed)
    if isinstance(geometry, Boxes):
        return tiled(view, geometry.box, swizzle=SWIZZLE)
    return im2col(
        view, geometry.lower, geometry.upper, geometry.channels, geometry.pixels, steps=geometry.steps, swizzle=SWIZZLE
    )


def _encode(view: Any, steps: Sequence[int] | None, swizzle: int) -> np.ndarray:
    steps = (1,) * view.ndim if steps is None else tuple(steps)
    address = view.__array_interface__["data"][0]
    if not 1 <= view.ndim <= 5 or not all(1 <= extent <= 2**32 for extent in view.shape):
        raise ShapeError(f"a tensor map has 1 to 5 axes that are not empty: got {view.shape}")
    if (
        address % 16
        or view.strides[-1] != view.itemsize
        or any(s % 16 or not 0 <= s < 2**40 for s in view.strides[:-1])
    ):
        raise ShapeError(
            f"a tensor map needs a 16-byte aligned start, a contiguous last axis and strides that are multiples of 16 "
            f"bytes: got address % 16 = {address % 16}, strides {view.strides} of {view.dtype}"
        )
    if len(steps) != view.ndim or not all(1 <= step <= 8 for step in steps):
        raise ShapeError(f"steps must be {view.ndim} numbers of 1 to 8: got {steps}")
    if swizzle not in SWIZZLES:
        raise ShapeError(f"swizzle={swizzle} must be one of {tuple(SWIZZLES)}")
    words = np.zeros((), MAP)
    words["address"], words["magic"] = address, MAGIC
    words["rank"], words["bytes"], words["swizzle"] = view.ndim, view.itemsize, SWIZZLES[swizzle]
    for name, values in (("stride", view.strides), ("size", view.shape), ("step", steps)):
        words[name][: view.ndim] = values[::-1]
    return words


def _check_row(bytes_: int, swizzle: int) -> None:
    if bytes_ % 16 or (swizzle and bytes_ != swizzle):
        needed = f"{swizzle} bytes, the swizzle" if swizzle else "a multiple of 16 bytes"
        raise ShapeError(f"a row of the tile must have {needed}: got {bytes_}")


def _words(words: np.ndarray) -> np.ndarray:
    found = np.zeros(16, np.uint64)
    found.view(np.uint8)[: MAP.itemsize] = np.frombuffer(words.tobytes(), np.uint8)
    return found

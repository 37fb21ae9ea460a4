"""What TMA copies: geometries of tensor maps, and the driver's encoding of them.

All maps are of 16-bit elements, with a swizzle of 128 bytes; axes are in the order of arrays, the last one contiguous.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

from fastconv.backends.raw.args import MAP_BYTES
from fastconv.errors import BackendError
from fastconv.problem import Ints

SWIZZLE = 128
MAP_ALIGNMENT = 64

#: Values of the driver's enumerations (cuda.h). Elements move as bits: no float type is asked for.
UINT16, INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_256B, FILL_ZEROS = 1, 0, 3, 3, 0


class Boxes(NamedTuple):
    """A tiled map: boxes of an array. Strides are in bytes."""

    shape: Ints
    strides: Ints
    box: Ints


class Pixels(NamedTuple):
    """An im2col map: runs of pixels of an array [N, (D, (H,)) W, C]. Corners and steps per spatial axis.

    A run's pixels lie from `lower` to ``size - 1 + upper`` along an axis, `steps` apart.
    """

    shape: Ints
    strides: Ints
    lower: Ints
    upper: Ints
    channels: int
    pixels: int
    steps: Ints


Geometry = Boxes | Pixels


@lru_cache(maxsize=1)
def driver() -> Any:
    """The CUDA driver's library.

    Raises
    ------
    BackendError
        Where it cannot be loaded.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendError(f"tensor maps are encoded by the CUDA driver, which cannot be loaded: {error}") from None


@lru_cache(maxsize=1024)
def encode(geometry: Geometry, address: int) -> bytes:
    """The descriptor of memory at an address, by the driver; no GPU memory is touched.

    Raises
    ------
    BackendError
        With the driver's error and the geometry.
    """
    memory = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)  # the driver wants a multiple of 64
    at = -(-ctypes.addressof(memory) // MAP_ALIGNMENT) * MAP_ALIGNMENT
    rank = len(geometry.shape)
    head = (
        ctypes.c_void_p(at), UINT16, ctypes.c_uint32(rank), ctypes.c_void_p(address),
        _fastest_first(ctypes.c_uint64, geometry.shape), _fastest_first(ctypes.c_uint64, geometry.strides[:-1]),
    )  # fmt: skip
    tail = (INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_256B, FILL_ZEROS)
    if isinstance(geometry, Boxes):
        box, steps = _fastest_first(ctypes.c_uint32, geometry.box), (ctypes.c_uint32 * rank)(*[1] * rank)
        status = driver().cuTensorMapEncodeTiled(*head, box, steps, *tail)
    else:
        # Corners go fastest axis first, as all the driver's arrays do (CUTLASS calls them whd).
        corners = (_fastest_first(ctypes.c_int, corner) for corner in (geometry.lower, geometry.upper))
        sizes = ctypes.c_uint32(geometry.channels), ctypes.c_uint32(geometry.pixels)
        steps = _fastest_first(ctypes.c_uint32, (1, *geometry.steps, 1))
        status = driver().cuTensorMapEncodeIm2col(*head, *corners, *sizes, steps, *tail)
    if status:
        raise BackendError(f"the CUDA driver refuses a tensor map (error {status}): {geometry} at {address:#x}")
    return ctypes.string_at(at, MAP_BYTES)


def _fastest_first(kind: Any, values: Ints) -> Any:
    return (kind * len(values))(*reversed(values))

"""What kernels read and write: dtypes as they are stored, and the type that a kernel computes in.

A kernel gets pointers, ``x[offset]`` with an offset in elements, and builds its offsets from strides:
so one kernel serves every layout, slice and reversed view, in 64 bits.

    stored             computed in
    float64            float64
    float32            float32
    float16            float32    converted by the hardware
    bfloat16           float32    by its bits, uint16: it is the upper half of a float32
    int8, uint8        int32      in convolutions
    bool               uint8
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.kernels.numba_cuda.target import bits_of, device, float_of

#: The dtypes that a pointer has another type for.
STORED = {"bfloat16": "uint16", "bool": "uint8"}


def stored(dtype: str) -> str:
    """The dtype of the elements behind a pointer."""
    return STORED.get(dtype, dtype)


def computed(dtype: str) -> Any:
    """The scalar type in which results of that dtype are summed: float32 for the 16-bit floats."""
    return np.float32 if dtype in ("float16", "bfloat16") else np.dtype(stored(dtype)).type


@lru_cache(maxsize=64)
def reader(dtype: str, to: Any) -> Any:
    """The function from a stored value of that dtype to the type `to`."""
    if dtype != "bfloat16":
        return device(lambda value: to(value))

    @device
    def widen(value):
        return to(float_of(np.int32(np.int32(value) << np.int32(16))))

    return widen


@lru_cache(maxsize=64)
def writer(dtype: str) -> Any:
    """The function from a computed value to one that is stored: rounded to nearest, ties to even."""
    if dtype == "bool":
        return device(lambda value: np.uint8(value != 0))
    if dtype != "bfloat16":
        to = np.dtype(dtype).type
        return device(lambda value: to(value))

    @device
    def narrow(value):
        bits = np.uint32(bits_of(np.float32(value)))
        if value != value:
            return np.uint16(0x7FC0)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return narrow


@device
def place(index, channels, Z, P, Q, channels_last):
    """(n, k, z, p, q) of a thread's number: neighbours lie next to each other in memory."""
    if channels_last:
        k = index % channels
        index = index // channels
    q = index % Q
    index = index // Q
    p = index % P
    index = index // P
    z = index % Z
    index = index // Z
    if channels_last:
        return index, k, z, p, q
    return index // channels, index % channels, z, p, q

"""Scratch memory that is kept between calls, per Python thread: fresh pages cost more than many a kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np

KEPT_BYTES = 32 * 2**20
_local = threading.local()


class Scratch:
    """Bytes of scratch memory; they live as long as this is held."""

    __slots__ = ("address", "array")

    def __init__(self, nbytes: int):
        raw = np.zeros(nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        self.array = raw[start : start + nbytes]
        self.address = raw.ctypes.data + start


def scratch(nbytes: int, slot: str = "scratch") -> Scratch:
    """At least `nbytes` of memory, this thread's until it asks for the slot again, 64-byte aligned.

    It holds what was left there, at first zeros: idle lanes are computed with, and leftovers of the heap can be
    denormal numbers, which take ten times as long.
    """
    kept: Scratch | None = getattr(_local, slot, None)
    if kept is not None and kept.array.size >= nbytes:
        return kept
    new = Scratch(nbytes)
    if nbytes <= KEPT_BYTES:
        setattr(_local, slot, new)
    return new


def workspace(nbytes: int, slot: str = "scratch") -> np.ndarray:
    """`scratch` as an array."""
    return scratch(nbytes, slot).array


def threads() -> int:
    """How many threads a kernel that starts now will use: Numba's setting."""
    return int(_setting()())


@lru_cache(maxsize=1)
def _setting() -> Callable[[], int]:
    """What ``numba.get_num_threads`` reads, without its lock: tiny problems feel a microsecond."""
    import numba

    numba.get_num_threads()  # starts the threads
    setting: Callable[[], int] = getattr(numba.np.ufunc.parallel, "_get_num_threads", numba.get_num_threads)
    return setting

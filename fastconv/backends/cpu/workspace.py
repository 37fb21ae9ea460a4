"""Scratch memory that is kept between calls, per Python thread: fresh pages cost more than many a kernel."""

from __future__ import annotations

import threading

import numpy as np

KEPT_BYTES = 32 * 2**20
_local = threading.local()


def workspace(nbytes: int, slot: str = "scratch") -> np.ndarray:
    """At least `nbytes` of memory, this thread's until it asks for the slot again, 64-byte aligned.

    It holds what was left there, at first zeros: idle lanes are computed with, and leftovers of the heap can be
    denormal numbers, which take ten times as long.
    """
    kept: np.ndarray | None = getattr(_local, slot, None)
    if kept is not None and kept.size >= nbytes:
        return kept
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    buffer = raw[start : start + nbytes]
    if nbytes <= KEPT_BYTES:
        setattr(_local, slot, buffer)
    return buffer


def threads() -> int:
    """How many threads a kernel that starts now will use: Numba's setting."""
    import numba

    return int(numba.get_num_threads())

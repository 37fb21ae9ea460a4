"""What this machine can do at most, measured: a large matrix product and a large copy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fastconv.benchmarks.cases import Case


@dataclass(frozen=True)
class Limits:
    """Floating-point operations and bytes per second (of a copy, reads and writes counted)."""

    flops: float
    bandwidth: float

    def best(self, other: Limits | None) -> Limits:
        """The higher of two measurements: what disturbs one can only lower it."""
        return self if other is None else Limits(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))

    def bound(self, case: Case) -> tuple[float, str]:
        """The least seconds that a case can take without a better algorithm, and what binds it."""
        compute, memory = case.flops / self.flops, case.nbytes / self.bandwidth
        return (compute, "compute") if compute >= memory else (memory, "memory")


def measure(dtype: str = "float32", size: int = 1280, copy_bytes: int = 2**26, seconds: float = 0.6) -> Limits:
    """The best of repeated products and copies. 16-bit floats accumulate in float32 and are held to its product."""
    kind = np.float64 if dtype == "float64" else np.float32
    a, b = (np.full((size, size), value, kind) for value in (0.5, 2.0))
    c = np.empty_like(a)
    product = _best(lambda: np.matmul(a, b, out=c), seconds)

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    source = np.ones(copy_bytes, np.uint8)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        copy = _best(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)), seconds)
    return Limits(2 * size**3 / product, 2 * copy_bytes / copy)


def _best(call: Callable[[], object], seconds: float) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return best

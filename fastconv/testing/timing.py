"""Timing: warm-up until stable, blocks of calls, and medians with their spread.

A timing is only as good as what surrounds it: see `fastconv.benchmarks.runner` for how the libraries
take turns and how every timed result is verified.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Call = Callable[[], Any]


def time_calls(call: Call, count: int, before: Call | None = None) -> tuple[list[float], Any]:
    """Seconds of each of `count` calls, and what the last one returned; `before` runs before each, not counted."""
    clock = time.perf_counter_ns
    seconds, result = [], None
    for _ in range(count):
        if before is not None:
            before()
        start = clock()
        result = call()
        seconds.append((clock() - start) * 1e-9)
    return seconds, result


def warm_up(call: Call, limit: float = 0.3, window: int = 5, tolerance: float = 0.05) -> float:
    """Call until two successive medians of `window` calls agree, or until `limit` seconds have passed.

    Returns the last median: what one call takes, in seconds.
    """
    end = time.perf_counter() + limit
    seconds: list[float] = []
    while True:
        seconds += time_calls(call, 1)[0]
        last = statistics.median(seconds[-window:])
        if len(seconds) >= 2 * window:
            before = statistics.median(seconds[-2 * window : -window])
            if abs(last - before) <= tolerance * before:
                return last
        if time.perf_counter() >= end:
            return last


def block_calls(estimate: float, target: float = 0.025, most: int = 2000) -> int:
    """How many calls make a block of about `target` seconds."""
    return min(max(math.ceil(target / max(estimate, 1e-9)), 1), most)


def quantile(values: Sequence[float], fraction: float) -> float:
    """The value below which that fraction of the values lies, interpolated."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def geomean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers; NaN of none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


@dataclass(frozen=True)
class Timing:
    """What a number of blocks say: seconds of one call."""

    median: float
    p20: float
    p80: float
    calls: int
    blocks: tuple[float, ...]  # the median of each block

    @staticmethod
    def of(blocks: Sequence[Sequence[float]]) -> Timing:
        """From the seconds of each call, block by block."""
        seconds = [value for block in blocks for value in block]
        medians = tuple(statistics.median(block) for block in blocks)
        return Timing(quantile(seconds, 0.5), quantile(seconds, 0.2), quantile(seconds, 0.8), len(seconds), medians)

"""One program on a library's own kernels and on fastconv's: verified, in turns, medians.

Results on fastconv are compared with the library's own, and a wrong one has no time: in float64 to 1e-9 where the
program has such a form; in float32, before and after the timing, to 1e-3 of the largest output and 0.1 of a
gradient's norm, because rounding that pushes a value over ReLU's or a maximum's edge moves gradients by percents, with
either library. The two take turns in short blocks, in one process, where both libraries' threads live.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.testing.timing import quantile, time_calls

Results = Sequence[np.ndarray]
Step = Callable[[], Results]  # the output first, then gradients


@dataclass(frozen=True)
class Program:
    """One step of a library's work, deterministic, and how fastconv does it: under a patch, or by a step of its own."""

    name: str
    own: Step
    patch: Callable[[], Any] | None = None
    ours: Step | None = None
    exact: Step | None = None  # `own` in float64, to be patched


@dataclass(frozen=True)
class Figure:
    """Medians in seconds of a step, and what was passed on to the library; or what was wrong."""

    name: str
    own: float = 0.0
    ours: float = 0.0
    passed: str = ""
    wrong: str | None = None

    @property
    def ratio(self) -> float:
        return self.own / self.ours


def differs(found: Results, expected: Results, output: float, gradient: float) -> str | None:
    """What is wrong with the results of a step: bounds relative to the largest output and to a gradient's norm."""
    if len(found) != len(expected):
        return f"wrong: {len(found)} results in place of {len(expected)}"
    for at, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours.shape != theirs.shape:
            return f"wrong: result {at} has shape {ours.shape} in place of {theirs.shape}"
        size = np.linalg.norm if at else lambda array: np.abs(array).max()
        error = float(size((ours - theirs).ravel()) / (size(theirs.ravel()) + 1e-6))
        if not error <= (gradient if at else output):
            return f"wrong: {'gradient' if at else 'output'} {at} differs by {error:.1e}"
    return None


def measure(program: Program, seconds: float) -> Figure:
    patch = program.patch() if program.patch else nullcontext()
    ours = program.ours or program.own

    def on_fastconv(step: Step) -> Results:
        with patch:
            return [np.array(array) for array in step()]

    wrong = program.exact and differs(on_fastconv(program.exact), program.exact(), 1e-9, 1e-9)
    wrong = wrong or differs(on_fastconv(ours), program.own(), 1e-3, 0.1)
    passed = patch.report().passed if program.patch else {}
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while not wrong and (time.perf_counter() < end or len(times[1]) < 10):
        taken, expected = time_calls(program.own, 3)
        times[0].extend(taken[1:])  # the first one finds the other library's threads awake
        with patch:
            taken, found = time_calls(ours, 3)
        times[1].extend(taken[1:])
        wrong = differs(found, expected, 1e-3, 0.1)
    if wrong:
        return Figure(program.name, wrong=wrong)
    listing = ", ".join(f"{name} ({why})" for name, why in passed) or ("nothing" if program.patch else "")
    return Figure(program.name, quantile(times[0], 0.5), quantile(times[1], 0.5), listing)

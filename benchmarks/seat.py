"""A seat: where one contestant meets the cases, in this process or (see `process`) in one of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.benchmarks import limits
from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers import make
from fastconv.benchmarks.verify import AFTER, BEFORE, operands
from fastconv.testing.timing import time_calls, warm_up

Array = np.ndarray


class Seat:
    """Holds the operands of one case and the bound call of one contestant. Methods are asked for by name."""

    def __init__(self, name: str, contestant: Any = None):
        self.name = name
        self.contestant = make(name) if contestant is None else contestant

    def version(self) -> str:
        return self.contestant.version()

    def prepare(self, case: Case) -> str:
        """Place the data that will be timed; returns the library's note about its algorithm."""
        self.case, self.result = case, None
        data = operands(case, BEFORE)
        self.given = [self.contestant.place(case, role, data[role]) for role in case.roles]
        self.job = self.contestant.bind(case, self.given)
        return self.job.note

    def first(self) -> tuple[float, Array]:
        """Seconds of the first call, compilation included, and its result."""
        (seconds,), result = time_calls(self.job.run, 1)
        return seconds, self._read(result)

    def warm(self, limit: float) -> float:
        return warm_up(self.job.run, limit)

    def block(self, count: int, rewarm: float) -> list[float]:
        """Seconds of each of `count` calls, after uncounted ones that bring caches and threads back."""
        warm_up(self.job.run, rewarm)
        seconds, self.result = time_calls(self.job.run, count)
        return seconds

    def timed_result(self) -> Array:
        """What the last timed call returned."""
        return self._read(self.result)

    def other_data(self) -> Array:
        """The result for other values in the same memory."""
        data = operands(self.case, AFTER)
        for role, operand in zip(self.case.roles, self.given, strict=True):
            self.contestant.write(self.case, role, operand, data[role])
        self.job = self.contestant.bind(self.case, self.given)
        return self._read(self.job.run())

    def limits(self, dtype: str) -> limits.Limits:
        return limits.measure(dtype)

    def _read(self, result: Any) -> Array:
        return np.asarray(self.job.read(result))

    # What the runner asks of a seat, wherever it is.

    def ask(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        return getattr(self, method)(*args)

    def pause(self) -> None:
        """Nothing to stop: a seat in this process is idle between two questions."""

    def resume(self) -> None:
        pass

    def close(self) -> None:
        pass

"""A seat: where one contestant meets the cases, in this process or (see `process`) in one of its own."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fastconv.benchmarks import limits
from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.device import Block
from fastconv.benchmarks.peers import Refused, make
from fastconv.benchmarks.verify import AFTER, BEFORE, operands, part
from fastconv.testing.timing import warm_up

Array = np.ndarray
TOO_LARGE = "more than 2**31 elements are measured on a GPU only"


class Seat:
    """Holds the operands of one case and the bound call of one contestant. Methods are asked for by name."""

    def __init__(self, name: str, contestant: Any = None):
        self.name = name
        self.contestant = make(name) if contestant is None else contestant

    def version(self) -> str:
        return self.contestant.version()

    def prepare(self, case: Case) -> str:
        """Place the data that will be timed; returns the library's note about its algorithm."""
        self.device = self.contestant.device
        if case.huge and self.device.kind == "cpu":
            raise Refused(TOO_LARGE)
        self.case, self.part = case, part(case)
        self.job = self.given = self.result = None  # what the case before held goes first
        data = operands(case, BEFORE)
        self.given = [self.contestant.place(case, role, data[role]) for role in case.roles]
        self.job = self.contestant.bind(case, self.given)
        return self.job.note

    def first(self) -> tuple[float, Array]:
        """Seconds of the first call, compilation included, and its result."""
        self.memory = self.device.memory()
        start = time.perf_counter()
        result = self._finished()
        return time.perf_counter() - start, self._read(result)

    def warm(self, limit: float) -> float:
        return warm_up(self._finished, limit)

    def block(self, count: int, rewarm: float, cold: bool = False) -> tuple[list[float], list[float]]:
        """Seconds of each of `count` calls, after uncounted ones that bring caches and threads back, and the host's."""
        warm_up(self._finished, rewarm)
        block: Block = self.device.block(self.job.run, count, cold)
        self.result = block.result
        return block.seconds, block.host

    def peak(self) -> int | None:
        """The most bytes during a call beyond the operands: the result, and what it is computed in.

        Against what was in use before the first call, as libraries keep memory in pools of their own; where the
        library tells what it keeps, against what is in use now, which leaves out what a compiler has left behind.
        """
        used, keeps = self.device.memory(), self.job.keeps
        self._finished()
        peak = self.device.peak()
        if used is None or peak is None or self.memory is None:
            return None
        return max(peak - self.memory, 0) if keeps is None else max(peak - used, 0) + keeps

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
        return self.contestant.device.limits(dtype)

    def _finished(self) -> Any:
        result = self.job.run()
        self.device.wait()
        return result

    def _read(self, result: Any) -> Array:
        """In canonical axes; of a case that is checked in part, that part."""
        self.device.wait()
        array = np.asarray(self.job.read(result))
        return array if self.part is None else np.ascontiguousarray(self.part.of(self.case.result, array))

    # What the runner asks of a seat, wherever it is.

    def ask(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        return getattr(self, method)(*args)

    def pause(self) -> None:
        """Nothing to stop: a seat in this process is idle between two questions."""

    def resume(self) -> None:
        pass

    def close(self) -> None:
        pass

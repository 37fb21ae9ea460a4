"""What a contestant is: a library that computes a case, or says why it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.device import HOST, Device

Array = np.ndarray


@dataclass(frozen=True)
class Job:
    """A call with its operands bound: `run` is what is timed, `read` turns its result into canonical axes."""

    run: Callable[[], Any]
    read: Callable[[Any], Array]
    note: str = ""  # the algorithm, where the library tells
    keeps: int | None = None  # bytes that it keeps from call to call beside the operands, where it tells


class Contestant:
    """A library that takes part. It lives in a process of its own, and meets one case at a time.

    This base is one that takes NumPy arrays in canonical axes.
    """

    device: Device = HOST

    def version(self) -> str:
        """Its name, version and threads, for the report.

        Raises
        ------
        Absent
            Where it is not installed or cannot run on this machine.
        """
        raise NotImplementedError

    def place(self, case: Case, role: str, array: Array) -> Any:
        """An operand, given in canonical axes, as this library takes it: in memory of its own."""
        return array.copy()

    def write(self, case: Case, role: str, operand: Any, array: Array) -> None:
        """Other values into the memory of an operand that has been placed."""
        operand[...] = array

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        """The call of that case on operands that have been placed.

        Raises
        ------
        Refused
            For a case that it has no call for.
        """
        raise NotImplementedError


class Absent(Exception):
    """The library is not here; the message says what is missing."""


class Refused(Exception):
    """The library has no call for this case; the message says why."""


def symmetric(pads: Sequence[tuple[int, int]], library: str) -> list[int]:
    """The padding per axis, of a library that pads both sides alike."""
    if any(low != high for low, high in pads):
        raise Refused(f"{library} pads both sides alike")
    return [low for low, _ in pads]

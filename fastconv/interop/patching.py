"""What patches of other libraries share: nesting, undoing, and counts of what ran where."""

from __future__ import annotations

import os
import threading
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from fastconv.errors import FastconvError


class Refused(FastconvError):
    """A call that the patched library is to compute; the message is the reason."""


@dataclass(frozen=True)
class Report:
    """What became of the calls under a patch; ``str()`` of it is a table.

    Attributes
    ----------
    ran : dict
        Per function or operator, how many calls fastconv computed.
    passed : dict
        Per function or operator and reason, how many calls went on to the library.
    """

    ran: dict[str, int]
    passed: dict[tuple[str, str], int]

    def __str__(self) -> str:
        lines = [f"{name:36} {count:8} on fastconv" for name, count in sorted(self.ran.items())]
        lines += [f"{name:36} {count:8} passed on: {why}" for (name, why), count in sorted(self.passed.items())]
        return "\n".join(lines) or "no convolution or pooling was called"


class Counts:
    """The state of one library's patch: how many are installed, and what ran since the first of them was."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.installed = 0
        self.ran: Counter[str] = Counter()
        self.passed: Counter[tuple[str, str]] = Counter()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        """Another thread of the parent may have held it."""
        self.lock = threading.Lock()

    def add_run(self, name: str) -> None:
        with self.lock:
            self.ran[name] += 1

    def add_passed(self, name: str, reason: str) -> None:
        with self.lock:
            self.passed[name, reason] += 1


class Patch:
    """Installed and uninstalled in the whole process; patches of one library nest, in one thread or several."""

    counts: ClassVar[Counts]  # of the library that the subclass patches

    def __init__(self) -> None:
        self._depth = 0

    def _begin(self) -> None:
        """Put fastconv in place: called by the first of nested patches."""
        raise NotImplementedError

    def _end(self) -> None:
        """Undo `_begin`: called by the last."""
        raise NotImplementedError

    def install(self) -> Self:
        """Begin; the counts start anew where no other patch of the library is installed."""
        with self.counts.lock:
            if not self.counts.installed:
                self._begin()
                self.counts.ran.clear()
                self.counts.passed.clear()
            self.counts.installed += 1
            self._depth += 1
        return self

    def uninstall(self) -> None:
        """End what one call of `install` of this object began.

        Raises
        ------
        FastconvError
            Where it is not installed.
        """
        with self.counts.lock:
            if not self._depth:
                raise FastconvError("this patch is not installed: call install() first")
            self._depth -= 1
            self.counts.installed -= 1
            if not self.counts.installed:
                self._end()

    def report(self) -> Report:
        """What ran on fastconv and what was passed on, since the outermost patch was last installed."""
        with self.counts.lock:
            return Report(dict(self.counts.ran), dict(self.counts.passed))

    def __enter__(self) -> Self:
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()

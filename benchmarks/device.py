"""Where a contestant computes, and how the time of its calls is told there.

On the CPU (`Host`) a call is over when it returns. A GPU works through a queue: its own time lies between two
marks in the queue, and the time until the call returns is the host's overhead. `Queue` is that logic, over
the few things that a CUDA library does for it (`Stream`; the real ones are in `cuda`).
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastconv.benchmarks import limits
from fastconv.testing.timing import time_calls

Call = Callable[[], Any]


class Block(NamedTuple):
    """Some calls in a row."""

    seconds: list[float]  # of each call, where it computes
    host: list[float]  # of each call until it returned, where that is another time
    result: Any  # of the last one


class Device(Protocol):
    kind: str  # "cpu" or "gpu"

    def put(self, array: np.ndarray) -> Any:
        """An array in this device's memory."""

    def wait(self) -> None:
        """Until everything that was asked for is computed."""

    def block(self, call: Call, count: int, cold: bool) -> Block:
        """Time `count` calls; `cold`: with caches that hold nothing of the operands."""

    def memory(self) -> int | None:
        """Bytes in use now; from here on the peak counts."""

    def peak(self) -> int | None:
        """The most bytes in use since `memory` was asked."""

    def limits(self, dtype: str) -> limits.Limits:
        """What it can do at most, measured."""


class Host:
    """The CPU and its memory."""

    kind = "cpu"

    def put(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def wait(self) -> None:
        pass

    def block(self, call: Call, count: int, cold: bool) -> Block:
        seconds, result = time_calls(call, count, self._flush if cold else None)
        return Block(seconds, [], result)

    def memory(self) -> int | None:
        """Of the process, after giving back what its allocator keeps (Linux)."""
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: proc(5)
            return _status("VmRSS")
        except (OSError, AttributeError):
            return None

    def peak(self) -> int | None:
        try:
            return _status("VmHWM")
        except OSError:
            return None

    def limits(self, dtype: str) -> limits.Limits:
        return limits.measure(dtype)

    @cached_property
    def _sweep(self) -> np.ndarray:
        return np.zeros(last_cache() // 8)

    def _flush(self) -> None:
        """Write to as much memory as the last cache holds."""
        np.add(self._sweep, 1.0, out=self._sweep)


HOST = Host()


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {name} in /proc/self/status")


@lru_cache
def last_cache(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> int:
    """Bytes of the largest cache of the first core; 32 MB where the system does not say."""
    sizes = [0]
    for file in Path(folder).glob("index*/size"):
        text = file.read_text().strip()
        number, unit = (text[:-1], text[-1]) if text[-1:] in "KMG" else (text, "")
        sizes.append(int(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit])
    return max(sizes) or 32 * 2**20


# ---------------------------------------------------------------- devices with a queue


class Stream(Protocol):
    """What a queue of a GPU library can do."""

    def put(self, array: np.ndarray) -> Any: ...

    def wait(self) -> None:
        """Until the queue is empty."""

    def mark(self) -> Any:
        """A mark at the end of the queue."""

    def between(self, start: Any, stop: Any) -> float:
        """Seconds that the device took from one mark to the other; both have been passed."""

    def flush(self) -> None:
        """Ask for a write to more memory than the last cache holds."""

    def record(self, call: Call) -> tuple[Call, Any]:
        """Record what `call` asks for as a graph: what replays it, and what the call returned."""

    def memory(self) -> int: ...

    def peak(self) -> int: ...

    def limits(self, dtype: str) -> limits.Limits: ...


#: Calls in a recorded graph: enough that the launch of the graph is a small part of it.
COPIES = 20
#: A host that takes more than this share of the time between two marks is what they measure.
STARVED = 0.8


class Queue:
    """A GPU. Where the device waits for the host between two calls, the calls are recorded and replayed as a graph."""

    kind = "gpu"

    def __init__(self, stream: Stream):
        self.stream = stream
        self.put, self.wait, self.limits = stream.put, stream.wait, stream.limits
        self.memory, self.peak = stream.memory, stream.peak

    def block(self, call: Call, count: int, cold: bool) -> Block:
        block = self._marked(call, count, self.stream.flush if cold else None)
        starved = statistics.median(block.host) > STARVED * statistics.median(block.seconds)
        return self._replayed(call, count, block) if starved else block

    def _marked(self, call: Call, count: int, before: Call | None) -> Block:
        stream, clock = self.stream, time.perf_counter
        marks, host, result = [], [], None
        stream.wait()
        for _ in range(count + 1):
            if before is not None:
                before()
            start = stream.mark()
            begin = clock()
            result = call()
            host.append(clock() - begin)
            marks.append((start, stream.mark()))
        stream.wait()
        # The first call found the queue empty, and its marks lie around its launch: it does not count.
        return Block([stream.between(*pair) for pair in marks[1:]], host[1:], result)

    def _replayed(self, call: Call, count: int, block: Block) -> Block:
        """The device's own time of a call that is shorter than its launch: caches are warm here."""

        def calls() -> Any:
            result = None
            for _ in range(COPIES):
                result = call()
            return result

        try:
            replay, result = self.stream.record(calls)
        except Exception:  # a library that cannot be recorded keeps the time that its user sees
            return block
        replayed = self._marked(replay, max(count // COPIES, 3), None)
        return Block([seconds / COPIES for seconds in replayed.seconds], block.host, result)

"""Which algorithm runs: the mode, and what was measured, kept on disk.

Backends choose by heuristics that are pure functions of the problem and the machine. Under
``"measure"`` they time their applicable algorithms once per problem and remember the winner here.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from fastconv import dispatch
from fastconv.problem import one_of

MODES = ("off", "heuristic", "measure")
MEASURED_CALLS = 7
log = logging.getLogger("fastconv")
_mode: str | None = None


def set_autotune(mode: str | None) -> None:
    """How an algorithm is chosen from now on.

    Parameters
    ----------
    mode : "off", "heuristic", "measure" or None
        "off": the one that is right for every problem. "heuristic" (default): by a rule. "measure": time the
        applicable ones once per problem, and keep the winner on disk for this machine and these versions;
        the first call of a problem then waits for it. None restores ``FASTCONV_AUTOTUNE``.

    Raises
    ------
    ShapeError
        For another word.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.set_autotune("heuristic")
    """
    global _mode
    one_of("mode", mode, (None, *MODES))
    _mode = mode
    dispatch.forget()


def autotune() -> str:
    """The mode in force."""
    return str(one_of("FASTCONV_AUTOTUNE", _mode or os.environ.get("FASTCONV_AUTOTUNE", "heuristic"), MODES))


# ---------------------------------------------------------------- the cache folder


def cache_dir() -> Path:
    """Where compiled kernels and measured choices lie: ``FASTCONV_CACHE_DIR`` or the user's cache folder."""
    named = os.environ.get("FASTCONV_CACHE_DIR")
    if named:
        return Path(named)
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "fastconv"
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "fastconv"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastconv"


@lru_cache(maxsize=256)
def warn_once(message: str) -> None:
    log.warning(message)


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> str:
    """What a measured choice holds for: the processor and the versions that computed it."""
    import importlib.metadata

    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("fastconv", "numpy", "numba"))
    return ", ".join([cpu_name(), *versions])


def measured(name: str, key: str, candidates: Mapping[str, Callable[[], object]]) -> str:
    """The fastest of `candidates` by their names: from disk, or timed now (medians of interleaved calls) and kept."""
    choices = Choices(name)
    known = choices.get(key)
    if known in candidates:
        return str(known)
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for call in candidates.values():
        call()  # compiles, and warms the caches
    for _ in range(MEASURED_CALLS):
        for candidate, call in candidates.items():
            start = time.perf_counter()
            call()
            times[candidate].append(time.perf_counter() - start)
    best = min(times, key=lambda candidate: statistics.median(times[candidate]))
    choices.put(key, best)
    return best


class Choices:
    """Measured choices as one JSON file per machine; a corrupt or unwritable one is ignored with a warning."""

    def __init__(self, name: str):
        self.name = name

    @property
    def path(self) -> Path:
        return cache_dir() / f"choices-{self.name}.json"

    def _read(self) -> dict[str, str]:
        try:
            table = json.loads(self.path.read_text())
            if isinstance(table, dict) and all(isinstance(value, str) for value in table.values()):
                return table
            raise ValueError("not a table of choices")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            warn_once(f"the measured choices in {self.path} cannot be read and are ignored: {error}")
            return {}

    def get(self, key: str) -> str | None:
        return self._read().get(key)

    def put(self, key: str, choice: str) -> None:
        """Add a choice; the file is replaced whole, so that other processes never read half of one."""
        table = self._read() | {key: choice}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
            with os.fdopen(handle, "w") as file:
                json.dump(table, file, indent=0, sort_keys=True)
            os.replace(temporary, self.path)
        except OSError as error:
            warn_once(f"measured choices cannot be kept in {self.path}: {error}")

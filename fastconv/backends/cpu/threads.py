"""Kernels called from several Python threads, and in forked processes: what each threading layer of Numba allows.

omp        calls may overlap; after a fork, GNU OpenMP ends the process that starts another parallel loop
workqueue  one call at a time, else it aborts the process; starts a loop in 0.1 ms; works after a fork
tbb        both
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastconv import tuning
from fastconv.backends.base import Launch
from fastconv.errors import BackendError

FORKED = (
    "this process was forked after kernels had run on GNU OpenMP's threads, which would end it: start workers by "
    '"spawn" or "forkserver", fork before the first call, or set NUMBA_THREADING_LAYER=workqueue'
)
ONLY_WORKQUEUE = (
    "Numba has the threading layer workqueue only: calls run one at a time, and each starts its threads in 0.1 ms; "
    "with an OpenMP runtime (libgomp) or the package tbb installed, neither is so"
)
_one_at_a_time = threading.RLock()
_layer: str | None = None
_forked = False


def _in_child() -> None:
    global _forked, _one_at_a_time
    _one_at_a_time = threading.RLock()  # whoever held it does not exist here
    _forked = "numba" in sys.modules and layer() == "omp" and _openmp() == "GNU"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _openmp() -> str:
    pool = importlib.import_module("numba.np.ufunc.omppool")
    return str(pool.openmp_vendor)


def layer() -> str | None:
    """The threading layer that runs, or None before the first parallel loop."""
    global _layer
    numba = sys.modules.get("numba")  # a launch that needs no kernel does not load it
    if _layer is None and numba is not None:
        try:
            _layer = str(numba.threading_layer())
        except ValueError:
            return None
        if _layer == "workqueue":
            tuning.warn_once(ONLY_WORKQUEUE)
    return _layer


def guarded(launch: Launch) -> Launch:
    """The launch, safe to run from any thread; in a process where it could not run, a BackendError."""
    if launch.algorithm == "small":  # runs no kernel
        return launch
    prepare = launch.prepare
    return replace(launch, run=_guarded(launch.run), prepare=prepare and (lambda w: guarded(prepare(w))))


def _guarded(run: Callable[..., None]) -> Callable[..., None]:
    def safely(*arrays: Any) -> None:
        if _forked:
            raise BackendError(FORKED)
        if layer() in ("omp", "tbb"):
            run(*arrays)
            return
        with _one_at_a_time:
            run(*arrays)

    return safely

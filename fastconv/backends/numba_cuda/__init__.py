"""The `numba` backend: Numba CUDA kernels on a GPU's arrays, or on NumPy's under Numba's simulator.

One module per family of ops; each has ``plan(op, problem) -> Launch``, which chooses by a pure function
of the problem. Nothing compiles before a launch runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from fastconv.backends.base import Launch
from fastconv.backends.numba_cuda import ptx
from fastconv.backends.numba_cuda.simulator import simulated

FAMILIES = {
    "conv_fprop": "conv", "conv_dgrad": "conv", "conv_wgrad": "conv",
    "bias_grad": "elementwise", "activation_fprop": "elementwise", "activation_dgrad": "elementwise",
    "maxpool_fprop": "pool", "maxpool_indices": "pool", "maxpool_dgrad": "pool",
    "maxpool_places": "pool", "maxpool_places_dgrad": "pool",
    "avgpool_fprop": "pool", "avgpool_dgrad": "pool", "lppool_fprop": "pool", "lppool_dgrad": "pool",
    "maxunpool_fprop": "pool", "maxunpool_dgrad": "pool",
    "correlate": "signal",
}  # fmt: skip
TARGETS = ("numba_cuda", "numba_cuda_mlir")
HINT = "; NUMBA_ENABLE_CUDASIM=1, set before Numba is imported, runs it in Numba's simulator on NumPy arrays"


class NumbaBackend:
    """Runs every op as Numba CUDA kernels."""

    name = "numba"

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("numpy",) if simulated() else ("cuda",)

    def unavailable(self) -> str | None:
        if simulated():
            return None
        if not any(importlib.util.find_spec(name) for name in TARGETS):
            return "numba-cuda is not installed: pip install 'fastconv[cuda13]', or cuda12" + HINT
        reason = ptx.no_gpu()
        return reason and reason + HINT

    def rejects(self, op: str, problem: Any) -> str | None:
        return None

    def plan(self, op: str, problem: Any) -> Launch:
        family = importlib.import_module(f"fastconv.backends.numba_cuda.{FAMILIES[op]}")
        launch: Launch = family.plan(op, problem)
        return launch


backend = NumbaBackend()

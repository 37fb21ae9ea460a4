"""The `cpu` backend: Numba kernels and BLAS on NumPy arrays.

One module per family of ops; each has ``plan(op, problem) -> Launch``, which chooses by a pure
function of the problem. Nothing compiles before a launch runs.
"""

from __future__ import annotations

import importlib
from typing import Any

from fastconv.backends.base import Launch
from fastconv.backends.cpu import threads

FAMILIES = {
    "conv_fprop": "conv", "conv_dgrad": "conv", "conv_wgrad": "conv",
    "bias_grad": "elementwise", "activation_fprop": "elementwise", "activation_dgrad": "elementwise",
    "maxpool_fprop": "pool", "maxpool_indices": "pool", "maxpool_dgrad": "pool",
    "maxpool_places": "pool", "maxpool_places_dgrad": "pool",
    "avgpool_fprop": "pool", "avgpool_dgrad": "pool", "lppool_fprop": "pool", "lppool_dgrad": "pool",
    "maxunpool_fprop": "pool", "maxunpool_dgrad": "pool",
    "correlate": "signal",
}  # fmt: skip


class CpuBackend:
    """Runs every op on NumPy arrays, on all cores that Numba may use."""

    name = "cpu"
    kinds = ("numpy",)

    def unavailable(self) -> str | None:
        return None

    def rejects(self, op: str, problem: Any) -> str | None:
        return None

    def plan(self, op: str, problem: Any) -> Launch:
        family = importlib.import_module(f"fastconv.backends.cpu.{FAMILIES[op]}")
        return threads.guarded(family.plan(op, problem))


backend = CpuBackend()

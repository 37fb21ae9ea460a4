"""The `raw` backend: CUDA C++ kernels (kernels/cuda), compiled by NVRTC and launched through CuPy.

One module per family of ops; each has ``plan(op, problem) -> Launch``, which chooses by a pure function of the
problem and the device, and ``instances()``, every instance of a kernel that it can ask for. What runs the kernels
is behind `fastconv.backends.raw.device`: a GPU, or the host emulator on NumPy arrays.
"""

from __future__ import annotations

import importlib
from typing import Any

from fastconv.backends.base import Launch
from fastconv.backends.raw import device
from fastconv.problem import Window

FAMILIES = {
    "conv_fprop": "conv", "conv_dgrad": "conv", "conv_wgrad": "conv",
    "bias_grad": "elementwise", "activation_fprop": "elementwise", "activation_dgrad": "elementwise",
    "maxpool_fprop": "pool", "maxpool_indices": "pool", "maxpool_dgrad": "pool",
    "maxpool_places": "pool", "maxpool_places_dgrad": "pool",
    "avgpool_fprop": "pool", "avgpool_dgrad": "pool", "lppool_fprop": "pool", "lppool_dgrad": "pool",
    "maxunpool_fprop": "pool", "maxunpool_dgrad": "pool",
    "correlate": "correlate",
}  # fmt: skip
MODULES = tuple(dict.fromkeys(FAMILIES.values()))


class RawBackend:
    """Runs every op on a CUDA device, or on NumPy arrays under the host emulator."""

    name = "raw"

    @property
    def kinds(self) -> tuple[str, ...]:
        return device.kinds()

    def unavailable(self) -> str | None:
        return device.unavailable()

    def rejects(self, op: str, problem: Any) -> str | None:
        if op.startswith("activation"):
            return None
        if op == "correlate":
            reason: str | None = family(op).rejects(problem)
            return reason
        largest = max(*problem.dims("x")[1:], *problem.dims("y")[1:])
        if problem.window is not None:
            largest = max(largest, *(n + sum(pad) for n, pad in zip(problem.size, problem.window.pad, strict=True)))
        if largest >= 2**31:
            return f"an axis of {largest} elements, padding counted, is longer than its kernels count, 2**31 - 1"
        if problem.window is not None and (furthest := widest(problem.window)) >= 2**31:
            return f"a window with the number {furthest} reaches further than its kernels count, 2**31 - 1"
        return None

    def plan(self, op: str, problem: Any) -> Launch:
        launch: Launch = family(op).plan(op, problem)
        return launch


def family(op: str) -> Any:
    """The module that an op is planned by."""
    return importlib.import_module(f"fastconv.backends.raw.{FAMILIES[op]}")


def widest(window: Window) -> int:
    """The largest of a window's numbers."""
    ends = (end for pair in window.pad for end in pair)
    return max(*window.ksize, *window.stride, *window.dilation, *ends)


backend = RawBackend()

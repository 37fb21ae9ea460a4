"""What a call of the raw backend costs in Python, without the launch: ``pytest benchmarks/bench_raw_calls.py``.

A device that launches nothing stands in for a GPU, so this runs anywhere. The budget is 6 microseconds.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastconv.arrays import canonical
from fastconv.backends.raw import conv, device
from fastconv.gpu_arrays import CudaView, contiguous
from fastconv.problem import ConvProblem

PROBLEMS = {
    "one launch": "conv2d n=8 c=64 size=56 k=64 ksize=3 pad=1 bias=64 activation=relu dtype=float64",
    "split sum": "conv2d n=1 c=512 size=7 k=512 ksize=3 pad=1 dtype=float64",
    "depthwise": "conv2d n=8 c=64 size=56 k=64 ksize=3 pad=1 groups=64 layout=NHWC",
}


class Idle:
    """A device whose launches do nothing."""

    properties = device.Properties("idle", "sm_90a", 132, 227 << 10, 50 << 20)

    def function(self, instance: Any) -> Any:
        return instance

    def launch(self, *arguments: Any) -> None:
        pass

    def scratch(self, nbytes: int) -> Any:
        return MEMORY

    def pointer(self, view: Any) -> int:
        address: int = view.pointer
        return address

    def synchronize(self) -> None:
        pass


MEMORY = SimpleNamespace(pointer=1 << 30)


@pytest.mark.parametrize("op", ["conv_fprop", "conv_wgrad"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_call(benchmark: Any, name: str, op: str) -> None:
    problem = ConvProblem.parse(PROBLEMS[name])
    dtype = np.dtype(problem.dtype)
    views = {}
    for role in ("x", "w", "y", "bias"):
        shape = problem.shape(role)
        view: Any = CudaView(1 << 30, shape, contiguous(shape, dtype.itemsize), dtype, None)
        views[role] = canonical(problem, role, view)
    with device.use(Idle()):
        run = conv.plan(op, problem).run
        if op == "conv_wgrad":
            benchmark(run, views["w"], views["y"], views["x"])
        else:
            benchmark(run, views["y"], views["x"], views["w"], views["bias"] if problem.bias else None)

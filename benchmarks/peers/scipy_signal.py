"""SciPy's correlation, and CuPy's copy of it on a GPU: N-D arrays, and what can be made of it for channels."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from fastconv.benchmarks import cuda
from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.device import Queue
from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused
from fastconv.problem import ConvProblem, SignalProblem

Array = np.ndarray


class Scipy(Contestant):
    """`scipy.signal`: signals, and forward convolutions of stride 1, filter by filter over all channels."""

    arrays, signal = "numpy", "scipy.signal"

    def version(self) -> str:
        try:
            return f"scipy {import_module('scipy').__version__}"
        except ImportError as error:
            raise Absent(f"SciPy is not installed ({error}): pip install scipy") from error

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        problem, xp, signal = case.problem, import_module(self.arrays), import_module(self.signal)
        if problem.dtype in ("float16", "bfloat16"):
            raise Refused(f"{self.signal} does not accumulate {problem.dtype} in float32")
        if isinstance(problem, SignalProblem):
            function = signal.convolve if problem.flip else signal.correlate
            return Job(lambda: function(*given, problem.mode, problem.method), self.read, problem.method)
        if not isinstance(problem, ConvProblem) or case.op != "conv_fprop":
            raise Refused(f"{self.signal} has neither poolings nor gradients")
        if problem.groups > 1 or max(*problem.window.stride, *problem.window.dilation) > 1:
            raise Refused(f"{self.signal} has neither strides, dilation nor groups")
        return Job(lambda: _by_filter(problem, *given, xp, signal), self.read, "one correlation per image and filter")

    @staticmethod
    def read(result: Any) -> Array:
        return result  # type: ignore[no-any-return]


class Cupyx(Scipy):
    """`cupyx.scipy.signal`."""

    arrays, signal = "cupy", "cupyx.scipy.signal"

    def version(self) -> str:
        if reason := cuda.missing():
            raise Absent(reason)
        self.device = Queue(cuda.CupyStream())
        return f"cupy {import_module('cupy').__version__}, {cuda.CupyStream.name()}"

    def place(self, case: Case, role: str, array: Array) -> Any:
        return self.device.put(array)

    def write(self, case: Case, role: str, operand: Any, array: Array) -> None:
        operand[...] = self.device.put(array)

    @staticmethod
    def read(result: Any) -> Array:
        return result.get()  # type: ignore[no-any-return]


def _by_filter(problem: ConvProblem, x: Any, w: Any, xp: Any, signal: Any) -> Any:
    """Along the channels a filter lies wholly within the image: "valid" leaves one plane."""
    padded = xp.pad(x, ((0, 0), (0, 0), *problem.window.pad))
    planes = [signal.correlate(image, filters, "valid")[0] for image in padded for filters in w]
    return xp.stack(planes).reshape(problem.dims("y"))

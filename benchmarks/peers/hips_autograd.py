"""HIPS autograd: its N-D convolution, written in NumPy, and the gradients that it derives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused
from fastconv.problem import ConvProblem, SignalProblem


class Autograd(Contestant):
    """`autograd.scipy.signal.convolve` over the spatial axes, summed over channels, of filters flipped beforehand."""

    def version(self) -> str:
        try:
            from importlib.metadata import version

            import autograd.scipy.signal  # noqa: F401
        except ImportError as error:
            raise Absent(f"autograd is not installed ({error}): pip install autograd") from error
        return f"autograd {version('autograd')}"

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        from autograd import make_vjp

        problem = case.problem
        if isinstance(problem, SignalProblem):
            return self._signal(problem, given)
        if not isinstance(problem, ConvProblem):
            raise Refused("autograd has no pooling")
        if problem.groups > 1 or max(*problem.window.stride, *problem.window.dilation) > 1:
            raise Refused("autograd's convolve has neither strides, dilation nor groups")
        if problem.dtype in ("float16", "bfloat16"):
            raise Refused(f"autograd does not accumulate {problem.dtype} in float32")
        if case.op == "conv_fprop":
            return Job(lambda: _conv(problem, *given), lambda y: y)
        dy, other = given
        zeros = np.zeros(problem.dims(case.result), problem.dtype)
        forward = (
            (lambda x: _conv(problem, x, other)) if case.op == "conv_dgrad" else (lambda w: _conv(problem, other, w))
        )
        pullback, _ = make_vjp(forward)(zeros)
        return Job(lambda: pullback(dy), lambda gradient: gradient)

    @staticmethod
    def _signal(problem: SignalProblem, given: Sequence[Any]) -> Job:
        from autograd.scipy.signal import convolve

        if problem.mode == "same":
            raise Refused('autograd has the modes "full" and "valid"')
        in1, in2 = given
        flipped = in2 if problem.flip else np.flip(in2)
        return Job(lambda: convolve(in1, flipped, mode=problem.mode), lambda y: y)


def _conv(problem: ConvProblem, x: Any, w: Any) -> Any:
    import autograd.numpy as anp
    from autograd.scipy.signal import convolve

    axes = list(range(2, 2 + problem.ndim))
    padded = anp.pad(x, ((0, 0), (0, 0), *problem.window.pad), "constant")
    flipped = w[(slice(None), slice(None), *(slice(None, None, -1),) * problem.ndim)]
    return convolve(padded, flipped, axes=(axes, axes), dot_axes=([1], [1]), mode="valid")

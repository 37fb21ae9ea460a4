"""MyGrad: its N-D convolution and max pooling in NumPy. Forward only: its way back needs the way there each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused, symmetric
from fastconv.problem import ConvProblem, PoolProblem


class MyGrad(Contestant):
    """`mygrad.nnet.layers`."""

    def version(self) -> str:
        try:
            import mygrad.nnet
        except ImportError as error:
            raise Absent(f"MyGrad is not installed ({error}): pip install mygrad") from error
        return f"mygrad {mygrad.__version__}"

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        from mygrad import no_autodiff
        from mygrad.nnet.layers import conv_nd, max_pool

        problem = case.problem
        if case.pass_ != "fprop" or case.layer.family not in ("conv", "maxpool"):
            raise Refused("of MyGrad, forward convolutions and max poolings are measured")
        if problem.dtype in ("float16", "bfloat16"):
            raise Refused(f"MyGrad does not accumulate {problem.dtype} in float32")
        window = problem.window
        if isinstance(problem, ConvProblem):
            if problem.groups > 1:
                raise Refused("MyGrad has no groups")
            pads, x_w = tuple(symmetric(window.pad, "MyGrad")), given
            call = no_autodiff(lambda: conv_nd(*x_w, stride=window.stride, padding=pads, dilation=window.dilation))
            return Job(call, lambda y: y.data)
        assert isinstance(problem, PoolProblem)
        if window is None or any(map(any, window.pad)) or max(window.dilation) > 1 or window.rounding == "ceil":
            raise Refused("MyGrad's max pooling has neither padding, dilation, ceil rounding nor adaptive windows")
        if any((n - k) % s for n, k, s in zip(problem.size, window.ksize, window.stride, strict=True)):
            raise Refused("MyGrad's max pooling wants windows that tile the input")
        return Job(no_autodiff(lambda: max_pool(*given, window.ksize, window.stride)), lambda y: y.data)

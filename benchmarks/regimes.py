"""Regimes: what kind of work a pass of a layer is, and how fast it is meant to be.

A regime is a pure function of the device's kind, the op and the problem. Goals are ratios to the best
peer in the same run, as geometric means over the regime; on a GPU also shares of the measured limit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastconv.problem import ConvProblem, PoolProblem, SignalProblem


class Goal(NamedTuple):
    """How many times the best peer's speed, and which share of the limit that binds."""

    ratio: float
    fraction: float | None = None


CPU = {
    "3x3": Goal(2.5),
    "3x3 wgrad": Goal(1.7),
    "5x5 or dilated": Goal(1.8),
    "1x1": Goal(1.1),
    "strided, large or few channels": Goal(1.0),
    "dgrad strided or few channels": Goal(4.0),
    "wgrad of the rest": Goal(1.15),
    "grouped": Goal(1.3),
    "depthwise fprop": Goal(1.7),
    "depthwise dgrad": Goal(1.7),
    "depthwise wgrad": Goal(3.0),
    "pooling": Goal(3.0),
    "pooling dgrad": Goal(1.5),
    "16-bit or float64": Goal(1.0),
    "tiny": Goal(2.5),
    "correlation": Goal(1.0),
}
GPU = {
    "depthwise to 5x5": Goal(3.0, 0.85),
    "depthwise wgrad": Goal(5.0, 0.75),
    "depthwise above 5x5": Goal(5.0, 0.60),
    "max pooling": Goal(3.0, 0.85),
    "average pooling": Goal(2.0, 0.85),
    "float32 dense": Goal(2.0, 0.65),
    "grouped": Goal(4.0, 0.70),
    "1x1 and patches": Goal(1.1, 0.85),
    "stem": Goal(1.5, 0.65),
    "dense fprop": Goal(1.05, 0.80),
    "dense dgrad": Goal(1.05, 0.75),
    "dense wgrad": Goal(1.0, 0.70),
    "1-D and 3-D dense": Goal(2.0, 0.70),
    "tiny": Goal(1.0),
    "correlation": Goal(1.0),
}
GOALS = {"cpu": CPU, "gpu": GPU}

#: A problem below both is tiny: the call itself takes longer than the work.
TINY_FLOPS, TINY_BYTES = 1_000_000, 250_000
FEW_CHANNELS = 16  # on a CPU: below, a register tile of channels is not full
STEM_CHANNELS = 4


def regime(device: str, op: str, problem: Any, flops: int, nbytes: int) -> str:
    """The regime of one pass; `device` is "cpu" or "gpu"."""
    if flops < TINY_FLOPS and nbytes < TINY_BYTES:
        return "tiny"
    if isinstance(problem, SignalProblem):
        return "correlation"
    if isinstance(problem, PoolProblem):
        return _pooling(device, op)
    name = _on_cpu(op.removeprefix("conv_"), problem) if device == "cpu" else _on_gpu(op, problem)
    return "16-bit or float64" if device == "cpu" and problem.dtype != "float32" else name


def _pooling(device: str, op: str) -> str:
    if device == "cpu":
        return "pooling" if op.endswith("fprop") else "pooling dgrad"
    return "max pooling" if op.startswith("max") else "average pooling"


def _on_cpu(pass_: str, problem: ConvProblem) -> str:
    window, ksize = problem.window, set(problem.window.ksize) - {1}  # a unit axis is none
    if problem.groups == problem.C > 1:
        return f"depthwise {pass_}"
    if problem.groups > 1:
        return "grouped"
    dense, step = set(window.dilation) == {1}, max(window.stride)
    enough = min(problem.C, problem.K) >= FEW_CHANNELS
    if step == 1 and ksize == {3} and dense and enough:
        return "3x3 wgrad" if pass_ == "wgrad" else "3x3"
    if pass_ == "wgrad":
        return "wgrad of the rest"
    if step == 1 and enough and (ksize, dense) in (({5}, True), ({3}, False)):
        return "5x5 or dilated"
    if step == 1 and not ksize:
        return "1x1"
    if pass_ == "dgrad" and (step > 1 or problem.C <= STEM_CHANNELS):
        return "dgrad strided or few channels"
    return "strided, large or few channels"


def _on_gpu(op: str, problem: ConvProblem) -> str:
    window = problem.window
    if problem.groups == problem.C > 1:
        if op == "conv_wgrad":
            return "depthwise wgrad"
        return "depthwise to 5x5" if max(window.ksize) <= 5 else "depthwise above 5x5"
    if problem.groups > 1 and problem.C // problem.groups <= 32:
        return "grouped"
    if problem.C <= STEM_CHANNELS:
        return "stem"
    if set(window.ksize) == {1} or window.ksize == window.stride:
        return "1x1 and patches"
    if problem.dtype in ("float32", "float64"):
        return "float32 dense"
    return "1-D and 3-D dense" if problem.ndim != 2 else f"dense {op.removeprefix('conv_')}"

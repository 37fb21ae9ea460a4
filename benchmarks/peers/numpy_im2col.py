"""Plain NumPy: what one writes in ten lines, an im2col and a matrix product, or windows and a maximum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers.base import Contestant, Job, Refused
from fastconv.problem import ConvProblem, SignalProblem, Window

Array = np.ndarray


def windows(x: Array, window: Window, fill: float = 0.0) -> Array:
    """A view ``[N, C, out, ksize]`` of the padded input."""
    padded = np.pad(x, ((0, 0), (0, 0), *window.pad), constant_values=fill)
    axes = tuple(range(2, x.ndim))
    view = sliding_window_view(padded, window.extent, axes)
    every = tuple(slice(None, None, s) for s in window.stride)
    taps = tuple(slice(None, None, d) for d in window.dilation)
    return view[(slice(None), slice(None), *every, *taps)]


def conv_fprop(problem: ConvProblem, x: Array, w: Array) -> Array:
    """One product per group: [N * out, C/g * taps] by [C/g * taps, K/g]."""
    groups, view = problem.groups, windows(x, problem.window)
    parts = []
    for part, weights in zip(np.split(view, groups, 1), np.split(w, groups, 0), strict=True):
        columns = np.moveaxis(part, 1, 1 + problem.ndim).reshape(problem.N * int(np.prod(problem.out)), -1)
        parts.append(columns @ weights.reshape(len(weights), -1).T)
    y = np.concatenate(parts, 1).reshape(problem.N, *problem.out, problem.K)
    return np.ascontiguousarray(np.moveaxis(y, -1, 1))


def conv_wgrad(problem: ConvProblem, dy: Array, x: Array) -> Array:
    groups, view = problem.groups, windows(x, problem.window)
    parts = []
    for part, grad in zip(np.split(view, groups, 1), np.split(dy, groups, 1), strict=True):
        columns = np.moveaxis(part, 1, 1 + problem.ndim).reshape(problem.N * int(np.prod(problem.out)), -1)
        rows = np.moveaxis(grad, 1, 0).reshape(grad.shape[1], -1)
        parts.append((rows @ columns).reshape(grad.shape[1], part.shape[1], *problem.window.ksize))
    return np.concatenate(parts, 0)


class NumpyIm2col(Contestant):
    """Forward passes and weight gradients; a gradient to the input takes more than ten lines."""

    def version(self) -> str:
        return f"numpy {np.__version__} (im2col)"

    def bind(self, case: Case, given: Sequence[Array]) -> Job:
        problem = case.problem
        if isinstance(problem, ConvProblem):
            if case.op == "conv_dgrad":
                raise Refused("im2col has no plain NumPy form of the gradient to the input")
            if problem.dtype in ("float16", "bfloat16"):
                raise Refused(f"NumPy's matrix product does not accumulate {problem.dtype} in float32")
            solve = conv_fprop if case.op == "conv_fprop" else conv_wgrad
            return Job(lambda: solve(problem, *given), lambda y: y, "im2col + matrix product")
        if isinstance(problem, SignalProblem):
            raise Refused("NumPy correlates 1-D arrays only")
        window = problem.window
        if case.pass_ != "fprop" or window is None or window.rounding == "ceil":
            raise Refused("only forward pooling over regular windows is written in plain NumPy")
        (x,), axes = given, tuple(range(2 + problem.ndim, 2 + 2 * problem.ndim))
        if case.layer.family == "maxpool":
            return Job(lambda: windows(x, window, -np.inf).max(axes), lambda y: y, "windows + max")
        if problem.divisor is not None or not problem.count_include_pad or problem.dtype != "float32":
            raise Refused("only plain averages of float32 are written in plain NumPy")
        return Job(lambda: windows(x, window).mean(axes), lambda y: y, "windows + mean")

"""Convolution in Numba CUDA: which algorithm, and what its kernel is called with.

direct     the definition, one thread a result (kernels/numba_cuda/conv_direct.py); right for every problem
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fastconv.backends.base import Launch
from fastconv.backends.numba_cuda.launcher import Kernel, dtype_name, over, size_of
from fastconv.backends.numba_cuda.passes import backward, forward, gather_geometry, wgrad_geometry
from fastconv.kernels.numba_cuda import conv_direct
from fastconv.kernels.numba_cuda.memory import computed
from fastconv.problem import ConvProblem


def plan(op: str, problem: ConvProblem) -> Launch:
    run = wgrad(problem) if op == "conv_wgrad" else gather(op, problem)
    return Launch(run, "direct", "todo")


def gather(op: str, problem: ConvProblem) -> Callable[..., None]:
    is_forward = op == "conv_fprop"
    passes = [forward(problem)] if is_forward else list(backward(problem))
    acc = computed(problem.dtype)
    def run(y: Any, x: Any, w: Any, bias: Any) -> None:
        kernel = Kernel.of(conv_direct.gather, dtype_name(y), dtype_name(x), dtype_name(w), None if bias is None else dtype_name(bias), acc, problem.activation)
        for axes in passes:
            results = y.shape[0] * y.shape[1] * math.prod(axis.results for axis in axes)
            if results:
                kernel(over(results), (y, x, w, bias), gather_geometry(problem, axes, is_forward, y, x, w, bias))
    return run


def wgrad(problem: ConvProblem) -> Callable[..., None]:
    acc = computed(problem.dtype)
    def run(dw: Any, dy: Any, x: Any) -> None:
        kernel = Kernel.of(conv_direct.wgrad, dtype_name(dw), dtype_name(dy), dtype_name(x), acc)
        kernel(over(size_of(dw)), (dw, dy, x), wgrad_geometry(problem, dw, dy, x))
    return run

"""`correlate` in Numba CUDA: directly, whatever the method asked for, and so exactly on integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.forms import by_form
from fastconv.backends.numba_cuda.launcher import Call, Ints, over, steps
from fastconv.kernels.numba_cuda import correlate
from fastconv.kernels.numba_cuda.memory import computed
from fastconv.problem import SignalProblem

REALS = {"complex64": "float32", "complex128": "float64"}
WHY = "one thread an output; there is no FFT here, sums of products are as exact and slower on large inputs"


def plan(op: str, problem: SignalProblem) -> Launch:
    dtype = REALS.get(problem.dtype, problem.dtype)
    acc = np.int64 if problem.dtype == "bool" or "int" in problem.dtype else computed(dtype)
    key = dtype, acc, dtype != problem.dtype, max(1, len(problem.out))
    grid = over(math.prod(problem.out))

    def prepare(out: Any, in1: Any, in2: Any) -> Call:
        return Call(correlate.correlate, key, grid, (dtype,) * 3, geometry(problem, out, in1, in2))

    return Launch(by_form(prepare), "direct", WHY, {"blocks": grid.blocks, "threads": grid.threads})


def geometry(problem: SignalProblem, out: Any, in1: Any, in2: Any) -> Ints:
    """As the kernel unpacks it; two scalars are arrays of one axis."""
    offsets = [start - (m - 1) for start, m in zip(problem.start, problem.shape2, strict=True)]
    rows = zip(problem.out, problem.shape1, problem.shape2, offsets, steps(out), steps(in1), steps(in2), strict=True)
    axes = sum(rows, ()) or (1, 1, 1, 0, 0, 0, 0)
    return (math.prod(problem.out), math.prod(problem.shape2[:-1]), *axes)

"""Problems: all shape arithmetic and all validation of values, with the standard library only.

A problem is everything about a call but its data. It is immutable, validated once while it is
built, hashable, and has a text form that parses back (``ConvProblem.parse(str(p)) == p``): the
same line names a test case, a benchmark row and a bug report.

Geometry is written in forward terms whichever pass runs: ``x[N, C, size]``,
``w[K, C/groups, ksize]``, ``y[N, K, out]``, and per axis (the course notes' formula)

    out = (size + pad_low + pad_high - extent) / stride + 1,   extent = dilation * (ksize - 1) + 1
"""

from fastconv.problem.conv import ConvProblem, conv_problem, conv_transpose_problem
from fastconv.problem.pool import NO_TAP, PoolProblem, adaptive_problem, as_power, pool_problem, unpool_problem
from fastconv.problem.signal import ActivationProblem, SignalProblem, signal_problem
from fastconv.problem.values import ACTIVATIONS, ITEMSIZE, LAYOUTS, Ints, as_shape, hashable, one_of
from fastconv.problem.window import Window, split_shape

__all__ = [
    "ACTIVATIONS",
    "ITEMSIZE",
    "LAYOUTS",
    "NO_TAP",
    "ActivationProblem",
    "ConvProblem",
    "Ints",
    "PoolProblem",
    "SignalProblem",
    "Window",
    "adaptive_problem",
    "as_power",
    "as_shape",
    "conv_problem",
    "conv_transpose_problem",
    "hashable",
    "one_of",
    "pool_problem",
    "signal_problem",
    "split_shape",
    "unpool_problem",
]

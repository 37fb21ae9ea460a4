"""The structs of kernels/cuda/args.cuh as NumPy dtypes, filled from problems and views.

A plan fills the geometry once. A call adds strides and pointers. A test compares the offsets with the compiler's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.problem import ACTIVATIONS, ConvProblem, Ints, PoolProblem

P, I, L = np.uint64, np.int32, np.int64

CONV = np.dtype(
    [(name, P) for name in ("x", "w", "y", "bias", "scratch")]
    + [("xs", L, 5), ("ws", L, 5), ("ys", L, 5), ("bs", L), ("N", L)]
    + [(name, I) for name in ("C", "K", "G", "activation")]
    + [(name, I, 3) for name in ("size", "ksize", "out", "stride", "dilation", "pad")]
    + [("splits", I)],
    align=True,
)

POOL = np.dtype(
    [(name, P) for name in ("x", "y", "dx", "dy", "indices")]
    + [(name, L, 5) for name in ("xs", "ys", "dxs", "dys", "is")]
    + [("N", L), ("divisor", L), ("p", np.float64)]
    + [(name, I) for name in ("C", "adaptive", "count_include_pad")]
    + [(name, I, 3) for name in ("size", "out", "ksize", "stride", "dilation", "pad", "pad_high")],
    align=True,
)


def lift(values: Ints, fill: int) -> Ints:
    """Values per spatial axis as three: 1-D and 2-D problems have leading unit axes."""
    return (fill,) * (3 - len(values)) + tuple(values)


def strides_of(view: Any) -> Ints:
    """Element strides of a canonical operand, its spatial axes lifted to three."""
    size = view.dtype.itemsize
    steps = tuple(stride // size for stride in view.strides)
    return (*steps[:2], *lift(steps[2:], 0))


def conv(problem: ConvProblem) -> np.ndarray:
    """The struct of a convolution with its geometry filled in."""
    window = problem.window
    args = np.zeros((), CONV)
    args["N"], args["C"], args["K"], args["G"] = problem.N, problem.C, problem.K, problem.groups
    args["activation"] = 0 if problem.activation is None else ACTIVATIONS.index(problem.activation) + 1
    for name, values, fill in (
        ("size", problem.size, 1), ("out", problem.out, 1), ("ksize", window.ksize, 1), ("stride", window.stride, 1),
        ("dilation", window.dilation, 1), ("pad", tuple(low for low, _ in window.pad), 0),
    ):  # fmt: skip
        args[name] = lift(values, fill)
    args["splits"] = 1
    return args


def pool(problem: PoolProblem) -> np.ndarray:
    """The struct of a pooling with its geometry filled in."""
    window = problem.window
    args = np.zeros((), POOL)
    args["N"], args["C"], args["p"] = problem.N, problem.C, problem.p
    args["divisor"], args["count_include_pad"] = problem.divisor or 0, problem.count_include_pad
    args["size"], args["out"] = lift(problem.size, 1), lift(problem.out, 1)
    args["adaptive"] = window is None
    ones = (1,) * problem.ndim
    for name, values, fill in (
        ("ksize", window.ksize if window else ones, 1), ("stride", window.stride if window else ones, 1),
        ("dilation", window.dilation if window else ones, 1),
        ("pad", tuple(low for low, _ in window.pad) if window else (0,) * problem.ndim, 0),
        ("pad_high", tuple(high for _, high in window.pad) if window else (0,) * problem.ndim, 0),
    ):  # fmt: skip
        args[name] = lift(values, fill)
    return args

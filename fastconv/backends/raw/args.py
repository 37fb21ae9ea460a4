"""The structs of kernels/cuda/args.cuh as NumPy dtypes, filled from problems and views.

A plan fills the geometry once. A call adds strides and pointers. A test compares the offsets with the compiler's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.problem import ACTIVATIONS, ConvProblem, Ints, PoolProblem

P, I, L = np.uint64, np.int32, np.int64

#: The order of the enum Dtype.
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32")
#: The bits of the enum Walk.
CHANNELS, A_ALONG_SUM, B_ALONG_SUM, CHANNELS_FASTEST = 1, 2, 4, 8

DIVISOR = np.dtype([("multiplier", np.uint64), ("value", L), ("small", np.uint32), ("shift", I)], align=True)

CONV = np.dtype(
    [(name, P) for name in ("x", "w", "y", "bias", "scratch")]
    + [("xs", L, 5), ("ws", L, 5), ("ys", L, 5), ("bs", L), ("N", L)]
    + [(name, DIVISOR, 3) for name in ("size", "ksize", "out", "stride")]
    + [(name, DIVISOR) for name in ("groups", "blocks")]
    + [(name, I) for name in ("C", "K", "activation")]
    + [(name, I, 3) for name in ("dilation", "pad", "tap_step")]
    + [(name, I) for name in ("xt", "wt", "yt", "bt", "walk", "lanes", "splits")],
    align=True,
)

SPLITS = np.dtype(
    [(name, P) for name in ("scratch", "out", "bias")]
    + [("extent", DIVISOR, 5), ("stride", L, 5), ("bs", L)]
    + [(name, I) for name in ("splits", "activation", "bt")],
    align=True,
)

GATHER = np.dtype(
    [(name, P) for name in ("a", "w", "d", "bias")]
    + [("a0", L), ("w0", L), ("d0", L), ("as", L, 5), ("ws", L, 2), ("wt", L, 3), ("wg", L), ("ds", L, 5)]
    + [("bs", L), ("pixels", L)]
    + [(name, I) for name in ("C", "M", "G", "activation", "bt")]
    + [(name, I, 3) for name in ("source", "out", "step", "taps", "first", "apart")]
    + [("wide", I)],
    align=True,
)

STRIP_PASS = np.dtype([("w0", L), ("d0", L), *((name, I, 3) for name in ("out", "taps", "first"))], align=True)

STRIPS = np.dtype(
    [(name, P) for name in ("a", "w", "d", "bias")]
    + [("as", L, 5), ("ws", L), ("wt", L, 3), ("ds", L, 5), ("bs", L), ("N", L)]
    + [("blocks", DIVISOR), ("extent", DIVISOR, 3)]
    + [(name, I) for name in ("activation", "bt", "walk", "count")]
    + [(name, I, 3) for name in ("source", "step", "apart")]
    + [("passes", STRIP_PASS, 8)],
    align=True,
)

WGRAD = np.dtype(
    [(name, P) for name in ("x", "w", "y", "scratch")]
    + [(name, L) for name in ("x0", "y0", "s0")]
    + [(name, L, 5) for name in ("xs", "ws", "ys")]
    + [(name, L) for name in ("pixels", "part", "advance_n")]
    + [(name, I) for name in ("C", "K", "G", "Cw", "Kw", "parts")]
    + [(name, I, 3) for name in ("size", "ksize", "out", "stride", "dilation", "pad", "advance")],
    align=True,
)

TILING = np.dtype(
    [("images", L), ("tiles", L)]
    + [(name, I, 4) for name in ("extent", "box", "count")]
    + [(name, I, 3) for name in ("step", "lowest")]
    + [(name, I) for name in ("outputs", "cells", "span", "pieces", "steps", "workers")],
    align=True,
)

GROUPED = np.dtype([("pass", GATHER, 8), ("tiling", TILING), ("passes", I)], align=True)

GROUPED_WGRAD = np.dtype([("pass", WGRAD), ("tiling", TILING)], align=True)

MAP_BYTES = 128  # of a TensorMap, which begins at a multiple of 64
_GATHER_MAPS: list[tuple[Any, ...]] = [
    ("pass", GATHER), ("rank", I), *((name, I, 3) for name in ("lowest", "tap0", "tap_step")),
]  # fmt: skip
GATHER_MAPS = np.dtype(
    [*_GATHER_MAPS, ("aligning", np.uint8, -np.dtype(_GATHER_MAPS, align=True).itemsize % 64)]
    + [(name, P, MAP_BYTES // 8) for name in ("a", "w")],
    align=True,
)

PACKING = np.dtype(
    [(name, P) for name in ("from", "to")]
    + [("from0", L), ("to0", L), ("strides", L, 5), ("pixels", L)]
    + [("C", I), ("padded", I), ("extent", I, 3)],
    align=True,
)

POOL = np.dtype(
    [(name, P) for name in ("x", "y", "dx", "indices", "scratch", "flag")]
    + [(name, L, 5) for name in ("xs", "ys", "dxs", "is", "ss")]
    + [("N", L), ("divisor", L), ("p", np.float64), ("packs", DIVISOR)]
    + [(name, DIVISOR, 3) for name in ("over", "size", "out", "ksize", "stride", "dilation")]
    + [("pad", I, 3), ("pad_high", I, 3)]
    + [(name, I) for name in ("adaptive", "count_include_pad", "channels_last")],
    align=True,
)

MAP = np.dtype(
    [(name, P) for name in ("y", "x", "saved")]
    + [(name, L, 8) for name in ("ys", "xs", "ss")]
    + [("shape", DIVISOR, 8), ("count", L), ("axes", I), ("activation", I)],
    align=True,
)

BIAS_GRAD = np.dtype(
    [(name, P) for name in ("y", "b", "partial")]
    + [("ys", L, 5), ("bs", L), ("N", L), ("plane", DIVISOR), ("size", DIVISOR, 3)]
    + [(name, I) for name in ("C", "channels_last", "lanes", "parts")],
    align=True,
)

SIGNAL = np.dtype(
    [(name, P) for name in ("x", "w", "y", "partial")]
    + [(name, L, 8) for name in ("n", "m", "offset", "xs", "ws", "ys")]
    + [("out", DIVISOR, 8)]
    + [(name, I) for name in ("split", "parts", "lanes")],
    align=True,
)


def divisor(value: int) -> tuple[int, int, int, int]:
    """The struct Divisor of a number above 0."""
    bits = (value - 1).bit_length()
    multiplier, small = -(-(1 << 63 + bits) // value), -(-(1 << 31 + bits) // value)
    return multiplier, value, small if value <= 2**31 else 0, bits


def lift(values: Ints, fill: int) -> Ints:
    """Values per spatial axis as three: 1-D and 2-D problems have leading unit axes."""
    return (fill,) * (3 - len(values)) + tuple(values)


def element_strides(view: Any) -> Ints:
    """Strides of a view, in elements."""
    size = view.dtype.itemsize
    return tuple(stride // size for stride in view.strides)


def strides_of(view: Any) -> Ints:
    """Element strides of a canonical operand, its spatial axes lifted to three."""
    steps = element_strides(view)
    return (*steps[:2], *lift(steps[2:], 0))


def activation(problem: ConvProblem) -> int:
    """The number of a problem's activation in the enum Activation."""
    return 0 if problem.activation is None else ACTIVATIONS.index(problem.activation) + 1


def conv(problem: ConvProblem) -> np.ndarray:
    """The struct of a convolution with its geometry filled in."""
    window = problem.window
    args = np.zeros((), CONV)
    args["N"], args["C"], args["K"], args["activation"] = problem.N, problem.C, problem.K, activation(problem)
    args["groups"], args["blocks"] = divisor(problem.groups), divisor(1)
    for name, values in (
        ("size", problem.size), ("out", problem.out), ("ksize", window.ksize), ("stride", window.stride),
    ):  # fmt: skip
        args[name] = [divisor(value) for value in lift(values, 1)]
    args["dilation"], args["pad"] = lift(window.dilation, 1), lift(tuple(low for low, _ in window.pad), 0)
    args["tap_step"] = [s // math.gcd(s, d) for s, d in zip(lift(window.stride, 1), args["dilation"], strict=True)]
    args["lanes"] = args["splits"] = 1
    return args


def pool(problem: PoolProblem) -> np.ndarray:
    """The struct of a pooling with its geometry filled in."""
    window, axes = problem.window, range(problem.ndim)
    args = np.zeros((), POOL)
    args["N"], args["p"] = problem.N, problem.p
    args["divisor"] = problem.divisor or common_count(problem)
    args["count_include_pad"], args["adaptive"] = problem.count_include_pad, window is None
    args["packs"] = divisor(problem.C)
    largest = tuple(max(count for _, count in problem.cells(axis)) for axis in axes) if window is None else ()
    ones = (1,) * problem.ndim
    for name, values in (
        ("size", problem.size), ("out", problem.out), ("ksize", window.ksize if window else largest),
        ("stride", window.stride if window else ones), ("dilation", window.dilation if window else ones),
    ):  # fmt: skip
        args[name] = [divisor(value) for value in lift(values, 1)]
    for end, name in enumerate(("pad", "pad_high")):
        args[name] = lift(tuple(pair[end] for pair in window.pad) if window else (0,) * problem.ndim, 0)
    return args


def common_count(problem: PoolProblem) -> int:
    """How many cells an average is taken over, where that is the same for all windows; else 0."""
    window, sizes = problem.window, zip(problem.size, problem.out, strict=True)
    if window is None:
        pairs = list(sizes)
        return math.prod(n // m for n, m in pairs) if all(n % m == 0 for n, m in pairs) else 0
    for axis, (n, m) in enumerate(sizes):
        low, high = window.pad[axis] if problem.count_include_pad else (0, 0)
        if low != window.pad[axis][0] or (m - 1) * window.stride[axis] - low + window.extent[axis] > n + high:
            return 0
    return window.taps

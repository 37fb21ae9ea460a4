"""Named problems, their data and how to call them, shared by tests, benchmarks and the self-test.

A problem is the line that `ConvProblem.parse` or `PoolProblem.parse` reads and that every failure
prints. Integer data is bounded by the number of terms that an output sums, so that every partial
sum is exact in the dtype at hand and any two right answers are equal; see `conv_integers`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

import fastconv
from fastconv.problem import ConvProblem, PoolProblem

Array = np.ndarray
Problem = ConvProblem | PoolProblem

# ---------------------------------------------------------------- problems

CONV = {
    "dense": "conv2d n=2 c=3 size=7x6 k=4 ksize=3 pad=1",
    "valid": "conv2d n=1 c=2 size=5x7 k=3 ksize=3x2",
    "strided": "conv2d n=2 c=3 size=9x8 k=5 ksize=3 stride=2 pad=1",
    "two_strides": "conv2d n=1 c=2 size=9x10 k=3 ksize=2x3 stride=3x2",
    "stride_skips": "conv2d n=1 c=2 size=10x11 k=3 ksize=2 stride=3",
    "dilated": "conv2d n=2 c=2 size=9 k=3 ksize=3 pad=2 dilation=2",
    "dilated_strided": "conv2d n=1 c=3 size=12x11 k=2 ksize=3x2 stride=2 pad=3x2 dilation=3x4",
    "asymmetric": "conv2d n=2 c=2 size=6x7 k=3 ksize=3x4 pad=0:2x3:1",
    "pad_wide": "conv2d n=1 c=2 size=3x4 k=2 ksize=2 pad=4",
    "pointwise": "conv2d n=2 c=5 size=4x7 k=6 ksize=1",
    "pointwise_strided": "conv2d n=2 c=5 size=7x8 k=3 ksize=1 stride=2",
    "pointwise_padded": "conv2d n=1 c=3 size=4 k=2 ksize=1 pad=1:2x0:1",
    "grouped": "conv2d n=2 c=4 size=6x5 k=6 ksize=3 pad=1 groups=2",
    "grouped_strided": "conv2d n=1 c=9 size=8 k=6 ksize=2x3 stride=2 groups=3",
    "depthwise": "conv2d n=2 c=5 size=7x8 k=5 ksize=3 pad=1 groups=5",
    "depthwise_multiplier": "conv2d n=2 c=3 size=6x7 k=9 ksize=3 pad=1 groups=3",
    "depthwise_strided": "conv2d n=1 c=4 size=11x10 k=4 ksize=5 stride=2 pad=2 groups=4",
    "depthwise_dilated": "conv2d n=1 c=3 size=9x8 k=3 ksize=3x2 pad=2:1x0:2 dilation=2 groups=3",
    "depthwise_nhwc": "conv2d n=2 c=6 size=5x6 k=6 ksize=3 pad=1 groups=6 layout=NHWC weight_layout=HWIO",
    "whole": "conv2d n=3 c=2 size=4x5 k=3 ksize=4x5",
    "one": "conv2d n=1 c=1 size=1 k=1 ksize=1",
    "row": "conv2d n=1 c=2 size=1x33 k=3 ksize=1x5 pad=0x2",
    "column": "conv2d n=1 c=2 size=33x1 k=3 ksize=7x1 stride=2x1 pad=3x0",
    "stem": "conv2d n=1 c=3 size=35 k=4 ksize=11 stride=4",
    "even_same": "conv2d n=1 c=3 size=6 k=4 ksize=4 pad=1:2",
    "large_kernel": "conv2d n=1 c=1 size=12x13 k=2 ksize=9 pad=4",
    "exact": "conv2d n=1 c=2 size=7 k=3 ksize=3 stride=2 rounding=exact",
    "empty_batch": "conv2d n=0 c=3 size=5 k=4 ksize=3 pad=1",
    "unbatched": "conv2d n=1 c=3 size=6x5 k=4 ksize=3 pad=1 batched=False",
    "nhwc": "conv2d n=2 c=3 size=6x7 k=4 ksize=3 stride=2 pad=1 layout=NHWC weight_layout=HWIO",
    "nhwc_unbatched": "conv2d n=1 c=3 size=6x7 k=4 ksize=2 layout=NHWC weight_layout=HWIO batched=False",
    "nhwc_oihw": "conv2d n=1 c=4 size=5 k=6 ksize=3 pad=1 groups=2 layout=NHWC weight_layout=OIHW",
    "nhwc_ohwi": "conv2d n=1 c=4 size=5 k=6 ksize=3x1 groups=2 layout=NHWC weight_layout=OHWI",
    "nchw_hwio": "conv2d n=2 c=3 size=5x6 k=4 ksize=3 pad=1 weight_layout=HWIO",
    "nchw_ohwi": "conv2d n=2 c=3 size=5x6 k=4 ksize=2x3 weight_layout=OHWI",
    "bias": "conv2d n=2 c=3 size=6x5 k=4 ksize=3 pad=1 bias=4",
    "bias_column": "conv2d n=2 c=3 size=6x5 k=4 ksize=3 bias=4x1x1",
    "bias_relu": "conv2d n=2 c=3 size=6x5 k=4 ksize=3 pad=1 bias=4 activation=relu",
    "relu6_nhwc": "conv2d n=2 c=3 size=5 k=4 ksize=3 bias=4 activation=relu6 layout=NHWC weight_layout=HWIO",
    "depthwise_bias_relu": "conv2d n=2 c=4 size=6x7 k=4 ksize=3 pad=1 groups=4 bias=4 activation=relu",
    "conv1d": "conv1d n=2 c=3 size=17 k=4 ksize=5 pad=2 bias=4",
    "conv1d_strided": "conv1d n=2 c=3 size=20 k=4 ksize=3 stride=2 pad=1:0 dilation=3",
    "conv1d_depthwise": "conv1d n=1 c=4 size=19 k=8 ksize=4 pad=3:0 groups=4",
    "conv1d_nwc": "conv1d n=2 c=3 size=11 k=5 ksize=3 pad=1 layout=NHWC weight_layout=HWIO",
    "conv1d_unbatched": "conv1d n=1 c=2 size=9 k=3 ksize=2 batched=False",
    "conv3d": "conv3d n=2 c=2 size=4x5x6 k=3 ksize=3 pad=1 bias=3",
    "conv3d_strided": "conv3d n=1 c=2 size=6x7x5 k=3 ksize=2x3x1 stride=2x1x3 pad=1x0x2 dilation=1x2x1",
    "conv3d_grouped": "conv3d n=1 c=4 size=3x4x5 k=4 ksize=2x3x2 pad=0:1x1:0x1 groups=2",
    "conv3d_depthwise": "conv3d n=1 c=3 size=4x5x4 k=3 ksize=3 pad=1 groups=3",
    "conv3d_ndhwc": "conv3d n=1 c=2 size=4x3x5 k=3 ksize=2 layout=NHWC weight_layout=HWIO",
}

#: Large enough that blocked and tiled kernels meet whole blocks, partial ones and their seams.
CONV_MID = {
    "mid_3x3": "conv2d n=2 c=64 size=30x31 k=96 ksize=3 pad=1",
    "mid_3x3_bias_relu": "conv2d n=1 c=48 size=29x31 k=40 ksize=3 pad=1 bias=40 activation=relu",
    "mid_strided": "conv2d n=2 c=33 size=31x30 k=65 ksize=3 stride=2 pad=1",
    "mid_dilated": "conv2d n=1 c=32 size=27x33 k=31 ksize=3 pad=4 dilation=4",
    "mid_1x1": "conv2d n=2 c=64 size=30x31 k=96 ksize=1",
    "mid_1x1_strided": "conv2d n=1 c=130 size=15x17 k=70 ksize=1 stride=2",
    "mid_5x5": "conv2d n=1 c=17 size=23x19 k=35 ksize=5 pad=2",
    "mid_stem": "conv2d n=2 c=3 size=63x61 k=33 ksize=7 stride=2 pad=3",
    "mid_grouped": "conv2d n=2 c=64 size=15x14 k=96 ksize=3 pad=1 groups=4",
    "mid_depthwise": "conv2d n=2 c=67 size=30x31 k=67 ksize=3 pad=1 groups=67",
    "mid_nhwc": "conv2d n=2 c=64 size=15x17 k=96 ksize=3 pad=1 layout=NHWC weight_layout=HWIO",
    "mid_depthwise_nhwc": "conv2d n=2 c=64 size=15x17 k=64 ksize=3 stride=2 pad=1 groups=64 layout=NHWC",
    "mid_1d": "conv1d n=3 c=40 size=333 k=56 ksize=9 pad=4",
    "mid_3d": "conv3d n=1 c=16 size=9x11x10 k=24 ksize=3 pad=1",
}

#: The same names for backends that are emulated, a thread after the other: whole tiles, partial ones and their seams.
CONV_MID_EMULATED = {
    "mid_3x3": "conv2d n=2 c=20 size=7x10 k=72 ksize=3 pad=1",
    "mid_3x3_bias_relu": "conv2d n=1 c=18 size=9x8 k=40 ksize=3 pad=1 bias=40 activation=relu",
    "mid_strided": "conv2d n=2 c=17 size=11x12 k=65 ksize=3 stride=2 pad=1",
    "mid_dilated": "conv2d n=1 c=16 size=9x11 k=31 ksize=3 pad=4 dilation=4",
    "mid_1x1": "conv2d n=2 c=40 size=9x8 k=72 ksize=1",
    "mid_1x1_strided": "conv2d n=1 c=66 size=11x9 k=35 ksize=1 stride=2",
    "mid_5x5": "conv2d n=1 c=9 size=9x8 k=35 ksize=5 pad=2",
    "mid_stem": "conv2d n=2 c=3 size=17x15 k=33 ksize=7 stride=2 pad=3",
    "mid_grouped": "conv2d n=1 c=64 size=6x7 k=96 ksize=3 pad=1 groups=2",
    "mid_depthwise": "conv2d n=2 c=35 size=14x15 k=35 ksize=3 pad=1 groups=35",
    "mid_nhwc": "conv2d n=2 c=24 size=7x9 k=72 ksize=3 pad=1 layout=NHWC weight_layout=HWIO",
    "mid_depthwise_nhwc": "conv2d n=2 c=64 size=9x7 k=64 ksize=3 stride=2 pad=1 groups=64 layout=NHWC",
    "mid_1d": "conv1d n=2 c=20 size=77 k=36 ksize=9 pad=4",
    "mid_3d": "conv3d n=1 c=8 size=5x6x4 k=24 ksize=3 pad=1",
}

POOL = {
    "halve": "pool2d n=2 c=3 size=8x6 ksize=2",
    "overlap": "pool2d n=2 c=3 size=13x11 ksize=3 stride=2",
    "padded": "pool2d n=2 c=2 size=7x8 ksize=3 stride=2 pad=1",
    "stride1": "pool2d n=1 c=2 size=6x5 ksize=3 stride=1 pad=1",
    "stride_skips": "pool2d n=1 c=2 size=10x11 ksize=2 stride=4x3",
    "asymmetric": "pool2d n=1 c=2 size=7x6 ksize=3x4 stride=2 pad=0:2x3:1",
    "full": "pool2d n=1 c=2 size=3x4 ksize=3 stride=1 pad=2",
    "dilated": "pool2d n=1 c=3 size=9x10 ksize=3x2 stride=1x2 pad=1:0x0:1 dilation=2x3",
    "ceil": "pool2d n=2 c=2 size=7x8 ksize=3 stride=2 rounding=ceil",
    "ceil_padded": "pool2d n=1 c=2 size=6x7 ksize=3 stride=2 pad=1 rounding=ceil",
    "ceil_dropped": "pool2d n=1 c=1 size=5x3 ksize=1x2 stride=3x2 pad=0x1 rounding=ceil",
    "ceil_dilated": "pool2d n=1 c=2 size=9x8 ksize=2 stride=3 pad=1 dilation=2 rounding=ceil",
    "exclude_pad": "pool2d n=2 c=2 size=6x7 ksize=3 stride=2 pad=1 count_include_pad=False",
    "exclude_pad_ceil": "pool2d n=1 c=2 size=6x7 ksize=3 stride=2 pad=1 rounding=ceil count_include_pad=False",
    "divisor": "pool2d n=1 c=2 size=6x7 ksize=3 stride=2 pad=1 divisor=4",
    "divisor_negative": "pool2d n=1 c=2 size=5 ksize=2 divisor=-2",
    "dilated_no_cell": "pool1d n=1 c=2 size=1 ksize=2 stride=1 pad=1 dilation=2",
    "whole": "pool2d n=2 c=3 size=4x5 ksize=4x5",
    "one": "pool2d n=1 c=1 size=1 ksize=1",
    "empty_batch": "pool2d n=0 c=2 size=6 ksize=2",
    "unbatched": "pool2d n=1 c=2 size=6x5 ksize=3 stride=2 batched=False",
    "nhwc": "pool2d n=2 c=5 size=7x6 ksize=3 stride=2 pad=1 layout=NHWC",
    "nhwc_unbatched": "pool2d n=1 c=3 size=6 ksize=2 layout=NHWC batched=False",
    "wide_channels": "pool2d n=1 c=35 size=9x10 ksize=3 stride=2 pad=1 layout=NHWC",
    "pool1d": "pool1d n=2 c=3 size=17 ksize=3 stride=2 pad=1",
    "pool1d_ceil": "pool1d n=2 c=3 size=10 ksize=3 stride=4 rounding=ceil",
    "pool3d": "pool3d n=1 c=2 size=5x6x7 ksize=3 stride=2 pad=1",
    "pool3d_mixed": "pool3d n=1 c=2 size=4x6x5 ksize=2x3x1 stride=1x2x2 pad=0:1x1x0 layout=NHWC",
    "global": "pool2d n=2 c=3 size=5x7 bins=1",
    "adaptive": "pool2d n=2 c=3 size=7x10 bins=3x4",
    "adaptive_same": "pool2d n=1 c=2 size=4x5 bins=4x5",
    "adaptive_more": "pool2d n=1 c=2 size=3x4 bins=5x7",
    "adaptive_nhwc": "pool2d n=2 c=3 size=7x5 bins=2x3 layout=NHWC",
    "adaptive1d": "pool1d n=2 c=3 size=11 bins=4",
    "adaptive3d": "pool3d n=1 c=2 size=5x4x6 bins=2x3x4",
}

POOL_MID = {
    "mid_halve": "pool2d n=2 c=18 size=32x34 ksize=2",
    "mid_overlap": "pool2d n=2 c=17 size=37x39 ksize=3 stride=2 pad=1",
    "mid_nhwc": "pool2d n=2 c=40 size=21x23 ksize=3 stride=2 layout=NHWC",
}


class Signal(NamedTuple):
    """Shapes of the two inputs of a correlation."""

    shape1: tuple[int, ...]
    shape2: tuple[int, ...]


SIGNAL = {
    "1d": Signal((7,), (3,)),
    "1d_even": Signal((8,), (4,)),
    "1d_longer_second": Signal((3,), (8,)),
    "1d_same_length": Signal((5,), (5,)),
    "1d_one": Signal((1,), (1,)),
    "1d_long": Signal((300,), (41,)),
    "2d": Signal((6, 7), (3, 2)),
    "2d_row": Signal((1, 9), (1, 4)),
    "2d_larger_second": Signal((3, 2), (5, 6)),
    "2d_mid": Signal((40, 33), (7, 8)),
    "3d": Signal((4, 5, 6), (2, 3, 2)),
    "4d": Signal((2, 3, 4, 3), (1, 2, 2, 3)),
    "0d": Signal((), ()),
}


def conv(name: str, **changes: Any) -> ConvProblem:
    """The convolution of that name, with some fields changed (``dtype=``, ``precision=``, ...)."""
    return replace(ConvProblem.parse((CONV | CONV_MID)[name]), **changes)


def pool(name: str, **changes: Any) -> PoolProblem:
    return replace(PoolProblem.parse((POOL | POOL_MID)[name]), **changes)


# ---------------------------------------------------------------- data

#: The largest integer up to which every integer is a value of the dtype.
EXACT = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53, "int32": 2**31 - 1}
#: The largest entry of integer data; products of two stay far enough below `EXACT`.
MAGNITUDE = {"bfloat16": 2, "float16": 2, "float32": 8, "float64": 8}

CONV_OPERANDS = {
    "conv_fprop": ("x", "w", "bias"),
    "conv_transpose": ("y", "w", "tbias"),
    "conv_dgrad": ("y", "w"),
    "conv_wgrad": ("y", "x"),
}
#: Per pass, the operand that is thinned out and the canonical axes of it that one output sums over.
SUMMED = {
    "conv_fprop": ("w", (1,)),
    "conv_transpose": ("w", (0,)),
    "conv_dgrad": ("w", (0,)),
    "conv_wgrad": ("y", (0,)),
}


def generator(problem: Any, seed: int = 0) -> np.random.Generator:
    """Random numbers that depend on the problem's text and the seed alone."""
    return np.random.default_rng([zlib.crc32(str(problem).encode()), seed])


def dtype_of(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def to_user(problem: Problem, role: str, canonical: Array) -> Array:
    """An array in canonical axes ([N, C, spatial], [K, C, ksize]) as the user of that problem passes it."""
    order = problem.order(role)
    if order in ("NHWC", "OHWI"):
        canonical = np.moveaxis(canonical, 1, -1)
    elif order == "HWIO":
        canonical = np.moveaxis(canonical, (1, 0), (-2, -1))
    return np.ascontiguousarray(canonical).reshape(problem.shape(role))


def integers(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> Array:
    """Small integers; every value that there is for 8-bit integers, ties for the others."""
    if dtype in ("int8", "uint8"):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    low, high = (0, 6) if dtype.startswith("uint") else (-MAGNITUDE.get(dtype, 4), MAGNITUDE.get(dtype, 4))
    return rng.integers(low, high, shape, endpoint=True).astype(dtype_of(dtype))


def thin(rng: np.random.Generator, array: Array, summed: tuple[int, ...], keep: int) -> Array:
    """Zero all but `keep` of the entries that one sum over the axes `summed` meets, at random places."""
    kept_axes = [axis for axis in range(array.ndim) if axis not in summed]
    rows = array.transpose(*kept_axes, *summed).reshape(*(array.shape[axis] for axis in kept_axes), -1)
    if rows.shape[-1] <= keep:
        return array
    rank = rng.random(rows.shape).argsort(-1).argsort(-1)
    rows = np.where(rank < keep, rows, 0).astype(array.dtype)
    back = rows.reshape([array.shape[axis] for axis in (*kept_axes, *summed)])
    return back.transpose(np.argsort((*kept_axes, *summed)))


def conv_integers(problem: ConvProblem, op: str, dtypes: Sequence[str] = (), seed: int = 0) -> tuple[Array | None, ...]:
    """The operands of `op`, with integer values whose sums are exact in the problem's dtype.

    With entries up to m, a sum of t non-zero products and a bias stays within ``m*m*t + m``. Where that is more
    than `EXACT` allows, one operand keeps only as many non-zero entries per sum as fit. 8-bit integers need no
    such care below 2**15 terms.
    """
    rng = generator(problem, seed)
    default = "int8" if problem.dtype == "int32" else problem.dtype
    roles = CONV_OPERANDS[op]
    names = (*dtypes, *(default,) * len(roles))[: len(roles)]
    thinned, summed = SUMMED[op]
    operands: list[Array | None] = []
    for role, dtype in zip(roles, names, strict=True):
        if role in ("bias", "tbias"):
            bias = integers(rng, problem.dims(role), "int32" if problem.dtype == "int32" else dtype)
            operands.append(None if problem.bias is None else bias.reshape(problem.shape(role)))
            continue
        array = integers(rng, problem.dims(role), dtype)
        if role == thinned and dtype in MAGNITUDE:
            magnitude = MAGNITUDE[dtype]
            axes = (*summed, *range(2, array.ndim))
            array = thin(rng, array, axes, (EXACT[problem.dtype] - magnitude) // magnitude**2)
        operands.append(to_user(problem, role, array))
    return tuple(operands)


def conv_floats(problem: ConvProblem, op: str, seed: int = 0) -> tuple[Array | None, ...]:
    """The operands of `op` with normally distributed entries, rounded to the problem's dtype."""
    rng = generator(problem, seed)
    dtype = dtype_of(problem.dtype)

    def draw(role: str) -> Array | None:
        if role in ("bias", "tbias") and problem.bias is None:
            return None
        return rng.standard_normal(problem.shape(role)).astype(dtype)

    return tuple(draw(role) for role in CONV_OPERANDS[op])


def pool_floats(problem: PoolProblem, role: str, seed: int = 0) -> Array:
    return generator(problem, seed).standard_normal(problem.shape(role)).astype(dtype_of(problem.dtype))


def pool_integers(problem: PoolProblem, role: str, seed: int = 0) -> Array:
    """Integers small enough that windows hold ties and that sums of gradients are exact."""
    return integers(generator(problem, seed), problem.shape(role), problem.dtype)


def terms(problem: ConvProblem, op: str) -> int:
    """The number of products that one output of `op` sums at most."""
    if op == "conv_wgrad":
        return problem.N * math.prod(problem.out)
    channels = problem.C if op == "conv_fprop" else problem.K
    return channels // problem.groups * problem.window.taps


# ---------------------------------------------------------------- calls


def conv_call(op: str, problem: ConvProblem, operands: Sequence[Array | None], **options: Any) -> Any:
    """The public call that solves `problem`: its function, from the operands as the user holds them."""
    window, suffix = problem.window, f"{problem.ndim}d"
    common = {
        "stride": window.stride, "padding": window.pad, "dilation": window.dilation, "groups": problem.groups,
        "layout": problem.layout, "weight_layout": problem.weight_layout, "precision": problem.precision, **options,
    }  # fmt: skip
    if op == "conv_transpose":
        spans = zip(problem.size, problem.window.pad, window.extent, window.stride, problem.out, strict=True)
        common["output_padding"] = tuple(n + lo + hi - e - s * (p - 1) for n, (lo, hi), e, s, p in spans)
        return getattr(fastconv, f"conv_transpose{suffix}")(*operands, activation=problem.activation, **common)
    common["rounding"] = window.rounding
    if op == "conv_fprop":
        return getattr(fastconv, f"conv{suffix}")(*operands, activation=problem.activation, **common)
    shape = problem.shape("x" if op == "conv_dgrad" else "w")
    return getattr(fastconv, f"conv{suffix}_{op[5:]}")(*operands, shape, **common)


def pool_arguments(problem: PoolProblem) -> dict[str, Any]:
    """The keyword arguments that every pooling function takes."""
    if problem.window is None:
        return {"output_size": problem.bins, "layout": problem.layout}
    window = problem.window
    return {
        "ksize": window.ksize, "stride": window.stride, "padding": window.pad, "dilation": window.dilation,
        "rounding": window.rounding, "layout": problem.layout,
    }  # fmt: skip


def pool_call(kind: str, problem: PoolProblem, x: Array, vjp: bool = False, **options: Any) -> Any:
    """Pooling of `kind` "max", "avg" or "lp" by its public function, or by its vjp."""
    arguments = pool_arguments(problem) | options
    if kind == "avg" and problem.window is not None:
        arguments |= {"count_include_pad": problem.count_include_pad, "divisor": problem.divisor}
    if kind == "lp":
        arguments["p"] = problem.p
    prefix = "adaptive_" if problem.window is None else ""
    name = f"{prefix}{kind}_pool{problem.ndim}d" + ("_vjp" if vjp else "")
    return getattr(fastconv, name)(x, **arguments)

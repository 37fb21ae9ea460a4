"""The register tiles of depthwise convolution on the cpu backend: every pass, exactly, where tiles end anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv.backends import reference
from fastconv.backends.cpu import conv, depthwise
from fastconv.problem import ConvProblem

LINES = [
    "conv2d n=2 c=19 size=17x37 k=19 ksize=3 stride=2 pad=1:0x1 groups=19",
    "conv2d n=1 c=5 size=11x18 k=5 ksize=7 pad=3 groups=5",
    "conv2d n=2 c=21 size=9x10 k=21 ksize=5 pad=2x0 groups=21 layout=NHWC",
    "conv2d n=1 c=35 size=14x11 k=35 ksize=3 stride=2 pad=0x1 groups=35 layout=NHWC",
]


@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
@pytest.mark.parametrize("line", LINES)
def test_tiles(line, op):
    """Small integers, so that any order of a sum gives the same; NaN where a result was left out."""
    problem = ConvProblem.parse(line)
    assert depthwise.tiled(problem)
    random = np.random.default_rng(3)

    def operand(role):
        dims = problem.dims(role)
        values = random.integers(-4, 5, dims).astype(np.float32)
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1) if "NHWC" in line else values

    x, w, dy = operand("x"), operand("w"), operand("y")
    bias = random.integers(-4, 5, problem.C).astype(np.float32)
    result, operands = {
        "conv_fprop": (dy, (x, w, bias)), "conv_dgrad": (x, (dy, w, bias)), "conv_wgrad": (w, (dy, x)),
    }[op]  # fmt: skip
    actual, expected = (np.full_like(result, np.nan) for _ in range(2))
    conv.build("depthwise", op, problem, "").run(actual, *operands)
    getattr(reference, op)(problem, expected, *operands)
    assert np.array_equal(actual, expected)


def test_plain_loops_take_the_rest():
    """No tiles for other windows, for dilation, and for 16-bit floats."""
    for change in ("ksize=4", "ksize=3 dilation=2", "ksize=3x5", "ksize=3 stride=1x2"):
        assert not depthwise.tiled(ConvProblem.parse(f"conv2d n=1 c=8 size=20 k=8 {change} groups=8"))
    assert not depthwise.tiled(ConvProblem.parse("conv2d n=1 c=8 size=20 k=8 ksize=3 groups=8 dtype=float16"))

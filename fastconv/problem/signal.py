"""Problems of one whole array against another, and of single elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastconv.errors import ShapeError
from fastconv.problem.text import join, parse_dtype, parse_shape
from fastconv.problem.values import BOUNDARIES, ITEMSIZE, METHODS, MODES, Ints, check_bytes, memoised, one_of


@dataclass(frozen=True)
class ActivationProblem:
    """An activation, or its gradient, over an array of any shape."""

    activation: str
    size: Ints
    dtype: str
    plain = True

    def dims(self, role: str) -> Ints:
        return self.size

    shape = dims

    def order(self, role: str) -> str:
        return "any"


@dataclass(frozen=True)
class SignalProblem:
    """An N-D correlation or convolution of in1 with in2, in SciPy's meaning.

    ``flip`` is True for convolution; ``start`` is where the result begins in the full output. Of an even
    in2, mode "same" takes the lower middle as the centre, or the upper one as SciPy's correlate2d does.
    """

    shape1: Ints
    shape2: Ints
    dtype: str
    flip: bool
    mode: str
    method: str = "auto"
    boundary: str = "fill"
    upper: bool = False
    plain = True

    @property
    def full(self) -> Ints:
        return tuple(a + b - 1 for a, b in zip(self.shape1, self.shape2, strict=True))

    @cached_property
    def out(self) -> Ints:
        if self.mode == "full":
            return self.full
        if self.mode == "same":
            return self.shape1
        return tuple(abs(a - b) + 1 for a, b in zip(self.shape1, self.shape2, strict=True))

    @property
    def start(self) -> Ints:
        if self.mode == "full":
            return (0,) * len(self.shape1)
        if self.mode == "same":
            return tuple((f - a + self.upper) // 2 for f, a in zip(self.full, self.shape1, strict=True))
        return tuple(min(a, b) - 1 for a, b in zip(self.shape1, self.shape2, strict=True))

    @property
    def macs(self) -> int:
        return math.prod(self.out) * math.prod(self.shape2)

    def dims(self, role: str) -> Ints:
        return {"in1": self.shape1, "in2": self.shape2}.get(role, self.out)

    shape = dims

    def order(self, role: str) -> str:
        return "any"

    def __str__(self) -> str:
        name = "convolve" if self.flip else "correlate"
        words = [f"{name} in1={join(self.shape1)} in2={join(self.shape2)} mode={self.mode} dtype={self.dtype}"]
        words += [
            f"{n}={v}" for n, v, d in (("method", self.method, "auto"), ("boundary", self.boundary, "fill")) if v != d
        ]
        return " ".join(words)

    @staticmethod
    def parse(text: str) -> SignalProblem:
        """The problem that a line such as ``correlate in1=512x512 in2=7x7 mode=same`` names."""
        head, *items = text.split() or [""]
        one_of("the first word of a signal problem", head, ("correlate", "convolve"))
        words = dict(item.partition("=")[::2] for item in items)
        if unknown := [name for name in words if name not in SIGNAL_WORDS]:
            raise ShapeError(f"{unknown[0]!r} is no word of a signal problem ({', '.join(SIGNAL_WORDS)}): {text!r}")
        shapes = [parse_shape(words, name) for name in ("in1", "in2")]
        if shapes[0] is None or shapes[1] is None:
            raise ShapeError(f"a signal problem has in1 and in2: {text!r}")
        return signal_problem(
            shapes[0], shapes[1], parse_dtype(words), head == "convolve", words.get("mode", "full"),
            words.get("method", "auto"), words.get("boundary", "fill"),
        )  # fmt: skip


SIGNAL_WORDS = ("in1", "in2", "mode", "dtype", "method", "boundary")


@memoised
def signal_problem(
    shape1: Ints, shape2: Ints, dtype: str, flip: bool, mode: Any, method: Any = "auto", boundary: Any = "fill",
    upper: bool = False,
) -> SignalProblem:  # fmt: skip
    one_of("mode", mode, MODES)
    one_of("method", method, METHODS)
    one_of("boundary", boundary, BOUNDARIES)
    got = f"got in1{list(shape1)}, in2{list(shape2)}"
    if len(shape1) != len(shape2):
        raise ShapeError(f"in1 and in2 must have the same number of axes: {got}")
    if 0 in shape1 or 0 in shape2:
        raise ShapeError(f"in1 and in2 must not be empty: {got}")
    pairs = list(zip(shape1, shape2, strict=True))
    if mode == "valid" and any(a < b for a, b in pairs) and any(a > b for a, b in pairs):
        raise ShapeError(f"mode='valid' needs one input at least as large as the other along every axis: {got}")
    problem = SignalProblem(shape1, shape2, dtype, flip, mode, method, boundary, upper)
    check_bytes("the result", problem.out, ITEMSIZE[dtype])
    return problem

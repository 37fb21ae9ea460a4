"""Pooling problems: sliding, adaptive and global windows, and unpooling."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fastconv.errors import ArgumentError, ShapeError
from fastconv.problem.text import (
    join,
    parse_dtype,
    parse_flag,
    parse_ints,
    parse_number,
    parse_pads,
    parse_words,
    window_words,
)
from fastconv.problem.values import (
    ITEMSIZE,
    LAYOUTS,
    MAX_INT,
    Ints,
    as_int,
    as_ints,
    as_shape,
    check_bytes,
    memoised,
    one_of,
)
from fastconv.problem.window import Window, check_pool_pads, join_shape, make_window, split_shape, transposed_pads

NO_TAP = 255  # of the bytes that number taps


@dataclass(frozen=True)
class PoolProblem:
    """Pooling of x[N,C,size] to y[N,C,out] and its gradients.

    Regular windows have a `window`; adaptive ones have `bins` (their output extents) and no window.
    """

    N: int
    C: int
    size: Ints
    window: Window | None
    bins: Ints | None = None
    dtype: str = "float32"
    layout: str = "NCHW"
    count_include_pad: bool = True
    divisor: int | None = None
    p: float = 2.0
    batched: bool = True

    @property
    def ndim(self) -> int:
        return len(self.size)

    @cached_property
    def out(self) -> Ints:
        return self.bins if self.window is None else self.window.out(self.size)  # type: ignore[return-value]

    @cached_property
    def taps(self) -> int:
        """The number of cells of the largest window."""
        if self.window is not None:
            return self.window.taps
        return math.prod(self.frame)

    @cached_property
    def frame(self) -> Ints:
        """The extents of the largest window, in which taps are numbered in row-major order, padding counted."""
        if self.window is not None:
            return self.window.ksize
        return tuple(max(count for _, count in self.cells(axis)) for axis in range(self.ndim))

    def dtype_of(self, role: str) -> str:
        """The dtype of an operand or a result.

        The places of maxima, which a gradient gathers by, are the numbers of their taps in bytes, `NO_TAP` for a window
        over no cell; where a byte cannot number every tap they are indices.
        """
        if role == "indices":
            return "int64"
        if role == "places":
            return "uint8" if math.prod(self.frame) <= NO_TAP else "int64"
        return self.dtype

    def step(self, axis: int) -> int:
        return 1 if self.window is None else self.window.dilation[axis]

    def cells(self, axis: int) -> list[tuple[int, int]]:
        """Per output index, the first input index that its window meets and how many it meets.

        Cells lie `step(axis)` apart. Padding is not among them.
        """
        return [(first, count) for first, count, _ in self._spans[axis]]

    def first_taps(self, axis: int) -> list[int]:
        """Per output index, how many taps of its window lie before the input."""
        if self.window is None:
            return [0] * self.out[axis]
        s, d, low = self.window.stride[axis], self.window.dilation[axis], self.window.pad[axis][0]
        return [(first - i * s + low) // d for i, (first, _) in enumerate(self.cells(axis))]

    def padded_counts(self, axis: int) -> list[int]:
        """Per output index, how many cells of the padded input its window meets."""
        return [padded for _, _, padded in self._spans[axis]]

    @cached_property
    def _spans(self) -> list[list[tuple[int, int, int]]]:
        return [self._spans_along(axis) for axis in range(self.ndim)]

    def _spans_along(self, axis: int) -> list[tuple[int, int, int]]:
        n = self.size[axis]
        if self.window is None:
            m = self.out[axis]
            edges = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
            return [(start, stop - start, stop - start) for start, stop in edges]
        k, s, d = (getattr(self.window, name)[axis] for name in ("ksize", "stride", "dilation"))
        low, high = self.window.pad[axis]
        spans = []
        for i in range(self.out[axis]):
            start = i * s - low
            skipped = max(0, -(start // d))  # taps that fall before the input
            stop = min(k, max(0, -((start - n) // d)))  # the first tap at or past its end
            padded = min(k, max(0, -((start - n - high) // d)))
            spans.append((start + skipped * d, max(0, stop - skipped), padded))
        return spans

    def dims(self, role: str) -> Ints:
        if role == "bias":
            return (self.C,)
        return (self.N, self.C, *(self.size if role == "x" else self.out))

    def shape(self, role: str) -> Ints:
        known = self._shapes
        if role not in known:
            known[role] = (self.C,) if role == "bias" else join_shape(self.layout, self.batched, self.dims(role))
        return known[role]

    @cached_property
    def _shapes(self) -> dict[str, Ints]:
        return {}

    @cached_property
    def plain(self) -> bool:
        """Whether the user's arrays, but for a bias, have the canonical axes."""
        return self.batched and self.layout == "NCHW"

    def order(self, role: str) -> str:
        """The order of an operand's axes in the user's array."""
        return "C" if role == "bias" else self.layout

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, name) for name in POOL_FIELDS))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        head = f"pool{self.ndim}d n={self.N} c={self.C} size={join(self.size)}"
        if self.window is None:
            words = [f"bins={join(self.out)}"]
        else:
            words = [f"ksize={join(self.window.ksize)}", *window_words(self.window, self.window.ksize)]
        default = PoolProblem(self.N, self.C, self.size, self.window)
        words += [
            f"{name}={getattr(self, name)}"
            for name in ("dtype", "layout", "count_include_pad", "divisor", "p", "batched")
            if getattr(self, name) != getattr(default, name)
        ]
        return " ".join([head, *words])

    @staticmethod
    def parse(text: str) -> PoolProblem:
        """The problem that a line such as ``pool2d n=1 c=64 size=112 ksize=3 stride=2 pad=1`` names."""
        ndim, words = parse_words(text, "pool", required=("n", "c", "size"))
        layout = words.get("layout", "NCHW")
        size, C = parse_ints(words, "size", ndim), parse_number(words, "c")
        batch = (parse_number(words, "n"),) if parse_flag(words, "batched") else ()
        x_shape = batch + ((C, *size) if layout == "NCHW" else (*size, C))
        dtype, p = parse_dtype(words), parse_number(words, "p", 2.0, float)
        if "bins" in words:
            bins = parse_ints(words, "bins", ndim)
            return replace(adaptive_problem(ndim, x_shape, bins, dtype, layout), p=as_power(p))
        ksize = parse_ints(words, "ksize", ndim)
        return pool_problem(
            ndim, x_shape, ksize, parse_ints(words, "stride", ndim, None) or ksize, parse_pads(words, ndim),
            parse_ints(words, "dilation", ndim, 1), words.get("rounding", "floor"), dtype, layout,
            parse_flag(words, "count_include_pad"), parse_number(words, "divisor") if "divisor" in words else None, p,
        )  # fmt: skip


POOL_FIELDS = tuple(PoolProblem.__dataclass_fields__)


@memoised
def pool_problem(
    ndim: int, x_shape: Ints, ksize: Any, stride: Any, padding: Any, dilation: Any, rounding: Any, dtype: str,
    layout: Any, count_include_pad: Any = True, divisor: Any = None, p: Any = 2.0,
) -> PoolProblem:  # fmt: skip
    """Validate a pooling of shapes as users write them. Memoised."""
    one_of("layout", layout, LAYOUTS)
    batched, N, C, size = split_shape("x", x_shape, ndim, layout)
    window = make_window(size, ksize, stride, padding, dilation, rounding, pooling=True)
    if divisor is not None and as_int("divisor", divisor, -MAX_INT) == 0:
        raise ShapeError("divisor must not be 0")
    if not isinstance(count_include_pad, bool):
        raise ArgumentError(f"count_include_pad must be True or False: got {count_include_pad!r}")
    problem = PoolProblem(N, C, size, window, None, dtype, layout, count_include_pad, divisor, as_power(p), batched)
    check_bytes("the output y", problem.dims("y"), ITEMSIZE[dtype])
    return problem


def as_power(p: Any) -> float:
    """The p of an Lp norm: a finite number above 0."""
    if isinstance(p, bool | str) or not hasattr(p, "__float__"):
        raise ArgumentError(f"p must be a number above 0: got {p!r}")
    power = float(p)
    if not 0 < power < math.inf:
        raise ShapeError(f"p must be a finite number above 0: got {p!r}")
    return power


@memoised
def adaptive_problem(ndim: int, x_shape: Ints, output_size: Any, dtype: str, layout: Any) -> PoolProblem:
    """Validate an adaptive pooling: bin i of m over n cells is [floor(i*n/m), ceil((i+1)*n/m))."""
    one_of("layout", layout, LAYOUTS)
    batched, N, C, size = split_shape("x", x_shape, ndim, layout)
    items = output_size if isinstance(output_size, tuple) else (output_size,) * ndim
    if len(items) != ndim:
        raise ShapeError(f"output_size must be an int or {ndim} ints or Nones: got {output_size!r}")
    bins = tuple(n if m is None else as_int("output_size", m, 1) for m, n in zip(items, size, strict=True))
    problem = PoolProblem(N, C, size, None, bins, dtype, layout, batched=batched)
    check_bytes("the output y", problem.dims("y"), ITEMSIZE[dtype])
    return problem


@memoised
def unpool_problem(
    ndim: int, y_shape: Ints, ksize: Any, stride: Any, padding: Any, output_size: Any, dtype: str, layout: Any
) -> PoolProblem:
    """The pooling that max unpooling undoes: its output is y, its input what unpooling fills.

    Where a value goes, its index alone says, so that only the extents of the two are kept.
    """
    one_of("layout", layout, LAYOUTS)
    batched, N, C, cells = split_shape("y", y_shape, ndim, layout)
    ksize = as_ints("ksize", ksize, ndim, 1)
    stride = ksize if stride is None else as_ints("stride", stride, ndim, 1)
    pads = transposed_pads(padding, ksize, stride)
    check_pool_pads(padding, pads, ksize, ksize)
    size = tuple((n - 1) * s - lo - hi + k for n, s, k, (lo, hi) in zip(cells, stride, ksize, pads, strict=True))
    if output_size is not None:
        size = as_shape("output_size", output_size)
        if len(size) == len(y_shape):
            given = split_shape("output_size", size, ndim, layout)
            if given[:3] != (batched, N, C):
                raise ShapeError(f"output_size {list(size)} must keep the batch and channels of y{list(y_shape)}")
            size = given[3]
    if len(size) != ndim or min(size) < 1:
        raise ShapeError(f"output_size must be {ndim} extents of at least 1, or the whole shape: got {list(size)}")
    problem = PoolProblem(N, C, size, None, cells, dtype, layout, batched=batched)
    check_bytes("the output", problem.dims("x"), ITEMSIZE[dtype])
    return problem

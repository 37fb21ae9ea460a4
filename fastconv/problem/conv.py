"""Convolution problems, forward and transposed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastconv.errors import DTypeError, ShapeError
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
    ACTIVATIONS,
    ITEMSIZE,
    LAYOUTS,
    OWN_WEIGHTS,
    PRECISIONS,
    WEIGHT_LAYOUTS,
    Ints,
    as_int,
    as_ints,
    check_bytes,
    memoised,
    one_of,
)
from fastconv.problem.window import Window, join_shape, make_window, split_shape, transposed_pads


@dataclass(frozen=True)
class ConvProblem:
    """A convolution (cross-correlation) and its gradients: x[N,C,size], w[K,C/groups,ksize], y[N,K,out].

    `dtype` is the dtype of the result. `bias` is the shape of the bias, or None. `activation` and
    `bias` belong to the op that runs: `conv_fprop`, or `conv_dgrad` when it serves as a transposed
    convolution. `batched` is False where the user left out the batch axis.
    """

    N: int
    C: int
    K: int
    size: Ints
    window: Window
    groups: int = 1
    dtype: str = "float32"
    layout: str = "NCHW"
    weight_layout: str = "OIHW"
    bias: Ints | None = None
    activation: str | None = None
    precision: str | None = None
    batched: bool = True

    @property
    def ndim(self) -> int:
        return len(self.size)

    @cached_property
    def out(self) -> Ints:
        return self.window.out(self.size)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of any of the three passes, padding counted."""
        return self.N * self.K * (self.C // self.groups) * math.prod(self.out) * self.window.taps

    def dims(self, role: str) -> Ints:
        """The canonical shape (batch, channels, spatial) of an operand of this problem."""
        if role == "x":
            return (self.N, self.C, *self.size)
        if role == "y":
            return (self.N, self.K, *self.out)
        if role == "w":
            return (self.K, self.C // self.groups, *self.window.ksize)
        return (self.K,) if role == "bias" else (self.C,)

    def shape(self, role: str) -> Ints:
        """The shape of an operand as the user passes it or gets it back."""
        known = self._shapes
        if role not in known:
            known[role] = self._shape_of(role)
        return known[role]

    @cached_property
    def _shapes(self) -> dict[str, Ints]:
        return {}

    def _shape_of(self, role: str) -> Ints:
        if role in ("bias", "tbias"):
            return self.bias if self.bias is not None else self.dims(role)
        dims = self.dims(role)
        if role == "w":
            return weight_shape(self.weight_layout, dims[0], dims[1], dims[2:])
        return join_shape(self.layout, self.batched, dims)

    @cached_property
    def plain(self) -> bool:
        """Whether the user's arrays, but for a bias, have the canonical axes."""
        return self.batched and (self.layout, self.weight_layout) == ("NCHW", "OIHW")

    def order(self, role: str) -> str:
        """The order of an operand's axes in the user's array."""
        if role == "w":
            return self.weight_layout
        return "C" if role in ("bias", "tbias") else self.layout

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, name) for name in CONV_FIELDS))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        window = self.window
        default = ConvProblem(self.N, self.C, self.K, self.size, window, weight_layout=OWN_WEIGHTS[self.layout])
        head = f"conv{self.ndim}d n={self.N} c={self.C} size={join(self.size)} k={self.K} ksize={join(window.ksize)}"
        words = window_words(window, (1,) * self.ndim)
        words += [
            f"{name}={getattr(self, name)}"
            for name in ("groups", "dtype", "layout", "weight_layout", "activation", "precision", "batched")
            if getattr(self, name) != getattr(default, name)
        ]
        if self.bias is not None:
            words.append(f"bias={join(self.bias)}")
        return " ".join([head, *words])

    @staticmethod
    def parse(text: str) -> ConvProblem:
        """The problem that a line such as ``conv2d n=1 c=3 size=224 k=64 ksize=7 stride=2 pad=3`` names.

        One number stands for all axes; what is left out has the API's default. ``pad`` takes
        ``low:high`` per axis.
        """
        ndim, words = parse_words(text, "conv", required=("n", "c", "size", "k", "ksize"))
        size = parse_ints(words, "size", ndim)
        layout = words.get("layout", "NCHW")
        groups = parse_number(words, "groups", 1)
        N, C, K, ksize = (*(parse_number(words, name) for name in ("n", "c", "k")), parse_ints(words, "ksize", ndim))
        batched = parse_flag(words, "batched")
        bias = (
            tuple(parse_number({"bias": item}, "bias") for item in words["bias"].split("x"))
            if "bias" in words
            else None
        )
        transposed = bias is not None and bias[0] == C != K  # the bias of a transposed convolution
        wl = one_of("weight_layout", words.get("weight_layout", OWN_WEIGHTS.get(layout)), (None, *WEIGHT_LAYOUTS))
        channels = (C,) if layout == "NCHW" else ()
        x_shape = ((N,) if batched else ()) + channels + size + ((C,) if layout == "NHWC" else ())
        return conv_problem(
            ndim, x_shape, weight_shape(wl or "OIHW", K, C // max(groups, 1), ksize), bias,
            parse_ints(words, "stride", ndim, 1), parse_pads(words, ndim), parse_ints(words, "dilation", ndim, 1),
            groups, parse_dtype(words), layout, wl, words.get("activation"), words.get("rounding", "floor"),
            words.get("precision"), transposed,
        )  # fmt: skip


CONV_FIELDS = tuple(ConvProblem.__dataclass_fields__)


@memoised
def conv_problem(
    ndim: int, x_shape: Ints, w_shape: Ints, bias: Ints | None, stride: Any, padding: Any, dilation: Any, groups: Any,
    dtype: str, layout: Any, weight_layout: Any, activation: Any, rounding: Any, precision: Any,
    transposed: bool = False,
) -> ConvProblem:  # fmt: skip
    """Validate a forward convolution of shapes as users write them. Memoised.

    With `transposed` the bias and the activation are of the op's own output, x's channels.
    """
    weight_layout = _check_words(layout, weight_layout, activation, precision)
    batched, N, C, size = split_shape("x", x_shape, ndim, layout)
    if len(w_shape) != ndim + 2:
        raise ShapeError(f"w must have {ndim + 2} axes ({weight_layout}): got w{list(w_shape)}")
    where = {"OIHW": (0, 1, 2), "OHWI": (0, -1, 1), "HWIO": (-1, -2, 0)}[weight_layout]
    K, Cg = w_shape[where[0]], w_shape[where[1]]
    ksize = w_shape[where[2] : where[2] + ndim]
    groups = as_int("groups", groups, 1)
    got = f"got x{list(x_shape)}, w{list(w_shape)}"
    for letter, value in (("C", C), ("K", K)):
        if value % groups or value == 0:
            raise ShapeError(f"groups={groups} must divide {letter}={value}: {got}")
    if Cg * groups != C:
        raise ShapeError(
            f"w must have C/groups = {C}/{groups} = {C // groups} channels ({weight_layout}), it has {Cg}: {got}"
        )
    window = make_window(size, ksize, stride, padding, dilation, rounding)
    if dtype == "int32" and activation not in (None, "relu", "relu6"):
        raise DTypeError(f"activation={activation!r} needs a float dtype; int8 and uint8 take 'relu' and 'relu6'")
    channels = C if transposed else K
    if bias is not None and bias not in ((channels,), (channels,) + (1,) * ndim):
        ones = ", 1" * ndim
        raise ShapeError(f"bias must be [{channels}] or [{channels}{ones}], one per filter: got bias{list(bias)}")
    problem = ConvProblem(
        N, C, K, size, window, groups, dtype, layout, weight_layout, bias, activation, precision, batched
    )
    check_bytes("the output y", problem.dims("y"), ITEMSIZE[dtype])
    check_bytes("x", problem.dims("x") if transposed else (1,), ITEMSIZE[dtype])
    return problem


def _check_words(layout: Any, weight_layout: Any, activation: Any, precision: Any) -> str:
    one_of("layout", layout, LAYOUTS)
    one_of("weight_layout", weight_layout, (None, *WEIGHT_LAYOUTS))
    one_of("activation", activation, (None, *ACTIVATIONS))
    one_of("precision", precision, (None, *PRECISIONS))
    return weight_layout or OWN_WEIGHTS[layout]


@memoised
def conv_transpose_problem(
    ndim: int, x_shape: Ints, w_shape: Ints, bias: Ints | None, stride: Any, padding: Any, output_padding: Any,
    groups: Any, dilation: Any, dtype: str, layout: Any, weight_layout: Any, activation: Any, precision: Any,
) -> ConvProblem:  # fmt: skip
    """The forward problem whose dgrad is this transposed convolution: its y is our x."""
    weight_layout = _check_words(layout, weight_layout, activation, precision)
    batched, N, K, size = split_shape("x", x_shape, ndim, layout)
    if len(w_shape) != ndim + 2:
        raise ShapeError(f"w must have {ndim + 2} axes ({weight_layout}): got w{list(w_shape)}")
    at_k, at_c, at_r = {"OIHW": (0, 1, 2), "OHWI": (0, -1, 1), "HWIO": (-1, -2, 0)}[weight_layout]
    groups = as_int("groups", groups, 1)
    got = f"got x{list(x_shape)}, w{list(w_shape)}"
    if w_shape[at_k] != K:
        raise ShapeError(f"w of a transposed convolution must have C={K} input channels, it has {w_shape[at_k]}: {got}")
    C, ksize = w_shape[at_c] * groups, w_shape[at_r : at_r + ndim]
    stride, dilation = as_ints("stride", stride, ndim, 1), as_ints("dilation", dilation, ndim, 1)
    extra = as_ints("output_padding", output_padding, ndim, 0)
    ksize = as_ints("ksize", ksize, ndim, 1)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(ksize, dilation, strict=True))
    pads = transposed_pads(padding, extent, stride)
    for e, s, d in zip(extra, stride, dilation, strict=True):
        if e >= max(s, d):
            raise ShapeError(f"output_padding={e} must be smaller than stride={s} or dilation={d}")
    pads = tuple(_less_cut(pair, e, s) for pair, e, s in zip(pads, extra, stride, strict=True))
    extra = tuple(e if e < s else 0 for e, s in zip(extra, stride, strict=True))
    out = tuple(
        (n - 1) * s + e - low - high + more
        for n, s, e, (low, high), more in zip(size, stride, extent, pads, extra, strict=True)
    )
    if min(out) < 1:
        raise ShapeError(f"the transposed output would be {list(out)}: padding {padding!r} takes all of it; {got}")
    spatial = (C, *out) if layout == "NCHW" else (*out, C)
    return conv_problem(
        ndim, ((N,) if batched else ()) + spatial, w_shape, bias, stride, pads, dilation, groups, dtype,
        layout, weight_layout, activation, "floor", precision, True,
    )  # fmt: skip


def _less_cut(pad: tuple[int, int], extra: int, stride: int) -> tuple[int, int]:
    """Output padding of a stride or more as less high padding: a forward convolution has no other way to say it."""
    if extra < stride:
        return pad
    if extra > pad[1]:
        raise ShapeError(f"output_padding={extra} must be below stride={stride}, or at most the padding {pad[1]}")
    return pad[0], pad[1] - extra


def weight_shape(weight_layout: str, K: int, C: int, ksize: Ints) -> Ints:
    return {"OIHW": (K, C, *ksize), "OHWI": (K, *ksize, C), "HWIO": (*ksize, C, K)}[weight_layout]

"""Operators for onnx's `ReferenceEvaluator`: an ONNX node is one call of a public function.

This module only translates attributes. Where the two disagree, the ONNX meaning is restored here:
strides default to 1, indices of a max pooling count through the whole tensor, and integer
convolutions have zero points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

import fastconv
from fastconv.errors import ShapeError

Ints = Sequence[int]
Pads = list[tuple[int, int]]
Attributes = Mapping[str, Any]

AUTO_PADS = {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}

# ---------------------------------------------------------------- attributes


def spatial(name: str, x: np.ndarray) -> Callable[..., Any]:
    """The public function of that name for x's number of spatial axes."""
    rank = x.ndim - 2
    if not 1 <= rank <= 3:
        raise ShapeError(f"{name} runs on 1 to 3 spatial axes: got X{list(x.shape)}")
    function: Callable[..., Any] = getattr(fastconv, f"{name}{rank}d")
    return function


def per_axis(name: str, values: Ints | None, rank: int, default: int) -> list[int]:
    """An attribute with one int per spatial axis, or its default."""
    values = [default] * rank if values is None else list(values)
    if len(values) != rank:
        raise ShapeError(f"{name} must have {rank} ints, one per spatial axis: got {values}")
    return values


def pairs(pads: Ints | None, rank: int) -> Pads:
    """``[begin of each axis, end of each axis]`` as (low, high) pairs."""
    pads = [0] * 2 * rank if pads is None else list(pads)
    if len(pads) != 2 * rank:
        raise ShapeError(f"pads must have {2 * rank} ints, the begin and then the end of each axis: got {pads}")
    return list(zip(pads[:rank], pads[rank:], strict=True))


def geometry(rank: int, attributes: Attributes) -> dict[str, Any]:
    """The stride, padding and dilation that an ONNX node asks for, as fastconv's arguments."""
    auto_pad = attributes.get("auto_pad") or "NOTSET"
    if auto_pad != "NOTSET" and auto_pad not in AUTO_PADS:
        raise ShapeError(f"auto_pad must be NOTSET, {', '.join(AUTO_PADS)}: got {auto_pad!r}")
    return {
        "stride": per_axis("strides", attributes.get("strides"), rank, 1),
        "padding": AUTO_PADS.get(auto_pad) or pairs(attributes.get("pads"), rank),
        "dilation": per_axis("dilations", attributes.get("dilations"), rank, 1),
    }


def check_kernel_shape(w: np.ndarray, attributes: Attributes) -> None:
    expected = attributes.get("kernel_shape")
    if expected is not None and tuple(expected) != w.shape[2:]:
        raise ShapeError(f"kernel_shape={list(expected)} is not that of the weights: got W{list(w.shape)}")


# ---------------------------------------------------------------- convolution


class Conv(OpRun):
    """Conv: fastconv's conv1d, conv2d or conv3d."""

    def _run(self, x: Any, w: Any, bias: Any = None, **attributes: Any) -> tuple[Any]:
        check_kernel_shape(w, attributes)
        conv = spatial("conv", x)
        return (conv(x, w, bias, groups=attributes["group"], **geometry(x.ndim - 2, attributes)),)


class ConvTranspose(OpRun):
    """ConvTranspose: conv_transpose1d, 2d or 3d, with the pads that an output shape implies."""

    def _run(self, x: Any, w: Any, bias: Any = None, **attributes: Any) -> tuple[Any]:
        check_kernel_shape(w, attributes)
        transpose = spatial("conv_transpose", x)
        window = geometry(x.ndim - 2, attributes)
        window["output_padding"] = per_axis("output_padding", attributes.get("output_padding"), x.ndim - 2, 0)
        out = output_shape(x, attributes, window)
        if out is not None:
            fit_output(x.shape[2:], w.shape[2:], out, attributes["auto_pad"] == "SAME_UPPER", window)
        return (transpose(x, w, bias, groups=attributes["group"], **window),)


def output_shape(x: np.ndarray, attributes: Attributes, window: Attributes) -> list[int] | None:
    """The output's spatial extents where a node fixes them: as given, or input * stride under SAME."""
    if attributes.get("output_shape") is not None:
        return per_axis("output_shape", attributes["output_shape"], x.ndim - 2, 0)
    if window["padding"] in ("same", "same_lower"):
        return [n * s for n, s in zip(x.shape[2:], window["stride"], strict=True)]
    return None


def fit_output(size: Ints, ksize: Ints, out: Ints, upper: bool, window: dict[str, Any]) -> None:
    """Set the padding of a transposed convolution so that its output has the extents `out`.

    What is too much is cut, the odd row at the high end if `upper` and at the low end otherwise
    (the ONNX equations). What is missing is added at the high end: pads are never negative.
    """
    axes = zip(size, ksize, out, window["stride"], window["dilation"], window["output_padding"], strict=True)
    totals = [s * (n - 1) + extra + d * (k - 1) + 1 - o for n, k, o, s, d, extra in axes]
    missing = [max(-total, 0) for total in totals]
    halves = [(max(total, 0) // 2, -(-max(total, 0) // 2)) for total in totals]
    window["padding"] = halves if upper else [(high, low) for low, high in halves]
    window["output_padding"] = [extra + more for extra, more in zip(window["output_padding"], missing, strict=True)]


# ---------------------------------------------------------------- integer convolution


class ConvInteger(OpRun):
    """ConvInteger: conv of 8-bit integers with zero points, exact in int32."""

    def _run(self, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None, **attributes: Any) -> tuple[Any]:
        return (conv_integer(x, w, x_zero, w_zero, attributes),)


class QLinearConv(OpRun):
    """QLinearConv: ConvInteger, scaled, rounded half to even, shifted and saturated."""

    def _run(
        self, x: Any, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, y_scale: Any, y_zero: Any,
        bias: Any = None, **attributes: Any,
    ) -> tuple[Any]:  # fmt: skip
        y = conv_integer(x, w, x_zero, w_zero, attributes)
        if bias is not None:
            y += by_filter(bias, x.ndim - 2)
        scale = np.float64(1) * x_scale * by_filter(w_scale, x.ndim - 2) / y_scale
        limits = np.iinfo(y_zero.dtype)
        return (np.clip(np.rint(y * scale) + y_zero, limits.min, limits.max).astype(y_zero.dtype),)


def by_filter(values: Any, rank: int) -> np.ndarray:
    """One value, or one per filter, in a shape that broadcasts against [N, K, spatial]."""
    return np.reshape(values, (-1,) + (1,) * rank)


def conv_integer(x: np.ndarray, w: np.ndarray, x_zero: Any, w_zero: Any, attributes: Attributes) -> np.ndarray:
    """``conv(x - x_zero, w - w_zero)`` in int32, on 8-bit operands.

    The differences need 9 bits, so the product is expanded, with sums over each window:
    ``conv(x, w) - x_zero * sum(w) - w_zero * (sum(x) - x_zero * taps)``. The padding is where
    ``x - x_zero`` is zero: x is padded with its zero point.
    """
    check_kernel_shape(w, attributes)
    conv, rank, groups = spatial("conv", x), x.ndim - 2, attributes["group"]
    window = geometry(rank, attributes)
    x_zero = np.int32(0 if x_zero is None else np.asarray(x_zero).reshape(()))
    w_zero = by_filter(np.asarray(0 if w_zero is None else w_zero, np.int32), rank)
    if x_zero:
        pads = explicit_pads(x.shape[2:], w.shape[2:], **window)
        x = np.pad(x, ((0, 0), (0, 0), *pads), constant_values=x.dtype.type(x_zero))
        window["padding"] = 0
    y: np.ndarray = conv(x, w, groups=groups, **window)
    y -= x_zero * by_filter(w.reshape(len(w), -1).sum(axis=1, dtype=np.int32), rank)
    if w_zero.any():
        sums = conv(x, np.ones((groups, *w.shape[1:]), w.dtype), groups=groups, **window)
        sums -= x_zero * np.int32(math.prod(w.shape[1:]))
        y -= w_zero * np.repeat(sums, len(w) // groups, axis=1)
    return y


def explicit_pads(size: Ints, ksize: Ints, stride: Ints, padding: str | Pads, dilation: Ints) -> Pads:
    """The (low, high) pairs that a padding word stands for in a convolution."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return [(0, 0)] * len(size)
    axes = zip(size, ksize, stride, dilation, strict=True)
    totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in axes]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if padding == "same" else [(high, low) for low, high in halves]


# ---------------------------------------------------------------- pooling


def pool(name: str, x: Any, attributes: Attributes, **more: Any) -> Any:
    """The pooling `name` as a node's attributes describe it."""
    rounding = "ceil" if attributes.get("ceil_mode") else "floor"
    window = geometry(x.ndim - 2, attributes)
    return spatial(name, x)(x, ksize=attributes["kernel_shape"], rounding=rounding, **window, **more)


class MaxPool(OpRun):
    """MaxPool: max_pool1d, 2d or 3d, with indices where the node has a second output."""

    def _run(self, x: Any, **attributes: Any) -> tuple[Any, ...]:
        if len(self.output) < 2 or not self.output[1]:
            return (pool("max_pool", x, attributes),)
        y, indices = pool("max_pool", x, attributes, return_indices=True)
        if attributes.get("storage_order"):
            indices = column_major(indices, x.shape[2:])
        # A window over no cell keeps its index -1.
        return y, np.where(indices < 0, indices, indices + offsets(x.shape[:2], x.shape[2:]))


class AveragePool(OpRun):
    """AveragePool: avg_pool1d, 2d or 3d."""

    def _run(self, x: Any, **attributes: Any) -> tuple[Any]:
        count_include_pad = bool(attributes.get("count_include_pad"))
        return (pool("avg_pool", x, attributes, count_include_pad=count_include_pad),)


class LpPool(OpRun):
    """LpPool: lp_pool1d, 2d or 3d."""

    def _run(self, x: Any, **attributes: Any) -> tuple[Any]:
        return (pool("lp_pool", x, attributes, p=attributes["p"]),)


def offsets(leading: Ints, size: Ints) -> np.ndarray:
    """Where the cells of each [n, c] begin in the flattened tensor."""
    return np.arange(math.prod(leading)).reshape(*leading, *(1 for _ in size)) * math.prod(size)


def column_major(indices: np.ndarray, size: Ints) -> np.ndarray:
    """Row-major offsets into `size` as column-major ones; -1 stays."""
    cells = np.unravel_index(np.maximum(indices, 0), size)
    return np.where(indices < 0, indices, np.ravel_multi_index(cells, size, order="F"))


def global_pool(function: Callable[..., Any], x: Any, **more: Any) -> Any:
    """A global pooling over any number of axes: more than three are one long one."""
    if 3 <= x.ndim <= 5:
        return function(x, **more)
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return function(flat, **more).reshape(*x.shape[:2], *(1 for _ in x.shape[2:]))


class GlobalAveragePool(OpRun):
    """GlobalAveragePool: global_avg_pool."""

    def _run(self, x: Any) -> tuple[Any]:
        return (global_pool(fastconv.global_avg_pool, x),)


class GlobalMaxPool(OpRun):
    """GlobalMaxPool: global_max_pool."""

    def _run(self, x: Any) -> tuple[Any]:
        return (global_pool(fastconv.global_max_pool, x),)


class GlobalLpPool(OpRun):
    """GlobalLpPool: global_lp_pool."""

    def _run(self, x: Any, p: Any = 2) -> tuple[Any]:
        return (global_pool(fastconv.global_lp_pool, x, p=p),)


# ---------------------------------------------------------------- unpooling


class MaxUnpool(OpRun):
    """MaxUnpool: max_unpool1d, 2d or 3d.

    With an output shape, the indices that a MaxPool gave point into that shape (as ONNX Runtime and
    PyTorch read them). ONNX's own example has indices into the extents that the attributes imply, and
    places those at the low corner of the output (onnx issue 2398). An index lies in the window that it
    came from, and that tells the two apart.
    """

    def _run(self, x: Any, indices: Any, shape: Any = None, **attributes: Any) -> tuple[Any]:
        unpool, rank = spatial("max_unpool", x), x.ndim - 2
        ksize = per_axis("kernel_shape", attributes["kernel_shape"], rank, 1)
        window = geometry(rank, attributes)
        stride, padding = window["stride"], window["padding"]
        axes = zip(x.shape[2:], ksize, stride, padding, strict=True)
        implied = [(n - 1) * s - low - high + k for n, k, s, (low, high) in axes]
        out = implied if shape is None else spatial_extents(x, shape)
        lows = [low for low, _ in padding]
        corner = not in_windows(indices, out, ksize, stride, lows) and in_windows(indices, implied, ksize, stride, lows)
        size = implied if corner and all(a <= b for a, b in zip(implied, out, strict=True)) else out
        y = unpool(x, indices - offsets(x.shape[:2], size), ksize, stride, padding, size)
        return (np.pad(y, [(0, 0), (0, 0), *((0, b - a) for a, b in zip(size, out, strict=True))]),)


def spatial_extents(x: np.ndarray, shape: Any) -> list[int]:
    """The spatial part of MaxUnpool's output_shape, which is the shape of the whole output."""
    shape = np.asarray(shape).tolist()
    if len(shape) != x.ndim or tuple(shape[:2]) != x.shape[:2]:
        raise ShapeError(f"output_shape must be the whole shape, with N and C as in X{list(x.shape)}: got {shape}")
    return shape[2:]


def in_windows(indices: np.ndarray, size: Ints, ksize: Ints, stride: Ints, lows: Ints) -> bool:
    """Whether each index, as a flat offset into [N, C, size], lies in the pooling window of its own output."""
    local = indices - offsets(indices.shape[:2], size)
    if local.size and not (local.min() >= 0 and local.max() < math.prod(size)):
        return False
    cells = np.unravel_index(local, size)
    outputs = np.indices(indices.shape)[2:]
    steps = [c - (o * s - low) for c, o, s, low in zip(cells, outputs, stride, lows, strict=True)]
    return all(bool(np.all((step >= 0) & (step < k))) for step, k in zip(steps, ksize, strict=True))

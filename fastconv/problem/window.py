"""The sliding window: its geometry, its padding in every form, and the shapes it splits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastconv.errors import ArgumentError, ShapeError
from fastconv.problem.values import PADDINGS, ROUNDINGS, SPATIAL, Ints, Pads, as_int, as_ints, one_of


@dataclass(frozen=True)
class Window:
    """A sliding window: tuples over the spatial axes. Dilation 1 is dense."""

    ksize: Ints
    stride: Ints
    dilation: Ints
    pad: Pads
    rounding: str = "floor"

    @cached_property
    def extent(self) -> Ints:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.ksize, self.dilation, strict=True))

    @property
    def taps(self) -> int:
        return math.prod(self.ksize)

    def out(self, size: Ints) -> Ints:
        return tuple(self._out(axis, n) for axis, n in enumerate(size))

    def _out(self, axis: int, size: int) -> int:
        low, high = self.pad[axis]
        stride, extent = self.stride[axis], self.extent[axis]
        span = size + low + high - extent
        letter = SPATIAL[len(self.ksize) * -1 + axis] if len(self.ksize) <= 3 else f"[{axis}]"
        if span < 0:
            raise ShapeError(
                f"the window does not fit: its extent {extent} (ksize={self.ksize[axis]}, "
                f"dilation={self.dilation[axis]}) is larger than the padded input "
                f"{size} + {low} + {high} along {letter}; pad more or use a smaller window"
            )
        count, rest = divmod(span, stride)
        if rest and self.rounding == "exact":
            pads = f"2*{low}" if low == high else f"({low} + {high})"
            raise ShapeError(
                f"O{letter} = ({letter} + 2P - F{letter})/S + 1 = ({size} + {pads} - {extent})/{stride} + 1 = "
                f"{span / stride + 1:.4g} is not whole; change the padding or the stride, or use rounding='floor'"
            )
        # A last partial window must start inside the input or its low padding.
        if rest and self.rounding == "ceil" and (count + 1) * stride < size + low:
            count += 1
        return count + 1


def make_window(
    size: Ints, ksize: Any, stride: Any, padding: Any, dilation: Any, rounding: Any, pooling: bool = False
) -> Window:
    """A validated window over spatial extents `size`, from the arguments as users write them."""
    ndim = len(size)
    ksize = as_ints("ksize", ksize, ndim, 1)
    stride = ksize if stride is None and pooling else as_ints("stride", stride, ndim, 1)
    dilation = as_ints("dilation", dilation, ndim, 1)
    one_of("rounding", rounding, ROUNDINGS if pooling else ("floor", "exact"))
    extent = tuple(d * (k - 1) + 1 for k, d in zip(ksize, dilation, strict=True))
    pad = make_pads(padding, size, extent, stride)
    if pooling:
        check_pool_pads(padding, pad, ksize, extent)
    return Window(ksize, stride, dilation, pad, rounding)


def make_pads(padding: Any, size: Ints, extent: Ints, stride: Ints) -> Pads:
    """Every form of `padding` as (low, high) pairs, one per axis."""
    ndim = len(size)
    if isinstance(padding, str):
        one_of("padding", padding, PADDINGS)
        if padding == "valid":
            return ((0, 0),) * ndim
        if padding == "full":
            return tuple((e - 1, e - 1) for e in extent)
        totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, e, s in zip(size, extent, stride, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
        return tuple(pads if padding == "same" else [(high, low) for low, high in pads])
    if padding is None:
        raise ArgumentError(f"padding must be ints, pairs or one of {', '.join(PADDINGS)}: got None")
    if not hasattr(padding, "__iter__"):
        return ((as_int("padding", padding, 0),) * 2,) * ndim
    items = tuple(padding)
    if len(items) != ndim:
        raise ShapeError(
            f"padding must be an int, {ndim} ints or {ndim} (low, high) pairs, one per spatial axis: got {padding!r}"
        )
    return tuple(_pair(item) for item in items)


def _pair(item: Any) -> tuple[int, int]:
    if isinstance(item, str) or not hasattr(item, "__iter__"):
        return (as_int("padding", item, 0),) * 2
    pair = tuple(as_int("padding", end, 0) for end in item)
    if len(pair) != 2:
        raise ShapeError(f"padding of one axis must be an int or a (low, high) pair: got {item!r}")
    return pair


def check_pool_pads(padding: Any, pad: Pads, ksize: Ints, extent: Ints) -> None:
    """PyTorch's rule for ints; a pair or a word may pad up to the window's extent minus one."""
    items = tuple(padding) if hasattr(padding, "__iter__") and not isinstance(padding, str) else padding
    for axis, (low, high) in enumerate(pad):
        item = items[axis] if isinstance(items, tuple) else items
        if not isinstance(item, str) and not hasattr(item, "__iter__"):
            limit, rule = ksize[axis] // 2, "half of the window"
        else:
            limit, rule = extent[axis] - 1, "the window's extent minus one"
        if max(low, high) > limit:
            raise ShapeError(
                f"pooling padding may be at most {rule}, {limit} for ksize={ksize[axis]} with extent "
                f"{extent[axis]}: got {padding!r}; use a smaller padding, or (low, high) pairs"
            )


def transposed_pads(padding: Any, extent: Ints, stride: Ints) -> Pads:
    """`"same"` of a transposed convolution makes the output size * stride, as TensorFlow."""
    if isinstance(padding, str) and padding in ("same", "same_lower"):
        totals = [max(e - s, 0) for e, s in zip(extent, stride, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
        return tuple(pads if padding == "same" else [(high, low) for low, high in pads])
    return make_pads(padding, (1,) * len(extent), extent, stride)


def split_shape(name: str, shape: Ints, ndim: int, layout: str) -> tuple[bool, int, int, Ints]:
    """(has a batch axis, batch, channels, spatial extents) of an activation's shape."""
    if len(shape) not in (ndim + 1, ndim + 2):
        axes = "spatial axes " + ", ".join(SPATIAL[-ndim:]) if ndim <= 3 else f"{ndim} spatial axes"
        raise ShapeError(
            f"{name} must have {ndim + 2} axes ({layout} with {axes}), or {ndim + 1} without a batch: "
            f"got {name}{list(shape)}"
        )
    batched = len(shape) == ndim + 2
    N = shape[0] if batched else 1
    rest = shape[1:] if batched else shape
    C, size = (rest[0], rest[1:]) if layout == "NCHW" else (rest[-1], rest[:-1])
    if min(*size, C) < 1 or N < 0:
        raise ShapeError(f"only the batch may be empty: got {name}{list(shape)} ({layout})")
    return batched, N, C, size


def join_shape(layout: str, batched: bool, dims: Ints) -> Ints:
    """The shape of an activation as the user has it, from its canonical (batch, channels, spatial) one."""
    shape = dims if layout == "NCHW" else (dims[0], *dims[2:], dims[1])
    return shape if batched else shape[1:]

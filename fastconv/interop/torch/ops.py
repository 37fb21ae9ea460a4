"""fastconv's convolutions and poolings as functions of PyTorch tensors: ``torch.library`` custom operators.

They run on fastconv whether a patch is installed or not, have gradients of any order, and stay whole in
``torch.compile``'s graphs. The three passes of a convolution are closed under differentiation: the gradients
of each of ``conv``, ``conv_dgrad`` and ``conv_wgrad`` are the other two, geometry in forward terms throughout.
The gradient of an average pooling is linear and its own adjoint's; that of a max pooling is a gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from fastconv.interop.torch import kernels
from fastconv.interop.torch.kernels import empty

Ints = Sequence[int]

# ---------------------------------------------------------------- the passes of a convolution


def pairs(padding: Ints) -> list[tuple[int, int]]:
    """``[low, high, low, high]`` as one pair per axis: operators take flat lists."""
    return list(zip(padding[::2], padding[1::2], strict=True))


@custom_op("fastconv::conv", mutates_args=())
def conv(x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    return kernels.conv(x, w, bias, stride, pairs(padding), dilation, groups)


@conv.register_fake
def _(x: Tensor, w: Tensor, bias: Any, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    return empty((x.shape[0], w.shape[0], *kernels.conv_size(x, w, stride, pairs(padding), dilation)), x, w)


@custom_op("fastconv::conv_dgrad", mutates_args=())
def conv_dgrad(
    dy: Tensor, w: Tensor, x_shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    return kernels.conv_dgrad(empty(x_shape, dy, w), dy, w, stride, pairs(padding), dilation, groups)


@custom_op("fastconv::conv_wgrad", mutates_args=())
def conv_wgrad(
    dy: Tensor, x: Tensor, w_shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    return kernels.conv_wgrad(empty(w_shape, dy, x), dy, x, stride, pairs(padding), dilation, groups)


@conv_dgrad.register_fake
@conv_wgrad.register_fake
def _(a: Tensor, b: Tensor, shape: Ints, *_: Any) -> Tensor:
    return empty(shape, a, b)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Two tensors, and the geometry: the last four arguments."""
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.geometry = inputs[-4:]


def conv_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, w = ctx.saved_tensors
    to_x, to_w, to_bias = ctx.needs_input_grad[:3]
    dx = conv_dgrad(dy, w, x.shape, *ctx.geometry).to(x.dtype) if to_x else None
    dw = conv_wgrad(dy, x, w.shape, *ctx.geometry).to(w.dtype) if to_w else None
    db = dy.sum((0, *range(2, dy.ndim))) if to_bias else None
    return dx, dw, db, None, None, None, None


def conv_dgrad_backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    dy, w = ctx.saved_tensors
    to_dy, to_w = ctx.needs_input_grad[:2]
    ddy = conv(ddx, w, None, *ctx.geometry).to(dy.dtype) if to_dy else None
    dw = conv_wgrad(dy, ddx, w.shape, *ctx.geometry).to(w.dtype) if to_w else None
    return ddy, dw, None, None, None, None, None


def conv_wgrad_backward(ctx: Any, ddw: Tensor) -> tuple[Any, ...]:
    dy, x = ctx.saved_tensors
    to_dy, to_x = ctx.needs_input_grad[:2]
    ddy = conv(x, ddw, None, *ctx.geometry).to(dy.dtype) if to_dy else None
    dx = conv_dgrad(dy, ddw, x.shape, *ctx.geometry).to(x.dtype) if to_x else None
    return ddy, dx, None, None, None, None, None


conv.register_autograd(conv_backward, setup_context=keep)
conv_dgrad.register_autograd(conv_dgrad_backward, setup_context=keep)
conv_wgrad.register_autograd(conv_wgrad_backward, setup_context=keep)

# ---------------------------------------------------------------- poolings


@custom_op("fastconv::max_pool", mutates_args=())
def max_pool(
    x: Tensor, ksize: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return kernels.max_pool(len(ksize), x, ksize, stride, padding, dilation, ceil)


@custom_op("fastconv::max_pool_dgrad", mutates_args=())
def max_pool_dgrad(
    dy: Tensor, x: Tensor, indices: Tensor, ksize: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool
) -> Tensor:
    return kernels.max_pool_backward(len(ksize), dy, x, ksize, stride, padding, dilation, ceil, indices)


@custom_op("fastconv::avg_pool", mutates_args=())
def avg_pool(
    x: Tensor, ksize: Ints, stride: Ints, padding: Ints, ceil: bool, count_include_pad: bool, divisor: int | None
) -> Tensor:
    return kernels.avg_pool(len(ksize), x, ksize, stride, padding, ceil, count_include_pad, divisor)


@custom_op("fastconv::avg_pool_dgrad", mutates_args=())
def avg_pool_dgrad(
    dy: Tensor, x: Tensor, ksize: Ints, stride: Ints, padding: Ints, ceil: bool, count_include_pad: bool,
    divisor: int | None,
) -> Tensor:  # fmt: skip
    return kernels.avg_pool_backward(len(ksize), dy, x, ksize, stride, padding, ceil, count_include_pad, divisor)


@custom_op("fastconv::adaptive_max_pool", mutates_args=())
def adaptive_max_pool(x: Tensor, output_size: Ints) -> tuple[Tensor, Tensor]:
    return kernels.adaptive_max_pool(len(output_size), x, output_size)


@custom_op("fastconv::adaptive_max_pool_dgrad", mutates_args=())
def adaptive_max_pool_dgrad(dy: Tensor, x: Tensor, indices: Tensor, output_size: Ints) -> Tensor:
    return kernels.adaptive_max_pool_backward(len(output_size), dy, x, indices)


@custom_op("fastconv::adaptive_avg_pool", mutates_args=())
def adaptive_avg_pool(x: Tensor, output_size: Ints) -> Tensor:
    return kernels.adaptive_avg_pool(len(output_size), x, output_size)


@custom_op("fastconv::adaptive_avg_pool_dgrad", mutates_args=())
def adaptive_avg_pool_dgrad(dy: Tensor, x: Tensor, output_size: Ints) -> Tensor:
    return kernels.adaptive_avg_pool_backward(len(output_size), dy, x)


@custom_op("fastconv::max_unpool", mutates_args=())
def max_unpool(y: Tensor, indices: Tensor, output_size: Ints) -> Tensor:
    return kernels.max_unpool(len(output_size), y, indices, output_size)


def theirs(name: str, ndim: int) -> Any:
    """PyTorch's pooling of that name, which knows the shape and the memory format of the result."""
    return getattr(torch.nn.functional, f"{name}{ndim}d")


@max_pool.register_fake
def _(x: Tensor, ksize: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool) -> Any:
    return theirs("max_pool", len(ksize))(x, ksize, stride, padding, dilation, ceil, True)


@avg_pool.register_fake
def _(x: Tensor, ksize: Ints, stride: Ints, padding: Ints, ceil: bool, *_: Any) -> Any:
    return theirs("avg_pool", len(ksize))(x, ksize, stride, padding, ceil)


@adaptive_max_pool.register_fake
def _(x: Tensor, output_size: Ints) -> Any:
    return theirs("adaptive_max_pool", len(output_size))(x, output_size, True)


@adaptive_avg_pool.register_fake
def _(x: Tensor, output_size: Ints) -> Any:
    return theirs("adaptive_avg_pool", len(output_size))(x, output_size)


@max_unpool.register_fake
def _(y: Tensor, indices: Tensor, output_size: Ints) -> Tensor:
    form = kernels.pool_format(len(output_size), y)
    shape = (*y.shape[: y.ndim - len(output_size)], *output_size)
    return torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=form)


@max_pool_dgrad.register_fake
def _(dy: Tensor, x: Tensor, indices: Tensor, ksize: Ints, *_: Any) -> Tensor:
    return torch.empty_like(x, dtype=dy.dtype, memory_format=kernels.pool_format(len(ksize), x, keeps_3d=True))


@avg_pool_dgrad.register_fake
@adaptive_avg_pool_dgrad.register_fake
def _(dy: Tensor, x: Tensor, size: Ints, *_: Any) -> Tensor:
    return torch.empty_like(x, dtype=dy.dtype, memory_format=kernels.pool_format(len(size), x))


@adaptive_max_pool_dgrad.register_fake
def _(dy: Tensor, x: Tensor, indices: Tensor, output_size: Ints) -> Tensor:
    return torch.empty_like(x, dtype=dy.dtype, memory_format=kernels.pool_format(len(output_size), x))


def gather(dx: Tensor, indices: Tensor, ndim: int) -> Tensor:
    """The cells that `indices` point at."""
    return dx.flatten(-ndim).gather(-1, indices.flatten(-ndim)).view(indices.shape)


def differentiate(fprop: Any, dgrad: Any) -> None:
    """Give ``fprop(x, *geometry)`` and ``dgrad(dy, x, [indices], *geometry)`` their gradients."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, *ctx.geometry = inputs
        indices = output[1:] if isinstance(output, tuple) else ()
        ctx.mark_non_differentiable(*indices)
        ctx.save_for_backward(x, *indices)

    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Any, ...]:
        return dgrad(dy, *ctx.saved_tensors, *ctx.geometry), *[None] * len(ctx.geometry)

    def keep_for_dgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.geometry = inputs[len(tensors) :]
        ctx.save_for_backward(*tensors[2:])
        ctx.others = len(inputs) - 1

    def dgrad_backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
        indices = ctx.saved_tensors
        ddy = gather(ddx, indices[0], len(ctx.geometry[0])) if indices else fprop(ddx, *ctx.geometry)
        return ddy, *[None] * ctx.others

    fprop.register_autograd(backward, setup_context=keep)
    dgrad.register_autograd(dgrad_backward, setup_context=keep_for_dgrad)


differentiate(max_pool, max_pool_dgrad)
differentiate(avg_pool, avg_pool_dgrad)
differentiate(adaptive_max_pool, adaptive_max_pool_dgrad)
differentiate(adaptive_avg_pool, adaptive_avg_pool_dgrad)


def keep_indices(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, indices, output_size = inputs
    ctx.save_for_backward(indices)
    ctx.ndim = len(output_size)


def max_unpool_backward(ctx: Any, dx: Tensor) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    return gather(dx, indices, ctx.ndim), None, None


max_unpool.register_autograd(max_unpool_backward, setup_context=keep_indices)

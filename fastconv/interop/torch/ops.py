"""fastconv's convolutions and poolings as functions of PyTorch tensors: ``torch.library`` custom operators.

They run on fastconv whether a patch is installed or not, have gradients of any order, and stay whole in
``torch.compile``'s graphs. The three passes of a convolution are closed under differentiation: the gradients
of each of ``conv``, ``conv_dgrad`` and ``conv_wgrad`` are the other two, geometry in forward terms throughout.
The gradient of an average pooling is linear and its own adjoint's; that of a max pooling is a gather.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.library import custom_op, define, impl, register_autograd, register_fake

from fastconv.interop.torch import kernels
from fastconv.interop.torch.kernels import back, lend, spatial
from fastconv.problem import as_ints
from fastconv.problem.window import make_pads

Tensor = torch.Tensor
Ints = Sequence[int]

# ---------------------------------------------------------------- the passes of a convolution


def pairs(padding: Ints) -> list[tuple[int, int]]:
    """``[low, high, low, high]`` as one pair per axis: operators take flat lists."""
    return list(zip(padding[::2], padding[1::2], strict=True))


def empty(shape: Ints, x: Tensor, w: Tensor) -> Tensor:
    """A result of a convolution, in the dtype and memory format that the kernels give it."""
    dtype = torch.int32 if x.dtype in (torch.int8, torch.uint8) else torch.promote_types(x.dtype, w.dtype)
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=kernels.conv_format(x, w))


@custom_op("fastconv::conv", mutates_args=())
def conv(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:  # fmt: skip
    x = x.contiguous(memory_format=kernels.conv_format(x, w))
    operands = lend(x), lend(w), None if bias is None else lend(bias)
    return back(spatial("conv{}", x.ndim - 2)(*operands, stride, pairs(padding), dilation, groups))


@conv.register_fake
def _(x: Tensor, w: Tensor, bias: Any, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    axes = zip(x.shape[2:], w.shape[2:], stride, pairs(padding), dilation, strict=True)
    out = [(n + low + high - d * (k - 1) - 1) // s + 1 for n, k, s, (low, high), d in axes]
    return empty((x.shape[0], w.shape[0], *out), x, w)


@custom_op("fastconv::conv_dgrad", mutates_args=())
def conv_dgrad(
    dy: Tensor, w: Tensor, x_shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:  # fmt: skip
    dy = dy.contiguous(memory_format=kernels.conv_format(dy, w))
    dgrad = spatial("conv{}_dgrad", dy.ndim - 2)
    return back(dgrad(lend(dy), lend(w), tuple(x_shape), stride, pairs(padding), dilation, groups))


@conv_dgrad.register_fake
def _(dy: Tensor, w: Tensor, x_shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    return empty(x_shape, dy, w)


@custom_op("fastconv::conv_wgrad", mutates_args=())
def conv_wgrad(
    dy: Tensor, x: Tensor, w_shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:  # fmt: skip
    dw = empty(w_shape, dy, x)
    wgrad = spatial("conv{}_wgrad", dy.ndim - 2)
    wgrad(lend(dy), lend(x), tuple(w_shape), stride, pairs(padding), dilation, groups, out=lend(dw))
    return dw


@conv_wgrad.register_fake
def _(dy: Tensor, x: Tensor, w_shape: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    return empty(w_shape, dy, x)


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


def twin(name: str, kernel: Callable[..., Any]) -> Any:
    """``fastconv::name``, with the arguments, shapes and memory formats of ``aten::name``."""
    model = getattr(torch.ops.aten, name).default
    qualified = f"fastconv::{name.strip('_')}"
    define(qualified, str(model._schema).partition(model._schema.name)[2])
    impl(qualified, ("cpu", "cuda"))(kernel)
    register_fake(qualified)(model)
    return getattr(torch.ops.fastconv, name.strip("_")).default

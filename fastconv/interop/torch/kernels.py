"""PyTorch tensors in, PyTorch tensors out: one call of fastconv's public functions each, without a copy.

These are the bodies of the kernels that `patch` gives to PyTorch's dispatcher, with the arguments of the
``aten`` operators, and of the custom operators in `ops`. They run below autograd. The memory format of a
result is the one that PyTorch gives it: channels_last where the image or the filters are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

import fastconv
from fastconv import arrays, dispatch
from fastconv.errors import DTypeError
from fastconv.ops import pool
from fastconv.problem import adaptive_problem

Ints = Sequence[int]
Pads = Sequence[tuple[int, int]]  # (low, high) per axis

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BYTES = (torch.int8, torch.uint8)

# ---------------------------------------------------------------- tensors and arrays


def lend(tensor: Tensor) -> Any:
    """What fastconv is given: a NumPy view of a tensor in the CPU's memory, and a CUDA tensor as it is."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_cpu:
        return tensor
    if tensor.dtype is torch.bfloat16:  # which NumPy knows through ml_dtypes only
        return tensor.view(torch.int16).numpy().view(arrays.bfloat16())
    return tensor.numpy()


def back(result: Any, form: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The tensor over a result's memory; copied where it is to be of another memory format."""
    if isinstance(result, np.ndarray) and result.dtype.kind == "V":  # bfloat16
        result = torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    elif isinstance(result, np.ndarray):
        result = torch.from_numpy(result)
    return result.contiguous(memory_format=form)


def of_one_dtype(x: Tensor, *others: Tensor | None) -> None:
    """PyTorch promotes nothing here, and neither do we in its place."""
    if x.dtype not in FLOATS or any(other is not None and other.dtype is not x.dtype for other in others):
        listing = ", ".join(str(tensor.dtype) for tensor in (x, *others) if tensor is not None)
        raise DTypeError(f"convolution takes floats of one dtype: got {listing}")


def spatial(name: str, ndim: int) -> Any:
    """The public function of that name for a number of spatial axes."""
    return getattr(fastconv, name.format(f"{ndim}d"))


def per_axis(values: Ints, ndim: int) -> Ints:
    """An ``aten`` list of ints: one of length 1 stands for every axis."""
    return tuple(values) * ndim if len(values) == 1 else tuple(values)


# ---------------------------------------------------------------- results


def conv_format(a: Tensor, b: Tensor) -> torch.memory_format:
    """PyTorch's choice for the result of a convolution of the two: compiled code relies on it."""
    return torch._C._conv_determine_backend_memory_format(a, b, torch._C._ConvBackend.Mkldnn)


def empty(shape: Ints, a: Tensor, b: Tensor) -> Tensor:
    """The result of a convolution of the two, in the dtype that fastconv gives it."""
    dtype = torch.int32 if a.dtype in BYTES else torch.promote_types(a.dtype, b.dtype)
    return torch.empty(shape, dtype=dtype, device=a.device, memory_format=conv_format(a, b))


def conv_size(x: Tensor, w: Tensor, stride: Ints, pads: Pads, dilation: Ints) -> list[int]:
    """The spatial extents of a convolution; 0 where it has none, which is refused when it runs."""
    axes = zip(x.shape[2:], w.shape[2:], stride, pads, dilation, strict=True)
    return [max((n + low + high - d * (k - 1) - 1) // s + 1, 0) for n, k, s, (low, high), d in axes]


def transposed_size(x: Tensor, w: Tensor, stride: Ints, pads: Pads, extra: Ints, dilation: Ints) -> list[int]:
    """The spatial extents of a transposed convolution, likewise; `extra` is its output padding."""
    axes = zip(x.shape[2:], w.shape[2:], stride, pads, extra, dilation, strict=True)
    return [max((n - 1) * s - low - high + d * (k - 1) + 1 + e, 0) for n, k, s, (low, high), e, d in axes]


def pool_format(ndim: int, x: Tensor, keeps_3d: bool = False) -> torch.memory_format:
    """PyTorch's choice for a pooling of x and for its gradient: in 3-D, max pooling alone keeps channels_last."""
    if x.is_contiguous() or (ndim == 3 and not keeps_3d):
        return torch.contiguous_format
    return suggest_memory_format(x)


# ---------------------------------------------------------------- convolution


def conv(x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, pads: Pads, dilation: Ints, groups: int) -> Tensor:
    y = empty((x.shape[0], w.shape[0], *conv_size(x, w, stride, pads, dilation)), x, w)
    operands = lend(x), lend(w), None if bias is None else lend(bias)
    spatial("conv{}", x.ndim - 2)(*operands, stride, pads, dilation, groups, out=lend(y))
    return y


def conv_dgrad(dx: Tensor, dy: Tensor, w: Tensor, stride: Ints, pads: Pads, dilation: Ints, groups: int) -> Tensor:
    """Fills dx."""
    function = spatial("conv{}_dgrad", dy.ndim - 2)
    function(lend(dy), lend(w), tuple(dx.shape), stride, pads, dilation, groups, out=lend(dx))
    return dx


def conv_wgrad(dw: Tensor, dy: Tensor, x: Tensor, stride: Ints, pads: Pads, dilation: Ints, groups: int) -> Tensor:
    """Fills dw."""
    function = spatial("conv{}_wgrad", dy.ndim - 2)
    function(lend(dy), lend(x), tuple(dw.shape), stride, pads, dilation, groups, out=lend(dw))
    return dw


def conv_transpose(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, pads: Pads, extra: Ints, dilation: Ints, groups: int
) -> Tensor:
    size = transposed_size(x, w, stride, pads, extra, dilation)
    y = empty((x.shape[0], w.shape[1] * groups, *size), x, w)
    operands = lend(x), lend(w), None if bias is None else lend(bias)
    spatial("conv_transpose{}", x.ndim - 2)(*operands, stride, pads, extra, groups, dilation, out=lend(y))
    return y


def convolution(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, transposed: bool,
    output_padding: Ints, groups: int, *_: Any,
) -> Tensor:  # fmt: skip
    """``aten::_convolution``, forward and transposed."""
    of_one_dtype(x, w, bias)
    pads = [(pad, pad) for pad in padding]
    if transposed:
        return conv_transpose(x, w, bias, stride, pads, output_padding, dilation, groups)
    return conv(x, w, bias, stride, pads, dilation, groups)


def convolution_backward(
    dy: Tensor, x: Tensor, w: Tensor, bias_sizes: Ints | None, stride: Ints, padding: Ints, dilation: Ints,
    transposed: bool, output_padding: Ints, groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """``aten::convolution_backward``: the gradients to x, w and the bias that `output_mask` asks for."""
    of_one_dtype(dy, x, w)
    geometry = stride, [(pad, pad) for pad in padding], dilation, groups
    form = conv_format(x, w)
    dx = dw = db = None
    if output_mask[0] and transposed:
        dx = torch.empty_like(x, memory_format=form)
        spatial("conv{}", x.ndim - 2)(lend(dy), lend(w), None, *geometry, out=lend(dx))
    elif output_mask[0]:
        dx = conv_dgrad(torch.empty_like(x, memory_format=form), dy, w, *geometry)
    if output_mask[1]:
        source, target = (dy, x) if transposed else (x, dy)
        dw = conv_wgrad(torch.empty_like(w, memory_format=form), target, source, *geometry)
    if output_mask[2]:
        db = back(fastconv.bias_grad(lend(dy)))
    return dx, dw, db


# ---------------------------------------------------------------- sliding windows


def windows(ndim: int, kernel_size: Ints, stride: Ints, padding: Ints) -> tuple[Ints, Ints | None, Ints]:
    return per_axis(kernel_size, ndim), per_axis(stride, ndim) or None, per_axis(padding, ndim)


def rounding(ceil_mode: bool) -> str:
    return "ceil" if ceil_mode else "floor"


def max_pool(
    ndim: int, x: Tensor, kernel_size: Ints, stride: Ints = (), padding: Ints = (0,), dilation: Ints = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``aten::max_pool2d_with_indices`` and its 3-D twin."""
    y, indices = spatial("max_pool{}", ndim)(
        lend(x), *windows(ndim, kernel_size, stride, padding), per_axis(dilation, ndim),
        rounding=rounding(ceil_mode), return_indices=True,
    )  # fmt: skip
    form = pool_format(ndim, x, keeps_3d=True)
    return back(y, form), back(indices, form)


def max_pool_backward(
    ndim: int, dy: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool,
    indices: Tensor,
) -> Tensor:  # fmt: skip
    """``aten::max_pool2d_with_indices_backward`` and its 3-D twin."""
    dx = torch.empty_like(x, dtype=dy.dtype, memory_format=pool_format(ndim, x, keeps_3d=True))
    spatial("max_pool{}_dgrad", ndim)(
        lend(dy), lend(x), *windows(ndim, kernel_size, stride, padding), per_axis(dilation, ndim),
        rounding=rounding(ceil_mode), indices=lend(indices), out=lend(dx),
    )  # fmt: skip
    return dx


def avg_pool(
    ndim: int, x: Tensor, kernel_size: Ints, stride: Ints = (), padding: Ints = (0,), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """``aten::avg_pool2d`` and its 3-D twin."""
    y = spatial("avg_pool{}", ndim)(
        lend(x), *windows(ndim, kernel_size, stride, padding), rounding=rounding(ceil_mode),
        count_include_pad=count_include_pad, divisor=divisor_override,
    )  # fmt: skip
    return back(y, pool_format(ndim, x))


def avg_pool_backward(
    ndim: int, dy: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    """``aten::avg_pool2d_backward`` and its 3-D twin."""
    dx = torch.empty_like(x, dtype=dy.dtype, memory_format=pool_format(ndim, x))
    spatial("avg_pool{}_dgrad", ndim)(
        lend(dy), tuple(x.shape), *windows(ndim, kernel_size, stride, padding), rounding=rounding(ceil_mode),
        count_include_pad=count_include_pad, divisor=divisor_override, out=lend(dx),
    )  # fmt: skip
    return dx


def max_unpool(ndim: int, y: Tensor, indices: Tensor, output_size: Ints, *_: Ints) -> Tensor:
    """``aten::max_unpool2d`` and its 3-D twin: where a value goes, its index alone says."""
    x = spatial("max_unpool{}", ndim)(lend(y), lend(indices), 1, output_size=tuple(output_size))
    return back(x, pool_format(ndim, y))


# ---------------------------------------------------------------- adaptive windows


def adaptive_max_pool(ndim: int, x: Tensor, output_size: Ints) -> tuple[Tensor, Tensor]:
    """``aten::adaptive_max_pool2d`` and its 3-D twin."""
    pooling = spatial("adaptive_max_pool{}", ndim)
    y, indices = pooling(lend(x), per_axis(output_size, ndim), return_indices=True)
    form = pool_format(ndim, x)
    return back(y, form), back(indices, form)


def adaptive_max_pool_backward(ndim: int, dy: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """``aten::adaptive_max_pool2d_backward`` and its 3-D twin."""
    dx = torch.empty_like(x, dtype=dy.dtype, memory_format=pool_format(ndim, x))
    operands = dispatch.admit(("dy", "x", "indices"), (lend(dy), lend(x), lend(indices)), None)
    pool.max_dgrad(adaptive(ndim, dy, x), operands, lend(dx), None)
    return dx


def adaptive_avg_pool(ndim: int, x: Tensor, output_size: Ints) -> Tensor:
    """``aten::_adaptive_avg_pool2d`` and its 3-D twin."""
    y = spatial("adaptive_avg_pool{}", ndim)(lend(x), per_axis(output_size, ndim))
    return back(y, pool_format(ndim, x))


def adaptive_avg_pool_backward(ndim: int, dy: Tensor, x: Tensor) -> Tensor:
    """``aten::_adaptive_avg_pool2d_backward`` and its 3-D twin."""
    dx = torch.empty_like(x, dtype=dy.dtype, memory_format=pool_format(ndim, x))
    operands = dispatch.admit(("dy",), (lend(dy),), None)
    dispatch.run("avgpool_dgrad", adaptive(ndim, dy, x), operands, lend(dx), None)
    return dx


def adaptive(ndim: int, dy: Tensor, x: Tensor) -> Any:
    """The problem of an adaptive pooling from x's extents to dy's; PyTorch's gradients name no sizes."""
    dtype = str(dy.dtype).removeprefix("torch.")
    problem = adaptive_problem(ndim, tuple(x.shape), tuple(dy.shape[-ndim:]), dtype, "NCHW")
    pool.check_dy(problem, tuple(dy.shape))
    return problem

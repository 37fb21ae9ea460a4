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

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# ---------------------------------------------------------------- tensors and arrays


def lend(tensor: Tensor) -> Any:
    """What fastconv is given: a NumPy view of a tensor in the CPU's memory, and a CUDA tensor as it is."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        return tensor
    if tensor.dtype is torch.bfloat16:  # which NumPy knows through ml_dtypes only
        return tensor.view(torch.int16).numpy().view(arrays.bfloat16())
    return tensor.numpy()


def back(result: Any) -> Tensor:
    """The tensor over a result's memory."""
    if not isinstance(result, np.ndarray):
        return result
    if result.dtype.kind == "V":  # bfloat16
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(result)


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


def conv_format(x: Tensor, w: Tensor) -> torch.memory_format:
    """PyTorch's choice for a convolution: compiled code relies on it."""
    return torch._C._conv_determine_backend_memory_format(x, w, torch._C._ConvBackend.Mkldnn)


def pool_format(x: Tensor) -> torch.memory_format:
    """PyTorch's choice for a pooling of x, and for the gradient to x."""
    return torch.contiguous_format if x.is_contiguous() else suggest_memory_format(x)


# ---------------------------------------------------------------- convolution


def convolution(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, transposed: bool,
    output_padding: Ints, groups: int, *_: Any,
) -> Tensor:  # fmt: skip
    """``aten::_convolution``, forward and transposed."""
    of_one_dtype(x, w, bias)
    x = x.contiguous(memory_format=conv_format(x, w))
    operands = lend(x), lend(w), None if bias is None else lend(bias)
    if transposed:
        transpose = spatial("conv_transpose{}", x.ndim - 2)
        return back(transpose(*operands, stride, padding, output_padding, groups, dilation))
    return back(spatial("conv{}", x.ndim - 2)(*operands, stride, padding, dilation, groups))


def convolution_backward(
    dy: Tensor, x: Tensor, w: Tensor, bias_sizes: Ints | None, stride: Ints, padding: Ints, dilation: Ints,
    transposed: bool, output_padding: Ints, groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """``aten::convolution_backward``: the gradients to x, w and the bias that `output_mask` asks for."""
    of_one_dtype(dy, x, w)
    ndim, form = x.ndim - 2, conv_format(x, w)
    geometry = stride, padding, dilation, groups
    dy = dy.contiguous(memory_format=form)
    dx = dw = db = None
    if output_mask[0] and transposed:
        dx = back(spatial("conv{}", ndim)(lend(dy), lend(w), None, *geometry))
    elif output_mask[0]:
        dx = back(spatial("conv{}_dgrad", ndim)(lend(dy), lend(w), tuple(x.shape), *geometry))
    if output_mask[1]:
        dw = torch.empty_like(w, memory_format=form)
        pair = (x, dy) if transposed else (dy, x)
        spatial("conv{}_wgrad", ndim)(*map(lend, pair), tuple(w.shape), *geometry, out=lend(dw))
    if output_mask[2]:
        db = back(fastconv.bias_grad(lend(dy)))
    return dx, dw, db


# ---------------------------------------------------------------- sliding windows


def lend_pooled(tensor: Tensor, x: Tensor | None = None) -> Any:
    """`lend`, in the memory format that the result gets: that of `x`, the pooled tensor."""
    return lend(tensor.contiguous(memory_format=pool_format(tensor if x is None else x)))


def rounding(ceil_mode: bool) -> str:
    return "ceil" if ceil_mode else "floor"


def max_pool(
    ndim: int, x: Tensor, kernel_size: Ints, stride: Ints = (), padding: Ints = (0,), dilation: Ints = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``aten::max_pool2d_with_indices`` and its 3-D twin."""
    y, indices = spatial("max_pool{}", ndim)(
        lend_pooled(x), *windows(ndim, kernel_size, stride, padding), per_axis(dilation, ndim),
        rounding=rounding(ceil_mode), return_indices=True,
    )  # fmt: skip
    return back(y), back(indices)


def max_pool_backward(
    ndim: int, dy: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool,
    indices: Tensor,
) -> Tensor:  # fmt: skip
    """``aten::max_pool2d_with_indices_backward`` and its 3-D twin."""
    dx = spatial("max_pool{}_dgrad", ndim)(
        lend_pooled(dy, x), lend(x), *windows(ndim, kernel_size, stride, padding), per_axis(dilation, ndim),
        rounding=rounding(ceil_mode), indices=lend(indices),
    )  # fmt: skip
    return back(dx)


def avg_pool(
    ndim: int, x: Tensor, kernel_size: Ints, stride: Ints = (), padding: Ints = (0,), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """``aten::avg_pool2d`` and its 3-D twin."""
    y = spatial("avg_pool{}", ndim)(
        lend_pooled(x), *windows(ndim, kernel_size, stride, padding), rounding=rounding(ceil_mode),
        count_include_pad=count_include_pad, divisor=divisor_override,
    )  # fmt: skip
    return back(y)


def avg_pool_backward(
    ndim: int, dy: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    """``aten::avg_pool2d_backward`` and its 3-D twin."""
    dx = spatial("avg_pool{}_dgrad", ndim)(
        lend_pooled(dy, x), tuple(x.shape), *windows(ndim, kernel_size, stride, padding), rounding=rounding(ceil_mode),
        count_include_pad=count_include_pad, divisor=divisor_override,
    )  # fmt: skip
    return back(dx)


def windows(ndim: int, kernel_size: Ints, stride: Ints, padding: Ints) -> tuple[Ints, Ints | None, Ints]:
    return per_axis(kernel_size, ndim), per_axis(stride, ndim) or None, per_axis(padding, ndim)


def max_unpool(ndim: int, y: Tensor, indices: Tensor, output_size: Ints, *_: Ints) -> Tensor:
    """``aten::max_unpool2d`` and its 3-D twin: where a value goes, its index alone says."""
    return back(spatial("max_unpool{}", ndim)(lend_pooled(y), lend(indices), 1, output_size=tuple(output_size)))


# ---------------------------------------------------------------- adaptive windows


def adaptive_max_pool(ndim: int, x: Tensor, output_size: Ints) -> tuple[Tensor, Tensor]:
    """``aten::adaptive_max_pool2d`` and its 3-D twin."""
    pooling = spatial("adaptive_max_pool{}", ndim)
    y, indices = pooling(lend_pooled(x), per_axis(output_size, ndim), return_indices=True)
    return back(y), back(indices)


def adaptive_max_pool_backward(ndim: int, dy: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """``aten::adaptive_max_pool2d_backward`` and its 3-D twin."""
    operands = dispatch.admit(("dy", "x", "indices"), (lend_pooled(dy, x), lend(x), lend(indices)), None)
    return back(pool.max_dgrad(adaptive(ndim, dy, x), operands, None, None))


def adaptive_avg_pool(ndim: int, x: Tensor, output_size: Ints) -> Tensor:
    """``aten::_adaptive_avg_pool2d`` and its 3-D twin."""
    return back(spatial("adaptive_avg_pool{}", ndim)(lend_pooled(x), per_axis(output_size, ndim)))


def adaptive_avg_pool_backward(ndim: int, dy: Tensor, x: Tensor) -> Tensor:
    """``aten::_adaptive_avg_pool2d_backward`` and its 3-D twin."""
    problem, operands = adaptive(ndim, dy, x), dispatch.admit(("dy",), (lend_pooled(dy, x),), None)
    return back(dispatch.run("avgpool_dgrad", problem, operands, None, None))


def adaptive(ndim: int, dy: Tensor, x: Tensor) -> Any:
    """The problem of an adaptive pooling from x's extents to dy's; PyTorch's gradients name no sizes."""
    dtype = arrays.name_of(lend(dy).dtype) if dy.device.type == "cpu" else str(dy.dtype).removeprefix("torch.")
    problem = adaptive_problem(ndim, tuple(x.shape), tuple(dy.shape[-ndim:]), dtype, "NCHW")
    pool.check_dy(problem, tuple(dy.shape))
    return problem

"""The functions of `fastconv.interop.torch`: arguments as fastconv takes them, turned into those of `ops`.

One definition serves the three ranks. Each function is differentiable to any order and stays whole in
``torch.compile``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastconv.errors import ShapeError
from fastconv.interop.torch import ops
from fastconv.interop.torch.kernels import transposed_size
from fastconv.problem.values import ROUNDINGS, as_ints, one_of
from fastconv.problem.window import make_pads, transposed_pads


def _ranks(function: Callable[..., Any], example: str, result: str) -> list[Callable[..., Any]]:
    """The public functions for 1, 2 and 3 spatial axes of one whose first parameter is their number."""
    return [_of_rank(function, ndim, example, result) for ndim in (1, 2, 3)]


def _of_rank(function: Callable[..., Any], ndim: int, example: str, result: str) -> Callable[..., Any]:
    """In the docstring and the example, ``<4>`` stands for one 4 per spatial axis."""

    def of_rank(*args: Any, **kwargs: Any) -> Any:
        return function(ndim, *args, **kwargs)

    name = f"{function.__name__.strip('_')}{ndim}d"
    doc = (
        f"{function.__doc__}\n    Examples\n    --------\n    >>> import torch\n"
        f"    >>> from fastconv.interop.torch import NAME\n    >>> {example}\n    {result}\n    "
    )
    of_rank.__name__ = of_rank.__qualname__ = name
    of_rank.__doc__ = re.sub(r"<(\d)>", lambda found: ", ".join(found[1] * ndim), doc.replace("NAME", name))
    parameters = list(inspect.signature(function).parameters.values())[1:]
    of_rank.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return of_rank


def _check_axes(name: str, tensor: Tensor, ndim: int) -> bool:
    """Whether there is a batch axis."""
    if tensor.ndim not in (ndim + 1, ndim + 2):
        raise ShapeError(f"{name} must have {ndim + 2} axes, or {ndim + 1} without a batch: got {list(tensor.shape)}")
    return tensor.ndim == ndim + 2


# ---------------------------------------------------------------- convolution


def _conv(
    ndim: int, x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """`fastconv.NAME` (cross-correlation) of tensors x[N, C, ...] and w[K, C/groups, ...], with gradients.

    Parameters
    ----------
    x, w, bias, stride, padding, dilation, groups
        As `fastconv.NAME` takes them: a batch axis may be missing, and padding may be a word or pairs.

    Returns
    -------
    y : tensor [N, K, ...]
        In channels_last memory where x or w lies so.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `fastconv.NAME`.
    """
    batched = _check_axes("x", x, ndim)
    stride, dilation = as_ints("stride", stride, ndim, 1), as_ints("dilation", dilation, ndim, 1)
    pads = make_pads(padding, tuple(x.shape[-ndim:]), _extent(w, dilation), stride)
    y = ops.conv(x if batched else x[None], w, bias, stride, _flat(pads), dilation, groups)
    return y if batched else y[0]


def _conv_transpose(
    ndim: int, x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """`fastconv.NAME`, the adjoint of a convolution, of tensors x[N, C, ...] and w[C, K/groups, ...], with gradients.

    Parameters
    ----------
    x, w, bias, stride, padding, output_padding, groups, dilation
        As `fastconv.NAME` takes them.

    Returns
    -------
    y : tensor [N, K, ...]

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `fastconv.NAME`.
    """
    batched = _check_axes("x", x, ndim)
    stride, dilation = as_ints("stride", stride, ndim, 1), as_ints("dilation", dilation, ndim, 1)
    extra = as_ints("output_padding", output_padding, ndim, 0)
    pads = transposed_pads(padding, _extent(w, dilation), stride)
    dy = x if batched else x[None]
    shape = [dy.shape[0], w.shape[1] * groups, *transposed_size(dy, w, stride, pads, extra, dilation)]
    y = ops.conv_dgrad(dy, w, shape, stride, _flat(pads), dilation, groups)
    if bias is not None:
        y = y + bias.view(-1, *[1] * ndim)
    return y if batched else y[0]


def _extent(w: Tensor, dilation: Any) -> tuple[int, ...]:
    """Of the filters, gaps included."""
    return tuple(d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilation, strict=True))


def _flat(pads: Any) -> list[int]:
    return [end for pair in pads for end in pair]


# ---------------------------------------------------------------- pooling


def _max_pool(
    ndim: int, x: Tensor, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *,
    rounding: str = "floor", return_indices: bool = False,
) -> Any:  # fmt: skip
    """`fastconv.NAME` of a tensor x[N, C, ...], with gradients.

    Parameters
    ----------
    x, ksize, stride, padding, dilation, return_indices
        As `fastconv.NAME` takes them; padding as ints.
    rounding : "floor" or "ceil"

    Returns
    -------
    y : tensor [N, C, ...], or (y, indices)

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `fastconv.NAME`.
    """
    dilation = as_ints("dilation", dilation, ndim, 1)
    y, indices = ops.max_pool(x, *_window(ndim, ksize, stride, padding), dilation, _ceil(rounding))
    return (y, indices) if return_indices else y


def _avg_pool(
    ndim: int, x: Tensor, ksize: Any, stride: Any = None, padding: Any = 0, *, rounding: str = "floor",
    count_include_pad: bool = True, divisor: int | None = None,
) -> Tensor:  # fmt: skip
    """`fastconv.NAME` of a tensor x[N, C, ...], with gradients.

    Parameters
    ----------
    x, ksize, stride, padding, count_include_pad, divisor
        As `fastconv.NAME` takes them; padding as ints.
    rounding : "floor" or "ceil"

    Returns
    -------
    y : tensor [N, C, ...]

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `fastconv.NAME`.
    """
    return ops.avg_pool(x, *_window(ndim, ksize, stride, padding), _ceil(rounding), count_include_pad, divisor)


def _window(ndim: int, ksize: Any, stride: Any, padding: Any) -> tuple[Any, Any, Any]:
    ksize = as_ints("ksize", ksize, ndim, 1)
    stride = ksize if stride is None else as_ints("stride", stride, ndim, 1)
    return ksize, stride, as_ints("padding", padding, ndim, 0)


def _ceil(rounding: str) -> bool:
    return one_of("rounding", rounding, ROUNDINGS[:2]) == "ceil"


def _adaptive_max_pool(ndim: int, x: Tensor, output_size: Any, *, return_indices: bool = False) -> Any:
    """`fastconv.NAME` of a tensor x[N, C, ...], with gradients.

    Parameters
    ----------
    x, return_indices
        As `fastconv.NAME` takes them.
    output_size : int, or one int or None per spatial axis
        None keeps an extent.

    Returns
    -------
    y : tensor [N, C, *output_size], or (y, indices)

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `fastconv.NAME`.
    """
    y, indices = ops.adaptive_max_pool(x, _sizes(ndim, x, output_size))
    return (y, indices) if return_indices else y


def _adaptive_avg_pool(ndim: int, x: Tensor, output_size: Any) -> Tensor:
    """`fastconv.NAME` of a tensor x[N, C, ...], with gradients.

    Parameters
    ----------
    x : tensor [N, C, ...]
    output_size : int, or one int or None per spatial axis
        None keeps an extent.

    Returns
    -------
    y : tensor [N, C, *output_size]

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `fastconv.NAME`.
    """
    return ops.adaptive_avg_pool(x, _sizes(ndim, x, output_size))


def _sizes(ndim: int, x: Tensor, output_size: Any) -> Any:
    _check_axes("x", x, ndim)
    if isinstance(output_size, tuple | list):
        output_size = [n if size is None else size for n, size in zip(x.shape[-ndim:], output_size, strict=True)]
    return as_ints("output_size", output_size, ndim, 1)


def _max_unpool(
    ndim: int, y: Tensor, indices: Tensor, ksize: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Tensor:  # fmt: skip
    """`fastconv.NAME` of a tensor y[N, C, ...], with gradients.

    Parameters
    ----------
    y, indices, ksize, stride, padding
        As `fastconv.NAME` takes them; padding as ints.
    output_size : ints, optional
        The spatial extents, where the window does not say them.

    Returns
    -------
    x : tensor [N, C, *output_size]

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `fastconv.NAME`.
    """
    _check_axes("y", y, ndim)
    axes = zip(y.shape[-ndim:], *_window(ndim, ksize, stride, padding), strict=True)
    if output_size is None:
        output_size = [(n - 1) * s - 2 * pad + k for n, k, s, pad in axes]
    return ops.max_unpool(y, indices, as_ints("output_size", output_size, ndim, 1))


# ---------------------------------------------------------------- the public names

conv1d, conv2d, conv3d = _ranks(
    _conv, 'NAME(torch.ones(1, 1, <4>), torch.ones(1, 1, <3>), padding="same").shape', "torch.Size([1, 1, <4>])"
)
conv_transpose1d, conv_transpose2d, conv_transpose3d = _ranks(
    _conv_transpose, "NAME(torch.ones(1, 1, <4>), torch.ones(1, 1, <2>), stride=2).shape", "torch.Size([1, 1, <8>])"
)
max_pool1d, max_pool2d, max_pool3d = _ranks(
    _max_pool, "NAME(torch.ones(1, 1, <4>), 2).shape", "torch.Size([1, 1, <2>])"
)
avg_pool1d, avg_pool2d, avg_pool3d = _ranks(
    _avg_pool, "NAME(torch.ones(1, 1, <4>), 2).shape", "torch.Size([1, 1, <2>])"
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = _ranks(
    _adaptive_max_pool, "NAME(torch.ones(1, 1, <4>), 3).shape", "torch.Size([1, 1, <3>])"
)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = _ranks(
    _adaptive_avg_pool, "NAME(torch.ones(1, 1, <4>), 3).shape", "torch.Size([1, 1, <3>])"
)
max_unpool1d, max_unpool2d, max_unpool3d = _ranks(
    _max_unpool,
    "NAME(torch.ones(1, 1, <1>), torch.zeros(1, 1, <1>, dtype=torch.int64), 2).sum()",
    "tensor(1.)",
)

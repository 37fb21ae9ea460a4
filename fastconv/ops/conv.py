"""Convolution, its gradients, and transposed convolution, in 1-D, 2-D and 3-D.

"Convolution" here is cross-correlation, as in every deep-learning framework: the filter is not
flipped. `fastconv.convolve` is the one that flips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv import arrays, dispatch
from fastconv.errors import ShapeError
from fastconv.problem import (
    ConvProblem,
    Ints,
    adaptive_problem,
    as_shape,
    conv_problem,
    conv_transpose_problem,
    hashable,
)

# ---------------------------------------------------------------- what the public functions share


@dispatch.remembered(1, 4, 13)
def fprop(
    ndim: int, x: Any, w: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    layout: Any, weight_layout: Any, activation: Any, rounding: Any, precision: Any, out: Any, backend: str | None,
) -> Any:  # fmt: skip
    operands = dispatch.admit(("x", "w", "bias"), (x, w, bias), backend)
    x, w, bias = operands.arrays
    dtype = arrays.conv_dtype(x.dtype, w.dtype, None if bias is None else bias.dtype)
    problem = conv_problem(
        ndim, x.shape, w.shape, None if bias is None else bias.shape, hashable(stride), hashable(padding),
        hashable(dilation), groups, dtype, layout, weight_layout, activation, rounding, precision,
    )  # fmt: skip
    return dispatch.run("conv_fprop", problem, operands, out, backend)


@dispatch.remembered(1, 3, 12)
def dgrad(
    ndim: int, dy: Any, w: Any, x_shape: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    layout: Any, weight_layout: Any, rounding: Any, precision: Any, out: Any, backend: str | None,
) -> Any:  # fmt: skip
    operands = dispatch.admit(("dy", "w"), (dy, w), backend)
    dy, w = operands.arrays
    dtype = arrays.conv_dtype(dy.dtype, w.dtype)
    problem = conv_problem(
        ndim, as_shape("x_shape", x_shape), w.shape, None, hashable(stride), hashable(padding), hashable(dilation),
        groups, dtype, layout, weight_layout, None, rounding, precision, True,
    )  # fmt: skip
    check_dy(problem, dy.shape)
    operands.arrays = (dy, w, None)
    return dispatch.run("conv_dgrad", problem, operands, out, backend)


@dispatch.remembered(1, 3, 12)
def wgrad(
    ndim: int, dy: Any, x: Any, w_shape: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    layout: Any, weight_layout: Any, rounding: Any, precision: Any, out: Any, backend: str | None,
) -> Any:  # fmt: skip
    operands = dispatch.admit(("dy", "x"), (dy, x), backend)
    dy, x = operands.arrays
    dtype = arrays.conv_dtype(dy.dtype, x.dtype)
    problem = conv_problem(
        ndim, x.shape, as_shape("w_shape", w_shape), None, hashable(stride), hashable(padding), hashable(dilation),
        groups, dtype, layout, weight_layout, None, rounding, precision,
    )  # fmt: skip
    check_dy(problem, dy.shape)
    return dispatch.run("conv_wgrad", problem, operands, out, backend)


def check_dy(problem: ConvProblem, shape: Ints) -> None:
    expected = problem.shape("y")
    if shape != expected:
        raise ShapeError(
            f"dy must have the output's shape {list(expected)}: got dy{list(shape)} "
            f"for x{list(problem.shape('x'))}, w{list(problem.shape('w'))}"
        )


@dispatch.remembered(1, 4, 13)
def transpose(
    ndim: int, x: Any, w: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any,
    layout: Any, weight_layout: Any, activation: Any, precision: Any, out: Any, backend: str | None,
) -> Any:  # fmt: skip
    operands = dispatch.admit(("x", "w", "bias"), (x, w, bias), backend)
    x, w, bias = operands.arrays
    dtype = arrays.conv_dtype(x.dtype, w.dtype, None if bias is None else bias.dtype)
    problem = conv_transpose_problem(
        ndim, x.shape, w.shape, None if bias is None else bias.shape, hashable(stride), hashable(padding),
        hashable(output_padding), groups, hashable(dilation), dtype, layout, weight_layout, activation, precision,
    )  # fmt: skip
    return dispatch.run("conv_dgrad", problem, operands, out, backend)


# ---------------------------------------------------------------- forward


def conv1d(
    x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, activation: str | None = None, rounding: str = "floor",
    precision: str | None = None, out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Cross-correlate signals x[N, C, W] with filters w[K, C/groups, S]; see `conv2d` for every argument.

    Returns
    -------
    y : array [N, K, Q]

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[1.0, 3, 2, 2, 0, 2, 3]]])
    >>> fastconv.conv1d(x, np.array([[[-1.0, 0, 1]]]))
    array([[[ 1., -1., -2.,  0.,  3.]]])
    """
    return fprop(1, x, w, bias, stride, padding, dilation, groups, layout, weight_layout, activation, rounding,
                 precision, out, backend)  # fmt: skip


def conv2d(
    x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, activation: str | None = None, rounding: str = "floor",
    precision: str | None = None, out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Cross-correlate images x[N, C, H, W] with filters w[K, C/groups, R, S], add a bias, apply an activation.

    ``y[n, k, p, q] = act(bias[k] + sum over c, r, s of w[k, c, r, s] * x[n, c, p*stride + r*dilation - pad, ...])``

    Parameters
    ----------
    x : array [N, C, H, W] or [C, H, W]
        With ``layout="NHWC"``: [N, H, W, C]. float16, bfloat16, float32, float64; int8 and uint8 give int32,
        whose sums wrap beyond 31 bits. Any strides; never written to.
    w : array [K, C/groups, R, S]
        With ``layout="NHWC"``: [R, S, C/groups, K]. `weight_layout` overrides: "OIHW", "OHWI", "HWIO".
    bias : array [K] or [K, 1, 1], optional
    stride, dilation : int or one int per spatial axis
    padding : int, one int per axis, one (low, high) pair per axis, or a word
        Zeros around x. "valid": none. "same": output ceil(size/stride), the odd pixel high (TensorFlow);
        "same_lower": the odd pixel low (ONNX). "full": every input element meets every tap.
    groups : int
        Divides C and K; C for a depthwise convolution.
    activation : None, "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "gelu" or "silu"
    rounding : "floor" or "exact"
        "floor" drops the pixels that a last partial window would need; "exact" raises where there are any.
    precision : None, "ieee", "tf32" or "bf16"
        For float32. None keeps full float32 precision and may use a fast algorithm, "ieee" only ones no worse
        than summing in float32; the other two are permissions, and the CPU computes float32 under them.
    out : array, optional
        Of y's exact shape and dtype; filled and returned. Must not share memory with an input.
    backend : str, optional
        "reference", "cpu", "numba" or "raw"; never falls back.

    Returns
    -------
    y : array [N, K, P, Q]
        ``P = (H + pad_low + pad_high - dilation*(R - 1) - 1) // stride + 1``, Q likewise, in the promoted dtype.
        An NCHW x that lies in NHWC memory gives a y that does too.

    Raises
    ------
    ShapeError
        Shapes that do not fit, bad values or words.
    DTypeError
        Other dtypes, no arrays, arrays of different kinds.
    BackendError
        A backend that is unknown, unavailable or refuses.

    References
    ----------
    Dumoulin, Visin: A guide to convolution arithmetic for deep learning, 2016 (arXiv:1603.07285).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> fastconv.conv2d(image, np.ones((1, 1, 3, 3)), padding=1, stride=2)
    array([[[[10., 24.],
             [51., 90.]]]])
    """
    return fprop(2, x, w, bias, stride, padding, dilation, groups, layout, weight_layout, activation, rounding,
                 precision, out, backend)  # fmt: skip


def conv3d(
    x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, activation: str | None = None, rounding: str = "floor",
    precision: str | None = None, out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Cross-correlate volumes x[N, C, D, H, W] with filters w[K, C/groups, T, R, S]; see `conv2d`.

    Returns
    -------
    y : array [N, K, Z, P, Q]

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv3d(np.ones((1, 2, 4, 4, 4)), np.ones((3, 2, 2, 2, 2))).shape
    (1, 3, 3, 3, 3)
    """
    return fprop(3, x, w, bias, stride, padding, dilation, groups, layout, weight_layout, activation, rounding,
                 precision, out, backend)  # fmt: skip


# ---------------------------------------------------------------- gradient to the input


def conv1d_dgrad(
    dy: Any, w: Any, x_shape: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, rounding: str = "floor", precision: str | None = None,
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `conv1d` to its input, dx of shape `x_shape`; see `conv2d_dgrad`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv1d_dgrad(np.array([[[1.0, 2]]]), np.array([[[-1.0, 0, 1]]]), (1, 1, 4))
    array([[[-1., -2.,  1.,  2.]]])
    """
    return dgrad(1, dy, w, x_shape, stride, padding, dilation, groups, layout, weight_layout, rounding, precision,
                 out, backend)  # fmt: skip


def conv2d_dgrad(
    dy: Any, w: Any, x_shape: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, rounding: str = "floor", precision: str | None = None,
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `conv2d` (a cross-correlation) to its input.

    ``dx[n, c, h, w] = sum over k, r, s of w[k, c, r, s] * dy[n, k, p, q]`` wherever ``p*stride + r*dilation - pad = h``
    and the like along W: the adjoint of `conv2d`, ``<dy, conv2d(x, w)> = <conv2d_dgrad(dy, w, x.shape), x>``.

    Parameters
    ----------
    dy : array [N, K, P, Q]
        The gradient to the output; of exactly the shape that `conv2d` gives for `x_shape`.
    w : array [K, C/groups, R, S]
    x_shape : ints
        The shape of x as `conv2d` took it, in the same layout.
    stride, padding, dilation, groups, layout, weight_layout, rounding, precision, out, backend
        As the forward call had them.

    Returns
    -------
    dx : array of shape `x_shape`, in the promoted dtype

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `conv2d`; a dy that does not have the output's shape is a ShapeError.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv2d_dgrad(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)), (1, 1, 3, 3))
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    """
    return dgrad(2, dy, w, x_shape, stride, padding, dilation, groups, layout, weight_layout, rounding, precision,
                 out, backend)  # fmt: skip


def conv3d_dgrad(
    dy: Any, w: Any, x_shape: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, rounding: str = "floor", precision: str | None = None,
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `conv3d` to its input, dx of shape `x_shape`; see `conv2d_dgrad`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv3d_dgrad(np.ones((1, 3, 3, 3, 3)), np.ones((3, 2, 2, 2, 2)), (1, 2, 4, 4, 4)).sum()
    np.float64(1296.0)
    """
    return dgrad(3, dy, w, x_shape, stride, padding, dilation, groups, layout, weight_layout, rounding, precision,
                 out, backend)  # fmt: skip


# ---------------------------------------------------------------- gradient to the weights


def conv1d_wgrad(
    dy: Any, x: Any, w_shape: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, rounding: str = "floor", precision: str | None = None,
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `conv1d` to its weights, dw of shape `w_shape`; see `conv2d_wgrad`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv1d_wgrad(np.array([[[1.0, 2]]]), np.array([[[1.0, 3, 2, 2]]]), (1, 1, 3))
    array([[[7., 7., 6.]]])
    """
    return wgrad(1, dy, x, w_shape, stride, padding, dilation, groups, layout, weight_layout, rounding, precision,
                 out, backend)  # fmt: skip


def conv2d_wgrad(
    dy: Any, x: Any, w_shape: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, rounding: str = "floor", precision: str | None = None,
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `conv2d` (a cross-correlation) to its weights.

    ``dw[k, c, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, c, p*stride + r*dilation - pad, ...]``

    Parameters
    ----------
    dy : array [N, K, P, Q]
    x : array [N, C, H, W]
    w_shape : ints
        The shape of w as `conv2d` took it, in the same layout.
    stride, padding, dilation, groups, layout, weight_layout, rounding, precision, out, backend
        As the forward call had them.

    Returns
    -------
    dw : array of shape `w_shape`, in the promoted dtype

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `conv2d`; a dy that does not have the output's shape is a ShapeError.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv2d_wgrad(np.ones((1, 1, 2, 2)), np.arange(9.0).reshape(1, 1, 3, 3), (1, 1, 2, 2))
    array([[[[ 8., 12.],
             [20., 24.]]]])
    """
    return wgrad(2, dy, x, w_shape, stride, padding, dilation, groups, layout, weight_layout, rounding, precision,
                 out, backend)  # fmt: skip


def conv3d_wgrad(
    dy: Any, x: Any, w_shape: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    layout: str = "NCHW", weight_layout: str | None = None, rounding: str = "floor", precision: str | None = None,
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `conv3d` to its weights, dw of shape `w_shape`; see `conv2d_wgrad`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv3d_wgrad(np.ones((1, 3, 3, 3, 3)), np.ones((1, 2, 4, 4, 4)), (3, 2, 2, 2, 2))[0, 0, 0, 0]
    array([27., 27.])
    """
    return wgrad(3, dy, x, w_shape, stride, padding, dilation, groups, layout, weight_layout, rounding, precision,
                 out, backend)  # fmt: skip


def bias_grad(dy: Any, *, layout: str = "NCHW", out: Any = None, backend: str | None = None) -> Any:
    """The gradient to the bias: the sum of dy over the batch and all spatial axes.

    Parameters
    ----------
    dy : array [N, K, ...]
        With its batch axis and 1 to 3 spatial axes; a float dtype. ``layout="NHWC"``: [N, ..., K].

    Returns
    -------
    db : array [K]

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.bias_grad(np.ones((2, 3, 4, 4)))
    array([32., 32., 32.])
    """
    operands = dispatch.admit(("dy",), (dy,), backend)
    shape = operands.arrays[0].shape
    if not 3 <= len(shape) <= 5:
        raise ShapeError(f"dy must have a batch, a channel and 1 to 3 spatial axes: got dy{list(shape)}")
    dtype = arrays.pool_dtype(operands.arrays[0].dtype, False)
    problem = adaptive_problem(len(shape) - 2, shape, 1, dtype, layout)
    return dispatch.run("bias_grad", problem, operands, out, backend)


# ---------------------------------------------------------------- transposed


def conv_transpose1d(
    x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1, *, layout: str = "NCHW", weight_layout: str | None = None, activation: str | None = None,
    precision: str | None = None, out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The adjoint of `conv1d`: x[N, C, W] with w[C, K/groups, S]; see `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv_transpose1d(np.array([[[1.0, 2]]]), np.array([[[1.0, 1, 1]]]), stride=2)
    array([[[1., 1., 3., 2., 2.]]])
    """
    return transpose(1, x, w, bias, stride, padding, output_padding, groups, dilation, layout, weight_layout,
                     activation, precision, out, backend)  # fmt: skip


def conv_transpose2d(
    x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1, *, layout: str = "NCHW", weight_layout: str | None = None, activation: str | None = None,
    precision: str | None = None, out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Transposed convolution, the adjoint of `conv2d` (a cross-correlation), with bias and activation.

    Every input pixel adds its filter, scaled, to the output at its stride.

    Parameters
    ----------
    x : array [N, C, H, W] or [C, H, W]
        With ``layout="NHWC"``: [N, H, W, C].
    w : array [C, K/groups, R, S]
        With ``layout="NHWC"``: [R, S, K/groups, C]. `weight_layout` names the axes of the forward
        convolution that this is the adjoint of: O is C, I is K/groups.
    bias : array [K] or [K, 1, 1], optional
    padding : int, ints, (low, high) pairs or a word
        Rows that the forward convolution would have padded, cut from the output here. "same" makes the
        output ``size * stride`` (TensorFlow), "full" cuts all but the fully covered part.
    output_padding : int or one int per axis
        Rows added at the high end; smaller than the stride or the dilation.
    stride, groups, dilation, layout, activation, precision, out, backend
        As `conv2d`.

    Returns
    -------
    y : array [N, K, P, Q]
        ``P = (H - 1)*stride - pad_low - pad_high + dilation*(R - 1) + 1 + output_padding``, Q likewise.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `conv2d`.

    References
    ----------
    Dumoulin, Visin: A guide to convolution arithmetic for deep learning, 2016, chapter 4.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv_transpose2d(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)), stride=2).shape
    (1, 1, 4, 4)
    """
    return transpose(2, x, w, bias, stride, padding, output_padding, groups, dilation, layout, weight_layout,
                     activation, precision, out, backend)  # fmt: skip


def conv_transpose3d(
    x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1, *, layout: str = "NCHW", weight_layout: str | None = None, activation: str | None = None,
    precision: str | None = None, out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The adjoint of `conv3d`: x[N, C, D, H, W] with w[C, K/groups, T, R, S]; see `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv_transpose3d(np.ones((1, 2, 2, 2, 2)), np.ones((2, 3, 2, 2, 2)), stride=2).shape
    (1, 3, 4, 4, 4)
    """
    return transpose(3, x, w, bias, stride, padding, output_padding, groups, dilation, layout, weight_layout,
                     activation, precision, out, backend)  # fmt: skip

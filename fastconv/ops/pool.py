"""Max, average and Lp pooling, global and adaptive pooling, unpooling, and the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv import arrays, dispatch
from fastconv.errors import DTypeError, ShapeError
from fastconv.problem import (
    Ints,
    PoolProblem,
    adaptive_problem,
    as_power,
    as_shape,
    hashable,
    pool_problem,
    split_shape,
    unpool_problem,
)

# ---------------------------------------------------------------- what the public functions share


@dispatch.remembered(2, 3, 9)
def pool(
    op: str, ndim: int, x: Any, ksize: Any, stride: Any, padding: Any, dilation: Any, rounding: Any, layout: Any,
    out: Any, backend: str | None, ints: bool = False, count_include_pad: Any = True, divisor: Any = None, p: Any = 2.0,
) -> Any:  # fmt: skip
    operands = dispatch.admit(("x",), (x,), backend)
    (x,) = operands.arrays
    problem = pool_problem(
        ndim, x.shape, hashable(ksize), hashable(stride), hashable(padding), hashable(dilation), rounding,
        arrays.pool_dtype(x.dtype, ints), layout, count_include_pad, divisor, p,
    )  # fmt: skip
    return dispatch.run(op, problem, operands, out, backend)


@dispatch.remembered(2, 3, 5)
def adaptive(op: str, ndim: int, x: Any, output_size: Any, layout: Any, out: Any, backend: str | None) -> Any:
    operands = dispatch.admit(("x",), (x,), backend)
    (x,) = operands.arrays
    dtype = arrays.pool_dtype(x.dtype, op.startswith("max"))
    problem = adaptive_problem(ndim, x.shape, hashable(output_size), dtype, layout)
    return dispatch.run(op, problem, operands, out, backend)


def max_dgrad(problem: PoolProblem, operands: arrays.Operands, out: Any, backend: str | None) -> Any:
    """`operands` are dy, x and the indices or None; `problem` was built from x's shape."""
    dy, _, indices = operands.arrays
    check_dy(problem, dy.shape)
    if indices is not None:
        check_indices(indices, problem)
    return dispatch.run("maxpool_dgrad", problem, operands, out, backend)


def unpool(
    ndim: int, y: Any, indices: Any, ksize: Any, stride: Any, padding: Any, output_size: Any, layout: Any, out: Any,
    backend: str | None,
) -> Any:  # fmt: skip
    operands = dispatch.admit(("y", "indices"), (y, indices), backend)
    y, indices = operands.arrays
    problem = unpool_problem(
        ndim, y.shape, hashable(ksize), hashable(stride), hashable(padding), hashable(output_size),
        arrays.pool_dtype(y.dtype, True), layout,
    )  # fmt: skip
    check_indices(indices, problem)
    return dispatch.run("maxunpool_fprop", problem, operands, out, backend)


def check_dy(problem: PoolProblem, shape: Ints) -> None:
    if shape != problem.shape("y"):
        raise ShapeError(
            f"dy must have the output's shape {list(problem.shape('y'))}: got dy{list(shape)} "
            f"for x{list(problem.shape('x'))}"
        )


def check_indices(indices: Any, problem: PoolProblem) -> None:
    if indices is None or indices.dtype.kind not in "iu":
        got = getattr(indices, "dtype", None)
        raise DTypeError(f"indices must be integers, as return_indices=True gives them: got {got}")
    if indices.shape != problem.shape("y"):
        raise ShapeError(f"indices must have the shape {list(problem.shape('y'))}: got indices{list(indices.shape)}")


def spatial_rank(x: Any) -> int:
    rank = getattr(x, "ndim", 0) - 2
    if not 1 <= rank <= 3:
        raise ShapeError(
            f"global pooling needs a batch, a channel and 1 to 3 spatial axes: got x{list(getattr(x, 'shape', ()))}"
        )
    return rank


# ---------------------------------------------------------------- max


def max_pool1d(
    x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    return_indices: bool = False, layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The maximum of every window of x[N, C, W]; see `max_pool2d` for every argument.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_pool1d(np.arange(4.0).reshape(1, 1, 4), 2).reshape(-1)
    array([1., 3.])
    """
    op = "maxpool_indices" if return_indices else "maxpool_fprop"
    return pool(op, 1, x, ksize, stride, padding, dilation, rounding, layout, out, backend, ints=True)


def max_pool2d(
    x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    return_indices: bool = False, layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The maximum of every window of x[N, C, H, W].

    Parameters
    ----------
    x : array [N, C, H, W] or [C, H, W]
        With ``layout="NHWC"``: [N, H, W, C]. Any float or integer dtype, any strides; never written to.
    ksize, dilation : int or one int per spatial axis
    stride : int or one int per spatial axis, optional
        `ksize` where left out.
    padding : int, one int per axis, one (low, high) pair per axis, or a word
        With minus infinity (an integer's minimum). An int is at most half of `ksize`, a pair or a word
        ("valid", "same", "same_lower", "full") at most the window's extent minus one.
    rounding : "floor", "ceil" or "exact"
        Where the windows do not tile the padded input: drop the rest; add a last partial window, unless it
        would start in the high padding; or raise.
    return_indices : bool
        Also return, as int64, the flat offset of each maximum in the unpadded spatial extent: the first of
        equal ones in row-major order, a NaN being larger than any number; -1 for a window over no cell.
    out : array, optional
        Of y's exact shape and dtype; filled and returned.
    backend : str, optional

    Returns
    -------
    y : array [N, C, P, Q], or (y, indices)

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2, return_indices=True)
    (array([[[[ 5.,  7.],
             [13., 15.]]]]), array([[[[ 5,  7],
             [13, 15]]]]))
    """
    op = "maxpool_indices" if return_indices else "maxpool_fprop"
    return pool(op, 2, x, ksize, stride, padding, dilation, rounding, layout, out, backend, ints=True)


def max_pool3d(
    x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    return_indices: bool = False, layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The maximum of every window of x[N, C, D, H, W]; see `max_pool2d` for every argument.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_pool3d(np.arange(64.0).reshape(1, 1, 4, 4, 4), 2).reshape(-1)
    array([21., 23., 29., 31., 53., 55., 61., 63.])
    """
    op = "maxpool_indices" if return_indices else "maxpool_fprop"
    return pool(op, 3, x, ksize, stride, padding, dilation, rounding, layout, out, backend, ints=True)


def max_pool1d_dgrad(
    dy: Any, x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    indices: Any = None, layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `max_pool1d` to its input; see `max_pool2d_dgrad`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(4.0).reshape((1, 1, 4))
    >>> fastconv.max_pool1d_dgrad(np.ones((1, 1, 2)), x, 2).reshape(-1)
    array([0., 1., 0., 1.])
    """
    operands = dispatch.admit(("dy", "x", "indices"), (dy, x, indices), backend)
    dy, x, _ = operands.arrays
    arrays.pool_dtype(x.dtype, True)
    problem = pool_problem(
        1, x.shape, hashable(ksize), hashable(stride), hashable(padding), hashable(dilation), rounding,
        arrays.pool_dtype(dy.dtype, True), layout,
    )  # fmt: skip
    return max_dgrad(problem, operands, out, backend)


def max_pool2d_dgrad(
    dy: Any, x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    indices: Any = None, layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `max_pool2d` to its input: each dy goes to the first maximum of its window.

    Parameters
    ----------
    dy : array [N, C, P, Q]
    x : array [N, C, H, W]
        What `max_pool2d` took; overlapping windows sum their gradients.
    indices : array of integers [N, C, P, Q], optional
        From ``return_indices=True``: saves finding the maxima again.
    ksize, stride, padding, dilation, rounding, layout, out, backend
        As the forward call had them.

    Returns
    -------
    dx : array of x's shape, in dy's dtype

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `max_pool2d`; an index that does not lie in its window is a ShapeError.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> fastconv.max_pool2d_dgrad(np.ones((1, 1, 2, 2)), x, 2)[0, 0, 1]
    array([0., 1., 0., 1.])
    """
    operands = dispatch.admit(("dy", "x", "indices"), (dy, x, indices), backend)
    dy, x, _ = operands.arrays
    arrays.pool_dtype(x.dtype, True)
    problem = pool_problem(
        2, x.shape, hashable(ksize), hashable(stride), hashable(padding), hashable(dilation), rounding,
        arrays.pool_dtype(dy.dtype, True), layout,
    )  # fmt: skip
    return max_dgrad(problem, operands, out, backend)


def max_pool3d_dgrad(
    dy: Any, x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    indices: Any = None, layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `max_pool3d` to its input; see `max_pool2d_dgrad`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16.0).reshape((1, 2, 2, 2, 2))
    >>> fastconv.max_pool3d_dgrad(np.ones((1, 2, 1, 1, 1)), x, 2).reshape(-1)
    array([0., 0., 0., 0., 0., 0., 0., 1., 0., 0., 0., 0., 0., 0., 0., 1.])
    """
    operands = dispatch.admit(("dy", "x", "indices"), (dy, x, indices), backend)
    dy, x, _ = operands.arrays
    arrays.pool_dtype(x.dtype, True)
    problem = pool_problem(
        3, x.shape, hashable(ksize), hashable(stride), hashable(padding), hashable(dilation), rounding,
        arrays.pool_dtype(dy.dtype, True), layout,
    )  # fmt: skip
    return max_dgrad(problem, operands, out, backend)


# ---------------------------------------------------------------- average


def avg_pool1d(
    x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    count_include_pad: bool = True, divisor: int | None = None, layout: str = "NCHW", out: Any = None,
    backend: str | None = None,
) -> Any:  # fmt: skip
    """The average of every window of x[N, C, W]; see `avg_pool2d` for every argument.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool1d(np.arange(4.0).reshape(1, 1, 4), 2).reshape(-1)
    array([0.5, 2.5])
    """
    return pool("avgpool_fprop", 1, x, ksize, stride, padding, dilation, rounding, layout, out, backend,
                count_include_pad=count_include_pad, divisor=divisor)  # fmt: skip


def avg_pool2d(
    x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    count_include_pad: bool = True, divisor: int | None = None, layout: str = "NCHW", out: Any = None,
    backend: str | None = None,
) -> Any:  # fmt: skip
    """The average of every window of x[N, C, H, W].

    Parameters
    ----------
    x, ksize, stride, padding, dilation, rounding, layout, out, backend
        As `max_pool2d`; floats only, and padding is with zeros.
    count_include_pad : bool
        Whether padded cells count in the divisor (what a "ceil" window has beyond the padding never does).
    divisor : int, optional
        Divides every window's sum in place of the count; not 0.

    Returns
    -------
    y : array [N, C, P, Q]
        An average over no cell is 0.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool2d(np.ones((1, 1, 4, 4)), 3, 2, 1, count_include_pad=True)
    array([[[[0.44444444, 0.66666667],
             [0.66666667, 1.        ]]]])
    """
    return pool("avgpool_fprop", 2, x, ksize, stride, padding, dilation, rounding, layout, out, backend,
                count_include_pad=count_include_pad, divisor=divisor)  # fmt: skip


def avg_pool3d(
    x: Any, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    count_include_pad: bool = True, divisor: int | None = None, layout: str = "NCHW", out: Any = None,
    backend: str | None = None,
) -> Any:  # fmt: skip
    """The average of every window of x[N, C, D, H, W]; see `avg_pool2d` for every argument.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool3d(np.arange(64.0).reshape(1, 1, 4, 4, 4), 2).reshape(-1)
    array([10.5, 12.5, 18.5, 20.5, 42.5, 44.5, 50.5, 52.5])
    """
    return pool("avgpool_fprop", 3, x, ksize, stride, padding, dilation, rounding, layout, out, backend,
                count_include_pad=count_include_pad, divisor=divisor)  # fmt: skip


def avg_pool1d_dgrad(
    dy: Any, x_shape: Sequence[int], ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *,
    rounding: str = "floor", count_include_pad: bool = True, divisor: int | None = None, layout: str = "NCHW",
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `avg_pool1d` to its input, dx of shape `x_shape`; see `avg_pool2d_dgrad`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool1d_dgrad(np.ones((1, 1, 2)), (1, 1, 4), 2).sum()
    np.float64(2.0)
    """
    operands = dispatch.admit(("dy",), (dy,), backend)
    (dy,) = operands.arrays
    problem = pool_problem(
        1, as_shape("x_shape", x_shape), hashable(ksize), hashable(stride), hashable(padding), hashable(dilation),
        rounding, arrays.pool_dtype(dy.dtype, False), layout, count_include_pad, divisor,
    )  # fmt: skip
    check_dy(problem, dy.shape)
    return dispatch.run("avgpool_dgrad", problem, operands, out, backend)


def avg_pool2d_dgrad(
    dy: Any, x_shape: Sequence[int], ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *,
    rounding: str = "floor", count_include_pad: bool = True, divisor: int | None = None, layout: str = "NCHW",
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `avg_pool2d` to its input: each dy spreads evenly over the cells of its window.

    Parameters
    ----------
    dy : array [N, C, P, Q]
    x_shape : ints
        The shape of x as `avg_pool2d` took it.
    ksize, stride, padding, dilation, rounding, count_include_pad, divisor, layout, out, backend
        As the forward call had them.

    Returns
    -------
    dx : array of shape `x_shape`

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool2d_dgrad(np.ones((1, 1, 1, 1)), (1, 1, 2, 2), 2)
    array([[[[0.25, 0.25],
             [0.25, 0.25]]]])
    """
    operands = dispatch.admit(("dy",), (dy,), backend)
    (dy,) = operands.arrays
    problem = pool_problem(
        2, as_shape("x_shape", x_shape), hashable(ksize), hashable(stride), hashable(padding), hashable(dilation),
        rounding, arrays.pool_dtype(dy.dtype, False), layout, count_include_pad, divisor,
    )  # fmt: skip
    check_dy(problem, dy.shape)
    return dispatch.run("avgpool_dgrad", problem, operands, out, backend)


def avg_pool3d_dgrad(
    dy: Any, x_shape: Sequence[int], ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *,
    rounding: str = "floor", count_include_pad: bool = True, divisor: int | None = None, layout: str = "NCHW",
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The gradient of `avg_pool3d` to its input, dx of shape `x_shape`; see `avg_pool2d_dgrad`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool3d_dgrad(np.ones((1, 1, 2, 2, 2)), (1, 1, 4, 4, 4), 2).sum()
    np.float64(8.0)
    """
    operands = dispatch.admit(("dy",), (dy,), backend)
    (dy,) = operands.arrays
    problem = pool_problem(
        3, as_shape("x_shape", x_shape), hashable(ksize), hashable(stride), hashable(padding), hashable(dilation),
        rounding, arrays.pool_dtype(dy.dtype, False), layout, count_include_pad, divisor,
    )  # fmt: skip
    check_dy(problem, dy.shape)
    return dispatch.run("avgpool_dgrad", problem, operands, out, backend)


# ---------------------------------------------------------------- Lp


def lp_pool1d(
    x: Any, p: float, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The Lp norm of every window of x[N, C, W]; see `lp_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.lp_pool1d(np.ones((1, 1, 4)), 1, 2).reshape(-1)[0]
    np.float64(2.0)
    """
    return pool("lppool_fprop", 1, x, ksize, stride, padding, dilation, rounding, layout, out, backend, p=as_power(p))


def lp_pool2d(
    x: Any, p: float, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The Lp norm ``(sum |x|^p)^(1/p)`` of every window of x[N, C, H, W], as ONNX's LpPool.

    Parameters
    ----------
    p : float
        Finite and above 0. Cells are scaled by the largest of their window, so that no power overflows.
    x, ksize, stride, padding, dilation, rounding, layout, out, backend
        As `max_pool2d`; floats only, and padded cells add nothing.

    Returns
    -------
    y : array [N, C, P, Q]

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.lp_pool2d(np.array([[[[3.0, 0], [0, 4]]]]), 2, 2)
    array([[[[5.]]]])
    """
    return pool("lppool_fprop", 2, x, ksize, stride, padding, dilation, rounding, layout, out, backend, p=as_power(p))


def lp_pool3d(
    x: Any, p: float, ksize: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, rounding: str = "floor",
    layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """The Lp norm of every window of x[N, C, D, H, W]; see `lp_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.lp_pool3d(np.ones((1, 1, 4, 4, 4)), 1, 2).reshape(-1)[0]
    np.float64(8.0)
    """
    return pool("lppool_fprop", 3, x, ksize, stride, padding, dilation, rounding, layout, out, backend, p=as_power(p))


# ---------------------------------------------------------------- global and adaptive


def global_max_pool(x: Any, *, layout: str = "NCHW", out: Any = None, backend: str | None = None) -> Any:
    """The maximum over all spatial axes of x[N, C, ...]; the extents become 1.

    Takes 1 to 3 spatial axes, with their batch axis; any float or integer dtype. Errors as `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.global_max_pool(np.arange(8.0).reshape(1, 2, 2, 2)).shape
    (1, 2, 1, 1)
    """
    return adaptive("maxpool_fprop", spatial_rank(x), x, 1, layout, out, backend)


def global_avg_pool(x: Any, *, layout: str = "NCHW", out: Any = None, backend: str | None = None) -> Any:
    """The average over all spatial axes of x[N, C, ...]; the extents become 1.

    Takes 1 to 3 spatial axes, with their batch axis; floats. Errors as `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.global_avg_pool(np.arange(8.0).reshape(1, 2, 2, 2)).reshape(-1)
    array([1.5, 5.5])
    """
    return adaptive("avgpool_fprop", spatial_rank(x), x, 1, layout, out, backend)


def global_lp_pool(x: Any, p: float = 2, *, layout: str = "NCHW", out: Any = None, backend: str | None = None) -> Any:
    """The Lp norm over all spatial axes of x[N, C, ...]; the extents become 1.

    Takes 1 to 3 spatial axes, with their batch axis; floats. Errors as `lp_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.global_lp_pool(np.array([[[[3.0, 4.0]]]]))
    array([[[[5.]]]])
    """
    ndim = spatial_rank(x)
    _, _, _, size = split_shape("x", tuple(x.shape), ndim, layout if layout == "NHWC" else "NCHW")
    return pool("lppool_fprop", ndim, x, size, 1, 0, 1, "floor", layout, out, backend, p=as_power(p))


def adaptive_max_pool1d(
    x: Any, output_size: Any, *, return_indices: bool = False, layout: str = "NCHW", out: Any = None,
    backend: str | None = None,
) -> Any:  # fmt: skip
    """Max pooling of x[N, C, W] to a fixed output size; see `adaptive_max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_max_pool1d(np.arange(5.0).reshape(1, 1, 5), 2).reshape(-1)[-1]
    np.float64(4.0)
    """
    op = "maxpool_indices" if return_indices else "maxpool_fprop"
    return adaptive(op, 1, x, output_size, layout, out, backend)


def adaptive_max_pool2d(
    x: Any, output_size: Any, *, return_indices: bool = False, layout: str = "NCHW", out: Any = None,
    backend: str | None = None,
) -> Any:  # fmt: skip
    """Max pooling of x[N, C, H, W] to a fixed output size.

    Along an axis of n cells, output i of m covers cells ``floor(i*n/m)`` to ``ceil((i+1)*n/m)``, as PyTorch.

    Parameters
    ----------
    output_size : int or one per spatial axis
        None in it keeps that axis's extent.
    x, return_indices, layout, out, backend
        As `max_pool2d`.

    Returns
    -------
    y : array [N, C, P, Q], or (y, indices)

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_max_pool2d(np.arange(9.0).reshape(1, 1, 3, 3), (1, None))
    array([[[[6., 7., 8.]]]])
    """
    op = "maxpool_indices" if return_indices else "maxpool_fprop"
    return adaptive(op, 2, x, output_size, layout, out, backend)


def adaptive_max_pool3d(
    x: Any, output_size: Any, *, return_indices: bool = False, layout: str = "NCHW", out: Any = None,
    backend: str | None = None,
) -> Any:  # fmt: skip
    """Max pooling of x[N, C, D, H, W] to a fixed output size; see `adaptive_max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_max_pool3d(np.arange(125.0).reshape(1, 1, 5, 5, 5), 2).reshape(-1)[-1]
    np.float64(124.0)
    """
    op = "maxpool_indices" if return_indices else "maxpool_fprop"
    return adaptive(op, 3, x, output_size, layout, out, backend)


def adaptive_avg_pool1d(
    x: Any, output_size: Any, *, layout: str = "NCHW", out: Any = None, backend: str | None = None
) -> Any:  # fmt: skip
    """Average pooling of x[N, C, W] to a fixed output size; the bins are `adaptive_max_pool2d`'s.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_avg_pool1d(np.ones((1, 1, 5)), 2).shape
    (1, 1, 2)
    """
    return adaptive("avgpool_fprop", 1, x, output_size, layout, out, backend)


def adaptive_avg_pool2d(
    x: Any, output_size: Any, *, layout: str = "NCHW", out: Any = None, backend: str | None = None
) -> Any:  # fmt: skip
    """Average pooling of x[N, C, H, W] to a fixed output size; the bins are `adaptive_max_pool2d`'s.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_avg_pool2d(np.ones((1, 1, 5, 5)), 2).shape
    (1, 1, 2, 2)
    """
    return adaptive("avgpool_fprop", 2, x, output_size, layout, out, backend)


def adaptive_avg_pool3d(
    x: Any, output_size: Any, *, layout: str = "NCHW", out: Any = None, backend: str | None = None
) -> Any:  # fmt: skip
    """Average pooling of x[N, C, D, H, W] to a fixed output size; the bins are `adaptive_max_pool2d`'s.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.adaptive_avg_pool3d(np.ones((1, 1, 5, 5, 5)), 2).shape
    (1, 1, 2, 2, 2)
    """
    return adaptive("avgpool_fprop", 3, x, output_size, layout, out, backend)


# ---------------------------------------------------------------- unpooling


def max_unpool1d(
    y: Any, indices: Any, ksize: Any, stride: Any = None, padding: Any = 0, output_size: Any = None, *,
    layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Put the maxima of a 1-D max pooling back at their indices; see `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_unpool1d(np.array([[[5.0, 7.0]]]), np.array([[[1, 2]]]), 2)
    array([[[0., 5., 7., 0.]]])
    """
    return unpool(1, y, indices, ksize, stride, padding, output_size, layout, out, backend)


def max_unpool2d(
    y: Any, indices: Any, ksize: Any, stride: Any = None, padding: Any = 0, output_size: Any = None, *,
    layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Put the maxima of a max pooling back at their indices, zeros elsewhere.

    Parameters
    ----------
    y : array [N, C, P, Q]
        Floats or integers.
    indices : array of integers [N, C, P, Q]
        Flat offsets into the output's spatial extent, as ``return_indices=True`` gives them. Where several
        meet, the last in row-major order stays.
    ksize, stride, padding
        Of the pooling; they give the output's extents, ``(P - 1)*stride - pad_low - pad_high + ksize``.
    output_size : ints, optional
        The output's spatial extents, or its whole shape, where the pooling had dropped some rows.
    layout, out, backend
        As `max_pool2d`.

    Returns
    -------
    x : array [N, C, H, W]

    Raises
    ------
    ShapeError
        Also for an index outside of the output's extent.
    DTypeError, BackendError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_unpool2d(np.array([[[[9.0]]]]), np.array([[[[2]]]]), 2)
    array([[[[0., 0.],
             [9., 0.]]]])
    """
    return unpool(2, y, indices, ksize, stride, padding, output_size, layout, out, backend)


def max_unpool3d(
    y: Any, indices: Any, ksize: Any, stride: Any = None, padding: Any = 0, output_size: Any = None, *,
    layout: str = "NCHW", out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Put the maxima of a 3-D max pooling back at their indices; see `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_unpool3d(np.ones((1, 1, 1, 1, 1)), np.full((1, 1, 1, 1, 1), 7), 2).reshape(-1)
    array([0., 0., 0., 0., 0., 0., 0., 1.])
    """
    return unpool(3, y, indices, ksize, stride, padding, output_size, layout, out, backend)

"""Each op with its gradients: ``op_vjp(...) -> (y, pullback)``, and ``pullback(dy)`` gives the gradients.

A vjp takes the arguments of its op. It keeps the inputs themselves, not copies: leave them unchanged
until the pullback has run. Of a max pooling it keeps where the maxima are instead, and of a fused
activation what the derivative is read from: the output, or for GELU and SiLU the input. The pullback
takes dy in the output's kind and shape and gives each gradient in the dtype and shape of what it
belongs to; it may be called more than once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import arrays, dispatch
from fastconv.dispatch import Inquiry, Request
from fastconv.errors import DTypeError, ShapeError
from fastconv.ops import conv, pool, signal
from fastconv.ops.activation import FROM_INPUT, activate, activation_grad
from fastconv.problem import PoolProblem, SignalProblem

Pullback = Callable[[Any], Any]


def _vjp_of(forward: Callable[..., Any], build: Callable[..., Any], gives: str, example: str) -> Callable[..., Any]:
    """The public vjp of a public function: same arguments, problem built by that function."""
    name = f"{forward.__name__}_vjp"

    def vjp(*args: Any, out: Any = None, backend: str | None = None, **kwargs: Any) -> tuple[Any, Pullback]:
        request = forward(*args, backend=Inquiry(backend), **kwargs)
        return build(request, out, backend)

    vjp.__name__ = vjp.__qualname__ = name
    vjp.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    vjp.__doc__ = f"""`{forward.__name__}` and its pullback; takes the same arguments and raises the same errors.

    Returns
    -------
    y : what `{forward.__name__}` returns
    pullback : callable
        ``pullback(dy)`` is {gives}, for a dy of y's shape. The inputs must not change before.

    Examples
    --------
    >>> import numpy as np, fastconv
{example}
    """
    return vjp


def _forward(request: Request, out: Any, backend: str | None) -> Any:
    return dispatch.run(request.op, request.problem, request.operands, out, backend)


def _plain(request: Request, *operands: Any) -> arrays.Operands:
    """Operands of a step inside a vjp: views already."""
    return arrays.Operands(operands, request.operands.kind, None)


def _take_dy(request: Request, dy: Any, shape: tuple[int, ...], dtype: np.dtype, backend: str | None) -> Any:
    """dy as a view of the forward's kind, of y's shape, in y's dtype."""
    wrap = request.operands.wrap
    admitted = dispatch.admit(("dy",), (dy,), backend)
    (view,) = admitted.arrays
    if admitted.kind != request.operands.kind or (admitted.wrap is None) != (wrap is None):
        raise DTypeError(
            f"dy must be of the forward's kind of array: got {type(dy).__module__}.{type(dy).__qualname__}"
        )
    if view.shape != shape:
        raise ShapeError(f"dy must have the output's shape {list(shape)}: got dy{list(view.shape)}")
    if view.dtype == dtype:
        return view
    name = arrays.name_of(view.dtype)
    if name not in arrays.FLOATS and not (name in arrays.INTS and dtype.kind in "iu") and dtype.kind not in "c":
        raise DTypeError(f"dy must be of the output's dtype {dtype}: got {view.dtype}")
    return view.astype(dtype)


def _give(request: Request, gradient: Any) -> Any:
    wrap = request.operands.wrap
    return gradient if wrap is None or gradient is None else wrap(gradient)


# ---------------------------------------------------------------- convolution


def _conv_vjp(request: Request, out: Any, backend: str | None) -> tuple[Any, Pullback]:
    """Of a convolution, or of a transposed one: the two swap fprop and dgrad."""
    problem = request.problem
    x, w, bias = request.operands.arrays
    if problem.dtype not in arrays.FLOATS:
        raise DTypeError(f"a gradient needs float inputs: got x of {x.dtype}, w of {w.dtype}")
    bare = replace(problem, bias=None, activation=None)
    transposed = request.op == "conv_dgrad"
    dtype = arrays.dtype_of(problem.dtype)
    shape = problem.shape("x" if transposed else "y")
    y, saved = _activated_forward(request, out, backend)

    def pullback(dy: Any) -> tuple[Any, Any, Any]:
        grad = _take_dy(request, dy, shape, dtype, backend)
        if problem.activation is not None:
            grad = activation_grad(problem.activation, grad, saved, request.operands.kind, backend)
        to_x = "conv_fprop" if transposed else "conv_dgrad"
        pair = (x, grad) if transposed else (grad, x)
        dx = dispatch.run(to_x, bare, _plain(request, grad, w, None), None, backend)
        dw = dispatch.run("conv_wgrad", bare, _plain(request, *pair), None, backend)
        db = None if bias is None else _bias_grad(request, grad, bias, backend)
        gradients = dx.astype(x.dtype, copy=False), dw.astype(w.dtype, copy=False), db
        return tuple(_give(request, gradient) for gradient in gradients)

    return y, pullback


def _activated_forward(request: Request, out: Any, backend: str | None) -> tuple[Any, Any]:
    """(y as the user gets it, what the activation's derivative is read from)."""
    problem = request.problem
    if problem.activation in FROM_INPUT:
        bare = replace(problem, activation=None)
        saved = dispatch.run(request.op, bare, _plain(request, *request.operands.arrays), None, backend)
        return activate(problem.activation, saved, request.operands, out, backend), saved
    y = _forward(request, out, backend)
    return y, arrays.as_view(y, request.operands.kind)


def _bias_grad(request: Request, grad: Any, bias: Any, backend: str | None) -> Any:
    batched = grad if request.problem.batched else grad[None]
    db = conv.bias_grad(batched, layout=request.problem.layout, backend=backend)
    return db.astype(bias.dtype, copy=False).reshape(bias.shape)


# ---------------------------------------------------------------- pooling


def _max_vjp(request: Request, out: Any, backend: str | None) -> tuple[Any, Pullback]:
    """Keeps where the maxima are: the indices where the caller asked for them, else a byte per output."""
    problem, (x,) = request.problem, request.operands.arrays
    dtype, kind = x.dtype, request.operands.kind
    if request.op == "maxpool_indices":
        result = _forward(request, out, backend)
        op, kept = "maxpool_dgrad", [x, arrays.as_view(result[1], kind)]
    else:
        result, places = dispatch.run("maxpool_places", problem, request.operands, out, backend)
        op, kept = "maxpool_places_dgrad", [places]
        request = replace(request, operands=arrays.Operands((), kind, request.operands.wrap), sources=())  # lets x go

    def pullback(dy: Any) -> Any:
        grad = _take_dy(request, dy, problem.shape("y"), dtype, backend)
        return _give(request, dispatch.run(op, problem, _plain(request, grad, *kept), None, backend))

    return result, pullback


def _avg_vjp(request: Request, out: Any, backend: str | None) -> tuple[Any, Pullback]:
    problem, (x,) = request.problem, request.operands.arrays
    y = _forward(request, out, backend)

    def pullback(dy: Any) -> Any:
        grad = _take_dy(request, dy, problem.shape("y"), x.dtype, backend)
        return _give(request, dispatch.run("avgpool_dgrad", problem, _plain(request, grad), None, backend))

    return y, pullback


def _lp_vjp(request: Request, out: Any, backend: str | None) -> tuple[Any, Pullback]:
    problem, (x,) = request.problem, request.operands.arrays
    y = _forward(request, out, backend)

    def pullback(dy: Any) -> Any:
        grad = _take_dy(request, dy, problem.shape("y"), x.dtype, backend)
        return _give(request, dispatch.run("lppool_dgrad", problem, _plain(request, grad, x), None, backend))

    return y, pullback


def _unpool_vjp(request: Request, out: Any, backend: str | None) -> tuple[Any, Pullback]:
    """The exact adjoint: of several values put in one place, only the one that stayed has a gradient."""
    problem: PoolProblem = request.problem
    y, indices = request.operands.arrays
    x = _forward(request, out, backend)

    def pullback(dx: Any) -> Any:
        grad = _take_dy(request, dx, problem.shape("x"), y.dtype, backend)
        return _give(request, dispatch.run("maxunpool_dgrad", problem, _plain(request, grad, indices), None, backend))

    return x, pullback


# ---------------------------------------------------------------- signals


def correlate_vjp(
    in1: Any, in2: Any, mode: str = "full", *, method: str = "auto", out: Any = None, backend: str | None = None
) -> tuple[Any, Pullback]:
    """`correlate` and its pullback, for float and complex inputs.

    For complex arrays a gradient is the adjoint's, ``Re <dy, dY> = Re <d1, dX1> + Re <d2, dX2>``, as PyTorch's.

    Returns
    -------
    y : what `correlate` returns
    pullback : callable
        ``pullback(dy)`` is (d1, d2), of the shapes and dtypes of in1 and in2.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `correlate`; integers have no gradient, which is a DTypeError.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> y, pullback = fastconv.correlate_vjp(np.array([1.0, 2, 3]), np.array([1.0, -1]), "valid")
    >>> y, pullback(np.array([1.0, 10]))
    (array([-1., -1.]), (array([  1.,   9., -10.]), array([21., 32.])))
    """
    return _signal_vjp(signal.correlate, in1, in2, mode, method, out, backend)


def convolve_vjp(
    in1: Any, in2: Any, mode: str = "full", *, method: str = "auto", out: Any = None, backend: str | None = None
) -> tuple[Any, Pullback]:
    """`convolve` and its pullback; see `correlate_vjp`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> y, pullback = fastconv.convolve_vjp(np.array([1.0, 2, 3]), np.array([1.0, -1]), "valid")
    >>> y, pullback(np.array([1.0, 10]))
    (array([1., 1.]), (array([-1., -9., 10.]), array([32., 21.])))
    """
    return _signal_vjp(signal.convolve, in1, in2, mode, method, out, backend)


def _signal_vjp(
    forward: Callable[..., Any], in1: Any, in2: Any, mode: str, method: str, out: Any, backend: str | None
) -> tuple[Any, Pullback]:
    request = forward(in1, in2, mode, method, backend=Inquiry(backend))
    problem: SignalProblem = request.problem
    a, b = signal.admit(in1, in2, backend).arrays
    if any(arrays.name_of(operand.dtype) not in (*arrays.FLOATS, *arrays.COMPLEX) for operand in (a, b)):
        raise DTypeError(f"a gradient needs float or complex inputs: got {a.dtype} and {b.dtype}")
    y = forward(in1, in2, mode, method, out=out, backend=backend)

    def pullback(dy: Any) -> tuple[Any, Any]:
        grad = _take_dy(request, signal.as_operand("dy", dy), problem.out, arrays.dtype_of(problem.dtype), backend)
        full = arrays.module_of(grad).zeros(problem.full, grad.dtype)
        full[tuple(slice(s, s + n) for s, n in zip(problem.start, problem.out, strict=True))] = grad
        if problem.flip:  # full[j] = sum of a[j - i] * b[i]
            d1 = signal.correlate(full, b, "valid", method, backend=backend)
            d2 = signal.correlate(full, a, "valid", method, backend=backend)
        else:  # full[j] = sum of a[j - (n2 - 1) + i] * conj(b[i])
            d1 = signal.convolve(full, b, "valid", method, backend=backend)
            d2 = signal.correlate(a, full, "valid", method, backend=backend)
        return _give(request, _as(d1, a)), _give(request, _as(d2, b))

    return y, pullback


def _as(gradient: np.ndarray, primal: np.ndarray) -> np.ndarray:
    """A gradient in its primal's dtype; the imaginary part of a real one's is nobody's."""
    if primal.dtype.kind != "c" and gradient.dtype.kind == "c":
        gradient = gradient.real
    return gradient.astype(primal.dtype, copy=False)


# ---------------------------------------------------------------- the public names

_CONV = "``(dx, dw, dbias)``, dbias being None where there is no bias"
_ONES = {1: "1, 1, 4", 2: "1, 1, 4, 4", 3: "1, 1, 4, 4, 4"}
_KSIZE = {1: "1, 1, 2", 2: "1, 1, 2, 2", 3: "1, 1, 2, 2, 2"}


def _example(name: str, ndim: int, arguments: str, shows: str, result: str) -> str:
    return (
        f"    >>> y, pullback = fastconv.{name}_vjp(np.ones(({_ONES[ndim]})), {arguments})\n"
        f"    >>> {shows}\n    {result}"
    )


def _conv_example(name: str, ndim: int) -> str:
    total = f"np.float64({2.0**ndim * (3.0 if 'transpose' not in name else 4.0) ** ndim})"
    return _example(name, ndim, f"np.ones(({_KSIZE[ndim]}))", "pullback(np.ones(y.shape))[0].sum()", total)


def _pool_example(name: str, ndim: int, arguments: str, total: int) -> str:
    shows = "pullback(np.ones(y.shape)).sum()"
    return _example(name, ndim, arguments, shows, f"np.float64({float(total)})")


conv1d_vjp = _vjp_of(conv.conv1d, _conv_vjp, _CONV, _conv_example("conv1d", 1))
conv2d_vjp = _vjp_of(conv.conv2d, _conv_vjp, _CONV, _conv_example("conv2d", 2))
conv3d_vjp = _vjp_of(conv.conv3d, _conv_vjp, _CONV, _conv_example("conv3d", 3))
conv_transpose1d_vjp = _vjp_of(conv.conv_transpose1d, _conv_vjp, _CONV, _conv_example("conv_transpose1d", 1))
conv_transpose2d_vjp = _vjp_of(conv.conv_transpose2d, _conv_vjp, _CONV, _conv_example("conv_transpose2d", 2))
conv_transpose3d_vjp = _vjp_of(conv.conv_transpose3d, _conv_vjp, _CONV, _conv_example("conv_transpose3d", 3))
max_pool1d_vjp = _vjp_of(pool.max_pool1d, _max_vjp, "dx", _pool_example("max_pool1d", 1, "2", 2))
max_pool2d_vjp = _vjp_of(pool.max_pool2d, _max_vjp, "dx", _pool_example("max_pool2d", 2, "2", 4))
max_pool3d_vjp = _vjp_of(pool.max_pool3d, _max_vjp, "dx", _pool_example("max_pool3d", 3, "2", 8))
avg_pool1d_vjp = _vjp_of(pool.avg_pool1d, _avg_vjp, "dx", _pool_example("avg_pool1d", 1, "2", 2))
avg_pool2d_vjp = _vjp_of(pool.avg_pool2d, _avg_vjp, "dx", _pool_example("avg_pool2d", 2, "2", 4))
avg_pool3d_vjp = _vjp_of(pool.avg_pool3d, _avg_vjp, "dx", _pool_example("avg_pool3d", 3, "2", 8))
lp_pool1d_vjp = _vjp_of(pool.lp_pool1d, _lp_vjp, "dx", _pool_example("lp_pool1d", 1, "1, 2", 4))
lp_pool2d_vjp = _vjp_of(pool.lp_pool2d, _lp_vjp, "dx", _pool_example("lp_pool2d", 2, "1, 2", 16))
lp_pool3d_vjp = _vjp_of(pool.lp_pool3d, _lp_vjp, "dx", _pool_example("lp_pool3d", 3, "1, 2", 64))
adaptive_max_pool1d_vjp = _vjp_of(
    pool.adaptive_max_pool1d, _max_vjp, "dx", _pool_example("adaptive_max_pool1d", 1, "2", 2)
)
adaptive_max_pool2d_vjp = _vjp_of(
    pool.adaptive_max_pool2d, _max_vjp, "dx", _pool_example("adaptive_max_pool2d", 2, "2", 4)
)
adaptive_max_pool3d_vjp = _vjp_of(
    pool.adaptive_max_pool3d, _max_vjp, "dx", _pool_example("adaptive_max_pool3d", 3, "2", 8)
)
adaptive_avg_pool1d_vjp = _vjp_of(
    pool.adaptive_avg_pool1d, _avg_vjp, "dx", _pool_example("adaptive_avg_pool1d", 1, "2", 2)
)
adaptive_avg_pool2d_vjp = _vjp_of(
    pool.adaptive_avg_pool2d, _avg_vjp, "dx", _pool_example("adaptive_avg_pool2d", 2, "2", 4)
)
adaptive_avg_pool3d_vjp = _vjp_of(
    pool.adaptive_avg_pool3d, _avg_vjp, "dx", _pool_example("adaptive_avg_pool3d", 3, "2", 8)
)
max_unpool1d_vjp = _vjp_of(
    pool.max_unpool1d, _unpool_vjp, "the gradient to its values",
    "    >>> x, pullback = fastconv.max_unpool1d_vjp(np.ones((1, 1, 1)), np.array([[[1]]]), 2)\n"
    "    >>> pullback(np.full(x.shape, 5.0)).reshape(-1)\n    array([5.])",
)  # fmt: skip
max_unpool2d_vjp = _vjp_of(
    pool.max_unpool2d, _unpool_vjp, "the gradient to its values",
    "    >>> x, pullback = fastconv.max_unpool2d_vjp(np.ones((1, 1, 1, 1)), np.array([[[[3]]]]), 2)\n"
    "    >>> pullback(np.full(x.shape, 5.0)).reshape(-1)\n    array([5.])",
)  # fmt: skip
max_unpool3d_vjp = _vjp_of(
    pool.max_unpool3d, _unpool_vjp, "the gradient to its values",
    "    >>> x, pullback = fastconv.max_unpool3d_vjp(np.ones((1, 1, 1, 1, 1)), np.array([[[[[7]]]]]), 2)\n"
    "    >>> pullback(np.full(x.shape, 5.0)).reshape(-1)\n    array([5.])",
)  # fmt: skip
global_max_pool_vjp = _vjp_of(
    pool.global_max_pool, _max_vjp, "dx",
    "    >>> y, pullback = fastconv.global_max_pool_vjp(np.ones((1, 1, 2, 2)))\n"
    "    >>> pullback(y).sum()\n    np.float64(1.0)",
)  # fmt: skip
global_avg_pool_vjp = _vjp_of(
    pool.global_avg_pool, _avg_vjp, "dx",
    "    >>> y, pullback = fastconv.global_avg_pool_vjp(np.ones((1, 1, 2, 2)))\n"
    "    >>> pullback(y).sum()\n    np.float64(1.0)",
)  # fmt: skip
global_lp_pool_vjp = _vjp_of(
    pool.global_lp_pool, _lp_vjp, "dx",
    "    >>> y, pullback = fastconv.global_lp_pool_vjp(np.array([[[[3.0, 4.0]]]]))\n"
    "    >>> pullback(y)\n    array([[[[3., 4.]]]])",
)  # fmt: skip

"""The gradient of each op as another op on the same problem: what derivatives under JAX and autograd are made of.

A convolution is linear in x and in w, a pooling with its maxima chosen is linear in x, and the adjoint of
each such map is one of the ops again. So the set is closed, and gradients are there to any order:

    conv_fprop <-> conv_dgrad, conv_wgrad      avgpool_fprop <-> avgpool_dgrad
    maxpool_select <-> maxpool_places_dgrad    maxunpool_fprop <-> maxunpool_dgrad
    maxpool_gather <-> maxpool_dgrad

Lp pooling is not linear; its second derivative is written out in `lp_gradient`. What the maxima are does
not change with x almost everywhere: that derivative is zero. A max pooling that is differentiated runs as
`maxpool_places`, whose second result, where the maxima are, is kept in place of x.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import dispatch
from fastconv.backends.base import OPS
from fastconv.dispatch import Inquiry
from fastconv.problem import NO_TAP, PoolProblem

Run = Callable[..., Any]  # run(op, problem, *operands), differentiable in the library that it belongs to

#: Beside the backends' ops: the first operand's values at the given places, and where the second one has its maxima.
SELECTIONS = {"maxpool_select": ("values", "places"), "maxpool_gather": ("values", "x")}
ROLES = {op: roles for op, (roles, _) in OPS.items()} | SELECTIONS
RESULTS = {op: results for op, (_, results) in OPS.items()} | dict.fromkeys(SELECTIONS, ("y",))

#: Per op and operand, the op and the operands of its gradient; g is the result's gradient.
ADJOINT: dict[tuple[str, str], tuple[str | None, ...]] = {
    ("conv_fprop", "x"): ("conv_dgrad", "g", "w", None),
    ("conv_fprop", "w"): ("conv_wgrad", "g", "x"),
    ("conv_dgrad", "y"): ("conv_fprop", "g", "w", None),
    ("conv_dgrad", "w"): ("conv_wgrad", "y", "g"),
    ("conv_wgrad", "y"): ("conv_fprop", "x", "g", None),
    ("conv_wgrad", "x"): ("conv_dgrad", "y", "g", None),
    ("maxpool_places", "x"): ("maxpool_places_dgrad", "g", "places"),
    ("maxpool_places_dgrad", "y"): ("maxpool_select", "g", "places"),
    ("maxpool_select", "values"): ("maxpool_places_dgrad", "g", "places"),
    ("maxpool_indices", "x"): ("maxpool_dgrad", "g", "x", None),
    ("maxpool_dgrad", "y"): ("maxpool_gather", "g", "x"),
    ("maxpool_gather", "values"): ("maxpool_dgrad", "g", "x", None),
    ("maxunpool_fprop", "y"): ("maxunpool_dgrad", "g", "indices"),
    ("maxunpool_dgrad", "x"): ("maxunpool_fprop", "g", "indices"),
    ("avgpool_fprop", "x"): ("avgpool_dgrad", "g"),
    ("avgpool_dgrad", "y"): ("avgpool_fprop", "g"),
    ("lppool_fprop", "x"): ("lppool_dgrad", "g", "x"),
}

ARRAYS = frozenset(("x", "w", "bias", "dy", "y", "indices"))  # the parameters that are arrays

# ---------------------------------------------------------------- forward


def lifted(
    function: Callable[..., Any],
    run: Callable[..., Any],
    admit: Callable[[Any], Any] = lambda array: array,
    left_out: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """A public function for another library's arrays; traced ones will do, of which only shape and dtype are known.

    Arguments and errors are those of `function`, but for ``out=``, as the arrays of these libraries do not change,
    ``activation=``, as they have functions of their own for it, and what is `left_out`. `admit` makes an argument with
    a shape and a dtype an array of the library, and ``run(op, problem, operands, backend)`` computes.
    """
    signature = inspect.signature(function)
    gone = {"out", "activation", "backend", *left_out}
    known = signature.replace(parameters=[p for name, p in signature.parameters.items() if name not in gone])

    def call(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        bound = known.bind(*args, **kwargs)
        given = {}
        for name, value in bound.arguments.items():
            if name in ARRAYS and hasattr(value, "shape") and hasattr(value, "dtype"):
                array = admit(value)
                bound.arguments[name] = stand_in = like(array)
                given[id(stand_in)] = array
        request = function(*bound.args, **bound.kwargs, backend=Inquiry(backend))
        operands = [None if array is None else given[id(array)] for array in request.operands.arrays]
        return run(request.op, request.problem, operands, backend)

    call.__name__ = call.__qualname__ = function.__name__
    call.__signature__ = known  # type: ignore[attr-defined]
    call.__doc__ = f"`fastconv.{function.__name__}`; see the module's description for what differs."
    return call


def like(array: Any) -> np.ndarray:
    """A NumPy array of that shape and dtype, without memory of its own."""
    return np.broadcast_to(np.empty((), array.dtype), array.shape)


def execute(op: str, problem: Any, operands: Sequence[Any], backend: str | None, xp: Any) -> tuple[Any, ...]:
    """The results of an op on concrete arrays; `xp` is the namespace of their library."""
    if op == "maxpool_gather":
        values, x = operands
        _, indices = execute("maxpool_indices", problem, [x], backend, xp)
        return (gather(xp, problem, values, indices),)
    if op == "maxpool_select":
        values, places = operands
        return (gather(xp, problem, values, indices_of(xp, problem, places)),)
    if op == "maxpool_places_dgrad":
        dy, places = operands
        operands = dy, places.astype(problem.dtype_of("places"))  # JAX may have made int32 of them
    admitted = dispatch.admit(ROLES[op], tuple(operands), backend)
    result = dispatch.run(op, problem, admitted, None, backend)
    if op == "maxpool_places" and admitted.wrap is not None:
        y, places = result
        return y, admitted.wrap(places)
    return result if isinstance(result, tuple) else (result,)


def indices_of(xp: Any, problem: PoolProblem, places: Any) -> Any:
    """The flat spatial offsets of maxima from their places; -1 of none."""
    if problem.dtype_of("places") != "uint8":
        return places
    flat, rest = xp.zeros((), int), places.astype(int)
    spatial = range(places.ndim - problem.ndim, places.ndim)
    if problem.layout == "NHWC":
        spatial = range(places.ndim - problem.ndim - 1, places.ndim - 1)
    for axis, n in enumerate(problem.size):
        after = math.prod(problem.frame[axis + 1 :])
        tap, rest = rest // after, rest % after
        step = problem.step(axis)
        spans = zip(problem.cells(axis), problem.first_taps(axis), strict=True)
        begins = np.array([first - skipped * step for (first, _), skipped in spans])
        shape = [-1 if at == spatial[axis] else 1 for at in range(places.ndim)]
        flat = flat * n + begins.reshape(shape) + tap * step
    return xp.where(places == NO_TAP, -1, flat)


def gather(xp: Any, problem: PoolProblem, values: Any, indices: Any) -> Any:
    """y[n, c, p] = values[n, c, indices[n, c, p]], and 0 where the window has no cell."""
    leading = ((problem.N,) if problem.batched else ()) + ((problem.C,) if problem.layout == "NCHW" else ())
    trailing = (problem.C,) if problem.layout == "NHWC" else ()
    cells = values.reshape(*leading, math.prod(problem.size), *trailing)
    at = indices.reshape(*leading, math.prod(problem.out), *trailing)
    taken = xp.take_along_axis(cells, xp.maximum(at, 0), len(leading))
    return xp.where(at < 0, 0, taken).reshape(problem.shape("y"))


# ---------------------------------------------------------------- backward


def cotangent(
    run: Run, xp: Any, op: str, problem: Any, role: str, g: Any, operands: Sequence[Any], places: Any = None
) -> Any:
    """The gradient of the operand `role` from the result's, in the operand's dtype; None where there is none.

    `run` and `xp`, a NumPy namespace, are differentiable in the library that they belong to. `places` are those that
    a ``maxpool_places`` has found.
    """
    known = dict(zip(ROLES[op], operands, strict=True), g=g)
    if op == "maxpool_places":
        known["places"] = places
    if role in ("bias", "tbias"):
        gradient = bias_gradient(xp, problem, g, known[role].shape)
    elif op == "lppool_dgrad":
        gradient = lp_gradient(run, xp, problem, role, g, *operands)
    elif (op, role) in ADJOINT:
        adjoint, *names = ADJOINT[op, role]
        bare = problem if isinstance(problem, PoolProblem) else replace(problem, bias=None)
        gradient = run(adjoint, bare, *(None if name is None else known[name] for name in names))
    else:
        return None
    return gradient.astype(g.dtype if known[role] is None else known[role].dtype)


def bias_gradient(xp: Any, problem: Any, g: Any, shape: Any) -> Any:
    channel = problem.batched if problem.layout == "NCHW" else g.ndim - 1
    return xp.sum(g, axis=tuple(axis for axis in range(g.ndim) if axis != channel)).reshape(shape)


def lp_gradient(run: Run, xp: Any, problem: PoolProblem, role: str, g: Any, dy: Any, x: Any) -> Any:
    """The two gradients of ``dx = u(x) * A(dy * y^(1 - p))``, with u = sign(x) |x|^(p - 1) and y = lp_pool(x).

    A is the adjoint of S, the sum over a window. To dy: ``y^(1 - p) * S(g * u)``. To x: by u,
    ``g * u'(x) * A(dy * y^(1 - p))``; by y, that of an Lp pooling whose output has the gradient
    ``S(g * u) * dy * (1 - p) * y^(-p)``. Where x or y is 0 the derivatives are taken as 0, but u' = 1 for p = 2.
    """
    p = problem.p
    total = replace(problem, count_include_pad=True, divisor=1)  # an average of this is a sum
    y = run("lppool_fprop", problem, x)
    empty = y == 0
    y = xp.where(empty, 1, y)
    size = xp.where(x == 0, 1, xp.abs(x))
    u = xp.where(x == 0, 0, xp.sign(x) * size ** (p - 1))
    summed = run("avgpool_fprop", total, g * u)
    if role == "y":
        return xp.where(empty, 0, summed * y ** (1 - p))
    slope = (p - 1) * xp.where((x == 0) & (p != 2), 0, size ** (p - 2))
    by_u = g * slope * run("avgpool_dgrad", total, xp.where(empty, 0, dy * y ** (1 - p)))
    by_y = run("lppool_dgrad", problem, xp.where(empty, 0, summed * dy * (1 - p) * y ** (-p)), x)
    return by_u + by_y

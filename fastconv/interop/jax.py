"""Convolutions and poolings for JAX: under ``jit``, ``vmap`` and ``grad`` to any order; needs ``jax``.

The functions take the arguments of `fastconv`'s, but for ``out=`` and ``activation=``: write ``jax.nn.relu(y)``.
Each op is a JAX primitive with a ``custom_vjp`` around it, whose gradients are such ops again; forward-mode
derivatives are refused by JAX (write a Hessian as ``jacrev(jacrev(f))``). ``vmap`` folds its axis into the batch,
or, where the weights or their gradient have it, into channels and groups: one call in either case.

Called outside of ``jit``, an op takes the arrays as they lie in memory, on the CPU and, by DLPack, on a GPU.
Inside, the compiled program calls back into Python, on the CPU only: on a GPU that would move every array through
the host, so that compiling for one raises BackendError. Bad arguments raise when a function is traced; what only the
values show, such as an index out of range in an unpooling, raises JAX's own error from inside the program.

Examples
--------
>>> import jax, jax.numpy as jnp
>>> from fastconv.interop import jax as fc
>>> x = jnp.array([[[1.0, 3, 2, 2, 0, 2, 3]]])
>>> loss = lambda w: jnp.sum(fc.max_pool1d(fc.conv1d(x, w, padding="same"), 2) ** 2)
>>> jax.jit(jax.grad(loss))(jnp.array([[[-1.0, 0, 1]]]))
Array([[[-6., 14., 32.]]], dtype=float32)
>>> jax.vmap(lambda row: fc.conv1d(row, jnp.ones((1, 1, 2))))(jnp.arange(6.0).reshape(2, 1, 3))
Array([[[1., 3.]],
       [[7., 9.]]], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

import fastconv
from fastconv import dispatch
from fastconv.arrays import dtype_of
from fastconv.errors import BackendError
from fastconv.interop.rules import RESULTS, ROLES, cotangent, execute, lifted
from fastconv.problem import ConvProblem

# ---------------------------------------------------------------- the primitive

# Its operands are those that are not None; `present` has their roles.
primitive = Primitive("fastconv")
primitive.multiple_results = True


def on_arrays(xp: Any, *arrays: Any, op: str, problem: Any, backend: str | None, present: tuple[str, ...]) -> list[Any]:
    """The results of the op on concrete arrays."""
    given = dict(zip(present, map(xp.asarray, arrays), strict=True))
    results = execute(op, problem, [given.get(role) for role in ROLES[op]], backend, xp)
    return [xp.asarray(array, dtype) for array, dtype in zip(results, dtypes(op, problem), strict=True)]


def dtypes(op: str, problem: Any) -> list[np.dtype]:
    """Those of the results; JAX has no int64 unless it was asked for it."""
    named = [problem.dtype_of(role) if role in ("indices", "places") else problem.dtype for role in RESULTS[op]]
    return [jax.dtypes.canonicalize_dtype(np.int64) if name == "int64" else dtype_of(name) for name in named]


def abstract(*arrays: Any, op: str, problem: Any, backend: str | None, present: tuple[str, ...]) -> list[Any]:
    if backend is not None:
        dispatch.get(backend)  # an unknown name is refused here, not in the compiled program
    shapes = [problem.shape("y" if role in ("indices", "places") else role) for role in RESULTS[op]]
    return [jax.core.ShapedArray(*form) for form in zip(shapes, dtypes(op, problem), strict=True)]


def lower_to_callback(context: Any, *values: Any, **parameters: Any) -> Any:
    def callback(*arrays: Any) -> tuple[Any, ...]:
        return tuple(on_arrays(np, *arrays, **parameters))

    results, _, _ = mlir.emit_python_callback(
        context, callback, None, list(values), context.avals_in, context.avals_out, has_side_effect=False
    )
    return results


def refuse(context: Any, *values: Any, op: str, **parameters: Any) -> Any:
    platforms = ", ".join(context.module_context.platforms)
    raise BackendError(
        f"{op} inside jit runs on the CPU only, this is compiled for {platforms}: every array would go through the "
        "host; call it outside of jit, or put the arrays on jax.devices('cpu')"
    )


primitive.def_impl(partial(on_arrays, jnp))
primitive.def_abstract_eval(abstract)
mlir.register_lowering(primitive, refuse)
mlir.register_lowering(primitive, lower_to_callback, platform="cpu")

# ---------------------------------------------------------------- vmap

WEIGHTS = frozenset(("w", "bias", "tbias"))


def batched(arrays: Sequence[Any], axes: Sequence[int | None], *, op: str, problem: Any, backend: str | None,
            present: tuple[str, ...]) -> tuple[list[Any], list[int]]:  # fmt: skip
    """One call on a larger problem: vmap's axis becomes a part of the batch, or of channels and groups."""
    B = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    mapped = [role for role, axis in zip(present, axes, strict=True) if axis is not None]
    grouped = op == "conv_wgrad" or not WEIGHTS.isdisjoint(mapped)
    folded = []
    for role, array, axis in zip(present, arrays, axes, strict=True):
        if role not in WEIGHTS or grouped:
            first = jnp.broadcast_to(array, (B, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
            array = fold(first, joined_axis(problem, role, grouped))
        folded.append(array)
    larger = widened(problem, B) if grouped else replace(problem, N=B * problem.N, batched=True)
    results = primitive.bind(*folded, op=op, problem=larger, backend=backend, present=present)
    roles = RESULTS[op]
    unfolded = [unfold(y, B, joined_axis(problem, role, grouped)) for y, role in zip(results, roles, strict=True)]
    return unfolded, [0] * len(unfolded)


def widened(problem: ConvProblem, B: int) -> ConvProblem:
    """B such convolutions side by side, each with its weights."""
    bias = None if problem.bias is None else (B * problem.bias[0], *problem.bias[1:])
    return replace(problem, C=B * problem.C, K=B * problem.K, groups=B * problem.groups, bias=bias)


def joined_axis(problem: Any, role: str, grouped: bool) -> int | None:
    """The axis of an operand that vmap's axis joins; None where it becomes one of its own."""
    if role in WEIGHTS:
        return problem.ndim + 1 if role == "w" and problem.weight_layout == "HWIO" else 0
    if not grouped:
        return 0 if problem.batched else None
    return int(problem.batched) + (0 if problem.layout == "NCHW" else problem.ndim)


def fold(array: Any, axis: int | None) -> Any:
    """Axis 0 as the outer part of another axis (counted without it)."""
    if axis is None:
        return array
    moved = jnp.moveaxis(array, 0, axis)
    shape = moved.shape
    return moved.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def unfold(array: Any, B: int, axis: int | None) -> Any:
    if axis is None:
        return array
    shape = array.shape
    return jnp.moveaxis(array.reshape(*shape[:axis], B, shape[axis] // B, *shape[axis + 1 :]), axis, 0)


batching.primitive_batchers[primitive] = batched

# ---------------------------------------------------------------- gradients


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def run(op: str, problem: Any, backend: str | None, *operands: Any) -> list[Any]:
    """All results of an op."""
    present = tuple(role for role, array in zip(ROLES[op], operands, strict=True) if array is not None)
    arrays = [array for array in operands if array is not None]
    return primitive.bind(*arrays, op=op, problem=problem, backend=backend, present=present)


def forward(op: str, problem: Any, backend: str | None, *operands: Any) -> tuple[list[Any], Any]:
    values = [None if operand is None else operand.value for operand in operands]
    wanted = {at: () for at, operand in enumerate(operands) if operand is not None and operand.perturbed}
    if op in ("maxpool_fprop", "maxpool_places"):  # keeps where the maxima are, and not x
        y, places = run("maxpool_places", problem, backend, *values)
        return ([y] if op == "maxpool_fprop" else [y, places]), ([None], wanted, places)
    return run(op, problem, backend, *values), (values, wanted, None)  # differentiable itself, for the next order


def backward(op: str, problem: Any, backend: str | None, saved: Any, gradients: Any) -> tuple[Any, ...]:
    """The gradients of the operands that are differentiated, from that of the first result."""
    operands, wanted, places = saved
    op = "maxpool_places" if op == "maxpool_fprop" else op
    g = gradients[0]
    if isinstance(g, SymbolicZero):
        return (None,) * len(operands)

    def again(op: str, problem: Any, *operands: Any) -> Any:
        return run(op, problem, backend, *operands)[0]

    return tuple(
        cotangent(again, jnp, op, problem, role, g, operands, places) if at in wanted else None
        for at, role in enumerate(ROLES[op])
    )


run.defvjp(forward, backward, symbolic_zeros=True)


def call(op: str, problem: Any, operands: Sequence[Any], backend: str | None) -> Any:
    y, *indices = run(op, problem, backend, *operands)
    return (y, *indices) if indices else y


conv1d = lifted(fastconv.conv1d, call, jnp.asarray)
conv2d = lifted(fastconv.conv2d, call, jnp.asarray)
conv3d = lifted(fastconv.conv3d, call, jnp.asarray)
conv1d_dgrad = lifted(fastconv.conv1d_dgrad, call, jnp.asarray)
conv2d_dgrad = lifted(fastconv.conv2d_dgrad, call, jnp.asarray)
conv3d_dgrad = lifted(fastconv.conv3d_dgrad, call, jnp.asarray)
conv1d_wgrad = lifted(fastconv.conv1d_wgrad, call, jnp.asarray)
conv2d_wgrad = lifted(fastconv.conv2d_wgrad, call, jnp.asarray)
conv3d_wgrad = lifted(fastconv.conv3d_wgrad, call, jnp.asarray)
conv_transpose1d = lifted(fastconv.conv_transpose1d, call, jnp.asarray)
conv_transpose2d = lifted(fastconv.conv_transpose2d, call, jnp.asarray)
conv_transpose3d = lifted(fastconv.conv_transpose3d, call, jnp.asarray)
max_pool1d = lifted(fastconv.max_pool1d, call, jnp.asarray)
max_pool2d = lifted(fastconv.max_pool2d, call, jnp.asarray)
max_pool3d = lifted(fastconv.max_pool3d, call, jnp.asarray)
avg_pool1d = lifted(fastconv.avg_pool1d, call, jnp.asarray)
avg_pool2d = lifted(fastconv.avg_pool2d, call, jnp.asarray)
avg_pool3d = lifted(fastconv.avg_pool3d, call, jnp.asarray)
lp_pool1d = lifted(fastconv.lp_pool1d, call, jnp.asarray)
lp_pool2d = lifted(fastconv.lp_pool2d, call, jnp.asarray)
lp_pool3d = lifted(fastconv.lp_pool3d, call, jnp.asarray)
adaptive_max_pool1d = lifted(fastconv.adaptive_max_pool1d, call, jnp.asarray)
adaptive_max_pool2d = lifted(fastconv.adaptive_max_pool2d, call, jnp.asarray)
adaptive_max_pool3d = lifted(fastconv.adaptive_max_pool3d, call, jnp.asarray)
adaptive_avg_pool1d = lifted(fastconv.adaptive_avg_pool1d, call, jnp.asarray)
adaptive_avg_pool2d = lifted(fastconv.adaptive_avg_pool2d, call, jnp.asarray)
adaptive_avg_pool3d = lifted(fastconv.adaptive_avg_pool3d, call, jnp.asarray)
max_unpool1d = lifted(fastconv.max_unpool1d, call, jnp.asarray)
max_unpool2d = lifted(fastconv.max_unpool2d, call, jnp.asarray)
max_unpool3d = lifted(fastconv.max_unpool3d, call, jnp.asarray)
global_max_pool = lifted(fastconv.global_max_pool, call, jnp.asarray)
global_avg_pool = lifted(fastconv.global_avg_pool, call, jnp.asarray)
global_lp_pool = lifted(fastconv.global_lp_pool, call, jnp.asarray)

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv1d_dgrad",
    "conv1d_wgrad",
    "conv2d",
    "conv2d_dgrad",
    "conv2d_wgrad",
    "conv3d",
    "conv3d_dgrad",
    "conv3d_wgrad",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "global_avg_pool",
    "global_lp_pool",
    "global_max_pool",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]

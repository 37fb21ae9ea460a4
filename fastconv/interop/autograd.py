"""Convolutions and poolings for HIPS ``autograd``, with gradients to any order; needs ``autograd``.

The functions take the arguments of `fastconv`'s, but for ``out=`` and ``activation=``: write
``np.maximum(y, 0)`` with autograd's NumPy. Arrays are NumPy's; the indices of a max pooling have no gradient.

Examples
--------
>>> import autograd.numpy as np
>>> from autograd import grad
>>> from fastconv.interop import autograd as fc
>>> x = np.array([[[1.0, 3, 2, 2, 0, 2, 3]]])
>>> loss = lambda w: np.sum(fc.max_pool1d(fc.conv1d(x, w, padding="same"), 2) ** 2)
>>> grad(loss)(np.array([[[-1.0, 0, 1]]]))
array([[[-6., 14., 32.]]])
>>> grad(lambda w: grad(loss)(w)[0, 0, 0])(np.array([[[-1.0, 0, 1]]]))
array([[[18., 12., 12.]]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import autograd.numpy
import numpy as np
from autograd.extend import defvjp_argnums, notrace_primitive, primitive
from autograd.tracer import isbox

import fastconv
from fastconv.interop.rules import ROLES, cotangent, execute, lifted


@primitive
def run(op: str, problem: Any, backend: str | None, *operands: Any, places: list[Any] | None = None) -> Any:
    """The first result of an op: autograd's primitive. `places` takes in the second of ``maxpool_places``."""
    y, *found = execute(op, problem, operands, backend, np)
    if places is not None:
        places[:] = found
    return y


@notrace_primitive
def indices_of(problem: Any, x: Any, backend: str | None) -> Any:
    return execute("maxpool_indices", problem, [x], backend, np)[1]


FIRST = 3  # the position of the first operand among `run`'s arguments


def pullbacks(argnums: Sequence[int], ans: Any, args: Sequence[Any], kwargs: Any) -> Callable[[Any], tuple[Any, ...]]:
    op, problem, backend, *operands = args

    def again(op: str, problem: Any, *operands: Any) -> Any:
        return run(op, problem, backend, *operands)

    def one(at: int, g: Any) -> Any:
        found = cotangent(again, autograd.numpy, op, problem, ROLES[op][at], g, operands, *kwargs.get("places", ()))
        return autograd.numpy.zeros_like(operands[at]) if found is None else found

    return lambda g: tuple(one(argnum - FIRST, g) for argnum in argnums)


defvjp_argnums(run, pullbacks)


def call(op: str, problem: Any, operands: Sequence[Any], backend: str | None) -> Any:
    if op == "maxpool_fprop" and isbox(operands[0]):  # it will be differentiated
        return run("maxpool_places", problem, backend, *operands, places=[])
    y = run(op, problem, backend, *operands)
    return (y, indices_of(problem, operands[0], backend)) if op == "maxpool_indices" else y


conv1d = lifted(fastconv.conv1d, call)
conv2d = lifted(fastconv.conv2d, call)
conv3d = lifted(fastconv.conv3d, call)
conv1d_dgrad = lifted(fastconv.conv1d_dgrad, call)
conv2d_dgrad = lifted(fastconv.conv2d_dgrad, call)
conv3d_dgrad = lifted(fastconv.conv3d_dgrad, call)
conv1d_wgrad = lifted(fastconv.conv1d_wgrad, call)
conv2d_wgrad = lifted(fastconv.conv2d_wgrad, call)
conv3d_wgrad = lifted(fastconv.conv3d_wgrad, call)
conv_transpose1d = lifted(fastconv.conv_transpose1d, call)
conv_transpose2d = lifted(fastconv.conv_transpose2d, call)
conv_transpose3d = lifted(fastconv.conv_transpose3d, call)
max_pool1d = lifted(fastconv.max_pool1d, call)
max_pool2d = lifted(fastconv.max_pool2d, call)
max_pool3d = lifted(fastconv.max_pool3d, call)
avg_pool1d = lifted(fastconv.avg_pool1d, call)
avg_pool2d = lifted(fastconv.avg_pool2d, call)
avg_pool3d = lifted(fastconv.avg_pool3d, call)
lp_pool1d = lifted(fastconv.lp_pool1d, call)
lp_pool2d = lifted(fastconv.lp_pool2d, call)
lp_pool3d = lifted(fastconv.lp_pool3d, call)
adaptive_max_pool1d = lifted(fastconv.adaptive_max_pool1d, call)
adaptive_max_pool2d = lifted(fastconv.adaptive_max_pool2d, call)
adaptive_max_pool3d = lifted(fastconv.adaptive_max_pool3d, call)
adaptive_avg_pool1d = lifted(fastconv.adaptive_avg_pool1d, call)
adaptive_avg_pool2d = lifted(fastconv.adaptive_avg_pool2d, call)
adaptive_avg_pool3d = lifted(fastconv.adaptive_avg_pool3d, call)
max_unpool1d = lifted(fastconv.max_unpool1d, call)
max_unpool2d = lifted(fastconv.max_unpool2d, call)
max_unpool3d = lifted(fastconv.max_unpool3d, call)
global_max_pool = lifted(fastconv.global_max_pool, call)
global_avg_pool = lifted(fastconv.global_avg_pool, call)
global_lp_pool = lifted(fastconv.global_lp_pool, call)

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

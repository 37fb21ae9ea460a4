"""Activations on their own, for the gradients of ops that fuse one; users get them by ``activation=``."""

from __future__ import annotations

from typing import Any

from fastconv import arrays, dispatch
from fastconv.problem import ActivationProblem

#: The derivative of these needs the activation's input; of the others its output is enough.
FROM_INPUT = ("gelu", "silu")


def activate(name: str, x: Any, operands: arrays.Operands, out: Any, backend: str | None) -> Any:
    """act(x) as a new array (or `out`) of the kind that `operands` came in."""
    problem = ActivationProblem(name, x.shape, arrays.name_of(x.dtype))
    return dispatch.run("activation_fprop", problem, arrays.Operands((x,), operands.kind, operands.wrap), out, backend)


def activation_grad(name: str, dy: Any, saved: Any, kind: str, backend: str | None) -> Any:
    """dy times the derivative, at the output `saved`, or at the input for the names in `FROM_INPUT`."""
    problem = ActivationProblem(name, dy.shape, arrays.name_of(dy.dtype))
    return dispatch.run("activation_dgrad", problem, arrays.Operands((dy, saved), kind, None), None, backend)

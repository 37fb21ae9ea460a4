"""fastconv itself, called through its public functions as a user calls them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import fastconv
from fastconv import arrays, dispatch
from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers.base import Absent, Job, Refused
from fastconv.errors import BackendError
from fastconv.problem import ConvProblem
from fastconv.testing.cases import pool_arguments, to_user

Array = np.ndarray


class Library:
    """One backend of fastconv."""

    def __init__(self, backend: str):
        self.backend = backend

    def version(self) -> str:
        available = {name: (ok, reason) for name, ok, reason in fastconv.backends()}
        ok, reason = available.get(self.backend, (False, f"there is no backend {self.backend!r}"))
        if not ok:
            raise Absent(reason)
        return f"fastconv {fastconv.__version__}, backend {self.backend}"

    def place(self, case: Case, role: str, array: Array) -> Array:
        return to_user(case.problem, role, array)

    def write(self, case: Case, role: str, operand: Array, array: Array) -> None:
        operand[...] = to_user(case.problem, role, array)

    def bind(self, case: Case, given: Sequence[Array]) -> Job:
        problem = case.problem
        try:
            _, launch = dispatch.choose(case.op, problem, "numpy", self.backend)
        except BackendError as error:
            raise Refused(str(error)) from error
        call = _call(case, list(given), self.backend)
        return Job(call, lambda y: arrays.canonical(problem, case.result, y), launch.algorithm)


def _call(case: Case, given: list[Array], backend: str) -> partial[Any]:
    """The public call of a case, its arguments bound."""
    problem, suffix = case.problem, f"{case.problem.ndim}d"
    if isinstance(problem, ConvProblem):
        window = problem.window
        name = f"conv{suffix}" if case.pass_ == "fprop" else f"conv{suffix}_{case.pass_}"
        shape = {"fprop": (), "dgrad": (problem.shape("x"),), "wgrad": (problem.shape("w"),)}[case.pass_]
        return partial(
            getattr(fastconv, name), *given, *shape, stride=window.stride, padding=window.pad,
            dilation=window.dilation, groups=problem.groups, layout=problem.layout,
            weight_layout=problem.weight_layout, precision=problem.precision, backend=backend,
        )  # fmt: skip
    kind, arguments = case.layer.family.removesuffix("pool"), pool_arguments(problem) | {"backend": backend}
    if kind == "avg" and problem.window is not None:
        arguments |= {"count_include_pad": problem.count_include_pad, "divisor": problem.divisor}
    if problem.window is None:
        return _adaptive_call(f"adaptive_{kind}_pool{suffix}", case, given, arguments)
    if case.pass_ == "fprop":
        return partial(getattr(fastconv, f"{kind}_pool{suffix}"), *given, **arguments)
    if kind == "avg":
        given.append(problem.shape("x"))
    return partial(getattr(fastconv, f"{kind}_pool{suffix}_dgrad"), *given, **arguments)


def _adaptive_call(name: str, case: Case, given: list[Array], arguments: dict[str, Any]) -> partial[Any]:
    """Adaptive pooling has no dgrad function: its gradient is the pullback of its vjp."""
    if case.pass_ == "fprop":
        return partial(getattr(fastconv, name), *given, **arguments)
    dy, x = given if len(given) == 2 else (given[0], np.zeros(case.problem.shape("x"), given[0].dtype))
    _, pullback = getattr(fastconv, f"{name}_vjp")(x, **arguments)
    return partial(pullback, dy)

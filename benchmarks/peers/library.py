"""fastconv itself, called through its public functions as a user calls them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numba
import numpy as np

import fastconv
from fastconv import arrays, dispatch
from fastconv.benchmarks import cuda
from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.device import HOST, Queue
from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused
from fastconv.errors import BackendError
from fastconv.problem import ConvProblem, PoolProblem, SignalProblem
from fastconv.testing.cases import pool_arguments, to_user

Array = np.ndarray


class Library(Contestant):
    """One backend of fastconv."""

    def __init__(self, backend: str):
        self.backend = backend
        self.on_gpu = backend in dispatch.PREFERRED["cuda"] and cuda.missing() is None
        self.device = Queue(cuda.CupyStream()) if self.on_gpu else HOST

    def version(self) -> str:
        available = {name: (ok, reason) for name, ok, reason in fastconv.backends()}
        ok, reason = available.get(self.backend, (False, f"there is no backend {self.backend!r}"))
        if not ok:
            raise Absent(reason)
        if self.backend in dispatch.PREFERRED["cuda"] and not self.on_gpu:
            raise Absent(f"only an emulated GPU is here, whose times mean nothing ({cuda.missing()})")
        where = f", {cuda.CupyStream.name()}" if self.on_gpu else ""
        return f"fastconv {fastconv.__version__}, backend {self.backend}{where}"

    def place(self, case: Case, role: str, array: Array) -> Any:
        return self.device.put(_as_user(case, role, array))

    def write(self, case: Case, role: str, operand: Any, array: Array) -> None:
        operand[...] = self.device.put(_as_user(case, role, array))

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        problem = case.problem
        op = "maxpool_places_dgrad" if case.op == "maxpool_dgrad" else case.op
        try:
            _, launch = dispatch.choose(op, problem, "cuda" if self.on_gpu else "numpy", self.backend)
        except BackendError as error:
            raise Refused(str(error)) from error
        keeps = None if self.on_gpu else launch.workspace * numba.get_num_threads()
        return Job(_call(case, list(given), self.backend), partial(_read, case), launch.algorithm, keeps)


def _as_user(case: Case, role: str, array: Array) -> Array:
    return array if isinstance(case.problem, SignalProblem) else to_user(case.problem, role, array)


def _read(case: Case, result: Any) -> Array:
    host = result.get() if hasattr(result, "get") else result
    return arrays.canonical(case.problem, case.result, host)


def _call(case: Case, given: list[Any], backend: str) -> partial[Any]:
    """The public call of a case, its arguments bound."""
    problem = case.problem
    if isinstance(problem, ConvProblem):
        return _conv(case, problem, given, backend)
    if isinstance(problem, PoolProblem):
        return _pool(case, problem, given, backend)
    function = fastconv.convolve if problem.flip else fastconv.correlate
    return partial(function, *given, problem.mode, problem.method, backend=backend)


def _conv(case: Case, problem: ConvProblem, given: list[Any], backend: str) -> partial[Any]:
    window, suffix, pass_ = problem.window, f"{problem.ndim}d", case.op.removeprefix("conv_")
    options = {
        "stride": window.stride, "padding": window.pad, "dilation": window.dilation, "groups": problem.groups,
        "layout": problem.layout, "weight_layout": problem.weight_layout, "precision": problem.precision,
        "backend": backend,
    }  # fmt: skip
    if case.layer.family == "convtranspose" and pass_ == "dgrad":
        return partial(
            getattr(fastconv, f"conv_transpose{suffix}"), *given, output_padding=output_padding(problem), **options
        )
    if pass_ == "fprop":
        return partial(getattr(fastconv, f"conv{suffix}"), *given, **options)
    shape = problem.shape(case.result)
    return partial(getattr(fastconv, f"conv{suffix}_{pass_}"), *given, shape, **options)


def output_padding(problem: ConvProblem) -> tuple[int, ...]:
    """What a transposed convolution adds at the high end to reach the extents of x."""
    window = problem.window
    return tuple(
        n - ((m - 1) * s + e - low - high)
        for n, m, s, e, (low, high) in zip(
            problem.size, problem.out, window.stride, window.extent, window.pad, strict=True
        )
    )


def _pool(case: Case, problem: PoolProblem, given: list[Any], backend: str) -> partial[Any]:
    kind, suffix = case.layer.family.removesuffix("pool"), f"{problem.ndim}d"
    arguments = pool_arguments(problem) | {"backend": backend}
    if kind == "avg" and problem.window is not None:
        arguments |= {"count_include_pad": problem.count_include_pad, "divisor": problem.divisor}
    name = f"{'adaptive_' if problem.window is None else ''}{kind}_pool{suffix}"
    if case.pass_ == "fprop":
        return partial(getattr(fastconv, name), *given, **arguments)
    if kind == "avg" and problem.window is not None:
        return partial(getattr(fastconv, f"{name}_dgrad"), *given, problem.shape("x"), **arguments)
    return _pullback(name, case, given, arguments)


def _pullback(name: str, case: Case, given: list[Any], arguments: dict[str, Any]) -> partial[Any]:
    """The gradient from what the forward pass kept: of a maximum, whose peers keep it too, and of adaptive windows."""
    if len(given) == 1:  # an average's gradient needs x for its shape alone
        given.append(arrays_like(given[0], case.problem.shape("x")))
    dy, x = given
    _, pullback = getattr(fastconv, f"{name}_vjp")(x, **arguments)
    return partial(pullback, dy)


def arrays_like(array: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of another shape in the same library."""
    return np.zeros_like(array, shape=shape)  # CuPy's arrays answer NumPy's call

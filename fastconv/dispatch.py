"""From an op and a problem to the backend's launch, and from a launch to the result.

Which backend: the ``backend=`` argument; ``use_backend``; ``set_backend``; ``FASTCONV_BACKEND``;
else the first one that takes the arrays and does not refuse the problem. One that was named never
falls back.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np

from fastconv import arrays, gpu_arrays
from fastconv.backends.base import OPS, Backend, Launch
from fastconv.errors import BackendError

MODULES = {"reference": "reference", "cpu": "cpu", "numba": "numba_cuda", "raw": "raw"}
PREFERRED = {"numpy": ("cpu", "reference"), "cuda": ("raw", "numba")}

_backends: dict[str, Backend] = {}
_launches: dict[tuple[str, Any, str, str], Launch] = {}
_known: dict[Any, Callable[..., Any] | None] = {}
MOST_KNOWN = 4096  # calls; a program whose shapes never repeat starts again
_default: str | None = None
_scoped: ContextVar[str | None] = ContextVar("fastconv_backend", default=None)


def get(name: Any) -> Backend:
    """The backend of that name, loaded.

    Raises
    ------
    BackendError
        For a name that is none of the four.
    """
    try:
        return _backends[name]
    except (KeyError, TypeError):
        pass
    if not isinstance(name, str) or name not in MODULES:
        raise BackendError(f"there is no backend {name!r}: the backends are {', '.join(map(repr, MODULES))}")
    module = importlib.import_module(f"fastconv.backends.{MODULES[name]}")
    return _backends.setdefault(name, module.backend)


def backends() -> list[tuple[str, bool, str]]:
    """The backends as ``(name, available, reason)``, the reason saying what is missing.

    Examples
    --------
    >>> import fastconv
    >>> [(name, available) for name, available, _ in fastconv.backends()][:2]
    [('reference', True), ('cpu', True)]
    """
    reasons = [(name, get(name).unavailable()) for name in MODULES]
    return [(name, reason is None, reason or "ready") for name, reason in reasons]


def set_backend(name: str | None) -> None:
    """Make every later call of this process run on the backend `name`; None restores the choice by arrays.

    Raises
    ------
    BackendError
        For an unknown name.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.set_backend("reference")
    >>> fastconv.set_backend(None)
    """
    global _default
    if name is not None:
        get(name)
    _default = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the calls inside the ``with`` block, in this thread or task, on the backend `name`.

    Raises
    ------
    BackendError
        For an unknown name.

    Examples
    --------
    >>> import fastconv, numpy as np
    >>> with fastconv.use_backend("reference"):
    ...     fastconv.avg_pool1d(np.array([[[1.0, 3.0]]]), 2)
    array([[[2.]]])
    """
    get(name)
    token = _scoped.set(name)
    try:
        yield
    finally:
        _scoped.reset(token)


def forget() -> None:
    """Drop every chosen launch, so that the next call of each problem chooses anew."""
    _launches.clear()
    _known.clear()


def select(op: str, problem: Any, kind: str = "numpy", backend: str | None = None) -> Launch:
    """The launch that a call takes; memoised per op, problem and backend.

    Raises
    ------
    BackendError
        Where the named backend, or every backend for arrays of this kind, is unavailable or refuses.
    """
    return choose(op, problem, kind, backend)[1]


def named(backend: str | None) -> str | None:
    """The backend that was named for this call, or None where the arrays decide."""
    if backend is not None:
        return backend
    return _scoped.get() or _default or os.environ.get("FASTCONV_BACKEND") or None


def choose(op: str, problem: Any, kind: str, backend: str | None) -> tuple[str, Launch]:
    """The name of the backend beside its launch."""
    name = named(backend)
    if name is not None:
        return name, _launch(op, problem, name, kind)
    failures = []
    for name in PREFERRED[kind]:
        try:
            return name, _launch(op, problem, name, kind)
        except BackendError as error:
            failures.append(str(error))
    raise BackendError("; ".join(failures))


def _launch(op: str, problem: Any, name: str, kind: str) -> Launch:
    try:
        return _launches[op, problem, name, kind]
    except (KeyError, TypeError):
        pass
    chosen = get(name)
    if reason := _unfit(name, kind):
        raise BackendError(f"backend {name!r}: {reason}")
    if reason := chosen.rejects(op, problem):
        raise BackendError(f"backend {name!r} refuses {op} of {problem}: {reason}")
    launch = chosen.plan(op, problem)
    return _launches.setdefault((op, problem, name, kind), launch)


def admit(names: tuple[str, ...], operands: tuple[Any, ...], backend: Any) -> arrays.Operands:
    """The arrays of a call; those of a kind that no available backend takes are refused with the reasons."""
    admitted = arrays.admit(names, operands)
    if admitted.kind != "numpy":
        name = named(backend.backend if type(backend) is Inquiry else backend)
        reasons = {
            candidate: _unfit(candidate, admitted.kind) for candidate in ((name,) if name else PREFERRED["cuda"])
        }
        if all(reasons.values()):
            raise BackendError("; ".join(f"backend {name!r}: {reason}" for name, reason in reasons.items()))
        return arrays.take_cuda(admitted)
    return admitted


def _unfit(name: str, kind: str) -> str | None:
    backend = get(name)
    if reason := backend.unavailable():
        return reason
    return None if kind in backend.kinds else f"it takes {' and '.join(backend.kinds)} arrays, these are {kind} arrays"


@dataclass(frozen=True)
class Inquiry:
    """Given as ``backend=``, asks a public function for its `Request` in place of the result."""

    backend: str | None = None


@dataclass(frozen=True)
class Request:
    """What a call comes down to: an op, a validated problem, and the operands."""

    op: str
    problem: Any
    operands: arrays.Operands
    sources: tuple[Any, ...] = ()  # the operands before the op reversed or extended them


def run(op: str, problem: Any, operands: arrays.Operands, out: Any, backend: Any) -> Any:
    """Choose and execute: the way every public function takes once its problem is built."""
    if type(backend) is Inquiry:
        return Request(op, problem, operands, operands.arrays)
    if operands.kind == "cuda":
        with gpu_arrays.on_device_of(operands.arrays[0]):
            return execute(op, problem, select(op, problem, operands.kind, backend), operands, out)
    return execute(op, problem, select(op, problem, operands.kind, backend), operands, out)


def launch(op: str, problem: Any, chosen: Launch, operands: arrays.Operands, out: Any) -> Any:
    """`execute` on the GPU where the operands lie, if they lie on one."""
    if operands.kind == "cuda":
        with gpu_arrays.on_device_of(operands.arrays[0]):
            return execute(op, problem, chosen, operands, out)
    return execute(op, problem, chosen, operands, out)


def remembered(first: int, last: int, out: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A call that repeats one of before, but for the values in its arrays, goes straight to that one's launch.

    The operands are the arguments [first, last); ``out`` is at `out`, ``backend`` after it. This serves NumPy arrays
    that need no view, where ``out`` is left out; all other calls go the whole way.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(build)
        def call(*args: Any, **more: Any) -> Any:
            operands, others = args[first:last], args[last:]
            kinds = tuple(map(type, (*args, *more.values())))
            if args[out] is not None or not _NUMPY.issuperset(kinds[first:last]) or kinds[out + 1] is Inquiry:
                return build(*args, **more)
            if tuple in kinds and not all(map(_exact, others)):
                return build(*args, **more)
            try:
                forms = [None if a is None else (a.shape, a.strides, a.dtype, a.flags.aligned) for a in operands]
                key = (build, kinds, args[:first], others, named(None), *more.items(), *forms)
                known = _known.get(key, call)
            except TypeError:  # arguments that cannot be looked up
                return build(*args, **more)
            if known is None:
                return build(*args, **more)
            if known is not call:
                return known(*operands)
            result = build(*args, **more)
            if len(_known) >= MOST_KNOWN:
                _known.clear()
            asked = build(*args[: out + 1], Inquiry(args[out + 1]), *args[out + 2 :], **more)
            _known[key] = _direct(asked, args[out + 1], len(operands))
            return result

        return call

    return decorate


_NUMPY = frozenset((np.ndarray, type(None)))
_INTS = frozenset((int,))


def _exact(value: Any) -> bool:
    """Whether tuples hold ints alone: ``(1, True)`` and ``(1, 1.0)`` would be looked up as ``(1, 1)``."""
    return type(value) is not tuple or _INTS.issuperset(map(type, value)) or all(map(_pair, value))


def _pair(value: Any) -> bool:
    return type(value) is tuple and _INTS.issuperset(map(type, value))


def _direct(request: Request, backend: str | None, count: int) -> Callable[..., Any] | None:
    """The launch of a request as a function of its first `count` operands; None where these need more than that."""
    op, problem, operands = request.op, request.problem, request.operands.arrays
    roles, results = OPS[op]
    plain = request.operands.kind == "numpy" and all(
        array is None or arrays.canonical(problem, role, arrays.native(array)) is array
        for role, array in zip(roles, operands, strict=True)
    )
    if not (plain and problem.plain) or len(results) > 1 or not operands[0].flags.c_contiguous:
        return None
    run = select(op, problem, "numpy", backend).run
    shape, dtype = problem.shape(results[0]), arrays.dtype_of(problem.dtype)
    missing = (None,) * (len(roles) - count)

    def direct(*operands: Any) -> Any:
        result = arrays.empty(shape, dtype, operands[0])
        run(result, *operands, *missing)
        return result

    return direct


def execute(op: str, problem: Any, launch: Launch, operands: arrays.Operands, out: Any = None) -> Any:
    """Run a launch on operands as the user passed them; returns what the user gets."""
    roles, results = OPS[op]
    inputs = operands.arrays
    views = [
        None if array is None else arrays.canonical(problem, role, arrays.native(array))
        for role, array in zip(roles, inputs, strict=True)
    ]
    target = target_of(problem, results[0], operands, out)
    view = arrays.canonical(problem, results[0], target)
    wrap = operands.wrap
    if len(results) == 1:
        launch.run(view, *views)
        if out is not None:
            return out
        return target if wrap is None else wrap(target)
    second = _allocate(problem, results[1], np.dtype(problem.dtype_of(results[1])), inputs[0])
    launch.run(view, arrays.canonical(problem, results[1], second), *views)
    if wrap is None:
        return (target if out is None else out), second
    # Places stay inside of the library, as a view.
    return (wrap(target) if out is None else out), second if results[1] == "places" else wrap(second)


def target_of(problem: Any, role: str, operands: arrays.Operands, out: Any) -> Any:
    """The array that the result of that role goes to: `out`, once it has been checked, or a new one."""
    dtype = arrays.dtype_of(problem.dtype)
    if out is None:
        return _allocate(problem, role, dtype, operands.arrays[0])
    target = out if type(out) is np.ndarray else None
    if target is None or operands.wrap is not None or operands.kind != "numpy":
        target = arrays.admit_out(out, operands)
    arrays.check_out(target, problem.shape(role), dtype, operands.arrays)
    return target


def _allocate(problem: Any, role: str, dtype: np.dtype, like: Any) -> Any:
    """A result; an NCHW activation lies in NHWC memory where the first operand, its source, does."""
    follows = problem.order(role) == "NCHW" and like.ndim == len(problem.shape(role)) > 2
    return arrays.empty(problem.shape(role), dtype, like, follows)

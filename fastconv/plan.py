"""`plan`, which does the checking and choosing of a call once, and `explain`, which shows what it chose."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastconv import arrays, dispatch
from fastconv.backends.base import OPS, Launch
from fastconv.dispatch import Inquiry
from fastconv.errors import ArgumentError, ShapeError
from fastconv.ops import conv, pool, signal

PUBLIC = re.compile(r".*[123]d(_[dw]grad)?|bias_grad|global_.*|(correlate|convolve)(2d)?")

#: The public functions that a name can stand for.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: function
    for module in (conv, pool, signal)
    for name, function in vars(module).items()
    if inspect.isfunction(function) and PUBLIC.fullmatch(name)
}


def _function(name: Any) -> Callable[..., Any]:
    if isinstance(name, str) and name in FUNCTIONS:
        return FUNCTIONS[name]
    error = ShapeError if isinstance(name, str) else ArgumentError
    raise error(f"there is no op {name!r}: the ops are {', '.join(sorted(FUNCTIONS))}")


def _request(name: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dispatch.Request:
    backend = kwargs.pop("backend", None)
    kwargs.pop("out", None)
    try:
        inspect.signature(_function(name)).bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"{name}: {error}") from None
    request: dispatch.Request = _function(name)(*args, backend=Inquiry(backend), **kwargs)
    return request


@dataclass(frozen=True)
class Explanation:
    """What a call would run; ``str()`` of it is for people."""

    op: str
    problem: Any
    backend: str
    algorithm: str
    why: str
    config: dict[str, Any] = field(default_factory=dict)
    workspace: int = 0

    def __str__(self) -> str:
        config = ", ".join(f"{key}={value}" for key, value in self.config.items()) or "-"
        return (
            f"{self.op}: {self.problem}\n"
            f"  backend    {self.backend}\n"
            f"  algorithm  {self.algorithm}: {self.why}\n"
            f"  config     {config}\n"
            f"  workspace  {self.workspace / 2**20:.2f} MiB per thread"
        )


def explain(op_name: str, *args: Any, **kwargs: Any) -> Explanation:
    """Which backend, algorithm and config a call would take, and why; nothing is computed.

    Parameters
    ----------
    op_name : str
        The name of a public function, such as "conv2d" or "max_pool2d_dgrad".
    *args, **kwargs
        What that function would be called with.

    Returns
    -------
    Explanation
        With the fields op, problem, backend, algorithm, why, config and workspace (bytes per thread);
        ``print`` it.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As the call itself would; an unknown op is a ShapeError.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.explain("conv2d", np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), backend="reference").algorithm
    'definition'
    """
    request = _request(op_name, args, dict(kwargs))
    name, launch = dispatch.choose(request.op, request.problem, request.operands.kind, kwargs.get("backend"))
    return Explanation(request.op, request.problem, name, launch.algorithm, launch.why, launch.config, launch.workspace)


class Plan:
    """A call checked and chosen once; see `plan`."""

    __slots__ = ("_again", "_kept", "_launch", "_op", "_prepared", "_problem", "_signature")

    def __init__(self, request: dispatch.Request, launch: Launch, again: Callable[..., Any]):
        self._op, self._problem, self._launch = request.op, request.problem, launch
        self._signature = _signature(request.sources)
        # The operands of a correlation are reversed or extended on the way: the public function does that.
        self._again = again if request.op == "correlate" else None
        self._kept: Any = None
        self._prepared: Launch | None = None

    @property
    def problem(self) -> Any:
        """The validated problem that every call of this plan solves."""
        return self._problem

    def prepare(self, w: Any) -> Plan:
        """Keep `w` in the form that the kernel reads, for the later calls that pass this very array.

        Changing its values afterwards needs another `prepare`. Returns the plan.

        Raises
        ------
        ShapeError
            For weights of another geometry than the plan's, and for an op without weights.
        """
        roles = OPS[self._op][0]
        if "w" not in roles:
            raise ShapeError(f"{self._op} has no weights to prepare")
        at = roles.index("w")
        (view,) = dispatch.admit(("w",), (w,), None).arrays
        if _signature((view,))[0] != self._signature[at]:
            raise ShapeError(f"w must be of the plan's geometry {self._signature[at]}: got {_signature((view,))[0]}")
        if self._launch.prepare is not None:
            self._prepared = self._launch.prepare(arrays.canonical(self._problem, "w", arrays.native(view)))
            self._kept = w
        return self

    def __call__(self, *operands: Any, out: Any = None) -> Any:
        """Run on arrays of exactly the plan's geometry, dtypes and strides.

        Raises
        ------
        ShapeError
            For arrays of another geometry, dtype or strides.
        """
        roles = OPS[self._op][0]
        if len(operands) < len(roles):
            operands += (None,) * (len(roles) - len(operands))
        admitted = dispatch.admit(roles, operands, None)
        if _signature(admitted.arrays) != self._signature:
            raise ShapeError(
                f"this plan is for {self._problem} with arrays of (shape, strides, dtype) {self._signature}: "
                f"got {_signature(admitted.arrays)}; make another plan"
            )
        if self._again is not None:
            return self._again(*operands, out=out)
        launch = self._launch
        if self._prepared is not None and any(operand is self._kept for operand in operands):
            launch = self._prepared
        return dispatch.launch(self._op, self._problem, launch, admitted, out)


def _signature(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if array is None else (array.shape, array.strides, array.dtype) for array in operands)


def plan(op_name: str, *operands: Any, **kwargs: Any) -> Plan:
    """Check a call and choose its kernel once, for many calls of the same geometry.

    Parameters
    ----------
    op_name : str
        The name of a public function that returns one array, such as "conv2d"; or a pooling with indices.
    *operands, **kwargs
        What that function would be called with. Only geometry, dtypes and strides are kept.

    Returns
    -------
    Plan
        ``p(*arrays, out=None)`` computes on arrays of exactly that geometry, dtypes and strides.
        ``p.prepare(w)`` keeps transformed weights for the calls that pass that same ``w``.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As the call itself would; an unknown op is a ShapeError.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3))
    >>> p = fastconv.plan("conv2d", x, w, padding=1)
    >>> bool((p(x, w) == fastconv.conv2d(x, w, padding=1)).all())
    True
    """
    request = _request(op_name, operands, dict(kwargs))
    launch = dispatch.select(request.op, request.problem, request.operands.kind, kwargs.get("backend"))
    _, extra = _split(op_name, operands, kwargs)
    return Plan(request, launch, partial(_function(op_name), **extra))


def _split(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The array arguments of a call, and the rest of them by name."""
    bound = inspect.signature(_function(name)).bind(*args, **kwargs).arguments
    names = [key for key in bound if key in ("in1", "in2")]
    return [bound[key] for key in names], {key: value for key, value in bound.items() if key not in names}

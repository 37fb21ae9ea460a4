"""What a backend is: it may refuse an op with a reason, and it turns an op and a problem into a launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

#: Per op, the roles of its operands and of its results. An operand may be None where it is optional.
OPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "conv_fprop": (("x", "w", "bias"), ("y",)),
    "conv_dgrad": (("y", "w", "tbias"), ("x",)),
    "conv_wgrad": (("y", "x"), ("w",)),
    "bias_grad": (("x",), ("bias",)),
    "activation_fprop": (("x",), ("y",)),
    "activation_dgrad": (("y", "x"), ("x",)),
    "maxpool_fprop": (("x",), ("y",)),
    "maxpool_indices": (("x",), ("y", "indices")),
    "maxpool_dgrad": (("y", "x", "indices"), ("x",)),
    "maxpool_places": (("x",), ("y", "places")),
    "maxpool_places_dgrad": (("y", "places"), ("x",)),
    "avgpool_fprop": (("x",), ("y",)),
    "avgpool_dgrad": (("y",), ("x",)),
    "lppool_fprop": (("x",), ("y",)),
    "lppool_dgrad": (("y", "x"), ("x",)),
    "maxunpool_fprop": (("y", "indices"), ("x",)),
    "maxunpool_dgrad": (("x", "indices"), ("y",)),
    "correlate": (("in1", "in2"), ("out",)),
}


@dataclass(frozen=True)
class Launch:
    """A chosen way to run one op on one problem: ``launch(results, *operands)`` fills the results.

    Operands and results are NumPy views in canonical axes (see `fastconv.arrays`).
    """

    run: Callable[..., None]
    algorithm: str
    why: str
    config: dict[str, Any] = field(default_factory=dict)
    workspace: int = 0  # bytes per thread
    prepare: Callable[[Any], Launch] | None = None  # canonical weights -> a launch that has them transformed


class Backend(Protocol):
    """One way to compute: `name`, the array kinds it takes, and its launches."""

    name: str
    kinds: tuple[str, ...]

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine, or None where it can."""

    def rejects(self, op: str, problem: Any) -> str | None:
        """Why this backend does not take that op on that problem, or None where it does."""

    def plan(self, op: str, problem: Any) -> Launch:
        """The launch for an op and a problem that it does not reject."""

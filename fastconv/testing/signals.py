"""What the tests of each backend's correlation share: combinations, operands that sum exactly, the definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fastconv import dispatch
from fastconv.problem import Ints, SignalProblem, signal_problem
from fastconv.testing import cases

MODES = ("full", "same", "valid")


def combinations(shapes: Iterable[tuple[Ints, Ints]]) -> Iterator[tuple[Ints, Ints, str]]:
    """Each pair of shapes in each mode; "valid" where one of them contains the other."""
    for first, second in shapes:
        order = {n > m for n, m in zip(first, second, strict=True) if n != m}
        yield from ((first, second, mode) for mode in MODES if mode != "valid" or len(order) < 2)


def problem(first: Ints, second: Ints, mode: str, dtype: str, method: str = "auto") -> SignalProblem:
    return signal_problem(first, second, dtype, False, mode, method)


def operand(shape: Ints, dtype: str, seed: int = 0, most: int = 3) -> Any:
    """Every integer of the dtype; whole numbers up to `most`, which sum exactly, in floats."""
    rng = np.random.default_rng([seed, *shape])
    kind = cases.dtype_of(dtype)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
    if kind.kind == "b":
        return rng.random(shape) < 0.3
    values = rng.integers(-most, most + 1, shape).astype(kind)
    return values + 1j * rng.integers(-most, most + 1, shape).astype(kind) if kind.kind == "c" else values


def definition(problem: SignalProblem, in1: Any, in2: Any) -> Any:
    out = np.empty(problem.out, in1.dtype)
    dispatch.get("reference").plan("correlate", problem).run(out, in1, in2)
    return out

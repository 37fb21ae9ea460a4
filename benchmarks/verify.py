"""What a result must be: the reference's answer in float64, and per element how far off it may be.

Two data sets per case, random signs and their absolute values. The second has two uses: a kernel that
answers with what it computed for other data is wrong on it, and its answer ``conv(|x|, |w|)`` is the
magnitude that rounding errors are measured by, for both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastconv import dispatch
from fastconv.arrays import dtype_of
from fastconv.backends.base import OPS
from fastconv.benchmarks.cases import Case
from fastconv.problem import ConvProblem
from fastconv.testing import compare

Array = np.ndarray
BEFORE, AFTER = 0, 1  # the data set that is timed, and the one that is computed once afterwards


def operands(case: Case, data: int) -> dict[str, Array]:
    """The operands of a case in canonical axes: the same numbers in every process."""
    rng = np.random.default_rng(zlib.crc32(f"{case.op} {case.problem}".encode()))
    dtype = dtype_of(case.problem.dtype)
    arrays = {}
    for role in case.roles:
        values = rng.random(case.problem.dims(role), np.float32) * 2 - 1
        arrays[role] = (np.abs(values) if data == AFTER else values).astype(dtype)
    return arrays


def reference(case: Case, arrays: Mapping[str, Array]) -> Array:
    """The reference backend's answer, not rounded to the problem's dtype."""
    _, launch = dispatch.choose(case.op, case.problem, "numpy", "reference")
    result = np.empty(case.problem.dims(case.result), np.float64)
    launch.run(result, *(arrays.get(role) for role in OPS[case.op][0]))
    return result


def rounding(case: Case, expected: Array, magnitude: Array) -> Array:
    """What rounding allows each element, given the op's answer to the operands' absolute values.

    The bound of its own sum in whatever order (`fastconv.testing.compare`); a maximum is exact.
    """
    if case.op == "maxpool_fprop":
        return np.zeros_like(expected)
    if case.op == "maxpool_dgrad":  # in a cell meet at most as many gradients as a window has cells, each at most 1
        magnitude = np.full_like(expected, case.terms)
    return compare.allowance(expected, magnitude, case.terms, case.problem.dtype)


def promise(case: Case, magnitude: Array) -> Array | None:
    """What API.md promises of float32 convolutions in the default precision; None for everything else."""
    if not isinstance(case.problem, ConvProblem) or case.problem.dtype != "float32" or case.problem.precision:
        return None
    for axis in range(2, magnitude.ndim):
        magnitude = compare.reach(magnitude, axis, compare.FAST_REACH)
    return compare.FAST_BOUND * magnitude + compare.TINY["float32"]


@dataclass(frozen=True)
class Check:
    """How a result compares: its largest error, as a share of what is allowed, and why it is wrong."""

    error: float  # the largest |got - expected| / allowed; 1 is the limit
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.reason is None


class Expectation:
    """The reference's answers to both data sets of a case, computed once and used for every check of it."""

    def __init__(self, case: Case):
        self.case = case
        self.expected = [reference(case, operands(case, data)) for data in (BEFORE, AFTER)]
        self.promised = promise(case, self.expected[AFTER])
        self._rounding: dict[int, Array] = {}

    def allowed(self, data: int, own: bool) -> Array:
        """The largest error of each element.

        fastconv is held to its promise alone, which is tighter than rounding on long sums; other libraries, which
        promised nothing, to whichever of the two allows more.
        """
        if own and self.promised is not None:
            return self.promised
        if data not in self._rounding:
            bound = rounding(self.case, self.expected[data], self.expected[AFTER])
            self._rounding[data] = bound if self.promised is None else np.maximum(bound, self.promised)
        return self._rounding[data]

    def check(self, data: int, got: Array, own: bool = True) -> Check:
        """Compare a result, in canonical axes, element by element; `own` is True for fastconv's."""
        expected, allowed = self.expected[data], self.allowed(data, own)
        if got.shape != expected.shape:
            return Check(math.inf, f"wrong shape {list(got.shape)}, expected {list(expected.shape)}")
        if got.dtype != dtype_of(self.case.problem.dtype):
            return Check(math.inf, f"wrong dtype {got.dtype}, expected {self.case.problem.dtype}")
        off = np.abs(got.astype(np.float64) - expected)
        off[np.isnan(off)] = np.inf  # a NaN is as wrong as can be
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(off == 0, 0.0, off / allowed)  # where nothing is allowed, any error is infinite
        worst = float(share.max(initial=0.0))
        if worst <= 1:
            return Check(worst)
        wrong = int((share > 1).sum())
        at = tuple(map(int, np.unravel_index(share.argmax(), share.shape)))
        which = "the timed data" if data == BEFORE else "other data than was timed"
        return Check(
            worst,
            f"wrong values on {which}: {wrong} of {share.size}; at {list(at)} got {float(got[at]):.6g}, "
            f"expected {expected[at]:.6g} within {float(allowed[at]):.2g}",
        )

"""What a result must be: the reference's answer in float64, and per element how far off it may be.

Two data sets per case, random signs and their absolute values. The second has two uses: a kernel that
answers with what it computed for other data is wrong on it, and its answer ``conv(|x|, |w|)`` is the
magnitude that rounding errors are measured by, for both.

Of a case that would take the reference minutes, a part is checked that it can compute alone: the first, the last
and random images of the batch, or channels of the result.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastconv import dispatch
from fastconv.arrays import dtype_of
from fastconv.backends.base import OPS
from fastconv.benchmarks.cases import Case
from fastconv.ops.signal import prepare
from fastconv.problem import ConvProblem, PoolProblem, SignalProblem
from fastconv.testing import compare
from fastconv.testing.selftest import FFT_ROUNDINGS

Array = np.ndarray
BEFORE, AFTER = 0, 1  # the data set that is timed, and the one that is computed once afterwards


#: Floating-point operations, and elements, above which a case is checked in part.
WHOLE_FLOPS, WHOLE_ELEMENTS = 2**33, 2**28
FEWEST = 3  # images or channels of a part
PERIOD = 7  # images after which the data of so large a batch repeats itself


def operands(case: Case, data: int) -> dict[str, Array]:
    """The operands of a case in canonical axes: the same numbers in every process."""
    rng = np.random.default_rng(_seed(case))
    dtype = dtype_of(case.problem.dtype)
    repeats = case.elements > WHOLE_ELEMENTS
    arrays = {}
    for role in case.roles:
        dims = case.problem.dims(role)
        batched = repeats and role in ("x", "y") and dims[0] > PERIOD
        values = rng.random((PERIOD, *dims[1:]) if batched else dims, np.float32) * 2 - 1
        values = (np.abs(values) if data == AFTER else values).astype(dtype)
        arrays[role] = np.take(values, np.arange(dims[0]) % PERIOD, 0) if batched else values
    return arrays


def _seed(case: Case) -> int:
    return zlib.crc32(f"{case.op} {case.problem}".encode())


@dataclass(frozen=True)
class Part:
    """The part of a case that is checked: a smaller case, and where its operands lie in the whole one's."""

    case: Case
    where: Mapping[str, tuple[int, Array]]  # role -> axis and indices; a role that is not there is taken whole

    def of(self, role: str, array: Array) -> Array:
        if role not in self.where:
            return array
        axis, indices = self.where[role]
        return np.take(array, indices, axis)

    def __str__(self) -> str:
        (axis, indices), *_ = self.where.values()
        return f"{len(indices)} {'images' if axis == 0 and 'w' not in self.where else 'channels'}"


def part(case: Case) -> Part | None:
    """Which part of a case is checked; None where all of it is.

    Images of the batch; where there are few, or where the result sums over them, channels of the result with all
    that they need: filters, of an input's gradient the filters' channels, and whole groups.
    """
    size = max(case.flops / WHOLE_FLOPS, case.elements / WHOLE_ELEMENTS)
    problem = case.problem
    if size <= 1 or isinstance(problem, SignalProblem):
        return None
    if case.op != "conv_wgrad" and problem.N >= FEWEST:
        images = _some(case, problem.N, size)
        return Part(_smaller(case, N=len(images)), {"x": (0, images), "y": (0, images)})
    if isinstance(problem, PoolProblem):
        channels = _some(case, problem.C, size)
        return Part(_smaller(case, C=len(channels)), {"x": (1, channels), "y": (1, channels)})
    if problem.groups > 1:
        groups = _some(case, problem.groups, size)
        filters, channels = (
            (groups[:, None] * width + np.arange(width)).ravel()
            for width in (problem.K // problem.groups, problem.C // problem.groups)
        )
        smaller = _smaller(case, K=len(filters), C=len(channels), groups=len(groups))
        return Part(smaller, {"w": (0, filters), "y": (1, filters), "x": (1, channels)})
    if case.op == "conv_dgrad":
        channels = _some(case, problem.C, size)
        return Part(_smaller(case, C=len(channels)), {"w": (1, channels), "x": (1, channels)})
    filters = _some(case, problem.K, size)
    return Part(_smaller(case, K=len(filters)), {"w": (0, filters), "y": (1, filters)})


def _smaller(case: Case, **changes: int) -> Case:
    return replace(case, problem=replace(case.problem, **changes))  # type: ignore[arg-type]


def _some(case: Case, count: int, size: float) -> Array:
    """The first, the last and random ones of `count`: as many as the limit allows, and a few anyway."""
    wanted = min(count, max(int(count / size), FEWEST))
    inner = np.random.default_rng(_seed(case) + 1).permutation(np.arange(1, max(count - 1, 1)))
    return np.unique(np.array([0, count - 1, *inner[: max(wanted - 2, 0)]]))


def reference(case: Case, arrays: Mapping[str, Array]) -> Array:
    """The reference backend's answer, not rounded to the problem's dtype."""
    problem = case.problem
    _, launch = dispatch.choose(case.op, problem, "numpy", "reference")
    if isinstance(problem, SignalProblem):
        in1, in2 = prepare(arrays["in1"], arrays["in2"], problem)
        arrays = {"in1": in1, "in2": in2}
    result = np.empty(problem.dims(case.result), np.float64)
    launch.run(result, *(arrays.get(role) for role in OPS[case.op][0]))
    return result


def transform_rounding(arrays: Mapping[str, Array], dtype: str) -> float:
    """What a correlation by Fourier transform may be off: a few roundings of the norms, wherever it lies."""
    norms = [float(np.linalg.norm(array.astype(np.float64))) for array in arrays.values()]
    return FFT_ROUNDINGS * compare.ROUNDOFF[compare.ACCUMULATOR[dtype]] * math.prod(norms)


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
    tolerance: float = 0.0  # what is allowed where the error is largest

    @property
    def ok(self) -> bool:
        return self.reason is None


class Expectation:
    """The reference's answers to both data sets of a case, computed once and used for every check of it."""

    def __init__(self, case: Case):
        self.part = part(case)
        self.case = self.part.case if self.part else case
        self.expected = []
        for data in (BEFORE, AFTER):
            given = operands(case, data)
            if self.part:
                given = {role: self.part.of(role, array) for role, array in given.items()}
            self.expected.append(reference(self.case, given))
        self.transformed = isinstance(case.problem, SignalProblem) and transform_rounding(given, case.problem.dtype)
        self.promised = promise(self.case, self.expected[AFTER])
        self._rounding: dict[int, Array] = {}

    def allowed(self, data: int, own: bool) -> Array:
        """The largest error of each element.

        fastconv is held to its promise alone, which is tighter than rounding on long sums; other libraries, which
        promised nothing, to whichever of the two allows more. A correlation may be off by what a transform may.
        """
        if own and self.promised is not None:
            return self.promised
        if data not in self._rounding:
            bound = rounding(self.case, self.expected[data], self.expected[AFTER])
            other = self.transformed if self.promised is None else self.promised
            self._rounding[data] = np.maximum(bound, other)
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
        at = tuple(map(int, np.unravel_index(share.argmax(), share.shape)))
        if worst <= 1:
            return Check(worst, tolerance=float(allowed[at]))
        wrong = int((share > 1).sum())
        which = "the timed data" if data == BEFORE else "other data than was timed"
        return Check(
            worst,
            f"wrong values on {which}: {wrong} of {share.size}; at {list(at)} got {float(got[at]):.6g}, "
            f"expected {expected[at]:.6g} within {float(allowed[at]):.2g}",
        )

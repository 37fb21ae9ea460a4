"""Cases: the layers of the named suites, read from `suites/*.txt`, and the passes that are measured of each.

A line of a suite is ``network layer xCOUNT family problem``: the problem is the text form of
`fastconv.problem`, the family says which ops it stands for, and COUNT how often the network has it. A layer
of no network has "-" for its name. Layers of whole networks are for a batch of 1; others have their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from fastconv.arrays import FLOATS, dtype_of
from fastconv.backends.base import OPS
from fastconv.benchmarks import regimes
from fastconv.errors import ShapeError
from fastconv.problem import LAYOUTS, ConvProblem, PoolProblem, SignalProblem

Problem = ConvProblem | PoolProblem | SignalProblem

#: Per family, the op that each pass runs. A transposed convolution is the adjoint of its problem.
FAMILIES = {
    "conv": {"fprop": "conv_fprop", "dgrad": "conv_dgrad", "wgrad": "conv_wgrad"},
    "convtranspose": {"fprop": "conv_dgrad", "dgrad": "conv_fprop", "wgrad": "conv_wgrad"},
    "maxpool": {"fprop": "maxpool_fprop", "dgrad": "maxpool_dgrad"},
    "avgpool": {"fprop": "avgpool_fprop", "dgrad": "avgpool_dgrad"},
    "signal": {"fprop": "correlate"},
}
#: Per family, how its problems begin.
KINDS = {"conv": "conv", "convtranspose": "conv", "maxpool": "pool", "avgpool": "pool", "signal": "co"}
PASSES = ("fprop", "dgrad", "wgrad")
LINE = re.compile(r"(?P<network>\S+)\s+(?P<layer>\S+)\s+x(?P<count>[1-9]\d*)\s+(?P<family>\S+)\s+(?P<problem>\S.*)")


class SuiteError(ValueError):
    """A suite that does not exist or a line that cannot be read."""


@dataclass(frozen=True)
class Layer:
    """One line of a suite."""

    suite: str
    network: str
    name: str
    count: int
    family: str
    text: str
    whole: bool = True  # whether it belongs to a network
    first: bool = False  # whether it reads the network's input, whose gradient training does not need


@dataclass(frozen=True)
class Case:
    """One pass of one layer: what is verified, timed and reported as a row."""

    layer: Layer
    pass_: str
    problem: Problem

    @property
    def op(self) -> str:
        return FAMILIES[self.layer.family][self.pass_]

    @property
    def roles(self) -> tuple[str, ...]:
        """The operands that the op gets; optional ones are left out."""
        return tuple(role for role in OPS[self.op][0] if role not in ("bias", "tbias", "indices"))

    @property
    def result(self) -> str:
        return OPS[self.op][1][0]

    @property
    def name(self) -> str:
        return f"{self.layer.suite}/{self.layer.name}/{self.pass_}"

    @property
    def group(self) -> str:
        """The name that geomeans are grouped under: the pass, and whether it is a pooling or a correlation."""
        if self.op == "correlate":
            return "signal"
        return f"pool {self.pass_}" if isinstance(self.problem, PoolProblem) else self.pass_

    @property
    def terms(self) -> int:
        """How many products or cells at most add up to one element of the result."""
        problem = self.problem
        if isinstance(problem, PoolProblem):
            return problem.taps
        if isinstance(problem, SignalProblem):
            return math.prod(problem.shape2)
        if self.op == "conv_wgrad":
            return problem.N * math.prod(problem.out)
        return (problem.C if self.op == "conv_fprop" else problem.K) // problem.groups * problem.window.taps

    @property
    def flops(self) -> int:
        """Two per multiply-add, one per pooled cell; whatever an algorithm saves is not taken off."""
        if isinstance(self.problem, PoolProblem):
            return math.prod(self.problem.dims("y")) * self.problem.taps
        return 2 * self.problem.macs

    @property
    def nbytes(self) -> int:
        """What must cross the memory bus at least: every operand and the result once."""
        return self.elements * dtype_of(self.problem.dtype).itemsize

    @property
    def elements(self) -> int:
        """How many numbers its operands and its result have."""
        return sum(math.prod(self.problem.dims(role)) for role in (*self.roles, self.result))

    @property
    def huge(self) -> bool:
        """Whether an operand or the result has more elements than 32 bits count."""
        return any(math.prod(self.problem.dims(role)) > 2**31 for role in (*self.roles, self.result))

    def regime(self, device: str) -> str:
        """The kind of work, which decides what algorithm can be fast on the "cpu" or on a "gpu"."""
        return regimes.regime(device, self.op, self.problem, self.flops, self.nbytes)


def suite_names() -> list[str]:
    folder = files("fastconv.benchmarks") / "suites"
    return sorted(file.name.removesuffix(".txt") for file in folder.iterdir() if file.name.endswith(".txt"))


def load_suite(name: str) -> list[Layer]:
    """The layers of a suite.

    Raises
    ------
    SuiteError
        For an unknown name, and for a line that cannot be read, with its number.
    """
    if name not in suite_names():
        raise SuiteError(f"there is no suite {name!r}: the suites are {', '.join(suite_names())}")
    return parse_suite(name, (files("fastconv.benchmarks") / "suites" / f"{name}.txt").read_text("utf-8"))


def parse_suite(name: str, text: str) -> list[Layer]:
    layers: list[Layer] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise SuiteError(f"{name}.txt:{number}: expected 'network layer xCOUNT family problem', got {line!r}")
        network, layer, count, family, problem = match.groups()
        if family not in FAMILIES:
            raise SuiteError(f"{name}.txt:{number}: family must be one of {', '.join(FAMILIES)}, got {family!r}")
        if any(layer == other.name for other in layers):
            raise SuiteError(f"{name}.txt:{number}: there is a layer {layer!r} already")
        whole = network != "-"
        network = network if whole else name
        try:
            parse_problem(problem, family)
        except ValueError as error:
            raise SuiteError(f"{name}.txt:{number}: {error}") from error
        first = whole and all(network != other.network for other in layers)
        layers.append(Layer(name, network, layer, int(count), family, problem, whole, first))
    if not layers:
        raise SuiteError(f"{name}.txt has no layers")
    return layers


def parse_problem(text: str, family: str) -> Problem:
    """The problem that a line of that family names."""
    begins = KINDS[family]
    if not re.match(rf"{begins}[123]d\b" if begins != "co" else r"(correlate|convolve)\b", text):
        raise ShapeError(f"a {family} problem begins with {KIND_WORDS[begins]}: got {text!r}")
    return {"conv": ConvProblem, "pool": PoolProblem, "co": SignalProblem}[begins].parse(text)


KIND_WORDS = {"conv": "convNd", "pool": "poolNd", "co": "correlate or convolve"}


def override(text: str, **words: str | int | None) -> str:
    """The problem's line with some of its words set anew; None leaves a word as it is."""
    changed = {name: value for name, value in words.items() if value is not None}
    kept = [word for word in text.split() if word.partition("=")[0] not in changed]
    return " ".join([*kept, *(f"{name}={value}" for name, value in changed.items())])


def build_cases(
    suites: Iterable[str], passes: Sequence[str] = PASSES, dtype: str = "float32", layout: str = "NCHW",
    batch: int | None = None,
) -> list[Case]:  # fmt: skip
    """Every pass of every layer of the suites, in their order; without `batch`, of the batch in its line.

    Raises
    ------
    SuiteError
        For an unknown suite, pass, dtype or layout.
    """
    for kind, value, known in (
        *(("pass", name, PASSES) for name in passes), ("dtype", dtype, FLOATS), ("layout", layout, LAYOUTS),
    ):  # fmt: skip
        if value not in known:
            raise SuiteError(f"there is no {kind} {value!r}: use {', '.join(known)}")
    if batch is not None and batch < 1:
        raise SuiteError(f"the batch must be at least 1, got {batch}")
    cases = []
    for layer in (layer for suite in suites for layer in load_suite(suite)):
        words = {"dtype": dtype} if layer.family == "signal" else {"dtype": dtype, "layout": layout, "n": batch}
        problem = parse_problem(override(layer.text, **words), layer.family)
        cases += [Case(layer, name, problem) for name in PASSES if name in passes and name in FAMILIES[layer.family]]
    return cases

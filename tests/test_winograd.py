"""Winograd on the CPU: the rule that takes it, the seams of its tiles, API.md's bound, values that are not finite."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv.backends.cpu import conv, winograd
from fastconv.backends.reference import backend as reference
from fastconv.problem import ConvProblem
from fastconv.testing import compare

OPERANDS = {"conv_fprop": ("y", "x", "w"), "conv_dgrad": ("x", "y", "w"), "conv_wgrad": ("w", "y", "x")}

#: Partial tiles, partial vectors of channels, and each way in which the work is cut.
CASES = {
    "whole_tiles": "conv2d n=1 c=32 size=16 k=32 ksize=3 pad=1",
    "seams": "conv2d n=2 c=17 size=13x18 k=21 ksize=3",
    "wide": "conv2d n=1 c=16 size=10x230 k=33 ksize=3 pad=2",
    "asymmetric": "conv2d n=1 c=20 size=11x14 k=16 ksize=3 pad=0:2x2:1",
    "many_tiles": "conv2d n=2 c=16 size=60x63 k=40 ksize=3 pad=1",
    "few_pixels": "conv2d n=1 c=130 size=5 k=49 ksize=3 pad=1",
    "dilated": "conv2d n=1 c=19 size=27x20 k=18 ksize=3 pad=2x3 dilation=2x3",
    "5x5": "conv2d n=1 c=18 size=15x17 k=20 ksize=5 pad=2",
    "grouped": "conv2d n=2 c=32 size=12 k=36 ksize=3 pad=1 groups=2",
    "nhwc": "conv2d n=2 c=18 size=13x14 k=35 ksize=3 pad=1 layout=NHWC",
}


def operands(op: str, problem: ConvProblem, seed: int = 0) -> list[np.ndarray]:
    """A poisoned result and two operands in canonical axes, in the memory order of the problem's layout."""
    rng = np.random.default_rng(seed)

    def lie(role: str, array: np.ndarray) -> np.ndarray:
        if problem.layout == "NCHW":
            return array
        axes = (2, 3, 1, 0) if role == "w" else (0, 2, 3, 1)
        return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))

    result, *sources = OPERANDS[op]
    drawn = [lie(role, rng.standard_normal(problem.dims(role)).astype(np.float32)) for role in sources]
    return [lie(result, np.full(problem.dims(result), np.nan, np.float32)), *drawn]


def run(op: str, problem: ConvProblem, out: np.ndarray, *sources: np.ndarray, bias: np.ndarray | None = None):
    conv.build("winograd", op, problem, "").run(out, *sources, *([] if op == "conv_wgrad" else [bias]))
    return out


def in_float64(op: str, problem: ConvProblem, *sources: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    problem = replace(problem, dtype="float64")
    out = np.empty(problem.dims(OPERANDS[op][0]))
    wide = [None if array is None else array.astype(np.float64) for array in (*sources, bias)]
    reference.plan(op, problem).run(out, *wide[: 2 if op == "conv_wgrad" else 3])
    return out


def check(op: str, problem: ConvProblem, out: np.ndarray, *sources: np.ndarray) -> None:
    """API.md's bound; the problem's line is the repro."""
    run(op, problem, out, *sources)
    scale = in_float64(op, problem, *(np.abs(array) for array in sources))
    compare.near(out, in_float64(op, problem, *sources), scale, (2, 3), f"{op} {problem}")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("op", OPERANDS)
def test_bound(op, name):
    """Within a tenth of the promise on normal data, and the same bits again."""
    problem = ConvProblem.parse(CASES[name])
    out, *sources = operands(op, problem)
    assert winograd.refuses(op, problem) is None
    check(op, problem, out, *sources)
    scale = in_float64(op, problem, *(np.abs(array) for array in sources))
    assert np.abs(out - in_float64(op, problem, *sources)).max() <= 1e-6 * scale.max()
    compare.same_bits(run(op, problem, np.full_like(out, np.nan), *sources), out, str(problem))


DATA = {
    "wide": lambda rng, a: a * 10 ** rng.uniform(-8, 8, a.shape),
    "wide_channels": lambda rng, a: a * 10 ** rng.uniform(-4, 4, (*a.shape[:2], 1, 1)),
    "sparse": lambda rng, a: a * (rng.random(a.shape) < 0.02),
    "one": lambda rng, a: (np.arange(a.size).reshape(a.shape) == a.size // 2) * 1.0,
    "cancelling": lambda rng, a: (1 + 1e-3 * a) * np.where(np.arange(a.shape[1]) % 2, -1, 1)[:, None, None],
    "zero": lambda rng, a: a * 0,
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", ["seams", "whole_tiles", "5x5"])
@pytest.mark.parametrize("op", OPERANDS)
def test_bound_on_hard_data(op, name, data):
    problem = ConvProblem.parse(CASES[name])
    out, *sources = operands(op, problem, seed=1)
    rng = np.random.default_rng(2)
    check(op, problem, out, *(DATA[data](rng, array).astype(np.float32) for array in sources))


@pytest.mark.parametrize("name", ["seams", "dilated", "nhwc", "5x5", "many_tiles"])
@pytest.mark.parametrize("role", [0, 1])
@pytest.mark.parametrize("op", OPERANDS)
def test_values_that_are_not_finite_stay_where_they_belong(op, role, name):
    """A NaN and two infinities in either operand: finite results are right, the others what the sums give."""
    problem = ConvProblem.parse(CASES[name])
    out, *sources = operands(op, problem)
    spots = np.random.default_rng(5).choice(sources[role].size, 3, replace=False)
    for at, value in zip(spots, (np.nan, np.inf, -np.inf), strict=True):
        sources[role][np.unravel_index(at, sources[role].shape)] = value
    with np.errstate(invalid="ignore"):
        run(op, problem, out, *sources)
        expected = in_float64(op, problem, *sources)
    finite = np.isfinite(expected)
    assert not finite.all()
    assert np.array_equal(np.isfinite(out), finite)
    assert np.array_equal(out[~finite], expected[~finite], equal_nan=True)
    scale = in_float64(op, problem, *(np.abs(np.nan_to_num(array, posinf=0, neginf=0)) for array in sources))
    assert np.abs(out[finite] - expected[finite]).max() <= 1e-6 * scale.max()


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad"])
def test_bias_and_activation(op, activation):
    """Fused in tiles that were computed again too."""
    problem = ConvProblem.parse(CASES["seams"])
    bias = np.random.default_rng(3).standard_normal(problem.K if op == "conv_fprop" else problem.C).astype(np.float32)
    problem = replace(problem, bias=bias.shape, activation=activation)
    out, *sources = operands(op, problem)
    sources[0][0, 3, 4, 5] = np.inf
    sources[1][...] = np.abs(sources[1])
    run(op, problem, out, *sources, bias=bias)
    expected = in_float64(op, problem, *sources, bias=bias)
    finite = np.isfinite(expected)
    assert np.array_equal(out[~finite], expected[~finite], equal_nan=True)
    assert np.abs(out[finite] - expected[finite]).max() <= 1e-4


@pytest.mark.parametrize("name", ["seams", "many_tiles", "grouped"])
def test_prepared_filters(name):
    """A plan that keeps transformed filters gives the same bits."""
    problem = ConvProblem.parse(CASES[name])
    _, x, w = operands("conv_fprop", problem)
    arguments = {"padding": problem.window.pad, "groups": problem.groups}
    p = fastconv.plan("conv2d", x, w, **arguments)
    expected = fastconv.conv2d(x, w, **arguments)
    assert np.array_equal(p.prepare(w)(x, w), expected)


LINE = "conv2d n=1 c=64 size=56 k=64 ksize=3 pad=1"


@pytest.mark.parametrize("op", OPERANDS)
@pytest.mark.parametrize(
    ("line", "algorithm"),
    [
        (LINE, "winograd"),
        (LINE + " dilation=2", "winograd"),
        (LINE.replace("ksize=3", "ksize=5"), "winograd"),
        (LINE + " layout=NHWC", "winograd"),
        (LINE + " precision=ieee", "gemm"),
        (LINE + " dtype=float64", "gemm"),
        (LINE + " dtype=float16", "gemm"),
        (LINE + " stride=2", {"conv_dgrad": "strips"}),
        (LINE.replace("size=56", "size=14") + " stride=2", {"conv_dgrad": "scatter"}),
        (LINE.replace("ksize=3", "ksize=1"), "gemm"),
        (LINE.replace("ksize=3", "ksize=3x5"), "gemm"),
        (LINE.replace("c=64", "c=8"), "gemm"),
        (LINE.replace("c=64", "c=3"), {"conv_fprop": "strips", "conv_dgrad": "strips"}),
        ("conv2d n=1 c=4 size=8 k=4 ksize=3 pad=1", "small"),
    ],
)
def test_rule(op, line, algorithm):
    """Who is taken is a pure function of the problem, and what is refused has a reason."""
    if isinstance(algorithm, dict):  # per op; the others go by the GEMM
        algorithm = algorithm.get(op, "gemm")
    problem = ConvProblem.parse(line)
    chosen, why = conv.choose(op, problem)
    assert chosen == algorithm
    assert why
    if chosen == "winograd":
        assert winograd.refuses(op, problem) is None


def test_ieee_is_exact_where_winograd_is_not():
    """The choice that forbids Winograd sums small integers exactly; the default rounds."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((1, 32, 20, 20), (32, 32, 3, 3)))
    exact = fastconv.conv2d(x, w, padding=1, backend="reference")
    assert np.array_equal(fastconv.conv2d(x, w, padding=1, precision="ieee"), exact)
    assert not np.array_equal(fastconv.conv2d(x, w, padding=1), exact)

"""The raw backend's correlation: each algorithm alone, exact integers, NaNs, strides, parts, and the choice."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv.backends.cpu.signal import Geometry
from fastconv.backends.raw import correlate, device
from fastconv.testing import emulator, signals
from fastconv.testing.signals import combinations, definition

H100 = device.Properties("H100", "sm_90a", 132, 227 << 10, 50 << 20)
SHAPES = [
    ((1,), (1,)), ((7,), (3,)), ((3,), (8,)), ((1500,), (141,)), ((1, 9), (1, 4)), ((3, 2), (5, 6)), ((4, 9), (6, 2)),
    ((3, 2100), (2, 9)), ((2, 5, 1100), (1, 2, 17)), ((5, 20, 7), (2, 6, 3)), ((2, 3, 4, 3), (1, 2, 2, 3)),
    ((3, 1, 2, 3, 2, 5), (2, 1, 2, 1, 2, 3)), ((2, 2, 2, 2, 2, 2, 2, 3), (1, 2, 1, 2, 1, 2, 1, 2)),
]  # fmt: skip
ALGORITHMS = ("direct", "rows", "dot", "fft")
pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason="the emulator needs g++")


@pytest.fixture(scope="module")
def gpu():
    emulated = emulator.EmulatedDevice()
    emulated.prepare(correlate.instances())
    return emulated


@pytest.fixture(autouse=True)
def emulate(gpu):
    with emulator.using(gpu):
        yield


def operand(shape, dtype, seed=0):
    return signals.operand(shape, dtype, seed, most=1)  # float16 sums of these are exact too


def compute(algorithm, problem, in1, in2, out=None):
    """The result of one algorithm, whether it would be chosen or not; None where it does not take the problem."""
    geometry = Geometry.of(problem)
    few = len(correlate.axes_of(geometry)) <= correlate.FEW_AXES
    if algorithm in ("rows", "dot") and (not few or problem.dtype not in correlate.REAL_AND_COMPLEX):
        return None
    config = {"axes": correlate.FEW_AXES if few else correlate.MOST_AXES}
    products = correlate.Products(
        geometry, algorithm if algorithm != "fft" else "direct",
        correlate.split_of(geometry, H100) if algorithm == "dot" else config,
    )  # fmt: skip
    run = correlate.Transforms(geometry, products).run if algorithm == "fft" else products.run
    out = np.full(problem.out, 77, in1.dtype) if out is None else out
    run(out, *geometry.operands(in1, in2))
    return out


@pytest.mark.parametrize(("shape1", "shape2", "mode"), list(combinations(SHAPES)), ids=str)
@pytest.mark.parametrize("dtype", ["float32", "complex64", "bool", "int16", "uint64"])
def test_every_algorithm_is_the_definition(dtype, shape1, shape2, mode):
    problem = signals.problem(shape1, shape2, mode, dtype)
    in1, in2 = operand(shape1, dtype), operand(shape2, dtype, 1)
    expected = definition(problem, in1, in2)
    for algorithm in ALGORITHMS:
        actual = compute(algorithm, problem, in1, in2)
        if algorithm == "fft" and in1.dtype.kind in "fc":
            np.testing.assert_allclose(actual, expected, atol=1e-6 * (np.abs(expected).max() + 1))
        elif actual is not None:
            np.testing.assert_array_equal(actual, expected, algorithm)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex128", "int8", "uint8", "int64", "uint32"])
@pytest.mark.parametrize(("shape1", "shape2"), [((1500,), (141,)), ((40, 33), (7, 8))], ids=str)
def test_every_dtype(dtype, shape1, shape2):
    problem = signals.problem(shape1, shape2, "same", dtype)
    in1, in2 = operand(shape1, dtype), operand(shape2, dtype, 1)
    expected = definition(problem, in1, in2)
    for algorithm in ALGORITHMS:
        actual = compute(algorithm, problem, in1, in2)
        if actual is not None:
            rounded = np.round(actual) if algorithm == "fft" and in1.dtype.kind in "fcV" else actual
            np.testing.assert_array_equal(rounded, expected, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_any_strides(algorithm, dtype):
    """Transposed, reversed, broadcast; halves of complex numbers between the elements."""
    in1 = operand((30, 44), dtype)[::-1, ::2].T
    in2 = np.broadcast_to(operand((3, 1), dtype, 1), (3, 4))
    if dtype == "complex128":
        halves = np.zeros((22, 93), np.float64)
        in1 = np.ndarray((22, 30), dtype, halves.data, 0, (93 * 8, 24))
        in1[...] = operand((22, 30), dtype)
    problem = signals.problem(in1.shape, in2.shape, "same", dtype)
    wide = np.full((44, 60), np.nan, dtype)
    out = wide[1::2, ::-2]
    compute(algorithm, problem, in1, in2, out)
    np.testing.assert_allclose(out, definition(problem, in1, in2), atol=1e-12)
    assert np.isnan(wide[::2]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("of", ["in1", "in2"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_nonfinite_value_stays_in_its_windows(algorithm, of, value):
    """Also where the other array ends: nothing outside of it is a zero that is multiplied."""
    problem = signals.problem((1300,), (37,), "full", "float32")
    in1, in2 = np.abs(operand((1300,), "float32")) + 1, np.abs(operand((37,), "float32", 1)) + 1
    {"in1": in1, "in2": in2}[of][17] = value
    actual, expected = compute(algorithm, problem, in1, in2), definition(problem, in1, in2)
    np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))


def test_the_choice():
    def chosen(shape1, shape2, mode="valid", dtype="float32", method="direct"):
        return correlate.choose("correlate", signals.problem(shape1, shape2, mode, dtype, method), H100)[0]

    assert chosen((200, 300), (3, 3)) == "direct"
    assert chosen((4, 2, 3, 4, 5), (2, 1, 1, 2, 2)) == "direct"
    assert chosen((1 << 20,), (31,)) == "rows"
    assert chosen((1 << 20,), (31,), dtype="int32") == "direct"
    assert chosen((1 << 20,), (1 << 20,)) == "dot"
    assert chosen((1 << 20,), (31,), method="fft") == "fft"
    assert chosen((1 << 20,), (1 << 15,), "full", method="auto") == "fft"
    assert chosen((64, 64), (3, 3), "full", method="auto") == "direct"
    assert chosen((), (), "full", method="auto") == "direct"


def test_the_choice_can_be_turned_off():
    fastconv.set_autotune("off")
    problem = signals.problem((1 << 20,), (1 << 15,), "full", "float32")
    assert correlate.choose("correlate", problem, H100)[0] == "rows"


def test_axes_of_one_are_left_out_and_more_than_eight_refused():
    one = (1,) * 9
    problem = signals.problem((*one, 5), (*one, 3), "same", "float64")
    assert correlate.rejects(problem) is None
    ones = np.ones(problem.shape1)
    assert fastconv.correlate(ones, ones[..., :3], "same", backend="raw").ravel().tolist() == [2, 3, 3, 3, 2]
    with pytest.raises(fastconv.BackendError, match="9 axes"):
        fastconv.correlate(np.ones((2,) * 9), np.ones((2,) * 9), backend="raw")


def test_any_order_of_threads():
    """Shuffled schedules give the same bits."""
    for algorithm in ("direct", "rows", "dot"):
        problem = signals.problem((1500,), (141,), "full", "float32")
        in1, in2 = (np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (1500, 141))
        results = []
        for seed in (None, 3):
            with emulator.emulated_gpu(seed=seed):
                results.append(compute(algorithm, problem, in1, in2))
        np.testing.assert_array_equal(*results)


def test_more_parts_than_taps_of_an_output():
    """At the edges of "full" an output meets few taps: most parts of the taps are empty."""
    problem = signals.problem((600,), (600,), "full", "float64")
    in1, in2 = operand((600,), "float64"), operand((600,), "float64", 1)
    geometry = Geometry.of(problem)
    products = correlate.Products(geometry, "dot", {"split": 7, "parts": 3, "lanes": 64})
    out = np.full(problem.out, np.nan)
    products.run(out, in1, in2)
    np.testing.assert_array_equal(out, definition(problem, in1, in2))

"""The cpu backend's correlation: each algorithm alone, exact integers, memory, NaNs, and the choice."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import fastconv
from fastconv.backends.cpu import fft, signal
from fastconv.testing import signals
from fastconv.testing.signals import MODES, combinations, definition, operand

SHAPES = [
    ((1,), (1,)), ((7,), (3,)), ((3,), (8,)), ((300,), (41,)), ((1, 9), (1, 4)), ((3, 2), (5, 6)), ((4, 9), (6, 2)),
    ((40, 133), (7, 8)), ((300, 5), (4, 9)), ((5, 20, 7), (2, 6, 3)), ((2, 3, 4, 3), (1, 2, 2, 3)),
    ((3, 2, 3, 2, 5), (2, 2, 1, 2, 3)),
]  # fmt: skip


def compute(algorithm, problem, in1, in2):
    geometry = signal.Geometry.of(problem)
    out = np.full(problem.out, 77, in1.dtype)
    signal.RUNS[algorithm](geometry, out, *geometry.operands(in1, in2))
    return out


@pytest.mark.parametrize(("shape1", "shape2", "mode"), list(combinations(SHAPES)), ids=str)
@pytest.mark.parametrize("dtype", ["float32", "complex128", "bool", "int16", "uint64"])
def test_every_algorithm_is_the_definition(dtype, shape1, shape2, mode):
    problem = signals.problem(shape1, shape2, mode, dtype)
    in1, in2 = operand(shape1, dtype), operand(shape2, dtype, 1)
    expected = definition(problem, in1, in2)
    for algorithm in signal.RUNS:
        actual = compute(algorithm, problem, in1, in2)
        if algorithm == "fft" and in1.dtype.kind in "fc":
            np.testing.assert_allclose(actual, expected, atol=1e-6 * (np.abs(expected).max() + 1))
        else:
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("algorithm", ["numpy", "direct", "fft"])
def test_any_strides(algorithm):
    in1 = operand((30, 44), "float64")[::-1, ::2].T
    in2 = np.broadcast_to(operand((3, 1), "float64", 1), (3, 4))
    problem = signals.problem(in1.shape, in2.shape, "same", "float64")
    wide = np.full((44, 60), np.nan)
    out = wide[1::2, ::-2]
    geometry = signal.Geometry.of(problem)
    signal.RUNS[algorithm](geometry, out, *geometry.operands(in1, in2))
    np.testing.assert_allclose(out, definition(problem, in1, in2), atol=1e-12)
    assert np.isnan(wide[::2]).all()


# ---------------------------------------------------------------- exact integers


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32", "uint32"])
@pytest.mark.parametrize("extreme", [False, True])
def test_transformed_integers_are_exact_modulo_their_bits(dtype, extreme):
    in1, in2 = operand((3000,), dtype), operand((700,), dtype, 1)
    if extreme:
        in1[:], in2[:] = np.iinfo(dtype).min, np.iinfo(dtype).max
        in1[::3] = np.iinfo(dtype).max
    for mode in MODES:
        fast = fastconv.correlate(in1, in2, mode, "fft")
        np.testing.assert_array_equal(fast, fastconv.correlate(in1, in2, mode, "direct"))


def test_balanced_limbs_sum_to_the_number():
    values = np.concatenate([operand((1000,), "int64"), [-(2**63), 2**63 - 1, 0, -1, 2**62, -(2**62)]])
    for bits in range(3, 27):
        parts = list(fft.limbs(values, bits, -(-64 // bits)))
        assert all(np.abs(part).max() <= 2.0 ** (bits - 1) for part in parts)
        total = sum(part.astype(np.int64) << (bits * place) for place, part in enumerate(parts))
        np.testing.assert_array_equal(total, values)


@pytest.mark.parametrize(("n", "m"), [(2**13, 2**12), (2**16, 2**15)])
def test_limbs_of_the_largest_size_round_to_the_exact_sum(n, m):
    """All limbs at their limit and of one sign: the largest sums that the bound admits."""
    blocks = fft.blocks_of((n,), (m,), (0,), (n + m - 1,), "int64")
    bits = fft.limb_bits(64, 64, 64, blocks)
    limit = 2 ** (bits - 1)
    in1, in2 = np.full(n, -limit, np.int64), np.full(m, -limit, np.int64)
    out = np.empty(n + m - 1, np.int64)
    fft.correlate(blocks, out, in1, in2)
    overlap = np.minimum(np.minimum(np.arange(1, n + m), np.arange(n + m - 1, 0, -1)), m)
    np.testing.assert_array_equal(out, overlap * limit**2)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ("shape1", "shape2", "mode"),
    list(combinations([((500,), (300,)), ((40, 8), (30, 7)), ((9, 40), (6, 50))])),
    ids=str,
)
def test_blocks_and_parts_of_any_size_agree(shape1, shape2, mode):
    problem = signals.problem(shape1, shape2, mode, "int64")
    geometry = signal.Geometry.of(problem)
    operands = geometry.operands(operand(shape1, "int64"), operand(shape2, "int64", 1))
    expected, actual = np.empty(problem.out, np.int64), np.empty(problem.out, np.int64)
    signal.by_numpy(geometry, expected, *operands)
    rng = np.random.default_rng(5)
    for _ in range(5):
        step = tuple(int(rng.integers(1, n + 1)) for n in geometry.out)
        part = tuple(int(rng.integers(1, m + 1)) for m in geometry.m)
        axes = zip(geometry.n, geometry.m, geometry.start, geometry.out, step, part, strict=True)
        size = tuple(fft.smooth(fft.circular(*axis), ()) for axis in axes)
        blocks = fft.Blocks(geometry.n, geometry.m, geometry.start, geometry.out, size, step, part, "int64")
        fft.correlate(blocks, actual, *operands)
        np.testing.assert_array_equal(actual, expected)


def test_smooth_sizes():
    for n in (1, 2, 7, 11, 97, 1025, 65537):
        found = next(k for k in range(n, 2 * n) if _without(k, (2, 3, 5)) == 1) if n > 1 else 1
        assert fft.smooth(n) == found
        assert fft.smooth(n, ()) == 1 << (n - 1).bit_length()


def _without(n, primes):
    for prime in primes:
        while n % prime == 0:
            n //= prime
    return n


@pytest.mark.parametrize(
    ("shape1", "shape2", "dtype", "method"),
    [
        ((4_000_000,), (3000,), "float64", "auto"),
        ((1_200_000,), (1_100_000,), "float64", "auto"),
        ((3000, 3000), (40, 40), "float32", "fft"),
        ((2500, 2500), (3, 3), "float64", "auto"),
        ((600_000,), (20_000,), "int64", "fft"),
    ],
)
def test_memory_stays_within_64_mib_per_thread(shape1, shape2, dtype, method):
    in1, in2 = np.ones(shape1, dtype), np.ones(shape2, dtype)
    out = np.empty(signals.problem(shape1, shape2, "same", dtype, method).out, dtype)
    tracemalloc.start()
    try:
        fastconv.correlate(in1, in2, "same", method, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 64 * 2**20 * fft.threads()


# ---------------------------------------------------------------- NaNs and infinities


@pytest.mark.parametrize("method", ["auto", "direct", "fft"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("shapes", [((2000,), (70,)), ((60, 61), (9, 10))], ids=str)
def test_nan_and_infinity_stay_in_their_windows(shapes, dtype, method):
    in1, in2 = operand(shapes[0], dtype).copy(), operand(shapes[1], dtype, 1).copy()
    in1[tuple(n // 3 for n in shapes[0])], in1[tuple(n // 2 for n in shapes[0])] = np.nan, np.inf
    for taps in (in2, np.where(np.arange(in2.size).reshape(in2.shape) == 5, np.inf, in2).astype(dtype)):
        for mode in MODES:
            with np.errstate(all="ignore"):
                expected = fastconv.correlate(in1, taps, mode, "direct", backend="reference")
                actual = fastconv.correlate(in1, taps, mode, method)
            if dtype == "float32":  # of a complex infinity, the parts that are NaN depend on who multiplies
                np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
            good = np.isfinite(expected)
            np.testing.assert_array_equal(np.isfinite(actual), good)
            np.testing.assert_allclose(actual[good], expected[good], atol=1e-3 if dtype == "float32" else 1e-9)


def test_values_that_a_transform_would_overflow_are_computed_directly():
    in1, in2 = np.full(4000, 1e30, np.float32), np.full(300, 1e5, np.float32)
    np.testing.assert_allclose(fastconv.correlate(in1, in2, "valid", "fft"), 3e37, rtol=1e-4)


# ---------------------------------------------------------------- the choice


def chosen(shape1, shape2, dtype="float64", method="auto", mode="heuristic"):
    problem = signals.problem(shape1, shape2, "same", dtype, method)
    return signal.choose(problem, signal.Geometry.of(problem), mode)[0]


def test_the_model_chooses_by_size_and_dtype():
    assert chosen((), ()) == "numpy"
    assert chosen((100,), (5,)) == "numpy"
    assert chosen((1000, 1000), (3, 3)) == "direct"
    assert chosen((1000, 1000), (101, 101)) == "fft"
    assert chosen((300_000,), (300_000,)) == "fft"
    assert chosen((256, 256), (17, 17), "int64") == "direct"
    assert chosen((300_000,), (300_000,), "int64") == "fft"
    assert chosen((300_000,), (300_000,), mode="off") == "direct"
    assert chosen((300_000,), (300_000,), method="direct") == "direct"
    assert chosen((100,), (5,), method="fft") == "fft"


def test_explain_shows_the_estimates():
    shown = fastconv.explain("correlate", np.ones((500, 500)), np.ones((60, 60)))
    assert shown.algorithm == "fft"
    assert all(name in shown.why for name in ("numpy", "direct", "fft", "ms"))


def test_blocks_fit_their_workspace():
    for n, m in (((10**9,), (10,)), ((10**8,), (10**7,)), ((10**5, 10**5), (1000, 1000)), ((10**6, 3), (10**5, 2))):
        for dtype in ("float32", "complex128", "int64"):
            out = tuple(a + b - 1 for a, b in zip(n, m, strict=True))
            blocks = fft.blocks_of(n, m, (0,) * len(n), out, dtype)
            assert blocks.workspace <= fft.WORKSPACE


def test_small_and_transformed_problems_do_not_import_numba():
    code = (
        "import sys, numpy as np, fastconv; fastconv.correlate([1, 2, 3], [1, 2]);"
        "fastconv.convolve(np.ones((9, 9)), np.ones((3, 3)));"
        "fastconv.correlate(np.ones(9000), np.ones(9000), method='fft'); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_results_do_not_depend_on_threads():
    import numba

    in1, in2 = np.random.default_rng(0).random((300, 400)), np.random.default_rng(1).random((7, 9))
    problem = signals.problem(in1.shape, in2.shape, "same", "float64")
    before = numba.get_num_threads()
    try:
        results = []
        for count in (1, before):
            numba.set_num_threads(count)
            results.append([compute(name, problem, in1, in2) for name in ("direct", "fft")])
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(*results)

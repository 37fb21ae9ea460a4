"""The testers tested: comparisons that fail when they should, data that is exact, a self-test that finds faults."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv import ConvProblem, dispatch
from fastconv.testing import cases, compare, selftest

ONES = np.ones((2, 3), np.float32)

# ---------------------------------------------------------------- compare


def test_equal_finds_one_element():
    wrong = ONES.copy()
    wrong[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    compare.equal(ONES, ONES.copy(), "line")
    with pytest.raises(AssertionError, match=r"1 of 6 elements, the first at \[1, 2\].*\n?repro: line"):
        compare.equal(wrong, ONES, "line")


@pytest.mark.parametrize("other", [ONES.astype(np.float64), ONES[:1], ONES.astype(">f4"), ONES * np.nan, -ONES])
def test_equal_refuses(other):
    with pytest.raises(AssertionError, match="repro: line"):
        compare.equal(other, ONES, "line")


def test_nan_equals_nan_only():
    nan = np.array([np.nan, 1])
    compare.equal(nan, nan.copy(), "line")
    with pytest.raises(AssertionError):
        compare.equal(np.array([1.0, 1]), nan, "line")
    with pytest.raises(AssertionError):
        compare.equal(np.array([np.inf, 1]), nan, "line")


def test_same_bits_tells_zeros_apart():
    compare.same_bits(np.array([np.nan, 0.0]), np.array([np.nan, 0.0]), "line")
    with pytest.raises(AssertionError, match="second run"):
        compare.same_bits(np.array([0.0]), np.array([-0.0]), "line")


def test_large_integers_are_not_rounded():
    with pytest.raises(AssertionError):
        compare.equal(np.array([2**62 + 1]), np.array([2**62]), "line")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_within_bounds_each_element_by_itself(dtype):
    """A small element next to a large one is held to its own size."""
    expected, scale = np.array([1.0, 1e3]), np.array([1.0, 1e3])
    exact = expected.astype(cases.dtype_of(dtype))
    compare.within(exact, expected, scale, 3, "line")
    wrong = expected.copy()
    wrong[0] += 8 * compare.ROUNDOFF[dtype]
    with pytest.raises(AssertionError, match=r"first at \[0\]"):
        compare.within(wrong.astype(exact.dtype), expected, scale, 3, "line")
    with pytest.raises(AssertionError):
        compare.within(exact * np.array(np.nan, exact.dtype), expected, scale, 3, "line")


def test_near_reaches_eight_outputs():
    """The bound of an output is that of the largest within 8 around it."""
    scale = np.zeros((1, 1, 40))
    scale[..., 20] = 1
    expected = np.zeros(scale.shape)
    for place, fine in ((12, True), (28, True), (11, False), (29, False)):
        actual = np.zeros(scale.shape, np.float32)
        actual[..., place] = 0.9e-5
        if fine:
            compare.near(actual, expected, scale, (-1,), "line")
        else:
            with pytest.raises(AssertionError, match=f"{place}"):
                compare.near(actual, expected, scale, (-1,), "line")


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", [*cases.CONV, "mid_5x5", "mid_depthwise"])
@pytest.mark.parametrize("op", cases.CONV_OPERANDS)
def test_integer_data_sums_exactly(op, name, dtype):
    """Even the sum of all absolute values is an integer that the dtype holds."""
    problem = cases.replace(selftest.for_op(op, cases.conv(name)), dtype=dtype, activation=None)
    operands = cases.conv_integers(problem, op)
    _, total = selftest.conv_in_float64(op, problem, operands)
    assert total.max(initial=0) <= cases.EXACT[dtype]
    for array in operands:
        assert array is None or array.dtype == cases.dtype_of(dtype)
        assert array is None or not array.size or array.any() or array.size < 4


def test_data_depends_on_the_text_alone():
    problem = cases.conv("dense")
    first, again = (cases.conv_floats(ConvProblem.parse(str(problem)), "conv_fprop") for _ in range(2))
    compare.same_bits(first[0], again[0], "data")
    assert not np.array_equal(first[0], cases.conv_floats(problem, "conv_fprop", seed=1)[0])


def test_thinning_keeps_what_it_says():
    rng = np.random.default_rng(0)
    array = cases.thin(rng, np.ones((4, 5, 3, 3)), (1, 2, 3), 7)
    assert (array.sum(axis=(1, 2, 3)) == 7).all()
    assert (cases.thin(rng, np.ones((4, 5, 3, 3)), (0, 2, 3), 2).sum(axis=(0, 2, 3)) == 2).all()


# ---------------------------------------------------------------- the self-test


def test_it_covers_every_function():
    """Every op of the backend protocol has a check, and every public function's op is among them."""
    assert {check.op for check in selftest.checks()} == set(selftest.OPS)


def test_it_finds_a_fault(monkeypatch):
    """One element off by one in one op: that check fails and no other, and says how to see it again."""
    right = cases.conv_call

    def wrong(op, problem, operands, **options):
        result = right(op, problem, operands, **options)
        if op == "conv_wgrad" and options["backend"] == "faulty":
            result[-1, -1] += 1
        return result

    monkeypatch.setattr(cases, "conv_call", wrong)
    monkeypatch.setitem(dispatch.MODULES, "faulty", "reference")
    checks = [check for check in selftest.checks() if check.case == str(cases.conv("dense"))]
    assert sorted(check.op for check in checks) == ["conv_dgrad", "conv_fprop", "conv_transpose", "conv_wgrad"]
    (bad,) = [result for result in (selftest.outcome("faulty", check) for check in checks) if not result.ok]
    assert bad.op == "conv_wgrad"
    assert f"repro: fastconv.testing.selftest.replay('faulty', 'conv_wgrad', '{bad.case}')"[:60] in bad.detail


def test_run_reports_progress_and_unavailable_backends(monkeypatch):
    few = [check for check in selftest.checks() if check.case == cases.POOL["halve"] or "activation=tanh" in check.case]
    monkeypatch.setattr(selftest, "checks", lambda: iter(few))
    seen = []

    def progress(todo):
        seen.extend(todo)
        return todo

    results = selftest.run(["reference"], progress)
    assert len(seen) == len(results) == len(few) > 0
    assert all(result.ok and result.detail == "" and result.backend == "reference" for result in results)
    assert {result.backend for result in selftest.run()} == {n for n, available, _ in fastconv.backends() if available}
    assert not any(result.ok for result in selftest.run(["nonsense"]))
    assert "no backend 'nonsense'" in selftest.run(["nonsense"])[0].detail


def test_replay_runs_one_check():
    selftest.replay("reference", "conv_fprop", str(cases.conv("grouped")))
    with pytest.raises(fastconv.BackendError):
        selftest.replay("nonsense", "conv_fprop", str(cases.conv("grouped")))

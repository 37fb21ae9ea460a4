"""Comparisons that assert, element by element, and say in one line how to see the failure again.

Exact equality is for integer data. Random floats are held to a bound that follows from the unit
roundoff and the number of summed terms, scaled per element by the same op on absolute values:

    |fl(sum of n products) - sum| <= gamma(n) * sum of |products|,   gamma(n) = n*u / (1 - n*u)

in whatever order they are added (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray

#: Unit roundoff of a dtype, and the smallest step next to 0.
ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
TINY = {"bfloat16": 2.0**-133, "float16": 2.0**-24, "float32": 2.0**-149, "float64": 2.0**-1074}
#: The dtype that sums of a dtype run in.
ACCUMULATOR = {"bfloat16": "float32", "float16": "float32", "float32": "float32", "float64": "float64"}

FAST_BOUND = 1e-5  # of the largest |x|*|w| sum around: what precision=None promises for float32
FAST_REACH = 8


def wide(array: Any) -> Array:
    """Every value of the array, exactly, in a dtype that arithmetic on errors can use."""
    array = np.asarray(array)
    if array.dtype.kind == "c":
        return array.astype(np.complex128)
    return array if array.dtype.kind in "biu" else array.astype(np.float64)


def report(actual: Array, expected: Array, bad: Array, what: str, repro: str) -> str:
    """Where the two differ: how many elements, the first of them, and the line that shows it again."""
    at = tuple(int(i[0]) for i in np.nonzero(bad))
    return (
        f"{what}: {np.count_nonzero(bad)} of {bad.size} elements, the first at {list(at)}: "
        f"got {actual[at]!r}, expected {expected[at]!r}\nrepro: {repro}"
    )


def same_form(actual: Any, expected: Any, repro: str) -> None:
    """Assert equal shapes and dtypes."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}\nrepro: {repro}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}\nrepro: {repro}"


def equal(actual: Any, expected: Any, repro: str) -> None:
    """Assert the same shape, dtype and values; NaN equals NaN, -0 equals 0."""
    same_form(actual, expected, repro)
    a, e = wide(actual), wide(expected)
    bad = ~((a == e) | ((a != a) & (e != e)))
    assert not bad.any(), report(a, e, bad, "unequal", repro)


def same_bits(first: Any, second: Any, repro: str) -> None:
    """Assert that two runs gave the same bytes."""
    same_form(first, second, repro)
    width = np.dtype(f"u{first.dtype.itemsize}") if first.dtype.itemsize <= 8 else np.dtype(np.uint64)
    a, b = (np.ascontiguousarray(array).view(width) for array in (first, second))
    assert (a == b).all(), report(a, b, a != b, "the second run differs", repro)


def gamma(terms: float, dtype: str) -> float:
    u = terms * ROUNDOFF[dtype]
    assert u < 1, f"{terms} terms leave no digit of {dtype}"
    return u / (1.0 - u)


def allowance(expected: Array, scale: Array, terms: float, dtype: str, slack: float = 0.0) -> Array:
    """What rounding may change: in the sum of `terms` products, `slack` operations more, and on storing."""
    summed = (gamma(terms, ACCUMULATOR[dtype]) + slack * ROUNDOFF[ACCUMULATOR[dtype]]) * scale
    return summed + (ROUNDOFF[dtype] * (1 + 2.0**-10)) * (np.abs(expected) + summed) + TINY[dtype]


def within(actual: Any, expected: Array, scale: Array, terms: float, repro: str, slack: float = 0.0) -> None:
    """Assert that every element lies within the rounding bound of its own sum.

    Parameters
    ----------
    actual : array
        The result; its dtype sets the bound.
    expected, scale : float64 arrays
        The reference on the same inputs, and on their absolute values.
    terms : float
        How many products an output sums.
    repro : str
        The line that shows the failure again.
    slack : float
        Roundings beyond those of the sum (an activation's, a power's), relative to `scale`.
    """
    dtype = str(actual.dtype.name)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}\nrepro: {repro}"
    within_limit(actual, expected, allowance(expected, scale, terms, dtype, slack), repro)


def within_limit(actual: Any, expected: Array, limit: Array, repro: str) -> None:
    """Assert ``|actual - expected| <= limit``, element by element; a NaN lies within no limit."""
    a = wide(actual)
    error = np.nan_to_num(np.abs(a - expected), nan=np.inf)
    bad = error > limit
    if bad.any():
        worst = (error[bad] / np.maximum(limit[bad], 1e-300)).max()
        raise AssertionError(report(a, expected, bad, f"beyond the rounding bound, {worst:.3g} times it", repro))


def near(actual: Any, expected: Array, scale: Array, axes: tuple[int, ...], repro: str) -> None:
    """Assert the promise of ``precision=None``: 1e-5 of the largest `scale` within 8 outputs along `axes`."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}\nrepro: {repro}"
    for axis in axes:
        scale = reach(scale, axis, FAST_REACH)
    within_limit(actual, expected, FAST_BOUND * scale + TINY[str(actual.dtype.name)], repro)


def reach(values: Array, axis: int, distance: int) -> Array:
    """The maximum of each element and its neighbours up to `distance` away along an axis."""
    largest = values.copy()
    source, target = np.moveaxis(values, axis, 0), np.moveaxis(largest, axis, 0)
    for shift in range(1, min(distance, len(source) - 1) + 1):
        np.maximum(target[shift:], source[:-shift], out=target[shift:])
        np.maximum(target[:-shift], source[shift:], out=target[:-shift])
    return largest

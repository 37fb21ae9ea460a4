"""The timing of drop-ins: a wrong result has no time, and every library's programs agree with the library."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from fastconv.benchmarks.dropins import __main__ as dropins
from fastconv.benchmarks.dropins.measure import Figure, Program, differs, measure

X = np.arange(6.0).reshape(2, 3)


def test_right_results_have_a_time():
    figure = measure(Program("twice", lambda: [2 * X], ours=lambda: [X + X]), 0.0)
    assert figure.wrong is None
    assert figure.own > 0
    assert figure.ours > 0


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        (lambda: [2 * X + 0.1], "output 0"),
        (lambda: [2 * X[:1]], "shape"),
        (lambda: [], "results"),
        (lambda: [2 * X * np.nan], "output 0"),
    ],
)
def test_wrong_results_have_none(ours, word):
    figure = measure(Program("twice", lambda: [2 * X], ours=ours), 0.0)
    assert word in figure.wrong
    assert "| - | - | - |" in dropins.row(figure)


def test_a_result_that_goes_wrong_while_it_is_timed_has_none():
    calls = iter(range(100))
    assert measure(Program("twice", lambda: [2 * X], ours=lambda: [2 * X + (next(calls) > 2)]), 0.0).wrong


def test_wrong_only_under_the_patch_and_in_float64():
    patched = []

    class Patch:
        def report(self):
            return SimpleNamespace(passed={})

        def __enter__(self):
            patched.append(True)

        def __exit__(self, *_):
            patched.pop()

    step = lambda: [X + 1e-6 * len(patched)]  # noqa: E731
    assert measure(Program("off by 1e-6", step, patch=Patch), 0.0).wrong is None
    assert "output 0" in measure(Program("off by 1e-6", step, patch=Patch, exact=step), 0.0).wrong


def test_gradients_are_compared_by_their_norm():
    assert differs([X, X * 1.2], [X, X], 1e-3, 0.1) == "wrong: gradient 1 differs by 2.0e-01"
    assert differs([X, X * 1.01], [X, X], 1e-3, 0.1) is None


@pytest.mark.parametrize("library", ["jax", "autograd", "dask", "scipy"])
def test_programs_agree_with_their_library(library):
    pytest.importorskip(library)
    for program in importlib.import_module(f"fastconv.benchmarks.dropins.{library}").programs():
        assert differs(program.ours(), program.own(), 1e-3, 0.1) is None, program.name


def test_ratios_go_into_the_row_of_the_library():
    page = (
        "| library | runs | passed on | speed |\n|---|---|---|---|\n| JAX, `x` | a | b | – |\n| SciPy | a | b | – |\n"
    )
    found = dropins.with_ratios(page, {"JAX": [1.0, 4.0]})
    assert found == page.replace("| JAX, `x` | a | b | – |", "| JAX, `x` | a | b | 2.0x (1.0 to 4.0) |")
    assert dropins.with_ratios(found, {"JAX": [2.0, 2.0]}).count("2.0x (2.0 to 2.0)") == 1


def test_the_page_has_every_program():
    page = dropins.page({"jax": [Figure("3x3", 2e-3, 1e-3), Figure("5x5", wrong="wrong: output 0 differs by 1.0e+00")]})
    assert "| 3x3 | 2.00 | 1.00 | 2.00x |  |" in page
    assert "| 5x5 | - | - | - | wrong: output 0 differs by 1.0e+00 |" in page


def test_the_page_keeps_the_tables_of_other_libraries():
    first = dropins.page({"jax": [Figure("3x3", 2e-3, 1e-3)], "scipy": [Figure("a", 1.0, 2.0)]})
    second = dropins.page({"scipy": [Figure("b", 1.0, 4.0)]}, first)
    assert second == first.replace("| a | 1000.00 | 2000.00 | 0.50x |", "| b | 1000.00 | 4000.00 | 0.25x |")

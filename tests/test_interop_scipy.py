"""SciPy's own tests of correlate, convolve, correlate2d and convolve2d, with fastconv's functions in their place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

scipy = pytest.importorskip("scipy", "1.14")
pytest.importorskip("scipy.signal.tests", reason="this SciPy came without its tests")

#: The tests that do not pass, what they end in, and why that is meant.
DEVIATIONS = {
    "TestFFTConvolve::test_fft_nan": (
        "DID NOT WARN",
        "SciPy warns that a NaN or an infinity spoils every result of method='fft'; here it touches only the results "
        "whose windows contain it, and there is nothing to warn of",
    ),
    "test_convolve_longdtype_input[longdouble]": (
        "take numbers and bools: got ",
        "long doubles are not among the dtypes; refused, never rounded to double",
    ),
    "test_convolve_longdtype_input[clongdouble]": (
        "take numbers and bools: got ",
        "as above",
    ),
}

#: Left out, as SciPy does unless asked for slow tests: it needs 4 GB.
LARGE = "test_large_array"

#: SciPy's classes of tests for the four functions.
CLASSES = (
    "TestConvolve", "TestConvolve2d", "TestCorrelateReal", "TestCorrelate", "TestCorrelateComplex", "TestCorrelate2d",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The outcomes of SciPy's tests, by name, and how often each function was called."""
    path = tmp_path_factory.mktemp("scipy") / "outcomes.json"
    environment = dict(os.environ, OUTCOMES=str(path), PYTHONPATH=str(Path(__file__).parent))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "scipy_plugin", "-p", "no:cacheprovider", "--tb=short"]
    command += ["--pyargs", "scipy.signal.tests.test_signaltools", "-k", f"not {LARGE}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=path.parent, timeout=600)
    assert path.exists(), done.stdout + done.stderr
    return json.loads(path.read_text())


def test_all_others_pass(found):
    """A skipped one counts as not passed."""
    others = {name: outcome for name, outcome in found["outcomes"].items() if name not in DEVIATIONS}
    failed = {name: outcome for name, outcome in others.items() if outcome[0] != "passed"}
    assert not failed, "\n\n".join(f"{name}: {outcome}\n{text}" for name, (outcome, text) in failed.items())


@pytest.mark.parametrize("name", DEVIATIONS)
def test_deviations(found, name):
    """Each ends in what is written here: one that begins to pass leaves the table."""
    ends_in, _ = DEVIATIONS[name]
    outcome, text = found["outcomes"][name]
    assert outcome == "failed"
    assert ends_in in text


def test_it_is_they_that_ran(found):
    """The classes for the four functions are among the tests, and every function was called from them."""
    classes = [name.partition("::")[0] for name in found["outcomes"]]
    assert min(classes.count(name) for name in CLASSES) >= 3
    assert classes.count("TestConvolve") + classes.count("TestCorrelateReal") >= 40
    assert min(found["calls"].values()) >= 5

"""Seats in processes of their own: crashes, endless loops and absent libraries cost one figure each."""

import sys
import textwrap

import pytest

from fastconv.benchmarks import runner
from fastconv.benchmarks.cases import build_cases
from fastconv.benchmarks.peers import Absent, make, peer_names
from fastconv.benchmarks.process import Died, ProcessSeat
from fastconv.benchmarks.runner import Settings, Table, run

ADAPTERS = """
    import os, time
    from dataclasses import replace
    from fastconv.benchmarks.peers import Absent
    from fastconv.benchmarks.peers.library import Library

    class Steady(Library):
        def __init__(self):
            super().__init__("reference")

    class Crashing(Steady):
        def bind(self, case, given):
            print("noise on standard output")
            if case.pass_ == "dgrad":
                os.abort()
            return super().bind(case, given)

    class Endless(Steady):
        def bind(self, case, given):
            return replace(super().bind(case, given), run=lambda: time.sleep(60))

    class Missing(Steady):
        def version(self):
            raise Absent("nobody is home")
"""
QUICK = Settings(suites=("tiny",), warm=0.0, block=0.0, rewarm=0.0, rounds=1, patience=20.0)


@pytest.fixture
def adapters(tmp_path, monkeypatch):
    """A module of adapters that a child process can import."""
    (tmp_path / "planted_adapters.py").write_text(textwrap.dedent(ADAPTERS))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name: f"planted_adapters:{name}"


@pytest.fixture
def seat(adapters):
    opened = []

    def open_seat(name):
        opened.append(ProcessSeat(adapters(name)))
        return opened[-1]

    yield open_seat
    for one in opened:
        one.close()


def test_a_crash_is_one_missing_figure(seat):
    table = Table({"crashing": seat("Crashing")}, QUICK)
    fprop, dgrad, wgrad = build_cases(["tiny"])[:3]
    outcomes = [table.measure(case)["crashing"] for case in (fprop, dgrad, wgrad)]
    assert [outcome.status for outcome in outcomes] == ["ok", "failed", "ok"]
    assert "ended with status -6" in outcomes[1].reason


def test_an_endless_call_is_ended(seat):
    endless = seat("Endless")
    endless.ask("prepare", build_cases(["tiny"])[0], timeout=20)
    with pytest.raises(Died, match=r"took longer than 0\.2 s"):
        endless.ask("first", timeout=0.2)


def test_absence_has_its_reason(seat):
    with pytest.raises(Absent, match="nobody is home"):
        seat("Missing").ask("version", timeout=20)
    with pytest.raises(RuntimeError, match="has no attribute 'Nobody'"):
        seat("Nobody").ask("version", timeout=20)


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be stopped")
def test_a_stopped_process_is_stopped(seat):
    steady = seat("Steady")
    steady.ask("version", timeout=20)
    steady.pause()
    with open(f"/proc/{steady.process.pid}/stat") as file:
        assert file.read().rpartition(")")[2].split()[0] in "Tt"
    assert "reference" in steady.ask("version", timeout=20)  # asking wakes it


def test_a_run_reports_who_was_not_there(monkeypatch):
    monkeypatch.setattr(runner, "_limits", lambda settings, seats: None)
    monkeypatch.setattr(Settings, "contestants", lambda self: ["fastconv.reference", "nowhere:Nobody"])
    found = run(Settings(suites=("tiny",), passes=("fprop",), warm=0.0, block=0.0, rewarm=0.0, rounds=1))
    assert "No module named 'nowhere'" in found.absent["nowhere:Nobody"]
    assert all(row.outcomes["fastconv.reference"].status == "ok" for row in found.rows)
    assert all(row.outcomes["nowhere:Nobody"].status == "absent" for row in found.rows)


def test_what_the_budget_leaves_out_is_skipped(monkeypatch):
    monkeypatch.setattr(runner, "_limits", lambda settings, seats: None)
    found = run(Settings(suites=("tiny",), backends=("reference",), budget=0.0))
    assert {outcome.status for row in found.rows for outcome in row.outcomes.values()} == {"skipped"}
    assert "the budget of 0 s" in found.rows[0].outcomes["fastconv.reference"].reason


def test_names_of_peers():
    assert peer_names(["torch", "numpy"]) == ["torch", "torch-nhwc", "numpy"]
    assert peer_names(["torch", "jax"], "gpu") == ["torch-cuda", "torch-cuda-nhwc", "jax-cuda"]
    assert {"onnxruntime", "scipy", "cupyx", "autograd", "mygrad"} < set(peer_names(["all"]))
    with pytest.raises(ValueError, match="no peer 'abacus': the peers are torch, onnxruntime, jax"):
        peer_names(["abacus"])
    with pytest.raises(ValueError, match="onnxruntime is no peer on a GPU"):
        peer_names(["onnxruntime"], "gpu")
    assert make("fastconv.reference").version().endswith("backend reference")

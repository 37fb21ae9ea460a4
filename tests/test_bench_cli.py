"""`fastconv bench`: going on with a run, comparing two, keeping one. The measuring itself is made up here."""

import json
import os
import subprocess
import sys

import pytest

from fastconv import cli
from fastconv.benchmarks import kept, results, runner
from fastconv.benchmarks.cases import build_cases, suite_names


@pytest.fixture
def program(capsys, tmp_path, made_up, monkeypatch):
    """Runs `fastconv bench` with its files in a folder of its own; every run takes what it is given."""
    taken = []

    def run(settings, progress, rows, save):
        found = made_up.run_of(settings.suites)
        found.settings = settings
        taken.append([row.case.name for row in rows])
        save(found)
        return found

    monkeypatch.setattr(runner, "run", run)
    files = ["--json", str(tmp_path / "run.json"), "--html", str(tmp_path / "run.html")]

    def start(*argv):
        status = cli.main(["bench", *files, *argv])
        return status, *capsys.readouterr()

    start.taken, start.folder = taken, tmp_path
    return start


def test_a_run_writes_its_files(program):
    status, out, _ = program("--suite", "tiny")
    assert status == 0
    assert "Report:" in out
    assert results.load(program.folder / "run.json")["settings"]["suites"] == ["tiny"]
    assert (program.folder / "run.html").read_text().startswith("<!doctype html>")


def test_a_run_goes_on(program):
    """Without the option it begins anew; with it, it takes the rows of the file that fits."""
    program("--suite", "tiny")
    program("--suite", "tiny")
    program("--suite", "tiny", "--resume", "--budget", "5")
    assert [len(taken) for taken in program.taken] == [0, 0, 22]
    status, _, err = program("--suite", "tiny", "--batch", "4", "--resume")
    assert status == 2
    assert "cannot go on with" in err
    assert "made with batch None and now 4" in err


def test_every_suite():
    settings, _ = cli._bench_settings(cli.build_parser().parse_args(["bench", "--suite", "all"]))
    assert settings.suites == tuple(suite_names())
    assert {"huge", "resnet50", "signal", "deepbench"} < set(settings.suites)


def test_comparing(program):
    program("--suite", "tiny")
    file = str(program.folder / "run.json")
    status, out, _ = program("--compare", file, file)
    assert status == 0
    assert "22 same" in out
    assert "fastconv comparison" in (program.folder / "run.html").read_text()
    status, _, err = program("--compare", file, str(program.folder / "nothing.json"))
    assert status == 2
    assert "holds no results" in err


def test_keeping(program, monkeypatch):
    monkeypatch.setattr(kept, "RESULTS", program.folder / "kept")
    monkeypatch.setattr(kept, "README", program.folder / "README.md")
    kept.RESULTS.mkdir()
    kept.README.write_text(f"{kept.BEGIN}{kept.END}")
    status, out, _ = program("--suite", "alexnet", "--keep")
    assert status == 0
    assert "Kept:" in out
    assert "AlexNet" in kept.README.read_text()


def test_the_gpu_is_asked_for():
    settings, _ = cli._bench_settings(cli.build_parser().parse_args(["bench", "--gpu", "--peers", "torch"]))
    assert (settings.device, settings.backends, settings.cold) == ("gpu", ("raw", "numba"), True)
    assert settings.contestants() == ["fastconv.raw", "fastconv.numba", "torch-cuda", "torch-cuda-nhwc"]


def test_pytest_benchmark_runs_the_same_cases(tmp_path):
    """Groups are passes of layers; what is refused is skipped; the JSON names problem and algorithm."""
    pytest.importorskip("pytest_benchmark")
    root = kept.HERE.parent
    command = [
        sys.executable, "-m", "pytest", "-q", str(root / "benchmarks" / "bench_suites.py"), "--suite", "tiny",
        "--op", "dgrad", "--backend", "reference", "--peers", "numpy", "--benchmark-max-time", "0.001",
        "--benchmark-min-rounds", "1", "--benchmark-json", str(tmp_path / "found.json"),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    cases = {case.name: case for case in build_cases(["tiny"], ("dgrad",))}
    assert {each["group"] for each in found} == set(cases)
    assert all(each["extra_info"]["problem"] == str(cases[each["group"]].problem) for each in found)
    assert {each["params"]["contestant"] for each in found} == {"fastconv.reference", "numpy"}

"""The program: its output, its exit statuses, and one line for every bad argument."""

import json
import subprocess
import sys

import pytest

import fastconv
from fastconv import cli
from fastconv.testing import selftest

STEM = "conv2d n=1 c=3 size=224 k=64 ksize=7 stride=2 pad=3"
FIRST = list(selftest.checks())[:3]


@pytest.fixture
def program(capsys):
    """Runs the program in this process: (exit status, standard output, standard error)."""

    def run(*argv):
        try:
            status = cli.main(argv)
        except SystemExit as end:  # --help and --version
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_info(program):
    status, out, _ = program("info")
    assert status == 0
    for word in ("reference", "cpu", "numba", "raw", "numpy", "cache folder"):
        assert word in out
    found = json.loads(program("info", "--json")[1])
    assert [backend["name"] for backend in found["backends"]] == ["reference", "cpu", "numba", "raw"]


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_explain(program, op):
    status, out, _ = program("explain", STEM, "--op", op)
    assert status == 0
    assert f"conv_{op}" in out
    assert "algorithm" in out
    found = json.loads(program("explain", STEM, "--op", op, "--json", "--backend", "reference")[1])
    assert (found["backend"], found["algorithm"]) == ("reference", "definition")
    assert found["shapes"]["x"] == [1, 3, 224, 224]


def test_explain_pooling(program):
    line = "pool2d n=1 c=64 size=112 ksize=3 stride=2 pad=1"
    assert "maxpool_fprop" in program("explain", line)[1]
    assert "avgpool_dgrad" in program("explain", line, "--pool", "avg", "--op", "dgrad")[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "COMMAND"),
        (("paint",), "invalid choice: 'paint'"),
        (("explain",), "problem"),
        (("explain", "conv2d n=1"), "lacks c, size, k, ksize"),
        (("explain", "conv2d n=x c=1 size=1 k=1 ksize=1"), "n=x"),
        (("explain", "conv2d n=1 c=3 size=8 k=4 ksize=3 groups=2"), "groups=2 must divide C=3"),
        (("explain", "square"), "begins with"),
        (("explain", "pool2d n=1 c=1 size=4 ksize=2", "--op", "wgrad"), "pooling has no weights"),
        (("explain", STEM, "--op", "sideways"), "invalid choice: 'sideways'"),
        (("explain", STEM, "--backend", "abacus"), "no backend 'abacus'"),
        (("explain", STEM, "--backend", "raw"), "raw"),
        (("bench", "--suite", "lenet"), "no suite 'lenet'"),
        (("bench", "--suite", ","), "nothing to run"),
        (("bench", "--op", "sideways"), "no pass 'sideways'"),
        (("bench", "--dtype", "int3"), "no dtype 'int3'"),
        (("bench", "--layout", "CHWN"), "no layout 'CHWN'"),
        (("bench", "--batch", "0"), "must be a number above 0, got '0'"),
        (("bench", "--budget", "soon"), "must be a number above 0, got 'soon'"),
        (("bench", "--peers", "abacus"), "no peer 'abacus'"),
        (("bench", "--backend", "abacus"), "no backend 'abacus'"),
        (("bench", "--suite", "tiny", "--json", "/proc/nowhere/results.json"), "/proc/nowhere"),
        (("selftest", "--backend", "abacus"), "no backend 'abacus'"),
        (("selftest", "--backend", "raw"), "raw"),
    ],
)
def test_bad_arguments(program, argv, message):
    status, out, err = program(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("fastconv: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("command", ["info", "bench", "selftest", "explain"])
def test_help_has_examples(program, command):
    status, out, _ = program(command, "--help")
    assert status == 0
    assert f"examples:\n  fastconv {command}" in out


def test_version(program):
    assert program("--version")[:2] == (0, f"fastconv {fastconv.__version__}\n")


def test_selftest(program, monkeypatch):
    monkeypatch.setattr(selftest, "checks", lambda: iter(FIRST))
    status, out, err = program("selftest", "--backend", "cpu")
    assert (status, err) == (0, "")
    assert "3 of 3 checks are right" in out
    assert [found["ok"] for found in json.loads(program("selftest", "--json", "--backend", "cpu")[1])] == [True] * 3


def test_selftest_fails(program, monkeypatch):
    def wrong(backend):
        raise AssertionError("2 + 2 is 5\nrepro: [add]")

    monkeypatch.setattr(selftest, "checks", lambda: iter([selftest.Check("sum", "2 2", wrong), FIRST[0]]))
    status, out, _ = program("selftest", "--backend", "cpu")
    assert status == 1
    assert "2 + 2 is 5\nrepro: [add]" in out
    assert "1 of 2 checks are right" in out


def test_bench(program, tmp_path):
    """The whole way once, on the smallest suite: processes, table, JSON, page."""
    data, page = tmp_path / "new" / "results.json", tmp_path / "report.html"
    status, out, _ = program(
        "bench", "--suite", "tiny", "--op", "wgrad", "--backend", "reference", "--peers", "numpy",
        "--json", str(data), "--html", str(page),
    )  # fmt: skip
    assert status == 0
    assert f"Report: {page}" in out
    assert "vs numpy" in out
    doc = json.loads(data.read_text())
    assert all(row["results"]["fastconv.reference"]["status"] == "ok" for row in doc["rows"])
    assert page.read_text().startswith("<!doctype html>")


def test_bench_fails_where_the_backend_is_not_there(program, tmp_path):
    files = "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")
    status, out, _ = program("bench", "--suite", "tiny", "--backend", "raw", *files)
    assert status == 1
    assert "absent fastconv.raw" in out


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "fastconv", "explain", "conv2d n=1 c=1 size=4 k=1 ksize=9"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fastconv: the window does not fit")
    assert done.stderr.count("\n") == 1


def test_the_program_starts_light():
    """Nothing heavy is imported before a command needs it."""
    code = (
        "import sys, fastconv.cli; fastconv.cli.build_parser(); "
        "heavy = 'rich', 'tqdm', 'numba', 'torch', 'fastconv.benchmarks', 'fastconv.testing'; "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

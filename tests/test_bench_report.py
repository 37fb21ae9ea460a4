"""The document holds what a report shows; the page is whole, needs nothing else, and says what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from fastconv.benchmarks import report, results, table
from fastconv.benchmarks.cases import build_cases
from fastconv.benchmarks.limits import Limits
from fastconv.benchmarks.report.svg import Scale, short
from fastconv.benchmarks.runner import Outcome, Row, Run, Settings
from fastconv.testing.timing import Timing, block_calls, geomean, quantile, time_calls, warm_up

VOID = {"meta", "line", "path", "br", "circle", "rect"}


class Page(HTMLParser):
    """Collects what is wrong with the nesting of tags, and every address that is referred to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.faults, self.links = [], [], []
        self.feed(text)
        self.faults += self.open

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"/{tag}")


def timing(seconds):
    return Timing.of([[seconds, seconds * 1.1], [seconds * 0.9, seconds]])


def run_of(suites, peers=(), **changes):
    """A run as if it had been measured: torch half as fast, torch-nhwc equal and without dgrad."""
    settings = Settings(suites=suites, peers=peers)
    rows = []
    for case in settings.cases():
        seconds = 1e-6 + case.flops / 50e9 + case.nbytes / 10e9
        outcomes = {"fastconv.cpu": Outcome(note="gemm", first=0.1, error=0.3, timing=timing(seconds))}
        if peers:
            outcomes["torch"] = Outcome(first=0.1, error=0.1, timing=timing(2 * seconds))
            outcomes["torch-nhwc"] = (
                Outcome("refused", "no <such> call & no other") if case.pass_ == "dgrad"
                else Outcome(first=0.1, error=0.1, timing=timing(seconds))
            )  # fmt: skip
        rows.append(Row(case, outcomes))
    contestants = {name: name for name in settings.contestants()}
    return Run(settings, rows, Limits(100e9, 20e9), contestants, {}, 12.0, **changes)


@pytest.fixture(scope="module")
def doc():
    return json.loads(json.dumps(results.document(run_of(("alexnet", "resnet152"), ("torch",)))))


def test_rows(doc):
    row = doc["rows"][0]
    mine = row["results"]["fastconv.cpu"]
    assert (row["layer"], row["pass"], row["count"], row["binds"]) == ("conv1", "fprop", 1, "compute")
    assert mine["gflops"] == pytest.approx(row["flops"] / mine["seconds"] / 1e9)
    assert mine["fraction"] == pytest.approx(row["flops"] / 100e9 / mine["seconds"])
    assert row["ratios"] == pytest.approx({"torch": 2.0, "torch-nhwc": 1.0, "best": 1.0})
    assert doc["rows"][1]["ratios"] == pytest.approx({"torch": 2.0, "best": 2.0})


def test_summary(doc):
    entries = {(entry["scope"], entry["name"], entry["group"]): entry for entry in doc["summary"]}
    assert entries["pass", "alexnet", "dgrad"]["ratios"]["best"]["geomean"] == pytest.approx(2.0)
    assert entries["pass", "alexnet", "pool fprop"]["rows"] == 3
    assert entries["all", "all", "all"]["timed"] == len(doc["rows"])
    assert ("regime", "1x1", "wgrad") in entries
    total = next(entry for entry in doc["totals"] if (entry["suite"], entry["pass"]) == ("resnet152", "fprop"))
    assert total["seconds"]["torch"] == pytest.approx(2 * total["seconds"]["fastconv.cpu"])


def test_environment(doc):
    assert doc["environment"]["versions"]["fastconv"]
    assert doc["environment"]["machine"]["usable_cores"] >= 1
    assert re.fullmatch(r"[0-9a-f]{12}\+?|", doc["environment"]["commit"] or "")


def test_page_is_whole(doc):
    text = report.render(doc)
    page = Page(text)
    assert page.faults == []
    assert page.links == []  # nothing is loaded from anywhere
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    for word in ("Roofline", "AlexNet", "ResNet-152", "GFLOP/s", "no &lt;such&gt; call &amp; no other", "p80"):
        assert word in text
    assert "nan" not in re.sub(r"<script>.*</script>", "", text, flags=re.S).lower().split()


def test_page_without_peers():
    text = report.render(results.document(run_of(("tiny",))))
    assert Page(text).faults == []
    assert "share of the limit" in text
    assert "best peer" not in text


def test_page_of_what_went_wrong():
    """Wrong, skipped and absent ones, no limits, an interrupted run: all of it is said."""
    run = run_of(("tiny",), interrupted=True)
    run.limits = None
    for row, outcome in zip(
        run.rows, [Outcome("wrong", "wrong values"), Outcome("failed", "lost"), Outcome("skipped", "no time")] * 9,
        strict=False,
    ):  # fmt: skip
        row.outcomes["fastconv.cpu"] = outcome
    run.absent["torch"] = "PyTorch is not installed"
    doc = results.document(run)
    text = report.render(doc)
    assert Page(text).faults == []
    for word in ("wrong values", "lost", "no time", "PyTorch is not installed", "interrupted"):
        assert word in text
    assert results.failed(doc)
    assert all(entry["timed"] == 0 for entry in doc["summary"])


def test_right_and_skipped_is_no_failure(doc):
    run = run_of(("tiny",))
    run.rows[0].outcomes["fastconv.cpu"] = Outcome("skipped", "no time")
    assert not results.failed(results.document(run))
    run.absent["fastconv.cpu"] = "no such machine"
    assert results.failed(results.document(run))


def test_table(doc):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        table.show(doc, console)
    text = console.export_text()
    for word in ("conv1 x1", "vs torch", "2.00x", "Geometric means", "100 GFLOP/s", "refused torch-nhwc"):
        assert word in text


def test_units():
    assert [table.seconds(value) for value in (2.5, 0.0125, 3.21e-5, 4e-9)] == ["2.5 s", "12.5 ms", "32.1 µs", "4 ns"]
    assert [table.percent(value) for value in (None, 0.5, 0.001)] == ["-", "50%", "0.10%"]
    assert [table.ratio(value) for value in (None, 1.234, 0.0021)] == ["-", "1.23x", "0.002x"]


def test_scales():
    linear, log = Scale(0, 10, 0, 100), Scale(0.1, 1000, 0, 400, log=True)
    assert (linear(5), log(1), log(1e9)) == pytest.approx((50, 100, 400))
    assert linear.ticks(5) == [0, 2, 4, 6, 8, 10]
    assert log.ticks(5) == pytest.approx([0.1, 1, 10, 100, 1000])
    assert [short(value) for value in (0, 0.005, 2, 1e4)] == ["0", "0.005", "2", "10,000"]


def test_statistics():
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([0, 10], 0.2) == pytest.approx(2)
    assert geomean([1, 4]) == pytest.approx(2)
    assert (block_calls(1e-6, 0.01, 500), block_calls(1.0, 0.01)) == (500, 1)
    found = Timing.of([[1.0, 3.0], [2.0, 2.0]])
    assert (found.median, found.calls, found.blocks) == (2.0, 4, (2.0, 2.0))


def test_timing_calls():
    made = []
    seconds, last = time_calls(lambda: made.append(1) or len(made), 3)
    assert (len(seconds), last, len(made)) == (3, 3, 3)
    assert warm_up(lambda: None, limit=0.01) > 0


def test_limits_bind():
    case = build_cases(["alexnet"])[0]
    assert Limits(1e9, 1e15).bound(case) == (case.flops / 1e9, "compute")
    assert Limits(1e15, 1e9).bound(case) == (case.nbytes / 1e9, "memory")

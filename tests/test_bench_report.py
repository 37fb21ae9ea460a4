"""The document holds what a report shows; the page is whole, needs nothing else, and says what is missing."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from fastconv.benchmarks import compare, kept, regimes, report, results, runner, summaries, table
from fastconv.benchmarks.cases import build_cases
from fastconv.benchmarks.limits import Limits
from fastconv.benchmarks.report.svg import Scale, short
from fastconv.benchmarks.runner import Outcome, Row, Settings
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


@pytest.fixture(scope="module")
def run_of(made_up):
    return made_up.run_of


@pytest.fixture(scope="module")
def measured(made_up):
    return made_up.measured


def saved(run, path):
    """A document as it comes back from its file."""
    results.save(results.document(run), path)
    return results.load(path)


@pytest.fixture(scope="module")
def doc(tmp_path_factory, run_of):
    run = run_of(("alexnet", "resnet152"), ("torch", "onnxruntime"))
    return saved(run, tmp_path_factory.mktemp("doc") / "run.json")


def test_rows(doc):
    row = doc["rows"][0]
    mine = row["results"]["fastconv.cpu"]
    assert (row["layer"], row["pass"], row["count"], row["binds"]) == ("conv1", "fprop", 1, "compute")
    assert mine["gflops"] == pytest.approx(row["flops"] / mine["seconds"] / 1e9, rel=1e-4)
    assert mine["fraction"] == pytest.approx(row["flops"] / 100e9 / mine["seconds"], rel=1e-4)
    assert row["ratios"] == pytest.approx({"torch": 2, "torch-nhwc": 1, "onnxruntime": 3, "best": 1}, rel=1e-4)
    assert doc["rows"][1]["ratios"] == pytest.approx({"torch": 2.0, "best": 2.0}, rel=1e-4)
    assert (mine["cold"], mine["memory"]) == (pytest.approx(2 * mine["warm"], rel=1e-4), 2**20)


def test_summary(doc):
    entries = {(entry["scope"], entry["name"], entry["group"]): entry for entry in doc["summary"]}
    assert entries["pass", "alexnet", "dgrad"]["ratios"]["best"]["geomean"] == pytest.approx(2.0, rel=1e-4)
    assert entries["pass", "alexnet", "pool fprop"]["rows"] == 3
    assert entries["all", "all", "all"]["timed"] == len(doc["rows"])
    assert entries["regime", "1x1", "all"]["goal"] == regimes.CPU["1x1"].ratio
    assert {entry["regime"] for entry in doc["rows"]} == {name for scope, name, _ in entries if scope == "regime"}
    total = next(entry for entry in doc["totals"] if (entry["suite"], entry["pass"]) == ("resnet152", "fprop"))
    assert total["seconds"]["torch"] == pytest.approx(2 * total["seconds"]["fastconv.cpu"], rel=1e-4)


def test_what_suites_share_counts_once(run_of):
    run = run_of(("resnet50", "resnet152"))
    entries = {(entry["scope"], entry["name"]): entry for entry in results.document(run)["summary"]}
    rows = [row for row in run.rows if row.case.regime("cpu") == "3x3"]
    assert entries["regime", "3x3"]["rows"] == len({(row.case.op, row.case.problem) for row in rows}) < len(rows)


def test_networks(doc):
    """Sums with counts; training leaves out the gradient to the input, and takes libraries that have gradients."""
    entries = {(entry["network"], entry["kind"]): entry for entry in doc["networks"]}
    rows = [row for row in doc["rows"] if row["network"] == "ResNet-152"]
    forward, training = entries["ResNet-152", "forward"], entries["ResNet-152", "training"]
    seconds = [row["count"] * row["results"]["fastconv.cpu"]["seconds"] for row in rows]
    passes = [row["pass"] for row in rows]
    assert forward["seconds"] == pytest.approx(
        sum(time for time, name in zip(seconds, passes, strict=True) if name == "fprop"), rel=1e-4
    )
    stem_dgrad = next(time for time, row in zip(seconds, rows, strict=True) if row["first"] and row["pass"] == "dgrad")
    assert training["seconds"] == pytest.approx(sum(seconds) - stem_dgrad, rel=1e-4)
    assert forward["against"]["onnxruntime"]["ratio"] == pytest.approx(3, rel=1e-4)
    assert training["against"]["torch"]["ratio"] == pytest.approx(2, rel=1e-4)
    assert set(training["against"]) == {"torch"}  # neither onnxruntime nor, here, torch-nhwc has all gradients
    assert forward["of"] == passes.count("fprop") == forward["layers"]


def test_networks_of_what_was_timed(run_of):
    run = run_of(("alexnet",), ("torch",))
    run.rows[0].outcomes["torch"] = Outcome("failed", "lost")
    forward = results.document(run)["networks"][0]
    assert (forward["layers"], forward["against"]["torch"]["layers"]) == (8, 7)
    assert forward["against"]["torch"]["ratio"] == pytest.approx(2)
    assert results.document(run_of(("tiny", "deepbench")))["networks"] == []


def test_a_run_goes_on(tmp_path, run_of):
    """Rows come back as they were; those that were skipped are measured again."""
    run = run_of(("tiny",), ("torch",))
    run.rows[3].outcomes = {name: Outcome("skipped", "no time") for name in run.rows[3].outcomes}
    doc = saved(run, tmp_path / "run.json")
    rows = results.continued(doc, replace(run.settings, budget=1.0))
    assert [row.case for row in rows] == [row.case for place, row in enumerate(run.rows) if place != 3]
    again = saved(replace(run, rows=rows), tmp_path / "again.json")
    assert again["rows"] == [row for place, row in enumerate(doc["rows"]) if place != 3]


def test_only_the_same_run_goes_on(tmp_path, run_of):
    run = run_of(("tiny",))
    doc = saved(run, tmp_path / "run.json")
    with pytest.raises(ValueError, match="made with batch None and now 8"):
        results.continued(doc, replace(run.settings, batch=8))
    doc["environment"]["versions"]["numba"] = "0.1"
    with pytest.raises(ValueError, match=r"version of numba 0\.1 and now"):
        results.continued(doc, run.settings)
    with pytest.raises(ValueError, match="its format is 1"):
        results.continued({"format": 1}, run.settings)


def test_what_is_no_result(tmp_path):
    file = tmp_path / "x.json"
    for text in ("", "[]", "{}", '{"format": 99}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="holds no results of fastconv bench"):
            results.load(file)
    with pytest.raises(ValueError, match="holds no results"):
        results.load(tmp_path / "absent.json")


def test_a_run_of_kept_rows_measures_nothing(monkeypatch, measured):
    monkeypatch.setattr(runner, "_limits", lambda settings, seats: None)
    settings = Settings(suites=("tiny",), backends=("reference",), warm=0.0, block=0.0, rewarm=0.0, rounds=1)
    cases = settings.cases()
    kept = [Row(case, {"fastconv.reference": measured(1.0)}) for case in cases[:-1]]
    saves = []
    monkeypatch.setattr(runner, "SAVE_EVERY", -1.0)
    found = runner.run(settings, kept=kept, save=saves.append)
    assert [row.outcomes["fastconv.reference"].timing.median for row in found.rows[:-1]] == [1.0] * (len(cases) - 1)
    assert found.rows[-1].outcomes["fastconv.reference"].timing.median < 1.0
    assert len(saves) == len(cases)
    assert saves[0].interrupted
    assert not found.interrupted
    assert len(saves[0].rows) == len(cases)  # those to come are skipped in what is saved on the way


def test_the_order_of_a_run():
    """One of each pass and regime comes first, then what weighs most in its suite."""
    cases = runner.by_value(Settings(suites=("resnet50", "mobilenetv2", "tiny")).cases())
    kinds = {(case.pass_, case.regime("cpu")) for case in cases}
    assert {(case.pass_, case.regime("cpu")) for case in cases[: len(kinds)]} == kinds
    assert len(cases) == len(set(cases))


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
    for word in (
        "Roofline",
        "Whole networks",
        "tolerance",
        "Summary by regime",
        "AlexNet",
        "ResNet-152",
        "GFLOP/s",
        "no &lt;such&gt; call &amp; no other",
        "p80",
    ):
        assert word in text
    assert "nan" not in re.sub(r"<script>.*</script>", "", text, flags=re.S).lower().split()


def test_page_without_peers(run_of):
    text = report.render(results.document(run_of(("tiny",))))
    assert Page(text).faults == []
    assert "share of the limit" in text
    assert "vs best" not in text


def test_page_of_what_went_wrong(run_of):
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


def test_right_and_skipped_is_no_failure(doc, run_of):
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


# ---------------------------------------------------------------- two runs


@pytest.fixture(scope="module")
def changed(tmp_path_factory, run_of, measured):
    """A run and a later one: a fifth faster, but for one layer slower, one equal, one as noisy as different."""
    folder = tmp_path_factory.mktemp("two")
    old, new = run_of(("alexnet",), ("torch",)), run_of(("alexnet",), ("torch",), speed=1.25)
    for place, speed in ((0, 0.5), (1, 1.01), (2, 1.05)):
        seconds = old.rows[place].outcomes["fastconv.cpu"].timing.median / speed
        new.rows[place].outcomes["fastconv.cpu"] = measured(seconds)
    new.rows[3].outcomes["fastconv.cpu"] = Outcome("wrong", "wrong values")
    old.rows.pop()
    return compare.compare(saved(old, folder / "old.json"), saved(new, folder / "new.json"))


def test_comparison(changed):
    counts = changed.counts()
    assert counts == {"slower": 1, "faster": 16, "within noise": 1, "same": 1}
    assert changed.ordered()[0].name == "alexnet/conv1/fprop"
    assert changed.ordered()[0].speedup == pytest.approx(0.5, rel=1e-3)
    assert changed.turned == [("alexnet/pool1/fprop", "ok", "wrong"), ("alexnet/pool5/dgrad", "not there", "ok")]
    assert changed.peers == pytest.approx({"torch": 1.0, "torch-nhwc": 1.0})
    assert compare.warnings(changed) == []
    assert changed.means()[-1][0] == "all"


def test_noise_is_no_change():
    quick = {"seconds": 1.0, "p20": 0.9, "p80": 1.3}
    for other, kind in (
        ({"seconds": 1.2, "p20": 1.1, "p80": 1.4}, "within noise"),
        ({"seconds": 1.5, "p20": 1.4, "p80": 1.6}, "slower"),
        ({"seconds": 0.5, "p20": 0.4, "p80": 0.6}, "faster"), ({"seconds": 1.01, "p20": 1.0, "p80": 1.0}, "same"),
    ):  # fmt: skip
        assert compare.Change({}, quick, other).kind == kind


def test_comparison_page(changed):
    text = report.render_comparison(changed)
    page = Page(text)
    assert page.faults == []
    assert page.links == []
    for word in ("slower", "faster", "within noise", "alexnet/conv1/fprop", "Not timed in both"):
        assert word in text
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        compare.show(changed, console)
    assert "1 slower, 16 faster, 1 within noise, 1 same" in console.export_text()


def test_a_machine_in_another_state(run_of):
    old, new = (results.document(run_of(("tiny",), ("torch",))) for _ in range(2))
    for row in new["rows"]:
        row["results"]["torch"]["seconds"] /= 1.5
    (note,) = compare.warnings(compare.compare(old, new))
    assert note == "torch itself became 1.50x as fast: the machine was in another state."


def test_runs_of_the_first_format_compare():
    old = results.load(Path(__file__).parent / "data" / "run_of_the_first_format.json")
    found = compare.compare(old, old)
    assert found.counts()["same"] == len(old["rows"])
    assert Page(report.render_comparison(found)).faults == []


# ---------------------------------------------------------------- results that are kept


def test_the_pages_are_made_of_the_results():
    """``python -m fastconv.benchmarks.kept`` makes them."""
    found = kept.runs(kept.RESULTS)
    assert (kept.RESULTS / "README.md").read_text("utf-8") == kept.page(found)
    text = kept.README.read_text("utf-8")
    assert kept.with_figures(text, kept.figures(found)) == text


def test_a_run_is_kept(doc, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    monkeypatch.setattr(kept, "README", tmp_path / "front.md")
    kept.README.write_text(f"before\n{kept.BEGIN}\nold\n{kept.END}\nafter\n")
    path = kept.keep(doc)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-.*-cores-float32-nchw-nlisted-.*\.json", path.name)
    assert kept.runs(tmp_path) == {path.name: results.load(path)}
    front, page = kept.README.read_text(), (tmp_path / "README.md").read_text()
    assert front.startswith("before")
    assert front.endswith("after\n")
    assert "old" not in front
    for text in (front, page):
        assert re.search(r"\| ResNet-152 \| training \| [\d.]+ m?s \| 2\.00x \| - \| - \|", text)
        assert re.search(r"\| AlexNet \| forward \| [\d.]+ ms \| 2\.00x \| 1\.00x \| 3\.00x \|", text)
    assert re.search(r"\| 1x1 \| \d+/\d+ \| \d+% \| 1\.\d\dx \| 1\.00x to 2\.00x \| 1\.1x \|", page)


def test_a_page_without_marks():
    with pytest.raises(ValueError, match="has no <!-- figures"):
        kept.with_figures("nothing", "figures")


def test_kernel_against_kernel(doc, run_of):
    assert "Kernel against kernel" not in report.render(doc)  # one backend
    run = run_of(("alexnet",))
    run.settings = replace(run.settings, device="gpu", backends=("raw", "numba"))
    for number, row in enumerate(run.rows):
        mine = replace(row.outcomes.pop("fastconv.cpu"), host=3e-6, note="tiles")
        blocks = tuple(block * (2 if number % 2 else 8) for block in mine.timing.blocks)
        theirs = replace(mine, timing=replace(mine.timing, blocks=blocks), note="direct")
        row.outcomes = {"fastconv.raw": mine, "fastconv.numba": theirs, **row.outcomes}
    run.contestants = {"fastconv.raw": "backend raw", "fastconv.numba": "backend numba"}
    made = results.document(run)
    entries = [entry for entry in summaries.versions(made["rows"], "fastconv.raw") if entry["rows"] > 1]
    assert {(entry["other"], entry["mine"], entry["theirs"]) for entry in entries} == {
        ("fastconv.numba", "tiles", "direct")
    }
    assert all(entry["low"] == pytest.approx(2) and entry["high"] == pytest.approx(8) for entry in entries)
    assert all(2 < entry["geomean"] < 8 for entry in entries)
    text = report.render(made)
    assert Page(text).faults == []
    assert "raw: tiles" in text
    assert "numba: direct" in text


def test_gpu_figures_say_which(run_of):
    run = run_of(("alexnet",))
    run.settings = replace(run.settings, device="gpu", backends=("raw",))
    for row in run.rows:
        row.outcomes["fastconv.raw"] = replace(row.outcomes.pop("fastconv.cpu"), host=3e-6)
    run.contestants = {"fastconv.raw": "fastconv 0.1.0, backend raw, NVIDIA H200"}
    doc = results.document(run)
    assert kept.device_of(doc) == "NVIDIA H200"
    assert "nvidia-h200-float32" in kept.name_of(doc)
    text = report.render(doc)
    assert Page(text).faults == []
    assert "Roofline, NVIDIA H200" in text
    assert "host" in text
    assert {entry["name"] for entry in doc["summary"] if entry["scope"] == "regime"} <= set(regimes.GPU)


# ---------------------------------------------------------------- small things


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

"""The comparison of two runs as one HTML page."""

from __future__ import annotations

from html import escape

from fastconv.benchmarks.compare import KINDS, Change, Comparison, title, warnings
from fastconv.benchmarks.report.page import page, section, table, time_cell
from fastconv.benchmarks.report.svg import Scale, Svg
from fastconv.benchmarks.table import ratio, seconds

CLASSES = {"slower": "bad", "faster": "good", "within noise": "soft", "same": "soft"}


def render_comparison(found: Comparison) -> str:
    """The page for what `fastconv.benchmarks.compare.compare` found."""
    return page("fastconv comparison", [_headline(found), _means(found), _changes(found), _turned(found)])


def _headline(found: Comparison) -> str:
    counts = found.counts()
    tiles = "".join(f'<div><b class="{CLASSES[kind]}">{counts[kind]}</b><span>{kind}</span></div>' for kind in KINDS)
    notes = "".join(f'<p class="bad">{escape(note)}</p>' for note in warnings(found))
    return (
        f"<header><h1>fastconv comparison</h1><p>old: {escape(title(found.old))}<br>new: {escape(title(found.new))}</p>"
        f'</header>{notes}<div class="tiles">{tiles}</div>'
    )


def _means(found: Comparison) -> str:
    rows = [
        [escape(name), str(count), ratio(mean), ratio(least), ratio(most)]
        for name, count, mean, least, most in found.means()
    ]
    figures = "".join(
        f'<figure class="{kind}">{_plot(found, width)}</figure>' for kind, width in (("wide", 980), ("narrow", 348))
    )
    note = "How many times as fast the new run is: every row, in order. Grey ones are within noise."
    return section(
        "Change", figures if found.changes else "", table(["pass", "rows", "geomean", "least", "most"], rows), note=note
    )


def _plot(found: Comparison, width: float) -> str:
    """All changes in order of size, on a logarithmic scale."""
    changes = sorted(found.changes, key=lambda change: change.speedup)
    svg = Svg(width, 240, "changes in order")
    speeds = [change.speedup for change in changes]
    x = Scale(0, max(len(changes) - 1, 1), 56, width - 12)
    y = Scale(min(*speeds, 0.8) / 1.1, max(*speeds, 1.25) * 1.1, 220, 14, log=True)
    for value in y.ticks(7):
        svg.line(x.start, y(value), x.end, y(value))
        svg.text(x.start - 6, y(value) + 4, f"{value:g}x", anchor="end")
    svg.line(x.start, y(1), x.end, y(1), "one")
    for place, change in enumerate(changes):
        tip = f"{change.name}: {ratio(change.speedup)}, {change.kind}"
        svg.dot(x(place), y(change.speedup), 3.5, CLASSES[change.kind], tip)
    return str(svg)


def _changes(found: Comparison) -> str:
    def cells(change: Change) -> list[str]:
        kind = f'<span class="{CLASSES[change.kind]}">{change.kind}</span>'
        spread = [f"{seconds(side['p20'])} – {seconds(side['p80'])}" for side in (change.old, change.new)]
        return [escape(change.name), time_cell(change.old["seconds"]), time_cell(change.new["seconds"]),
                ratio(change.speedup), kind, *spread, escape(change.row["problem"])]  # fmt: skip

    headings = ["row", "old", "new", "speed", "", "old p20 – p80", "new p20 – p80", "problem"]
    rows = table(headings, map(cells, found.ordered()), "sortable rows")
    return section("All rows", rows, note="Within noise: the ranges from p20 to p80 of the two runs overlap.")


def _turned(found: Comparison) -> str:
    rows = [[escape(name), escape(was), escape(now)] for name, was, now in found.turned]
    return section("Not timed in both", table(["row", "old", "new"], rows, "wrap", 9) if rows else "")

"""The plots of the report, each for a given width in pixels: once for a desk, once for a phone."""

from __future__ import annotations

from typing import Any

from fastconv.benchmarks.regimes import GOALS
from fastconv.benchmarks.report.svg import Scale, Svg, clipped, column, fits, short
from fastconv.benchmarks.results import GROUPS, Document
from fastconv.benchmarks.table import percent, ratio, seconds

Row = dict[str, Any]


def colour(group: str) -> str:
    return f"c{GROUPS.index(group)}"


def subject_of(doc: Document, row: Row) -> dict[str, Any]:
    """What the subject did on a row; without "seconds" where it has no time."""
    return row["results"].get(doc["subject"], {})


def timed(doc: Document) -> list[Row]:
    return [row for row in doc["rows"] if "seconds" in subject_of(doc, row)]


def best_peer(doc: Document, row: Row) -> tuple[str, dict[str, Any]] | None:
    found = [(name, row["results"].get(name, {})) for name in doc["peers"] if not name.startswith("fastconv.")]
    found = [(name, result) for name, result in found if "seconds" in result]
    return min(found, key=lambda pair: pair[1]["seconds"]) if found else None


# ---------------------------------------------------------------- roofline


def roofline(doc: Document, width: float) -> str:
    """GFLOP/s over FLOP/byte: every row under the roof that this machine's limits make."""
    rows, limits = timed(doc), doc["limits"]
    if not rows or not limits:
        return ""
    svg = Svg(width, 420 if width > 500 else 340, "roofline: GFLOP/s over operations per byte")
    intensity = [row["flops"] / row["bytes"] for row in rows]
    rates = [result["gflops"] for row in rows for result in row["results"].values() if "gflops" in result]
    peak, bandwidth = limits["flops"] / 1e9, limits["bandwidth"] / 1e9
    x = Scale(min(intensity) / 1.6, max(*intensity, peak / bandwidth) * 1.6, 56, width - 12, log=True)
    y = Scale(min(rates) / 2, max(*rates, peak) * 2, svg.height - 46, 14, log=True)
    _frame(svg, x, y, "operations per byte (FLOP/B, each operand and result moved once)", "GFLOP/s")
    ridge = peak / bandwidth
    svg.path(
        [(x(i), y(min(peak, i * bandwidth))) for i in (max(x.low, y.low / bandwidth), max(x.low, ridge), x.high)],
        "roof",
    )
    for row, i in zip(rows, intensity, strict=True):
        if (peer := best_peer(doc, row)) is not None:
            svg.dot(x(i), y(peer[1]["gflops"]), 3.5, "ring", f"{_name(row)}: {peer[0]} {peer[1]['gflops']:.1f} GFLOP/s")
    for row, i in zip(rows, intensity, strict=True):
        mine = subject_of(doc, row)
        tip = f"{_name(row)}: {mine['gflops']:.1f} GFLOP/s, {mine['gbps']:.1f} GB/s, {percent(mine['fraction'])}"
        svg.dot(x(i), y(mine["gflops"]), 4.5, f"dot {colour(row['group'])}", tip)
    svg.text(x.end - 4, y(peak) - 6, f"matrix product {peak:.0f} GFLOP/s", "note", "end")
    middle = (max(x.low, y.low / bandwidth) * ridge) ** 0.5
    label, at = f"copy {bandwidth:.0f} GB/s", (x(middle), y(middle * bandwidth))
    if fits(label, at[0] - x.start):
        svg.text(at[0] - 10, at[1] - 8, label, "note", "end")
    else:
        svg.text(at[0] + 10, at[1] + 16, label, "note")
    return str(svg)


def _frame(svg: Svg, x: Scale, y: Scale, x_label: str, y_label: str) -> None:
    """Grid, ticks and titles of both axes."""
    for value in x.ticks(int((x.end - x.start) / 60)):
        svg.line(x(value), y.start, x(value), y.end)
        svg.text(x(value), y.start + 16, short(value), anchor="middle")
    for value in y.ticks(8):
        svg.line(x.start, y(value), x.end, y(value))
        svg.text(x.start - 6, y(value) + 4, short(value), anchor="end")
    if not fits(x_label, x.end - x.start):
        x_label = x_label.partition(" (")[0] + " (FLOP/B)"
    svg.text((x.start + x.end) / 2, svg.height - 8, x_label, "axis", "middle")
    svg.text(13, (y.start + y.end) / 2, y_label, "axis", "middle", -90)


def _name(row: Row) -> str:
    return f"{row['network']} {row['layer']} {row['group']}"


# ---------------------------------------------------------------- bars per network


Part = tuple[str, str]  # a suite, and a network in it


def part_of(entry: Row) -> Part:
    return entry["suite"], entry["network"]


def regime_colour(doc: Document, name: str) -> str:
    return f"k{list(GOALS[doc['settings']['device']]).index(name)}"


def network(doc: Document, part: Part, width: float) -> str:
    """One bar per pass and contestant: the seconds of the whole network, a segment per layer."""
    totals = [entry for entry in doc["totals"] if part_of(entry) == part and any(entry["seconds"].values())]
    if not totals:
        return ""
    svg = Svg(width, 0, f"milliseconds per layer and pass of {part[1]}")
    longest = max(value for entry in totals for value in entry["seconds"].values())
    x = Scale(0, longest * 1000, 1, width - 1)
    y = 4.0
    for entry in totals:
        for number, (who, value) in enumerate(entry["seconds"].items()):
            svg.text(1, y + 12, f"{entry['pass']}  {who}" if not number else who, "label" if number else "strong")
            svg.text(width - 1, y + 12, seconds(value), "strong", "end")
            _bar(svg, doc, entry, who, x, y + 18)
            y += 46
        y += 8
    for value in x.ticks(int(width / 90)):
        svg.line(x(value), y - 6, x(value), y - 1, "tick")
        anchor = "start" if value == 0 else "middle" if x(value) < width - 24 else "end"
        svg.text(x(value), y + 11, short(value), anchor=anchor)
    svg.line(x.start, y - 6, x.end, y - 6, "tick")
    svg.text(width / 2, y + 29, "milliseconds, layers as often as they occur", "axis", "middle")
    svg.height = y + 38
    return str(svg)


def _bar(svg: Svg, doc: Document, entry: dict[str, Any], who: str, x: Scale, y: float) -> None:
    start = 0.0
    for row in doc["rows"]:
        if (part_of(row), row["pass"]) != (part_of(entry), entry["pass"]):
            continue
        if any("seconds" not in row["results"].get(name, {}) for name in entry["seconds"]):
            continue  # a layer that somebody has no time for would make the sums unequal
        value = 1000 * row["count"] * row["results"][who]["seconds"]
        left, size = x(start), x(start + value) - x(start)
        tip = f"{row['layer']} x{row['count']}: {seconds(value / 1000)} ({row['regime']})"
        svg.rect(left, y, size - min(1.0, size / 3), 22, regime_colour(doc, row["regime"]), tip)
        if fits(row["layer"], size):
            svg.text(left + 4, y + 15, row["layer"], "inside")
        start += value


# ---------------------------------------------------------------- dots per layer, and ranges per suite


def measure_of(doc: Document) -> tuple[str, str]:
    """What layers are rated by: the lead over the best peer, or without peers the share of the limit."""
    if doc["summary"][-1]["ratios"]:  # the last entry is over all rows
        return "ratio", "times as fast as the best peer (log scale)"
    return "fraction", "share of the limit that binds the layer (log scale)"


def rating(doc: Document, row: Row) -> float | None:
    if measure_of(doc)[0] == "ratio":
        return row["ratios"].get("best")
    return subject_of(doc, row).get("fraction")


def layers(doc: Document, part: Part, width: float) -> str:
    """A line per layer, a dot per pass."""
    rows = [row for row in timed(doc) if part_of(row) == part and rating(doc, row)]
    if not rows:
        return ""
    names = list(dict.fromkeys(row["layer"] for row in rows))
    svg = Svg(width, 26 * len(names) + 64, f"layers of {part[1]}")
    left = column(names, width * 0.42)
    x = _rating_scale([rating(doc, row) for row in timed(doc)], left, width - 14)
    bottom = 8 + 26 * len(names)
    _rating_axis(svg, doc, x, bottom)
    for number, name in enumerate(names):
        y = 8 + 26 * number + 13
        svg.line(x.start, y, x.end, y, "track")
        svg.text(left - 8, y + 4, clipped(name, left), anchor="end")
        for row in (row for row in rows if row["layer"] == name):
            value = rating(doc, row)
            shown = ratio(value) if measure_of(doc)[0] == "ratio" else percent(value)
            tip = f"{_name(row)}: {shown}, {seconds(subject_of(doc, row)['seconds'])}"
            svg.dot(x(value), y, 5.5, f"dot {colour(row['group'])}", tip)
    return str(svg)


def means(doc: Document, width: float) -> str:
    """Per regime the geometric mean and, over its layers, the lowest and the highest; a tick where the goal is."""
    entries = [entry for entry in doc["summary"] if entry["scope"] == "regime" and entry["timed"]]
    spans = [(entry, span) for entry in entries if (span := _span(doc, entry))]
    if not spans:
        return ""
    svg = Svg(width, 30 * len(spans) + 64, "geometric means per regime")
    left = column((entry["name"] for entry, _ in spans), width * 0.42)
    goals = [goal for entry, _ in spans if (goal := _goal(doc, entry))]
    x = _rating_scale([*(value for _, span in spans for value in span), *goals], left, width - 60)
    _rating_axis(svg, doc, x, 8 + 30 * len(spans))
    for number, (entry, (low, mean, high)) in enumerate(spans):
        y = 8 + 30 * number + 15
        shown = ratio(mean) if measure_of(doc)[0] == "ratio" else percent(mean)
        kind = regime_colour(doc, entry["name"])
        svg.text(left - 10, y + 4, clipped(entry["name"], left), anchor="end")
        svg.line(x(low), y, x(high), y, f"range {kind}")
        if goal := _goal(doc, entry):
            svg.line(x(goal), y - 10, x(goal), y + 10, "goal")
        svg.dot(x(mean), y, 7, f"dot {kind}", f"{entry['name']}: {shown} over {entry['timed']} rows")
        svg.text(x.end + 10, y + 4, shown, "strong")
    return str(svg)


def _goal(doc: Document, entry: dict[str, Any]) -> float | None:
    return entry["goal"] if measure_of(doc)[0] == "ratio" else entry["goal_fraction"]


def _span(doc: Document, entry: dict[str, Any]) -> tuple[float, float, float] | None:
    if measure_of(doc)[0] == "ratio":
        found = entry["ratios"].get("best")
        return (found["low"], found["geomean"], found["high"]) if found else None
    values = [value for row in doc["rows"] if row["regime"] == entry["name"] and (value := rating(doc, row))]
    return (min(values), entry["fraction"], max(values)) if values else None


def _rating_scale(values: list[float | None], start: float, end: float) -> Scale:
    known = [value for value in values if value]
    return Scale(min(*known, 0.5) / 1.15, max(*known, 2.0) * 1.15, start, end, log=True)


def _rating_axis(svg: Svg, doc: Document, x: Scale, bottom: float) -> None:
    kind, label = measure_of(doc)
    for value in x.ticks(int((x.end - x.start) / 52)):
        svg.line(x(value), 8, x(value), bottom)
        shown = f"{value:g}x" if kind == "ratio" else f"{100 * value:g}%"
        svg.text(x(value), bottom + 16, shown, anchor="middle")
    svg.line(x(1), 4, x(1), bottom + 3, "one")
    if not fits(label, svg.width):
        label = label.partition(" (")[0]
    svg.text(svg.width / 2, bottom + 38, label, "axis", "middle")

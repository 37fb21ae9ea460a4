"""The report as one HTML page: style, script and plots inline, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from importlib.resources import files
from typing import Any

from fastconv.benchmarks.kept import batch_of, device_of
from fastconv.benchmarks.report import plots
from fastconv.benchmarks.results import GROUPS, Document, problems
from fastconv.benchmarks.summaries import versions
from fastconv.benchmarks.table import brief, percent, ratio, seconds

WIDE, NARROW = 980, 348  # pixels: a desk's column and a phone's

METHOD = """
<p>Every figure was <b>verified before and after</b> it was timed, element by element against the float64
reference: the first result, the last timed one, and one for other data written into the same memory. A
contestant that was wrong anywhere has no time. <b>error/bound</b> is the largest error found, as a share of
what is allowed there, <b>tolerance</b>. fastconv's float32 convolutions are held to 1e-5 of the largest
<code>conv(|x|, |w|)</code> within 8 outputs around, everything else to the rounding bound of its own sum (other
libraries to whichever allows more), correlations to a few roundings of the norms. Of cases that would take the
reference minutes, a part is checked, and the row says which.</p>
<p>Each library runs in a process of its own that is stopped while the others run. Blocks of calls take turns
in a rotating order; a time is the median call, p20 and p80 beside it, and a ratio is the median over blocks of
the same round. Calls are the public functions; results are new arrays. On a CPU caches are warm, as in a loop,
and <b>cold</b> has the same with caches that hold nothing of the operands; on a GPU the time is the device's own,
with a cold L2, and <b>host</b> is the time until the call returns; where the device would wait for the host, calls
are replayed as a graph. <b>First</b> is the first call, with compilation. <b>Memory</b> is the peak of a call beyond
its operands: the result, and what it was computed in.</p>
<p><b>GFLOP/s</b> counts two operations per multiply-add of the definition and one per pooled cell, so an algorithm
that saves multiplications can pass 100 %. <b>GB/s</b> counts each operand and the result once.
<b>Of limit</b> is against the longer of the two times that the measured matrix product and copy would need.
Networks are sums over layers as often as they occur; <b>training</b> is fprop, dgrad and wgrad of all layers but
the gradient to the network's own input.</p>
"""


def render(doc: Document) -> str:
    """The page for a document that `fastconv.benchmarks.results.document` made."""
    sections = [_headline(doc), _whole(doc), _summary(doc), _roofline(doc), *_networks(doc), _versions(doc)]
    sections += [_rows(doc), _missing(doc)]
    sections += [section("How it was measured", METHOD), _environment(doc)]
    return page("fastconv benchmark", sections)


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page, with the style and the script of the report inline."""
    folder = files("fastconv.benchmarks") / "report"
    style, script = ((folder / name).read_text("utf-8") for name in ("style.css", "sort.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{style}</style></head>\n<body><main>{''.join(sections)}</main><script>{script}</script></body></html>\n"
    )


def section(title: str, *parts: str, note: str = "") -> str:
    body = "".join(parts)
    lead = f'<p class="lead">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>\n" if body else ""


def _plot(draw: Callable[[float], str]) -> str:
    """The same plot twice; the style shows the one that fits the screen."""
    wide = draw(WIDE)
    return f'<figure class="wide">{wide}</figure><figure class="narrow">{draw(NARROW)}</figure>' if wide else ""


def legend(entries: Iterable[tuple[str, str]], mark: str = "dot") -> str:
    items = "".join(f'<li><i class="{mark} {kind}"></i>{escape(text)}</li>' for kind, text in entries)
    return f'<ul class="legend">{items}</ul>'


def table(headings: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "", numbers_from: int = 1) -> str:
    """Cells are HTML. Columns from `numbers_from` on are right-aligned."""

    def cells(tag: str, values: Iterable[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if place >= numbers_from else ''}>{value}</{tag}>" for place, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = cells("th", map(escape, headings))
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


# ---------------------------------------------------------------- sections


def _groups(doc: Document) -> list[str]:
    return [group for group in GROUPS if any(row["group"] == group for row in doc["rows"])]


def _pass_legend(doc: Document, rows: list[dict[str, Any]]) -> str:
    present = {row["group"] for row in rows}
    return legend((plots.colour(group), group) for group in _groups(doc) if group in present)


def _headline(doc: Document) -> str:
    settings, machine = doc["settings"], doc["environment"]["machine"]
    overall = next(entry for entry in doc["summary"] if entry["scope"] == "all")
    tiles = [(f"{overall['timed']} of {overall['rows']}", "figures verified and timed")]
    if best := overall["ratios"].get("best"):
        tiles.append((ratio(best["geomean"]), "the best peer's speed, geometric mean"))
    tiles.append((percent(overall["fraction"]), "of the binding limit, geometric mean"))
    if limits := doc["limits"]:
        product, copy = limits["flops"] / 1e9, limits["bandwidth"] / 1e9
        tiles.append((f"{product:.0f} <small>GFLOP/s</small>", "matrix product on this machine"))
        tiles.append((f"{copy:.0f} <small>GB/s</small>", "copy on this machine"))
    shown = "".join(f"<div><b>{value}</b><span>{text}</span></div>" for value, text in tiles)
    what = f"{', '.join(settings['suites'])} · {batch_of(doc)} · {settings['dtype']} · {settings['layout']}"
    date, commit = doc["environment"]["date"][:16].replace("T", " "), doc["environment"]["commit"]
    cores = f", {machine['usable_cores']} cores" if settings["device"] == "cpu" else ""
    where = f"{device_of(doc)}{cores} · {date} UTC" + (f" · commit {commit}" if commit else "")
    stopped = '<p class="bad">The run was interrupted: it shows what was measured until then.</p>'
    return (
        f"<header><h1>fastconv benchmark</h1><p>{escape(what)}<br>{escape(where)}</p></header>"
        f'{stopped if doc["interrupted"] else ""}<div class="tiles">{shown}</div>'
    )


def _whole(doc: Document) -> str:
    """The networks, each forward and training, against every peer."""
    entries = [entry for entry in doc["networks"] if entry["layers"]]
    peers = [name for name in doc["peers"] if any(name in entry["against"] for entry in entries)]

    def cells(entry: dict[str, Any]) -> list[str]:
        shown = [escape(entry["network"]), entry["kind"], f"{entry['layers']}/{entry['of']}"]
        shown.append(time_cell(entry["seconds"]))
        for peer in peers:
            found = entry["against"].get(peer)
            part = f" <small>of {found['layers']}</small>" if found and found["layers"] < entry["layers"] else ""
            shown.append(_graded(found["ratio"], seconds(found["seconds"])) + part if found else "-")
        return shown

    headings = ["network", "", "rows", "time", *(f"vs {peer}" for peer in peers)]
    note = "All convolutions and poolings of each network. A ratio is over the rows that both have a time for."
    return section("Whole networks", table(headings, map(cells, entries), "sortable", 2) if entries else "", note=note)


def _graded(value: float, tip: str) -> str:
    return f'<span class="{"good" if value >= 1 else "slow"}" title="{escape(tip)}">{ratio(value)}</span>'


def _summary(doc: Document) -> str:
    peers = list(dict.fromkeys(peer for entry in doc["summary"] for peer in entry["ratios"]))
    goals = any(entry.get("goal_fraction") for entry in doc["summary"])

    def cells(entry: dict[str, Any]) -> list[str]:
        name = entry["name"] if entry["scope"] != "pass" else f"{entry['name']}, {entry['group']}"
        shown = [escape("everything" if name == "all" else name), f"{entry['timed']}/{entry['rows']}"]
        shown.append(percent(entry["fraction"]))
        if entry["scope"] == "regime":
            shown.append(ratio(entry["goal"]) + (f", {percent(entry['goal_fraction'])}" if goals else ""))
        for peer in peers:
            found = entry["ratios"].get(peer)
            spread = f" <small>{ratio(found['low'])}–{ratio(found['high'])}</small>" if found else ""
            shown.append((ratio(found["geomean"]) if found else "-") + spread)
        return shown

    def rows(*scopes: str) -> Iterable[list[str]]:
        return [cells(entry) for scope in scopes for entry in doc["summary"] if entry["scope"] == scope]

    against = [f"vs {peer}" for peer in peers]
    kinds = table(["regime", "timed", "of limit", "goal", *against], rows("regime"), "sortable")
    suites = table(["suite", "timed", "of limit", *against], rows("all", "suite", "pass"), "sortable")
    note = "Dots are geometric means, bars span the slowest to the fastest layer, ticks are goals."
    plot = _plot(lambda width: plots.means(doc, width))
    return section("Summary by regime", plot, kinds, note=note) + section("Summary by suite", suites)


def _roofline(doc: Document) -> str:
    rings = [("ring", "best peer")] if any(row["ratios"] for row in doc["rows"]) else []
    key = legend([*((plots.colour(group), group) for group in _groups(doc)), *rings])
    note = "Each dot is a layer's pass under the roof that the measured copy (slope) and matrix product (flat) make."
    plot = _plot(lambda width: plots.roofline(doc, width))
    return section(f"Roofline, {device_of(doc)}", plot and key + plot, note=note)


def _networks(doc: Document) -> list[str]:
    sections = []
    for part in dict.fromkeys(map(plots.part_of, doc["rows"])):
        rows = [row for row in doc["rows"] if plots.part_of(row) == part]
        bars = _plot(lambda width, part=part: plots.network(doc, part, width)) if rows[0]["whole"] else ""  # type: ignore[misc]
        dots = _plot(lambda width, part=part: plots.layers(doc, part, width))  # type: ignore[misc]
        left_out = [entry for entry in doc["totals"] if plots.part_of(entry) == part and entry["layers"] < entry["of"]]
        note = "Time of the whole network, a segment per layer." + "".join(
            f" In {entry['pass']} only the {entry['layers']} of {entry['of']} layers that everyone timed."
            for entry in left_out
        )
        named = [(plots.regime_colour(doc, name), name) for name in dict.fromkeys(row["regime"] for row in rows)]
        parts = [legend(named, "box") + bars] if bars else []
        if dots:
            parts.append(f"{'<h3>By layer</h3>' if bars else ''}{_pass_legend(doc, rows)}{dots}")
        sections.append(section(part[1], *parts, note=note if bars else ""))
    return sections


def _versions(doc: Document) -> str:
    """Empty where one backend ran alone."""
    subject = doc["subject"]
    names = {name: name.removeprefix("fastconv.") for name in doc["contestants"]}
    found = [
        [
            escape(entry["group"]), escape(f"{names[subject]}: {entry['mine']}"),
            escape(f"{names[entry['other']]}: {entry['theirs']}"), str(entry["rows"]),
            _graded(entry["geomean"], f"{ratio(entry['low'])} to {ratio(entry['high'])}"),
        ]
        for entry in versions(doc["rows"], subject)
    ]  # fmt: skip
    if not found:
        return ""
    note = (
        f"How many times faster {escape(names[subject])}'s kernel is than another backend's for the same rows, as a "
        "geomean; its tip has the extremes. Of raw against numba this is what Python costs a kernel."
    )
    return section(
        "Kernel against kernel", table(["pass", "kernel", "against", "rows", "ratio"], found, "", 3), note=note
    )


def _rows(doc: Document) -> str:
    peers = [name for name in doc["peers"] if name in doc["contestants"]]
    other = "warm" if doc["settings"]["device"] == "gpu" else "cold"
    times = ["seconds", "p20", "p80", other, *(["host"] if other == "warm" else []), "first"]
    headings = ["layer", "pass", "median", *times[1:], "memory", "GFLOP/s", "GB/s", "of limit", "error/bound"]
    headings += ["tolerance", *(f"vs {peer}" for peer in peers), "regime", "algorithm", "problem"]

    def cells(row: dict[str, Any]) -> list[str]:
        mine = plots.subject_of(doc, row)
        name = f"{escape(row['network'])} {escape(row['layer'])} <small>x{row['count']}</small>"
        about = [escape(row["regime"]), escape(mine.get("note", "-")), escape(row["problem"])]
        if "seconds" not in mine:
            status = f'<span class="bad">{escape(mine.get("status", "absent"))}</span>'
            return [name, row["pass"], status, *["-"] * (len(headings) - 6), *about]
        shown = [time_cell(mine.get(key)) for key in times] + [_memory(mine.get("memory"))]
        checked = f" <small>{escape(mine['checked'])}</small>" if "checked" in mine else ""
        rates = [f"{mine['gflops']:.1f}", f"{mine['gbps']:.1f}", percent(mine["fraction"])]
        errors = [f"{mine['error']:.2g}{checked}", f"{mine['tolerance']:.1g}"]
        against = [_ratio(row, peer) for peer in peers]
        return [name, row["pass"], *shown, *rates, *errors, *against, *about]

    note = f"{escape(doc['contestants'].get(doc['subject'], doc['subject']))}. Click a heading to sort."
    return section("All figures", table(headings, map(cells, doc["rows"]), "sortable rows", 2), note=note)


def time_cell(value: float | None) -> str:
    return "-" if value is None else f'<span data-value="{value:.9g}">{seconds(value)}</span>'


def _memory(value: int | None) -> str:
    return "-" if value is None else f'<span data-value="{value}">{value / 2**20:.1f} MB</span>'


def _ratio(row: dict[str, Any], peer: str) -> str:
    """A ratio, with the peer's own figures as its tip; a peer without a time says why."""
    result = row["results"].get(peer, {})
    if peer not in row["ratios"]:
        return f'<span title="{escape(brief(result.get("reason", "")))}">{escape(result.get("status", "-"))}</span>'
    tip = f"{seconds(result['seconds'])} ({seconds(result['p20'])} to {seconds(result['p80'])})"
    return _graded(row["ratios"][peer], f"{tip}, error/bound {result['error']:.2g}")


def _missing(doc: Document) -> str:
    found = [
        [escape(entry["contestant"]), escape(entry["status"]), escape(brief(entry["reason"])), _folded(entry["cases"])]
        for entry in problems(doc)
    ]
    if not found:
        return section("Without a time", "<p>Nothing: every case of every contestant was right and timed.</p>")
    return section("Without a time", table(["contestant", "", "why", "where"], found, "wrap", 9))


def _folded(cases: str) -> str:
    """A short list as it is; a long one opens on a click."""
    names = cases.split(", ")
    if len(names) <= 3:
        return escape(cases)
    return f"<details><summary>{len(names)} rows</summary>{escape(cases)}</details>"


def _environment(doc: Document) -> str:
    found = doc["environment"]
    machine = found["machine"]
    pairs = [
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['usable_cores']} usable"),
        ("system", machine["system"]),
        ("load when the run ended", str(machine["load"])),
        ("date", found["date"]),
        ("commit", found["commit"] or "-"),
        ("seconds of the run", f"{doc['seconds']:.0f}"),
        *doc["contestants"].items(),
        *((f"backend {backend['name']}", backend["reason"]) for backend in found["backends"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version != "-")),
        ("settings", ", ".join(f"{name}={value}" for name, value in doc["settings"].items())),
    ]
    return section("Environment", table(["", ""], [[escape(a), escape(str(b))] for a, b in pairs], "wrap", 9))

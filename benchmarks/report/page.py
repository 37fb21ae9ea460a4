"""The report as one HTML page: style, script and plots inline, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from importlib.resources import files
from typing import Any

from fastconv.benchmarks.report import plots
from fastconv.benchmarks.results import GROUPS, Document, problems
from fastconv.benchmarks.table import brief, percent, ratio, seconds

WIDE, NARROW = 980, 348  # pixels: a desk's column and a phone's

METHOD = """
<p>Every figure was <b>verified before and after</b> it was timed, element by element against the float64
reference: the first result, the last timed one, and one for other data written into the same memory. A
contestant that was wrong anywhere has no time. <b>error/bound</b> is the largest error found, as a share of
what rounding allows that element; 1 would be the limit. fastconv's float32 convolutions are held to 1e-5 of the
largest <code>conv(|x|, |w|)</code> within 8 outputs around, everything else to the rounding bound of its own sum
(other libraries to whichever allows more).</p>
<p>Each library runs in a process of its own that is stopped while the others run. Blocks of calls take turns
in a rotating order; a time is the median call, p20 and p80 beside it, and a ratio is the median over blocks of
the same round. Calls are the public functions with warm caches, as in a loop; results are new arrays. The first
call (compilation, thread start) is listed apart.</p>
<p><b>GFLOP/s</b> counts two operations per multiply-add of the definition and one per pooled cell, so an algorithm
that saves multiplications can pass 100 %. <b>GB/s</b> counts each operand and the result once.
<b>Of limit</b> is against the longer of the two times that the measured matrix product and copy would need.</p>
"""


def render(doc: Document) -> str:
    """The page for a document that `fastconv.benchmarks.results.document` made."""
    folder = files("fastconv.benchmarks") / "report"
    style, script = ((folder / name).read_text("utf-8") for name in ("style.css", "sort.js"))
    sections = [_headline(doc), _summary(doc), _roofline(doc), *_networks(doc), _rows(doc), _missing(doc)]
    sections += [_section("How it was measured", METHOD), _environment(doc)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>fastconv benchmark</title>'
        f"<style>{style}</style></head>\n<body><main>{''.join(sections)}</main><script>{script}</script></body></html>\n"
    )


def _section(title: str, *parts: str, note: str = "") -> str:
    body = "".join(parts)
    lead = f'<p class="lead">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>\n" if body else ""


def _plot(draw: Callable[[float], str]) -> str:
    """The same plot twice; the style shows the one that fits the screen."""
    wide = draw(WIDE)
    return f'<figure class="wide">{wide}</figure><figure class="narrow">{draw(NARROW)}</figure>' if wide else ""


def _legend(entries: Iterable[tuple[str, str]], mark: str = "dot") -> str:
    items = "".join(f'<li><i class="{mark} {kind}"></i>{escape(text)}</li>' for kind, text in entries)
    return f'<ul class="legend">{items}</ul>'


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "", numbers_from: int = 1) -> str:
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


def _pass_legend(doc: Document) -> str:
    return _legend((plots.colour(group), group) for group in _groups(doc))


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
    what = f"{', '.join(settings['suites'])} · batch {settings['batch']} · {settings['dtype']} · {settings['layout']}"
    date, commit = doc["environment"]["date"][:16].replace("T", " "), doc["environment"]["commit"]
    where = f"{machine['cpu']}, {machine['usable_cores']} cores · {date} UTC" + (
        f" · commit {commit}" if commit else ""
    )
    stopped = '<p class="bad">The run was interrupted: it shows what was measured until then.</p>'
    return (
        f"<header><h1>fastconv benchmark</h1><p>{escape(what)}<br>{escape(where)}</p></header>"
        f'{stopped if doc["interrupted"] else ""}<div class="tiles">{shown}</div>'
    )


def _summary(doc: Document) -> str:
    rows = [entry for entry in doc["summary"] if entry["scope"] != "pass"]
    peers = list(dict.fromkeys(peer for entry in rows for peer in entry["ratios"]))

    def cells(entry: dict[str, Any]) -> list[str]:
        names = {"all": "everything", "suite": entry["name"], "regime": f"{entry['name']}, {entry['group']}"}
        shown = [names[entry["scope"]], f"{entry['timed']}/{entry['rows']}", percent(entry["fraction"])]
        for peer in peers:
            found = entry["ratios"].get(peer)
            spread = f" <small>{ratio(found['low'])}–{ratio(found['high'])}</small>" if found else ""
            shown.append((ratio(found["geomean"]) if found else "-") + spread)
        return shown

    headings = ["suite or kind of layer", "timed", "of limit", *(f"vs {peer}" for peer in peers)]
    note = "Dots are geometric means, bars span the slowest to the fastest layer."
    table = _table(headings, map(cells, rows), "sortable")
    return _section("Summary", _plot(lambda width: plots.means(doc, width)), table, note=note)


def _roofline(doc: Document) -> str:
    rings = [("ring", "best peer")] if any(row["ratios"] for row in doc["rows"]) else []
    legend = _legend([*((plots.colour(group), group) for group in _groups(doc)), *rings])
    note = "Each dot is a layer's pass under the roof that the measured copy (slope) and matrix product (flat) make."
    plot = _plot(lambda width: plots.roofline(doc, width))
    return _section("Roofline", plot and legend + plot, note=note)


def _networks(doc: Document) -> list[str]:
    sections = []
    for suite in dict.fromkeys(row["suite"] for row in doc["rows"]):
        bars = _plot(lambda width, suite=suite: plots.network(doc, suite, width))  # type: ignore[misc]
        dots = _plot(lambda width, suite=suite: plots.layers(doc, suite, width))  # type: ignore[misc]
        left_out = [entry for entry in doc["totals"] if entry["suite"] == suite and entry["layers"] < entry["of"]]
        note = "Time of the whole network, a segment per layer." + "".join(
            f" In {entry['pass']} only the {entry['layers']} of {entry['of']} layers that everyone timed."
            for entry in left_out
        )
        present = {row["regime"] for row in doc["rows"] if row["suite"] == suite}
        named = [(f"k{place}", name) for place, name in enumerate(plots.regimes(doc)) if name in present]
        network = next(row["network"] for row in doc["rows"] if row["suite"] == suite)
        parts = [_legend(named, "box") + bars] if bars else []
        if dots:
            parts.append(f"<h3>By layer</h3>{_pass_legend(doc)}{dots}")
        sections.append(_section(network, *parts, note=note))
    return sections


def _rows(doc: Document) -> str:
    peers = [name for name in doc["peers"] if name in doc["contestants"]]
    headings = ["layer", "pass", "median", "p20", "p80", "first", "GFLOP/s", "GB/s", "of limit", "error/bound"]
    headings += [f"vs {peer}" for peer in peers] + ["algorithm", "problem"]

    def cells(row: dict[str, Any]) -> list[str]:
        mine = plots.subject_of(doc, row)
        name = f"{row['network']} {row['layer']} <small>x{row['count']}</small>"
        if "seconds" not in mine:
            status = f'<span class="bad">{escape(mine.get("status", "absent"))}</span>'
            return [name, row["pass"], status, *["-"] * (7 + len(peers)), "-", escape(row["problem"])]
        times = [_time(mine[key]) for key in ("seconds", "p20", "p80", "first")]
        rates = [f"{mine['gflops']:.1f}", f"{mine['gbps']:.1f}", percent(mine["fraction"]), f"{mine['error']:.2g}"]
        against = [_ratio(row, peer) for peer in peers]
        return [name, row["pass"], *times, *rates, *against, escape(mine.get("note", "")), escape(row["problem"])]

    note = f"{escape(doc['contestants'].get(doc['subject'], doc['subject']))}. Click a heading to sort."
    return _section("All figures", _table(headings, map(cells, doc["rows"]), "sortable rows", 2), note=note)


def _time(value: float) -> str:
    return f'<span data-value="{value:.9g}">{seconds(value)}</span>'


def _ratio(row: dict[str, Any], peer: str) -> str:
    """A ratio; a peer without a time says why."""
    if peer in row["ratios"]:
        value = row["ratios"][peer]
        return f'<span class="{"good" if value >= 1 else "slow"}">{ratio(value)}</span>'
    return escape(row["results"].get(peer, {}).get("status", "-"))


def _missing(doc: Document) -> str:
    found = [
        [escape(entry["contestant"]), escape(entry["status"]), escape(brief(entry["reason"])), escape(entry["cases"])]
        for entry in problems(doc)
    ]
    if not found:
        return _section("Without a time", "<p>Nothing: every case of every contestant was right and timed.</p>")
    return _section("Without a time", _table(["contestant", "", "why", "where"], found, "wrap", 9))


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
    return _section("Environment", _table(["", ""], [[escape(a), escape(str(b))] for a, b in pairs], "wrap", 9))

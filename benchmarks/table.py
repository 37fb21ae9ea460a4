"""A run as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from fastconv.benchmarks.results import Document, problems


def seconds(value: float) -> str:
    """A time with three digits in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}" if value >= 0.0095 else f"{value:.2%}"


def ratio(value: float | None) -> str:
    """Two decimals, or two digits where that would say 0.00."""
    return "-" if value is None else f"{value:.2f}x" if value >= 0.095 else f"{value:.1g}x"


def show(doc: Document, console: Console) -> None:
    """Rows suite by suite, the summary, and what has no time."""
    peers = [name for name in doc["peers"] if name in doc["contestants"]]
    for suite in dict.fromkeys(row["suite"] for row in doc["rows"]):
        console.print(_suite(doc, suite, peers))
    console.print(_summary(doc, peers))
    if doc["networks"]:
        console.print(_networks(doc, peers))
    for entry in problems(doc):
        console.print(
            f"{entry['status']} {entry['contestant']}: {brief(entry['reason'])} ({_some(entry['cases'])})",
            style="yellow", highlight=False, markup=False,
        )  # fmt: skip
    if limits := doc["limits"]:
        console.print(
            f"Limits measured in this run: {limits['flops'] / 1e9:.0f} GFLOP/s (matrix product), "
            f"{limits['bandwidth'] / 1e9:.1f} GB/s (copy). 100 % is the one that binds a layer; "
            "fewer multiplications than the definition's (Winograd) can pass it.",
            highlight=False,
        )


def brief(reason: str, most: int = 240) -> str:
    """A compiler's pages of complaint as one line."""
    line = " ".join(reason.split())
    return line if len(line) <= most else line[:most] + " …"


def _some(text: str, most: int = 90) -> str:
    return text if len(text) <= most else text[: text.rfind(",", 0, most)] + ", …"


def _suite(doc: Document, suite: str, peers: list[str]) -> Table:
    settings = doc["settings"]
    batch = f"batch {settings['batch']}" if settings["batch"] else "batch as listed"
    title = f"{suite}  {batch}, {settings['dtype']}, {settings['layout']}, {doc['subject']}"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("pass")
    for heading in ("median", "p20", "p80", "GFLOP/s", "GB/s", "of limit", "error/bound", *(f"vs {p}" for p in peers)):
        table.add_column(heading, justify="right")
    layer = None
    for row in (row for row in doc["rows"] if row["suite"] == suite):
        if layer not in (None, row["layer"]):
            table.add_section()
        label = f"{row['layer']} x{row['count']}" if row["layer"] != layer else ""
        layer = row["layer"]
        table.add_row(label, row["pass"], *_cells(row, doc["subject"], peers))
    return table


def _cells(row: dict[str, Any], subject: str, peers: list[str]) -> list[str]:
    found = row["results"].get(subject, {"status": "absent"})
    if "seconds" not in found:
        return [f"[red]{found['status']}[/]", *"-" * (6 + len(peers))]
    return [
        seconds(found["seconds"]), seconds(found["p20"]), seconds(found["p80"]), f"{found['gflops']:.1f}",
        f"{found['gbps']:.1f}", percent(found["fraction"]), f"{found['error']:.2g}",
        *(ratio(row["ratios"].get(peer)) for peer in peers),
    ]  # fmt: skip


def _summary(doc: Document, peers: list[str]) -> Table:
    table = Table(title="Geometric means", title_justify="left", title_style="bold", header_style="bold")
    for heading in ("suite", "pass"):
        table.add_column(heading)
    names = [*peers, *(["best"] if len(peers) > 1 else [])]
    for heading in ("timed", "of limit", *(f"vs {name}" for name in names)):
        table.add_column(heading, justify="right")
    for entry in doc["summary"]:
        label = (entry["name"], entry["group"]) if entry["scope"] != "regime" else (entry["name"], "regime")
        table.add_row(
            *label, f"{entry['timed']}/{entry['rows']}", percent(entry["fraction"]),
            *(ratio(entry["ratios"].get(name, {}).get("geomean")) for name in names),
            style=None if entry["scope"] == "pass" else "bold", end_section=entry["scope"] == "suite",
        )  # fmt: skip
    return table


def _networks(doc: Document, peers: list[str]) -> Table:
    table = Table(title="Whole networks", title_justify="left", title_style="bold", header_style="bold")
    for heading in ("network", ""):
        table.add_column(heading)
    for heading in ("rows", doc["subject"], *(f"vs {peer}" for peer in peers)):
        table.add_column(heading, justify="right")
    for entry in (entry for entry in doc["networks"] if entry["layers"]):
        against = [entry["against"].get(peer) for peer in peers]
        table.add_row(
            entry["network"], entry["kind"], f"{entry['layers']}/{entry['of']}", seconds(entry["seconds"]),
            *(ratio(found["ratio"]) + ("*" if found["layers"] < entry["layers"] else "") if found else "-"
              for found in against),
            end_section=entry["kind"] == "training",
        )  # fmt: skip
    if any(found["layers"] < entry["layers"] for entry in doc["networks"] for found in entry["against"].values()):
        table.caption = "* over the layers that both timed"
    return table

"""Two runs side by side: which rows became faster or slower, and which differ by no more than they scatter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from fastconv.benchmarks.results import Document
from fastconv.benchmarks.table import ratio, seconds
from fastconv.testing.timing import geomean

SAME = 1.03  # a change below this is none
KINDS = ("slower", "faster", "within noise", "same")


@dataclass(frozen=True)
class Change:
    """One row of both runs."""

    row: dict[str, Any]
    old: dict[str, Any]
    new: dict[str, Any]

    @property
    def speedup(self) -> float:
        """How many times as fast it is now."""
        return float(self.old["seconds"] / self.new["seconds"])

    @property
    def kind(self) -> str:
        """Where most calls of the two runs took times of the same range, the difference is noise."""
        if 1 / SAME < self.speedup < SAME:
            return "same"
        if self.old["p20"] <= self.new["p80"] and self.new["p20"] <= self.old["p80"]:
            return "within noise"
        return "faster" if self.speedup > 1 else "slower"

    @property
    def name(self) -> str:
        return f"{self.row['suite']}/{self.row['layer']}/{self.row['pass']}"


@dataclass
class Comparison:
    """What became of each row that both runs have of the same problem."""

    old: Document
    new: Document
    changes: list[Change] = field(default_factory=list)
    turned: list[tuple[str, str, str]] = field(default_factory=list)  # row, what it was, what it is: not both timed
    peers: dict[str, float] = field(default_factory=dict)  # how many times as fast the others are, the machine's share

    def counts(self) -> dict[str, int]:
        return {kind: sum(change.kind == kind for change in self.changes) for kind in KINDS}

    def means(self) -> list[tuple[str, int, float, float, float]]:
        """Per pass, and over all: rows, the geometric mean of the speedups, the least and the largest."""
        groups: dict[str, list[float]] = {}
        for change in self.changes:
            for name in (change.row["group"], "all"):
                groups.setdefault(name, []).append(change.speedup)
        rows = [(name, len(each), geomean(each), min(each), max(each)) for name, each in groups.items()]
        return sorted(rows, key=lambda row: row[0] == "all")

    def ordered(self) -> list[Change]:
        """The slower ones first, then the faster ones, the largest change first in each."""
        return sorted(
            self.changes, key=lambda change: (KINDS.index(change.kind), -abs(math.log(change.speedup)))
        )  # fmt: skip


def compare(old: Document, new: Document) -> Comparison:
    """Rows are the same where suite, layer, pass and problem are; each run is seen by its own subject."""
    found = Comparison(old, new)
    before = {_key(row): row for row in old["rows"]}
    for row in new["rows"]:
        earlier = before.pop(_key(row), None)
        now = row["results"].get(new["subject"], {"status": "absent"})
        if earlier is None:
            found.turned.append((_name(row), "not there", now["status"]))
            continue
        then = earlier["results"].get(old["subject"], {"status": "absent"})
        if "seconds" in now and "seconds" in then:
            found.changes.append(Change(row, then, now))
        elif then["status"] != now["status"]:
            found.turned.append((_name(row), then["status"], now["status"]))
    found.turned += [(_name(row), row["results"].get(old["subject"], {"status": "absent"})["status"], "not there")
                     for row in before.values()]  # fmt: skip
    for peer in (name for name in new["contestants"] if name in old["contestants"] and name != new["subject"]):
        earlier = {_key(row): row["results"].get(peer, {}) for row in old["rows"]}
        pairs = [(earlier.get(_key(row), {}), row["results"].get(peer, {})) for row in new["rows"]]
        speedups = [a["seconds"] / b["seconds"] for a, b in pairs if "seconds" in a and "seconds" in b]
        if speedups:
            found.peers[peer] = geomean(speedups)
    return found


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("suite", "layer", "pass", "problem"))


def _name(row: dict[str, Any]) -> str:
    return f"{row['suite']}/{row['layer']}/{row['pass']}"


def title(doc: Document) -> str:
    found = doc["environment"]
    return f"{found['commit'] or found['versions']['fastconv']}, {found['date'][:16].replace('T', ' ')}"


def warnings(found: Comparison) -> list[str]:
    """What makes the two runs hard to compare."""
    notes = []
    cpus = [doc["environment"]["machine"]["cpu"] for doc in (found.old, found.new)]
    if cpus[0] != cpus[1]:
        notes.append(f"The machines differ: {cpus[0]} and {cpus[1]}.")
    for peer, change in found.peers.items():
        if not 1 / SAME < change < SAME:
            notes.append(f"{peer} itself became {ratio(change)} as fast: the machine was in another state.")
    return notes


def show(found: Comparison, console: Console, most: int = 20) -> None:
    """The counts, the means, and the rows that changed most."""
    console.print(f"old: {title(found.old)}\nnew: {title(found.new)}", highlight=False, markup=False)
    counts = found.counts()
    console.print(", ".join(f"{counts[kind]} {kind}" for kind in KINDS), highlight=False)
    table = Table(header_style="bold")
    for heading in ("", "rows", "speed", "least", "most"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, rows, mean, least, largest in found.means():
        table.add_row(name, str(rows), ratio(mean), ratio(least), ratio(largest))
    console.print(table)
    changed = [change for change in found.ordered() if change.kind in ("slower", "faster")]
    table = Table(title="Changed", title_justify="left", header_style="bold")
    for heading in ("row", "old", "new", "speed", ""):
        table.add_column(heading, justify="right" if heading in ("old", "new", "speed") else "left")
    for change in changed[:most]:
        style = "red" if change.kind == "slower" else "green"
        table.add_row(change.name, seconds(change.old["seconds"]), seconds(change.new["seconds"]),
                      ratio(change.speedup), f"[{style}]{change.kind}[/]")  # fmt: skip
    if changed:
        console.print(table)
    for name, was, now in found.turned:
        console.print(f"{name}: {was}, now {now}", style="yellow", highlight=False, markup=False)
    for note in warnings(found):
        console.print(note, style="yellow", highlight=False, markup=False)

"""What the rows of a run add up to: geometric means per suite, pass and regime, and whole networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastconv.benchmarks.regimes import GOALS
from fastconv.testing.timing import geomean

Row = dict[str, Any]


def ratios(results: dict[str, dict[str, Any]], subject: str) -> dict[str, float]:
    """How many times faster the subject is: the median over the blocks that ran in the same round.

    "best" is against whichever of the other libraries was fastest.
    """
    mine = results.get(subject, {}).get("blocks")
    if mine is None:
        return {}
    found = {
        name: statistics.median(b / a for a, b in zip(mine, result["blocks"], strict=False))
        for name, result in results.items()
        if name != subject and "blocks" in result
    }
    others = [value for name, value in found.items() if not name.startswith("fastconv.")]
    return found | ({"best": min(others)} if others else {})


def summary(rows: Sequence[Row], subject: str, device: str) -> list[dict[str, Any]]:
    """Geomeans per suite and pass, per suite, per regime, and over everything."""
    entries = []
    for scope, key in (
        ("pass", lambda row: (row["suite"], row["group"])),
        ("suite", lambda row: (row["suite"], "all")),
        ("regime", lambda row: (row["regime"], "all")),
        ("all", lambda row: ("all", "all")),
    ):
        entries += [_summarise(scope, *name, group, subject) for name, group in _grouped(rows, key)]
    for entry in entries:
        if entry["scope"] == "regime":
            goal = GOALS[device][entry["name"]]
            entry |= {"goal": goal.ratio, "goal_fraction": goal.fraction}
    regimes = list(GOALS[device])
    return sorted(entries, key=lambda entry: (SCOPES.index(entry["scope"]), regimes.index(entry["name"])
                                              if entry["scope"] == "regime" else 0))  # fmt: skip


SCOPES = ("pass", "suite", "regime", "all")


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[tuple[Any, list[Row]]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.items())


def _summarise(scope: str, name: str, group: str, rows: list[Row], subject: str) -> dict[str, Any]:
    rows = list({row["op"] + row["problem"]: row for row in rows}.values())  # what suites share counts once
    subjects = [row["results"].get(subject, {}) for row in rows]
    fractions = [found["fraction"] for found in subjects if found.get("fraction")]
    peers = dict.fromkeys(peer for row in rows for peer in row["ratios"])
    spread = {peer: [row["ratios"][peer] for row in rows if peer in row["ratios"]] for peer in peers}
    return {
        "scope": scope, "name": name, "group": group, "rows": len(rows),
        "timed": sum("seconds" in found for found in subjects), "fraction": geomean(fractions) if fractions else None,
        "ratios": {
            peer: {"geomean": geomean(values), "low": min(values), "high": max(values), "rows": len(values)}
            for peer, values in spread.items()
        },
    }  # fmt: skip


def versions(rows: Sequence[Row], subject: str) -> list[dict[str, Any]]:
    """Backend against backend, kernel by kernel: the geomean per other backend, pass and pair of algorithms."""

    def key(row: Row) -> tuple[str, str, str]:
        return row["group"], row["results"][subject]["note"], row["results"][other]["note"]

    found = []
    for other in dict.fromkeys(name for row in rows for name in row["ratios"] if name.startswith("fastconv.")):
        for (group, mine, theirs), same in _grouped((row for row in rows if other in row["ratios"]), key):
            values = [row["ratios"][other] for row in same]
            found.append({
                "other": other, "group": group, "mine": mine, "theirs": theirs, "rows": len(values),
                "geomean": geomean(values), "low": min(values), "high": max(values),
            })  # fmt: skip
    return found


# ---------------------------------------------------------------- whole networks


def totals(rows: Sequence[Row], contestants: Sequence[str]) -> list[dict[str, Any]]:
    """Seconds of each pass over each whole network, layers counted as often as they occur.

    A contestant that timed less than half of what the first one did is left out; of the others only layers that
    all of them timed count, so that sums are of the same things.
    """
    entries = []
    for (suite, network, name), group in _grouped(rows, lambda row: (row["suite"], row["network"], row["pass"])):
        counts = {who: sum(_timed(row, who) for row in group) for who in contestants}
        present = [who for who in contestants if counts[who] and 2 * counts[who] >= counts[contestants[0]]]
        common = [row for row in group if all(_timed(row, who) for who in present)]
        entries.append({
            "suite": suite, "network": network, "pass": name, "layers": len(common), "of": len(group),
            "seconds": {who: _sum(common, who) for who in present},
        })  # fmt: skip
    return entries


def networks(rows: Sequence[Row], contestants: Sequence[str], subject: str) -> list[dict[str, Any]]:
    """Per network the forward pass and a step of training, against each of the other contestants.

    Forward sums fprop; training sums fprop, dgrad and wgrad of all layers but the gradient to the network's own
    input, which training does not need. Each comparison is over the layers that both timed, and says how many.
    """
    whole = [row for row in rows if row["whole"]]
    entries = []
    for (suite, network), group in _grouped(whole, lambda row: (row["suite"], row["network"])):
        passes = {row["pass"] for row in group}
        forward = [row for row in group if row["pass"] == "fprop"]
        step = [row for row in group if not (row["first"] and row["pass"] == "dgrad")]
        kinds = {"forward": forward} | ({"training": step} if passes == {"fprop", "dgrad", "wgrad"} else {})
        for kind, layers in kinds.items():
            if layers:
                entries.append(_network(suite, network, kind, layers, contestants, subject))
    return entries


def _network(
    suite: str, network: str, kind: str, rows: Sequence[Row], contestants: Sequence[str], subject: str
) -> dict[str, Any]:
    against, passes = {}, {row["pass"] for row in rows}
    for who in contestants:
        common = [row for row in rows if _timed(row, who) and _timed(row, subject)]
        if who != subject and {row["pass"] for row in common} == passes:  # a library without gradients does not train
            mine, theirs = _sum(common, subject), _sum(common, who)
            against[who] = {"seconds": theirs, "subject": mine, "ratio": theirs / mine, "layers": len(common)}
    timed = [row for row in rows if _timed(row, subject)]
    return {
        "suite": suite, "network": network, "kind": kind, "layers": len(timed), "of": len(rows),
        "seconds": _sum(timed, subject), "against": against,
    }  # fmt: skip


def _timed(row: Row, who: str) -> bool:
    return "seconds" in row["results"].get(who, {})


def _sum(rows: Sequence[Row], who: str) -> float:
    return float(sum(row["count"] * row["results"][who]["seconds"] for row in rows))

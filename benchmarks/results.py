"""A run as one document that JSON can hold; tables and reports are made from the document alone."""

from __future__ import annotations

import datetime
import os
import statistics
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fastconv
from fastconv import config
from fastconv.benchmarks.limits import Limits
from fastconv.benchmarks.runner import Outcome, Row, Run
from fastconv.testing.timing import geomean

Document = dict[str, Any]
FORMAT = 1
#: The order in which passes are shown.
GROUPS = ("fprop", "dgrad", "wgrad", "pool fprop", "pool dgrad")


def document(run: Run) -> Document:
    """Everything about a run: environment, settings, limits, rows and their summary."""
    contestants = run.settings.contestants()
    backends = [name for name in contestants if name.startswith("fastconv.")]
    rows = [row_entry(row, run.limits, backends[0]) for row in run.rows]
    return {
        "format": FORMAT,
        "environment": environment(),
        "settings": asdict(run.settings),
        "limits": None if run.limits is None else asdict(run.limits),
        "contestants": run.contestants,
        "absent": run.absent,
        "subject": backends[0],
        "peers": [name for name in contestants if name != backends[0]],
        "seconds": run.seconds,
        "interrupted": run.interrupted,
        "rows": rows,
        "summary": summary(rows, backends[0]),
        "totals": totals(rows, contestants),
    }


def environment() -> dict[str, Any]:
    found = config.environment()
    found.pop("cache")  # a folder of this user's, and no part of what was measured
    machine = found["machine"] | {
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**found, "machine": machine, "date": now, "commit": commit()}


def commit() -> str | None:
    """The commit of the checkout that fastconv runs from, "+" where it has changes; None outside of one."""
    folder = Path(fastconv.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may lie inside another repository
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def row_entry(row: Row, limits: Limits | None, subject: str) -> dict[str, Any]:
    """One row: the case, what each contestant did, and the subject's lead over each of the others."""
    case = row.case
    bound, binds = limits.bound(case) if limits else (None, None)
    entry: dict[str, Any] = {
        "suite": case.layer.suite, "network": case.layer.network, "layer": case.layer.name, "count": case.layer.count,
        "pass": case.pass_, "group": case.group, "regime": case.regime, "op": case.op, "problem": str(case.problem),
        "flops": case.flops, "bytes": case.nbytes, "bound": bound, "binds": binds,
        "results": {name: _result(outcome, case.flops, case.nbytes, bound) for name, outcome in row.outcomes.items()},
    }  # fmt: skip
    entry["ratios"] = ratios(row, subject)
    return entry


def _result(outcome: Outcome, flops: int, nbytes: int, bound: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"status": outcome.status}
    found |= {
        name: value for name in ("reason", "note", "error") if (value := getattr(outcome, name)) not in ("", None)
    }
    if (timing := outcome.timing) is not None:
        found |= {
            "seconds": timing.median, "p20": timing.p20, "p80": timing.p80, "calls": timing.calls,
            "blocks": timing.blocks, "first": outcome.first, "gflops": flops / timing.median / 1e9,
            "gbps": nbytes / timing.median / 1e9, "fraction": bound / timing.median if bound else None,
        }  # fmt: skip
    return found


def ratios(row: Row, subject: str) -> dict[str, float]:
    """How many times faster the subject is: the median over the blocks that ran in the same round.

    "best" is against whichever of the others was fastest.
    """
    mine = row.outcomes[subject].timing if subject in row.outcomes else None
    if mine is None:
        return {}
    others = {
        name: outcome.timing
        for name, outcome in row.outcomes.items()
        if not name.startswith("fastconv.") and outcome.timing is not None
    }
    found = {
        name: statistics.median(b / a for a, b in zip(mine.blocks, theirs.blocks, strict=False))
        for name, theirs in others.items()
    }
    if found:
        found["best"] = min(found.values())
    return found


# ---------------------------------------------------------------- summaries


def summary(rows: list[dict[str, Any]], subject: str) -> list[dict[str, Any]]:
    """Geomeans per suite and pass, per suite, per regime and pass, and over everything."""
    entries = []
    for scope, key in (
        ("pass", lambda row: (row["suite"], row["group"])),
        ("suite", lambda row: (row["suite"], "all")),
        ("regime", lambda row: (row["regime"], row["pass"])),
        ("all", lambda row: ("all", "all")),
    ):
        entries += [_summarise(scope, *name, group, subject) for name, group in _grouped(rows, key)]
    return entries


def _grouped(rows: Iterable[dict[str, Any]], key: Callable[[Any], Any]) -> list[tuple[Any, list[dict[str, Any]]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.items())


def _summarise(scope: str, name: str, group: str, rows: list[dict[str, Any]], subject: str) -> dict[str, Any]:
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


def totals(rows: list[dict[str, Any]], contestants: list[str]) -> list[dict[str, Any]]:
    """Seconds of each pass over each whole network, layers counted as often as they occur.

    Only layers that every contestant timed count where contestants are compared, so that sums are of the same things.
    """
    entries = []
    present = [name for name in contestants if any("seconds" in row["results"].get(name, {}) for row in rows)]
    for (suite, name), group in _grouped(rows, lambda row: (row["suite"], row["pass"])):
        common = [row for row in group if all("seconds" in row["results"].get(who, {}) for who in present)]
        entries.append({
            "suite": suite, "pass": name, "layers": len(common), "of": len(group),
            "seconds": {who: sum(row["count"] * row["results"][who]["seconds"] for row in common) for who in present},
        })  # fmt: skip
    return entries


def problems(doc: Document) -> list[dict[str, str]]:
    """Every result without a time, with its reason, alike ones together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, reason in doc["absent"].items():
        found[name, "absent", reason] = ["every case"]
    for row in doc["rows"]:
        for name, result in row["results"].items():
            if result["status"] not in ("ok", "absent"):
                where = f"{row['suite']}/{row['layer']}/{row['pass']}"
                found.setdefault((name, result["status"], result.get("reason", "")), []).append(where)
    return [
        {"contestant": name, "status": status, "reason": reason, "cases": ", ".join(where)}
        for (name, status, reason), where in found.items()
    ]


def failed(doc: Document) -> bool:
    """Whether the subject was wrong, failed or was not there at all."""
    subject = doc["subject"]
    states = {row["results"].get(subject, {}).get("status") for row in doc["rows"]}
    return subject in doc["absent"] or bool(states & {"wrong", "failed"})

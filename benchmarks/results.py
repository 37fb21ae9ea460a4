"""A run as one document that JSON can hold; tables and reports are made from the document alone."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fastconv
from fastconv import config
from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.limits import Limits
from fastconv.benchmarks.runner import Outcome, Row, Run, Settings, is_measured
from fastconv.benchmarks.summaries import networks, ratios, summary, totals
from fastconv.testing.timing import Timing

Document = dict[str, Any]
FORMAT = 2
MEASURED = (":/", ":!/README.md", ":!/benchmarks/results")  # as git's paths
#: The order in which passes are shown.
GROUPS = ("fprop", "dgrad", "wgrad", "pool fprop", "pool dgrad", "signal")


def document(run: Run) -> Document:
    """Everything about a run: environment, settings, limits, rows and their summary."""
    contestants = run.settings.contestants()
    backends = [name for name in contestants if name.startswith("fastconv.")]
    device = run.settings.device
    rows = [row_entry(row, run.limits, backends[0], device) for row in run.rows]
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
        "summary": summary(rows, backends[0], device),
        "totals": totals(rows, contestants),
        "networks": networks(rows, contestants, backends[0]),
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
    """The commit of the checkout that fastconv runs from, "+" where it has changes; None outside of one.

    The pages that are made of results are no part of what is measured.
    """
    folder = Path(fastconv.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may lie inside another repository
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno", "--", *MEASURED) else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def row_entry(row: Row, limits: Limits | None, subject: str, device: str) -> dict[str, Any]:
    """One row: the case, what each contestant did, and the subject's lead over each of the others."""
    case, layer = row.case, row.case.layer
    bound, binds = limits.bound(case) if limits else (None, None)
    results = {name: _result(outcome, case, bound) for name, outcome in row.outcomes.items()}
    return {
        "suite": layer.suite, "network": layer.network, "layer": layer.name, "count": layer.count,
        "whole": layer.whole, "first": layer.first, "pass": case.pass_, "group": case.group,
        "regime": case.regime(device), "op": case.op, "problem": str(case.problem), "flops": case.flops,
        "bytes": case.nbytes, "bound": bound, "binds": binds, "results": results, "ratios": ratios(results, subject),
    }  # fmt: skip


#: What a result has of an outcome, where it has it.
KEPT = ("reason", "note", "error", "tolerance", "first", "host", "warm", "cold", "memory")


def _result(outcome: Outcome, case: Case, bound: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"status": outcome.status}
    found |= {name: value for name in KEPT if (value := getattr(outcome, name)) not in ("", None)}
    if outcome.checked != "all":
        found["checked"] = outcome.checked
    if (timing := outcome.timing) is not None:
        found |= {
            "seconds": timing.median, "p20": timing.p20, "p80": timing.p80, "calls": timing.calls,
            "blocks": timing.blocks, "gflops": case.flops / timing.median / 1e9,
            "gbps": case.nbytes / timing.median / 1e9, "fraction": bound / timing.median if bound else None,
        }  # fmt: skip
    return found


def _outcome(result: dict[str, Any]) -> Outcome:
    """The outcome that a result was made of."""
    outcome = Outcome(result["status"], checked=result.get("checked", "all"))
    outcome = replace(outcome, **{name: result[name] for name in KEPT if name in result})
    if "seconds" in result:
        outcome.timing = Timing(
            result["seconds"], result["p20"], result["p80"], result["calls"], tuple(result["blocks"])
        )
    return outcome


# ---------------------------------------------------------------- going on with a run


def continued(doc: Document, settings: Settings) -> list[Row]:
    """The rows that a document has of a run with these settings, to go on from.

    Raises
    ------
    ValueError
        Where it is of another format, of other settings, or of another machine, commit or version.
    """
    if doc.get("format") != FORMAT:
        raise ValueError(f"its format is {doc.get('format')}, this is {FORMAT}")
    then, now = doc["settings"], json.loads(json.dumps(asdict(settings)))
    free = ("budget", "rounds", "block", "warm", "rewarm", "patience")
    differ = [f"{name} {then.get(name)} and now {now[name]}" for name in now if then.get(name) != now[name]
              and name not in free]  # fmt: skip
    here = environment()
    for name, old, new in (
        ("commit", doc["environment"]["commit"], here["commit"]),
        ("machine", doc["environment"]["machine"]["cpu"], here["machine"]["cpu"]),
        *((f"version of {name}", doc["environment"]["versions"].get(name), version)
          for name, version in here["versions"].items()),
    ):  # fmt: skip
        if old != new:
            differ.append(f"{name} {old} and now {new}")
    if differ:
        raise ValueError(f"it was made with {'; '.join(differ)}")
    cases = {(case.layer.suite, case.layer.name, case.pass_): case for case in settings.cases()}
    rows = []
    for entry in doc["rows"]:
        case = cases.get((entry["suite"], entry["layer"], entry["pass"]))
        if case is not None and str(case.problem) == entry["problem"]:
            rows.append(Row(case, {name: _outcome(result) for name, result in entry["results"].items()}))
    return [row for row in rows if is_measured(row)]


def save(doc: Document, path: Path) -> None:
    """Write a document, a row per line, in one go: an interrupted write leaves the old file."""
    lists = {name: doc[name] for name in ("rows", "summary", "totals", "networks")}
    text = json.dumps({name: value for name, value in doc.items() if name not in lists}, indent=1)
    parts = [f' "{name}": [\n{_lines(entries)}\n ]' for name, entries in lists.items()]
    beside = path.with_suffix(".part")
    beside.write_text(text.removesuffix("\n}") + ",\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    beside.replace(path)


def _lines(entries: Sequence[Any]) -> str:
    return ",\n".join("  " + json.dumps(_short(entry), separators=(", ", ":")) for entry in entries)


def _short(value: Any) -> Any:
    """Numbers to six digits: more than any measurement has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def load(path: Path) -> Document:
    """A document that was saved.

    Raises
    ------
    ValueError
        Where the file holds none.
    """
    try:
        doc: Document = json.loads(path.read_text("utf-8"))
        if doc["format"] not in (1, FORMAT):
            raise ValueError(f"its format is {doc['format']}, this program reads 1 and {FORMAT}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of fastconv bench: {error}") from error
    return doc


# ---------------------------------------------------------------- what went wrong


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

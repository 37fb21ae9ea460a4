"""Results that are kept: one JSON file per run in `results/`, and the pages made of them.

``python -m fastconv.benchmarks.kept`` writes `results/README.md` from all of them, and the figures in the
project's README, between their two marks, from the newest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fastconv.benchmarks
from fastconv.benchmarks.results import FORMAT, Document, load, save
from fastconv.benchmarks.table import percent, ratio, seconds

HERE = Path(fastconv.benchmarks.__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
NONE = "No run of this version has been kept yet. `fastconv bench --keep` makes one."


def name_of(doc: Document) -> str:
    """Date and time, machine, settings and commit."""
    environment, settings = doc["environment"], doc["settings"]
    machine = device_of(doc) if settings["device"] == "gpu" else environment["machine"]["cpu"]
    words = [environment["date"][:16].replace("T", " "), machine]
    words += [f"{environment['machine']['usable_cores']} cores"] if settings["device"] == "cpu" else []
    words += [settings["dtype"], settings["layout"], f"n{settings['batch'] or 'listed'}"]
    words += [(environment["commit"] or "no commit").removesuffix("+")]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-") + ".json"


def device_of(doc: Document) -> str:
    """What computed: the processor, or the GPU that the subject named."""
    if doc["settings"].get("device") != "gpu":
        return str(doc["environment"]["machine"]["cpu"])
    return str(doc["contestants"].get(doc["subject"], "gpu")).rpartition(", ")[2]


def keep(doc: Document) -> Path:
    """Write a run into `results/` and make the pages anew."""
    path = RESULTS / name_of(doc)
    save(doc, path)
    write()
    return path


def runs(folder: Path) -> dict[str, Document]:
    """Every kept run by its file's name, the newest first."""
    found = {path.name: load(path) for path in folder.glob("*.json")}
    return dict(sorted(found.items(), key=lambda pair: (pair[1]["environment"]["date"], pair[0]), reverse=True))


# ---------------------------------------------------------------- the pages


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table, whose columns from `words` on are numbers."""
    marks = ["---" if place < words else "--:" for place in range(len(headings))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, marks, *rows))


def peers_of(doc: Document) -> list[str]:
    return [name for name in doc["peers"] if name in doc["contestants"]]


def batch_of(doc: Document) -> str:
    return f"batch {doc['settings']['batch']}" if doc["settings"]["batch"] else "batch as listed, 1 for networks"


def regimes(doc: Document) -> str:
    """Per regime the geometric mean against the best peer, its spread, and the goal."""
    rows = []
    for entry in (entry for entry in doc["summary"] if entry["scope"] == "regime"):
        best = entry["ratios"].get("best")
        goal = f"{entry['goal']:g}x" + (f", {percent(entry['goal_fraction'])}" if entry["goal_fraction"] else "")
        spread = [ratio(best["geomean"]), f"{ratio(best['low'])} to {ratio(best['high'])}"] if best else ["-", "-"]
        rows.append([entry["name"], f"{entry['timed']}/{entry['rows']}", percent(entry["fraction"]), *spread, goal])
    return table(["regime", "timed", "of limit", "vs best peer", "slowest to fastest", "goal"], rows)


def networks(doc: Document) -> str:
    """Whole networks: seconds of the forward pass and of a training step, and how many times as fast as each peer."""
    peers = [name for name in peers_of(doc) if any(name in entry["against"] for entry in doc["networks"])]

    def cell(entry: dict[str, Any], peer: str) -> str:
        against = entry["against"].get(peer)
        if against is None:
            return "-"
        part = f" ({against['layers']} of {entry['of']})" if against["layers"] < entry["of"] else ""
        return ratio(against["ratio"]) + part

    rows = [
        [entry["network"], entry["kind"], seconds(entry["seconds"]), *(cell(entry, peer) for peer in peers)]
        for entry in doc["networks"]
        if entry["layers"]
    ]
    return table(["network", "", doc["subject"], *(f"vs {peer}" for peer in peers)], rows, 2)


def where(doc: Document) -> str:
    """The conditions of a run in a line."""
    environment, settings = doc["environment"], doc["settings"]
    cores = f", {environment['machine']['usable_cores']} cores" if settings["device"] == "cpu" else ""
    return (
        f"{device_of(doc)}{cores}, {environment['date'][:10]}, commit {environment['commit'] or '-'}, "
        f"{settings['dtype']}, {settings['layout']}, {batch_of(doc)}"
    )


def page(found: dict[str, Document]) -> str:
    """`results/README.md`."""
    parts = [
        "# Results that were kept",
        "Made from the JSON files in this folder by `python -m fastconv.benchmarks.kept`; `fastconv bench --keep` adds "
        "one. Each file has every figure with its spread, error and bound, and the environment it was measured in; a "
        'commit with a "+" had changes that were not committed. A ratio is how many times as fast fastconv was; a '
        "regime is the kind of work, its goal is a geometric mean against the best peer.",
        _index(found),
    ]
    for name, doc in found.items():
        if doc["format"] == FORMAT:
            parts += [f"## {where(doc)}", f"`{name}`", "Whole networks, all their convolutions and poolings:"]
            parts += [networks(doc), "By regime:", regimes(doc)]
    return "\n\n".join(parts) + "\n"


def _index(found: dict[str, Document]) -> str:
    rows = []
    for name, doc in found.items():
        overall = next(entry for entry in doc["summary"] if entry["scope"] == "all")
        versions = "; ".join(text for who, text in doc["contestants"].items() if who != doc["subject"])
        best = overall["ratios"].get("best")
        note = doc.get("note", "")
        rows.append([
            f"`{name}`", versions, note, f"{overall['timed']}/{overall['rows']}",
            ratio(best["geomean"] if best else None), str(doc["environment"]["machine"]["load"]),
        ])  # fmt: skip
    return table(["file", "peers", "note", "timed", "vs best peer", "load"], rows, 3) if rows else NONE


def figures(found: dict[str, Document]) -> str:
    """The project's figures: whole networks on each device, of the newest run with the default settings if there is."""
    newest: dict[str, Document] = {}
    usable = [doc for doc in found.values() if doc["format"] == FORMAT and doc["networks"]]
    for doc in sorted(usable, key=lambda doc: not _by_default(doc)):
        newest.setdefault(device_of(doc), doc)
    parts = [f"{where(doc)}:\n\n{networks(doc)}" for doc in newest.values()]
    return "\n\n".join(parts) if parts else NONE


def _by_default(doc: Document) -> bool:
    settings = doc["settings"]
    return (settings["dtype"], settings["layout"]) == ("float32", "NCHW") and settings["batch"] in (None, 1)


def with_figures(text: str, shown: str) -> str:
    """A page with what stands between its two marks set anew."""
    head, _, rest = text.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{shown}\n{END}{tail}"


def write() -> None:
    """Both pages."""
    found = runs(RESULTS)
    (RESULTS / "README.md").write_text(page(found), encoding="utf-8")
    README.write_text(with_figures(README.read_text("utf-8"), figures(found)), encoding="utf-8")


if __name__ == "__main__":
    write()
    print(f"written: {RESULTS / 'README.md'}, {README}")

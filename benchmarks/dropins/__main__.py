"""The tables of all drop-ins, a process for each library; run it on an idle machine.

``--keep`` writes those measured to benchmarks/results/dropins.md, and the ratios into the project's table of libraries.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from fastconv.benchmarks import kept
from fastconv.benchmarks.dropins.measure import Figure, measure
from fastconv.benchmarks.results import environment
from fastconv.testing.timing import geomean

#: Per name: the file of the programs, what they need in the environment, and how the project's row begins.
LIBRARIES: dict[str, tuple[str, dict[str, str], str]] = {
    "torch": ("torch", {}, "PyTorch"),
    "keras-torch": ("keras", {"KERAS_BACKEND": "torch"}, "Keras"),
    "keras-numpy": ("keras", {"KERAS_BACKEND": "numpy"}, "Keras"),
    "jax": ("jax", {}, "JAX"),
    "autograd": ("autograd", {}, "autograd"),
    "dask": ("dask", {}, "Dask"),
    "scipy": ("scipy", {}, "SciPy"),
}
PAGE = kept.RESULTS / "dropins.md"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fastconv.benchmarks.dropins", description=__doc__)
    parser.add_argument("library", nargs="*", choices=[*LIBRARIES, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="per program (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="write the tables and the ratios into the project's pages")
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)  # the process of one library
    options = parser.parse_args(arguments)
    if options.lines:
        return in_this_process(options.library[0], options.seconds)
    figures = {name: in_a_process(name, options.seconds) for name in options.library or LIBRARIES}
    if options.keep:
        keep(figures)


def in_this_process(name: str, seconds: float) -> None:
    for program in importlib.import_module(f"fastconv.benchmarks.dropins.{LIBRARIES[name][0]}").programs():
        print(json.dumps(asdict(measure(program, seconds))), flush=True)


def in_a_process(name: str, seconds: float) -> list[Figure]:
    command = [sys.executable, "-m", "fastconv.benchmarks.dropins", name, "--lines", "--seconds", str(seconds)]
    print(f"\n{table(name, [])}", flush=True)
    figures = []
    with subprocess.Popen(command, env=os.environ | LIBRARIES[name][1], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):  # some libraries print
                figures.append(Figure(**json.loads(line)))
                print(row(figures[-1]), flush=True)
    if process.returncode:
        raise SystemExit(f"{name}: the process ended with {process.returncode}")
    return figures


def row(figure: Figure) -> str:
    if figure.wrong:
        return f"| {figure.name} | - | - | - | {figure.wrong} |"
    return (
        f"| {figure.name} | {figure.own * 1e3:.2f} | {figure.ours * 1e3:.2f} | {figure.ratio:.2f}x | {figure.passed} |"
    )


def table(name: str, figures: Sequence[Figure]) -> str:
    head = [f"| {name} | own, ms | fastconv, ms | ratio | passed on |", "| --- | --: | --: | --: | --- |"]
    return "\n".join([*head, *map(row, figures)])


# ---------------------------------------------------------------- what is kept


def keep(figures: dict[str, list[Figure]]) -> None:
    before = PAGE.read_text("utf-8") if PAGE.exists() else ""
    PAGE.write_text(page(figures, before), encoding="utf-8")
    ratios: dict[str, list[float]] = {}
    for name, found in figures.items():
        ratios.setdefault(LIBRARIES[name][2], []).extend(figure.ratio for figure in found if not figure.wrong)
    text = kept.README.read_text("utf-8")
    kept.README.write_text(with_ratios(text, {library: found for library, found in ratios.items() if found}), "utf-8")


def page(figures: dict[str, list[Figure]], before: str = "") -> str:
    """The page with these tables, and those of the other libraries as they were."""
    where = environment()
    machine, commit = where["machine"], where["commit"] or "-"
    line = f"{machine['cpu']}, {machine['usable_cores']} cores, {where['date'][:10]}, commit {commit}"
    sections = dict(part.partition("\n\n")[::2] for part in before.split("\n\n## ")[1:])
    sections |= {name: f"{line}\n\n{table(name, found)}" for name, found in figures.items()}
    parts = [
        "# Other libraries' programs on fastconv",
        "Made by `python -m fastconv.benchmarks.dropins --keep`. Each row is a program in one process, in turns on the "
        "library's own kernels and on fastconv's, verified before and after; medians in ms, and how many times as fast "
        "fastconv was.",
        *(f"## {name}\n\n{sections[name].strip()}" for name in LIBRARIES if name in sections),
    ]
    return "\n\n".join(parts) + "\n"


def with_ratios(text: str, ratios: dict[str, list[float]]) -> str:
    """The project's page with the last cell of these libraries' rows set: the geometric mean, lowest and highest."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        for library, found in ratios.items():
            if line.startswith(f"| {library}") and line.count("|") == 5:
                cell = f"{geomean(found):.1f}x ({min(found):.1f} to {max(found):.1f})"
                lines[at] = " | ".join([*line.split(" | ")[:-1], cell]) + " |"
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

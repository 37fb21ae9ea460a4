"""Writes the suites of whole networks: ``python -m fastconv.benchmarks.architectures``."""

from importlib.resources import files
from pathlib import Path

from fastconv.benchmarks.architectures import SUITES

folder = Path(str(files("fastconv.benchmarks") / "suites"))
for suite in SUITES.values():
    (folder / f"{suite.name}.txt").write_text(suite.text(), encoding="utf-8")
print(f"{len(SUITES)} suites written to {folder}")

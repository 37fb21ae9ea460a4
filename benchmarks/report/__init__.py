"""The HTML reports of a benchmark run and of a comparison: pages that need nothing else."""

from fastconv.benchmarks.report.diff import render_comparison
from fastconv.benchmarks.report.page import render

__all__ = ["render", "render_comparison"]

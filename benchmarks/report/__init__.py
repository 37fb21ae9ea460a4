"""The HTML report of a benchmark run: one page that needs nothing else."""

from fastconv.benchmarks.report.page import render

__all__ = ["render"]

"""Options of ``pytest benchmarks/``: the same words as ``fastconv bench`` takes."""

import pytest

from fastconv.benchmarks.cases import PASSES


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastconv benchmarks")
    group.addoption("--suite", default="alexnet,vgg19,resnet152", help="suites, comma-separated")
    group.addoption("--op", default=",".join(PASSES), help="passes, comma-separated")
    group.addoption("--dtype", default="float32")
    group.addoption("--layout", default="NCHW")
    group.addoption("--batch", type=int, help="default: as the suite says")
    group.addoption("--backend", default="cpu", help="backends, comma-separated")
    group.addoption("--peers", default="", help="libraries, comma-separated, or all")

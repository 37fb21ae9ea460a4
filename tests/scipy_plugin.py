"""A pytest plugin that puts fastconv's functions in SciPy's place in SciPy's own tests.

The tests that call one of the four functions are kept, and their outcomes written to ``$OUTCOMES``.
"""

from __future__ import annotations

import json
import os
import types

import pytest

import fastconv

NAMES = ("correlate", "convolve", "correlate2d", "convolve2d")
calls = dict.fromkeys(NAMES, 0)
outcomes: dict[str, tuple[str, str]] = {}


def counted(name: str):
    function = getattr(fastconv, name)

    def call(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)

    return call


def names_in(code: types.CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    import scipy.signal

    ours = {getattr(scipy.signal, name): counted(name) for name in NAMES}
    for item in items:
        parameters = getattr(item, "callspec", None)
        for key, value in parameters.params.items() if parameters else ():
            if isinstance(value, types.FunctionType) and value in ours:
                parameters.params[key] = ours[value]
    for place in {item.module for item in items} | {scipy.signal}:
        for theirs, function in ours.items():
            if getattr(place, theirs.__name__, None) is theirs:
                setattr(place, theirs.__name__, function)
    items[:] = [item for item in items if names_in(item.function.__code__) & set(NAMES)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.partition("::")[2].replace("numpy-", "").replace("[numpy]", "")
    if report.when == "call" or report.outcome != "passed":
        outcomes[name] = (report.outcome, str(report.longrepr or ""))


def pytest_sessionfinish() -> None:
    with open(os.environ["OUTCOMES"], "w") as file:
        json.dump({"outcomes": outcomes, "calls": calls}, file)

"""The suites under pytest-benchmark: ``pytest benchmarks/ --suite alexnet --benchmark-json now.json``.

Cases, data, adapters and checks are those of ``fastconv bench``; a group is one pass of one layer. All
contestants share this process here, so use ``fastconv bench`` to compare libraries, and this to compare
commits (``--benchmark-compare``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers import Absent, Refused
from fastconv.benchmarks.runner import Settings
from fastconv.benchmarks.seat import Seat
from fastconv.benchmarks.verify import AFTER, BEFORE, Expectation


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption

    def split(name: str) -> tuple[str, ...]:
        return tuple(filter(None, option(name).split(",")))

    settings = Settings(
        suites=split("--suite"), passes=split("--op"), dtype=option("--dtype"), layout=option("--layout"),
        batch=option("--batch"), backends=split("--backend"), peers=split("--peers"),
    )  # fmt: skip
    metafunc.parametrize("case", settings.cases(), ids=lambda case: case.name)
    metafunc.parametrize("contestant", settings.contestants())


@lru_cache(maxsize=1)
def expectation(case: Case) -> Expectation:
    """Of the case at hand, for all its contestants."""
    return Expectation(case)


@lru_cache
def seat(contestant: str) -> Seat:
    try:
        found = Seat(contestant)
        found.version()
        return found
    except Absent as reason:
        pytest.skip(str(reason))


def check(case: Case, contestant: str, data: int, result: Any) -> None:
    found = expectation(case).check(data, result, own=contestant.startswith("fastconv."))
    assert found.ok, f"{case.name}: {found.reason}"


def test_layer(case: Case, contestant: str, benchmark: Any) -> None:
    benchmark.group = case.name
    player = seat(contestant)
    try:
        benchmark.extra_info["algorithm"] = player.prepare(case)
    except Refused as reason:
        pytest.skip(str(reason))
    benchmark.extra_info["problem"] = str(case.problem)
    benchmark.extra_info["first_call"], first = player.first()
    check(case, contestant, BEFORE, first)
    player.result = benchmark(player.job.run)
    check(case, contestant, BEFORE, player.timed_result())
    check(case, contestant, AFTER, player.other_data())

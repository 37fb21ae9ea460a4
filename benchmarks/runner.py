"""The run: every case on every contestant, verified, timed in turns, and verified again.

No time is reported for a wrong answer. Per case, in this order:

1. the reference is computed, once (`verify.Expectation`);
2. each contestant computes the case for the first time (timed apart, with its compilation), and its
   result is checked; one that is wrong, fails or refuses is out, with the reason;
3. each that is left warms up until its times are stable;
4. in rounds, with the order rotating, each runs a block of calls while the others are stopped; then one call
   whose memory is watched, and some with the caches in the other state, cold or warm;
5. what the last timed call returned is checked, then the result for other values in the same memory:
   a kernel that skips work or answers from a cache is out here, and its times are dropped.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastconv.benchmarks.cases import PASSES, Case, build_cases
from fastconv.benchmarks.limits import Limits
from fastconv.benchmarks.peers import Absent, Refused, peer_names
from fastconv.benchmarks.process import Died, ProcessSeat
from fastconv.benchmarks.seat import TOO_LARGE
from fastconv.benchmarks.verify import AFTER, BEFORE, Expectation
from fastconv.testing.timing import Timing, block_calls

Progress = Callable[[int, int, str], None]  # done, total, what comes next
Block = tuple[list[float], list[float]]  # seconds of each call, and of the host until it returned
SAVE_EVERY = 20.0  # seconds


@dataclass(frozen=True)
class Settings:
    """What to run, and how long. `batch` None is the batch of each line."""

    suites: tuple[str, ...] = ("alexnet", "vgg19", "resnet152")
    passes: tuple[str, ...] = PASSES
    dtype: str = "float32"
    layout: str = "NCHW"
    batch: int | None = None
    device: str = "cpu"  # or "gpu"
    backends: tuple[str, ...] = ("cpu",)
    peers: tuple[str, ...] = ()
    threads: int | None = None
    budget: float = 210.0  # seconds; what does not fit is skipped and said so
    rounds: int = 5
    block: float = 0.02  # seconds of a block
    warm: float = 0.2  # seconds of warming up at most
    rewarm: float = 0.003  # seconds of uncounted calls before each block
    patience: float = 90.0  # seconds that one answer may take

    def cases(self) -> list[Case]:
        return build_cases(self.suites, self.passes, self.dtype, self.layout, self.batch)

    def contestants(self) -> list[str]:
        return [f"fastconv.{name}" for name in self.backends] + peer_names(list(self.peers), self.device)

    @property
    def cold(self) -> bool:
        """Whether the times that count are with cold caches: on a GPU, whose L2 would flatter repeated calls."""
        return self.device == "gpu"


@dataclass
class Outcome:
    """How one contestant did on one case: a time if it was right, or else why there is none."""

    status: str = "ok"  # ok, wrong, failed, refused, absent or skipped
    reason: str = ""
    note: str = ""  # its algorithm
    first: float | None = None  # seconds of the first call
    error: float | None = None  # the largest error as a share of what is allowed
    tolerance: float | None = None  # what is allowed where the error is largest
    checked: str = "all"  # or the part that was
    timing: Timing | None = None
    host: float | None = None  # seconds until a call returns, where it computes elsewhere
    warm: float | None = None  # seconds of a call with warm caches, and with cold ones: one of them is the timing's
    cold: float | None = None
    memory: int | None = None  # bytes at the peak of a call, beyond its operands


@dataclass
class Row:
    """A case and the outcome of every contestant."""

    case: Case
    outcomes: dict[str, Outcome]


@dataclass
class Run:
    """Everything that a report shows."""

    settings: Settings
    rows: list[Row]
    limits: Limits | None
    contestants: dict[str, str]  # name -> version and threads
    absent: dict[str, str]  # name -> why it did not take part
    seconds: float
    interrupted: bool = False

    def missing(self) -> dict[str, Outcome]:
        """The outcome, on any case, of those who are not here."""
        return {name: Outcome("absent", reason) for name, reason in self.absent.items()}


class Out(Exception):
    """A contestant leaves a case, with its status and the reason."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class Table:
    """The seats around one table, and what each may take."""

    seats: dict[str, Any]
    settings: Settings = field(default_factory=Settings)

    def measure(self, case: Case) -> dict[str, Outcome]:
        """All five steps of one case."""
        if case.huge and self.settings.device == "cpu":
            return self._nobody("refused", TOO_LARGE)
        try:
            expectation = Expectation(case)
        except MemoryError:
            return self._nobody("failed", "the reference does not fit into memory")
        outcomes = {name: Outcome() for name in self.seats}
        estimates: dict[str, float] = {}
        for name, seat in self.seats.items():
            with _Leaving(outcomes[name], seat):
                estimates[name] = self._enter(seat, case, expectation, outcomes[name])
        blocks = self._rounds(outcomes, estimates)
        for name, seat in self.seats.items():
            if outcomes[name].status == "ok":
                with _Leaving(outcomes[name], seat):
                    self._aside(seat, estimates[name], outcomes[name])
                    self._leave(seat, expectation, outcomes[name])
                    self._sum_up(blocks[name], outcomes[name])
        return outcomes

    def _nobody(self, status: str, reason: str) -> dict[str, Outcome]:
        return {name: Outcome(status, reason) for name in self.seats}

    def _enter(self, seat: Any, case: Case, expectation: Expectation, outcome: Outcome) -> float:
        """Steps 2 and 3: the first call, checked, and the warm-up. Returns the seconds of a call."""
        patience = self.settings.patience
        outcome.note = seat.ask("prepare", case, timeout=patience)
        first, result = seat.ask("first", timeout=patience)
        _check(outcome, expectation, BEFORE, result, seat.name)
        outcome.first = first
        estimate: float = seat.ask("warm", self.settings.warm, timeout=patience)
        return estimate

    def _rounds(self, outcomes: dict[str, Outcome], estimates: dict[str, float]) -> dict[str, list[Block]]:
        """Step 4. The order rotates, so that nobody always runs after the same other one."""
        names = [name for name in self.seats if outcomes[name].status == "ok"]
        blocks: dict[str, list[Block]] = {name: [] for name in names}
        slow = max((estimates[name] for name in names), default=0.0) > 10 * self.settings.block
        for turn in range(min(3, self.settings.rounds) if slow else self.settings.rounds):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                if outcomes[name].status != "ok":
                    continue
                count = block_calls(estimates[name], self.settings.block)
                with _Leaving(outcomes[name], self.seats[name]):
                    blocks[name].append(self._block(self.seats[name], count, self.settings.cold))
        return blocks

    def _block(self, seat: Any, count: int, cold: bool) -> Block:
        found: Block = seat.ask("block", count, self.settings.rewarm, cold, timeout=self.settings.patience)
        return found

    def _aside(self, seat: Any, estimate: float, outcome: Outcome) -> None:
        """The memory of a call, and a few calls with the caches in the other state."""
        outcome.memory = seat.ask("peak", timeout=self.settings.patience)
        seconds, _ = self._block(seat, block_calls(estimate, self.settings.block / 2, 3), not self.settings.cold)
        setattr(outcome, "warm" if self.settings.cold else "cold", statistics.median(seconds))

    def _sum_up(self, blocks: list[Block], outcome: Outcome) -> None:
        outcome.timing = Timing.of([seconds for seconds, _ in blocks])
        setattr(outcome, "cold" if self.settings.cold else "warm", outcome.timing.median)
        if host := [value for _, values in blocks for value in values]:
            outcome.host = statistics.median(host)

    def _leave(self, seat: Any, expectation: Expectation, outcome: Outcome) -> None:
        """Step 5."""
        patience = self.settings.patience
        _check(outcome, expectation, BEFORE, seat.ask("timed_result", timeout=patience), seat.name)
        _check(outcome, expectation, AFTER, seat.ask("other_data", timeout=patience), seat.name)


class _Leaving:
    """Around a contestant's turn: it is stopped at the end, and what it raises becomes its outcome."""

    def __init__(self, outcome: Outcome, seat: Any):
        self.outcome, self.seat = outcome, seat

    def __enter__(self) -> None:
        self.seat.resume()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.seat.pause()
        if error is None or not isinstance(error, Exception):
            return False
        status = {Refused: "refused", Absent: "absent", Out: "wrong"}.get(type(error), "failed")
        reason = str(error) or type(error).__name__
        self.outcome.status, self.outcome.reason = status, reason
        for name in ("first", "timing", "host", "warm", "cold", "memory"):
            setattr(self.outcome, name, None)
        return True


def _check(outcome: Outcome, expectation: Expectation, data: int, result: np.ndarray, name: str) -> None:
    check = expectation.check(data, result, own=name.startswith("fastconv."))
    if outcome.error is None or check.error > outcome.error:
        outcome.error, outcome.tolerance = check.error, check.tolerance
    outcome.checked = str(expectation.part or "all")
    if check.reason is not None:
        raise Out("wrong", check.reason)


# ---------------------------------------------------------------- the whole run


def run(
    settings: Settings, progress: Progress = lambda done, total, what: None, kept: Sequence[Row] = (),
    save: Callable[[Run], None] = lambda run: None,
) -> Run:  # fmt: skip
    """Run the suites; on Ctrl-C or when the budget is spent, what has been measured is kept.

    Rows that an earlier run of the same settings has measured are taken from `kept`; `save` gets the run every
    now and then while it goes on.
    """
    begin = time.perf_counter()
    cases = settings.cases()
    seats = {name: ProcessSeat(name, settings.threads) for name in settings.contestants()}
    result = Run(settings, [], None, {}, {}, 0.0)
    try:
        _greet(seats, result, settings)
        if seats:
            result.limits = _limits(settings, seats)
            _measure_all(Table(seats, settings), cases, result, begin, progress, kept, save)
            if (again := _limits(settings, seats)) is not None:
                result.limits = again.best(result.limits)
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        for seat in seats.values():
            seat.close()
    return _whole(result, cases, begin)


def _whole(result: Run, cases: Sequence[Case], begin: float) -> Run:
    """The run with a row for every case, in the suites' order."""
    measured = {row.case: row for row in result.rows}
    settings = result.settings
    why = "interrupted" if result.interrupted else f"the budget of {settings.budget:.0f} s was spent"
    skipped = {name: Outcome("skipped", why) for name in settings.contestants() if name not in result.absent}
    rows = [measured.get(case, Row(case, skipped | result.missing())) for case in cases]
    return replace(result, rows=rows, seconds=time.perf_counter() - begin)


def _greet(seats: dict[str, Any], result: Run, settings: Settings) -> None:
    """Who is here; those who are not keep no seat."""
    for name in list(seats):
        try:
            result.contestants[name] = seats[name].ask("version", timeout=settings.patience)
            seats[name].pause()
        except (Absent, Died, RuntimeError) as error:
            result.absent[name] = str(error)
            seats.pop(name).close()


def _limits(settings: Settings, seats: dict[str, Any]) -> Limits | None:
    """Measured while the others are stopped, before and after the cases: a CPU's by NumPy, a GPU's by who is there."""
    on_gpu = settings.device == "gpu"
    seat = next(iter(seats.values())) if on_gpu else ProcessSeat("numpy", settings.threads)
    try:
        limits: Limits = seat.ask("limits", settings.dtype, timeout=settings.patience)
        return limits
    except (Died, RuntimeError):
        return None
    finally:
        seat.pause() if on_gpu else seat.close()


def _measure_all(
    table: Table, cases: Sequence[Case], result: Run, begin: float, progress: Progress, kept: Sequence[Row],
    save: Callable[[Run], None],
) -> None:  # fmt: skip
    """Each distinct problem once, the ones that weigh most first."""
    end, saved = begin + result.settings.budget, begin
    measured = {(row.case.op, row.case.problem): row.outcomes for row in kept if is_measured(row)}
    for done, case in enumerate(by_value(cases, result.settings.device)):
        progress(done, len(cases), case.name)
        key = (case.op, case.problem)
        if key not in measured:
            if time.perf_counter() > end:
                continue
            measured[key] = table.measure(case)
        result.rows.append(Row(case, measured[key] | result.missing()))
        if time.perf_counter() > saved + SAVE_EVERY:
            save(_whole(replace(result, interrupted=True), cases, begin))
            saved = time.perf_counter()
    progress(len(cases), len(cases), "")


def is_measured(row: Row) -> bool:
    return all(outcome.status != "skipped" for outcome in row.outcomes.values())


def by_value(cases: Iterable[Case], device: str = "cpu") -> list[Case]:
    """The cases in the order in which an early end loses the least.

    First the heaviest layer of every pass and regime, so that each is there; then by the share of their suite's work.
    """
    cases = list(cases)
    totals: dict[str, int] = {}
    for case in cases:
        totals[case.layer.suite] = totals.get(case.layer.suite, 0) + case.layer.count * case.nbytes
    by_share = sorted(cases, key=lambda case: -case.layer.count * case.nbytes / totals[case.layer.suite])
    heads = {(case.pass_, case.regime(device)): case for case in reversed(by_share)}
    first = set(heads.values())
    return sorted(by_share, key=lambda case: case not in first)

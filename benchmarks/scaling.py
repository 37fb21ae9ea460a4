"""How the time of a call grows with threads, with the batch and with the image.

``python -m fastconv.benchmarks.scaling`` times one layer for each algorithm of the `cpu` backend, each of its passes.
Every result is verified against the float64 reference before it is timed and afterwards; thread counts and sizes take
turns in blocks of calls, and a figure is the median of the blocks' medians. ``--keep`` writes the tables and the plot
to benchmarks/results. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numba

import fastconv
from fastconv.benchmarks import kept
from fastconv.benchmarks.cases import FAMILIES, Case, Layer, override, parse_problem
from fastconv.benchmarks.peers.base import Job
from fastconv.benchmarks.peers.library import Library
from fastconv.benchmarks.report.svg import Scale, Svg, column, short
from fastconv.benchmarks.results import environment
from fastconv.benchmarks.table import percent, seconds
from fastconv.benchmarks.verify import AFTER, BEFORE, Expectation, operands
from fastconv.testing.timing import block_calls, time_calls, warm_up

#: name, family, problem: what the table of algorithms in docs/cpu.md has.
LAYERS = (
    ("1x1", "conv", "conv2d n=1 c=256 size=28 k=256 ksize=1"),
    ("Winograd", "conv", "conv2d n=1 c=128 size=56 k=128 ksize=3 pad=1"),
    ("strided", "conv", "conv2d n=1 c=128 size=56 k=128 ksize=3 stride=2 pad=1"),
    ("stem", "conv", "conv2d n=1 c=3 size=224 k=64 ksize=7 stride=2 pad=3"),
    ("grouped", "conv", "conv2d n=1 c=256 size=28 k=256 ksize=3 pad=1 groups=32"),
    ("depthwise", "conv", "conv2d n=1 c=192 size=56 k=192 ksize=3 pad=1 groups=192"),
    ("max pooling", "maxpool", "pool2d n=1 c=64 size=112 ksize=3 stride=2 pad=1"),
)
FACTORS = (1, 2, 4, 8)  # batches, against the first
SIZES = (1, 1.5, 2, 3)  # extents of the image, against the layer's half
ROUNDS = 5
PAGE, PLOT = kept.RESULTS / "scaling.md", kept.RESULTS / "scaling.svg"
STYLE = (
    "<style>svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#1d2430}line.grid{stroke:#dfe1e6}"
    "line.one{stroke:#1d2430;stroke-dasharray:4 3}path{fill:none;stroke-width:2}"
    ".s0{stroke:#2367c4}.s1{stroke:#d9691e}.s2{stroke:#14876c}.s3{stroke:#8a4fbf}.s4{stroke:#c2378a}.s5{stroke:#8a6d12}"
    ".s6{stroke:#5d6675}.wide{stroke-dasharray:5 3}</style>"
)


@dataclass(frozen=True)
class Growth:
    """Of one layer's pass: seconds for each of `steps`, and the work of each against the first."""

    name: str
    pass_: str
    steps: tuple[str, ...]
    work: tuple[float, ...]
    seconds: tuple[float, ...]

    def against_work(self) -> list[float]:
        """Time per work, against that of the first step: 1 where time grows as the work does."""
        return [t / w * self.work[0] / self.seconds[0] for t, w in zip(self.seconds, self.work, strict=True)]


class Wrong(AssertionError):
    """A result that is not the reference's has no time."""


def case(name: str, family: str, text: str, pass_: str) -> Case:
    return Case(Layer("scaling", "-", name, 1, family, text), pass_, parse_problem(text, family))


@dataclass
class Call:
    """A case with its operands placed; calls itself with a number of threads."""

    case: Case
    threads: int

    def __post_init__(self) -> None:
        self.library, self.expectation = Library("cpu"), Expectation(self.case)
        arrays = operands(self.case, BEFORE)
        self.given = [self.library.place(self.case, role, arrays[role]) for role in self.case.roles]
        self.job: Job = self.library.bind(self.case, self.given)
        fastconv.set_num_threads(self.threads)
        self.verify(BEFORE)
        self.estimate = warm_up(self.job.run)
        self.blocks: list[float] = []

    def block(self) -> None:
        fastconv.set_num_threads(self.threads)
        self.job.run()
        taken, _ = time_calls(self.job.run, block_calls(self.estimate))
        self.blocks.append(statistics.median(taken))

    def verify(self, data: int) -> None:
        check = self.expectation.check(data, self.job.read(self.job.run()))
        if not check.ok:
            raise Wrong(f"{self.case.op} of {self.case.problem}, {self.threads} threads: {check.reason}")

    def finish(self) -> float:
        """Seconds of a call, once another result was verified on other data in the same memory."""
        fastconv.set_num_threads(self.threads)
        self.verify(BEFORE)
        for role, place in zip(self.case.roles, self.given, strict=True):
            self.library.write(self.case, role, place, operands(self.case, AFTER)[role])
        self.job = self.library.bind(self.case, self.given)  # a pullback goes by what its forward pass kept
        self.verify(AFTER)
        return statistics.median(self.blocks)


def in_turns(calls: Sequence[Call], rounds: int) -> list[float]:
    for turn in range(rounds):
        for place in range(len(calls)):
            calls[(turn + place) % len(calls)].block()
    return [call.finish() for call in calls]


def passes() -> Iterator[tuple[str, str, str, str]]:
    for name, family, text in LAYERS:
        for pass_ in FAMILIES[family]:
            yield name, family, text, pass_


def with_threads(rounds: int) -> Iterator[Growth]:
    """Every pass with 1, 2, 4, ... threads, up to all."""
    most = numba.config.NUMBA_NUM_THREADS
    counts = sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
    for name, family, text, pass_ in passes():
        found = in_turns([Call(case(name, family, text, pass_), count) for count in counts], rounds)
        yield Growth(name, pass_, tuple(map(str, counts)), (1.0,) * len(counts), tuple(found))


def with_work(rounds: int) -> Iterator[Growth]:
    """Forward passes with larger batches, and with larger images, on all threads."""
    threads = numba.config.NUMBA_NUM_THREADS
    for name, family, text in LAYERS:
        words = dict(word.partition("=")[::2] for word in text.split()[1:])
        half = int(words["size"]) // 2
        for kind, lines in (
            ("batch", [(f"{n}", override(text, n=n, size=half)) for n in FACTORS]),
            ("size", [(f"{int(half * s)}", override(text, size=int(half * s))) for s in SIZES]),
        ):
            cases = [case(name, family, line, "fprop") for _, line in lines]
            found = in_turns([Call(one, threads) for one in cases], rounds)
            work = tuple(one.flops / cases[0].flops for one in cases)
            yield Growth(f"{name}, {kind}", "fprop", tuple(step for step, _ in lines), work, tuple(found))


# ---------------------------------------------------------------- the page


def thread_table(found: Sequence[Growth]) -> str:
    counts = found[0].steps
    rows = [
        [one.name, one.pass_, *map(seconds, one.seconds),
         *(percent(one.seconds[0] / (int(n) * t)) for n, t in zip(counts[1:], one.seconds[1:], strict=True))]
        for one in found
    ]  # fmt: skip
    headings = ["layer", "pass", *(f"{n} thread{'s' * (n != '1')}" for n in counts)]
    return kept.table([*headings, *(f"efficiency of {n}" for n in counts[1:])], rows, 2)


def work_table(found: Sequence[Growth]) -> str:
    rows = [
        [one.name, ", ".join(one.steps), ", ".join(map(seconds, one.seconds)),
         ", ".join(f"{value:.2f}" for value in one.against_work())]
        for one in found
    ]  # fmt: skip
    return kept.table(["layer", "steps", "time", "time per work, against the first"], rows, 4)


def plot(found: Sequence[Growth], width: float = 860) -> str:
    """Time per work over work, a line for each layer; batches solid, images dashed."""
    svg = Svg(width, 380, "time per work, over work")
    names = list(dict.fromkeys(one.name.partition(",")[0] for one in found))
    legend = column(names, 140)
    values = [value for one in found for value in one.against_work()]
    most = max(work for one in found for work in one.work)
    x = Scale(1, max(most, 2), 56, width - legend - 20, log=True)
    y = Scale(0, max(1.2, *values) * 1.05, svg.height - 46, 14)
    for value in x.ticks(8):
        svg.line(x(value), y.start, x(value), y.end)
        svg.text(x(value), y.start + 16, short(value), anchor="middle")
    for value in y.ticks(6):
        svg.line(x.start, y(value), x.end, y(value))
        svg.text(x.start - 8, y(value) + 4, f"{value:.1f}", anchor="end")
    svg.line(x.start, y(1), x.end, y(1), "one")
    for one in found:
        name, _, kind = one.name.partition(", ")
        points = [(x(work), y(value)) for work, value in zip(one.work, one.against_work(), strict=True)]
        svg.path(points, f"s{names.index(name)}{' wide' if kind == 'size' else ''}")
    for place, name in enumerate(names):
        at = 30 + 20 * place
        svg.path([(x.end + 12, at - 4), (x.end + 30, at - 4)], f"s{place}")
        svg.text(x.end + 36, at, name)
    svg.text((x.start + x.end) / 2, svg.height - 8, "work, against the smallest", anchor="middle")
    svg.text(14, (y.start + y.end) / 2, "time per work, against the smallest", anchor="middle", turn=-90)
    drawn = str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawn.replace(">", f">{STYLE}", 1) + "\n"


def page(threads: Sequence[Growth], work: Sequence[Growth]) -> str:
    about = environment()
    machine, commit = about["machine"], about["commit"] or "no commit"
    return (
        "# How the time of a call grows\n\n"
        "Made by `python -m fastconv.benchmarks.scaling --keep`: the `cpu` backend, float32, NCHW, each result "
        "verified before and after. Medians of blocks that took turns.\n\n"
        f"{machine['cpu']}, {machine['usable_cores']} cores, {about['date'][:10]}, commit {commit}\n\n"
        "## With threads\n\nEfficiency: the time on one thread, shared out, against the time that was taken.\n\n"
        f"{thread_table(threads)}\n\n"
        "## With the batch and the image\n\nOn all threads. Time per work, against the first step, is 1 where time "
        "grows as the work does, less where what a call costs once is shared by more, more where memory is slower than "
        "the caches.\n\n"
        f"{work_table(work)}\n\n![time per work over work]({PLOT.name})\n"
    )


def main(arguments: Sequence[str] | None = None, show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(prog="python -m fastconv.benchmarks.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="blocks of calls per figure (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="write the page and the plot into benchmarks/results")
    options = parser.parse_args(arguments)
    before = numba.get_num_threads()
    try:
        threads, work = list(with_threads(options.rounds)), list(with_work(options.rounds))
    finally:
        fastconv.set_num_threads(before)
    show(page(threads, work))
    if options.keep:
        PAGE.write_text(page(threads, work), "utf-8")
        PLOT.write_text(plot(work), "utf-8")


if __name__ == "__main__":
    main()

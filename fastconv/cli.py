"""The program `fastconv`: info, bench, selftest, explain and warmup. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

OK, MISMATCH, USAGE, INTERRUPTED = 0, 1, 2, 130
POOLS = {"max": "maxpool", "avg": "avgpool", "lp": "lppool"}


class UsageError(Exception):
    """A bad argument; printed as one line, exit status 2."""


class Parser(argparse.ArgumentParser):
    """One line per mistake, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program on `argv` (default: the command line); returns the exit status.

    0 is success, 1 a wrong result of the library, 2 a bad argument, 130 a Ctrl-C.
    """
    try:
        arguments = build_parser().parse_args(argv)
        status: int = arguments.command(arguments)
        return status
    except UsageError as error:
        print(f"fastconv: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("fastconv: interrupted", file=sys.stderr)
        return INTERRUPTED


# ---------------------------------------------------------------- arguments


def words(text: str) -> tuple[str, ...]:
    """A comma-separated argument."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
        return value

    return convert


def build_parser() -> Parser:
    parser = Parser(
        prog="fastconv",
        description="Convolution, pooling and their gradients for NumPy and CuPy arrays.",
        epilog="examples:\n  fastconv info\n  fastconv bench --suite alexnet --peers torch\n  fastconv selftest\n"
        '  fastconv explain "conv2d n=1 c=3 size=224 k=64 ksize=7 stride=2 pad=3"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from fastconv import __version__

    parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for add in (_add_info, _add_bench, _add_selftest, _add_explain, _add_warmup):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[..., int], text: str, *examples: str) -> Any:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  fastconv {name} {example}".rstrip() for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(command=run)
    return parser


def _add_info(commands: Any) -> None:
    parser = _command(
        commands, "info", info, "the versions, the machine, the backends and why one is unavailable", "", "--json"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_bench(commands: Any) -> None:
    parser = _command(
        commands, "bench", bench, "verified benchmark of the named suites: table, JSON and HTML report",
        "", "--suite alexnet,vgg19 --peers torch,onnxruntime", "--suite resnet152 --op fprop --batch 8 --layout NHWC",
        "--suite all --peers all --budget 3600 --resume", "--gpu --dtype float16 --batch 256 --peers torch",
        "--compare old.json new.json",
    )  # fmt: skip
    add = parser.add_argument
    add("--suite", type=words, default=("alexnet", "vgg19", "resnet152"), metavar="A,B",
        help="suites to run, or all (default: alexnet,vgg19,resnet152; a wrong name lists them)")  # fmt: skip
    add("--op", type=words, default=("fprop", "dgrad", "wgrad"), metavar="PASSES",
        help="of fprop,dgrad,wgrad; pooling has the first two, signals the first (default: all)")  # fmt: skip
    add("--dtype", default="float32", help="float16, bfloat16, float32 or float64 (default: float32)")
    add("--layout", default="NCHW", help="NCHW or NHWC (default: NCHW)")
    add("--batch", type=positive(int), help="images per call (default: as the suite says; 1 for networks)")
    add("--gpu", action="store_true", help="measure on the GPU: device time, cold caches")
    add("--backend", type=words, metavar="A,B",
        help="backends; the first is compared with the others (default: cpu, with --gpu raw,numba)")  # fmt: skip
    add("--peers", type=words, default=(), metavar="A,B",
        help="to run beside it: torch, onnxruntime, jax, scipy, cupy, numpy, autograd, mygrad, or all")  # fmt: skip
    add("--threads", type=positive(int), help="threads of each library (default: its own choice)")
    add("--budget", type=positive(float), metavar="SECONDS",
        help="begin no further case after this time; the heaviest come first, what was skipped is reported "
        "(default: 210, and 100 more for each further backend or peer)")  # fmt: skip
    add("--resume", action="store_true", help="go on with the run that the JSON file has the beginning of")
    add("--json", type=Path, default=Path("fastconv-report/results.json"), metavar="PATH", help="default: %(default)s")
    add("--html", type=Path, default=Path("fastconv-report/report.html"), metavar="PATH", help="default: %(default)s")
    add(
        "--keep", action="store_true", help="write the results into benchmarks/results/ too, and the pages made of them"
    )
    add("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"),
        help="run nothing: what became faster or slower from one file to the other, as table and HTML")  # fmt: skip


def _add_selftest(commands: Any) -> None:
    parser = _command(
        commands, "selftest", selftest, "every op of every available backend against the reference, on this machine",
        "", "--backend cpu", "--json",
    )  # fmt: skip
    parser.add_argument("--backend", type=words, metavar="A,B", help="only these backends")
    parser.add_argument("--quick", action="store_true", help="only the first problems of each op")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_explain(commands: Any) -> None:
    parser = _command(
        commands, "explain", explain, "which backend, algorithm and config a named problem would run, and why",
        '"conv2d n=1 c=3 size=224 k=64 ksize=7 stride=2 pad=3"',
        '"conv2d n=8 c=64 size=56 k=64 ksize=3 pad=1 dtype=float16" --op wgrad --json',
        '"pool2d n=1 c=64 size=112 ksize=3 stride=2 pad=1" --pool avg --op dgrad',
    )  # fmt: skip
    parser.add_argument("problem", help="a line such as: conv2d n=1 c=3 size=224 k=64 ksize=7 stride=2 pad=3")
    parser.add_argument("--op", default="fprop", choices=("fprop", "dgrad", "wgrad"), help="default: fprop")
    parser.add_argument("--pool", default="max", choices=tuple(POOLS), help="the kind of a pooling (default: max)")
    parser.add_argument("--backend", help="ask this backend alone")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_warmup(commands: Any) -> None:
    parser = _command(
        commands, "warmup", warmup, "compile the cpu backend's kernels into the cache folder, ahead of first calls",
        "", "--dtype float32,float64", "--json",
    )  # fmt: skip
    parser.add_argument("--dtype", type=words, default=("float32",), metavar="A,B",
        help="of float16,bfloat16,float32,float64 (default: float32)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


# ---------------------------------------------------------------- what the commands share


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _console() -> Any:
    """A rich console; in a pipe or a file it is wide enough for every column."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


@contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar on stderr, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


# ---------------------------------------------------------------- the commands


def info(arguments: argparse.Namespace) -> int:
    from fastconv import config

    found = config.environment()
    if arguments.json:
        _print_json(found)
        return OK
    from rich.table import Table

    console, machine = _console(), found["machine"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}", highlight=False)
    table = Table("backend", "available", "reason", header_style="bold")
    for backend in found["backends"]:
        mark = "[green]yes[/]" if backend["available"] else "[yellow]no[/]"
        table.add_row(backend["name"], mark, backend["reason"])
    console.print(table)
    console.print(", ".join(f"{name} {version}" for name, version in found["versions"].items()), highlight=False)
    console.print(f"cache folder {found['cache']}, autotune {found['autotune']}", highlight=False)
    return OK


def explain(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from fastconv import dispatch
    from fastconv.errors import FastconvError
    from fastconv.plan import Explanation
    from fastconv.problem import ConvProblem, PoolProblem

    convolution = arguments.problem.lstrip().startswith("conv")
    family = "conv" if convolution else POOLS[arguments.pool]
    if not convolution and arguments.op == "wgrad":
        raise UsageError("pooling has no weights: --op must be fprop or dgrad")
    op = f"{family}_{arguments.op}"
    try:
        problem = (ConvProblem if convolution else PoolProblem).parse(arguments.problem)
        name, launch = dispatch.choose(op, problem, "numpy", arguments.backend)
    except (FastconvError, ValueError) as error:
        raise UsageError(str(error)) from error
    found = Explanation(op, problem, name, launch.algorithm, launch.why, launch.config, launch.workspace)
    if arguments.json:
        _print_json(asdict(found) | {"problem": str(problem), "shapes": _shapes(op, problem)})
        return OK
    print(found)
    *given, result = (f"{role}{shape}" for role, shape in _shapes(op, problem).items())
    print(f"  shapes     {', '.join(given)} -> {result}")
    return OK


def _shapes(op: str, problem: Any) -> dict[str, list[int]]:
    """The shapes of what goes in and comes out; a gradient has the shape of what it is the gradient of."""
    from fastconv.backends.base import OPS

    inputs, results = OPS[op]
    optional = ("bias", "tbias", "indices")
    return {role: list(problem.shape(role)) for role in (*inputs, *results) if role not in optional}


def selftest(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from fastconv import dispatch
    from fastconv.errors import BackendError
    from fastconv.testing import selftest

    try:
        for name in arguments.backend or ():
            if reason := dispatch.get(name).unavailable():
                raise UsageError(f"backend {name!r}: {reason}")
    except BackendError as error:
        raise UsageError(str(error)) from error
    with _bar() as progress:
        results = selftest.run(
            arguments.backend, lambda todo: progress.track(todo, description="checking"), arguments.quick
        )
    wrong = [result for result in results if not result.ok]
    if arguments.json:
        _print_json([asdict(result) for result in results])
    else:
        _show_selftest(results, wrong)
    return MISMATCH if wrong or not results else OK


def _show_selftest(results: list[Any], wrong: list[Any]) -> None:
    from rich.table import Table

    table = Table("backend", "op", header_style="bold")
    table.add_column("right", justify="right")
    table.add_column("of", justify="right")
    for backend, op in dict.fromkeys((result.backend, result.op) for result in results):
        mine = [result.ok for result in results if (result.backend, result.op) == (backend, op)]
        table.add_row(backend, op, str(sum(mine)), str(len(mine)), style=None if all(mine) else "red")
    console = _console()
    console.print(table)
    for result in wrong:
        console.print(f"{result.backend} {result.op} {result.case}\n{result.detail}", style="red", markup=False)
    console.print(f"{len(results) - len(wrong)} of {len(results)} checks are right", highlight=False)


def warmup(arguments: argparse.Namespace) -> int:
    from fastconv.testing import warmup

    dtypes = ("float16", "bfloat16", "float32", "float64")
    if unknown := [name for name in arguments.dtype if name not in dtypes]:
        raise UsageError(f"--dtype must be of {', '.join(dtypes)}: got {', '.join(unknown)}")
    with _bar() as progress:
        warmed = list(warmup.run(progress.track(warmup.todo(arguments.dtype), description="compiling")))
    if arguments.json:
        _print_json([one._asdict() for one in warmed])
        return OK
    from rich.table import Table

    table = Table("op", "problem", "algorithm", header_style="bold")
    table.add_column("compiled in s", justify="right")
    table.add_column("on disk in kB", justify="right")
    for one in warmed:
        table.add_row(one.op, one.problem, one.algorithm, f"{one.seconds:.1f}", f"{one.nbytes / 1e3:.0f}")
    console = _console()
    console.print(table)
    seconds = sum(one.seconds for one in warmed)
    console.print(f"{seconds:.0f} s, the cache holds {warmup.cached() / 1e6:.1f} MB", highlight=False)
    return OK


def bench(arguments: argparse.Namespace) -> int:
    from fastconv.benchmarks import kept, report, results, runner, table

    if arguments.compare:
        return _compare(arguments)
    settings, rows = _bench_settings(arguments)

    def save(run: Any) -> dict[str, Any]:
        doc = results.document(run)
        results.save(doc, arguments.json)
        return doc

    with _bar() as progress:
        task = progress.add_task("starting")
        run = runner.run(
            settings, lambda done, total, what: progress.update(task, completed=done, total=total, description=what),
            rows, save,
        )  # fmt: skip
    doc = save(run)
    arguments.html.write_text(report.render(doc), encoding="utf-8")
    table.show(doc, _console())
    print(f"{run.seconds:.0f} s. Report: {arguments.html}  Data: {arguments.json}")
    if arguments.keep:
        print(f"Kept: {kept.keep(doc)}")
    if run.interrupted:
        return INTERRUPTED
    return MISMATCH if results.failed(doc) else OK


def _bench_settings(arguments: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The settings of the run, checked, and the rows that it goes on from."""
    from dataclasses import replace

    from fastconv import dispatch
    from fastconv.benchmarks import results, runner
    from fastconv.benchmarks.cases import suite_names
    from fastconv.errors import BackendError

    device = "gpu" if arguments.gpu else "cpu"
    backends = arguments.backend
    if backends is None:
        backends = dispatch.PREFERRED["cuda"] if arguments.gpu else ("cpu",)
    settings = runner.Settings(
        suites=tuple(suite_names()) if arguments.suite == ("all",) else arguments.suite, passes=arguments.op,
        dtype=arguments.dtype, layout=arguments.layout, batch=arguments.batch, device=device,
        backends=backends,
        peers=arguments.peers, threads=arguments.threads,
    )  # fmt: skip
    try:
        if not settings.cases() or not settings.backends:
            raise UsageError("nothing to run: name at least one suite, pass and backend")
        settings = replace(settings, budget=arguments.budget or 110.0 + 100.0 * len(settings.contestants()))
        for name in settings.backends:
            dispatch.get(name)
        for path in (arguments.json, arguments.html):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not (arguments.resume and arguments.json.exists()):
            return settings, []
        return settings, results.continued(results.load(arguments.json), settings)
    except (ValueError, OSError, BackendError) as error:
        where = f"cannot go on with {arguments.json}: " if arguments.resume and arguments.json.exists() else ""
        raise UsageError(f"{where}{error}") from error


def _compare(arguments: argparse.Namespace) -> int:
    """Two documents side by side; reports, and judges nothing."""
    from fastconv.benchmarks import compare, results
    from fastconv.benchmarks.report import render_comparison

    try:
        old, new = (results.load(path) for path in arguments.compare)
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    found = compare.compare(old, new)
    compare.show(found, _console())
    arguments.html.write_text(render_comparison(found), encoding="utf-8")
    print(f"Report: {arguments.html}")
    return OK

"""Pooling on the CPU: which algorithm, and what its kernels are called with.

small     gathers in NumPy; compiles nothing, for problems that take microseconds
rows      lanes along W: the planes of one channel
channels  lanes along C: for channels-last memory, and right for every problem
taps      gradients of max pooling in planes of pixels, along the numbers of the maxima's taps
index     follows indices: of max unpooling, and of max pooling where its windows or memory are not those of taps
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from fastconv import tuning
from fastconv.backends.base import Launch
from fastconv.backends.cpu import pool_small
from fastconv.backends.cpu.pool_channels import channels
from fastconv.backends.cpu.pool_common import MOST_WORK, Array
from fastconv.backends.cpu.pool_index import index, scatter
from fastconv.backends.cpu.pool_rows import Backward, Forward, even_window, planes, rows
from fastconv.backends.cpu.pool_taps import find_first, taps
from fastconv.problem import PoolProblem

SMALL_WORK = 2**14  # outputs times taps; NumPy gathers them in less time than a thread pool takes to start
SMALL_CELLS = 2**16
MOST_PHASES = 32  # of rows: with more, a phase has too few places for a vector
MOST_SPREAD = 4  # stride along W of a row gradient: it computes between outputs too


def plan(op: str, problem: PoolProblem) -> Launch:
    algorithm, why = choose(op, problem, tuning.autotune())
    return build(op, problem, algorithm, why)


def choose(op: str, problem: PoolProblem, mode: str = "heuristic") -> tuple[str, str]:
    """(algorithm, why): a pure function of the problem and the autotune mode."""
    outputs = problem.N * problem.C * math.prod(problem.out)
    cells = problem.N * problem.C * math.prod(problem.size)
    taps = 1 if op.startswith("maxunpool") else problem.taps
    if mode != "off" and outputs * taps <= SMALL_WORK and cells <= SMALL_CELLS:
        return "small", f"{outputs} outputs of {taps} taps take less time than a thread pool needs to start"
    if op.startswith("maxunpool"):
        return "index", "values move to and from where their indices say"
    if op in ("maxpool_dgrad", "maxpool_places_dgrad"):
        if problem.dtype_of("places") == "int64":
            return "index", "each gradient goes to where its index says"
        if problem.layout == "NCHW":
            return "taps", "each gradient goes to its tap, plane by plane or with lanes along C"
    if mode != "off" and problem.layout == "NCHW":
        if applies("planes", op, problem):
            return "planes", "one window is the whole plane: sums along rows"
        if applies("rows", op, problem):
            return "rows", "lanes along W, or along C where the memory of a call has its channels adjacent"
    return "channels", "lanes along C: right for every window and layout"


def applies(algorithm: str, op: str, problem: PoolProblem) -> bool:
    """Whether an algorithm is right for a problem, and worth it; "channels" is right for all but max unpooling."""
    cells = [problem.cells(axis) for axis in range(problem.ndim)]
    if algorithm == "planes":
        whole = all(len(spans) == 1 and spans[0] == (0, n) for spans, n in zip(cells, problem.size, strict=True))
        return op == "avgpool_fprop" and whole
    if algorithm == "rows":
        even = all(n % m == 0 for n, m in zip(problem.size, problem.out, strict=True))
        if op.startswith(("lp", "maxpool_dgrad", "maxpool_places_dgrad")) or (problem.window is None and not even):
            return False
        window = problem.window or even_window(problem)
        filled = all(count > 0 for spans in cells for _, count in spans)
        if not filled or math.prod(window.stride) > MOST_PHASES or problem.taps >= 2**24:
            return False
        if op.endswith("dgrad") and window.stride[-1] > MOST_SPREAD:
            return False
        geometry = Backward(problem) if op.endswith("dgrad") else Forward(problem)
        return geometry.work_bytes <= MOST_WORK
    return True


def build(op: str, problem: PoolProblem, algorithm: str, why: str) -> Launch:
    if algorithm == "small":
        return Launch(pool_small.pool(op, problem), "small", why)
    if op == "maxpool_dgrad":
        return given_or_found(problem, build("maxpool_places_dgrad", problem, algorithm, why))
    return BUILD[algorithm](op, problem, why)


BUILD = {"index": index, "planes": planes, "rows": rows, "channels": channels, "taps": taps}


def given_or_found(problem: PoolProblem, backward: Launch) -> Launch:
    """Along given indices, else from x by the places of its maxima."""
    find, follow = find_first(problem, partial(plan, "maxpool_places"), backward), scatter(problem)

    def run(dx: Array, dy: Array, x: Array, indices: Array | None) -> None:
        if dx.size == 0:
            return
        if indices is None:
            find(dx, dy, x)
        else:
            follow(dx, dy, indices)

    return replace(backward, run=run)

"""Compiling the `cpu` backend's kernels ahead: one small problem per kernel, dtype and layout."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastconv import dispatch, tuning
from fastconv.backends.base import OPS
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.testing import cases

CONV = "conv_fprop", "conv_dgrad", "conv_wgrad"

#: Lines and the passes that compile a kernel of their own there.
LINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("conv2d n=1 c=64 size=20 k=64 ksize=1", CONV),
    ("conv2d n=1 c=64 size=40 k=64 ksize=1", ("conv_wgrad",)),
    ("conv2d n=1 c=64 size=20 k=64 ksize=1 layout=NHWC", CONV),
    ("conv2d n=1 c=32 size=20 k=64 ksize=3 pad=1 dilation=2 stride=2", ("conv_fprop",)),
    ("conv2d n=1 c=3 size=64 k=64 ksize=3 pad=1", CONV),
    ("conv2d n=1 c=64 size=16 k=64 ksize=3 pad=1 groups=16", ("conv_fprop", "conv_wgrad")),
    ("conv2d n=1 c=128 size=7 k=128 ksize=3 pad=1 groups=16", ("conv_fprop",)),
    ("conv2d n=1 c=64 size=14 k=64 ksize=3 pad=1 groups=4", ("conv_dgrad", "conv_wgrad")),
    ("conv2d n=1 c=64 size=28 k=64 ksize=3 pad=1 stride=2 groups=4", ("conv_fprop",)),
    ("conv2d n=1 c=64 size=7 k=64 ksize=3 pad=1 groups=2", ("conv_fprop", "conv_dgrad")),
    ("conv2d n=1 c=64 size=14 k=64 ksize=3 pad=1 stride=2 groups=2", ("conv_fprop",)),
    ("conv2d n=1 c=64 size=14 k=64 ksize=3 pad=1 groups=2", ("conv_dgrad",)),
    ("conv2d n=1 c=32 size=32 k=64 ksize=3 pad=1", ("conv_fprop", "conv_wgrad")),
    ("conv2d n=1 c=32 size=200 k=32 ksize=3 pad=1", ("conv_fprop",)),
    ("conv2d n=1 c=32 size=32 k=64 ksize=3 pad=1 layout=NHWC", ("conv_wgrad",)),
    ("conv2d n=1 c=256 size=7 k=256 ksize=3 pad=1", ("conv_fprop",)),
    ("conv2d n=1 c=32 size=32 k=64 ksize=5 pad=2", ("conv_fprop", "conv_wgrad")),
    ("conv2d n=2 c=64 size=64 k=64 ksize=3 pad=1 groups=64", CONV),
    ("conv2d n=2 c=64 size=64 k=64 ksize=3 pad=1 groups=64 layout=NHWC", CONV),
    ("pool2d n=4 c=64 size=64 ksize=3 stride=2 pad=1",
     ("maxpool_fprop", "maxpool_indices", "maxpool_dgrad", "avgpool_fprop", "avgpool_dgrad")),
    ("pool2d n=4 c=64 size=64 ksize=3 stride=2 pad=1 layout=NHWC",
     ("maxpool_fprop", "maxpool_indices", "maxpool_dgrad", "avgpool_fprop", "avgpool_dgrad")),
)  # fmt: skip


class Warmed(NamedTuple):
    """One problem that ran: what it took the first time, beyond a second run, and what it left in the cache."""

    op: str
    problem: str
    algorithm: str
    seconds: float
    nbytes: int


def cached() -> int:
    """The bytes of all compiled CPU kernels on disk."""
    return sum(path.stat().st_size for path in (tuning.cache_dir() / "numba_cpu").glob("*.bin"))


def todo(dtypes: Iterable[str]) -> list[tuple[str, ConvProblem | PoolProblem]]:
    """Every op and problem to run for these dtypes."""
    listed: list[tuple[str, ConvProblem | PoolProblem]] = []
    for dtype in dtypes:
        for line, ops in LINES:
            problem = ConvProblem.parse(line) if line.startswith("conv") else PoolProblem.parse(line)
            listed += [(op, replace(problem, dtype=dtype)) for op in ops]
    return listed


def run(problems: Iterable[tuple[str, ConvProblem | PoolProblem]]) -> Iterator[Warmed]:
    """Run each op twice on arrays of ones; kernels that are on disk already are only read."""
    for op, problem in problems:
        before = cached()
        launch = dispatch.select(op, problem, "numpy", "cpu")
        operands, results = OPS[op]
        dtype = cases.dtype_of(problem.dtype)
        made = [_lie(problem, role, np.zeros(problem.dims(role), _dtype(role, dtype))) for role in results]
        given = [None if role in ("bias", "tbias") else _operand(problem, role, dtype) for role in operands]
        times = []
        for _ in range(2):
            start = time.perf_counter()
            launch.run(*made, *given)
            times.append(time.perf_counter() - start)
        yield Warmed(op, str(problem), launch.algorithm, max(0.0, times[0] - times[1]), cached() - before)


def _dtype(role: str, dtype: np.dtype) -> np.dtype:
    return np.dtype(np.int64) if role == "indices" else dtype


def _operand(problem: ConvProblem | PoolProblem, role: str, dtype: np.dtype) -> np.ndarray | None:
    if role == "indices":
        return None
    return _lie(problem, role, np.ones(problem.dims(role), dtype))


def _lie(problem: ConvProblem | PoolProblem, role: str, array: np.ndarray) -> np.ndarray:
    """A canonical view in the memory order of the problem's layout."""
    order = problem.order(role)
    if order == "HWIO":
        return np.ascontiguousarray(np.moveaxis(array, (1, 0), (-2, -1))).transpose(3, 2, 0, 1)
    if order == "NHWC":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    return array

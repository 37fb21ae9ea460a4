"""Pooling in Numba CUDA: one algorithm an op, and what its kernels are called with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fastconv.backends.base import Launch
from fastconv.backends.numba_cuda.launcher import (
    THREADS,
    Flat,
    Grid,
    Ints,
    Kernel,
    dtype_name,
    lifted,
    over,
    scratch,
    size_of,
    to_host,
)
from fastconv.errors import ShapeError
from fastconv.kernels.numba_cuda import elementwise, pool_avg, pool_lp, pool_max, pool_unpool
from fastconv.kernels.numba_cuda.memory import computed
from fastconv.problem import PoolProblem

Run = Callable[..., None]
RANGE_BLOCKS = 1024  # of the search for the smallest and the largest index


def plan(op: str, problem: PoolProblem) -> Launch:
    run, algorithm, why = PLANS[op](problem)
    return Launch(run, algorithm, why)


@lru_cache(maxsize=4096)
def window_geometry(problem: PoolProblem) -> Ints:
    """Extents and window of a pooling with three spatial axes, as every kernel unpacks it; a bin has stride 0."""
    missing, axes = 3 - problem.ndim, range(problem.ndim)
    window = problem.window
    if window is None:
        rows: list[list[int]] = [[1] * len(axes), [0] * len(axes), [0] * len(axes), [1] * len(axes)]
    else:
        rows = [list(window.ksize), list(window.stride), [low for low, _ in window.pad], list(window.dilation)]
    units = ((1, problem.out), (1, problem.size), (1, rows[0]), (1, rows[1]), (0, rows[2]), (1, rows[3]))
    return sum(((unit,) * missing + tuple(row) for unit, row in units), ())


def geometry(problem: PoolProblem, by: Any, *more: Any) -> Ints:
    """The geometry of a kernel whose threads take the elements of `by`; numbers and arrays' strides follow it."""
    head = (problem.N, problem.C, int(lifted(by)[1] == 1 and problem.C > 1))
    rest: Ints = ()
    for item in more:
        rest += (item,) if isinstance(item, int) else lifted(item)
    return head + window_geometry(problem) + rest


# ---------------------------------------------------------------- max pooling


def maxpool_fprop(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(y: Any, x: Any) -> None:
        maxima(problem, y, None, x)

    return run, "direct", "one thread an output"


def maxpool_indices(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(y: Any, indices: Any, x: Any) -> None:
        maxima(problem, y, indices, x)

    return run, "direct", "one thread an output"


def maxima(problem: PoolProblem, y: Any, indices: Any, x: Any) -> None:
    if size_of(y) == 0:
        return
    kernel = Kernel.of(pool_max.fprop, dtype_name(y), dtype_name(x), indices is not None)
    places = y if indices is None else indices
    kernel(over(size_of(y)), (y, indices, x), geometry(problem, y, y, x, places))


def maxpool_dgrad(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(dx: Any, dy: Any, x: Any, indices: Any) -> None:
        if size_of(dx) == 0:
            return
        if indices is None:
            indices = scratch(problem.dims("y"), "int64")
            maxima(problem, scratch(problem.dims("y"), x.dtype), indices, x)
        elif strays(problem, indices, low=-1):
            scatter(problem, dx, dy, indices)
            return
        kernel = Kernel.of(pool_max.gather, dtype_name(dx), dtype_name(dy))
        kernel(over(size_of(dx)), (dx, dy, indices), geometry(problem, dx, dx, dy, indices))

    return run, "gather", "one thread a cell of dx, no atomics; given indices are checked first, which waits for the GPU"


def strays(problem: PoolProblem, indices: Any, low: int) -> bool:
    """Whether an index lies outside of its window; one outside of the extent is refused."""
    outputs, cells = size_of(indices), math.prod(problem.size)
    if outputs == 0:
        return False
    grid = Grid(min(-(-outputs // THREADS), RANGE_BLOCKS, over(outputs).blocks), THREADS)
    found = scratch((grid.blocks * 3,), "int64")
    Kernel.of(pool_max.index_range, THREADS)(grid, (found, indices), geometry(problem, indices, indices))
    blocks = to_host(found).reshape(-1, 3)
    least, most = int(blocks[:, 0].min()), int(blocks[:, 1].max())
    if least < low or most >= cells:
        raise ShapeError(
            f"indices must lie in [0, {cells}), the {'x'.join(map(str, problem.size))} cells of the extent: "
            f"got {least} to {most}"
        )
    return bool(blocks[:, 2].any())


def scatter(problem: PoolProblem, dx: Any, dy: Any, indices: Any) -> None:
    """The gradient for indices anywhere: sums of the outputs, plane by plane, then stored in dx's dtype."""
    plane = math.prod(problem.size)
    total = zeros((problem.N * problem.C * plane,), computed(dtype_name(dx)))
    kernel = Kernel.of(pool_max.scatter, dtype_name(dx), dtype_name(dy))
    extents = window_geometry(problem)[:3]
    sizes = (problem.N, problem.C, *extents, plane, *lifted(dy), *lifted(indices))
    kernel(over(problem.N * problem.C), (total, dy, indices), sizes)
    copy(dx, total)


def zeros(shape: Ints, dtype: Any, value: int = 0) -> Any:
    """Scratch memory filled by a kernel."""
    array = scratch(shape, dtype)
    kernel = Kernel.of(elementwise.fill, dtype_name(array))
    kernel(over(size_of(array)), (array,), (size_of(array), value))
    return array


def copy(dx: Any, flat: Any) -> None:
    """Values in the order of dx's axes, written to dx in its dtype."""
    extents = (*dx.shape[:2], *(1,) * (5 - len(dx.shape)), *dx.shape[2:])
    strides: list[int] = [1]
    for extent in extents[:0:-1]:
        strides.insert(0, strides[0] * extent)
    kernel = Kernel.of(elementwise.activation_fprop, dtype_name(dx), dtype_name(flat), None)
    kernel(over(size_of(dx)), (dx, flat), (*extents, *lifted(dx), *strides))


# ---------------------------------------------------------------- average and Lp pooling


def avg_geometry(problem: PoolProblem, by: Any, *more: Any) -> Ints:
    high = (0,) * 3 if problem.window is None else (0,) * (3 - problem.ndim) + tuple(h for _, h in problem.window.pad)
    return geometry(problem, by, *high, problem.divisor or 0, int(problem.count_include_pad), *more)


def avgpool_fprop(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(y: Any, x: Any) -> None:
        if size_of(y):
            kernel = Kernel.of(pool_avg.fprop, dtype_name(y), dtype_name(x))
            kernel(over(size_of(y)), (y, x), avg_geometry(problem, y, y, x))

    return run, "direct", "one thread an output"


def avgpool_dgrad(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(dx: Any, dy: Any) -> None:
        if size_of(dx):
            kernel = Kernel.of(pool_avg.gather, dtype_name(dx), dtype_name(dy))
            kernel(over(size_of(dx)), (dx, dy), avg_geometry(problem, dx, dx, dy))

    return run, "gather", "one thread a cell of dx, no atomics"


def norms(problem: PoolProblem, y: Any, x: Any) -> None:
    kernel = Kernel.of(pool_lp.fprop, dtype_name(y), dtype_name(x), computed(problem.dtype))
    kernel(over(size_of(y)), (y, x), float(problem.p), geometry(problem, y, y, x))


def lppool_fprop(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(y: Any, x: Any) -> None:
        if size_of(y):
            norms(problem, y, x)

    return run, "direct", "one thread an output"


def lppool_dgrad(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(dx: Any, dy: Any, x: Any) -> None:
        if size_of(dx) == 0:
            return
        acc = computed(problem.dtype)
        y = scratch(problem.dims("y"), acc)
        norms(problem, y, x)
        kernel = Kernel.of(pool_lp.gather, dtype_name(dx), dtype_name(dy), dtype_name(x), acc)
        kernel(over(size_of(dx)), (dx, dy, x, y), float(problem.p), geometry(problem, dx, dx, dy, x))

    return run, "gather", "the norms again, then one thread a cell of dx, no atomics"


# ---------------------------------------------------------------- max unpooling


def winners(problem: PoolProblem, indices: Any) -> tuple[Any, int]:
    """Per cell, the last output that names it, or -1; and how many cells a plane has."""
    strays(problem, indices, low=0)
    plane = math.prod(problem.size)
    winner = zeros((problem.N * problem.C * plane,), "int64", -1)
    sizes = (problem.N, problem.C, *window_geometry(problem)[:3], plane, *lifted(indices))
    Kernel.of(pool_unpool.winners)(over(size_of(indices)), (indices, Flat(winner)), sizes)
    return winner, plane


WINNERS = "the last output that names a cell wins it; indices are checked first, which waits for the GPU"


def maxunpool_fprop(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(x: Any, y: Any, indices: Any) -> None:
        if size_of(x) == 0:
            return
        winner, _ = winners(problem, indices)
        kernel = Kernel.of(pool_unpool.fill, dtype_name(x), dtype_name(y))
        Z, P, Q, D, H, W = window_geometry(problem)[:6]
        sizes = (problem.N, problem.C, D, H, W, P, Q, *lifted(x), *lifted(y))
        kernel(over(size_of(x)), (x, y, winner), sizes)

    return run, "winners", WINNERS


def maxunpool_dgrad(problem: PoolProblem) -> tuple[Run, str, str]:
    def run(dy: Any, dx: Any, indices: Any) -> None:
        if size_of(dy) == 0:
            return
        winner, plane = winners(problem, indices)
        kernel = Kernel.of(pool_unpool.pick, dtype_name(dy), dtype_name(dx))
        Z, P, Q, D, H, W = window_geometry(problem)[:6]
        sizes = (problem.N, problem.C, Z, P, Q, H, W, plane, *lifted(dy), *lifted(dx), *lifted(indices))
        kernel(over(size_of(dy)), (dy, dx, indices, winner), sizes)

    return run, "winners", WINNERS


PLANS: dict[str, Callable[[PoolProblem], tuple[Run, str, str]]] = {
    "maxpool_fprop": maxpool_fprop, "maxpool_indices": maxpool_indices, "maxpool_dgrad": maxpool_dgrad,
    "avgpool_fprop": avgpool_fprop, "avgpool_dgrad": avgpool_dgrad,
    "lppool_fprop": lppool_fprop, "lppool_dgrad": lppool_dgrad,
    "maxunpool_fprop": maxunpool_fprop, "maxunpool_dgrad": maxunpool_dgrad,
}  # fmt: skip

"""Pooling in Numba CUDA: one algorithm an op, and what its kernels are called with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.forms import by_form
from fastconv.backends.numba_cuda.launcher import (
    THREADS,
    Call,
    Grid,
    Ints,
    channels_last,
    dtype_name,
    lifted,
    over,
    scratch,
    to_host,
)
from fastconv.errors import ShapeError
from fastconv.kernels.numba_cuda import elementwise, pool_avg, pool_lp, pool_max, pool_unpool
from fastconv.kernels.numba_cuda.memory import computed
from fastconv.problem import PoolProblem

Run = Callable[..., None]
RANGE_BLOCKS = 1024  # of the search for the smallest and the largest index
CHECKED = "given indices are checked first, which waits for the GPU"


def plan(op: str, problem: PoolProblem) -> Launch:
    prepare, algorithm, why = PLANS[op]
    return Launch(by_form(lambda *arrays: prepare(problem, *arrays) if problem.N else nothing), algorithm, why)


def nothing(*arrays: Any) -> None:
    """The run of a result without elements."""


@lru_cache(maxsize=4096)
def window_geometry(problem: PoolProblem) -> Ints:
    """Extents and window of a pooling with three spatial axes, as every kernel unpacks it; a bin has stride 0."""
    missing, axes = 3 - problem.ndim, range(problem.ndim)
    window = problem.window
    if window is None:
        rows: list[list[int]] = [list(problem.frame), [0] * len(axes), [0] * len(axes), [1] * len(axes)]
    else:
        rows = [list(window.ksize), list(window.stride), [low for low, _ in window.pad], list(window.dilation)]
    units = ((1, problem.out), (1, problem.size), (1, rows[0]), (1, rows[1]), (0, rows[2]), (1, rows[3]))
    return sum(((unit,) * missing + tuple(row) for unit, row in units), ())


def geometry(problem: PoolProblem, by: Any, *more: Any) -> Ints:
    """The geometry of a kernel whose threads take the elements of `by`; numbers, and strides of arrays, follow it."""
    head = (problem.N, problem.C, channels_last(by))
    rest: Ints = ()
    for item in more:
        rest += (item,) if isinstance(item, int) else item if isinstance(item, tuple) else lifted(item)
    return head + window_geometry(problem) + rest


def outputs(problem: PoolProblem) -> int:
    return problem.N * problem.C * math.prod(problem.out)


def cells(problem: PoolProblem) -> int:
    return problem.N * problem.C * math.prod(problem.size)


def flat_steps(problem: PoolProblem, role: str) -> Ints:
    """The strides of scratch memory in the order of an operand's axes."""
    n, c, *space = problem.dims(role)
    extents = (n, c, *(1,) * (3 - len(space)), *space)
    return tuple(math.prod(extents[axis + 1 :]) for axis in range(5))


# ---------------------------------------------------------------- max pooling


def maxpool_fprop(problem: PoolProblem, y: Any, x: Any) -> Run:
    call = maxima(problem, y, dtype_name(y), lifted(y), x)
    return lambda y, x: call(y, None, x)


def maxpool_indices(problem: PoolProblem, y: Any, indices: Any, x: Any) -> Run:
    return maxima(problem, y, dtype_name(y), lifted(y), x, "int64", lifted(indices))


def maxpool_places(problem: PoolProblem, y: Any, places: Any, x: Any) -> Run:
    return maxima(problem, y, dtype_name(y), lifted(y), x, dtype_name(places), lifted(places))


def maxima(
    problem: PoolProblem, by: Any, dtype: str, y_steps: Ints, x: Any, places: str | None = None, steps: Ints = ()
) -> Run:
    """Maxima alone, or with their places: indices, or the numbers of their taps in bytes."""
    dtypes, key = (dtype, places, dtype_name(x)), (dtype, dtype_name(x), places)
    sizes = geometry(problem, by, y_steps, x, steps or y_steps)
    return Call(pool_max.fprop, key, over(outputs(problem)), dtypes, sizes)


def gather(problem: PoolProblem, dx: Any, dy: Any, places: str, steps: Ints) -> Run:
    """The gradient along places in their windows."""
    dtypes = dtype_name(dx), dtype_name(dy)
    sizes = geometry(problem, dx, dx, dy, steps)
    return Call(pool_max.gather, (*dtypes, places == "uint8"), over(cells(problem)), (*dtypes, places), sizes)


def maxpool_places_dgrad(problem: PoolProblem, dx: Any, dy: Any, places: Any) -> Run:
    return gather(problem, dx, dy, dtype_name(places), lifted(places))


def maxpool_dgrad(problem: PoolProblem, dx: Any, dy: Any, x: Any, indices: Any) -> Run:
    """Finds the maxima again where no indices are given."""
    if indices is None:
        steps, places = flat_steps(problem, "y"), problem.dtype_of("places")
        find = maxima(problem, dy, dtype_name(x), steps, x, places, steps)
        follow = gather(problem, dx, dy, places, steps)

        def run(dx: Any, dy: Any, x: Any, indices: None) -> None:
            found = scratch(problem.dims("y"), np.dtype(places))
            find(scratch(problem.dims("y"), x.dtype), found, x)
            follow(dx, dy, found)

        return run
    add = gather(problem, dx, dy, dtype_name(indices), lifted(indices))
    strays, anywhere = check(problem, indices, low=-1), scatter(problem, dx, dy, indices)

    def run_with(dx: Any, dy: Any, x: Any, indices: Any) -> None:
        if strays(indices):
            anywhere(dx, dy, indices)
        else:
            add(dx, dy, indices)

    return run_with


def check(problem: PoolProblem, indices: Any, low: int) -> Callable[[Any], bool]:
    """Whether an index lies outside of its window; one outside of the extent is refused."""
    count, extent = outputs(problem), math.prod(problem.size)
    grid = Grid(min(over(count).blocks, RANGE_BLOCKS), THREADS)
    dtypes = "int64", dtype_name(indices)
    call = Call(pool_max.index_range, (THREADS,), grid, dtypes, geometry(problem, indices, indices))

    def strays(indices: Any) -> bool:
        found = scratch((grid.blocks * 3,), np.int64)
        call(found, indices)
        blocks = to_host(found).reshape(-1, 3)
        least, most = int(blocks[:, 0].min()), int(blocks[:, 1].max())
        if least < low or most >= extent:
            raise ShapeError(
                f"indices must lie in [0, {extent}), the {'x'.join(map(str, problem.size))} cells of the extent: "
                f"got {least} to {most}"
            )
        return bool(blocks[:, 2].any())

    return strays


def scatter(problem: PoolProblem, dx: Any, dy: Any, indices: Any) -> Run:
    """The gradient for indices anywhere: sums of the outputs, plane by plane, then stored in dx's dtype."""
    acc, count = computed(dtype_name(dx)), cells(problem)
    name, places = np.dtype(acc).name, dtype_name(indices)
    zero = Call(elementwise.fill, (name,), over(count), (name,), (count, 0))
    sizes = (
        problem.N,
        problem.C,
        *window_geometry(problem)[:3],
        math.prod(problem.size),
        *lifted(dy),
        *lifted(indices),
    )
    dtypes = name, dtype_name(dy), places
    add = Call(pool_max.scatter, (dtype_name(dx), dtype_name(dy)), over(problem.N * problem.C), dtypes, sizes)
    extents = (problem.N, problem.C, *window_geometry(problem)[3:6])
    both = dtype_name(dx), name
    strides = (*extents, *lifted(dx), *flat_steps(problem, "x"))
    store = Call(elementwise.activation_fprop, (*both, None), over(count), both, strides)

    def run(dx: Any, dy: Any, indices: Any) -> None:
        total = scratch((count,), acc)
        zero(total)
        add(total, dy, indices)
        store(dx, total)

    return run


# ---------------------------------------------------------------- average and Lp pooling


def avg_geometry(problem: PoolProblem, by: Any, *more: Any) -> Ints:
    high = (0,) * 3 if problem.window is None else (0,) * (3 - problem.ndim) + tuple(h for _, h in problem.window.pad)
    return geometry(problem, by, high, problem.divisor or 0, int(problem.count_include_pad), *more)


def avgpool_fprop(problem: PoolProblem, y: Any, x: Any) -> Run:
    dtypes = dtype_name(y), dtype_name(x)
    return Call(pool_avg.fprop, dtypes, over(outputs(problem)), dtypes, avg_geometry(problem, y, y, x))


def avgpool_dgrad(problem: PoolProblem, dx: Any, dy: Any) -> Run:
    dtypes = dtype_name(dx), dtype_name(dy)
    return Call(pool_avg.gather, dtypes, over(cells(problem)), dtypes, avg_geometry(problem, dx, dx, dy))


def lppool_fprop(problem: PoolProblem, y: Any, x: Any) -> Run:
    return norms(problem, y, dtype_name(y), lifted(y), x)


def norms(problem: PoolProblem, by: Any, dtype: str, y_steps: Ints, x: Any) -> Run:
    dtypes = dtype, dtype_name(x)
    key, sizes = (*dtypes, computed(problem.dtype)), geometry(problem, by, y_steps, x)
    return Call(pool_lp.fprop, key, over(outputs(problem)), dtypes, float(problem.p), sizes)


def lppool_dgrad(problem: PoolProblem, dx: Any, dy: Any, x: Any) -> Run:
    acc = computed(problem.dtype)
    name = np.dtype(acc).name
    find = norms(problem, dy, name, flat_steps(problem, "y"), x)
    dtypes = dtype_name(dx), dtype_name(dy), dtype_name(x)
    sizes = geometry(problem, dx, dx, dy, x)
    add = Call(pool_lp.gather, (*dtypes, acc), over(cells(problem)), (*dtypes, name), float(problem.p), sizes)

    def run(dx: Any, dy: Any, x: Any) -> None:
        y = scratch(problem.dims("y"), acc)
        find(y, x)
        add(dx, dy, x, y)

    return run


# ---------------------------------------------------------------- max unpooling


def winners(problem: PoolProblem, indices: Any) -> Callable[[Any], Any]:
    """Per cell, the last output that names it, or -1."""
    strays, count = check(problem, indices, low=0), cells(problem)
    clear = Call(elementwise.fill, ("int64",), over(count), ("int64",), (count, -1))
    sizes = (problem.N, problem.C, *window_geometry(problem)[:3], math.prod(problem.size), *lifted(indices))
    find = Call(pool_unpool.winners, (), over(outputs(problem)), (dtype_name(indices), "int64[:]"), sizes)

    def run(indices: Any) -> Any:
        strays(indices)
        winner = scratch((count,), np.int64)
        clear(winner)
        find(indices, winner)
        return winner

    return run


def maxunpool_fprop(problem: PoolProblem, x: Any, y: Any, indices: Any) -> Run:
    find, dtypes = winners(problem, indices), (dtype_name(x), dtype_name(y))
    _, P, Q, *extents = window_geometry(problem)[:6]
    sizes = (problem.N, problem.C, *extents, P, Q, *lifted(x), *lifted(y))
    fill = Call(pool_unpool.fill, dtypes, over(cells(problem)), (*dtypes, "int64"), sizes)
    return lambda x, y, indices: fill(x, y, find(indices))


def maxunpool_dgrad(problem: PoolProblem, dy: Any, dx: Any, indices: Any) -> Run:
    find, dtypes = winners(problem, indices), (dtype_name(dy), dtype_name(dx))
    *extents, _, H, W = window_geometry(problem)[:6]
    strides = (*lifted(dy), *lifted(dx), *lifted(indices))
    sizes = (problem.N, problem.C, *extents, H, W, math.prod(problem.size), *strides)
    pick = Call(pool_unpool.pick, dtypes, over(outputs(problem)), (*dtypes, dtype_name(indices), "int64"), sizes)
    return lambda dy, dx, indices: pick(dy, dx, indices, find(indices))


OUTPUTS, CELLS = "one thread an output", "one thread a cell of dx, no atomics"
#: Per op: what makes its run, the algorithm's name, and why it is taken.
PLANS: dict[str, tuple[Callable[..., Run], str, str]] = {
    "maxpool_fprop": (maxpool_fprop, "direct", OUTPUTS),
    "maxpool_indices": (maxpool_indices, "direct", OUTPUTS),
    "maxpool_dgrad": (maxpool_dgrad, "gather", f"{CELLS}; {CHECKED}"),
    "maxpool_places": (maxpool_places, "direct", OUTPUTS),
    "maxpool_places_dgrad": (maxpool_places_dgrad, "gather", CELLS),
    "avgpool_fprop": (avgpool_fprop, "direct", OUTPUTS),
    "avgpool_dgrad": (avgpool_dgrad, "gather", CELLS),
    "lppool_fprop": (lppool_fprop, "direct", OUTPUTS),
    "lppool_dgrad": (lppool_dgrad, "gather", f"the norms again, then {CELLS}"),
    "maxunpool_fprop": (maxunpool_fprop, "winners", f"the last output that names a cell wins it; {CHECKED}"),
    "maxunpool_dgrad": (maxunpool_dgrad, "winners", f"the last output that names a cell wins it; {CHECKED}"),
}

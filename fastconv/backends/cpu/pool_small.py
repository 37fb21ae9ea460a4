"""Pooling of tiny problems in plain NumPy: everything is a gather through tables made once per problem.

With K cells per window (the largest's), P outputs and S cells of the extent, `cells[K, P]` says which
cell each tap of a window meets. The taps that a window lacks come last and repeat its first cell, so
that no maximum sees them; sums leave them out. A gradient gathers too, through the inverse table:
`taps[R, S]` lists the taps k * P + p that meet each cell, in the order of p.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastconv.arrays import dtype_of
from fastconv.backends.reference import check_indices, divisors_of, lowest, norm
from fastconv.errors import ShapeError
from fastconv.problem import NO_TAP, PoolProblem

Array = np.ndarray
Run = Callable[..., None]


def pool(op: str, problem: PoolProblem) -> Run:
    run = RUNS[op](Tables(problem))

    def quietly(*arrays: Array | None) -> None:
        with np.errstate(all="ignore"):  # infinities and NaNs are values here
            run(*arrays)

    return quietly


class Tables:
    """A problem's windows, and what its values are computed in."""

    def __init__(self, problem: PoolProblem):
        self.problem, self.size, self.planes = problem, math.prod(problem.size), problem.N * problem.C
        self.x, self.y = problem.dims("x"), problem.dims("y")
        dtype = dtype_of(problem.dtype)
        self.dtype = np.dtype(np.float32) if dtype.kind not in "iu" and dtype.itemsize == 2 else dtype
        self.flat = (self.planes, self.size), (self.planes, math.prod(problem.out))

    def windows(self) -> tuple[Array, Array]:
        """(cells[K, P], which of them a window has)."""
        cells, valid = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
        for axis, n in enumerate(self.problem.size):
            first, count = np.array(self.problem.cells(axis)).T
            tap = np.arange(max(count.max(), 1))[:, None]
            has = tap < count
            at = np.where(has, first + tap * self.problem.step(axis), np.where(count > 0, first, 0))
            cells = _outer(cells * n, at, np.add)
            valid = _outer(valid, has, np.logical_and)
        return cells, valid

    def numbers(self) -> Array:
        """[K, P], the number of every tap in the frame of its window."""
        numbers = np.zeros((1, 1), np.int64)
        for axis, n in enumerate(self.problem.frame):
            tap = np.arange(max(max(count for _, count in self.problem.cells(axis)), 1))[:, None]
            numbers = _outer(numbers * n, tap + self.problem.first_taps(axis), np.add)
        return numbers

    def inverse(self, valid: Array, cells: Array) -> tuple[Array, Array]:
        """(taps[R, S] as k * P + p, which of them there are)."""
        outputs = cells.shape[1]
        p, k = np.nonzero(valid.T)
        met = cells[k, p]
        order = np.argsort(met, kind="stable")
        counts = np.bincount(met, minlength=self.size)
        rank = np.arange(met.size) - np.repeat(np.cumsum(counts) - counts, counts)
        taps = np.zeros((max(counts.max(), 1), self.size), np.int64)
        taps[rank, met[order]] = (k * outputs + p)[order]
        return taps, np.arange(len(taps))[:, None] < counts

    def planes_of(self, array: Array) -> Array:
        """[planes, spatial], in the type that is computed in."""
        return array.astype(self.dtype, copy=False).reshape(self.planes, math.prod(array.shape[2:]))

    def divisors(self) -> Array:
        return divisors_of(self.problem).reshape(-1).astype(self.dtype)


def _outer(one: Array, other: Array, join: np.ufunc) -> Array:
    """Join two tables [taps, outputs] into the table of all pairs of taps and of outputs."""
    pairs = join(one[:, None, :, None], other[None, :, None, :])
    return pairs.reshape(one.shape[0] * other.shape[0], one.shape[1] * other.shape[1])


def maxpool_fprop(tables: Tables) -> Run:
    cells, valid = tables.windows()
    empty = np.flatnonzero(~valid.any(0))

    def run(y: Array, x: Array) -> None:
        best = tables.planes_of(x).take(cells, 1).max(1)
        if empty.size:
            best[:, empty] = lowest(tables.dtype)
        y[...] = best.reshape(tables.y)

    return run


def first_place(cells: Array, valid: Array) -> Callable[[Array], tuple[Array, Array]]:
    """planes[planes, S] -> (the maxima, the cell of each); -1 of no cell."""
    outputs = np.arange(cells.shape[1])
    empty = np.flatnonzero(~valid.any(0))

    def find(planes: Array) -> tuple[Array, Array]:
        met = planes.take(cells, 1)
        tap = met.argmax(1)
        best, place = np.take_along_axis(met, tap[:, None], 1)[:, 0], cells[tap, outputs]
        if empty.size:
            best[:, empty], place[:, empty] = lowest(planes.dtype), -1
        return best, place

    return find


def maxpool_indices(tables: Tables) -> Run:
    find = first_place(*tables.windows())

    def run(y: Array, indices: Array, x: Array) -> None:
        best, place = find(tables.planes_of(x))
        y[...] = best.reshape(tables.y)
        indices[...] = place.reshape(tables.y)

    return run


def maxpool_dgrad(tables: Tables) -> Run:
    cells, valid = tables.windows()
    find = first_place(cells, valid)
    taps, there = tables.inverse(valid, cells)
    outputs = taps % cells.shape[1]
    here = np.arange(tables.size)

    def run(dx: Array, dy: Array, x: Array, indices: Array | None) -> None:
        if indices is None:
            place = find(x.astype(np.float32 if x.dtype.name == "bfloat16" else x.dtype).reshape(tables.flat[0]))[1]
        else:
            check_indices(indices, tables.problem, low=-1)
            place = indices.reshape(tables.flat[1])
            if not ((place == -1) | ((place[:, None] == cells) & valid).any(1)).all():
                raise ShapeError(foreign(tables.problem, indices))
        mine = (place.take(outputs, 1) == here) & there
        dx[...] = tables.planes_of(dy).take(outputs, 1).sum(1, where=mine).reshape(tables.x)

    return run


def maxpool_places(tables: Tables) -> Run:
    if tables.problem.dtype_of("places") == "int64":
        return maxpool_indices(tables)
    cells, valid = tables.windows()
    numbers, outputs = tables.numbers().astype(np.uint8), np.arange(cells.shape[1])
    empty = np.flatnonzero(~valid.any(0))

    def run(y: Array, places: Array, x: Array) -> None:
        met = tables.planes_of(x).take(cells, 1)
        tap = met.argmax(1)
        best, place = np.take_along_axis(met, tap[:, None], 1)[:, 0], numbers[tap, outputs]
        if empty.size:
            best[:, empty], place[:, empty] = lowest(met.dtype), NO_TAP
        y[...] = best.reshape(tables.y)
        places[...] = place.reshape(tables.y)

    return run


def maxpool_places_dgrad(tables: Tables) -> Run:
    if tables.problem.dtype_of("places") == "int64":
        along = maxpool_dgrad(tables)
        return lambda dx, dy, indices: along(dx, dy, None, indices)
    cells, valid = tables.windows()
    taps, there = tables.inverse(valid, cells)
    outputs, mine = taps % cells.shape[1], tables.numbers().astype(np.uint8).reshape(-1)[taps]

    def run(dx: Array, dy: Array, places: Array) -> None:
        given = (places.reshape(tables.flat[1]).take(outputs, 1) == mine) & there
        dx[...] = tables.planes_of(dy).take(outputs, 1).sum(1, where=given).reshape(tables.x)

    return run


def avgpool_fprop(tables: Tables) -> Run:
    cells, valid = tables.windows()
    divisors = tables.divisors()
    where = True if valid.all() else valid

    def run(y: Array, x: Array) -> None:
        total = tables.planes_of(x).take(cells, 1).sum(1, where=where)
        y[...] = (total / divisors).reshape(tables.y)

    return run


def avgpool_dgrad(tables: Tables) -> Run:
    cells, valid = tables.windows()
    taps, there = tables.inverse(valid, cells)
    outputs, divisors = taps % cells.shape[1], tables.divisors()

    def run(dx: Array, dy: Array) -> None:
        share = tables.planes_of(dy) / divisors
        dx[...] = share.take(outputs, 1).sum(1, where=there).reshape(tables.x)

    return run


def lppool_fprop(tables: Tables) -> Run:
    cells, valid = tables.windows()

    def run(y: Array, x: Array) -> None:
        met = np.where(valid, x.astype(np.float64).reshape(tables.flat[0]).take(cells, 1), 0.0)
        y[...] = norm(met.transpose(0, 2, 1), tables.problem.p).reshape(tables.y)

    return run


def lppool_dgrad(tables: Tables) -> Run:
    cells, valid = tables.windows()
    taps, there = tables.inverse(valid, cells)
    p = tables.problem.p

    def run(dx: Array, dy: Array, x: Array) -> None:
        met = np.where(valid, x.astype(np.float64).reshape(tables.flat[0]).take(cells, 1), 0.0)
        y = norm(met.transpose(0, 2, 1), p)[:, None]
        ratio = np.where(met == 0, 1.0, np.abs(met) / np.where(y == 0, 1.0, y))
        slope = np.where(met == 0, 0.0, np.sign(met) * ratio ** (p - 1.0))
        given = (dy.astype(np.float64).reshape(tables.flat[1])[:, None] * slope).reshape(tables.planes, valid.size)
        dx[...] = given.take(taps, 1).sum(1, where=there).reshape(tables.x)

    return run


def maxunpool_fprop(tables: Tables) -> Run:
    starts = np.arange(tables.planes)[:, None] * tables.size

    def run(x: Array, y: Array, indices: Array) -> None:
        check_indices(indices, tables.problem, low=0)
        flat = np.zeros(tables.planes * tables.size, y.dtype)
        flat[indices.reshape(tables.flat[1]) + starts] = y.reshape(tables.flat[1])
        x[...] = flat.reshape(tables.x)

    return run


def maxunpool_dgrad(tables: Tables) -> Run:
    starts, numbers = np.arange(tables.planes)[:, None] * tables.size, np.arange(tables.flat[1][1])

    def run(dy: Array, dx: Array, indices: Array) -> None:
        check_indices(indices, tables.problem, low=0)
        at = indices.reshape(tables.flat[1]) + starts
        writer = np.empty(tables.planes * tables.size, np.int64)
        writer[at] = numbers
        dy[...] = np.where(writer[at] == numbers, dx.reshape(-1)[at], dx.dtype.type(0)).reshape(tables.y)

    return run


RUNS = {
    "maxpool_fprop": maxpool_fprop, "maxpool_indices": maxpool_indices, "maxpool_dgrad": maxpool_dgrad,
    "maxpool_places": maxpool_places, "maxpool_places_dgrad": maxpool_places_dgrad,
    "avgpool_fprop": avgpool_fprop, "avgpool_dgrad": avgpool_dgrad,
    "lppool_fprop": lppool_fprop, "lppool_dgrad": lppool_dgrad,
    "maxunpool_fprop": maxunpool_fprop, "maxunpool_dgrad": maxunpool_dgrad,
}  # fmt: skip


def foreign(problem: PoolProblem, indices: Array) -> str:
    """What is wrong with the first index that is no cell of its window."""
    axes, size = range(problem.ndim), math.prod(problem.size)
    bad = (indices < -1) | (indices >= size)
    at = np.unravel_index(np.where(bad | (indices < 0), 0, indices).astype(np.int64), problem.size)
    for axis in axes:
        shape = [-1 if other == axis else 1 for other in axes]
        first, count = (np.reshape(values, shape) for values in np.array(problem.cells(axis)).T)
        into, step = at[axis] - first, problem.step(axis)
        bad |= (into < 0) | (into >= count * step) | (into % step != 0)
    place = tuple(int(i[0]) for i in np.nonzero(bad & (indices != -1)))
    spans = [(*problem.cells(axis)[place[2 + axis]], problem.step(axis)) for axis in axes]
    cells = ", ".join(str(list(range(first, first + count * step, step))) for first, count, step in spans)
    index, cell = int(indices[place]), [int(a[place]) for a in at]
    is_ = f"is the cell {cell}" if 0 <= index < size else f"is none of the {size} cells"
    return (
        f"indices must be -1 or a cell of their own window: indices{list(place)} = {index} {is_}; "
        f"along each axis that window has {cells}"
    )

"""Pooling on the CPU: which algorithm, and what its kernels are called with.

small     gathers in NumPy; compiles nothing, for problems that take microseconds
rows      lanes along W: the planes of one channel, split by phases of the stride
channels  lanes along C: for channels-last memory, and right for every problem
index     follows the indices of max unpooling
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from fastconv import tuning
from fastconv.arrays import name_of
from fastconv.backends.base import Launch
from fastconv.backends.cpu import pool_small
from fastconv.backends.cpu.workspace import threads, workspace
from fastconv.backends.reference import check_indices
from fastconv.errors import ShapeError
from fastconv.problem import Ints, PoolProblem, Window

Array = Any  # an operand that the op may lack is None; each op knows which it has
Run = Callable[..., None]

SMALL_WORK = 2**14  # outputs times taps; NumPy gathers them in less time than a thread pool takes to start
SMALL_CELLS = 2**16
MOST_PHASES = 32  # of rows: with more, a phase has too few places for a vector
MOST_SPREAD = 4  # stride along W of a row gradient: it computes between outputs too
OVERRUN = 64  # elements that loops over vectors may run beyond a row
MOST_WORK = 2**25  # bytes of a thread's scratch
LANES = 512  # channels of a block that are adjacent
TILE_LANES = 256  # the same in a gradient
SPREAD_LANES = 16  # channels of a block that lie far apart
TILE_BYTES = 2**19  # of a gradient's tile: inside a core's second-level cache
BLOCK_CELLS = 2**15  # of a block of one plane, padding counted
TASK_CELLS = 2**15  # of the cells that one forward task reads


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
        if op[:2] not in ("ma", "av") or (problem.window is None and not even):
            return False
        window = problem.window or even_window(problem)
        filled = all(count > 0 for spans in cells for _, count in spans)
        if not filled or math.prod(window.stride) > MOST_PHASES or problem.taps >= 2**24:
            return False
        if op.endswith("dgrad") and window.stride[-1] > MOST_SPREAD:
            return False
        geometry = Backward(problem, op) if op.endswith("dgrad") else Forward(problem)
        return geometry.work_bytes <= MOST_WORK
    return True


def build(op: str, problem: PoolProblem, algorithm: str, why: str) -> Launch:
    if algorithm == "small":
        return Launch(pool_small.pool(op, problem), "small", why)
    launch = {"index": index, "planes": planes, "rows": rows, "channels": channels}[algorithm](op, problem, why)
    if op != "maxpool_dgrad":
        return launch
    find, follow = launch.run, scatter(problem)

    def run(dx: Array, dy: Array, x: Array, indices: Array | None) -> None:
        if dx.size == 0:
            return
        if indices is None:
            find(dx, dy, x)
        else:
            follow(dx, dy, indices)

    return replace(launch, run=run)


# ---------------------------------------------------------------- what the kernels are told


@lru_cache(maxsize=8)
def kernels(name: str) -> ModuleType:
    """A module of kernels with its entry points in the disk cache; importing Numba waits until one is needed."""
    import importlib

    from fastconv.compiler import host_kernel

    module = importlib.import_module(f"fastconv.kernels.numba_cpu.{name}")
    for entry in module.ENTRIES:
        host_kernel(getattr(module, entry))
    return module


def storage(dtype: np.dtype | str) -> Any:
    from fastconv.kernels.numba_cpu.memory import STORAGE

    return STORAGE[dtype if isinstance(dtype, str) else name_of(dtype)]


@lru_cache(maxsize=32)
def computed(dtype: np.dtype) -> Any:
    """The storage that values of a dtype are computed in."""
    from fastconv.kernels.numba_cpu.memory import computed_name

    return storage(computed_name(name_of(dtype)))


def itemsize(storage: Any) -> int:
    from fastconv.kernels.numba_cpu.memory import itemsize

    return int(itemsize(storage.name))


def lift(values: Any, fill: Any, unit: Ints) -> tuple[Any, ...]:
    """Values along the spatial axes with `fill` put in for the unit axes."""
    rest = iter(values)
    return tuple(fill if axis in unit else next(rest) for axis in range(3))


#: The unit axes of a problem of 1, 2 or 3 axes. Tiles of a gradient are cut along the first two.
UNIT = {1: (1, 2), 2: (1,), 3: ()}


def operand(array: Array, unit: Ints) -> tuple[int, ...]:
    """(address, element strides of N, C and three spatial axes)."""
    strides = [stride // array.itemsize for stride in array.strides]
    return (array.ctypes.data, strides[0], strides[1], *lift(strides[2:], 0, unit))


NOWHERE = (0,) * 6


class Windows:
    """The windows of a problem as the kernels take them."""

    def __init__(self, problem: PoolProblem):
        self.unit = UNIT[problem.ndim]
        axes = range(problem.ndim)
        self.sizes = lift(problem.size, 1, self.unit)
        self.outs = lift(problem.out, 1, self.unit)
        self.steps = lift([problem.step(axis) for axis in axes], 1, self.unit)
        tables = [np.array(problem.cells(axis), np.int64).reshape(-1, 2) for axis in axes]
        self.tables = lift(tables, np.array([[0, 1]], np.int64), self.unit)
        self.problem = problem


def divisors_of(problem: PoolProblem, unit: Ints) -> tuple[Array, ...]:
    """Per axis, factors of what the sum of a window is divided by; 1 where that is over no cell."""
    ones = [np.ones(n) for n in problem.out]
    if problem.divisor is not None:
        ones[0] *= problem.divisor
        return lift(ones, np.ones(1), unit)
    counts = [
        problem.padded_counts(axis) if problem.count_include_pad else [count for _, count in problem.cells(axis)]
        for axis in range(problem.ndim)
    ]
    return lift([np.maximum(count, 1.0) for count in counts], np.ones(1), unit)


def adjacent(array: Array, channels: int = 1) -> bool:
    """Whether at least `channels` channels lie next to each other."""
    return array.strides[1] == array.itemsize and array.shape[1] >= channels


# ---------------------------------------------------------------- lanes along C


def channels(op: str, problem: PoolProblem, why: str) -> Launch:
    run = channel_gradient(op, problem) if op.endswith("dgrad") else channel_forward(op, problem)
    return Launch(run, "channels", why, {"lanes": LANES, "tile_bytes": TILE_BYTES})


def lanes_of(array: Array, most: int) -> int:
    """Channels per block: even parts of at most `most` where they are adjacent."""
    C = array.shape[1]
    if not adjacent(array) or most < SPREAD_LANES:
        return min(C, SPREAD_LANES, most)
    even = -(-C // -(-C // most))
    return min(C, -(-even // SPREAD_LANES) * SPREAD_LANES)


def channel_forward(op: str, problem: PoolProblem) -> Run:
    windows = Windows(problem)
    unit, tables, steps, sizes = windows.unit, windows.tables, windows.steps, windows.sizes
    divisors = divisors_of(problem, unit) if op == "avgpool_fprop" else None
    near = is_near(windows)
    row_cells = windows.outs[1] * windows.outs[2] * problem.taps

    def run(y: Array, *operands: Array) -> None:
        x = operands[-1]
        if x.size == 0:
            return
        lanes = lanes_of(x, LANES)
        rows = max(1, TASK_CELLS // (row_cells * lanes))
        N, C = x.shape[:2]
        tasks = N * -(-C // lanes) * -(-windows.outs[0] // rows)
        X, S = storage(x.dtype), computed(x.dtype)
        work_bytes = 3 * (8 * lanes + 128)
        scratch = workspace(work_bytes * threads())  # held until the kernel returns
        work = scratch.ctypes.data
        module, xs, ys = kernels("pool_channels"), operand(x, unit), operand(y, unit)
        if op == "maxpool_fprop":
            module.max_fprop(tasks, X, S, xs, ys, C, lanes, rows, tables, steps, work, work_bytes)
        elif op == "maxpool_indices":
            places, vectors = operand(operands[0], unit), near and adjacent(x) and X is S
            module.max_indices(
                tasks, X, S, xs, ys, places, C, lanes, rows, tables, steps, sizes, vectors, work, work_bytes
            )
        elif op == "avgpool_fprop":
            module.avg_fprop(tasks, X, S, xs, ys, C, lanes, rows, tables, steps, divisors, work, work_bytes)
        else:
            module.lp_fprop(tasks, X, S, xs, ys, C, lanes, rows, tables, steps, problem.p, work, work_bytes)

    return run


def is_near(windows: Windows) -> bool:
    """Whether every offset inside a window is a whole number of every type: then vectors of that type hold it."""
    extents = [int(table[:, 1].max()) * step for table, step in zip(windows.tables, windows.steps, strict=True)]
    return (extents[0] * windows.sizes[1] + extents[1]) * windows.sizes[2] + extents[2] < 2**24


def tiles_of(windows: Windows, dx: Array) -> tuple[int, Ints]:
    """(channels of a block, rows of a gradient's tile along the first two axes).

    A tile visits the windows around it too: fewer channels and more rows where windows overlap.
    """
    sizes, item = windows.sizes, max(dx.itemsize, 4)
    extents = [int(table[:, 1].max()) * step for table, step in zip(windows.tables, windows.steps, strict=True)]
    most = TILE_LANES
    while True:
        lanes = lanes_of(dx, most)
        row = sizes[2] * lanes * item
        tile_b = min(sizes[1], max(1, TILE_BYTES // row))
        tile_a = min(sizes[0], max(1, TILE_BYTES // (row * tile_b)))
        if (
            most == 1
            or (most <= SPREAD_LANES and 2 * row <= MOST_WORK)
            or (tile_a >= min(sizes[0], 4 * extents[0]) and tile_b >= min(sizes[1], extents[1]))
        ):
            return lanes, (tile_a, tile_b)
        most //= 2


def channel_gradient(op: str, problem: PoolProblem) -> Run:
    windows = Windows(problem)
    unit, tables, steps, sizes = windows.unit, windows.tables, windows.steps, windows.sizes
    divisors = divisors_of(problem, unit) if op == "avgpool_dgrad" else None
    near = is_near(windows)

    def run(dx: Array, dy: Array, x: Any = None) -> None:
        if dx.size == 0:
            return
        N, C = dx.shape[:2]
        G, S = storage(dy.dtype), computed(dy.dtype)
        lanes, tiles = tiles_of(windows, dx)
        tasks = N * -(-C // lanes) * -(-sizes[0] // tiles[0]) * -(-sizes[1] // tiles[1])
        work_bytes = 4 * (8 * lanes + 128) + 8 * lanes * tiles[0] * tiles[1] * sizes[2]
        scratch = workspace(work_bytes * threads())  # held until the kernel returns
        work = scratch.ctypes.data
        module, dxs, dys = kernels("pool_channels"), operand(dx, unit), operand(dy, unit)
        if op == "avgpool_dgrad":
            module.avg_dgrad(tasks, G, S, dys, dxs, C, lanes, tiles, tables, steps, sizes, divisors, work, work_bytes)
            return
        X, xs = storage(x.dtype), operand(x, unit)
        if op == "lppool_dgrad":
            module.lp_dgrad(
                tasks, X, G, S, xs, dys, dxs, C, lanes, tiles, tables, steps, sizes, problem.p, work, work_bytes
            )
            return
        SX = computed(x.dtype)
        vectors = near and adjacent(x) and X is SX and itemsize(S) == itemsize(SX)
        module.max_dgrad(
            tasks, X, SX, G, S, xs, dys, dxs, C, lanes, tiles, tables, steps, sizes, vectors, work, work_bytes
        )

    return run


# ---------------------------------------------------------------- lanes along W

ROW_UNIT = {1: (0, 1), 2: (1,), 3: ()}


class Rows:
    """Regular windows with unit axes put in, as the kernels with lanes along W take them."""

    def __init__(self, problem: PoolProblem):
        window = problem.window or even_window(problem)
        unit = self.unit = ROW_UNIT[problem.ndim]
        self.sizes, self.outs = lift(problem.size, 1, unit), lift(problem.out, 1, unit)
        self.strides, self.dilations = lift(window.stride, 1, unit), lift(window.dilation, 1, unit)
        self.lows, self.ksizes = lift([low for low, _ in window.pad], 0, unit), lift(window.ksize, 1, unit)
        self.extents = tuple((k - 1) * d + 1 for k, d in zip(self.ksizes, self.dilations, strict=True))
        self.item = 8 if problem.dtype in ("float64", "int64", "uint64", "uint32") else 4  # bytes, computed in
        self.tap_offsets = np.indices(self.ksizes).reshape(3, -1).T * self.dilations

    def geometry(self, *last: int) -> Array:
        """The rows of `g` (pool_rows.py), the last one given."""
        rows = (self.sizes, self.outs, self.strides, self.dilations, self.lows, self.ksizes)
        return np.array([(*row, 0) for row in rows] + [(*last, 0)[:4]], np.int64)


class Forward(Rows):
    """Blocks of `rows` rows of outputs, split by phases: pool_rows.py."""

    def __init__(self, problem: PoolProblem):
        super().__init__(problem)
        shifts = [(e - 1) // s for e, s in zip(self.extents, self.strides, strict=True)]
        places = tuple(n + shift for n, shift in zip(self.outs, shifts, strict=True))
        phases = math.prod(self.strides)
        self.rows = min(self.outs[0], max(BLOCK_CELLS // (phases * places[1] * places[2]) - shifts[0], shifts[0], 1))
        self.blocks = -(-self.outs[0] // self.rows)
        plane = (self.rows + shifts[0]) * places[1] * places[2]
        self.g = self.geometry(*places)
        self.taps = _flat(self.tap_offsets % self.strides, self.strides) * plane
        self.taps += _flat(self.tap_offsets // self.strides, places)
        self.shifts = _flat(self.tap_offsets, self.sizes)
        self.work_bytes = self.item * (plane * (phases + 2) + self.sizes[2]) + 2048


class Backward(Rows):
    """Blocks of `rows` rows of dx: pool_rows_dgrad.py."""

    def __init__(self, problem: PoolProblem, op: str):
        super().__init__(problem)
        places = (self.outs[2] - 1) * self.strides[2] + 1
        before = self.extents[2] - 1
        across = (self.outs[1] - 1) * self.strides[1] + self.extents[1]
        x_row = places + before + OVERRUN
        y_row = before + max(places, self.sizes[2] + self.lows[2]) + OVERRUN
        plain = max(self.sizes[2], self.outs[2], 2 * self.ksizes[0] * self.ksizes[1]) + OVERRUN
        self.rows = min(self.sizes[0], max(BLOCK_CELLS // (x_row * across) - self.extents[0], self.extents[0]))
        self.blocks = -(-self.sizes[0] // self.rows)
        reach = min(self.outs[0], (self.rows + self.extents[0] - 2) // self.strides[0] + 1)
        x_cells = ((reach - 1) * self.strides[0] + self.extents[0]) * across * x_row
        y_cells = reach * self.outs[1] * y_row
        self.g = self.geometry(x_row, y_row, before, plain)
        self.taps = _flat(self.tap_offsets, (0, across, x_row))
        cells = 2 * y_cells + x_cells if op == "maxpool_dgrad" else y_cells
        self.work_bytes = self.item * (cells + 2 * y_row) + 16 * plain + 4096


def _flat(places: Array, extents: Ints) -> Array:
    return np.ascontiguousarray((places[:, 0] * extents[1] + places[:, 1]) * extents[2] + places[:, 2], np.int64)


def even_window(problem: PoolProblem) -> Window:
    """The window of adaptive bins that all have one size."""
    ksize = tuple(n // m for n, m in zip(problem.size, problem.out, strict=True))
    return Window(ksize, ksize, (1,) * problem.ndim, ((0, 0),) * problem.ndim)


def rows(op: str, problem: PoolProblem, why: str) -> Launch:
    """With channels as lanes at once where the memory of a call has its channels adjacent."""
    geometry = Backward(problem, op) if op.endswith("dgrad") else Forward(problem)
    along_w = row_gradient(op, problem, geometry) if op.endswith("dgrad") else row_forward(op, problem, geometry)
    along_c = channels(op, problem, why).run
    source = -1 if op == "maxpool_indices" else 0

    def run(result: Array, *operands: Array) -> None:
        last = adjacent(result, SPREAD_LANES) and adjacent(operands[source])
        (along_c if last else along_w)(result, *operands)

    config = {"rows": geometry.rows, "blocks": geometry.blocks}
    return Launch(run, "rows", why, config, workspace=geometry.work_bytes)


def split_of(units: int) -> tuple[int, int, int]:
    """(tasks, blocks, blocks of a task): tasks for every core, each long enough to repay its set-up."""
    run = max(1, units // 64)
    return -(-units // run), units, run


def row_forward(op: str, problem: PoolProblem, geometry: Any) -> Run:
    unit, taps, shifts, work_bytes = geometry.unit, geometry.taps, geometry.shifts, geometry.work_bytes
    divisors = divisors_of(problem, unit)

    def run(y: Array, *operands: Array) -> None:
        x = operands[-1]
        if x.size == 0:
            return
        N, C = x.shape[:2]
        tasks = split_of(N * C * geometry.blocks)
        X, S = storage(x.dtype), computed(x.dtype)
        scratch = workspace(work_bytes * threads())  # held until the kernel returns
        work = scratch.ctypes.data
        module, xs, ys, g = kernels("pool_rows"), operand(x, unit), operand(y, unit), geometry.g
        if op == "avgpool_fprop":
            module.avg_fprop(*tasks, X, S, xs, ys, C, geometry.rows, g, taps, divisors, work, work_bytes)
            return
        places = operand(operands[0], unit) if op == "maxpool_indices" else NOWHERE
        address = shifts.ctypes.data
        module.max_fprop(*tasks, X, S, xs, ys, places, C, geometry.rows, g, taps, address, work, work_bytes)

    return run


def row_gradient(op: str, problem: PoolProblem, geometry: Any) -> Run:
    unit, taps, g, work_bytes = geometry.unit, geometry.taps, geometry.g, geometry.work_bytes
    divisors, along_c = divisors_of(problem, unit), channel_gradient(op, problem)
    if op == "maxpool_dgrad":
        divisors = tuple(np.ones_like(factors) for factors in divisors)

    def run(dx: Array, dy: Array, x: Any = None) -> None:
        if dx.size == 0:
            return
        N, C = dx.shape[:2]
        tasks = split_of(N * C * geometry.blocks)
        G, S = storage(dy.dtype), computed(dy.dtype)
        scratch = workspace(work_bytes * threads())  # held until the kernel returns
        work = scratch.ctypes.data
        module, dxs, dys = kernels("pool_rows_dgrad"), operand(dx, unit), operand(dy, unit)
        if op == "avgpool_dgrad":
            module.avg_dgrad(*tasks, G, S, dys, dxs, C, geometry.rows, g, divisors, work, work_bytes)
            return
        X, SX, xs = storage(x.dtype), computed(x.dtype), operand(x, unit)
        if itemsize(SX) != itemsize(S):  # lanes of x are not lanes of dy
            along_c(dx, dy, x)
            return
        module.max_dgrad(*tasks, X, SX, G, S, xs, dys, dxs, C, geometry.rows, g, taps, divisors, work, work_bytes)

    return run


# ---------------------------------------------------------------- whole planes


def planes(op: str, problem: PoolProblem, why: str) -> Launch:
    """The average of each plane; with channels as lanes where they are adjacent."""
    along_c, unit = channels(op, problem, why).run, ROW_UNIT[problem.ndim]
    sizes = lift(problem.size, 1, unit)
    divisor = math.prod(float(factors[0]) for factors in divisors_of(problem, unit))

    def run(y: Array, x: Array) -> None:
        if x.size == 0 or adjacent(x, SPREAD_LANES):
            along_c(y, x)
            return
        from fastconv.backends.cpu.elementwise import rows_of

        N, C = x.shape[:2]
        sums = np.empty((N, C))
        X, S, module = storage(x.dtype), computed(x.dtype), kernels("elementwise")
        module.bias_grad_planes(N * C, C, X, S, *rows_of(x, sizes, unit), sums.ctypes.data)
        with np.errstate(all="ignore"):
            y[...] = (sums / divisor).reshape(y.shape)

    return Launch(run, "planes", why)


# ---------------------------------------------------------------- indices


def index(op: str, problem: PoolProblem, why: str) -> Launch:
    unit = UNIT[problem.ndim]
    sizes, outs = lift(problem.size, 1, unit), lift(problem.out, 1, unit)
    cells = math.prod(sizes)

    def run(result: Array, source: Array, indices: Array) -> None:
        if result.size == 0:
            return
        check_indices(indices, problem, low=0)
        N, C = result.shape[:2]
        lanes = max(1, min(C, SPREAD_LANES, MOST_WORK // cells)) if adjacent(result) else 1
        B, I = storage(f"uint{8 * result.itemsize}"), storage(indices.dtype)
        module = kernels("pool_index")
        operands = [operand(array, unit) for array in (source, indices, result)]
        if op == "maxunpool_fprop":
            module.unpool(B, I, *operands, N, C, lanes, outs, sizes)
            return
        work_bytes = cells * lanes + 64
        scratch = workspace(work_bytes * threads())  # held until the kernel returns
        work = scratch.ctypes.data
        module.unpool_dgrad(B, I, *operands, N, C, lanes, outs, sizes, work, work_bytes)

    return Launch(run, "index", why, {"lanes": SPREAD_LANES})


def scatter(problem: PoolProblem) -> Run:
    """The gradient of a max pooling along given indices."""
    windows = Windows(problem)
    unit, sizes, cells = windows.unit, windows.sizes, math.prod(windows.sizes)

    def run(dx: Array, dy: Array, indices: Array) -> None:
        G, S, I = storage(dy.dtype), computed(dy.dtype), storage(indices.dtype)
        N, C = dx.shape[:2]
        dxs = operand(dx, unit)
        even = (sizes[0] == 1 or dxs[3] == sizes[1] * sizes[2] * dxs[5]) and (
            sizes[1] == 1 or dxs[4] == sizes[2] * dxs[5]
        )
        direct = even and G is S
        fit = SPREAD_LANES if direct else MOST_WORK // (itemsize(S) * cells)
        lanes = max(1, min(C, SPREAD_LANES, fit)) if adjacent(dx) else 1
        work_bytes = itemsize(S) * lanes * (1 if direct else cells + 1) + 128
        scratch = workspace(work_bytes * threads())  # held until the kernel returns
        work = scratch.ctypes.data
        status = np.zeros(1, np.int64)
        kernels("pool_index").scatter(
            N * -(-C // lanes), G, S, I, operand(dy, unit), operand(indices, unit), dxs, C, lanes, direct,
            windows.tables, windows.steps, sizes, status, work, work_bytes,
        )  # fmt: skip
        if status[0]:
            raise ShapeError(pool_small.foreign(problem, indices))

    return run

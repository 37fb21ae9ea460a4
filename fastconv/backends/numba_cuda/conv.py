"""Convolution in Numba CUDA: which algorithm, and what its kernels are called with.

direct     the definition, one thread a result (kernels/numba_cuda/conv_direct.py); right for every problem
gemm       tiles of an implicit product of matrices (conv_gemm.py); dense, grouped and 1x1
depthwise  tiles of one plane with their halo (conv_depthwise.py); one channel a group
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv import tuning
from fastconv.backends.base import Launch
from fastconv.backends.forms import by_form
from fastconv.backends.numba_cuda.launcher import (
    Call,
    Grid,
    Ints,
    channels_last,
    dtype_name,
    lifted,
    over,
    scratch,
)
from fastconv.backends.numba_cuda.passes import Axis, backward, forward, gather_geometry, wgrad_geometry
from fastconv.backends.numba_cuda.simulator import simulated
from fastconv.kernels.numba_cuda import conv_depthwise, conv_direct, conv_gemm
from fastconv.kernels.numba_cuda.conv_depthwise import Plane
from fastconv.kernels.numba_cuda.conv_gemm import Tile
from fastconv.kernels.numba_cuda.memory import computed
from fastconv.problem import ConvProblem

Run = Callable[..., None]

#: 8 x 8 sums a thread balance the reads of shared memory with the products; two small blocks share a multiprocessor.
LARGE, MEDIUM = Tile(128, 128, 8, 8, 8), Tile(64, 64, 16, 4, 4)
NARROW, TINY = Tile(32, 128, 8, 4, 4), Tile(4, 8, 4, 2, 2)
PLANE, TINY_PLANE = Plane(8, 32, 4), Plane(5, 5, 2)
WAVE = 264  # blocks that keep a large GPU busy: two on each of 132 multiprocessors
SHARED_BYTES = 48 * 2**10  # of a block, on every GPU
MAX_EXTENT = 2**31 - 1


# ---------------------------------------------------------------- the choice


def choose(op: str, problem: ConvProblem) -> tuple[str, str]:
    """(algorithm, why) by the rule: a pure function of the op and the problem."""
    if max(*problem.size, *problem.out, *problem.window.extent, problem.C, problem.K) > MAX_EXTENT // 4:
        return "direct", "an extent beyond 32 bits"
    if problem.groups == problem.C and problem.groups > 1:
        if reason := no_planes(op, problem):
            return "direct", reason
        return "depthwise", "one channel a group: tiles with their halo in shared memory"
    M, columns, summands = product_of(op, problem)
    tile = tile_of(problem, M, columns)
    if 8 * M < tile.BM or summands < tile.BK:
        why = f"{M} results from {summands} summands would leave tiles of {tile.BM} from {tile.BK} mostly empty"
        return "direct", why
    if op != "conv_wgrad" and all(k == 1 for k in problem.window.ksize):
        return "gemm", "a filter of one tap: a plain product of matrices, tiled in shared memory and registers"
    return "gemm", "an implicit product of matrices, tiled in shared memory and registers"


def product_of(op: str, problem: ConvProblem) -> Ints:
    """The product that a group comes down to: its rows, its columns, and how many products each result sums."""
    K, C, pixels = problem.K // problem.groups, problem.C // problem.groups, problem.N * math.prod(problem.out)
    taps = problem.window.taps
    if op == "conv_wgrad":
        return K, C * taps, pixels
    return (K, pixels, C * taps) if op == "conv_fprop" else (C, problem.N * math.prod(problem.size), K * taps)


def no_planes(op: str, problem: ConvProblem) -> str | None:
    """Why the depthwise kernels do not take a problem."""
    plane, taps = plane_of(), math.prod(problem.window.ksize[-2:])
    if problem.layout == "NHWC":
        return "channels lie next to each other: neighbouring threads take neighbouring channels"
    if op == "conv_wgrad" and taps > plane.threads:
        return f"{taps} taps a plane are more than the {plane.threads} threads of a block"
    passes = list(backward(problem)) if op == "conv_dgrad" else [forward(problem)]
    nbytes = max(plane_bytes(problem, axes) for axes in passes)
    if op == "conv_wgrad":
        nbytes += (plane.threads * plane.EACH + plane.threads) * itemsize(problem)
    if nbytes > SHARED_BYTES:
        return f"a tile with its halo takes {nbytes} bytes of shared memory, {SHARED_BYTES} are sure to be there"
    return None


def plane_of() -> Plane:
    return TINY_PLANE if simulated() else PLANE


def plane_bytes(problem: ConvProblem, axes: tuple[Axis, ...]) -> int:
    plane = plane_of()
    height, width = (plane.halo(axis.step, axis.reach, axis.taps, i) for i, axis in enumerate(axes[1:]))
    return height * width * itemsize(problem)


def itemsize(problem: ConvProblem) -> int:
    return 8 if problem.dtype == "float64" else 4


def tile_of(problem: ConvProblem, M: int, columns: int) -> Tile:
    """The tile for M x columns results of a group."""
    if simulated():
        return TINY
    if M <= NARROW.BM:
        return NARROW
    if problem.dtype == "float64" or problem.groups * -(-M // LARGE.BM) * -(-columns // LARGE.BN) < WAVE:
        return MEDIUM
    return LARGE


def residents(dtype: str, tile: Tile) -> int:
    """How many blocks of `gather` shall share a multiprocessor: two, where their registers suffice without spills."""
    return 2 if tile == MEDIUM and dtype not in ("float64", "int32") else 1


def parts_of(blocks: int, summands: int) -> int:
    """In how many parts wgrad splits its summands: enough for the GPU, and each of some hundreds."""
    return max(1, min(2, summands) if simulated() else min(WAVE // blocks, summands // 512))


def plan(op: str, problem: ConvProblem) -> Launch:
    if tuning.autotune() == "off":
        return build("direct", op, problem, "autotune is off: the algorithm that is right for every problem")
    algorithm, why = choose(op, problem)
    return build(algorithm, op, problem, why)


def build(algorithm: str, op: str, problem: ConvProblem, why: str) -> Launch:
    """The launch of one algorithm."""
    if op == "conv_wgrad":
        run, config = WGRADS[algorithm](problem)
    else:
        run, config = gather(algorithm, op, problem)
    return Launch(run, algorithm, why, config)


# ---------------------------------------------------------------- fprop and dgrad


def gather(algorithm: str, op: str, problem: ConvProblem) -> tuple[Run, dict[str, Any]]:
    """fprop is one launch over x; dgrad one over dy for each residue of dx modulo the stride."""
    is_forward = op == "conv_fprop"
    passes = [forward(problem)] if is_forward else list(backward(problem))
    acc, activation = computed(problem.dtype), problem.activation
    M = (problem.K if is_forward else problem.C) // problem.groups
    launches = [GRIDS[algorithm](problem, M, axes) for axes in passes]
    mended = [
        not is_forward and algorithm != "direct" and problem.dtype != "int32" and any(a.leaves_source for a in axes)
        for axes in passes
    ]

    def prepare(y: Any, x: Any, w: Any, bias: Any) -> Run:
        dtypes = dtype_name(y), dtype_name(x), dtype_name(w), None if bias is None else dtype_name(bias)
        calls = []
        for axes, (grid, constants), mend in zip(passes, launches, mended, strict=True):
            key = (*dtypes, acc, activation)
            geometry = gather_geometry(problem, axes, is_forward, y, x, w, bias)
            calls.append(Call(GATHERS[algorithm], (*key, *constants), grid, dtypes, geometry))
            if mend:  # the zeros beyond dy are no part of dgrad's sums
                calls.append(Call(conv_direct.gather, (*key, True), direct_grid(problem, M, axes)[0], dtypes, geometry))

        def run(y: Any, x: Any, w: Any, bias: Any) -> None:
            for call in calls:
                call(y, x, w, bias)

        return run if problem.N else nothing

    grid, constants = launches[0]
    shown = constants[0]._asdict() if constants else {}
    count = len(passes) + sum(mended)
    return by_form(prepare), {"launches": count, "blocks": grid.blocks, "threads": grid.threads, **shown}


def nothing(*arrays: Any) -> None:
    """The run of a result without elements."""


def direct_grid(problem: ConvProblem, M: int, axes: tuple[Axis, ...]) -> tuple[Grid, tuple[Any, ...]]:
    return over(problem.N * problem.groups * M * math.prod(axis.results for axis in axes)), ()


def gemm_grid(problem: ConvProblem, M: int, axes: tuple[Axis, ...]) -> tuple[Grid, tuple[Any, ...]]:
    pixels = problem.N * math.prod(axis.results for axis in axes)
    tile = tile_of(problem, M, pixels)
    blocks = problem.groups * -(-M // tile.BM) * -(-pixels // tile.BN)
    return Grid(blocks, tile.threads, 0, residents(problem.dtype, tile)), (tile, all(axis.taps == 1 for axis in axes))


def depthwise_grid(problem: ConvProblem, M: int, axes: tuple[Axis, ...]) -> tuple[Grid, tuple[Any, ...]]:
    plane = plane_of()
    tiles = -(-axes[1].results // (plane.ROWS * plane.EACH)) * -(-axes[2].results // plane.COLS)
    blocks = problem.N * problem.groups * M * axes[0].results * tiles
    return Grid(blocks, plane.threads, plane_bytes(problem, axes)), (plane,)


GRIDS = {"direct": direct_grid, "gemm": gemm_grid, "depthwise": depthwise_grid}
GATHERS = {"direct": conv_direct.gather, "gemm": conv_gemm.gather, "depthwise": conv_depthwise.gather}


# ---------------------------------------------------------------- wgrad


def wgrad_direct(problem: ConvProblem) -> tuple[Run, dict[str, Any]]:
    grid, acc = over(math.prod(problem.dims("w"))), computed(problem.dtype)

    def prepare(dw: Any, dy: Any, x: Any) -> Run:
        dtypes = dtype_name(dw), dtype_name(dy), dtype_name(x)
        return Call(conv_direct.wgrad, (*dtypes, acc), grid, dtypes, wgrad_geometry(problem, lifted(dw), dy, x))

    return by_form(prepare), {"blocks": grid.blocks, "threads": grid.threads}


def wgrad_gemm(problem: ConvProblem) -> tuple[Run, dict[str, Any]]:
    M, columns, summands = product_of("conv_wgrad", problem)
    tile = tile_of(problem, M, columns)
    blocks = problem.groups * -(-M // tile.BM) * -(-columns // tile.BN)
    parts = parts_of(blocks, summands)
    grid = Grid(blocks * parts, tile.threads)
    return in_parts(problem, conv_gemm.wgrad, grid, parts, tile), _shown(grid, parts, tile)


def wgrad_depthwise(problem: ConvProblem) -> tuple[Run, dict[str, Any]]:
    plane, axes = plane_of(), forward(problem)
    tiles = -(-axes[1].results // (plane.ROWS * plane.EACH)) * -(-axes[2].results // plane.COLS)
    blocks = problem.K * (problem.C // problem.groups) * axes[0].taps
    parts = max(1, min(WAVE // blocks if not simulated() else 2, problem.N * axes[0].results * tiles))
    grid = Grid(blocks * parts, plane.threads, plane_bytes(problem, axes))
    return in_parts(problem, conv_depthwise.wgrad, grid, parts, plane), _shown(grid, parts, plane)


def _shown(grid: Grid, parts: int, tile: Any) -> dict[str, Any]:
    return {"blocks": grid.blocks, "threads": grid.threads, "parts": parts, **tile._asdict()}


def in_parts(problem: ConvProblem, factory: Callable[..., Any], grid: Grid, parts: int, tile: Any) -> Run:
    """Run a wgrad kernel whose blocks may each take a part of the summands; then the parts are added."""
    acc, (K, C, *ksize) = computed(problem.dtype), problem.dims("w")
    extents = (K, C, *(1,) * (3 - problem.ndim), *ksize)
    flat = tuple(math.prod(extents[axis + 1 :]) for axis in range(5))  # the strides of a part

    def prepare(dw: Any, dy: Any, x: Any) -> Run:
        steps, last = lifted(dw) if parts == 1 else flat, channels_last(x)
        stored = dtype_name(dw) if parts == 1 else np.dtype(acc).name
        dtypes = stored, dtype_name(dy), dtype_name(x)
        geometry = (parts, math.prod(extents), last, *wgrad_geometry(problem, steps, dy, x))
        call = Call(factory, (*dtypes, acc, tile), grid, dtypes, geometry)
        if parts == 1:
            return call
        sizes = (parts, math.prod(extents), *extents, *lifted(dw))
        add = Call(
            conv_gemm.sum_parts, (dtype_name(dw), acc), over(math.prod(extents)), (dtype_name(dw), stored), sizes
        )

        def run(dw: Any, dy: Any, x: Any) -> None:
            sums = scratch((parts * math.prod(extents),), acc)
            call(sums, dy, x)
            add(dw, sums)

        return run

    return by_form(prepare)


WGRADS = {"direct": wgrad_direct, "gemm": wgrad_gemm, "depthwise": wgrad_depthwise}

"""Convolution of few channels on the CPU: how kernels/numba_cpu/strips.py is called.

It takes fprop and dgrad of up to two spatial axes where one side of a group has few channels: the gradient to an
image, the first layer of a network, groups of some channels.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu import strips_channels
from fastconv.backends.cpu.calls import Call, Filters, address, by_form, padded_bias
from fastconv.backends.cpu.passes import (
    Pass,
    activation_code,
    backward_axes,
    compute_dtype,
    forward_axes,
    storage,
    strides_of,
    weight_strides,
)
from fastconv.backends.cpu.workspace import Scratch, scratch, threads
from fastconv.problem import ConvProblem, Ints

FEW = 4  # channels that fill the registers with pixels
GROUP = 32  # channels of a group, at most: beyond, im2col is repaid by what is multiplied
ENOUGH = 196  # pixels of dy whose residues are better read from one strip than unfolded one by one
STRIP_BYTES = 192 * 2**10  # of packed source at a time: it is read once for each tap, from L2
STEP = 2  # cycles of a step of a tile beside its products
LEAST_CHANNELS = 8  # packed at a time where a strip has more
TASKS = 4  # for each thread, where there are rows enough


def refuses(op: str, problem: ConvProblem) -> str | None:
    """Why a pass of a problem cannot take strips, or None where it can."""
    if problem.ndim > 2:
        return "strips have two axes"
    if problem.window.taps == 1:
        return "a pointwise convolution has no taps to share a strip"
    return None


def pays(op: str, problem: ConvProblem) -> bool:
    """Whether strips are faster than GEMM, by the channels of a group."""
    source, results = sides(op, problem)
    if problem.groups > 1:
        return max(source, results) <= GROUP
    if op == "conv_wgrad":
        return source <= FEW < results  # filters are lanes
    if problem.layout == "NHWC":
        return results <= FEW  # more of them are lanes there
    strided = op == "conv_dgrad" and max(problem.window.stride) > 1 and math.prod(problem.out) >= ENOUGH
    return strided or min(source, results) <= FEW


def sides(op: str, problem: ConvProblem) -> Ints:
    """Channels of a group that are read, and that are made."""
    C, K = problem.C // problem.groups, problem.K // problem.groups
    return (K, C) if op == "conv_dgrad" else (C, K)


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import strips

    return host_kernels(strips, "gather", "pack_filters")


def tiles(results: int) -> list[Any]:
    """The register tiles for that many results of a group, the widest first; all are of the same rows."""
    from fastconv.kernels.numba_cpu import simd
    from fastconv.kernels.numba_cpu.strips_vectors import TILES

    tiles: list[Any] = TILES.get(results) or TILES[simd.ROWS]
    return tiles


# ---------------------------------------------------------------- the tables of a pass


class Tables(NamedTuple):
    """What all passes of a problem read: see kernels/numba_cpu/strips.py."""

    passes: list[Pass]
    spans: np.ndarray  # per pass, its first and last tap, and columns for its extents and place
    phases: np.ndarray
    shifts: list[tuple[int, int, int]]  # per tap: its phase, and rows and columns from an output's place
    first: tuple[int, int]
    steps: tuple[int, int]
    outputs: tuple[int, int]
    ways: int  # passes that interleave along the last axis

    @property
    def halo(self) -> tuple[int, int]:
        return max(row for _, row, _ in self.shifts), max(column for *_, column in self.shifts)


@lru_cache(maxsize=1024)
def tables(op: str, problem: ConvProblem) -> Tables:
    forward = op == "conv_fprop"
    passes = [Pass.of(axes) for axes in ([forward_axes(problem)] if forward else backward_axes(problem))]
    offsets = [(int(row[1]), int(row[2])) for one in passes for row in one.taps]
    steps = passes[0].axes[1].step, passes[0].axes[2].step
    first = min(row for row, _ in offsets), min(column for _, column in offsets)
    split = [(divmod(row - first[0], steps[0]), divmod(column - first[1], steps[1])) for row, column in offsets]
    phases = sorted({(row[1], column[1]) for row, column in split})
    shifts = [(phases.index((row[1], column[1])), row[0], column[0]) for row, column in split]
    outputs = max(one.axes[1].outputs for one in passes), max(one.axes[2].outputs for one in passes)
    ways = 1 if forward else min(problem.window.stride[-1], problem.size[-1])
    spans = np.zeros((len(passes), 5), np.int64)
    spans[:, 1] = np.cumsum([len(one.places) for one in passes])
    spans[1:, 0] = spans[:-1, 1]
    return Tables(passes, spans, np.array(phases, np.int64), shifts, first, steps, outputs, ways)


class Cut(NamedTuple):
    """Rows of outputs, channels of a group and groups of one strip."""

    rows: int
    block: int
    bunch: int
    tile: Any


def cut(op: str, problem: ConvProblem, turned: bool, count: int) -> Cut:
    """The strips that cost least, by a model in cycles; channels of a strip do not depend on the threads."""
    from fastconv.kernels.numba_cpu import simd

    t = tables(op, problem)
    C, M = sides(op, problem)
    dtype = compute_dtype(problem)
    lanes = simd.lanes(dtype.name)
    halo, extra = t.halo
    pitch = t.outputs[1] + extra
    least = min(C, lanes if turned else LEAST_CHANNELS)
    bunch = min(problem.groups, max(1, lanes // C)) if turned else 1  # whole vectors of channels are turned
    planes = len(t.phases)
    row_bytes = bunch * planes * pitch * dtype.itemsize

    def cost(rows: int, tile: Any) -> float:
        pixels = (rows - 1) * pitch + t.outputs[1]
        of_tile = tile.rows * tile.nv / 2 + STEP
        products = -(-pixels // (lanes * tile.nv)) * of_tile * len(t.shifts) * -(-M // tile.rows)
        packed = planes * (rows + halo) * -(-pitch // lanes) * (6 if turned else 3)
        return C * (products + packed) * -(-t.outputs[0] // rows)

    most = max(1, STRIP_BYTES // (least * row_bytes) - halo)
    choices = range(1, min(most, t.outputs[0]) + 1)
    rows, tile = min(itertools.product(choices, tiles(M)), key=lambda choice: cost(*choice))
    block = max(least, STRIP_BYTES // ((rows + halo) * row_bytes) // least * least)
    tasks = TASKS * count
    enough = [
        r for r in choices if r <= rows and problem.N * (problem.groups // bunch) * -(-t.outputs[0] // r) >= tasks
    ]
    return Cut(min(enough, key=lambda r: cost(r, tile)) if enough else 1, min(C, block), bunch, tile)


# ---------------------------------------------------------------- fprop and dgrad


def takes(problem: ConvProblem, results: int, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether strips are the way for arrays that lie so: rows of pixels, or few results, or groups of few channels."""
    return results <= FEW or problem.groups > 1 or not (adjacent_channels(x) and adjacent_channels(y))


def adjacent_channels(array: np.ndarray) -> bool:
    return array.shape[1] > 1 and array.strides[1] == array.itemsize and array.strides[-1] != array.itemsize


def plan(op: str, problem: ConvProblem, why: str, otherwise: Call, kept: Scratch | None = None) -> Launch:
    """`otherwise` takes arrays that lie unfavourably, and dgrad's results that are not finite."""
    forward = op == "conv_fprop"
    t = tables(op, problem)
    C, M = sides(op, problem)
    G, dtype, code = problem.groups, compute_dtype(problem), activation_code(problem)
    bordered = not forward and any(one.meets_border for one in t.passes)
    height = tiles(M)[0].rows
    padded = -(-M // height) * height
    by_channels = strips_channels.pays(op, problem)

    def bind(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> Call:
        if by_channels:
            return strips_channels.bind(op, problem, kept, y, x, w, bias)
        if not takes(problem, M, x, y):
            return otherwise
        kernel, count = kernels(), threads()
        turned = adjacent_channels(x) and adjacent_channels(y)
        k, tile, places, passes, nbytes = _arguments(op, problem, turned, count, strides_of(x), strides_of(y))
        straight = k.weave == k.y2 == 1 and y.dtype == dtype and code <= 1
        types = storage(x.dtype), storage(dtype), storage(y.dtype)
        filters = lay(w)

        def call(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
            weights = filters.place(w, kept)
            biases = padded_bias(bias, G, M, padded, dtype)
            work = scratch(count * nbytes)
            kernel.gather(
                tile, *types, k, turned, straight, t.phases, places, passes, address(x), weights.address,
                *filters.steps, address(biases), code, address(y), work.address, nbytes,
            )  # fmt: skip

        return call

    def lay(w: np.ndarray, in_place: bool = kept is None) -> Filters:
        """Bytes from group to group, block to block (0 where they are packed), row to row and product to product."""
        wg, wm, wc, offsets, step = weight_strides(t.passes[0], forward, problem.K // G, strides_of(w))
        size = dtype.itemsize
        if in_place and step and len(t.passes) == 1 and w.dtype == dtype and M % height == 0:
            return Filters(0, G, 0, M, (wg * size, wm * height * size, wm * size, step * size))
        offsets = np.concatenate([weight_strides(one, forward, 1, strides_of(w))[3] for one in t.passes])
        pack = partial(
            kernels().pack_filters, tiles(M)[0], storage(w.dtype), storage(dtype), t.spans, G, M, C, wg, wm, wc, offsets
        )
        group = padded * C * len(t.shifts) * size
        return Filters(0, G, 0, M, (group, 0, size, height * size), G * group, 0, pack)

    plainly = by_form(bind)

    def run(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        if y.size == 0:
            return
        plainly(y, x, w, bias)
        if bordered and not np.isfinite(min(w, y, key=lambda array: array.size)).all():
            otherwise(y, x, w, bias)  # the zeros beyond dy are no part of its sums

    def prepare(w: np.ndarray) -> Launch:
        filters = strips_channels.lay(op, problem, w) if by_channels else lay(w, in_place=False)
        return plan(op, problem, why, otherwise, filters.packed(w))

    tile = strips_channels.tile_of(op, problem) if by_channels else tiles(M)[0]
    lanes = "channels" if by_channels else "pixels"
    config = {"passes": len(t.passes), "tile": f"{tile.rows}x{tile.nv} vectors", "lanes": lanes}
    return Launch(run, "strips", why, config, STRIP_BYTES, prepare)


class Arguments(NamedTuple):
    strip: Any
    tile: Any
    places: np.ndarray
    passes: np.ndarray
    nbytes: int


@lru_cache(maxsize=1024)
def _arguments(op: str, problem: ConvProblem, turned: bool, count: int, x: Ints, y: Ints) -> Arguments:
    """What the kernel is told of operands with these strides."""
    from fastconv.kernels.numba_cpu import simd
    from fastconv.kernels.numba_cpu.strips import Strip

    t = tables(op, problem)
    C, M = sides(op, problem)
    dtype = compute_dtype(problem)
    rows, block, bunch, tile = cut(op, problem, turned, count)
    height, pitch = rows + t.halo[0], t.outputs[1] + t.halo[1]
    lanes = simd.lanes(dtype.name)
    plane = height * pitch
    channel = len(t.phases) * plane
    residues = t.passes[0].axes[1].stride, t.passes[0].axes[2].stride
    strip = Strip(
        problem.N, problem.groups, M, C, rows, height, pitch, plane, channel, block, bunch, t.outputs[0],
        *t.first, *t.steps, t.passes[0].axes[1].source, t.passes[0].axes[2].source, t.ways,
        *x[:2], *x[3:], *y[:2], residues[0] * y[3], y[4],
    )  # fmt: skip
    places = np.array([phase * plane + row * pitch + column for phase, row, column in t.shifts], np.int64)
    passes = t.spans.copy()
    passes[:, 2:] = [
        (one.axes[1].outputs, one.axes[2].outputs, one.axes[1].start * y[3] + one.axes[2].start * y[4])
        for one in t.passes
    ]
    step = tile.nv * lanes
    longest = -(-((rows - 1) * pitch + t.outputs[1]) // step) * step
    results = len(t.passes) * -(-M // tile.rows) * tile.rows
    elements = bunch * block * channel + step + lanes + bunch * results * longest + lanes
    return Arguments(strip, tile, places, passes, -(-elements * dtype.itemsize // 64) * 64)

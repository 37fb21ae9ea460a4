"""Groups whose channels fill vectors on the CPU: how kernels/numba_cpu/strips_channels.py is called."""

from __future__ import annotations

from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.cpu.calls import Call, Filters, address, padded_bias
from fastconv.backends.cpu.passes import (
    Pass,
    activation_code,
    backward_axes,
    compute_dtype,
    extents,
    forward_axes,
    storage,
    strides_of,
    weight_strides,
)
from fastconv.backends.cpu.workspace import Scratch, scratch, threads
from fastconv.problem import ConvProblem, Ints

LEAST = 16  # results of a group that fill lanes
STEPS = (1, 2)  # that tiles are made for
STRIP_BYTES = 192 * 2**10  # of packed source at a time: it is read once for each tap, from L2
TASKS = 4  # for each thread, where there are rows enough


def pays(op: str, problem: ConvProblem) -> bool:
    """Whether lanes are channels, and not pixels, where strips take a pass.

    Not in a forward pass of adjacent pixels with stride 1: vectors of these read filters where they lie.
    """
    M, _ = extents(problem, op == "conv_fprop")
    in_place = op == "conv_fprop" and problem.layout == "NCHW" and max(problem.window.stride) == 1
    return problem.groups > 1 and M >= LEAST and _step(op, problem) in STEPS and not in_place


def _step(op: str, problem: ConvProblem) -> int:
    """Columns of the source from output to output of a pass."""
    return problem.window.stride[-1] if op == "conv_fprop" else 1


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import strips_channels

    return host_kernels(strips_channels, "gather", "pack_filters")


def tile_of(op: str, problem: ConvProblem) -> Any:
    """The register tile that wastes the fewest pixels and lanes, the largest of those."""
    from fastconv.kernels.numba_cpu import simd
    from fastconv.kernels.numba_cpu.strips_vectors import CHANNEL_TILES

    lanes = simd.lanes(compute_dtype(problem).name)
    M, columns = extents(problem, op == "conv_fprop")[0], problem.out[-1]

    def cost(tile: Any) -> tuple[int, int]:
        pixels, channels = -(-columns // tile.rows) * tile.rows, -(-M // (tile.nv * lanes)) * tile.nv
        return pixels * channels, -tile.rows * tile.nv

    return min(CHANNEL_TILES[_step(op, problem)], key=cost)


class Cut(NamedTuple):
    """How the work is cut, and what the kernel is told of it."""

    tile: Any
    strip: Any
    terms: np.ndarray
    passes: np.ndarray
    nbytes: int


@lru_cache(maxsize=1024)
def cut(op: str, problem: ConvProblem, count: int, x: Ints, y: Ints) -> Cut:
    """The strips of operands with these strides."""
    from fastconv.kernels.numba_cpu import simd
    from fastconv.kernels.numba_cpu.strips_channels import Strip

    forward = op == "conv_fprop"
    passes = [Pass.of(axes) for axes in ([forward_axes(problem)] if forward else backward_axes(problem))]
    M, C = extents(problem, forward)
    G, T, itemsize = problem.groups, problem.window.taps, compute_dtype(problem).itemsize
    tile = tile_of(op, problem)
    first, last = ([edge(int(row[a]) for one in passes for row in one.taps) for a in (1, 2)] for edge in (min, max))
    _, one, two = passes[0].axes
    outputs, columns = (max(p.axes[a].outputs for p in passes) for a in (1, 2))
    pitch = (columns - 1) * two.step + last[1] - first[1] + 1
    P, Q = (1, 1, *(problem.out if forward else problem.size))[-2:]
    row = tile.nv * simd.VECTOR_BYTES

    def height(rows: int) -> int:
        return (rows - 1) * one.step + last[0] - first[0] + 1

    def nbytes(rows: int) -> int:
        return height(rows) * pitch * C * itemsize + rows * one.stride * Q * row

    def fits(rows: int) -> bool:
        return nbytes(rows) <= STRIP_BYTES and problem.N * G * -(-outputs // rows) >= TASKS * count

    rows = max(filter(fits, range(1, outputs + 1)), default=1)
    strip = Strip(
        problem.N, G, M, C, T, rows, height(rows), pitch, outputs, *first, one.step, one.source, two.source,
        P, Q, one.stride, two.stride, *x[:2], *x[3:], *y[:2], *y[3:],
    )  # fmt: skip
    terms = [
        ((row[1] - first[0]) * C * pitch + c * pitch + row[2] - first[1], c * T + number)
        for p in passes
        for c in range(C)
        for row, number in zip(p.taps, p.numbers(problem.window.ksize), strict=True)
    ]
    ends = np.cumsum([C * len(p.places) for p in passes])
    spans = [
        (end - C * len(p.places), end, p.axes[1].outputs, p.axes[2].outputs, p.axes[1].start, p.axes[2].start)
        for p, end in zip(passes, ends, strict=True)
    ]
    beyond = tile.rows * tile.step * itemsize  # what a tile reads for pixels that it does not store
    total = -(-(nbytes(rows) + beyond) // 64) * 64
    return Cut(tile, strip, np.array(terms, np.int64), np.array(spans, np.int64), total)


def lay(op: str, problem: ConvProblem, w: np.ndarray) -> Filters:
    """The filters as the kernel reads them; it is told the bytes from group to group."""
    from fastconv.kernels.numba_cpu import simd

    forward, dtype, tile = op == "conv_fprop", compute_dtype(problem), tile_of(op, problem)
    G, (M, C) = problem.groups, extents(problem, forward)
    whole = Pass.of(forward_axes(problem))
    wg, wm, wc, offsets, _ = weight_strides(whole, forward, problem.K // G, strides_of(w))
    lanes = tile.nv * simd.lanes(dtype.name)
    group = -(-M // lanes) * lanes * C * problem.window.taps * dtype.itemsize
    pack = partial(kernels().pack_filters, tile, storage(w.dtype), storage(dtype), G, M, C, wg, wm, wc, offsets)
    return Filters(0, G, 0, M, (group,), G * group, 0, pack)


def bind(
    op: str, problem: ConvProblem, kept: Scratch | None, y: np.ndarray, x: np.ndarray, w: np.ndarray,
    bias: np.ndarray | None,
) -> Call:  # fmt: skip
    """The call for operands that lie so."""
    from fastconv.kernels.numba_cpu import simd

    kernel, count, dtype = kernels().gather, threads(), compute_dtype(problem)
    tile, k, terms, passes, nbytes = cut(op, problem, count, strides_of(x), strides_of(y))
    code = activation_code(problem)
    straight = k.ym == 1 and y.dtype == dtype and code <= 1
    types = storage(x.dtype), storage(dtype), storage(y.dtype)
    lanes = tile.nv * simd.lanes(dtype.name)
    padded = -(-k.M // lanes) * lanes
    filters = lay(op, problem, w)

    def call(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        weights = filters.place(w, kept)
        biases = padded_bias(bias, k.G, k.M, padded, dtype)
        work = scratch(count * nbytes)
        kernel(
            tile, *types, k, straight, terms, passes, address(x), weights.address, *filters.steps, address(biases),
            code, address(y), work.address, nbytes,
        )  # fmt: skip

    return call

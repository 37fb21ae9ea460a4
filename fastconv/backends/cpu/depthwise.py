"""Depthwise convolution on the CPU: kernels/numba_cpu/depthwise.py, by the strides of the arrays."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu import small
from fastconv.backends.cpu.calls import Call, address, by_form, padded_bias
from fastconv.backends.cpu.passes import (
    Pass,
    activation_code,
    backward_axes,
    compute_dtype,
    forward_axes,
    storage,
    strides_of,
)
from fastconv.backends.cpu.workspace import scratch, threads, workspace
from fastconv.problem import ConvProblem, Ints

MANY_PLANES = 16  # from here on planes are tasks, below bands of their rows are
ROWS_OF_BAND = 8
LANES = 16  # filters of channels-last arrays are padded to whole vectors, of any width


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import depthwise

    return host_kernels(depthwise, "planes", "channels", "wgrad_planes", "wgrad_channels")


@lru_cache(maxsize=2)
def tiles(last: bool) -> SimpleNamespace:
    """The register tiles for channels-last arrays, or for rows of pixels."""
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import depthwise_channels, depthwise_tiles

    return host_kernels(depthwise_channels if last else depthwise_tiles, "fprop", "spread", "wgrad")


def tiled(problem: ConvProblem) -> bool:
    """Whether there are register tiles for the window and the dtype."""
    window = problem.window
    square = problem.ndim == 2 and window.ksize[0] == window.ksize[1] and window.stride[0] == window.stride[1]
    return (
        square
        and problem.dtype in ("float32", "float64")
        and window.ksize[0] in (3, 5, 7)
        and window.stride[0] in (1, 2)
        and window.dilation == (1, 1)
    )


def lanes_along(problem: ConvProblem, *arrays: np.ndarray) -> str | None:
    """The axis whose elements are adjacent in all arrays, if they have the problem's dtype: "channels" or "rows"."""
    if any(a.dtype.name != problem.dtype for a in arrays):
        return None
    if channels_last(*arrays):
        return "channels"
    return "rows" if all(a.strides[-1] == a.itemsize for a in arrays) else None


def plan(op: str, problem: ConvProblem, why: str) -> Launch:
    run = _wgrad(problem) if op == "conv_wgrad" else _gather(op, problem)
    tile = "the innermost axis"
    if tiled(problem):
        run = _tiled_wgrad(problem, run) if op == "conv_wgrad" else _tiled_gather(op, problem, run)
        tile = "registers"
    return Launch(run, "depthwise", why, {"tile": tile}, _row_bytes(problem))


def _tiled_gather(op: str, problem: ConvProblem, otherwise: Call) -> Call:
    forward = op == "conv_fprop"
    window, G = problem.window, problem.groups
    r, step = window.ksize[0], window.stride[0]
    turned = not forward and step == 1  # dgrad as fprop of dy, with the filter turned round
    pad = [r - 1 - low if turned else low for low, _ in window.pad]
    code = activation_code(problem)
    dtype = np.dtype(problem.dtype)
    S = storage(dtype)
    extents, counts = (problem.size, problem.out) if forward else (problem.out, problem.size)
    bands = 1 if problem.N * G >= MANY_PLANES else -(-counts[0] // ROWS_OF_BAND)

    def bind(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> Call:
        along = lanes_along(problem, x, y)
        if along is None:
            return otherwise
        last = along == "channels"
        padded = -(-G // LANES) * LANES
        module = tiles(last)
        kernel = module.fprop if forward or turned else module.spread
        form = module.WINDOWS[r, step], S, _plane_geometry(problem, counts, x, y), *extents, *pad
        pitch = (padded * dtype.itemsize,) if last else ()
        cut = (bands,) if not last and (forward or turned) else ()

        def call(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
            taps = (w[..., ::-1, ::-1] if turned else w).reshape(G, r * r)
            if last:
                filters = np.zeros((r * r, padded), dtype)
                filters[:, :G] = taps.T
            else:
                filters = np.ascontiguousarray(taps, dtype)
            biases = padded_bias(bias, 1, G, padded, dtype)
            kernel(*form, address(x), address(filters), *pitch, address(biases), code, address(y), *cut)

        return call

    return _unless_empty(by_form(bind))


def _unless_empty(run: Call) -> Call:
    return lambda result, *operands: run(result, *operands) if result.size else None


def _tiled_wgrad(problem: ConvProblem, otherwise: Call) -> Call:
    window = problem.window
    r, step = window.ksize[0], window.stride[0]
    pad = [low for low, _ in window.pad]
    S = storage(np.dtype(problem.dtype))
    row = 2 * r * r * 64  # whole vectors of sums, and those of rows of taps beyond the filter

    def bind(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> Call:
        along = lanes_along(problem, x, dy)
        if along is None:
            return otherwise
        module, count = tiles(along == "channels"), threads()
        k, _, _, *space = strides_of(dw)
        offsets = np.array([i * space[0] + j * space[1] for i in range(r) for j in range(r)], np.int64)
        form = module.WINDOWS[r, step], S, _plane_geometry(problem, problem.out, x, dy), *problem.size, *pad

        def call(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
            work = scratch(count * row)
            module.wgrad(*form, address(x), address(dy), address(dw), k, offsets, work.address, row)

        return call

    return _unless_empty(by_form(bind))


def _plane_geometry(problem: ConvProblem, counts: Ints, x: np.ndarray, y: np.ndarray) -> Any:
    """The geometry of a pass that makes `counts` cells of y."""
    from fastconv.kernels.numba_cpu.gemm import Geometry

    return Geometry(problem.N, problem.groups, 1, 1, 1, *counts, 1, 1, 1, *strides_of(x), *strides_of(y))


def _row_bytes(problem: ConvProblem) -> int:
    """The sums of one row of the result, or of one block of channels, in whole cache lines."""
    longest = max(64, problem.size[-1], problem.out[-1])
    return -(-longest * compute_dtype(problem).itemsize // 64) * 64


def _geometry(problem: ConvProblem, one: Pass, x: np.ndarray, y: np.ndarray) -> Any:
    from fastconv.kernels.numba_cpu.gemm import Geometry

    counts = [axis.outputs for axis in one.axes]
    steps = [axis.step for axis in one.axes]
    return Geometry(problem.N, problem.groups, 1, 1, *counts, *steps, *strides_of(x), *strides_of(y))


def channels_last(*arrays: np.ndarray) -> bool:
    """Whether the lanes should run over the channels: they lie next to each other, and the pixels do not."""
    return all(a.strides[1] == a.itemsize and a.shape[1] > 1 for a in arrays) and any(
        a.strides[-1] != a.itemsize for a in arrays
    )


def _gather(op: str, problem: ConvProblem) -> Any:
    axes = [forward_axes(problem)] if op == "conv_fprop" else backward_axes(problem)
    passes = [Pass.of(one) for one in axes]
    code = activation_code(problem)
    dtype = compute_dtype(problem)

    def run(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        if y.size == 0:
            return
        filters = w.astype(dtype).reshape(problem.groups, -1)
        biases = np.zeros(problem.groups, dtype)
        if bias is not None:
            biases[:] = bias
        row = _row_bytes(problem)
        work = workspace(threads() * row)
        last = channels_last(x, y)
        for one in passes:
            part = y[one.part(problem.ndim)]
            if not one.places:
                small.fill(problem, part, bias)
                continue
            chosen = np.ascontiguousarray(filters[:, one.numbers(problem.window.ksize)])
            chosen = np.ascontiguousarray(chosen.T) if last else chosen
            (kernels().channels if last else kernels().planes)(
                storage(x.dtype), storage(dtype), storage(y.dtype), _geometry(problem, one, x, part), one.taps,
                x.ctypes.data, chosen.ctypes.data, biases.ctypes.data, code, part.ctypes.data, work.ctypes.data, row,
            )  # fmt: skip

    return run


def _wgrad(problem: ConvProblem) -> Any:
    one = Pass.of(forward_axes(problem))
    dtype = compute_dtype(problem)

    def run(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
        k, _, *space = strides_of(dw)
        offsets = np.array([sum(map(math.prod, zip(place, space, strict=True))) for place in one.places], np.int64)
        names = storage(x.dtype), storage(dy.dtype), storage(dtype), storage(dw.dtype)
        arrays = one.taps, x.ctypes.data, dy.ctypes.data, dw.ctypes.data
        geometry = _geometry(problem, one, x, dy)
        if not channels_last(x, dy):
            kernels().wgrad_planes(*names, geometry, *arrays, k, offsets)
            return
        row = _row_bytes(problem)
        kernels().wgrad_channels(*names, geometry, *arrays, k, offsets, workspace(threads() * row).ctypes.data, row)

    return run

"""Depthwise convolution on the CPU: kernels/numba_cpu/depthwise.py, by the strides of the arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu import small
from fastconv.backends.cpu.passes import Pass, backward_axes, compute_dtype, forward_axes, storage, strides_of
from fastconv.backends.cpu.workspace import threads, workspace
from fastconv.problem import ACTIVATIONS, ConvProblem, Ints

Run = Callable[..., None]
MANY_PLANES = 16  # from here on planes are tasks, below bands of their rows are


@lru_cache(maxsize=1)
def kernels() -> ModuleType:
    from fastconv.compiler.host import host_kernel
    from fastconv.kernels.numba_cpu import depthwise

    for name in ("planes", "channels", "wgrad_planes", "wgrad_channels"):
        host_kernel(getattr(depthwise, name))
    return depthwise


@lru_cache(maxsize=1)
def tiles() -> ModuleType:
    from fastconv.compiler.host import host_kernel
    from fastconv.kernels.numba_cpu import depthwise_tiles

    for name in ("fprop", "spread", "wgrad"):
        host_kernel(getattr(depthwise_tiles, name))
    return depthwise_tiles


def tiled(problem: ConvProblem) -> bool:
    """Whether there are register tiles for the window and the dtype: depthwise_tiles.py."""
    window = problem.window
    step = window.stride[-1]
    return (
        problem.dtype in ("float32", "float64")
        and problem.ndim == 2
        and window.ksize[0] == window.ksize[1] in (3, 5, 7)
        and window.stride == (step, step)
        and step in (1, 2)
        and window.dilation == (1, 1)
    )


def rows_of_pixels(*arrays: np.ndarray) -> bool:
    return all(a.strides[-1] == a.itemsize or a.shape[-1] == 1 for a in arrays)


def plan(op: str, problem: ConvProblem, why: str) -> Launch:
    run = _wgrad(problem) if op == "conv_wgrad" else _gather(op, problem)
    if tiled(problem):
        run = _tiled_wgrad(problem, run) if op == "conv_wgrad" else _tiled(op, problem, run)
    return Launch(run, "depthwise", why, {"lanes": "the innermost axis"}, _row_bytes(problem))


def _tiled(op: str, problem: ConvProblem, otherwise: Run) -> Run:
    """fprop or dgrad where the rows of both arrays are contiguous."""
    forward = op == "conv_fprop"
    window, G = problem.window, problem.groups
    r, step = window.ksize[0], window.stride[0]
    pad = [low if forward or step == 2 else r - 1 - low for low, _ in window.pad]
    code = 0 if problem.activation is None else ACTIVATIONS.index(problem.activation) + 1
    S, dtype = storage(np.dtype(problem.dtype)), np.dtype(problem.dtype)
    source, counts = (problem.size, problem.out) if forward else (problem.out, problem.size)
    bands = 1 if problem.N * G >= MANY_PLANES else -(-counts[0] // 8)

    def run(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        if y.size == 0 or not rows_of_pixels(x, y):
            otherwise(y, x, w, bias)
            return
        filters = np.ascontiguousarray(w if forward or step == 2 else w[:, :, ::-1, ::-1])
        biases = np.zeros(G, dtype)
        if bias is not None:
            biases[:] = bias
        geometry = _plain(problem, counts, x, y)
        arrays = x.ctypes.data, filters.ctypes.data, biases.ctypes.data, code, y.ctypes.data
        F = tiles().WINDOWS[r, step if forward else 1 if step == 1 else 2]
        if forward or step == 1:
            tiles().fprop(F, S, geometry, *source, *pad, *arrays, bands)
        else:
            tiles().spread(F, S, geometry, *source, *pad, *arrays)

    return run


def _tiled_wgrad(problem: ConvProblem, otherwise: Run) -> Run:
    window = problem.window
    r, step = window.ksize[0], window.stride[0]
    S, itemsize = storage(np.dtype(problem.dtype)), np.dtype(problem.dtype).itemsize
    row = -(-r * 2 * r * itemsize // 64) * 64

    def run(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
        if dw.size == 0 or not rows_of_pixels(x, dy):
            otherwise(dw, dy, x)
            return
        k, _, *space = strides_of(dw)[:2] + strides_of(dw)[-2:]
        offsets = np.array([i * space[0] + j * space[1] for i in range(r) for j in range(r)], np.int64)
        work = workspace(threads() * row)
        tiles().wgrad(
            tiles().WINDOWS[r, step], S, _plain(problem, problem.out, x, dy), *problem.size,
            *(low for low, _ in window.pad), x.ctypes.data, dy.ctypes.data, dw.ctypes.data, k, offsets,
            work.ctypes.data, row,
        )  # fmt: skip

    return run


def _plain(problem: ConvProblem, counts: Ints, x: np.ndarray, y: np.ndarray) -> Any:
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
    code = 0 if problem.activation is None else ACTIVATIONS.index(problem.activation) + 1
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
            part = y[(slice(None), slice(None), *one.part(problem.ndim))]
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

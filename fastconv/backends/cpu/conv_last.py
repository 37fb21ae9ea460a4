"""Convolution of channels-last arrays on the CPU: how kernels/numba_cpu/gemm_last.py is called.

conv.py comes here where the channels of both arrays are adjacent, and takes gemm.py's kernels elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from fastconv.backends.cpu.passes import Pass, chunks, compute_dtype, cut, storage, strides_of, walk, weight_strides
from fastconv.backends.cpu.workspace import threads, workspace
from fastconv.problem import ConvProblem, Ints

LEAST_CHANNELS = 8  # of a group; fewer leave the lanes idle and are copied too few at a time


def takes(problem: ConvProblem, *arrays: np.ndarray) -> bool:
    """Whether lanes should be channels: they are adjacent in all arrays, and enough where there are groups."""
    G = problem.groups
    return (G == 1 or min(problem.C, problem.K) // G >= LEAST_CHANNELS) and all(
        array.strides[1] == array.itemsize for array in arrays
    )


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import gemm_last

    return host_kernels(gemm_last, "gather_last", "pack_panels", "wgrad_last")


def _vectors(M: int, dtype: np.dtype) -> tuple[int, int, int]:
    """Vectors that M channels take, panels that these take, and lanes of a vector."""
    from fastconv.kernels.numba_cpu.simd import NV, VECTOR_BYTES

    lanes = VECTOR_BYTES // dtype.itemsize
    vectors = -(-M // lanes)
    return vectors, -(-vectors // NV), lanes


def _run(one: Pass, C: int, xs: Ints) -> int:
    """How many taps along the last axis read adjacent pixels: all of them, or 1."""
    offsets = [offset for _, offset in one.axes[2].taps]
    return len(offsets) if xs[4] == C and offsets == list(range(offsets[0], offsets[0] + len(offsets))) else 1


def _pixel_step(N: int, counts: Ints, strides: Ints) -> int:
    """Elements from each pixel to the next one, over rows, planes and images; 0 where they are not evenly apart."""
    step = expected = 0
    axes = zip((N, *counts)[::-1], (strides[0], *strides[2:])[::-1], strict=True)
    for count, stride in axes:
        if count == 1:
            continue
        step = step or stride
        if expected and stride != expected:
            return 0
        expected = stride * count
    return step


# ---------------------------------------------------------------- fprop and dgrad


class Panels(NamedTuple):
    """Filters as the kernel reads them: of `groups` from g0 and the channels [m0, m1) of each."""

    g0: int
    groups: int
    m0: int
    m1: int
    array: np.ndarray  # keeps the memory alive


def weights(problem: ConvProblem, forward: bool, one: Pass, w: np.ndarray, keep: bool = False) -> Iterator[Panels]:
    """The filters as panels, a chunk at a time; with `keep` each chunk has memory of its own."""
    from fastconv.kernels.numba_cpu.simd import NV, VECTOR_BYTES

    dtype = compute_dtype(problem)
    G = problem.groups
    M, C = problem.K // G, problem.C // G
    if not forward:
        M, C = C, M
    K = C * len(one.places)
    wg, wm, wc, offsets, _ = weight_strides(one, forward, problem.K // G, strides_of(w))
    lanes = VECTOR_BYTES // dtype.itemsize
    for g0, g1, m0, m1 in chunks(G, M, K * dtype.itemsize, NV * lanes):
        vectors, panels, _ = _vectors(m1 - m0, dtype)
        nbytes = (g1 - g0) * vectors * K * VECTOR_BYTES
        packed = np.empty(nbytes, np.uint8) if keep else workspace(nbytes, "weights")
        kernels().pack_panels(
            storage(w.dtype), storage(dtype), w.ctypes.data + (g0 * wg + m0 * wm) * w.itemsize,
            g1 - g0, m1 - m0, C, wg, wm, wc, offsets, panels, packed.ctypes.data,
        )  # fmt: skip
        yield Panels(g0, g1 - g0, m0, m1, packed)


def gather_pass(
    problem: ConvProblem, forward: bool, one: Pass, code: int, y: np.ndarray, x: np.ndarray, w: np.ndarray,
    bias: np.ndarray | None, kept: list[Panels] | None,
) -> None:  # fmt: skip
    from fastconv.kernels.numba_cpu.gemm import Geometry
    from fastconv.kernels.numba_cpu.simd import ROWS, VECTOR_BYTES

    kernel, dtype, count = kernels(), compute_dtype(problem), threads()
    taps, counts, steps, xs, ys = walk(one, strides_of(x), strides_of(y))
    C = problem.C // problem.groups if forward else problem.K // problem.groups
    M = problem.K // problem.groups if forward else problem.C // problem.groups
    K = C * len(taps)
    x_row = _pixel_step(problem.N, counts, xs) if one.pointwise and x.dtype == dtype else 0
    tiles = -(-problem.N * math.prod(counts) // ROWS)
    for part in weights(problem, forward, one, w) if kept is None else kept:
        G, channels = part.groups, part.m1 - part.m0
        vectors, panels, lanes = _vectors(channels, dtype)
        whole = channels == vectors * lanes and y.dtype == dtype and code <= 1
        y_row = _pixel_step(problem.N, counts, ys) if whole else 0
        bundles, splits = cut(G, tiles, kernel.BUNDLE, panels, kernel.SPLIT, count)
        biases = np.zeros((G, vectors * lanes), dtype)
        first = part.g0 * M + part.m0
        if bias is not None:
            biases[:, :channels] = bias[first : first + G * channels].reshape(G, channels)
        row = min(kernel.DEPTH, K) * dtype.itemsize + kernel.ROW_PAD
        nbytes = kernel.BUNDLE * ROWS * (row + min(vectors, kernel.SPLIT * 3) * VECTOR_BYTES)
        kernel.gather_last(
            storage(x.dtype), storage(dtype), storage(y.dtype),
            Geometry(problem.N, G, channels, C, *counts, *steps, *xs, *ys), taps, _run(one, C, xs),
            x.ctypes.data + part.g0 * C * x.itemsize, x_row * x.itemsize, part.array.ctypes.data, biases.ctypes.data,
            code, y.ctypes.data + first * y.itemsize, y_row * y.itemsize,
            panels, bundles, splits, workspace(count * nbytes).ctypes.data, nbytes,
        )  # fmt: skip


# ---------------------------------------------------------------- wgrad


def wgrad(problem: ConvProblem, one: Pass, dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
    from fastconv.kernels.numba_cpu.gemm import Geometry
    from fastconv.kernels.numba_cpu.simd import NV, ROWS, VECTOR_BYTES

    kernel, dtype, count = kernels(), compute_dtype(problem), threads()
    taps, counts, steps, xs, ys = walk(one, strides_of(x), strides_of(dy))
    G = problem.groups
    M, C = problem.K // G, problem.C // G
    wg, wm, wc, offsets, _ = weight_strides(one, True, M, strides_of(dw))
    _, panels, _ = _vectors(M, dtype)
    tiles = -(-C * len(taps) // ROWS)
    r_tasks, m_tasks = cut(G, tiles, kernel.WGRAD_TILES, panels, kernel.WGRAD_PANELS, count)
    rows, vectors = kernel.WGRAD_TILES * ROWS, kernel.WGRAD_PANELS * NV
    nbytes = kernel.WGRAD_PIXELS * (rows * dtype.itemsize + kernel.ROW_PAD + NV * VECTOR_BYTES)
    nbytes += 2 * rows * vectors * VECTOR_BYTES
    kernel.wgrad_last(
        storage(x.dtype), storage(dy.dtype), storage(dtype), storage(dw.dtype),
        Geometry(problem.N, G, M, C, *counts, *steps, *xs, *ys), taps, _run(one, C, xs),
        x.ctypes.data, dy.ctypes.data, dw.ctypes.data, wg, wm, wc, offsets,
        panels, r_tasks, m_tasks, workspace(count * nbytes).ctypes.data, nbytes,
    )  # fmt: skip

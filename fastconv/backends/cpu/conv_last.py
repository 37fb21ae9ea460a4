"""Convolution of channels-last arrays on the CPU: how kernels/numba_cpu/gemm_last.py is called.

conv.py comes here where the channels of both arrays are adjacent, and takes gemm.py's kernels elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np

from fastconv.backends.cpu.calls import Call, Filters, address, padded_bias
from fastconv.backends.cpu.passes import (
    Pass,
    activation_code,
    chunks,
    compute_dtype,
    cut,
    extents,
    storage,
    strides_of,
    walk,
    weight_strides,
)
from fastconv.backends.cpu.workspace import Scratch, scratch, threads
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


def lay(problem: ConvProblem, forward: bool, one: Pass, w: np.ndarray) -> Iterator[Filters]:
    """The filters as panels, a chunk at a time."""
    from fastconv.kernels.numba_cpu.simd import NV, VECTOR_BYTES

    dtype = compute_dtype(problem)
    G, M, C = problem.groups, *extents(problem, forward)
    K = C * len(one.places)
    if not K:
        return
    wg, wm, wc, offsets, _ = weight_strides(one, forward, problem.K // G, strides_of(w))
    lanes = VECTOR_BYTES // dtype.itemsize
    for g0, g1, m0, m1 in chunks(G, M, K * dtype.itemsize, NV * lanes):
        vectors, panels, _ = _vectors(m1 - m0, dtype)
        pack = partial(
            kernels().pack_panels, storage(w.dtype), storage(dtype), g1 - g0, m1 - m0, C, wg, wm, wc, offsets, panels
        )
        nbytes = (g1 - g0) * vectors * K * VECTOR_BYTES
        yield Filters(g0, g1 - g0, m0, m1, (), nbytes, (g0 * wg + m0 * wm) * w.itemsize, pack)


def bind_pass(
    problem: ConvProblem, forward: bool, one: Pass, part: np.ndarray, x: np.ndarray, w: np.ndarray,
    kept: list[Scratch | None] | None,
) -> Call:  # fmt: skip
    """One call of the kernel for each chunk of the filters; `part` is what the pass fills of the result."""
    from fastconv.kernels.numba_cpu.gemm import Geometry
    from fastconv.kernels.numba_cpu.simd import ROWS, VECTOR_BYTES

    kernel, dtype, count = kernels(), compute_dtype(problem), threads()
    types = storage(x.dtype), storage(dtype), storage(part.dtype)
    taps, counts, steps, xs, ys = walk(one, strides_of(x), strides_of(part))
    M, C = extents(problem, forward)
    K, code, run = C * len(taps), activation_code(problem), _run(one, C, xs)
    x_row = _pixel_step(problem.N, counts, xs) if one.pointwise and x.dtype == dtype else 0
    tiles = -(-problem.N * math.prod(counts) // ROWS)
    offset = one.offset(part)
    calls = []
    for number, filters in enumerate(lay(problem, forward, one, w)):
        G, channels = filters.groups, filters.m1 - filters.m0
        vectors, panels, lanes = _vectors(channels, dtype)
        whole = channels == vectors * lanes and part.dtype == dtype and code <= 1
        y_row = _pixel_step(problem.N, counts, ys) if whole else 0
        bundles, splits = cut(G, tiles, kernel.BUNDLE, panels, kernel.SPLIT, count)
        first = filters.g0 * M + filters.m0
        row = min(kernel.DEPTH, K) * dtype.itemsize + kernel.ROW_PAD
        nbytes = kernel.BUNDLE * ROWS * (row + min(vectors, kernel.SPLIT * 3) * VECTOR_BYTES)
        calls.append((
            filters, None if kept is None else kept[number], first, G, channels, vectors * lanes,
            filters.g0 * C * x.itemsize, first * part.itemsize + offset, y_row * part.itemsize,
            Geometry(problem.N, G, channels, C, *counts, *steps, *xs, *ys), (panels, bundles, splits), nbytes,
        ))  # fmt: skip

    def call(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        for filters, own, first, G, channels, padded, x_offset, y_offset, y_row, geometry, tasks, nbytes in calls:
            weights = filters.place(w, own)
            own_bias = bias if bias is None else bias[first : first + G * channels]
            biases = padded_bias(own_bias, G, channels, padded, dtype)
            work = scratch(count * nbytes)
            kernel.gather_last(
                *types, geometry, taps, run, address(x) + x_offset, x_row * x.itemsize, weights.address,
                address(biases), code, address(y) + y_offset, y_row, *tasks, work.address, nbytes,
            )  # fmt: skip

    return call


# ---------------------------------------------------------------- wgrad


def bind_wgrad(problem: ConvProblem, one: Pass, dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> Call:
    from fastconv.kernels.numba_cpu.gemm import Geometry
    from fastconv.kernels.numba_cpu.simd import NV, ROWS, VECTOR_BYTES

    kernel, dtype, count = kernels(), compute_dtype(problem), threads()
    taps, counts, steps, xs, ys = walk(one, strides_of(x), strides_of(dy))
    G, (M, C) = problem.groups, extents(problem, True)
    wg, wm, wc, offsets, _ = weight_strides(one, True, M, strides_of(dw))
    _, panels, _ = _vectors(M, dtype)
    tiles = -(-C * len(taps) // ROWS)
    r_tasks, m_tasks = cut(G, tiles, kernel.WGRAD_TILES, panels, kernel.WGRAD_PANELS, count)
    rows, vectors = kernel.WGRAD_TILES * ROWS, kernel.WGRAD_PANELS * NV
    nbytes = kernel.WGRAD_PIXELS * (rows * dtype.itemsize + kernel.ROW_PAD + NV * VECTOR_BYTES)
    nbytes += 2 * rows * vectors * VECTOR_BYTES
    types = storage(x.dtype), storage(dy.dtype), storage(dtype), storage(dw.dtype)
    geometry = Geometry(problem.N, G, M, C, *counts, *steps, *xs, *ys)
    run = _run(one, C, xs)
    x_row = _pixel_step(problem.N, counts, xs) * x.itemsize if one.pointwise and x.dtype == dtype else 0
    whole = G == 1 and M % (VECTOR_BYTES // dtype.itemsize) == 0 and dy.dtype == dtype
    y_row = _pixel_step(problem.N, counts, ys) * dy.itemsize if whole else 0

    def call(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
        work = scratch(count * nbytes)
        kernel.wgrad_last(
            *types, geometry, taps, run, address(x), x_row, address(dy), y_row, address(dw), wg, wm, wc, offsets,
            panels, r_tasks, m_tasks, work.address, nbytes,
        )  # fmt: skip

    return call

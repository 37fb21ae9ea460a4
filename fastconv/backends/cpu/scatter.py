"""The gradient to images of few pixels on the CPU: how kernels/numba_cpu/scatter.py is called."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu.calls import Call, address, by_form, padded_bias
from fastconv.backends.cpu.passes import (
    Pass,
    activation_code,
    compute_dtype,
    forward_axes,
    lift,
    storage,
    strides_of,
    weight_strides,
)
from fastconv.backends.cpu.workspace import scratch, threads
from fastconv.problem import ConvProblem

FEW = 64  # pixels, with which 1x1 filters are as much work to rearrange as to multiply
LEAST_CHANNELS = 16  # fewer leave lanes idle
LEAST_FILTERS = 128  # fewer do not repay adding up tap by tap, where strips serve:
LEAST_PIXELS = 196
SUMS_BYTES = 640 * 2**10  # of a task's products, within L2
CELLS_BYTES = 2**20  # of the map of an image
WIDE = 12  # vectors that are copied of a filter at once, where there are channels enough


def refuses(op: str, problem: ConvProblem) -> str | None:
    """Why a pass of a problem is not taken, or None where it is."""
    if op != "conv_dgrad":
        return "it is for dgrad"
    if math.prod(problem.size) * 64 > CELLS_BYTES or math.prod(problem.out) * problem.window.taps * 64 > SUMS_BYTES:
        return "the image is too large to be added up in a cache"
    return None


def pays(problem: ConvProblem) -> bool:
    """Whether it is faster than rearranging the filters, by the rule: a pure function of the problem."""
    K, C, pixels = problem.K // problem.groups, problem.C // problem.groups, math.prod(problem.out)
    if problem.layout != "NCHW" or C < LEAST_CHANNELS:
        return False
    if problem.window.taps == 1:
        return pixels <= FEW or max(problem.window.stride) > 1
    return K >= LEAST_FILTERS or pixels < LEAST_PIXELS


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import scatter

    return host_kernels(scatter, "scatter")


class Cut(NamedTuple):
    """Parts of the channels, and of the images; bytes for each thread."""

    chunks: int
    parts: int
    nbytes: int


@lru_cache(maxsize=1024)
def cut(problem: ConvProblem, count: int) -> Cut:
    """A pure function of the problem and the number of threads; results do not depend on it."""
    from fastconv.kernels.numba_cpu import scatter as of
    from fastconv.kernels.numba_cpu import simd

    itemsize, T = compute_dtype(problem).itemsize, problem.window.taps
    lanes = simd.VECTOR_BYTES // itemsize
    vectors = -(-(problem.C // problem.groups) // lanes)
    most = max(1, WIDE // T)  # vectors of channels
    chunks = min(vectors, -(-vectors // most // count) * count) if problem.groups == 1 else -(-vectors // most)
    rows = -(-math.prod(problem.out) // simd.ROWS) * simd.ROWS
    row_bytes = -(-vectors // chunks) * T * simd.VECTOR_BYTES
    images = max(1, SUMS_BYTES // (rows * row_bytes))
    parts = max(-(-problem.N // images), min(problem.N, -(-count // (problem.groups * chunks))))
    sums = -(-problem.N // parts) * rows * row_bytes
    cells = math.prod(problem.size) * simd.VECTOR_BYTES
    return Cut(chunks, parts, of.DEPTH * simd.NV * simd.VECTOR_BYTES + cells + sums + T * simd.VECTOR_BYTES)


def plan(problem: ConvProblem, why: str, otherwise: Call) -> Launch:
    """`otherwise` takes filters that do not lie one after the other."""
    one = Pass.of(forward_axes(problem))
    dtype, code, G = compute_dtype(problem), activation_code(problem), problem.groups
    K, C, pixels = problem.K // G, problem.C // G, math.prod(problem.out)

    def bind(dx: np.ndarray, dy: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> Call:
        from fastconv.kernels.numba_cpu.simd import ROWS, VECTOR_BYTES

        wg, wk, _, _, step = weight_strides(one, True, K, strides_of(w))
        if step != 1:
            return otherwise
        kernel, count = kernels(), threads()
        in_place = dy.dtype == dtype and pixels >= ROWS and _pixels_apart(dy) is not None
        chunks, parts, nbytes = cut(problem, count)
        lanes = VECTOR_BYTES // dtype.itemsize
        padded = -(-C // lanes) * lanes
        types = storage(dtype), storage(w.dtype), storage(dtype), storage(dx.dtype)
        image = (problem.N, G, K, C, *lift(problem.out, 1), *lift(problem.size, 1), *lift(problem.window.stride, 1))
        ys = strides_of(dx)
        room = max(pixels, ROWS)
        xs = (*strides_of(dy)[:2], _pixels_apart(dy)) if in_place else (problem.K * room, room, 1)
        geometry = kernel.Image(*image, *xs, *ys)

        def call(dx: np.ndarray, dy: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
            if not in_place:
                copy = np.zeros((problem.N, problem.K, room), dtype)
                copy[:, :, :pixels] = dy.reshape(problem.N, problem.K, pixels)
                dy = copy
            biases = padded_bias(bias, G, C, padded, dtype)
            work = scratch(count * nbytes)
            kernel.scatter(
                *types, geometry, one.taps, address(dy), address(w), wg, wk, address(biases), code, address(dx),
                chunks, parts, work.address, nbytes,
            )  # fmt: skip

        return call

    return Launch(by_form(bind), "scatter", why, {}, cut(problem, threads()).nbytes)


def _pixels_apart(dy: np.ndarray) -> int | None:
    """Elements from one pixel of an image to the next, if they are as many everywhere."""
    p0, p1, p2 = strides_of(dy)[2:]
    o0, o1, o2 = lift(dy.shape[2:], 1)
    if o2 == 1:
        p2 = p1 if o1 > 1 else p0 if o0 > 1 else 1
    if (o1 == 1 or p1 == o2 * p2) and (o0 == 1 or p0 == o1 * o2 * p2):
        return p2
    return None

"""Convolution on the CPU: which algorithm, and what its kernel is called with.

small      one im2col and one BLAS product in NumPy; compiles nothing, for problems that take microseconds
depthwise  rows of one channel at a time (C/groups = 1, one filter per channel)
winograd   fewer multiplications for 3x3 and 5x5 filters with stride 1 (winograd.py says what it refuses, and why)
gemm       tiled im2col + GEMM (kernels/numba_cpu/gemm.py; gemm_last.py where channels are adjacent); right for
           every problem
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastconv import tuning
from fastconv.arrays import dtype_of
from fastconv.backends.base import OPS, Launch
from fastconv.backends.cpu import conv_last, small, strips, winograd, winograd_wgrad
from fastconv.backends.cpu.passes import (
    Pass,
    backward_axes,
    chunks,
    compute_dtype,
    cut,
    forward_axes,
    storage,
    strides_of,
    unpadded,
    walk,
    weight_strides,
)
from fastconv.backends.cpu.threads import guarded
from fastconv.backends.cpu.workspace import threads, workspace
from fastconv.problem import ACTIVATIONS, ConvProblem

SMALL_MACS = 2**18  # some microseconds of BLAS, below its own threshold for using threads
SMALL_CELLS = 2**17  # of the unfolded input
SPLIT_BLOCKS = 64  # of output channels in one task: their sums stay within L2
PACKED_CHUNK = 64  # channels of a filter rearranged at a time, so that whole cache lines are read and written


def applicable(op: str, problem: ConvProblem) -> list[str]:
    """The algorithms that take a pass of a problem, the one that is right for every problem first."""
    names = ["gemm"]
    unfolded = problem.N * problem.C * problem.window.taps * math.prod(problem.out)
    if problem.macs <= SMALL_MACS and unfolded <= SMALL_CELLS:
        names.append("small")
    if problem.groups > 1 and problem.groups == problem.C == problem.K:
        names.append("depthwise")
    elif winograd.refuses(op, problem) is None:
        names.append("winograd")
    if "depthwise" not in names and strips.refuses(op, problem) is None:
        names.append("strips")
    return names


def choose(op: str, problem: ConvProblem) -> tuple[str, str]:
    """(algorithm, why) by the rule: a pure function of the problem."""
    names = applicable(op, problem)
    if "small" in names:
        return "small", f"{problem.macs} multiply-adds take less time than a thread pool needs to start"
    if "depthwise" in names:
        return "depthwise", "one filter per channel: memory-bound, a product of matrices has nothing to share"
    if "winograd" in names and winograd.pays(op, problem):
        return "winograd", "fewer multiplications than the sums have, and channels enough to repay its transforms"
    if "strips" in names and strips.pays(op, problem):
        return "strips", "few channels on one side, or in a group: taps share what is copied, pixels fill the registers"
    return "gemm", "dense or grouped: tiled im2col and register-blocked GEMM"


def plan(op: str, problem: ConvProblem) -> Launch:
    mode = tuning.autotune()
    if mode == "off":
        return build("gemm", op, problem, "autotune is off: the algorithm that is right for every problem")
    if mode == "measure" and len(applicable(op, problem)) > 1:
        return build(_measure(op, problem), op, problem, "the fastest when it was measured on this machine")
    algorithm, why = choose(op, problem)
    return build(algorithm, op, problem, why)


def build(algorithm: str, op: str, problem: ConvProblem, why: str) -> Launch:
    """The launch of one algorithm."""
    if algorithm == "small":
        return Launch(small.conv(op, problem), "small", why)
    if algorithm == "depthwise":
        from fastconv.backends.cpu import depthwise

        return depthwise.plan(op, problem, why)
    if algorithm == "winograd":
        return winograd_wgrad.plan(problem, why) if op == "conv_wgrad" else winograd.plan(op, problem, why)
    if algorithm == "strips":
        return strips.plan(op, problem, why, gather(op, problem, why).run)
    return wgrad(problem, why) if op == "conv_wgrad" else gather(op, problem, why)


def _measure(op: str, problem: ConvProblem) -> str:
    """Time the applicable algorithms on arrays of ones of the problem's shapes."""
    roles, (result,) = OPS[op]
    dtype = dtype_of("int8" if problem.dtype == "int32" else problem.dtype)
    arrays = [None if role.endswith("bias") else np.ones(problem.dims(role), dtype) for role in roles]
    out = np.empty(problem.dims(result), dtype_of(problem.dtype))
    candidates = {
        name: partial(guarded(build(name, op, problem, "")).run, out, *arrays) for name in applicable(op, problem)
    }
    return tuning.measured("cpu", f"{op}: {problem}; {tuning.machine()}, {threads()} threads", candidates)


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    """The compiled entry points; importing Numba waits until one is needed."""
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import gemm

    return host_kernels(gemm, "gather", "wgrad_dot", "wgrad_outer", "pack_weights")


# ---------------------------------------------------------------- fprop and dgrad


def gather(op: str, problem: ConvProblem, why: str, kept: dict[int, Any] | None = None) -> Launch:
    """fprop is one pass over x; dgrad one over dy for each residue modulo the stride."""
    forward = op == "conv_fprop"
    passes = [Pass.of(axes) for axes in ([forward_axes(problem)] if forward else backward_axes(problem))]
    code = 0 if problem.activation is None else ACTIVATIONS.index(problem.activation) + 1
    by_layout = problem.layout == "NHWC" and conv_last.takes(problem)
    bordered = not forward and any(one.meets_border for one in passes)
    config = {"passes": len(passes), "tile": _tile(problem), "lanes": "channels" if by_layout else "pixels"}

    def run(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        if y.size == 0:
            return
        run_all(passes, kept, y, x, w, bias)
        if bordered and not np.isfinite(min(w, y, key=lambda array: array.size)).all():
            # The zeros beyond dy are no part of dgrad's sums, and an infinite weight has made them NaN.
            within = [Pass.of(part) for axes in backward_axes(problem) for part in unpadded(axes)]
            run_all(within, None, y, x, w, bias)

    def run_all(
        passes: list[Pass], kept: dict[int, Any] | None, y: np.ndarray, x: np.ndarray, w: np.ndarray,
        bias: np.ndarray | None,
    ) -> None:  # fmt: skip
        last = conv_last.takes(problem, x, y)
        one_pass = conv_last.gather_pass if last else _gather_pass
        for number, one in enumerate(passes):
            part = y[(slice(None), slice(None), *one.part(problem.ndim))]
            if not one.places:
                small.fill(problem, part, bias)
            else:
                weights = kept[number] if kept is not None and last == by_layout else None
                one_pass(problem, forward, one, code, part, x, w, bias, weights)

    def prepare(w: np.ndarray) -> Launch:
        pack = conv_last.weights if by_layout else _weights
        packed = {n: list(pack(problem, forward, one, w, keep=True)) for n, one in enumerate(passes) if one.places}
        return gather(op, problem, why, packed)

    return Launch(run, "gemm", why, config, _gather_bytes(problem), prepare)


def _tile(problem: ConvProblem) -> str:
    from fastconv.kernels.numba_cpu import simd

    return f"{simd.ROWS}x{simd.NV * simd.lanes(compute_dtype(problem).name)}"


def _gather_bytes(problem: ConvProblem) -> int:
    from fastconv.kernels.numba_cpu import gemm, simd

    return gemm.BUNDLE * gemm.BLOCK * simd.NV * simd.VECTOR_BYTES


class Weights(NamedTuple):
    """Filters as the kernel reads them: of `groups` from g0 and the channels [m0, m1) of each."""

    g0: int
    groups: int
    m0: int
    m1: int
    array: np.ndarray  # keeps the memory alive
    group: int
    block: int
    row: int
    step: int


def _weights(problem: ConvProblem, forward: bool, one: Pass, w: np.ndarray, keep: bool = False) -> Iterator[Weights]:
    """The filters in place where they lie as the kernel reads them, else rearranged a chunk at a time.

    With `keep` each chunk has memory of its own; else the next one may overwrite it.
    """
    gemm = kernels()
    dtype = compute_dtype(problem)
    G, T = problem.groups, len(one.places)
    M, C = problem.K // G, problem.C // G
    if not forward:
        M, C = C, M
    K = C * T
    wg, wm, wc, offsets, step = weight_strides(one, forward, problem.K // G, strides_of(w))
    size = dtype.itemsize
    if step and w.dtype == dtype and M % gemm.ROWS == 0:
        yield Weights(0, G, 0, M, w, wg * size, wm * gemm.ROWS * size, wm * size, step * size)
        return
    for g0, g1, m0, m1 in chunks(G, M, K * size, gemm.ROWS):
        blocks = -(-(m1 - m0) // gemm.ROWS)
        nbytes = (g1 - g0) * blocks * K * gemm.ROWS * size
        packed = np.empty(nbytes, np.uint8) if keep else workspace(nbytes, "weights")
        base = w.ctypes.data + (g0 * wg + m0 * wm) * w.itemsize
        gemm.pack_weights(
            storage(w.dtype), storage(dtype), base, g1 - g0, m1 - m0, C, T, C if wm > wc else PACKED_CHUNK,
            wg, wm, wc, offsets, packed.ctypes.data,
        )  # fmt: skip
        tile = K * gemm.ROWS * size
        yield Weights(g0, g1 - g0, m0, m1, packed, blocks * tile, tile, size, gemm.ROWS * size)


def _gather_pass(
    problem: ConvProblem, forward: bool, one: Pass, code: int, y: np.ndarray, x: np.ndarray, w: np.ndarray,
    bias: np.ndarray | None, kept: list[Weights] | None,
) -> None:  # fmt: skip
    gemm = kernels()
    from fastconv.kernels.numba_cpu.simd import NV, VECTOR_BYTES

    dtype = compute_dtype(problem)
    S = storage(dtype)
    taps, counts, steps, xs, ys = walk(one, strides_of(x), strides_of(y))
    C = problem.C // problem.groups if forward else problem.K // problem.groups
    M = problem.K // problem.groups if forward else problem.C // problem.groups
    pixels = problem.N * math.prod(counts)
    panels = -(-pixels // (NV * VECTOR_BYTES // dtype.itemsize))
    count = threads()
    for weights in _weights(problem, forward, one, w) if kept is None else kept:
        G, rows = weights.groups, weights.m1 - weights.m0
        blocks = -(-rows // gemm.ROWS)
        bundles, splits = cut(G, panels, gemm.BUNDLE, blocks, SPLIT_BLOCKS, count)
        biases = np.zeros((G, blocks * gemm.ROWS), dtype)
        first = weights.g0 * M + weights.m0
        if bias is not None:
            biases[:, :rows] = bias[first : first + G * rows].reshape(G, rows)
        sums = -(-blocks // splits) if C * len(taps) > gemm.BLOCK else 1
        nbytes = (min(gemm.BLOCK, C * len(taps)) + sums * gemm.ROWS) * gemm.BUNDLE * NV * VECTOR_BYTES
        work = workspace(count * nbytes)
        gemm.gather(
            storage(x.dtype), S, storage(y.dtype),
            gemm.Geometry(problem.N, G, rows, C, *counts, *steps, *xs, *ys), taps,
            x.ctypes.data + weights.g0 * C * xs[1] * x.itemsize,
            weights.array.ctypes.data, weights.group, weights.block, weights.row, weights.step,
            biases.ctypes.data, code, y.ctypes.data + first * ys[1] * y.itemsize,
            panels, bundles, splits, work.ctypes.data, nbytes,
        )  # fmt: skip


# ---------------------------------------------------------------- wgrad

FEW_PIXELS = 1024  # below this, summing the lanes of a dot product costs more than packing columns


def wgrad(problem: ConvProblem, why: str) -> Launch:
    one = Pass.of(forward_axes(problem))
    dtype = compute_dtype(problem)
    few = problem.N * math.prod(problem.out) < FEW_PIXELS
    form = "outer" if few or (one.pointwise and problem.dtype == "float32") else "dot"
    G = problem.groups
    M, C = problem.K // G, problem.C // G

    def run(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
        if problem.N == 0:
            dw[...] = 0
            return
        if conv_last.takes(problem, dy, x):
            conv_last.wgrad(problem, one, dw, dy, x)
            return
        gemm = kernels()
        taps, counts, steps, xs, ys = walk(one, strides_of(x), strides_of(dy))
        wg, wm, wc, offsets, _ = weight_strides(one, True, M, strides_of(dw))
        count = threads()
        m_tasks, k_tasks = _wgrad_tasks(form, dtype, G, M, C * len(taps), count)
        nbytes = _wgrad_bytes(form, dtype.itemsize)
        work = workspace(count * nbytes)
        (gemm.wgrad_dot if form == "dot" else gemm.wgrad_outer)(
            storage(x.dtype), storage(dy.dtype), storage(dtype), storage(dw.dtype),
            gemm.Geometry(problem.N, G, M, C, *counts, *steps, *xs, *ys), taps, x.ctypes.data, dy.ctypes.data,
            dw.ctypes.data, wg, wm, wc, offsets, m_tasks, k_tasks, work.ctypes.data, nbytes,
        )  # fmt: skip

    return Launch(run, "gemm", why, {"form": form}, _wgrad_bytes(form, dtype.itemsize))


def _wgrad_bytes(form: str, itemsize: int) -> int:
    from fastconv.kernels.numba_cpu import gemm, simd

    if form == "dot":
        return ((gemm.DOT_M + gemm.DOT_K) * gemm.DOT_PIXELS + gemm.DOT_M * gemm.DOT_K) * itemsize
    tile = simd.NV * simd.VECTOR_BYTES
    return gemm.OUTER_M * (gemm.OUTER_PIXELS * itemsize + 2 * tile) + (gemm.OUTER_PIXELS + gemm.SLACK) * tile


def _wgrad_tasks(form: str, dtype: np.dtype, G: int, M: int, K: int, count: int) -> tuple[int, int]:
    """Into how many parts the output channels and the rows (c, t) of a group are cut, one for each thread at least."""
    from fastconv.kernels.numba_cpu import gemm, simd

    most_m, most_k = (gemm.DOT_M, gemm.DOT_K) if form == "dot" else (gemm.OUTER_M, simd.NV * simd.lanes(dtype.name))
    m, k = -(-M // most_m), -(-K // most_k)
    while G * m * k < count and -(-K // k) > 2 * simd.DOT_COLS:
        k += 1
    while G * m * k < count and -(-M // m) > simd.DOT_ROWS:
        m += 1
    return m, k

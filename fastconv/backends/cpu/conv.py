"""Convolution on the CPU: which algorithm, and what its kernel is called with.

small      one im2col and one BLAS product in NumPy; compiles nothing, for problems that take microseconds
depthwise  rows of one channel at a time (C/groups = 1, one filter per channel)
winograd   fewer multiplications for 3x3 and 5x5 filters with stride 1 (winograd.py says what it refuses, and why)
scatter    dgrad to small images, filters where they lie (scatter.py says what it refuses)
strips     few channels on one side or in a group: pixels fill the registers (strips.py says what it refuses)
gemm       tiled im2col + GEMM (kernels/numba_cpu/gemm.py; gemm_last.py where channels are adjacent); right for
           every problem
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv import tuning
from fastconv.arrays import dtype_of
from fastconv.backends.base import OPS, Launch
from fastconv.backends.cpu import conv_last, scatter, small, strips, winograd, winograd_wgrad
from fastconv.backends.cpu.calls import Call, Filters, address, by_form, padded_bias
from fastconv.backends.cpu.passes import (
    Pass,
    activation_code,
    backward_axes,
    chunks,
    compute_dtype,
    cut,
    extents,
    forward_axes,
    storage,
    strides_of,
    unpadded,
    walk,
    weight_strides,
)
from fastconv.backends.cpu.threads import guarded
from fastconv.backends.cpu.workspace import Scratch, scratch, threads
from fastconv.problem import ConvProblem

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
    if "depthwise" not in names and scatter.refuses(op, problem) is None:
        names.append("scatter")
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
    if "scatter" in names and scatter.pays(problem):
        return "scatter", "filters are read where they lie, and their products added up in a map of the image"
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
    if algorithm == "scatter":
        return scatter.plan(problem, why, gather(op, problem, why).run)
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

    return host_kernels(gemm, "gather", "pack_weights")


@lru_cache(maxsize=1)
def wgrad_kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import gemm_wgrad

    return host_kernels(gemm_wgrad, "wgrad_dot", "wgrad_outer")


# ---------------------------------------------------------------- fprop and dgrad


def gather(op: str, problem: ConvProblem, why: str, kept: dict[int, Any] | None = None) -> Launch:
    """fprop is one pass over x; dgrad one over dy for each residue modulo the stride."""
    forward = op == "conv_fprop"
    passes = [Pass.of(axes) for axes in ([forward_axes(problem)] if forward else backward_axes(problem))]
    by_layout = problem.layout == "NHWC" and conv_last.takes(problem)
    bordered = not forward and any(one.meets_border for one in passes)
    config = {"passes": len(passes), "tile": _tile(problem), "lanes": "channels" if by_layout else "pixels"}

    def bind(
        passes: list[Pass], kept: dict[int, Any] | None, y: np.ndarray, x: np.ndarray, w: np.ndarray,
        bias: np.ndarray | None,
    ) -> Call:  # fmt: skip
        last = conv_last.takes(problem, x, y)
        bind_pass = conv_last.bind_pass if last else _bind_pass
        calls: list[Call] = []
        for number, one in enumerate(passes):
            part = one.part(problem.ndim)
            if one.places:
                own = kept[number] if kept is not None and last == by_layout else None
                calls.append(bind_pass(problem, forward, one, y[part], x, w, own))
            else:
                calls.append(partial(_fill, problem, part))

        def call(*arrays: np.ndarray | None) -> None:
            for one in calls:
                one(*arrays)

        return calls[0] if len(calls) == 1 else call

    plainly = by_form(partial(bind, passes, kept))

    def run(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        if y.size == 0:
            return
        plainly(y, x, w, bias)
        if bordered and not np.isfinite(min(w, y, key=lambda array: array.size)).all():
            # The zeros beyond dy are no part of dgrad's sums, and an infinite weight has made them NaN.
            within = [Pass.of(part) for axes in backward_axes(problem) for part in unpadded(axes)]
            bind(within, None, y, x, w, bias)(y, x, w, bias)

    def prepare(w: np.ndarray) -> Launch:
        lay = conv_last.lay if by_layout else _lay
        packed = {n: [part.packed(w) for part in lay(problem, forward, one, w)] for n, one in enumerate(passes)}
        return gather(op, problem, why, packed)

    return Launch(run, "gemm", why, config, _gather_bytes(problem), prepare)


def _fill(
    problem: ConvProblem, part: Any, y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None
) -> None:
    """The cells of a result that no tap reaches."""
    small.fill(problem, y[part], bias)


def _tile(problem: ConvProblem) -> str:
    from fastconv.kernels.numba_cpu import simd

    return f"{simd.ROWS}x{simd.NV * simd.lanes(compute_dtype(problem).name)}"


def _gather_bytes(problem: ConvProblem) -> int:
    from fastconv.kernels.numba_cpu import gemm, simd

    return gemm.BUNDLE * gemm.BLOCK * simd.NV * simd.VECTOR_BYTES


def _lay(problem: ConvProblem, forward: bool, one: Pass, w: np.ndarray) -> Iterator[Filters]:
    """The filters where they lie, if they lie as the kernel reads them; else rearranged, a chunk at a time.

    The kernel is told bytes from group to group, block to block, row to row and product to product.
    """
    gemm = kernels()
    dtype = compute_dtype(problem)
    G, M, C = problem.groups, *extents(problem, forward)
    K = C * len(one.places)
    if not K:
        return
    wg, wm, wc, offsets, step = weight_strides(one, forward, problem.K // G, strides_of(w))
    size = dtype.itemsize
    if step and w.dtype == dtype and M % gemm.ROWS == 0:
        yield Filters(0, G, 0, M, (wg * size, wm * gemm.ROWS * size, wm * size, step * size))
        return
    for g0, g1, m0, m1 in chunks(G, M, K * size, gemm.ROWS):
        blocks, tile = -(-(m1 - m0) // gemm.ROWS), K * gemm.ROWS * size
        pack = partial(
            gemm.pack_weights, storage(w.dtype), storage(dtype), g1 - g0, m1 - m0, C, len(one.places),
            C if wm > wc else PACKED_CHUNK, wg, wm, wc, offsets,
        )  # fmt: skip
        first = (g0 * wg + m0 * wm) * w.itemsize
        steps = (blocks * tile, tile, size, gemm.ROWS * size)
        yield Filters(g0, g1 - g0, m0, m1, steps, (g1 - g0) * blocks * tile, first, pack)


def _bind_pass(
    problem: ConvProblem, forward: bool, one: Pass, part: np.ndarray, x: np.ndarray, w: np.ndarray,
    kept: list[Scratch | None] | None,
) -> Call:  # fmt: skip
    """One call of the gather kernel for each chunk of the filters; `part` is what the pass fills of the result."""
    gemm = kernels()
    from fastconv.kernels.numba_cpu.simd import NV, VECTOR_BYTES

    dtype = compute_dtype(problem)
    types = storage(x.dtype), storage(dtype), storage(part.dtype)
    taps, counts, steps, xs, ys = walk(one, strides_of(x), strides_of(part))
    M, C = extents(problem, forward)
    K, code, count = C * len(taps), activation_code(problem), threads()
    panels = -(-problem.N * math.prod(counts) // (NV * VECTOR_BYTES // dtype.itemsize))
    offset = one.offset(part)
    bundle = min(gemm.LONGEST, gemm.BUNDLE * max(1, gemm.BLOCK // K))
    calls = []
    for number, filters in enumerate(_lay(problem, forward, one, w)):
        G, rows = filters.groups, filters.m1 - filters.m0
        blocks = -(-rows // gemm.ROWS)
        bundles, splits = cut(G, panels, bundle, blocks, SPLIT_BLOCKS, count)
        sums = -(-blocks // splits) if K > gemm.BLOCK else 1
        nbytes = (min(gemm.BLOCK, K) + sums * gemm.ROWS) * bundle * NV * VECTOR_BYTES
        first = filters.g0 * M + filters.m0
        calls.append((
            filters, None if kept is None else kept[number], first, G, rows, blocks * gemm.ROWS,
            filters.g0 * C * xs[1] * x.itemsize, first * ys[1] * part.itemsize + offset,
            gemm.Geometry(problem.N, G, rows, C, *counts, *steps, *xs, *ys), (panels, bundles, splits), nbytes,
        ))  # fmt: skip

    def call(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        for filters, own, first, G, rows, padded, x_offset, y_offset, geometry, tasks, nbytes in calls:
            weights = filters.place(w, own)
            biases = padded_bias(bias if bias is None else bias[first : first + G * rows], G, rows, padded, dtype)
            work = scratch(count * nbytes)
            gemm.gather(
                *types, geometry, taps, address(x) + x_offset, weights.address, *filters.steps, address(biases), code,
                address(y) + y_offset, *tasks, work.address, nbytes,
            )  # fmt: skip

    return call


# ---------------------------------------------------------------- wgrad

FEW_PIXELS = 1024  # below this, summing the lanes of a dot product costs more than packing columns


def wgrad(problem: ConvProblem, why: str) -> Launch:
    one = Pass.of(forward_axes(problem))
    dtype = compute_dtype(problem)
    few = problem.N * math.prod(problem.out) < FEW_PIXELS
    form = "outer" if few or (len(one.places) == 1 and problem.dtype == "float32") else "dot"
    G, (M, C) = problem.groups, extents(problem, True)

    def bind(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> Call:
        if conv_last.takes(problem, dy, x):
            return conv_last.bind_wgrad(problem, one, dw, dy, x)
        taps, counts, steps, xs, ys = walk(one, strides_of(x), strides_of(dy))
        wg, wm, wc, offsets, _ = weight_strides(one, True, M, strides_of(dw))
        count = threads()
        tasks = _wgrad_tasks(form, dtype, G, M, C * len(taps), count)
        nbytes = _wgrad_bytes(form, dtype.itemsize)
        kernel = wgrad_kernels().wgrad_dot if form == "dot" else wgrad_kernels().wgrad_outer
        types = storage(x.dtype), storage(dy.dtype), storage(dtype), storage(dw.dtype)
        geometry = kernels().Geometry(problem.N, G, M, C, *counts, *steps, *xs, *ys)

        def call(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
            work = scratch(count * nbytes)
            kernel(
                *types, geometry, taps, address(x), address(dy), address(dw), wg, wm, wc, offsets, *tasks,
                work.address, nbytes,
            )  # fmt: skip

        return call

    plainly = by_form(bind)

    def run(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
        if problem.N == 0:
            dw[...] = 0
        else:
            plainly(dw, dy, x)

    return Launch(run, "gemm", why, {"form": form}, _wgrad_bytes(form, dtype.itemsize))


def _wgrad_bytes(form: str, itemsize: int) -> int:
    from fastconv.kernels.numba_cpu import gemm_wgrad as of
    from fastconv.kernels.numba_cpu import simd

    if form == "dot":
        return ((of.DOT_M + of.DOT_K) * of.DOT_ROW + of.DOT_M * of.DOT_K) * itemsize
    tile = simd.NV * simd.VECTOR_BYTES
    columns = (of.OUTER_PIXELS + of.SLACK + of.STAGE_ROW) * tile
    return of.OUTER_M * (of.OUTER_PIXELS * itemsize + 2 * tile) + columns


def _wgrad_tasks(form: str, dtype: np.dtype, G: int, M: int, K: int, count: int) -> tuple[int, int]:
    """Into how many parts the output channels and the rows (c, t) of a group are cut."""
    from fastconv.kernels.numba_cpu import gemm_wgrad, simd

    if form == "outer":
        k = -(-K // (simd.NV * simd.lanes(dtype.name)))
        return cut_channels(G * k, M, gemm_wgrad.OUTER_M, count), k
    m, k = -(-M // gemm_wgrad.DOT_M), -(-K // gemm_wgrad.DOT_K)
    while G * m * k < count and -(-K // k) > 2 * simd.DOT_COLS:
        k += 1
    while G * m * k < count and -(-M // m) > simd.DOT_ROWS:
        m += 1
    return m, k


@lru_cache(maxsize=1024)
def cut_channels(parts: int, M: int, most: int, count: int) -> int:
    """Into how many parts M output channels are cut, each of which packs the columns of the source again."""
    from fastconv.kernels.numba_cpu.simd import ROWS

    blocks = -(-M // ROWS)

    def cost(m: int) -> int:
        return -(-parts * m // count) * (-(-blocks // m) + 1)

    least = -(-M // most)
    return min(range(least, max(least, min(blocks, least + count)) + 1), key=cost)

"""Convolution, correlation and pooling of Dask arrays, and their gradients; needs ``dask[array]``.

The functions take the arguments of `fastconv`'s, but for ``out=``, ``activation=`` and indices, and give lazy Dask
arrays, equal to what the whole arrays would give, whatever the chunks. A block of the result reads its block of the
input and, from the neighbours, the cells that its windows reach into (a halo); at the outer edge it is padded.
A worker holds a few blocks at a time, so that an array may be larger than any machine's memory.

Chunks of the batch and of spatial axes stay as they are, up to the halo. Channels that a result sums over, and all
channels of a grouped convolution, are brought into one chunk. Chunks of w along its filters become the chunks of the
output's channels. A weight gradient is the sum of those of the blocks.

Blocks are computed where and in what they are: NumPy blocks on the CPU, CuPy blocks on their GPU. Dask runs a block per
thread, so each runs on one Numba thread; where a worker has more cores than threads, set more when the graph is built:
``with dask.config.set({"fastconv.threads": 4}):``. In one process, several threads need a threading layer of Numba
that is safe for them, tbb or omp.

Examples
--------
>>> import dask.array as da, numpy as np, fastconv
>>> from fastconv.interop import dask as fc
>>> x = da.arange(16.0, chunks=5).reshape(1, 1, 16)
>>> w = np.array([[[-1.0, 0, 1]]])
>>> y = fc.conv1d(x, w, padding=1, stride=2)
>>> y.chunks, np.array_equal(y.compute(), fastconv.conv1d(x.compute(), w, padding=1, stride=2))
(((1,), (1,), (3, 3, 2)), True)
>>> fc.correlate(da.arange(7, chunks=3), [1, 2], "valid").compute()
array([ 2,  5,  8, 11, 14, 17])
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

import fastconv
from fastconv import arrays, dispatch
from fastconv.dispatch import Inquiry
from fastconv.errors import ShapeError
from fastconv.interop.rules import ROLES, lifted, like
from fastconv.problem import ConvProblem, Ints

Range = tuple[int, int]

# ---------------------------------------------------------------- one axis


class Axis(NamedTuple):
    """Windows along an axis: output o of `total` reads cells ``o*stride - low`` to ``+ extent`` of `size` ones."""

    size: int
    total: int
    extent: int
    stride: int
    low: int
    high: int

    @property
    def partial(self) -> bool:
        """Whether the last window reaches beyond the padding; it fits into no problem without the one before it."""
        return (self.total - 1) * self.stride - self.low + self.extent > self.size + self.high

    def outputs(self, chunks: Ints) -> list[Range]:
        """The outputs in runs, one for each chunk that some windows begin in; the first has those that begin before."""
        ends = [max(0, -(-(bound + self.low) // self.stride)) for bound in itertools.accumulate(chunks)]
        return between([*(end for end in ends[:-1] if end < self.total - self.partial), self.total])

    def inputs(self, chunks: Ints) -> list[Range]:
        """The cells in runs, one for each chunk of outputs: up to where the next chunk's first window begins."""
        ends = [min(max(0, bound * self.stride - self.low), self.size) for bound in itertools.accumulate(chunks)]
        return between([*ends[:-1], self.size])

    def read(self, outputs: Range) -> Range:
        """The cells that a run of outputs reads."""
        first, last = outputs
        end = (last - 1) * self.stride - self.low + self.extent
        return max(0, first * self.stride - self.low), min(end, self.size)

    def pads(self, outputs: Range) -> Range:
        """How many cells of padding a run of outputs reads on either side."""
        first, last = outputs
        end = (last - 1) * self.stride - self.low + self.extent
        return max(0, self.low - first * self.stride), min(max(0, end - self.size), self.high)

    def readers(self, cells: Range) -> Range:
        """The outputs whose windows meet a run of cells."""
        first = max(0, -(-(cells[0] + self.low - self.extent + 1) // self.stride))
        last = max(first, min((cells[1] - 1 + self.low) // self.stride + 1, self.total))
        alone = self.partial and (first, last) == (self.total - 1, self.total)
        return first - alone, last


def between(ends: Sequence[int]) -> list[Range]:
    """The runs that end there, without the empty ones."""
    return [run for run in itertools.pairwise([0, *ends]) if run[0] < run[1]]


def lengths(runs: Sequence[Range]) -> Ints:
    return tuple(stop - start for start, stop in runs)


def axes_of(problem: Any) -> list[Axis]:
    window = problem.window
    parts = zip(problem.size, problem.out, window.ksize, window.stride, window.dilation, window.pad, strict=True)
    return [Axis(n, count, d * (k - 1) + 1, s, low, high) for n, count, k, s, d, (low, high) in parts]


# ---------------------------------------------------------------- graphs


def as_dask(array: Any) -> da.Array:
    """A Dask array with known chunks; another one becomes a single chunk."""
    if not isinstance(array, da.Array):
        return da.from_array(array, chunks=-1)
    if any(math.isnan(size) for size in array.shape):
        raise ShapeError(f"the chunks must be known: got shape {array.shape}; call x.compute_chunk_sizes() first")
    return array


def rechunked(array: da.Array, chunks: dict[int, Any]) -> da.Array:
    """Rechunked where that changes anything."""
    wanted = {axis: new for axis, new in chunks.items() if array.chunks[axis] != new}
    return array.rechunk(wanted) if wanted else array


def built(
    name: str, graph: dict[Any, Any], sources: Sequence[da.Array], chunks: Sequence[Ints], dtype: Any
) -> da.Array:
    meta = meta_from_array(sources[0], ndim=len(chunks), dtype=dtype)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=list(sources))
    return da.Array(layers, name, tuple(chunks), meta=meta)


def halo(x: da.Array, axis: int, runs: list[Range]) -> da.Array:
    """x in chunks that are these runs of cells along an axis; they may overlap, leave cells out, or be empty."""
    bounds = list(itertools.pairwise([0, *itertools.accumulate(x.chunks[axis])]))
    if runs == bounds:
        return x
    name = f"halo-{tokenize(x.name, axis, runs)}"
    parts = [list(parts_of(run, bounds)) for run in runs]
    graph: dict[Any, Any] = {}
    for before in itertools.product(*map(range, x.numblocks[:axis])):
        for after in itertools.product(*map(range, x.numblocks[axis + 1 :])):
            for number, part in enumerate(parts):
                pieces = []
                for source, start, stop in part:
                    piece = (f"piece-{name}", number, source, *before, *after)
                    graph[piece] = (partial(take, axis=axis, start=start, stop=stop), (x.name, *before, source, *after))
                    pieces.append(piece)
                graph[(name, *before, number, *after)] = (partial(join, axis=axis), pieces)
    return built(name, graph, [x], (*x.chunks[:axis], lengths(runs), *x.chunks[axis + 1 :]), x.dtype)


def parts_of(run: Range, bounds: list[Range]) -> Iterator[tuple[int, int, int]]:
    """Which cells of which chunks make up a run; an empty run is no cell of the first chunk."""
    if run[0] == run[1]:
        yield 0, 0, 0
    for number, (low, high) in enumerate(bounds):
        start, stop = max(run[0], low), min(run[1], high)
        if start < stop:
            yield number, start - low, stop - low


def take(block: Any, axis: int, start: int, stop: int) -> Any:
    """Some cells of a block; few of them are copied, so that they do not keep the whole block in memory."""
    part = block[(slice(None),) * axis + (slice(start, stop),)]
    return part.copy() if 2 * (stop - start) < block.shape[axis] else part


def join(pieces: list[Any], axis: int) -> Any:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)


def on_block(op: str, problem: Any, backend: str | None, threads: int, *blocks: Any) -> Any:
    """The op on blocks, as the problem that these make up."""
    operands = [*blocks, *[None] * (len(ROLES[op]) - len(blocks))]
    with numba_threads(threads):
        return dispatch.run(op, problem, dispatch.admit(ROLES[op], tuple(operands), backend), None, backend)


@contextmanager
def numba_threads(threads: int) -> Iterator[None]:
    """Numba's number of threads is one of the calling thread: Dask's worker threads have their own."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def threads_per_block() -> int:
    return int(dask.config.get("fastconv.threads", 1))


# ---------------------------------------------------------------- operands and their axes

Label = Any  # "N", "C", "K", ("tap", axis), or the number of a spatial axis


def labels(problem: Any, role: str) -> list[Label]:
    """What each axis of an operand runs over, in the order of the user's array."""
    spatial: list[Label] = list(range(problem.ndim))
    taps: list[Label] = [("tap", axis) for axis in spatial]
    if role == "w":
        return {"OIHW": ["K", "C", *taps], "OHWI": ["K", *taps, "C"], "HWIO": [*taps, "C", "K"]}[problem.weight_layout]
    if role == "bias":
        return ["K", *taps][: len(problem.bias)]
    channel = "K" if role == "y" and isinstance(problem, ConvProblem) else "C"
    axes = [channel, *spatial] if problem.layout == "NCHW" else [*spatial, channel]
    return ["N", *axes] if problem.batched else axes


class Plan:
    """Operands in chunks that fit each other, the chunks of the result, and the problem of each of its blocks."""

    def __init__(self, problem: Any, operands: dict[str, da.Array], backend: str | None):
        self.problem, self.operands = problem, operands
        self.settings = (backend, threads_per_block())
        self.chunks: dict[Label, Ints] = {}  # of the result
        self.sizes: list[Ints] = [(n,) for n in problem.size]  # per spatial axis, of the input of each block, and
        self.pads: list[list[Range]] = [[pad] for pad in problem.window.pad]  # the padding around it

    def chunks_of(self, role: str, label: Label) -> Ints:
        return self.operands[role].chunks[labels(self.problem, role).index(label)]

    def rechunk(self, role: str, label: Label, chunks: Ints) -> None:
        array, axis = self.operands[role], labels(self.problem, role).index(label)
        if array.chunks[axis] != chunks:
            self.operands[role] = array.rechunk({axis: chunks})

    def whole(self, *wanted: Label) -> None:
        """Bring these axes into one chunk, in every operand that has them."""
        for role, array in self.operands.items():
            for axis, label in enumerate(labels(self.problem, role)):
                if label in wanted:
                    self.rechunk(role, label, (array.shape[axis],))

    def keep(self, role: str, *wanted: Label) -> None:
        """This operand's chunks along these axes are the result's, and those of the other operands."""
        for label in wanted:
            if label in labels(self.problem, role):
                self.chunks[label] = chunks = self.chunks_of(role, label)
                for other in self.operands:
                    if label in labels(self.problem, other):
                        self.rechunk(other, label, chunks)

    def halo(self, role: str, axis: int, runs: list[Range]) -> None:
        self.operands[role] = halo(self.operands[role], labels(self.problem, role).index(axis), runs)

    def reads(self, axis: int, windows: Axis, outputs: list[Range]) -> list[Range]:
        """The cells that each block of the result computes with, given the outputs that it does."""
        cells = [windows.read(run) if run[0] < run[1] else (0, 0) for run in outputs]
        self.sizes[axis], self.pads[axis] = lengths(cells), [windows.pads(run) for run in outputs]
        return cells

    def part(self, place: dict[Label, int]) -> Any:
        """The problem of the block of the result at a place."""
        problem = self.problem
        size, pads = (
            tuple(values[place.get(axis, 0)] for axis, values in enumerate(each)) for each in (self.sizes, self.pads)
        )
        extents: dict[str, Any] = {
            label: self.chunks[label][place[label]] for label in ("N", "C", "K") if label in place
        }
        if isinstance(problem, ConvProblem) and problem.bias is not None:
            extents["bias"] = (extents["K"], *problem.bias[1:])
        return replace(problem, size=size, window=replace(problem.window, pad=pads), **extents)

    def build(self, name: str, axes: Sequence[Label], block: Callable[..., Any], chunks: Sequence[Ints]) -> da.Array:
        """A Dask array with axes for these labels; ``block(part, place)`` is the function that a block is made by."""
        sources = list(self.operands.values())
        name = f"{name}-{tokenize(name, self.problem, [array.name for array in sources], *self.settings)}"
        graph: dict[Any, Any] = {}
        for index in itertools.product(*(range(len(each)) for each in chunks)):
            place = dict(zip(axes, index, strict=True))
            keys = [
                (array.name, *(place.get(label, 0) for label in labels(self.problem, role)))
                for role, array in self.operands.items()
            ]
            graph[(name, *index)] = (block(self.part(place), place), *keys)
        return built(name, graph, sources, chunks, arrays.dtype_of(self.problem.dtype))


# ---------------------------------------------------------------- the ops


def run(op: str, problem: Any, operands: Sequence[da.Array | None], backend: str | None) -> da.Array:
    """An op on Dask arrays."""
    given = {role: array for role, array in zip(ROLES[op], operands, strict=True) if array is not None}
    if isinstance(problem, ConvProblem):
        problem, given, cut = within_reach(op, problem, given)
        bias = given.pop("tbias", None)
        if bias is not None:
            problem = replace(problem, bias=None)
        direction = {"conv_fprop": fprop, "conv_dgrad": dgrad, "conv_wgrad": wgrad}[op]
        result = direction(op, Plan(problem, given, backend))[cut]
        return result if bias is None else result + bias.reshape(spread(problem, bias.size))
    return (dgrad if op.endswith("dgrad") else fprop)(op, Plan(problem, given, backend))


def within_reach(op: str, problem: ConvProblem, given: dict[str, da.Array]) -> tuple[ConvProblem, dict, tuple]:
    """The problem with padding that every window reaches over: what is beyond becomes zeros of x, or is cut off dx."""
    windows = axes_of(problem)
    beyond = [tuple(max(0, end - (axis.extent - 1)) for end in (axis.low, axis.high)) for axis in windows]
    if not any(map(any, beyond)):
        return problem, given, (...,)
    size = tuple(axis.size + sum(more) for axis, more in zip(windows, beyond, strict=True))
    pads = tuple((a.low - more[0], a.high - more[1]) for a, more in zip(windows, beyond, strict=True))
    larger = replace(problem, size=size, window=replace(problem.window, pad=pads))
    places = [label if isinstance(label, int) else None for label in labels(problem, "x")]
    if op == "conv_dgrad":
        cut = [slice(None) if at is None else slice(beyond[at][0], size[at] - beyond[at][1]) for at in places]
        return larger, given, tuple(cut)
    around = [(0, 0) if at is None else beyond[at] for at in places]
    return larger, given | {"x": da.pad(given["x"], around)}, (...,)


def spread(problem: ConvProblem, channels: int) -> Ints:
    return (channels, *(1,) * problem.ndim) if problem.layout == "NCHW" else (channels,)


def fix_channels(plan: Plan, summed: str) -> None:
    """One chunk of the channels that are summed over, and of all channels in groups; one of the taps."""
    problem = plan.problem
    if isinstance(problem, ConvProblem):
        plan.whole(
            *(("tap", axis) for axis in range(problem.ndim)), *((summed,) if problem.groups == 1 else ("C", "K"))
        )


def fprop(op: str, plan: Plan) -> da.Array:
    fix_channels(plan, "C")
    plan.keep("x", "N")
    plan.keep(*(("w", "K") if "w" in plan.operands else ("x", "C")))
    for axis, windows in enumerate(axes_of(plan.problem)):
        runs = windows.outputs(plan.chunks_of("x", axis))
        plan.chunks[axis] = lengths(runs)
        plan.halo("x", axis, plan.reads(axis, windows, runs))
    axes = labels(plan.problem, "y")

    def block(part: Any, place: dict[Label, int]) -> Any:
        return partial(on_block, op, part, *plan.settings)

    return plan.build(op, axes, block, [plan.chunks[label] for label in axes])


def dgrad(op: str, plan: Plan) -> da.Array:
    """A block of dx from the dy of all windows that meet it: computed where these reach, and cut to the block."""
    fix_channels(plan, "K")
    plan.keep("y", "N")
    if getattr(plan.problem, "groups", 1) > 1:
        plan.chunks["C"] = (plan.problem.C,)
    else:
        plan.keep(*(("w", "C") if "w" in plan.operands else ("y", "C")))
    cells = []
    for axis, windows in enumerate(axes_of(plan.problem)):
        bounds = itertools.accumulate(plan.chunks_of("x", axis)) if "x" in plan.operands else ()
        runs = between(list(bounds)) or windows.inputs(plan.chunks_of("y", axis))
        readers = [windows.readers(run) for run in runs]
        computed = plan.reads(axis, windows, readers)
        plan.chunks[axis] = lengths(runs)
        plan.halo("y", axis, readers)
        if "x" in plan.operands:
            plan.halo("x", axis, computed)
        cells.append(list(zip(computed, runs, strict=True)))
    axes = labels(plan.problem, "x")

    def block(part: Any, place: dict[Label, int]) -> Any:
        cut = tuple(cells[label][place[label]] if isinstance(label, int) else None for label in axes)
        return partial(dgrad_block, op, part, *plan.settings, cut)

    return plan.build(op, axes, block, [plan.chunks[label] for label in axes])


def dgrad_block(op: str, part: Any, backend: str | None, threads: int, cut: tuple[Any, ...], *blocks: Any) -> Any:
    """dx on the cells that windows reach, and zeros elsewhere; `cut` has both runs of cells for each spatial axis."""
    shape = tuple(n if c is None else c[1][1] - c[1][0] for n, c in zip(part.shape("x"), cut, strict=True))
    dtype = arrays.dtype_of(part.dtype)
    if 0 in part.size:
        return np.zeros_like(blocks[0], dtype=dtype, shape=shape)
    dx = on_block(op, part, backend, threads, *blocks)
    source, target = [], []
    for c in cut:
        (start, stop), (first, last) = c or ((0, None), (0, None))
        low, high = (0, None) if stop is None else (max(start, first), min(stop, last))
        source.append(slice(low - start, None if high is None else high - start))
        target.append(slice(low - first, None if high is None else high - first))
    inner = dx[tuple(source)]
    if inner.shape == shape:
        return inner
    whole = np.zeros_like(dx, shape=shape)
    whole[tuple(target)] = inner
    return whole


def wgrad(op: str, plan: Plan) -> da.Array:
    """The sum over the blocks of dy, in float32 at least."""
    dtype = plan.problem.dtype
    if dtype in ("float16", "bfloat16"):
        plan.problem = replace(plan.problem, dtype="float32")
    if plan.problem.groups > 1:
        plan.whole("C", "K")
    plan.keep("y", "N", "K")
    plan.keep("x", "C")
    for axis, windows in enumerate(axes_of(plan.problem)):
        runs = between(list(itertools.accumulate(plan.chunks_of("y", axis))))
        plan.chunks[axis] = lengths(runs)
        plan.halo("y", axis, runs)
        plan.halo("x", axis, plan.reads(axis, windows, runs))
        plan.chunks["tap", axis] = (plan.problem.window.ksize[axis],)
    summed = [label for label in labels(plan.problem, "y") if label != "K"]

    def block(part: Any, place: dict[Label, int]) -> Any:
        return partial(wgrad_block, op, part, *plan.settings, len(summed))

    axes = labels(plan.problem, "w")
    thick = {"C": tuple(n // plan.problem.groups for n in plan.chunks["C"])}
    chunks = [(1,) * len(plan.chunks[label]) for label in summed]
    chunks += [thick.get(label, plan.chunks[label]) for label in axes]
    parts = plan.build(op, [*summed, *axes], block, chunks)
    return parts.sum(tuple(range(len(summed)))).astype(arrays.dtype_of(dtype))


def wgrad_block(op: str, part: Any, backend: str | None, threads: int, summed: int, *blocks: Any) -> Any:
    return on_block(op, part, backend, threads, *blocks)[(None,) * summed]


# ---------------------------------------------------------------- signals


def correlate(in1: Any, in2: Any, mode: str = "full", method: str = "auto", *, backend: str | None = None) -> da.Array:
    """`fastconv.correlate` of a Dask array with a smaller one, which becomes one chunk.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastconv.interop.dask import correlate
    >>> correlate(da.ones((4, 4), chunks=3), [[1.0, 1.0]], "same").compute()[0]
    array([1., 2., 2., 2.])
    """
    return signal(fastconv.correlate, in1, in2, mode, method, backend)


def convolve(in1: Any, in2: Any, mode: str = "full", method: str = "auto", *, backend: str | None = None) -> da.Array:
    """`fastconv.convolve` of a Dask array with a smaller one, which becomes one chunk.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastconv.interop.dask import convolve
    >>> convolve(da.arange(4, chunks=2), [1, -1], "valid").compute()
    array([1, 1, 1])
    """
    return signal(fastconv.convolve, in1, in2, mode, method, backend)


def signal(function: Callable[..., Any], in1: Any, in2: Any, mode: str, method: str, backend: str | None) -> da.Array:
    """A block of the result meets the cells of in1 that all of in2 can reach from it; beyond in1 there are zeros."""
    in1, in2 = (as_dask(array if hasattr(array, "shape") else np.asarray(array)) for array in (in1, in2))
    problem = function(like(in1), like(in2), mode, method, backend=Inquiry(backend)).problem
    in2 = in2.rechunk(-1)
    pads = []
    chunks: list[Ints] = []
    for axis, (n, m, start, count) in enumerate(zip(in1.shape, in2.shape, problem.start, problem.out, strict=True)):
        windows = Axis(n, count, m, 1, m - 1 - start, m - 1)
        runs = windows.outputs(in1.chunks[axis])
        in1 = halo(in1, axis, [windows.read(run) for run in runs])
        pads.append([windows.pads(run) for run in runs])
        chunks.append(lengths(runs))
    threads = threads_per_block()
    token = tokenize(function.__name__, in1.name, in2.name, mode, method, backend, threads)
    name = f"{function.__name__}-{token}"
    graph = {}
    for index in itertools.product(*(range(len(each)) for each in chunks)):
        around = [axis[number] for axis, number in zip(pads, index, strict=True)]
        task = partial(signal_block, function.__name__, method, backend, threads, around)
        graph[(name, *index)] = (task, (in1.name, *index), (in2.name, *(0 for _ in index)))
    return built(name, graph, [in1, in2], chunks, arrays.dtype_of(problem.dtype))


def signal_block(
    name: str, method: str, backend: str | None, threads: int, around: list[Range], in1: Any, in2: Any
) -> Any:
    padded = np.pad(in1, around) if any(map(any, around)) else in1
    with numba_threads(threads):
        return getattr(fastconv, name)(padded, in2, "valid", method, backend=backend)


# ---------------------------------------------------------------- the public names

conv1d = lifted(fastconv.conv1d, run, as_dask)
conv2d = lifted(fastconv.conv2d, run, as_dask)
conv3d = lifted(fastconv.conv3d, run, as_dask)
conv1d_dgrad = lifted(fastconv.conv1d_dgrad, run, as_dask)
conv2d_dgrad = lifted(fastconv.conv2d_dgrad, run, as_dask)
conv3d_dgrad = lifted(fastconv.conv3d_dgrad, run, as_dask)
conv1d_wgrad = lifted(fastconv.conv1d_wgrad, run, as_dask)
conv2d_wgrad = lifted(fastconv.conv2d_wgrad, run, as_dask)
conv3d_wgrad = lifted(fastconv.conv3d_wgrad, run, as_dask)
conv_transpose1d = lifted(fastconv.conv_transpose1d, run, as_dask)
conv_transpose2d = lifted(fastconv.conv_transpose2d, run, as_dask)
conv_transpose3d = lifted(fastconv.conv_transpose3d, run, as_dask)
max_pool1d = lifted(fastconv.max_pool1d, run, as_dask, ("return_indices",))
max_pool2d = lifted(fastconv.max_pool2d, run, as_dask, ("return_indices",))
max_pool3d = lifted(fastconv.max_pool3d, run, as_dask, ("return_indices",))
max_pool1d_dgrad = lifted(fastconv.max_pool1d_dgrad, run, as_dask, ("indices",))
max_pool2d_dgrad = lifted(fastconv.max_pool2d_dgrad, run, as_dask, ("indices",))
max_pool3d_dgrad = lifted(fastconv.max_pool3d_dgrad, run, as_dask, ("indices",))
avg_pool1d = lifted(fastconv.avg_pool1d, run, as_dask)
avg_pool2d = lifted(fastconv.avg_pool2d, run, as_dask)
avg_pool3d = lifted(fastconv.avg_pool3d, run, as_dask)
avg_pool1d_dgrad = lifted(fastconv.avg_pool1d_dgrad, run, as_dask)
avg_pool2d_dgrad = lifted(fastconv.avg_pool2d_dgrad, run, as_dask)
avg_pool3d_dgrad = lifted(fastconv.avg_pool3d_dgrad, run, as_dask)
lp_pool1d = lifted(fastconv.lp_pool1d, run, as_dask)
lp_pool2d = lifted(fastconv.lp_pool2d, run, as_dask)
lp_pool3d = lifted(fastconv.lp_pool3d, run, as_dask)

__all__ = [
    "avg_pool1d",
    "avg_pool1d_dgrad",
    "avg_pool2d",
    "avg_pool2d_dgrad",
    "avg_pool3d",
    "avg_pool3d_dgrad",
    "conv1d",
    "conv1d_dgrad",
    "conv1d_wgrad",
    "conv2d",
    "conv2d_dgrad",
    "conv2d_wgrad",
    "conv3d",
    "conv3d_dgrad",
    "conv3d_wgrad",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolve",
    "correlate",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool1d_dgrad",
    "max_pool2d",
    "max_pool2d_dgrad",
    "max_pool3d",
    "max_pool3d_dgrad",
]

"""Pooling on a GPU: kernels/cuda/pool_max.cu, pool_avg.cu and pool_lp.cu.

direct    a thread per output, or per input cell in gradients, and 16 bytes of channels where those are adjacent
strips    max pooling by 2 x 2 or 3 x 3 windows that step by 2, in planes of pixels: 4 outputs of a column per thread
blocks    its gradient, in planes and along channels: the cells between two windows' starts per thread
wide      windows of many cells in planes of pixels: a warp per output
index     along the indices of max unpooling

Whether memory is planes of pixels, or has channels adjacent, shows in the strides of a call.

A gradient of max pooling goes by the places that the forward pass noted of each window's first maximum: the number of
its tap in a byte, or the index of the cell where windows have more than 255 taps. Where there are none, it notes them
first; that of Lp pooling the norms. Both then lie in a workspace; where it would pass its limit, images and channels
are taken in parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastconv import tuning
from fastconv.arrays import dtype_of, module_of, name_of
from fastconv.backends.base import Launch
from fastconv.backends.cpu.pool_small import foreign
from fastconv.backends.raw import args, device
from fastconv.backends.raw.launching import (
    ACCESS,
    STORED,
    Step,
    address_fields,
    aligned,
    blocks_for,
    channels_last,
    parts,
    stored,
    total,
)
from fastconv.backends.reference import check_indices
from fastconv.compiler.cuda import Instance
from fastconv.errors import BackendError, ShapeError
from fastconv.problem import ITEMSIZE, Ints, PoolProblem

Array = Any
Run = Callable[..., None]

MOST_NUMBERED = 2**31  # taps of windows that threads of several channels number
WINNER = np.dtype(np.uint32)
FILES = {"max": "pool_max.cu", "avg": "pool_avg.cu", "lpp": "pool_lp.cu"}
STRIDES = {"x": "xs", "y": "ys", "dx": "dxs", "indices": "is", "scratch": "ss"}
FLOATS = ("float16", "bfloat16", "float32", "float64")
#: The dtypes with 16-byte kernels; of the others, neighbouring threads fill a memory access well enough.
WIDE = ("float16", "bfloat16", "float32", "int8", "uint8")
STEPPED = ((2, 2), (3, 2))  # the (ksize, stride) that have kernels of their own
STEPPED_DTYPES = ("float16", "bfloat16", "float32")
STRIP = 4  # outputs of a thread
WIDE_TAPS = 64
WARP = 32
WORKING = {"float16": 4, "bfloat16": 4, "float32": 4, "float64": 8}  # bytes of the type computed in


# ---------------------------------------------------------------- instances


def lanes_of(dtype: str) -> int:
    """How many values a 16-byte access moves, or 1 for dtypes without such kernels."""
    return ACCESS // ITEMSIZE[dtype] if dtype in WIDE else 1


def moved(dtype: str) -> str:
    """The unsigned integer of a dtype's size: what is only moved, or added modulo 2**bits."""
    return f"uint{8 * ITEMSIZE[dtype]}_t"


def summed(dtype: str) -> str:
    """The C++ name of a gradient's dtype: a float's own, for integers the unsigned one of the size."""
    return STORED[dtype] if dtype in FLOATS else moved(dtype)


def instances() -> Iterator[Instance]:
    """Every instance that `plan` can ask for."""
    for dtype in STORED:
        for lanes in sorted({1, lanes_of(dtype)}):
            yield Instance("pool_max.cu", "maxpool_fprop", (STORED[dtype], str(lanes)))
    for dtype in (*FLOATS, "uint8", "uint16", "uint32", "uint64"):
        yield Instance("pool_max.cu", "maxpool_dgrad", (summed(dtype), "int64_t", "1"))
        if dtype not in FLOATS:
            yield Instance("pool_max.cu", "maxpool_dgrad", (summed(dtype), "uint8_t", "1"))
    for dtype in FLOATS:
        for lanes in sorted({1, lanes_of(dtype)}):
            yield Instance("pool_max.cu", "maxpool_dgrad", (summed(dtype), "uint8_t", str(lanes)))
            for op in ("avgpool_fprop", "avgpool_dgrad"):
                yield Instance("pool_avg.cu", op, (STORED[dtype], str(lanes)))
        for op in ("lppool_fprop", "lppool_dgrad"):
            yield Instance("pool_lp.cu", op, (STORED[dtype],))
        yield Instance("pool_max.cu", "maxpool_fprop_wide", (STORED[dtype],))
        yield Instance("pool_avg.cu", "avgpool_fprop_wide", (STORED[dtype],))
    for dtype, (k, step) in itertools.product(STEPPED_DTYPES, STEPPED):
        yield Instance("pool_max.cu", "maxpool_fprop_strips", (STORED[dtype], str(k), str(step)))
        for lanes in (1, lanes_of(dtype)):
            yield Instance("pool_max.cu", "maxpool_dgrad_blocks", (STORED[dtype], str(k), str(step), str(lanes)))
    for name in ("maxpool_check", "maxunpool_check", "maxunpool_clear", "maxunpool_claim"):
        yield Instance("pool_max.cu", name)
    for bits in (8, 16, 32, 64):
        for op in ("maxunpool_fprop", "maxunpool_dgrad"):
            yield Instance("pool_max.cu", op, (f"uint{bits}_t",))


def claims(instance: Instance) -> dict[str, Any]:
    """What the compile gate holds an instance to."""
    wide = len(instance.args) > 1 and instance.args[-1] != "1" and instance.kernel != "maxpool_fprop_strips"
    return {"sass": ("LDG.128", "STG.128") if wide else (), "registers": 128}


# ---------------------------------------------------------------- the choice


def choose(
    op: str, problem: PoolProblem, on: device.Properties, mode: str = "heuristic"
) -> tuple[str, dict[str, Any], str]:
    """(algorithm, config, why): a pure function of the problem, the device and the autotune mode.

    The algorithm is that of contiguous arrays in the problem's layout.
    """
    if op.startswith("maxunpool"):
        return (
            "index",
            {},
            "values move to and from where their indices say; of several, an atomic maximum finds the last",
        )
    last, dtype = problem.layout == "NHWC" and problem.C > 1, problem.dtype
    kernel = {"maxpool_indices": "maxpool_fprop", "maxpool_places": "maxpool_fprop"}.get(op, op.replace("_places", ""))
    by_tap = kernel == "maxpool_dgrad" and problem.dtype_of("places") == "uint8"
    algorithm = "direct" if mode == "off" else variant(kernel, problem, dtype, last, by_tap)
    lanes = lanes_of(dtype) if last and not op.startswith("lp") and problem.C % lanes_of(dtype) == 0 else 1
    return algorithm, {"lanes": lanes}, WHY[algorithm]


WHY = {
    "direct": "right for every window and layout",
    "strips": "4 outputs of a column share the rows that they read",
    "blocks": "cells that the same windows meet share what they read",
    "wide": "a warp shares the many cells of a window in a plane",
}


def variant(kernel: str, problem: PoolProblem, dtype: str, last: bool, by_tap: bool) -> str:
    """The algorithm of a kernel for arrays of a dtype whose channels are adjacent (`last`), or lie in planes."""
    fits = stepped(problem) is not None and dtype in STEPPED_DTYPES
    if kernel == "maxpool_dgrad":
        return "blocks" if fits and by_tap else "direct"
    if last or dtype not in FLOATS or kernel not in ("maxpool_fprop", "avgpool_fprop"):
        return "direct"
    if problem.taps >= WIDE_TAPS:
        return "wide"
    return "strips" if fits and kernel == "maxpool_fprop" else "direct"


def stepped(problem: PoolProblem) -> tuple[int, int] | None:
    """(ksize, stride) of dense square windows over H and W that have kernels of their own."""
    window = problem.window
    if window is None or problem.ndim == 1 or set(window.dilation) != {1}:
        return None
    depth = [(window.ksize[0], window.stride[0], window.pad[0])] if problem.ndim == 3 else []
    shapes = set(zip(window.ksize[-2:], window.stride[-2:], strict=True))
    if depth not in ([], [(1, 1, (0, 0))]) or len(shapes) > 1:
        return None
    (shape,) = shapes
    return shape if shape in STEPPED else None


def plane_bytes(op: str, problem: PoolProblem) -> int:
    """Bytes of workspace per image and channel."""
    if op.startswith("maxunpool"):
        return 4 * math.prod(problem.size)
    if op == "maxpool_dgrad":
        return math.prod(problem.out) * dtype_of(problem.dtype_of("places")).itemsize
    return math.prod(problem.out) * WORKING[problem.dtype] if op == "lppool_dgrad" else 0


def plan(op: str, problem: PoolProblem) -> Launch:
    algorithm, config, why = choose(op, problem, device.current().properties, tuning.autotune())
    if op.startswith("maxunpool") and math.prod(problem.out) >= 2**32 - 1:
        raise BackendError(f"{math.prod(problem.out)} values per plane are more than its kernels count, 2**32 - 2")
    nbytes = plane_bytes(op, problem)
    pieces = parts(problem.N, problem.C, nbytes)
    compute = BUILD.get(op, fprop)(problem, op)
    check = CHECKS[op](problem) if op in CHECKS else None

    def each(*views: Array) -> None:
        if check is not None and views[0].size:
            views = (*views[:-1], check(views[-1]))
        for part in pieces:
            compute(*(views if len(pieces) == 1 else [None if view is None else view[part] for view in views]))

    run = compute if len(pieces) == 1 and check is None else each
    return Launch(run, algorithm, why, config, total(pieces, nbytes))


# ---------------------------------------------------------------- the launches


class Pass:
    """A kernel of a problem; a struct is filled once for views of the same strides and alignment.

    `roles` name its views in the order of a call, the one that it writes first. Its threads run over outputs ("out") or
    input cells ("size"). `template` gives its first arguments from the dtypes by role; with `lanes` > 0 another one
    follows, how many channels a thread takes: up to so many where they are adjacent.
    """

    def __init__(
        self, problem: PoolProblem, kernel: str, over: str, roles: str,
        template: Callable[[dict[str, Any]], tuple[str, ...]] = lambda views: (), lanes: int = 0,
    ):  # fmt: skip
        self.problem, self.geometry, self.plain = problem, args.pool(problem), tuning.autotune() == "off"
        self.file, self.kernel, self.over, self.roles = FILES[kernel[:3]], kernel, over, roles.split()
        self.template, self.lanes = template, lanes
        nowhere = len(self.roles)
        self.pointers = tuple(
            self.roles.index(name) if name in self.roles else nowhere for name in address_fields(args.POOL)
        )
        self.steps: dict[Any, Step] = {}

    def __call__(self, on: device.Device, *views: Array) -> None:
        """Launch on views, in the order of the roles."""
        addresses = [address(on, view) for view in views]
        bits = 0
        for each in addresses:
            bits |= each
        key = (on, bits % ACCESS, views[0].shape, *[(view.strides, view.dtype) for view in views])
        step = self.steps.get(key)
        if step is None:
            step = self.steps[key] = self.prepare(dict(zip(self.roles, views, strict=True)), bits)
            step.function = on.function(step.instance)
        addresses.append(0)
        step.launch(on, addresses)

    def prepare(self, views: dict[str, Array], bits: int) -> Step:
        main, template = views[self.roles[0]], self.template(views)
        N, C = main.shape[:2]
        source: Array = views.get("x", main)
        lanes = min(self.lanes, lanes_of(name_of(source.dtype)))
        filled, last = self.geometry.copy(), channels_last(source)
        filled["N"], filled["channels_last"] = N, last
        for name, view in views.items():
            if name in STRIDES:
                filled[STRIDES[name]] = args.strides_of(view)
        moved = [name for name in views if name not in ("flag", *(("indices",) if self.over == "out" else ()))]
        wide = last and self.problem.taps < MOST_NUMBERED
        if lanes > 1 and not (wide and all(aligned(views[name], bits, lanes, 1) for name in moved)):
            lanes = 1
        by_tap = template[1:] == ("uint8_t",)
        algorithm = "direct" if self.plain else variant(self.kernel, self.problem, name_of(source.dtype), last, by_tap)
        kernel, template, over = self.instance(algorithm, template, lanes)
        packs = C // max(1, lanes)
        filled["packs"], filled["over"] = args.divisor(packs), [args.divisor(extent) for extent in over]
        threads = N * packs * math.prod(over) * (WARP if algorithm == "wide" else 1)
        return Step(Instance(self.file, kernel, template), blocks_for(threads), filled, self.pointers)

    def instance(self, algorithm: str, template: tuple[str, ...], lanes: int) -> tuple[str, tuple[str, ...], Ints]:
        """(kernel, template arguments, what its threads run over)"""
        d, h, w = args.lift(self.problem.out if self.over == "out" else self.problem.size, 1)
        if algorithm == "wide":
            return f"{self.kernel}_wide", template[:1], (d, h, w)
        if algorithm == "direct":
            return self.kernel, (*template, *([str(lanes)] if lanes else [])), (d, h, w)
        k, step = stepped(self.problem) or STEPPED[0]
        if algorithm == "strips":
            return "maxpool_fprop_strips", (template[0], str(k), str(step)), (d, -(-h // STRIP), w)
        lows = [low for low, _ in self.problem.window.pad[-2:]] if self.problem.window else [0, 0]
        h, w = ((n - 1 + low) // step - low // step + 1 for n, low in zip((h, w), lows, strict=True))
        return "maxpool_dgrad_blocks", (template[0], str(k), str(step), str(lanes)), (d, h, w)


class Workspace:
    """Scratch memory as a view [N, C, three extents], its channels last where `like` has them so."""

    def __init__(self, on: device.Device, like: Array, extents: Ints, dtype: np.dtype):
        N, C = like.shape[:2]
        self.dtype = dtype
        self.memory = on.scratch(N * C * math.prod(extents) * self.dtype.itemsize)
        d, h, w = args.lift(extents, 1)
        self.shape = (N, C, d, h, w)
        steps = (
            (d * h * w * C, 1, h * w * C, w * C, C) if channels_last(like) else (C * d * h * w, d * h * w, h * w, w, 1)
        )
        self.strides = tuple(step * self.dtype.itemsize for step in steps)


def address(on: device.Device, view: Array) -> int:
    return view.memory.pointer if type(view) is Workspace else on.pointer(view)


def of_x(views: dict[str, Array]) -> tuple[str, ...]:
    return (stored(views["x"]),)


def fprop(problem: PoolProblem, op: str) -> Run:
    """Max pooling with or without indices, average and Lp pooling."""
    kernel, roles = op, "y x"
    if op in ("maxpool_indices", "maxpool_places"):
        notes = noted(problem) if op == "maxpool_places" else "indices"
        kernel, roles = "maxpool_fprop", f"y {notes} x"
    compute = Pass(problem, kernel, "out", roles, of_x, 0 if op == "lppool_fprop" else ACCESS)

    def run(*views: Array) -> None:
        compute(device.current(), *views)

    return run


def noted(problem: PoolProblem) -> str:
    """What the kernels call the places of maxima: bytes go to `scratch`, and 64 bits to `indices`."""
    return "scratch" if problem.dtype_of("places") == "uint8" else "indices"


def gather(problem: PoolProblem, places: str) -> Pass:
    """The gradient of max pooling along places of that dtype: the numbers of taps, or indices."""
    template = summed(problem.dtype), f"{places}_t"
    lanes = ACCESS if places == "uint8" and problem.dtype in FLOATS else 1
    return Pass(problem, "maxpool_dgrad", "size", "dx y indices", lambda views: template, lanes)


def places_dgrad(problem: PoolProblem, op: str) -> Run:
    compute = gather(problem, problem.dtype_of("places"))

    def run(dx: Array, dy: Array, places: Array) -> None:
        compute(device.current(), dx, dy, places)

    return run


def max_dgrad(problem: PoolProblem, op: str) -> Run:
    places = problem.dtype_of("places")
    find = Pass(problem, "maxpool_fprop", "out", f"{noted(problem)} x", of_x, ACCESS)
    along, follow = gather(problem, "int64"), gather(problem, places)

    def run(dx: Array, dy: Array, x: Array, indices: Array | None) -> None:
        on = device.current()
        if indices is not None:
            along(on, dx, dy, indices)
            return
        notes = Workspace(on, dx, problem.out, dtype_of(places))
        find(on, notes, x)
        follow(on, dx, dy, notes)

    return run


def avg_dgrad(problem: PoolProblem, op: str) -> Run:
    gather = Pass(problem, op, "size", "dx y", lambda views: (stored(views["y"]),), ACCESS)

    def run(dx: Array, dy: Array) -> None:
        gather(device.current(), dx, dy)

    return run


def lp_dgrad(problem: PoolProblem, op: str) -> Run:
    measure = Pass(problem, "lppool_fprop", "out", "scratch x", of_x)
    gather = Pass(problem, op, "size", "dx y x scratch", of_x)
    dtype = np.dtype(f"f{WORKING[problem.dtype]}")

    def run(dx: Array, dy: Array, x: Array) -> None:
        on = device.current()
        norms = Workspace(on, dx, problem.out, dtype)
        measure(on, norms, x)
        gather(on, dx, dy, x, norms)

    return run


def unpool(problem: PoolProblem, op: str) -> Run:
    """Of a pooling's input x and output y, whichever the op writes, from the other one and checked indices."""
    clear = Pass(problem, "maxunpool_clear", "size", "scratch")
    claim = Pass(problem, "maxunpool_claim", "out", "indices scratch")
    over, roles = ("size", "x y") if op == "maxunpool_fprop" else ("out", "y x")
    move = Pass(problem, op, over, f"{roles} indices scratch", lambda views: (moved(problem.dtype),))

    def run(result: Array, source: Array, indices: Array) -> None:
        on = device.current()
        winners = Workspace(on, indices, problem.size, WINNER)
        clear(on, winners)
        claim(on, indices, winners)
        move(on, result, source, indices, winners)

    return run


# ---------------------------------------------------------------- indices that a caller gives


def check_cells(problem: PoolProblem) -> Callable[[Array], Array]:
    """Of max unpooling: every index is a cell of the extent."""
    return checked(problem, "maxunpool_check", lambda indices: check_indices(indices, problem, low=0))


def check_windows(problem: PoolProblem) -> Callable[[Array], Array]:
    """Of the gradient of max pooling: every index is a cell of its window, or -1."""

    def refuse(indices: np.ndarray) -> None:
        raise ShapeError(foreign(problem, indices))

    return checked(problem, "maxpool_check", refuse)


def checked(problem: PoolProblem, kernel: str, refuse: Callable[[np.ndarray], None]) -> Callable[[Array], Array]:
    """Indices as int64, once a kernel has looked at them all; it raises a flag, which the host waits for."""
    look = Pass(problem, kernel, "out", "indices flag")

    def run(indices: Array | None) -> Array | None:
        if indices is None:
            return None
        indices = indices.astype(np.int64, copy=False)
        flag = module_of(indices).zeros((), np.int32)
        look(device.current(), indices, flag)
        if int(flag):
            refuse(indices if isinstance(indices, np.ndarray) else indices.get())
        return indices

    return run


BUILD: dict[str, Callable[[PoolProblem, str], Run]] = {
    "maxpool_dgrad": max_dgrad,
    "maxpool_places_dgrad": places_dgrad,
    "avgpool_dgrad": avg_dgrad,
    "lppool_dgrad": lp_dgrad,
    "maxunpool_fprop": unpool,
    "maxunpool_dgrad": unpool,
}
CHECKS = {"maxpool_dgrad": check_windows, "maxunpool_fprop": check_cells, "maxunpool_dgrad": check_cells}

"""Convolution on tensor cores by mma.sync: kernels/cuda/conv_mma.cu, conv_mma_wgrad.cu, and pack.cu before them.

fprop is one gathering pass over x; dgrad one over dy for each residue of dx's cells modulo the stride; wgrad a sum over
pixels, cut into parts that reduce.cu adds. The kernels read rows of channels, 16 bytes at a time. What lies otherwise
(NCHW, a channel count that fills no 16 bytes, OIHW filters) is packed first, some images at a time, so that the
workspace keeps to its limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.raw import args
from fastconv.backends.raw.conv_steps import Offer, Operands, per_group, pixels_of
from fastconv.backends.raw.device import Properties, workspace_limit
from fastconv.backends.raw.launching import LARGEST_GRID, Step, blocks_for
from fastconv.compiler.cuda import Instance
from fastconv.problem import ACTIVATIONS, ConvProblem, Ints

GATHER_FILE, WGRAD_FILE, PACK_FILE = "conv_mma.cu", "conv_mma_wgrad.cu", "pack.cu"
FILES = (GATHER_FILE, WGRAD_FILE, PACK_FILE)
X, W, Y, BIAS, SCRATCH = range(5)  # addresses, in the order of Step.launch
LINE = 256  # bytes that a region of scratch memory begins at a multiple of
LEAST_GROUP = 32  # channels of a group, below which a tile would be mostly padding
LEAST_CHANNELS = 3  # summed over or written, where there is one group
PARTS_PER_SM = 2
LEAST_STEPS = 16  # of a part of the pixels

#: Bytes that one element of the sum's dtype has, and the name of the kernels' element type.
ELEMENTS = {"float16": ("f16", 2), "bfloat16": ("bf16", 2)}
#: 16-bit products with float32 sums for one of FMA, by compute capability (NVIDIA's data sheets); 4 elsewhere.
#: On Hopper mma.sync is said to reach 62 % of what wgmma does (Luo et al., Benchmarking and Dissecting the Nvidia
#: Hopper GPU Architecture, 2024).
DENSE_GAIN = {75: 8, 80: 16, 90: 10, 100: 28}
BYTE, LAUNCH = 8, 5e7  # what a byte of device memory, and a launch, cost in multiply-adds at the full rate of FMA
#: Where bf16 products are more than six times as many as float32's FMA, so that the split pays.
SPLIT_PAYS = (80, 90, 100)


class Tile(NamedTuple):
    """A block's share of the result, its warps, and what of the peak it reaches: the smaller, the more it reads."""

    rows: int
    columns: int
    warps: tuple[int, int]
    efficiency: float

    @property
    def threads(self) -> int:
        return 32 * self.warps[0] * self.warps[1]

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


GATHER_TILES = (
    Tile(128, 128, (2, 4), 1.0), Tile(128, 64, (4, 2), 0.85), Tile(64, 64, (2, 2), 0.7)
)  # fmt: skip
WGRAD_TILES = (Tile(128, 128, (2, 4), 1.0), Tile(64, 64, (2, 2), 0.7))


# ---------------------------------------------------------------- what it takes, and with which tiles


def element_of(problem: ConvProblem, properties: Properties) -> str | None:
    """The kernels' element type for a problem on a device, or None where its tensor cores have none or gain nothing."""
    capability = properties.capability
    if problem.dtype == "float16":
        return "f16" if capability >= 75 else None
    if problem.dtype == "bfloat16":
        return "bf16" if capability >= 80 else None
    if problem.dtype != "float32" or capability < 80:
        return None
    if problem.precision in ("tf32", "bf16"):
        return "Tf32"
    return "Ieee" if capability in SPLIT_PAYS else None


def itemsize(problem: ConvProblem) -> int:
    return 4 if problem.dtype == "float32" else 2


def offer(op: str, problem: ConvProblem, properties: Properties) -> Offer | None:
    """The config for a problem and its cost, or None where there is no such product on the device or no tile for it."""
    element = element_of(problem, properties)
    M, C = per_group(op, problem)
    least = LEAST_CHANNELS if problem.groups == 1 else LEAST_GROUP
    chunk = 16 // itemsize(problem)
    if element is None or problem.N == 0 or min(M, C) < least:
        return None
    if problem.groups > 1 and (M % chunk or C % chunk):
        return None
    tile = best_tile(op, problem, element, properties)
    parts = parts_of(problem, tile, properties) if op == "conv_wgrad" else 1
    images = images_at_once(op, problem, parts)
    if tile is None or images == 0:
        return None
    config = {"element": element, "tile": str(tile), "images": images}
    if op == "conv_wgrad":
        config["parts"] = parts
    return Offer(config, WHY[element], cost(op, problem, element, tile, parts, properties))


WHY = {
    "f16": "dense: float16 products on tensor cores, summed in float32",
    "bf16": "dense: bfloat16 products on tensor cores, summed in float32",
    "Tf32": "dense: factors rounded to 11 bits, as was asked for, on tensor cores",
    "Ieee": "dense: float32 as three bfloat16 on tensor cores, to the accuracy of float32 sums",
}


def cost(op: str, problem: ConvProblem, element: str, tile: Tile, parts: int, properties: Properties) -> float:
    """Multiply-adds of whole tiles, over what tensor cores do for one of FMA; and the bytes and launches of packing."""
    M, C = per_group(op, problem)
    taps, pixels = problem.window.taps, pixels_of(op, problem)
    rows, columns, summed = (M, C * taps, pixels) if op == "conv_wgrad" else (pixels, M, C * taps)
    if op == "conv_dgrad":  # each residue meets its own share of the taps
        summed = -(-summed // math.prod(problem.window.stride))
    blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * problem.groups * parts
    busy = min(1.0, blocks / properties.sms)
    step = 64 // itemsize(problem)
    products = blocks // parts * tile.rows * tile.columns * -(-summed // step) * step
    gain = DENSE_GAIN.get(properties.capability, 4) / {"Tf32": 2, "Ieee": 6}.get(element, 1)
    packed = problem.layout == "NCHW" or problem.C % (step // 4) or problem.K % (step // 4)
    moved = 2 * (problem.N * image_bytes(op, problem) + weight_bytes(op, problem, parts)) if packed else 0
    return products / (gain * tile.efficiency * busy) + BYTE * moved + (2 * LAUNCH if packed else 0)


def stages_of(op: str, element: str) -> int:
    return 3 if op == "conv_wgrad" and element in ("Tf32", "Ieee") else 4


def shared_bytes(op: str, element: str, tile: Tile) -> int:
    """What a block's stages need, or its sums on their way out, whichever is more."""
    stages = stages_of(op, element)
    if op != "conv_wgrad":
        stage = 64 * (tile.rows + tile.columns)
    elif element in ELEMENTS:
        stage = 32 * 2 * (tile.rows + tile.columns)
    else:
        stage = 16 * 4 * (tile.rows + tile.columns + 16)
    return max(stages * stage, 4 * tile.rows * (tile.columns + 8))


def best_tile(op: str, problem: ConvProblem, element: str, properties: Properties) -> Tile | None:
    """The tile by which the busiest multiprocessor has the least to do: its blocks' products, over their efficiency."""
    M, C = per_group(op, problem)
    rows = M if op == "conv_wgrad" else pixels_of(op, problem)
    columns = C * problem.window.taps if op == "conv_wgrad" else M

    def time(tile: Tile) -> float:
        blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * problem.groups
        busiest = blocks if op == "conv_wgrad" else -(-blocks // properties.sms)  # wgrad's parts fill the device
        return busiest * tile.rows * tile.columns / tile.efficiency

    tiles = [
        tile
        for tile in (WGRAD_TILES if op == "conv_wgrad" else GATHER_TILES)
        if shared_bytes(op, element, tile) <= properties.shared_per_block
    ]
    return min(tiles, key=time, default=None)


def parts_of(problem: ConvProblem, tile: Tile | None, properties: Properties) -> int:
    """Into how many parts wgrad's pixels are cut: enough blocks for the device, none of them too short."""
    if tile is None:
        return 1
    K, C = per_group("conv_wgrad", problem)
    tiles = -(-K // tile.rows) * -(-(C * problem.window.taps) // tile.columns) * problem.groups
    pixels, step = pixels_of("conv_wgrad", problem), 64 // itemsize(problem)
    wanted = -(-PARTS_PER_SM * properties.sms // tiles)
    room = workspace_limit() // 4 // (4 * weights_of(problem))
    return max(1, min(wanted, pixels // (LEAST_STEPS * step), room))


def weights_of(problem: ConvProblem) -> int:
    return problem.K * (problem.C // problem.groups) * problem.window.taps


def filled_up(problem: ConvProblem, channels: int) -> int:
    """Channels as rows of whole chunks of 16 bytes."""
    chunk = 16 // itemsize(problem)
    return -(-channels // chunk) * chunk


def lined(nbytes: int) -> int:
    """Bytes up to where the next region of scratch memory begins."""
    return -(-nbytes // LINE) * LINE


def image_bytes(op: str, problem: ConvProblem) -> int:
    """Of one image's packed source, or of wgrad's two."""
    size = itemsize(problem)
    x = math.prod(problem.size) * filled_up(problem, problem.C) * size
    y = math.prod(problem.out) * filled_up(problem, problem.K) * size
    return {"conv_fprop": x, "conv_dgrad": y, "conv_wgrad": x + y}[op]


def weight_bytes(op: str, problem: ConvProblem, parts: int) -> int:
    """Of the packed filters, or of wgrad's parts."""
    if op == "conv_wgrad":
        return 4 * parts * weights_of(problem) if parts > 1 else 0
    K, C, taps = problem.K, problem.C // problem.groups, problem.window.taps
    packed = K * filled_up(problem, C) if op == "conv_fprop" else C * filled_up(problem, K)
    return packed * taps * itemsize(problem)


def images_at_once(op: str, problem: ConvProblem, parts: int) -> int:
    """How many images are packed at a time, so that the workspace keeps to its limit; 0 where not one can be."""
    for times in range(1, problem.N + 1):
        images = -(-problem.N // times)
        if workspace(op, problem, {"images": images, "parts": parts}) <= workspace_limit():
            return images
    return 0


def workspace(op: str, problem: ConvProblem, config: dict[str, Any]) -> int:
    """What a call takes at most: where its operands lie as the kernels read them, it is not touched."""
    weights = weight_bytes(op, problem, _passes(problem, config) * config.get("parts", 1))
    return lined(weights) + config["images"] * image_bytes(op, problem) + 2 * LINE


def _passes(problem: ConvProblem, config: dict[str, Any]) -> int:
    return -(-problem.N // config["images"])


# ---------------------------------------------------------------- operands as the kernels read them


class Rows(NamedTuple):
    """An operand as rows of channels: where it lies (an address and elements past it) and its strides."""

    address: int
    first: int
    strides: Ints
    channels: int
    image: int  # elements from one image to the next, where images are taken a few at a time


def rows_of(
    problem: ConvProblem, operands: Operands, role: str, offset: int, images: int
) -> tuple[Rows, list[tuple[int, Step]]]:
    """An activation as rows of channels and, where it does not lie so, the step that packs `images` of it.

    `offset` is where in scratch memory it would go, in bytes. The step comes with the address that it reads.
    """
    chunk, strides = 16 // itemsize(problem), operands.strides[role]
    channels = problem.C if role == "x" else problem.K
    address = X if role == "x" else Y
    if channels % chunk == 0 and operands.packs(role, 1, chunk):
        return Rows(address, 0, strides, channels, strides[0]), []
    padded, extent = filled_up(problem, channels), args.lift(problem.size if role == "x" else problem.out, 1)
    packed = (math.prod(extent) * padded, 1, extent[1] * extent[2] * padded, extent[2] * padded, padded)
    first = offset // itemsize(problem)
    step = pack(problem, address, strides, channels, padded, extent, images, first)
    return Rows(SCRATCH, first, packed, padded, 0), [(strides[0], step)]


def pack(
    problem: ConvProblem, address: int, strides: Ints, channels: int, padded: int, extent: Ints, images: int, first: int
) -> Step:
    """Rows of `padded` channels at element `first` of scratch memory, from an operand of any strides."""
    filled = np.zeros((), args.PACKING)
    filled["to0"], filled["strides"], filled["extent"] = first, strides, extent
    filled["pixels"] = images * math.prod(extent)
    filled["C"], filled["padded"] = channels, padded
    blocks = -(-int(filled["pixels"]) // 32) * -(-padded // 32)
    instance = Instance(PACK_FILE, "pack", ("uint32_t" if itemsize(problem) == 4 else "uint16_t",))
    return Step(instance, min(blocks, LARGEST_GRID), filled, (address, SCRATCH))


class Filters(NamedTuple):
    """The filters as B: where they lie, and strides of m, of c, of a tap along each axis, of a group."""

    address: int
    first: int
    m: int
    c: int
    taps: Ints
    group: int
    crossed: bool


def filters_of(op: str, problem: ConvProblem, operands: Operands, source: Rows) -> tuple[Filters, list[Step]]:
    """The filters in place where 16 bytes of them lie along c or m, else packed at the start of scratch memory."""
    chunk, strides = 16 // itemsize(problem), operands.strides["w"]
    M, C = per_group(op, problem)
    m, c = (0, 1) if op == "conv_fprop" else (1, 0)
    group = (problem.K // problem.groups) * strides[0]
    whole = source.channels // problem.groups == C  # no row of the source was filled up
    in_place = Filters(W, 0, strides[m], strides[c], strides[2:], group, False)
    if whole and C % chunk == 0 and operands.packs("w", c, chunk):
        return in_place, []
    if whole and problem.dtype in ELEMENTS and M % chunk == 0 and operands.packs("w", m, chunk):
        return in_place._replace(crossed=True), []
    ksize = args.lift(problem.window.ksize, 1)
    summed = C if op == "conv_fprop" else problem.K
    padded = filled_up(problem, summed)
    order = (strides[m], strides[c], *strides[2:])
    rows = problem.K if op == "conv_fprop" else M
    step = pack(problem, W, order, summed, padded, ksize, rows, 0)
    tap = (ksize[1] * ksize[2] * padded, ksize[2] * padded, padded)
    row = ksize[0] * tap[0]
    return Filters(SCRATCH, 0, row, 1, tap, M * row if op == "conv_fprop" else C, False), [step]


# ---------------------------------------------------------------- fprop and dgrad


class Along(NamedTuple):
    """One axis of a pass: how many outputs, the first of them and their distance; the taps that meet them."""

    outputs: int
    start: int
    apart: int
    taps: int
    tap0: int
    tap_step: int
    step: int
    first: int
    tap_apart: int


def passes(op: str, problem: ConvProblem) -> Iterator[tuple[Along, ...]]:
    """Along every axis: one pass of fprop, or one of dgrad for each residue modulo the stride."""
    window = problem.window
    choices: list[list[Along]] = [[Along(1, 0, 1, 1, 0, 1, 1, 0, 1)]] * (3 - problem.ndim)
    for axis, (size, out) in enumerate(zip(problem.size, problem.out, strict=True)):
        k, s, d, (low, _) = window.ksize[axis], window.stride[axis], window.dilation[axis], window.pad[axis]
        if op == "conv_fprop":
            choices.append([Along(out, 0, 1, k, 0, 1, s, -low, d)])
            continue
        step = s // math.gcd(s, d)
        along = []
        for start in range(min(s, size)):
            taps = [r for r in range(k) if (start + low - r * d) % s == 0]
            first = (start + low - taps[0] * d) // s if taps else 0
            count = -(-(size - start) // s)
            along.append(Along(count, start, s, len(taps), taps[0] if taps else 0, step, 1, first, -(step * d // s)))
        choices.append(along)
    yield from itertools.product(*choices)


def steps(op: str, problem: ConvProblem, config: dict[str, Any], operands: Operands) -> list[Step]:
    """The launches of a call: packing, the passes, and the sum of parts."""
    if op == "conv_wgrad":
        return wgrad_steps(problem, config, operands)
    role, result = ("x", "y") if op == "conv_fprop" else ("y", "x")
    images = config["images"]
    offset = lined(weight_bytes(op, problem, 1))
    source, packing = rows_of(problem, operands, role, offset, images)
    filters, found = filters_of(op, problem, operands, source)
    if not packing:
        images = problem.N
    for first in range(0, problem.N, images):
        count = min(images, problem.N - first)
        found += [images_from(step, first * apart, count, images) for apart, step in packing]
        for along in passes(op, problem):
            found.append(gather(op, problem, config, operands, source, filters, along, first, count, result))
    return found


def images_from(step: Step, first: int, count: int, images: int) -> Step:
    """A packing of `count` images from element `first` on, made of one of `images`."""
    filled = np.frombuffer(bytearray(step.template), step.dtype)[0]
    filled["from0"] = first
    filled["pixels"] = int(filled["pixels"]) // images * count
    return Step(step.instance, step.grid[0], np.asarray(filled), step.pointers)


def gather(
    op: str, problem: ConvProblem, config: dict[str, Any], operands: Operands, source: Rows, filters: Filters,
    along: tuple[Along, ...], first: int, count: int, result: str,
) -> Step:  # fmt: skip
    """One launch of conv_mma: `count` images from `first` on."""
    tile = next(tile for tile in GATHER_TILES if str(tile) == config["tile"])
    filled = gather_args(op, problem, operands, source, filters, along, first, count, result)
    blocks = -(-int(filled["pixels"]) // tile.rows) * -(-int(filled["M"]) // tile.columns) * problem.groups
    instance = gather_instance(config["element"], tile, filters.crossed)
    pointers = gather_pointers(source, filters, result)
    return Step(instance, blocks, filled, pointers, tile.threads, shared_bytes(op, config["element"], tile))


def gather_pointers(source: Rows, filters: Filters, result: str) -> Ints:
    return source.address, filters.address, Y if result == "y" else X, BIAS


def gather_args(
    op: str, problem: ConvProblem, operands: Operands, source: Rows, filters: Filters, along: tuple[Along, ...],
    first: int, count: int, result: str,
) -> np.ndarray:  # fmt: skip
    """The struct Gather but for the addresses."""
    M, C = per_group(op, problem)
    filled = np.zeros((), args.GATHER)
    to = operands.strides[result]
    filled["a0"] = source.first + first * source.image
    filled["w0"] = filters.first + sum(one.tap0 * tap for one, tap in zip(along, filters.taps, strict=True))
    filled["d0"] = first * to[0] + sum(one.start * stride for one, stride in zip(along, to[2:], strict=True))
    filled["as"], filled["ws"], filled["wg"] = source.strides, (filters.m, filters.c), filters.group
    filled["wt"] = [one.tap_step * tap for one, tap in zip(along, filters.taps, strict=True)]
    filled["ds"] = (*to[:2], *(one.apart * stride for one, stride in zip(along, to[2:], strict=True)))
    (filled["bs"],) = operands.strides.get("bias", (0,))
    filled["bt"] = args.DTYPES.index(operands.dtypes.get("bias", "float32"))
    filled["pixels"] = count * math.prod(one.outputs for one in along)
    filled["C"] = source.channels if problem.groups == 1 else C
    filled["M"], filled["G"] = M, problem.groups
    filled["activation"] = 0 if problem.activation is None else ACTIVATIONS.index(problem.activation) + 1
    filled["source"] = args.lift(problem.size if op == "conv_fprop" else problem.out, 1)
    for name, field in (
        ("out", "outputs"), ("step", "step"), ("taps", "taps"), ("first", "first"), ("apart", "tap_apart"),
    ):  # fmt: skip
        filled[name] = [getattr(one, field) for one in along]
    chunk = 16 // itemsize(problem)
    filled["wide"] = M % chunk == 0 and operands.packs(result, 1, chunk)
    return filled


def gather_instance(element: str, tile: Tile, crossed: bool) -> Instance:
    shape = (str(tile.rows), str(tile.columns), *map(str, tile.warps))
    return Instance(GATHER_FILE, "conv_mma", (element, *shape, str(crossed).lower(), str(stages_of("", element))))


# ---------------------------------------------------------------- wgrad


def wgrad_steps(
    problem: ConvProblem, config: dict[str, Any], operands: Operands, launch: Callable[..., Step] | None = None
) -> list[Step]:
    """Packing and products (`launch`), some images at a time; then the sum of all parts, where there are several."""
    launch = launch or wgrad_step
    images = config["images"]
    parts = config["parts"] * _passes(problem, config)
    offset = lined(weight_bytes("conv_wgrad", problem, parts))
    x, x_packing = rows_of(problem, operands, "x", offset, images)
    x_bytes = lined(images * math.prod(problem.size) * x.channels * itemsize(problem)) if x_packing else 0
    y, y_packing = rows_of(problem, operands, "y", offset + x_bytes, images)
    if not x_packing and not y_packing:
        images, parts = problem.N, config["parts"]
    found: list[Step] = []
    for number, first in enumerate(range(0, problem.N, images)):
        count = min(images, problem.N - first)
        found += [images_from(step, first * apart, count, images) for apart, step in (*x_packing, *y_packing)]
        found.append(launch(problem, config, operands, x, y, first, count, number * config["parts"], parts))
    return found + ([sum_of_parts(problem, operands, parts)] if parts > 1 else [])


def wgrad_step(
    problem: ConvProblem, config: dict[str, Any], operands: Operands, x: Rows, y: Rows, first: int, count: int,
    part0: int, parts: int,
) -> Step:  # fmt: skip
    """One launch of conv_mma_wgrad: `count` images from `first` on, in the config's parts."""
    tile = next(tile for tile in WGRAD_TILES if str(tile) == config["tile"])
    filled = wgrad_args(problem, config, operands, x, y, first, count, part0, parts)
    columns = int(filled["C"]) * problem.window.taps
    blocks = -(-int(filled["K"]) // tile.rows) * -(-columns // tile.columns) * problem.groups * config["parts"]
    element = config["element"]
    return Step(
        wgrad_instance(element, tile), blocks, filled, (x.address, W, y.address, SCRATCH), tile.threads,
        shared_bytes("conv_wgrad", element, tile),
    )  # fmt: skip


def wgrad_args(
    problem: ConvProblem, config: dict[str, Any], operands: Operands, x: Rows, y: Rows, first: int, count: int,
    part0: int, parts: int,
) -> np.ndarray:  # fmt: skip
    """The struct Wgrad but for the addresses."""
    K, C = per_group("conv_wgrad", problem)
    window = problem.window
    filled = np.zeros((), args.WGRAD)
    filled["x0"], filled["y0"] = x.first + first * x.image, y.first + first * y.image
    filled["s0"] = 4 * part0 * weights_of(problem)
    filled["xs"], filled["ws"], filled["ys"] = x.strides, operands.strides["w"], y.strides
    out = args.lift(problem.out, 1)
    pixels, step = count * math.prod(out), 64 // itemsize(problem)
    part = -(-pixels // config["parts"])
    filled["pixels"], filled["part"] = pixels, -(-part // step) * step
    rest = step // 2
    for axis in (2, 1, 0):
        rest, filled["advance"][axis] = divmod(rest, out[axis])
    filled["advance_n"] = rest
    filled["C"], filled["K"] = (x.channels, y.channels) if problem.groups == 1 else (C, K)
    filled["Cw"], filled["Kw"], filled["G"], filled["parts"] = C, K, problem.groups, parts
    for name, values, fill in (
        ("size", problem.size, 1), ("ksize", window.ksize, 1), ("out", problem.out, 1), ("stride", window.stride, 1),
        ("dilation", window.dilation, 1), ("pad", tuple(low for low, _ in window.pad), 0),
    ):  # fmt: skip
        filled[name] = args.lift(values, fill)
    return filled


def wgrad_instance(element: str, tile: Tile) -> Instance:
    shape = (str(tile.rows), str(tile.columns), *map(str, tile.warps))
    return Instance(WGRAD_FILE, "conv_mma_wgrad", (element, *shape, str(stages_of("conv_wgrad", element))))


def sum_of_parts(problem: ConvProblem, operands: Operands, parts: int) -> Step:
    """reduce.cu over parts that lie as [part][k][tap][c]."""
    filled = np.zeros((), args.SPLITS)
    k, c, *taps = operands.strides["w"]
    extent = (problem.K, *args.lift(problem.window.ksize, 1), problem.C // problem.groups)
    filled["extent"] = [args.divisor(n) for n in extent]
    filled["stride"] = (k, *taps, c)
    filled["splits"] = parts
    result = {"float16": "f16", "bfloat16": "bf16", "float32": "float"}[problem.dtype]
    instance = Instance("reduce.cu", "reduce_splits", (result,))
    return Step(instance, blocks_for(weights_of(problem)), filled, (SCRATCH, W, BIAS))


# ---------------------------------------------------------------- what is shipped


def instances() -> Iterator[Instance]:
    """Every instance that this algorithm can ask for, but those of reduce.cu."""
    for element in ("f16", "bf16", "Tf32", "Ieee"):
        for tile in GATHER_TILES:
            yield gather_instance(element, tile, False)
            if element in ("f16", "bf16"):
                yield gather_instance(element, tile, True)
        for tile in WGRAD_TILES:
            yield wgrad_instance(element, tile)
    for bits in ("uint16_t", "uint32_t"):
        yield Instance(PACK_FILE, "pack", (bits,))


def claims(instance: Instance) -> dict[str, Any]:
    """Matrix products, and the copies and 16-byte stores that the head of each kernel tells of; bf16 from sm_80 on."""
    if instance.file == PACK_FILE:
        return {}
    sass = ("HMMA", "STG.128") if instance.file == GATHER_FILE else ("HMMA",)
    return {"sass": sass, "capability": 75 if instance.args[0] == "f16" else 80}

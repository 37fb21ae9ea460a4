"""Grouped convolution with few channels to a group, on tensor cores: conv_grouped{,_wgrad}.cu of kernels/cuda/.

`refusal` says why a problem is left to other algorithms; `config` how it is cut otherwise. A block takes 64 channels of
the result, and of the source those that their groups have; operands become rows of channels as in `conv_mma`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.raw import args, conv_mma
from fastconv.backends.raw.conv_mma import SCRATCH, W, X, Y
from fastconv.backends.raw.conv_steps import Offer, Operands, per_group
from fastconv.backends.raw.device import Properties
from fastconv.backends.raw.launching import Step
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem, Ints

FILE, WGRAD_FILE = "conv_grouped.cu", "conv_grouped_wgrad.cu"
FILES = (FILE, WGRAD_FILE)
LEAST_GROUP, LARGEST_GROUP = 4, 32  # channels of a group, of x and of y
OUTPUTS, COLUMNS, THREADS = 128, 64, 256  # of a block: grouped.cuh
SUMS = 4 * 64 * (COLUMNS + 8)  # bytes: those of conv_grouped's sums that leave at a time
MOST_PASSES = 8  # that a launch runs
RESERVED = 1024  # bytes that the system takes of the shared memory of each block
MUCH = 1.25
#: Of the products' rate, by a warp's chunks of result channels: what shared memory, 128 bytes a clock, leaves of it.
EFFICIENCY = {1: 0.38, 2: 0.64, 4: 0.8}
CHUNKS = (1, 2, 4)  # of result channels that a warp of conv_grouped computes
PAIRS = (5, 9, 18)  # of terms that a warp of conv_grouped_wgrad has in registers: 3x3 over 1, 2 and 4 chunks
FURTHEST = 2**30  # cell along an axis, so that places stay within 32 bits
ELEMENTS = ("f16", "bf16", "Tf32")


# ---------------------------------------------------------------- how a problem is cut


class Axis(NamedTuple):
    """One axis of all passes: outputs of the largest; o meets cells from o * step + lowest to `reach` further."""

    outputs: int
    step: int
    lowest: int
    reach: int


@lru_cache(maxsize=1024)
def axes_of(op: str, problem: ConvProblem) -> tuple[Axis, ...]:
    """The three axes, as the passes of fprop (of wgrad too) or dgrad have them."""
    found = []
    for alongs in zip(*conv_mma.passes("conv_dgrad" if op == "conv_dgrad" else "conv_fprop", problem), strict=True):
        ends = [(one.first, one.first + (one.taps - 1) * one.tap_apart) for one in alongs if one.taps]
        lowest = min((min(pair) for pair in ends), default=0)
        highest = max((max(pair) for pair in ends), default=0)
        found.append(Axis(max(one.outputs for one in alongs), alongs[0].step, lowest, highest - lowest))
    return tuple(found)


@lru_cache(maxsize=1024)
def span_of(M: int, C: int, outputs: int, chunks: int) -> int:
    """Chunks of 8 source channels that any `chunks` adjacent chunks of result channels have products with."""
    width, spans = 8 * chunks, []
    for first in range(0, outputs, width):
        last = min(first + width, outputs) - 1
        spans.append(-(-(last // M + 1) * C // 8) - first // M * C // 8)
    return max(spans)


@lru_cache(maxsize=1024)
def source_chunks(M: int, C: int, outputs: int, chunks: int) -> int:
    """Chunks of source channels that a block holds: from its first warp's to the end of its last one's."""
    span = span_of(M, C, outputs, chunks)

    def chunk(channel: int) -> int:
        return min(channel, outputs - 1) // M * C // 8

    return max(chunk(first + COLUMNS - 8 * chunks) + span - chunk(first) for first in range(0, outputs, COLUMNS))


class Cut(NamedTuple):
    """What a block does: chunks of a warp (or its pairs of terms), and the tile's extent over (n, d, h, w)."""

    width: int
    tile: tuple[int, int, int, int]

    @classmethod
    def of(cls, config: dict[str, Any]) -> Cut:
        n, d, h, w = map(int, config["tile"].split("x"))
        return cls(config.get("chunks") or config["pairs"], (n, d, h, w))

    def box(self, axes: tuple[Axis, ...]) -> Ints:
        spatial = ((n - 1) * axis.step + axis.reach + 1 for n, axis in zip(self.tile[1:], axes, strict=True))
        return (self.tile[0], *spatial)

    def __str__(self) -> str:
        return "x".join(map(str, self.tile))


def width_of(op: str, problem: ConvProblem) -> int:
    """The chunks of a warp by which shared memory is read the least, or the fewest pairs that hold all terms."""
    M, C = per_group(op, problem)
    outputs = M * problem.groups
    if op == "conv_wgrad":
        pairs = -(-span_of(M, C, outputs, 1) * problem.window.taps // 2)
        return next((width for width in PAIRS if pairs <= width), PAIRS[-1])
    return min(CHUNKS, key=lambda chunks: (span_of(M, C, outputs, chunks) * (1 + 1 / chunks), chunks))


def sum_steps(op: str, problem: ConvProblem, chunks: int) -> int:
    """Products that all passes of conv_grouped sum over, of two terms or, in float32, one."""
    M, C = per_group(op, problem)
    span, terms = span_of(M, C, M * problem.groups, chunks), 4 // conv_mma.itemsize(problem)
    return sum(-(-math.prod(one.taps for one in along) * span // terms) for along in conv_mma.passes(op, problem))


def shared_bytes(op: str, problem: ConvProblem, cut: Cut) -> int:
    """What a block takes: boxes of two tiles, places, and its filters and sums, or wgrad's outputs of both tiles."""
    M, C = per_group(op, problem)
    wgrad = op == "conv_wgrad"
    pieces = source_chunks(M, C, M * problem.groups, 1 if wgrad else cut.width) * conv_mma.itemsize(problem) // 2
    cells = math.prod(cut.box(axes_of(op, problem)))
    box = 16 * (cells | 1) * pieces
    places = 16 * (cells + OUTPUTS)
    if wgrad:
        outputs = (-(-math.prod(cut.tile) // 32) * 32 | 1) * COLUMNS * conv_mma.itemsize(problem)
        return 2 * (box + outputs) + places + 16 + 8 * OUTPUTS + 8 * cut.width
    steps = sum_steps(op, problem, cut.width)
    return 2 * box + SUMS + places + 2048 * steps + 4 * OUTPUTS + 8 * steps


def tiles_of(images: int, axes: tuple[Axis, ...], cut: Cut) -> int:
    counts = (images, *(axis.outputs for axis in axes))
    return math.prod(-(-n // extent) for n, extent in zip(counts, cut.tile, strict=True))


def shares(extent: int) -> list[int]:
    """How large the tiles of an axis may be: the largest of equal ones, for each number of them."""
    return sorted({-(-extent // n) for n in range(-(-extent // OUTPUTS), extent + 1)})


@lru_cache(maxsize=1024)
def cut_of(op: str, problem: ConvProblem, width: int, limit: int) -> tuple[int, Cut] | None:
    """The tile by which the fewest cells are read and places left empty, where its shared memory keeps to a limit.

    Several images are taken where each is whole. The number of cells and places comes with it.
    """
    axes = axes_of(op, problem)
    whole = tuple(axis.outputs for axis in axes)
    found = []
    for d, h, w in itertools.product(*map(shares, whole)):
        room = OUTPUTS // (d * h * w)
        for images in shares(problem.N) if (d, h, w) == whole else [1]:
            if images <= room:
                cut = Cut(width, (images, d, h, w))
                found.append((tiles_of(problem.N, axes, cut) * (math.prod(cut.box(axes)) + OUTPUTS), cut))
    return next((one for one in sorted(found) if shared_bytes(op, problem, one[1]) <= limit), None)


def cuts_of(op: str, problem: ConvProblem, width: int, properties: Properties) -> list[tuple[Cut, int]]:
    """Tiles, and how many blocks of them a multiprocessor holds: two, unless one of larger tiles does much less."""
    one = cut_of(op, problem, width, properties.shared_per_block)
    two = cut_of(op, problem, width, properties.shared_per_block // 2 - RESERVED)
    if one is None:
        return []
    if two is None or (op == "conv_wgrad" and width == PAIRS[-1]):
        return [(one[1], 1)]
    found = [(two[1], 2), (one[1], 1)]
    return found[::-1] if two[0] > MUCH * one[0] else found


def refusal(op: str, problem: ConvProblem, properties: Properties) -> str | None:
    """Why the kernels do not take a problem on a device."""
    M, C = per_group(op, problem)
    chunk = 16 // conv_mma.itemsize(problem)
    element = conv_mma.element_of(problem, properties)
    if element not in ELEMENTS:
        return f"{problem.dtype} with precision={problem.precision!r} on {properties.arch}"
    if problem.N == 0 or problem.groups == 1 or not LEAST_GROUP <= min(M, C) <= max(M, C) <= LARGEST_GROUP:
        return f"{problem.groups} groups of {C} and {M} channels"
    if problem.C % chunk or problem.K % chunk:
        return f"{problem.C} or {problem.K} channels, which fill no rows of 16 bytes"
    if op == "conv_dgrad" and math.prod(problem.window.stride) > MOST_PASSES:
        return f"{math.prod(problem.window.stride)} residues modulo the stride"
    if max(n + sum(pad) for n, pad in zip(problem.size, problem.window.pad, strict=True)) >= FURTHEST:
        return "a side of 2**30 or more"
    if not cuts_of(op, problem, width_of(op, problem), properties):
        return f"a filter and a box of cells that need more than {properties.shared_per_block} bytes of shared memory"
    return None


def config(op: str, problem: ConvProblem, properties: Properties) -> dict[str, Any]:
    """How a problem that is not refused is cut: the tile, a warp's chunks or pairs, the blocks that share the tiles."""
    cut, resident = cuts_of(op, problem, width_of(op, problem), properties)[0]
    return config_of(op, problem, cut, resident, properties)


def variants(op: str, problem: ConvProblem, properties: Properties) -> list[dict[str, Any]]:
    """What else can be measured of a problem that is not refused: every width, and a multiprocessor's blocks."""
    widths = PAIRS if op == "conv_wgrad" else CHUNKS
    cuts = [found for width in widths for found in cuts_of(op, problem, width, properties)]
    configs = [config_of(op, problem, *found, properties) for found in cuts]
    return [found for found in configs if found["images"]]


def config_of(op: str, problem: ConvProblem, cut: Cut, resident: int, properties: Properties) -> dict[str, Any]:
    """The config of one way to cut a problem."""
    tiles = tiles_of(problem.N, axes_of(op, problem), cut)
    bundles = blocks_across(op, problem, cut.width)
    workers = max(1, min(tiles, resident * properties.sms // bundles))
    element = conv_mma.element_of(problem, properties)
    if op != "conv_wgrad":
        images = conv_mma.images_at_once(op, problem, 1)
        return {"element": element, "tile": str(cut), "chunks": cut.width, "workers": workers, "images": images}
    while workers > 1 and conv_mma.images_at_once(op, problem, workers) == 0:
        workers //= 2
    images = conv_mma.images_at_once(op, problem, workers)
    return {"element": element, "tile": str(cut), "pairs": cut.width, "parts": workers, "images": images}


def blocks_across(op: str, problem: ConvProblem, width: int) -> int:
    """Blocks that have the same tiles: of 64 channels of the result, and of wgrad's terms those of a warp."""
    M, C = per_group(op, problem)
    outputs = M * problem.groups
    terms = span_of(M, C, outputs, 1) * problem.window.taps if op == "conv_wgrad" else 1
    return -(-outputs // COLUMNS) * -(-terms // (2 * width))


def offer(op: str, problem: ConvProblem, properties: Properties) -> Offer | None:
    """Takes groups of 4 to 32 channels, where there is such a product and a tile fits."""
    if refusal(op, problem, properties) is not None:
        return None
    found = config(op, problem, properties)
    if found["images"] == 0:
        return None
    return Offer(found, WHY, cost(op, problem, found, properties))


WHY = (
    "few channels to a group: memory-bound; a box of cells is read once for all taps, groups side by side in a product"
)


def cost(op: str, problem: ConvProblem, config: dict[str, Any], properties: Properties) -> float:
    """As conv_mma's: multiply-adds of whole tiles at the rate of tensor cores; bytes and launches of packing."""
    M, C = per_group(op, problem)
    cut, outputs = Cut.of(config), M * problem.groups
    chunks = 1 if op == "conv_wgrad" else cut.width
    terms = span_of(M, C, outputs, chunks) * problem.window.taps
    products = tiles_of(problem.N, axes_of(op, problem), cut) * OUTPUTS * outputs * 8 * terms
    blocks = (config.get("workers") or config["parts"]) * blocks_across(op, problem, cut.width)
    gain = conv_mma.DENSE_GAIN.get(properties.capability, 4) / (2 if config["element"] == "Tf32" else 1)
    packed = problem.layout == "NCHW"
    moved = 2 * problem.N * conv_mma.image_bytes(op, problem) if packed else 0
    packing = conv_mma.BYTE * moved + (2 * conv_mma.LAUNCH if packed else 0)
    return products / (gain * EFFICIENCY[chunks] * min(1.0, blocks / properties.sms)) + packing


def workspace(op: str, problem: ConvProblem, config: dict[str, Any]) -> int:
    """What a call takes at most, as conv_mma's."""
    return conv_mma.workspace(op, problem, config)


# ---------------------------------------------------------------- launches


def steps(op: str, problem: ConvProblem, config: dict[str, Any], operands: Operands) -> list[Step]:
    """The launches of a call: packing, one for all passes, and the sum of wgrad's parts."""
    if op == "conv_wgrad":
        return conv_mma.wgrad_steps(problem, config, operands, wgrad_step)
    images, found = config["images"], []
    source, packing = conv_mma.rows_of(problem, operands, "x" if op == "conv_fprop" else "y", 0, images)
    if not packing:
        images = problem.N
    for first in range(0, problem.N, images):
        count = min(images, problem.N - first)
        found += [conv_mma.images_from(step, first * apart, count, images) for apart, step in packing]
        found.append(gather(op, problem, config, operands, source, first, count))
    return found


def gather(
    op: str,
    problem: ConvProblem,
    config: dict[str, Any],
    operands: Operands,
    source: conv_mma.Rows,
    first: int,
    count: int,
) -> Step:
    """One launch of conv_grouped: `count` images from `first` on."""
    M, _ = per_group(op, problem)
    result = "y" if op == "conv_fprop" else "x"
    strides, (m, c) = operands.strides["w"], (0, 1) if op == "conv_fprop" else (1, 0)
    group = problem.K // problem.groups * strides[0]
    filters = conv_mma.Filters(W, 0, strides[m], strides[c], strides[2:], group, False)
    passes = list(conv_mma.passes(op, problem))
    cut = Cut.of(config)
    filled = np.zeros((), args.GROUPED)
    chunk = 16 // conv_mma.itemsize(problem)
    for number, along in enumerate(passes):
        one = conv_mma.gather_args(op, problem, operands, source, filters, along, first, count, result)
        one["wide"] = M * problem.groups % chunk == 0 and operands.packs(result, 1, chunk)
        filled["pass"][number] = one
    filled["passes"] = len(passes)
    filled["tiling"] = tiling(op, problem, cut, cut.width, count, config["workers"])
    filled["tiling"]["steps"] = sum_steps(op, problem, cut.width)
    return Step(
        Instance(FILE, "conv_grouped", (config["element"], str(cut.width))),
        blocks_across(op, problem, cut.width) * config["workers"], filled,
        (source.address, W, Y if result == "y" else X, conv_mma.BIAS), THREADS, shared_bytes(op, problem, cut),
    )  # fmt: skip


def wgrad_step(
    problem: ConvProblem, config: dict[str, Any], operands: Operands, x: conv_mma.Rows, y: conv_mma.Rows, first: int,
    count: int, part0: int, parts: int,
) -> Step:  # fmt: skip
    """One launch of conv_grouped_wgrad: `count` images from `first` on, in the config's parts."""
    cut = Cut.of(config)
    filled = np.zeros((), args.GROUPED_WGRAD)
    filled["pass"] = conv_mma.wgrad_args(problem, config, operands, x, y, first, count, part0, parts)
    filled["tiling"] = tiling("conv_wgrad", problem, cut, 1, count, config["parts"])
    return Step(
        Instance(WGRAD_FILE, "conv_grouped_wgrad", (config["element"], str(cut.width))),
        blocks_across("conv_wgrad", problem, cut.width) * config["parts"], filled,
        (x.address, W, y.address, SCRATCH), THREADS, shared_bytes("conv_wgrad", problem, cut),
    )  # fmt: skip


def tiling(op: str, problem: ConvProblem, cut: Cut, chunks: int, images: int, workers: int) -> np.ndarray:
    """The struct Tiling but for the steps of conv_grouped."""
    M, C = per_group(op, problem)
    outputs, axes = M * problem.groups, axes_of(op, problem)
    filled = np.zeros((), args.TILING)
    count = [-(-n // extent) for n, extent in zip((images, *(a.outputs for a in axes)), cut.tile, strict=True)]
    box = cut.box(axes)
    filled["images"], filled["tiles"] = images, math.prod(count)
    filled["extent"], filled["box"], filled["count"] = cut.tile, box, count
    filled["step"], filled["lowest"] = [axis.step for axis in axes], [axis.lowest for axis in axes]
    filled["outputs"], filled["cells"], filled["workers"] = math.prod(cut.tile), math.prod(box), workers
    filled["span"] = span_of(M, C, outputs, chunks)
    filled["pieces"] = source_chunks(M, C, outputs, chunks) * conv_mma.itemsize(problem) // 2
    return filled


# ---------------------------------------------------------------- what is shipped


def instances() -> Iterator[Instance]:
    """Every instance that this algorithm can ask for, but those of pack.cu and reduce.cu."""
    for element in ELEMENTS:
        yield from (Instance(FILE, "conv_grouped", (element, str(chunks))) for chunks in CHUNKS)
        yield from (Instance(WGRAD_FILE, "conv_grouped_wgrad", (element, str(pairs))) for pairs in PAIRS)


def claims(instance: Instance) -> dict[str, Any]:
    """Products of tiles, 16-byte stores of rows, and two blocks to a multiprocessor but for the most pairs."""
    sass = ("HMMA", "STG.128") if instance.file == FILE else ("HMMA",)
    registers = 255 if instance.file == WGRAD_FILE and instance.args[1] == str(PAIRS[-1]) else 128
    return {"sass": sass, "registers": registers, "capability": 75 if instance.args[0] == "f16" else 80}

"""Convolution on Hopper's tensor cores by wgmma and TMA: kernels/cuda/conv_wgmma.cu, for sm_90a.

fprop and dgrad of 16-bit floats, by the passes of conv_mma, whose kernels serve what `refusal` tells of. Operands that
TMA cannot read in place are packed as there. A tensor map depends on an operand's address; the device keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.raw import args, conv_mma
from fastconv.backends.raw.conv_mma import BYTE, ELEMENTS, LAUNCH, Along, Filters, Rows
from fastconv.backends.raw.conv_steps import Offer, Operands, per_group, pixels_of
from fastconv.backends.raw.device import Properties
from fastconv.backends.raw.launching import Mapped, Step
from fastconv.backends.raw.tensor_map import Boxes, Pixels
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem, Ints

FILE = "conv_wgmma.cu"
FILES = (FILE,)
ARCH = "sm_90a"
ITEM = 2  # bytes of an element
ROWS, DEPTH, THREADS = 128, 64, 384  # pixels of a tile, channels of a step, threads of a block
STAGED = 8 * 16 * 40 * 4  # bytes that the eight warps' sums take on their way out
ALIGNING = 1024 - 16  # what rounding the start of shared memory up to 1024 bytes takes
FMA = 128  # multiply-adds that a multiprocessor's float units do in a clock: the unit of costs
CLOCKS_PER_US, BYTES_PER_US, LAUNCH_US = 1755, 3.35e6, 1.5  # an H100 SXM by its data sheet; a launch by estimate

#: By the number of spatial axes: what the corners of an im2col map can be, and below what offsets of taps stay.
REACH = {1: 2**15, 2: 2**7, 3: 2**4}
FURTHEST_TAP = {1: 2**16 - 1, 2: 2**8 - 1, 3: 2**5 - 1}
LARGEST_STEP = 8


class Tile(NamedTuple):
    """Output channels of a tile, and how many steps are under way."""

    columns: int
    stages: int

    @property
    def shared(self) -> int:
        return self.stages * (ROWS + self.columns) * DEPTH * ITEM + STAGED + ALIGNING

    @property
    def clocks(self) -> float:
        """Of one step: products at 2048 a clock, or shared memory at 128 bytes a clock, whichever takes longer.

        Each of the two warpgroups reads its 64 rows of pixels and all filters; TMA writes both once.
        """
        products = ROWS * self.columns * DEPTH / 2048
        moved = (2 * (ROWS // 2 + self.columns) + ROWS + self.columns) * DEPTH * ITEM
        return max(products, moved / 128)

    def __str__(self) -> str:
        return f"{ROWS}x{self.columns}"


TILES = (Tile(256, 4), Tile(128, 6), Tile(64, 6))


# ---------------------------------------------------------------- what it takes, and with which tile


def refusal(op: str, problem: ConvProblem, properties: Properties) -> str | None:
    """Why wgmma and TMA cannot serve a problem on a device, or None."""
    if properties.arch != ARCH:
        return f"wgmma is of {ARCH}, the device has {properties.arch}"
    if op == "conv_wgrad":
        return "the weight gradient has no wgmma kernel"
    if problem.dtype not in ELEMENTS:
        return f"wgmma is for {' and '.join(ELEMENTS)}: got {problem.dtype}"
    if problem.groups > 1:
        return f"groups={problem.groups}: a tile takes channels of one group"
    if problem.N == 0 or min(per_group(op, problem)) < conv_mma.LEAST_CHANNELS:
        return f"too few images or channels to fill a tile: N={problem.N}, C={problem.C}, K={problem.K}"
    reach, furthest = REACH[problem.ndim], FURTHEST_TAP[problem.ndim]
    sizes = problem.size if op == "conv_fprop" else problem.out
    for along in conv_mma.passes(op, problem):
        if any(one.taps == 0 for one in along):
            continue
        for one, size in zip(along[-problem.ndim :], sizes, strict=True):
            lower, upper = corners(one, size)
            if one.step > LARGEST_STEP:
                return f"stride {one.step}: TMA steps over at most {LARGEST_STEP} cells"
            if not (-reach <= lower < reach and -reach <= upper < reach):
                return f"a window's reach of {lower} and {upper} cells: an im2col map holds {-reach} to {reach - 1}"
            if (one.taps - 1) * abs(one.tap_apart) >= furthest:
                return f"taps {(one.taps - 1) * abs(one.tap_apart)} cells apart: an im2col copy reaches {furthest - 1}"
    return None


def corners(along: Along, size: int) -> tuple[int, int]:
    """The lowest cell that output 0 meets, and how far past the last cell of the source that of the last output is."""
    lower = along.first + min(0, (along.taps - 1) * along.tap_apart)
    return lower, lower + (along.outputs - 1) * along.step - (size - 1)


def config(op: str, problem: ConvProblem, properties: Properties) -> dict[str, Any] | None:
    """The tile of the fewest clocks, its stages, waves, and modelled time; None where none fits or can be packed."""
    fitting = [tile for tile in TILES if tile.shared <= properties.shared_per_block]
    images = conv_mma.images_at_once(op, problem, 1)
    if not fitting or images == 0:
        return None
    tile = min(fitting, key=lambda one: clocks(op, problem, one, properties))
    return {
        "element": ELEMENTS[problem.dtype][0], "tile": str(tile), "stages": tile.stages,
        "waves": max(waves for waves, _ in work(op, problem, tile, properties)), "blocks": properties.sms,
        "images": images, "model_us": round(microseconds(op, problem, tile, properties), 1),
    }  # fmt: skip


def work(op: str, problem: ConvProblem, tile: Tile, properties: Properties) -> Iterator[tuple[int, int]]:
    """Of each pass: how many tiles the busiest multiprocessor takes, and of how many steps."""
    M, C = per_group(op, problem)
    for along in conv_mma.passes(op, problem):
        pixels = problem.N * math.prod(one.outputs for one in along)
        tiles = -(-pixels // ROWS) * -(-M // tile.columns)
        yield -(-tiles // properties.sms), math.prod(one.taps for one in along) * -(-C // DEPTH)


def clocks(op: str, problem: ConvProblem, tile: Tile, properties: Properties) -> float:
    """Of the products of all passes on the busiest multiprocessor."""
    return sum(tiles * count * tile.clocks for tiles, count in work(op, problem, tile, properties))


def cost(op: str, problem: ConvProblem, tile: Tile, properties: Properties) -> float:
    """Products, and bytes and launches of packing, in conv_mma's unit.

    What every algorithm reads and writes is left out, as there; so is what passes between two tiles.
    """
    total = clocks(op, problem, tile, properties) * FMA * properties.sms
    return total + 2 * BYTE * packed_bytes(op, problem) + (2 * LAUNCH if packed_bytes(op, problem) else 0)


def packed_bytes(op: str, problem: ConvProblem) -> int:
    """Of operands that have to be packed first, by the problem's layout."""
    if problem.layout == "NHWC" and problem.C % 8 == 0 and problem.K % 8 == 0:
        return 0
    return problem.N * conv_mma.image_bytes(op, problem) + conv_mma.weight_bytes(op, problem, 1)


def microseconds(op: str, problem: ConvProblem, tile: Tile, properties: Properties) -> float:
    """A model of the time on an H100: products or bytes, whichever take longer, then packing and launches."""
    M, C = per_group(op, problem)
    read = problem.N * math.prod(problem.size if op == "conv_fprop" else problem.out) * C
    moved = ITEM * (read + pixels_of(op, problem) * M + conv_mma.weights_of(problem))
    launches = len(list(conv_mma.passes(op, problem))) + (2 if packed_bytes(op, problem) else 0)
    longer = max(clocks(op, problem, tile, properties) / CLOCKS_PER_US, moved / BYTES_PER_US)
    return longer + 2 * packed_bytes(op, problem) / BYTES_PER_US + launches * LAUNCH_US


def offer(op: str, problem: ConvProblem, properties: Properties) -> Offer | None:
    """The config for a problem and its cost, or None where it is refused."""
    if refusal(op, problem, properties) is not None:
        return None
    found = config(op, problem, properties)
    if found is None:
        return None
    why = f"dense: {problem.dtype} products by wgmma, fed by TMA, summed in float32"
    return Offer(found, why, cost(op, problem, tile_of(found), properties))


def tile_of(config: dict[str, Any]) -> Tile:
    return next(tile for tile in TILES if str(tile) == config["tile"])


workspace = conv_mma.workspace


# ---------------------------------------------------------------- the launches


def steps(op: str, problem: ConvProblem, config: dict[str, Any], operands: Operands) -> list[Step]:
    """The launches of a call: packing, then the passes."""
    role = "x" if op == "conv_fprop" else "y"
    images = config["images"]
    offset = conv_mma.lined(conv_mma.weight_bytes(op, problem, 1))
    source, packing = conv_mma.rows_of(problem, mappable(problem, operands, role), role, offset, images)
    filters, found = conv_mma.filters_of(op, problem, mappable(problem, operands, "w"), source)
    if filters.crossed:  # wgmma could read such filters too, at the price of more instances
        filters, found = conv_mma.filters_of(op, problem, replace(operands, aligned=False), source)
    if not packing:
        images = problem.N
    for first in range(0, problem.N, images):
        count = min(images, problem.N - first)
        found += [conv_mma.images_from(step, first * apart, count, images) for apart, step in packing]
        for along in conv_mma.passes(op, problem):
            found.append(launch(op, problem, config, operands, source, filters, along, first, count))
    return found


def mappable(problem: ConvProblem, operands: Operands, role: str) -> Operands:
    """The operands, as not aligned where TMA cannot walk over one of them: it only goes forward, and always on."""
    dims = problem.dims(role)
    extents = (*dims[:2], *args.lift(dims[2:], 1))
    if all(stride > 0 or n == 1 for stride, n in zip(operands.strides[role], extents, strict=True)):
        return operands
    return replace(operands, aligned=False)


def launch(
    op: str, problem: ConvProblem, config: dict[str, Any], operands: Operands, source: Rows, filters: Filters,
    along: tuple[Along, ...], first: int, count: int,
) -> Step:  # fmt: skip
    """One launch of conv_wgmma: `count` images from `first` on."""
    M, _ = per_group(op, problem)
    result = "y" if op == "conv_fprop" else "x"
    tile = tile_of(config)
    filled = np.zeros((), args.GATHER_MAPS)
    filled["pass"] = conv_mma.gather_args(op, problem, operands, source, filters, along, first, count, result)
    filled["rank"] = problem.ndim
    filled["tap0"], filled["tap_step"] = [one.tap0 for one in along], [one.tap_step for one in along]
    sizes = args.lift(problem.size if op == "conv_fprop" else problem.out, 1)
    filled["lowest"] = [corners(one, size)[0] for one, size in zip(along, sizes, strict=True)]
    tiles = -(-int(filled["pass"]["pixels"]) // ROWS) * -(-M // tile.columns)
    pointers = conv_mma.gather_pointers(source, filters, result)
    maps = maps_of(problem, tile, source, filters, along, sizes, first, count, M)
    blocks = min(tiles, int(config["blocks"]))
    return Step(instance_of(config["element"], tile), blocks, filled, pointers, THREADS, tile.shared, maps)


def maps_of(
    problem: ConvProblem, tile: Tile, source: Rows, filters: Filters, along: tuple[Along, ...], sizes: Ints,
    first: int, count: int, M: int,
) -> tuple[Mapped, ...]:  # fmt: skip
    """The tensor maps of a launch; none where no tap meets a cell, as nothing is read then."""
    if any(one.taps == 0 for one in along):
        return ()
    axes = slice(3 - problem.ndim, 3)
    ends = [corners(one, size) for one, size in zip(along, sizes, strict=True)][axes]
    pixels = Pixels(
        (count, *sizes[axes], source.channels),
        in_bytes((source.strides[0], *source.strides[2:][axes], 1)),
        tuple(lower for lower, _ in ends), tuple(upper for _, upper in ends),
        DEPTH, ROWS, tuple(one.step for one in along[axes]),
    )  # fmt: skip
    boxes = Boxes(
        (M, *args.lift(problem.window.ksize, 1), source.channels),
        in_bytes((filters.m, *filters.taps, 1)),
        (tile.columns, 1, 1, 1, DEPTH),
    )
    fields: Any = args.GATHER_MAPS.fields
    return (
        Mapped(fields["a"][1], pixels, source.address, ITEM * (source.first + first * source.image)),
        Mapped(fields["w"][1], boxes, filters.address, ITEM * filters.first),
    )


def in_bytes(strides: Ints) -> Ints:
    """Strides of a map; an axis of extent 1, which has none, gets one that the driver takes."""
    return tuple(ITEM * stride or 16 for stride in strides)


def instance_of(element: str, tile: Tile) -> Instance:
    return Instance(FILE, "conv_wgmma", (element, str(tile.columns), str(tile.stages)))


# ---------------------------------------------------------------- what is shipped


def instances() -> Iterator[Instance]:
    """Every instance that this algorithm can ask for, but those of pack.cu."""
    for element, _ in ELEMENTS.values():
        for tile in TILES:
            yield instance_of(element, tile)


def claims(_: Instance) -> dict[str, Any]:
    """Products by warpgroups, fed by TMA; as many registers as setmaxnreg deals out again, on Hopper alone."""
    return {"sass": ("HGMMA", "UTMALDG", "STG.128"), "registers": 168, "archs": (ARCH,)}

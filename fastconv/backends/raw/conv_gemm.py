"""Convolution as a tiled product without tensor cores: kernels/cuda/conv_gemm.cu."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastconv.backends.raw import args
from fastconv.backends.raw.conv_steps import (
    SUMSIZE,
    TYPES,
    Offer,
    Operands,
    conv_args,
    per_group,
    pixels_of,
    reduction,
    result_of,
)
from fastconv.backends.raw.device import Properties, workspace_limit
from fastconv.backends.raw.launching import Step
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem

FILE = "conv_gemm.cu"
FILES = (FILE,)
OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad")
THREADS = 128
SLICE = 8  # how far the summed index advances at a time
LEAST_SLICES = 16  # of a part of a split sum
LIMIT = 2**30  # of what the kernel counts in 32 bits
WAVES = 2  # of blocks that a split aims at


class Tile(NamedTuple):
    """BM x BN of the product by a block, TM x TN by a thread; `rate` is its share of the peak when full."""

    BM: int
    BN: int
    TM: int
    TN: int
    rate: float
    resident: int  # blocks per multiprocessor that its registers leave room for

    def __str__(self) -> str:
        return f"{self.BM}x{self.BN}"


WIDE, SMALL, FLAT = Tile(64, 128, 8, 8, 0.8, 3), Tile(64, 32, 4, 4, 0.5, 4), Tile(16, 128, 4, 4, 0.4, 4)
TILES = {
    "float32": (WIDE, SMALL, FLAT), "float16": (WIDE, FLAT), "bfloat16": (WIDE, FLAT),
    "float64": (SMALL,), "int32": (SMALL,),
}  # fmt: skip


class Extents(NamedTuple):
    """The products of one op: M x N summed over `summed`, for each group and residue."""

    M: int
    N: int
    summed: int
    groups: int
    residues: int

    @classmethod
    def of(cls, op: str, problem: ConvProblem) -> Extents:
        M, L = per_group(op, problem)
        window = problem.window
        if op == "conv_wgrad":
            return cls(M, L * window.taps, pixels_of(op, problem), problem.groups, 1)
        if op == "conv_fprop":
            return cls(M, pixels_of(op, problem), L * window.taps, problem.groups, 1)
        axes = list(zip(problem.size, window.stride, window.ksize, window.dilation, strict=True))
        pixels = problem.N * math.prod(-(-n // s) for n, s, _, _ in axes)
        taps = math.prod(-(-k // (s // math.gcd(s, d))) for _, s, k, d in axes)
        return cls(M, pixels, L * taps, problem.groups, math.prod(min(n, s) for n, s, _, _ in axes))

    def blocks(self, tile: Tile) -> int:
        return -(-self.M // tile.BM) * -(-self.N // tile.BN) * self.groups * self.residues


def offer(op: str, problem: ConvProblem, properties: Properties) -> Offer | None:
    """Takes what it can count in 32 bits; the tile and the split of the least cost."""
    extents = Extents.of(op, problem)
    if problem.N == 0 or max(extents.N, extents.summed, extents.M) >= LIMIT:
        return None
    ranked = sorted(_cost(op, problem, extents, tile, properties) for tile in TILES[problem.dtype])
    cost, splits, tile = ranked[0]
    if extents.blocks(tile) * splits >= LIMIT:
        return None
    groups = f"{problem.groups} products" if problem.groups > 1 else "a product"
    why = f"{groups} of {extents.M} x {extents.N} over {extents.summed}, by tiles in shared memory"
    return Offer({"tile": str(tile), "splits": splits}, why, cost)


def _cost(op: str, problem: ConvProblem, extents: Extents, tile: Tile, gpu: Properties) -> tuple[float, int, Tile]:
    """(multiply-adds at the full rate, splits, tile)."""
    blocks = extents.blocks(tile)
    splits = split(op, problem, extents, tile, gpu)
    busy = min(1.0, blocks * splits / (gpu.sms * tile.resident))
    work = blocks * tile.BM * tile.BN * -(-extents.summed // SLICE) * SLICE
    return work / (tile.rate * busy), splits, tile


def split(op: str, problem: ConvProblem, extents: Extents, tile: Tile, properties: Properties) -> int:
    """Into how many parts the sum is cut, so that a problem with few tiles fills the device; within the workspace."""
    blocks = extents.blocks(tile)
    wanted = properties.sms * tile.resident * (WAVES if op == "conv_wgrad" else 1) // blocks
    most = -(-extents.summed // SLICE) // LEAST_SLICES
    room = workspace_limit() // _part_bytes(op, problem)
    splits = min(wanted, most, room)
    return splits if splits > 1 else 1


def _part_bytes(op: str, problem: ConvProblem) -> int:
    return math.prod(problem.dims(result_of(op))) * SUMSIZE[problem.dtype]


def workspace(op: str, problem: ConvProblem, config: dict[str, Any]) -> int:
    """The sums of all parts, where there are several."""
    splits: int = config["splits"]
    return _part_bytes(op, problem) * splits if splits > 1 else 0


def steps(op: str, problem: ConvProblem, config: dict[str, Any], operands: Operands) -> list[Step]:
    """The products, and the sum of their parts."""
    tile = next(tile for tile in TILES[problem.dtype] if str(tile) == config["tile"])
    splits = config["splits"]
    grid = Extents.of(op, problem).blocks(tile) * splits
    filled = conv_args(problem, operands, walk(op, problem, operands, splits), splits=splits)
    product = Step(_instance(op, operands.types, tile), grid, filled, block=THREADS)
    return [product, reduction(op, problem, operands, splits)] if splits > 1 else [product]


def walk(op: str, problem: ConvProblem, operands: Operands, splits: int) -> int:
    """Along which index threads lie side by side in A, in B and in the result, and the order of (channel, tap)."""
    source, result = ("y", "x") if op == "conv_dgrad" else ("x", result_of(op))
    summed = 0 if op == "conv_dgrad" else 1  # the axis of w that the source's channels are
    pointwise = problem.window.taps == 1
    channels_fastest = pointwise or operands.channels_inside(source) or operands.closer("w", summed, 4)
    fastest = summed if channels_fastest else 4
    if op == "conv_wgrad":
        along_a, along_b = not operands.channels_inside("y"), not operands.channels_inside("x")
        by_column = operands.closer("w", 0, fastest)
    else:
        along_a, along_b = operands.closer("w", fastest, 1 - summed), operands.channels_inside(source)
        by_column = operands.channels_inside(result)
    return (
        args.A_ALONG_SUM * along_a | args.B_ALONG_SUM * along_b | args.CHANNELS_FASTEST * channels_fastest
        | args.CHANNELS * (by_column and splits == 1)
    )  # fmt: skip


def _instance(op: str, types: tuple[str, str], tile: Tile) -> Instance:
    return Instance(FILE, f"{op}_gemm", (*types, *map(str, tile[:4])))


def instances() -> Iterator[Instance]:
    for op in OPS:
        for dtype, tiles in TILES.items():
            yield from (_instance(op, TYPES[dtype], tile) for tile in tiles)


def claims(instance: Instance) -> dict[str, Any]:
    """Shared memory is read 16 bytes at a time, and as many blocks fit as the launch bounds say."""
    tile = next(tile for tile in (WIDE, SMALL, FLAT) if instance.args[2:] == tuple(map(str, tile[:4])))
    return {"registers": 65536 // (THREADS * tile.resident), "sass": ("LDS.128",)}

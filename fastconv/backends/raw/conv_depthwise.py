"""Convolution with one channel per group: kernels/cuda/conv_depthwise.cu."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fastconv.backends.raw import args
from fastconv.backends.raw.conv_steps import (
    RESIDENT,
    SUMSIZE,
    TYPES,
    WIDTHS,
    Offer,
    Operands,
    conv_args,
    pixels_of,
    power_of_two,
    reduction,
)
from fastconv.backends.raw.device import Properties, workspace_limit
from fastconv.backends.raw.launching import Step, blocks_for
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem

FILE = "conv_depthwise.cu"
FILES = (FILE,)
OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad")
TAPS = 9  # that a block of wgrad sums
LEAST_PIXELS = 4096  # of a part of a split sum
WAVES = 4  # of blocks that a split aims at


def offer(op: str, problem: ConvProblem, properties: Properties) -> Offer | None:
    """Takes problems with one channel per group."""
    if problem.groups == 1 or problem.groups != problem.C:
        return None
    filters = "one filter" if problem.K == problem.C else f"{problem.K // problem.C} filters"
    why = f"{filters} per channel: memory-bound, a product of matrices has nothing to share"
    if op == "conv_wgrad":
        splits = split(problem, properties)
        return Offer({"splits": splits}, why, problem.macs / 0.2)
    threads = pixels_of(op, problem) * (problem.C if op == "conv_dgrad" else problem.K)
    busy = min(1.0, threads / (properties.sms * RESIDENT))
    return Offer({}, why, problem.macs / (0.2 * max(busy, 1e-9)))


def split(problem: ConvProblem, properties: Properties) -> int:
    """Into how many parts the pixels are cut, so that few channels fill the device; within the workspace."""
    blocks = problem.K * -(-problem.window.taps // TAPS)
    if problem.layout == "NHWC":
        blocks = -(-blocks // 32)
    wanted = WAVES * properties.sms // blocks
    splits = min(wanted, pixels_of("conv_wgrad", problem) // LEAST_PIXELS, workspace_limit() // _part_bytes(problem))
    return splits if splits > 1 else 1


def _part_bytes(problem: ConvProblem) -> int:
    return math.prod(problem.dims("w")) * SUMSIZE[problem.dtype]


def workspace(op: str, problem: ConvProblem, config: dict[str, Any]) -> int:
    """The sums of all parts, where there are several."""
    splits: int = config.get("splits", 1)
    return _part_bytes(problem) * splits if splits > 1 else 0


def steps(op: str, problem: ConvProblem, config: dict[str, Any], operands: Operands) -> list[Step]:
    """One launch, and the sum of its parts where wgrad is split."""
    width = WIDTHS.get(operands.types[0], 1)
    if problem.K != problem.C or problem.C % width or not all(operands.packs(role, 1, width) for role in ("x", "y")):
        width = 1
    if width > 1 and operands.strides["w"][0] == 1 and not operands.packs("w", 0, width):
        width = 1
    instance = Instance(FILE, f"{op}_depthwise", (*operands.types, str(width)))
    if op == "conv_wgrad":
        splits, blocks = config["splits"], problem.K // width
        lanes = min(32, power_of_two(blocks)) if operands.channels_inside("y") else 1
        grid = -(-blocks // lanes) * -(-problem.window.taps // TAPS) * splits
        product = Step(instance, grid, conv_args(problem, operands, lanes=lanes, splits=splits))
        return [product, reduction(op, problem, operands, splits)] if splits > 1 else [product]
    channels, result = (problem.C, "x") if op == "conv_dgrad" else (problem.K, "y")
    walk = args.CHANNELS if operands.channels_inside(result) else 0
    blocks = channels // width
    return [Step(instance, blocks_for(pixels_of(op, problem) * blocks), conv_args(problem, operands, walk, blocks))]


def instances() -> Iterator[Instance]:
    for op in OPS:
        for types in TYPES.values():
            widths = (1, WIDTHS[types[0]]) if types[0] in WIDTHS else (1,)
            yield from (Instance(FILE, f"{op}_depthwise", (*types, str(width))) for width in widths)


def claims(instance: Instance) -> dict[str, Any]:
    """Packed instances load 16 bytes at a time; two blocks fit a multiprocessor, but for the packed wgrad."""
    packed = instance.args[-1] != "1"
    registers = 255 if packed and instance.kernel == "conv_wgrad_depthwise" else 128
    return {"registers": registers, **({"sass": ("LDG.128",)} if packed else {})}

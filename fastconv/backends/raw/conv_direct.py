"""Convolution by definition: kernels/cuda/conv_direct.cu."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastconv.backends.raw import args
from fastconv.backends.raw.conv_steps import (
    RESIDENT,
    TYPES,
    WIDTHS,
    Offer,
    Operands,
    conv_args,
    per_group,
    pixels_of,
    power_of_two,
)
from fastconv.backends.raw.device import Properties
from fastconv.backends.raw.launching import LARGEST_GRID, THREADS, Step, blocks_for
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem

FILE = "conv_direct.cu"
FILES = (FILE,)
OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad")
SCALAR_OUTPUTS = 4  # output channels of a thread


def offer(op: str, problem: ConvProblem, properties: Properties) -> Offer:
    """Takes every problem."""
    M, L = per_group(op, problem)
    share = 0.05 if op == "conv_wgrad" else 0.1  # of the multiply-adds that the device could do
    threads = problem.groups * -(-M // SCALAR_OUTPUTS)
    threads *= L * problem.window.taps * THREADS if op == "conv_wgrad" else pixels_of(op, problem)
    busy = min(1.0, threads / (properties.sms * RESIDENT))
    cost = problem.macs / (share * max(busy, 1e-9))
    return Offer({}, "by definition: too few channels per group, or too few outputs, for tiles", cost)


def workspace(op: str, problem: ConvProblem, config: dict[str, Any]) -> int:
    return 0


def steps(op: str, problem: ConvProblem, config: dict[str, Any], operands: Operands) -> list[Step]:
    """One launch; of the packed instances the one that the operands' strides allow."""
    packed, width = packing(op, problem, operands)
    outputs = width if packed == "OUTPUTS" else SCALAR_OUTPUTS
    instance = Instance(FILE, f"{op}_direct", (*operands.types, packed))
    M, L = per_group(op, problem)
    blocks = -(-M // outputs)
    if op == "conv_wgrad":
        lanes = min(32, power_of_two(blocks)) if operands.channels_inside("y") else 1
        bundles = -(-blocks // lanes)
        grid = problem.groups * bundles * L * problem.window.taps
        return [Step(instance, min(grid, LARGEST_GRID), conv_args(problem, operands, blocks=bundles, lanes=lanes))]
    walk = args.CHANNELS if operands.channels_inside("y" if op == "conv_fprop" else "x") else 0
    threads = pixels_of(op, problem) * problem.groups * blocks
    return [Step(instance, blocks_for(threads), conv_args(problem, operands, walk, blocks))]


def packing(op: str, problem: ConvProblem, operands: Operands) -> tuple[str, int]:
    """Which instance, and how many elements it moves at a time."""
    M, L = per_group(op, problem)
    width = WIDTHS.get(operands.types[0], 0)
    if not width:
        return "SCALAR", 1
    source, result, out_axis, sum_axis = {
        "conv_fprop": ("x", "y", 0, 1), "conv_dgrad": ("y", "x", 1, 0), "conv_wgrad": ("x", "w", 0, 1),
    }[op]  # fmt: skip
    if op == "conv_wgrad":
        packs = M % width == 0 and operands.packs("y", 1, width)
        return ("OUTPUTS", width) if packs else ("SCALAR", 1)
    if M % width == 0 and operands.packs(result, 1, width) and operands.packs("w", out_axis, width):
        return "OUTPUTS", width
    if L % width == 0 and operands.packs(source, 1, width) and operands.packs("w", sum_axis, width):
        return "SUMS", width
    return "SCALAR", 1


def instances() -> Iterator[Instance]:
    for op in OPS:
        for types in (*TYPES.values(), ("Any", "float"), ("Any", "double")):
            yield Instance(FILE, f"{op}_direct", (*types, "SCALAR"))
            if types[0] in WIDTHS:
                yield Instance(FILE, f"{op}_direct", (*types, "OUTPUTS"))
                if op != "conv_wgrad":
                    yield Instance(FILE, f"{op}_direct", (*types, "SUMS"))


def claims(instance: Instance) -> dict[str, Any]:
    """Packed instances load 16 bytes at a time; two blocks fit a multiprocessor, but for scalar fprop."""
    packed = instance.args[-1] != "SCALAR"
    alone = instance.kernel == "conv_fprop_direct" and not packed
    return {"registers": 255 if alone else 128, **({"sass": ("LDG.128",)} if packed else {})}

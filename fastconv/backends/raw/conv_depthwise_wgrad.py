"""The gradient to depthwise filters in one pass over x and dy: kernels/cuda/conv_depthwise_wgrad.cu.

`refusal` says why a problem is left to the general kernel, `config` how it is cut otherwise; both for operands that
lie in the layout's order. `steps` looks at the operands themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastconv.backends.raw import args
from fastconv.backends.raw.conv_steps import SUMSIZE, TYPES, WIDTHS, Operands, conv_args, reduction
from fastconv.backends.raw.device import Properties, workspace_limit
from fastconv.backends.raw.launching import Step
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem

FILE = "conv_depthwise_wgrad.cu"
THREADS = 256  # of a block at most
LANES = 32  # along channels at most
SEGMENT = 64  # outputs that a thread slides over at most
WAVES = 4  # of blocks that the parts aim at
LEAST_ITEMS = 4  # of a worker
FURTHEST = 2**30  # cell along an axis, so that places stay within 32 bits
#: Taps along the last axis, by its stride.
TAPS = {1: (3, 4, 5, 7), 2: (3, 5, 7)}


def order_of(channels_inside: bool) -> tuple[int, int, int]:
    """The kernel's axes: its threads slide along W where lanes lie along channels, else along H."""
    return (0, 1, 2) if channels_inside else (0, 2, 1)


def refusal(problem: ConvProblem, channels_inside: bool) -> str | None:
    """Why the kernel does not take a problem."""
    window, last = problem.window, order_of(channels_inside)[2]
    ksize, stride = args.lift(window.ksize, 1), args.lift(window.stride, 1)
    if problem.K != problem.C or problem.dtype == "int32":
        return "more than one filter per channel, or integers"
    if ksize[last] not in TAPS.get(stride[last], ()):
        return f"{ksize[last]} taps with stride {stride[last]} along {'DHW'[last]}"
    if args.lift(window.dilation, 1)[last] > 1:
        return f"dilation along {'DHW'[last]}"
    if window.taps // ksize[last] > THREADS // 4:
        return f"{window.taps // ksize[last]} rows of taps"
    longest = max(n + sum(pad) for n, pad in zip(problem.size, window.pad, strict=True))
    return "a side of more than 2**30" if longest >= FURTHEST else None


def lanes_of(problem: ConvProblem, packs: int, channels_inside: bool) -> int:
    """Threads along packs of channels: as many in every block."""
    if not channels_inside:
        return 1
    window = problem.window
    most = min(LANES, THREADS // (window.taps // args.lift(window.ksize, 1)[2]))
    return -(-packs // -(-packs // most))


def workers_of(problem: ConvProblem, lanes: int, channels_inside: bool) -> int:
    """Threads that share the rows of outputs; whole warps where they alone lie side by side."""
    window = problem.window
    rows = window.taps // args.lift(window.ksize, 1)[order_of(channels_inside)[2]]
    workers = THREADS // (lanes * rows)
    return workers if channels_inside or workers < 32 else workers // 32 * 32


def segments_of(problem: ConvProblem, channels_inside: bool) -> int:
    return -(-args.lift(problem.out, 1)[order_of(channels_inside)[2]] // SEGMENT)


def config(problem: ConvProblem, properties: Properties) -> dict[str, Any]:
    """Into how many parts the rows of outputs are cut, so that few channels fill the device; within the workspace."""
    inside = problem.layout == "NHWC"
    width = WIDTHS.get(TYPES[problem.dtype][0], 1)
    packs = problem.C // width if inside and problem.C % width == 0 else problem.C
    lanes = lanes_of(problem, packs, inside)
    last = order_of(inside)[2]
    items = problem.N * math.prod(problem.out) // args.lift(problem.out, 1)[last] * segments_of(problem, inside)
    wanted = WAVES * properties.sms // -(-packs // lanes)
    room = workspace_limit() // part_bytes(problem)
    splits = min(wanted, items // (LEAST_ITEMS * workers_of(problem, lanes, inside)), room)
    return {"kernel": "one pass", "splits": max(1, splits)}


def part_bytes(problem: ConvProblem) -> int:
    return math.prod(problem.dims("w")) * SUMSIZE[problem.dtype]


def steps(problem: ConvProblem, splits: int, operands: Operands, width: int, channels_inside: bool) -> list[Step]:
    """One launch, and the sum of its parts where there are several."""
    order, packs = order_of(channels_inside), problem.C // width
    lanes = lanes_of(problem, packs, channels_inside)
    workers = workers_of(problem, lanes, channels_inside)
    filled = conv_args(problem, operands, 0, segments_of(problem, channels_inside), lanes, splits)
    for name in ("size", "ksize", "out", "stride", "dilation", "pad"):
        filled[name] = np.take(filled[name], order)
    for name in ("xs", "ws", "ys"):
        filled[name][2:] = np.take(filled[name][2:], order)
    taps, stride = (int(filled[name]["value"][2]) for name in ("ksize", "stride"))
    rows = problem.window.taps // taps
    product = Step(
        instance(operands.types[0], width, taps, stride),
        -(-packs // lanes) * splits,
        filled,
        block=lanes * workers * rows,
    )
    return [product, reduction("conv_wgrad", problem, operands, splits, order)] if splits > 1 else [product]


def instance(stored: str, width: int, taps: int, stride: int) -> Instance:
    return Instance(FILE, "conv_depthwise_wgrad", (stored, str(width), str(taps), str(stride)))


def instances() -> Iterator[Instance]:
    for stored in (*WIDTHS, "double"):
        for width in sorted({1, WIDTHS.get(stored, 1)}):
            for stride, taps in TAPS.items():
                yield from (instance(stored, width, k, stride) for k in taps)


def claims(instance: Instance) -> dict[str, Any]:
    """Packed instances read 16 bytes at a time; of the others, two blocks fit a multiprocessor."""
    return {"registers": 255, "sass": ("LDG.128",)} if instance.args[1] != "1" else {"registers": 128}

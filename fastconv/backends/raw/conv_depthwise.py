"""Convolution with one channel per group: conv_depthwise{,_strips,_wgrad}.cu of kernels/cuda/.

fprop and dgrad with one filter per channel go in strips, wgrad in one pass, where their geometry and strides allow it
(`config`, `steps`); the general kernels take the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastconv.backends.raw import args, conv_depthwise_wgrad
from fastconv.backends.raw.conv_mma import passes
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
from fastconv.backends.raw.launching import LARGEST_GRID, Step, blocks_for
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem

FILE, STRIPS_FILE = "conv_depthwise.cu", "conv_depthwise_strips.cu"
FILES = (FILE, STRIPS_FILE, conv_depthwise_wgrad.FILE)
OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad")
TAPS = 9  # that a block of wgrad sums
LEAST_PIXELS = 4096  # of a part of a split sum
WAVES = 4  # of blocks that a split aims at
STRIP_THREADS = 128  # of a block of the kernel in strips
STRIP_STRIDES = (1, 2)  # along a strip
MOST_PASSES = 8  # that a launch in strips runs
FURTHEST = 2**30  # cell that a strip may reach, its last outputs counted that there are not
POINTERS = {"conv_fprop": (0, 1, 2, 3), "conv_dgrad": (2, 1, 0, 3)}  # source, filters, result, bias of (x, w, y, bias)


def offer(op: str, problem: ConvProblem, properties: Properties) -> Offer | None:
    """Takes problems with one channel per group."""
    if problem.groups == 1 or problem.groups != problem.C:
        return None
    filters = "one filter" if problem.K == problem.C else f"{problem.K // problem.C} filters"
    why = f"{filters} per channel: memory-bound, a product of matrices has nothing to share"
    if op == "conv_wgrad":
        refused = conv_depthwise_wgrad.refusal(problem, problem.layout == "NHWC")
        if refused is None:
            cut = conv_depthwise_wgrad.config(problem, properties)
            return Offer(cut, f"{why}; all taps of a channel in one pass", problem.macs / 0.2)
        cut = {"kernel": "general", "splits": split(problem, properties)}
        return Offer(cut, f"{why}; {TAPS} taps at a time: one pass does not take {refused}", problem.macs / 0.2)
    found = config(op, problem)
    threads = pixels_of(op, problem) * (problem.C if op == "conv_dgrad" else problem.K)
    busy = min(1.0, threads / (properties.sms * RESIDENT))
    return Offer(found, f"{why}; {WHY[found['kernel']]}", problem.macs / (0.2 * max(busy, 1e-9)))


WHY = {
    "strips": "a strip of outputs reads each cell that it meets once",
    "general": "an output at a time, as strips do not take this geometry",
}


def config(op: str, problem: ConvProblem) -> dict[str, Any]:
    """The kernel of fprop or dgrad, and the axis that its strips run along where operands lie in the layout's order."""
    axis = strip_axis(op, problem, problem.layout == "NHWC")
    return {"kernel": "general"} if axis is None else {"kernel": "strips", "axis": "DHW"[axis]}


def variants(op: str, problem: ConvProblem, properties: Properties) -> list[dict[str, Any]]:
    """What else can be measured: the general kernel beside strips and one pass, and half and twice as many parts."""
    found = offer(op, problem, properties)
    if found is None or found.config["kernel"] == "general":
        return []
    if op != "conv_wgrad":
        return [{"kernel": "general"}]
    splits = (found.config["splits"] // 2, 2 * found.config["splits"])
    one_pass = [{"kernel": "one pass", "splits": n} for n in splits if 1 <= n <= most_splits(problem)]
    return [*one_pass, {"kernel": "general", "splits": split(problem, properties)}]


def most_splits(problem: ConvProblem) -> int:
    """Parts of wgrad's sum: of an image at least one each, within the workspace."""
    return min(pixels_of("conv_wgrad", problem), workspace_limit() // _part_bytes(problem))


def strip_axis(op: str, problem: ConvProblem, channels_inside: bool) -> int | None:
    """The axis that strips run along, of D, H, W: the last, or H where threads lie along W; None: refused."""
    window = problem.window
    axis = 2 if channels_inside else 1
    if problem.K != problem.C or problem.dtype == "int32" or problem.N == 0 or problem.ndim < 3 - axis:
        return None
    stride = args.lift(window.stride, 1)
    if op == "conv_fprop" and stride[axis] not in STRIP_STRIDES:
        return None
    if op == "conv_dgrad" and math.prod(stride) > MOST_PASSES:
        return None
    longest = max(n + sum(pad) for n, pad in zip(problem.size, window.pad, strict=True))
    return axis if longest < FURTHEST and max(window.dilation) < FURTHEST // 64 else None


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
    inside = operands.channels_inside("x" if op == "conv_dgrad" else "y")
    if config.get("kernel") == "strips" and strip_axis(op, problem, inside) is not None:
        return [strips(op, problem, operands, inside)]
    width = pack_width(problem, operands)
    if config.get("kernel") == "one pass" and conv_depthwise_wgrad.refusal(problem, inside) is None:
        width = width if inside else 1
        return conv_depthwise_wgrad.steps(problem, config["splits"], operands, width, inside)
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


def pack_width(problem: ConvProblem, operands: Operands) -> int:
    """How many channels are moved at a time: 16 bytes, where they lie side by side in all operands' order."""
    width = WIDTHS.get(operands.types[0], 1)
    if problem.K != problem.C or problem.C % width or not all(operands.packs(role, 1, width) for role in ("x", "y")):
        return 1
    return width if operands.strides["w"][0] != 1 or operands.packs("w", 0, width) else 1


def strips(op: str, problem: ConvProblem, operands: Operands, inside: bool) -> Step:
    """The launch of conv_depthwise_strips: all passes of fprop, or of dgrad with the taps in reverse."""
    forward = op == "conv_fprop"
    source, result = ("x", "y") if forward else ("y", "x")
    order = (0, 1, 2) if inside else (0, 2, 1)  # of the axes, a strip along the last
    from_, to, tap = (np.take(operands.strides[role][2:], order) for role in (source, result, "w"))
    found = [[along[axis] for axis in order] for along in passes(op, problem)]
    largest = found[0]
    apart, width = [abs(one.tap_apart) for one in largest], pack_width(problem, operands)
    outputs = strip_outputs(operands.types[0], width)
    extent = [one.outputs for one in largest]
    extent[2] = -(-extent[2] // (outputs * apart[2])) * apart[2]

    filled = np.zeros((), args.STRIPS)
    filled["as"] = (*operands.strides[source][:2], *from_)
    filled["ds"] = (*operands.strides[result][:2], *(to * [one.apart for one in largest]))
    filled["ws"] = operands.strides["w"][0]
    filled["wt"] = tap * [one.tap_step if forward else -one.tap_step for one in largest]
    filled["N"], filled["blocks"] = problem.N, args.divisor(problem.C // width)
    filled["extent"] = [args.divisor(n) for n in extent]
    filled["activation"], filled["walk"] = args.activation(problem), args.CHANNELS if inside else 0
    (filled["bs"],) = operands.strides.get("bias", (0,))
    filled["bt"] = args.DTYPES.index(operands.dtypes.get("bias", "float32"))
    filled["source"] = np.take(args.lift(problem.size if forward else problem.out, 1), order)
    filled["step"], filled["apart"] = [one.step for one in largest], apart
    filled["count"] = len(found)
    for one, along in zip(filled["passes"], found, strict=False):
        lasts = [0 if forward else max(0, axis.taps - 1) for axis in along]  # taps that the first one moves on by
        one["w0"] = sum((a.tap0 + n * a.tap_step) * stride for a, n, stride in zip(along, lasts, tap, strict=True))
        one["d0"] = sum(a.start * stride for a, stride in zip(along, to, strict=True))
        one["out"], one["taps"] = [a.outputs for a in along], [a.taps for a in along]
        one["first"] = [a.first + n * a.tap_apart for a, n in zip(along, lasts, strict=True)]
    threads = problem.N * (problem.C // width) * math.prod(extent)
    grid = min(-(-threads // STRIP_THREADS), LARGEST_GRID // len(found)) * len(found)
    instance = strip_instance(operands.types[0], width, largest[2].step)
    return Step(instance, grid, filled, POINTERS[op], STRIP_THREADS)


def strip_outputs(stored: str, width: int) -> int:
    """Outputs of a strip; the kernel's STRIP."""
    return 4 if width == 8 and stored in ("f16", "bf16") else 8


def strip_instance(stored: str, width: int, stride: int) -> Instance:
    return Instance(STRIPS_FILE, "conv_depthwise_strips", (stored, str(width), str(stride)))


def instances() -> Iterator[Instance]:
    for op in OPS:
        for types in TYPES.values():
            widths = (1, WIDTHS[types[0]]) if types[0] in WIDTHS else (1,)
            yield from (Instance(FILE, f"{op}_depthwise", (*types, str(width))) for width in widths)
    for stored in (*WIDTHS, "double"):
        for width in sorted({1, WIDTHS.get(stored, 1)}):
            yield from (strip_instance(stored, width, stride) for stride in STRIP_STRIDES)
    yield from conv_depthwise_wgrad.instances()


def claims(instance: Instance) -> dict[str, Any]:
    """Packed instances move 16 bytes at a time; the others leave room for 512 threads on a multiprocessor."""
    if instance.file == conv_depthwise_wgrad.FILE:
        return conv_depthwise_wgrad.claims(instance)
    if instance.file == STRIPS_FILE:
        packed = instance.args[1] != "1"
        return {"registers": 255, "sass": ("LDG.128", "STG.128")} if packed else {"registers": 128}
    packed = instance.args[-1] != "1"
    registers = 255 if packed and instance.kernel == "conv_wgrad_depthwise" else 128
    return {"registers": registers, **({"sass": ("LDG.128",)} if packed else {})}

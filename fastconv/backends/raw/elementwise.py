"""Activations, their gradients and the gradient of a bias on a GPU: kernels/cuda/elementwise.cu."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu.elementwise import merge
from fastconv.backends.raw import args, device
from fastconv.backends.raw.launching import ACCESS, STORED, THREADS, Step, aligned, blocks_for, channels_last, stored
from fastconv.compiler.cuda import Instance
from fastconv.problem import ACTIVATIONS, ITEMSIZE, ActivationProblem, Ints, PoolProblem

Array = Any

FILE = "elementwise.cu"
FLOATS = ("float16", "bfloat16", "float32", "float64")
MOST_AXES = 8
LONGEST = 1024  # values that a thread adds one after the other
BLOCKS_PER_SM = 8  # of the sums: enough to fill a GPU


def lanes_of(dtype: str) -> int:
    return ACCESS // ITEMSIZE[dtype]


def instances() -> Iterator[Instance]:
    """Every instance that `plan` can ask for."""
    for dtype in FLOATS:
        for kernel in ("activation_fprop", "activation_dgrad", "bias_grad_partial"):
            for lanes in (1, lanes_of(dtype)):
                yield Instance(FILE, kernel, (STORED[dtype], str(lanes)))
        yield Instance(FILE, "bias_grad", (STORED[dtype],))


def claims(instance: Instance) -> dict[str, Any]:
    """What the compile gate holds an instance to."""
    wide = len(instance.args) > 1 and instance.args[1] != "1"
    written = () if instance.kernel == "bias_grad_partial" else ("STG.128",)
    return {"sass": ("LDG.128", *written) if wide else (), "registers": 128}


def choose(op: str, problem: Any, on: device.Properties) -> tuple[str, dict[str, Any], str]:
    """(algorithm, config, why): a pure function of the problem and the device."""
    lanes = lanes_of(problem.dtype)
    if op == "bias_grad":
        return "two_stages", {"lanes": lanes}, "sums of parts of the pixels, then of the parts, each in a fixed order"
    return "direct", {"lanes": lanes}, f"one pass over memory, {lanes} elements at once where it is one run"


def plan(op: str, problem: Any) -> Launch:
    on = device.current().properties
    algorithm, config, why = choose(op, problem, on)
    if op == "bias_grad":
        sums = BiasGrad(problem, on.sms)
        return Launch(sums.run, algorithm, why, config, sums.workspace)
    return Launch(Activation(op, problem).run, algorithm, why, config)


class Activation:
    """An activation from x, or its gradient from dy and what was saved."""

    def __init__(self, op: str, problem: ActivationProblem):
        self.op, self.code = op, ACTIVATIONS.index(problem.activation) + 1
        self.steps: dict[Any, Step] = {}

    def run(self, *views: Array) -> None:
        if views[0].size == 0:
            return
        on = device.current()
        addresses = [on.pointer(view) for view in views]
        bits = 0
        for each in addresses:
            bits |= each
        key = (on, bits % ACCESS, *[view.strides for view in views])
        step = self.steps.get(key)
        if step is None:
            step = self.steps[key] = self.prepare(views, bits)
            step.function = on.function(step.instance)
        step.launch(on, addresses)

    def prepare(self, views: tuple[Array, ...], bits: int) -> Step:
        shape, strides = merge(views)
        filled = np.zeros((), args.MAP)
        filled["count"], filled["axes"], filled["activation"] = math.prod(shape), len(shape), self.code
        filled["shape"][: len(shape)] = [args.divisor(extent) for extent in shape]
        for name, steps in zip(("ys", "xs", "ss"), strides, strict=False):
            filled[name][: len(shape)] = steps
        lanes = ACCESS // views[0].dtype.itemsize
        lanes = lanes if all(steps == (1,) for steps in strides) and bits % ACCESS == 0 else 1
        instance = Instance(FILE, self.op, (stored(views[0]), str(lanes)))
        pointers = tuple(range(len(views)))  # y, x, saved: those that there are
        return Step(instance, blocks_for(-(-math.prod(shape) // lanes)), filled, pointers)


class BiasGrad:
    """Sums over all but the channels, in two stages."""

    def __init__(self, problem: PoolProblem, sms: int):
        self.problem, self.sms, self.size = problem, sms, args.lift(problem.size, 1)
        self.steps: dict[Any, tuple[int, Step, Step]] = {}
        _, parts = self.split(problem.layout == "NHWC", lanes_of(problem.dtype))
        self.workspace = parts * problem.C * working(problem.dtype)

    def run(self, db: Array, dy: Array) -> None:
        on = device.current()
        pointer = on.pointer(dy)
        key = (on, dy.strides, db.strides, pointer % ACCESS)
        steps = self.steps.get(key)
        if steps is None:
            steps = self.steps[key] = self.prepare(db, dy, pointer)
            for step in steps[1:]:
                step.function = on.function(step.instance)
        nbytes, first, second = steps
        scratch = on.scratch(nbytes)
        addresses = pointer, on.pointer(db), scratch.pointer
        first.launch(on, addresses)
        second.launch(on, addresses)

    def split(self, last: bool, lanes: int) -> tuple[int, int]:
        """(threads of a block along channels, into how many parts the pixels are cut)."""
        C, pixels = self.problem.C, self.problem.N * math.prod(self.size)
        groups = -(-C // lanes) if last else C
        across = min(32, 1 << (groups - 1).bit_length()) if last else 1
        rows = THREADS // across * (1 if last else lanes)  # pixels that a block takes at once
        fill = max(1, BLOCKS_PER_SM * self.sms // -(-groups // across))
        return across, max(1, -(-pixels // (rows * LONGEST)), min(fill, -(-pixels // (rows * 8))))

    def prepare(self, db: Array, dy: Array, pointer: int) -> tuple[int, Step, Step]:
        steps, size, last = args.strides_of(dy), self.size, channels_last(dy)
        rows, planes = steps[4] * size[2], steps[4] * size[2] * size[1]
        if (steps[3] == rows or size[1] == 1) and (steps[2] == planes or size[0] == 1):
            size = (1, 1, math.prod(size))
        lanes = lanes_of(self.problem.dtype)
        if not (aligned(dy, pointer, lanes, 1) if last else runs(dy, pointer, lanes, steps, size)):
            lanes = 1
        filled = np.zeros((), args.BIAS_GRAD)
        filled["ys"], filled["bs"] = steps, db.strides[0] // db.dtype.itemsize
        filled["N"], filled["C"] = dy.shape[:2]
        filled["channels_last"] = last
        filled["size"] = [args.divisor(extent) for extent in size]
        filled["plane"] = args.divisor(math.prod(size) // (1 if last else lanes))
        filled["lanes"], filled["parts"] = self.split(last, lanes)
        groups = -(-self.problem.C // (int(filled["lanes"]) * (lanes if last else 1)))
        name = stored(dy)
        parts = int(filled["parts"])
        return (
            parts * self.problem.C * working(self.problem.dtype),
            Step(Instance(FILE, "bias_grad_partial", (name, str(lanes))), groups * parts, filled),
            Step(Instance(FILE, "bias_grad", (name,)), blocks_for(self.problem.C), filled),
        )


def runs(dy: Array, pointer: int, lanes: int, steps: Ints, size: Ints) -> bool:
    """Whether every row of pixels is a run of memory of whole 16-byte pieces."""
    others = [step for step, n in zip(steps[:4], (*dy.shape[:2], *size[:2]), strict=True) if n > 1]
    whole = size[2] % lanes == 0 and pointer % ACCESS == 0 and all(step % lanes == 0 for step in others)
    return whole and steps[4] == 1


def working(dtype: str) -> int:
    """Bytes of the type computed in."""
    return max(4, ITEMSIZE[dtype])

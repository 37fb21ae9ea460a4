"""Convolution in CUDA C++: which algorithm, and its launches.

direct     by definition (kernels/cuda/conv_direct.cu); right for every problem and every mix of dtypes
wgmma      implicit GEMM on Hopper's tensor cores, fed by TMA (conv_wgmma.cu)
mma        implicit GEMM on tensor cores (conv_mma.cu)
grouped    few channels to a group, on tensor cores: memory-bound (conv_grouped.cu)
gemm       tiled implicit GEMM in shared memory, without tensor cores (conv_gemm.cu)
depthwise  one filter per channel, or some: memory-bound (conv_depthwise.cu)

Each algorithm is a module ``conv_NAME`` with the same functions: `offer` (whether it takes a problem, with which
config), `workspace`, `steps` (its launches for operands of given strides), `instances` and `claims`. `choose` is a
pure function of op, problem and device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

from fastconv import tuning
from fastconv.arrays import dtype_of
from fastconv.backends.base import OPS, Launch
from fastconv.backends.raw import conv_depthwise, conv_direct, conv_gemm, conv_grouped, conv_mma, conv_wgmma, device
from fastconv.backends.raw.conv_steps import Operands, reductions
from fastconv.backends.raw.device import Device, Properties
from fastconv.backends.raw.launching import Step
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem, Ints

#: By name; `direct` takes every problem.
ALGORITHMS: dict[str, ModuleType] = {
    "depthwise": conv_depthwise, "grouped": conv_grouped, "wgmma": conv_wgmma, "mma": conv_mma, "gemm": conv_gemm,
    "direct": conv_direct,
}  # fmt: skip
#: Of those with something to tune: `variants`, further configs of a problem that they take.
TUNED = {"depthwise": conv_depthwise.variants, "grouped": conv_grouped.variants}
KEPT = 64  # sets of strides, dtypes and alignments that a plan remembers the launches of


class Choice(NamedTuple):
    """An algorithm, what it is parametrised with, and why it was taken."""

    algorithm: str
    config: dict[str, Any]
    why: str


def applicable(op: str, problem: ConvProblem, properties: Properties) -> list[Choice]:
    """Every algorithm that takes a problem, the one with the least cost first."""
    offers = ((name, module.offer(op, problem, properties)) for name, module in ALGORITHMS.items())
    ranked = sorted(((offer.cost, name, offer) for name, offer in offers if offer is not None), key=lambda one: one[:2])
    return [Choice(name, offer.config, offer.why) for _, name, offer in ranked]


def choose(op: str, problem: ConvProblem, properties: Properties) -> Choice:
    """The algorithm of the least cost: a pure function of op, problem and device."""
    return applicable(op, problem, properties)[0]


def plan(op: str, problem: ConvProblem) -> Launch:
    """The launch of a convolution, by the mode of `fastconv.set_autotune`."""
    choices = applicable(op, problem, device.current().properties)
    mode = tuning.autotune()
    if mode == "off":
        choice = next(choice for choice in choices if choice.algorithm == "direct")
        return build(op, problem, choice._replace(why="autotune is off: the algorithm that takes every problem"))
    if mode == "measure" and problem.N > 0:
        best = _measure(op, problem, candidates(op, problem, device.current().properties))
        return build(op, problem, best._replace(why="the fastest when it was measured on this device"))
    return build(op, problem, choices[0])


def candidates(op: str, problem: ConvProblem, properties: Properties) -> list[Choice]:
    """What is measured: every applicable algorithm in its config, and in those that it could be tuned to."""
    found = applicable(op, problem, properties)
    for one in tuple(found):
        for config in TUNED[one.algorithm](op, problem, properties) if one.algorithm in TUNED else ():
            other = one._replace(config=config)
            if other not in found:
                found.append(other)
    return found


def build(op: str, problem: ConvProblem, choice: Choice) -> Launch:
    """The launch of one algorithm."""
    run = Run(op, problem, choice)
    return Launch(run, choice.algorithm, choice.why, choice.config, run.workspace)


def _measure(op: str, problem: ConvProblem, choices: list[Choice]) -> Choice:
    """Time algorithms and configs on contiguous arrays of the problem's layout, in uninitialised memory."""
    gpu = device.current()
    operands = Operands.contiguous(problem)
    size = dtype_of(problem.dtype).itemsize
    memory = [gpu.scratch(size * math.prod(problem.dims(role))) for role in ("x", "w", "y")]
    addresses = (*(scratch.pointer for scratch in memory), 0)

    def candidate(choice: Choice) -> Callable[[], None]:
        run = Run(op, problem, choice)
        steps = run.steps(gpu, operands)

        def call() -> None:
            run.launch(gpu, steps, addresses)
            gpu.synchronize()

        return call

    key = f"{op}: {problem}; {gpu.properties.name}; {tuning.machine()}"
    named = {f"{choice.algorithm} {choice.config}": choice for choice in choices}
    return named[tuning.measured("raw", key, {name: candidate(choice) for name, choice in named.items()})]


class Run:
    """A plan's call: picks the launches by the operands' strides, dtypes and alignment, and adds the addresses."""

    def __init__(self, op: str, problem: ConvProblem, choice: Choice):
        self.op, self.problem, self.choice = op, problem, choice
        self.workspace: int = ALGORITHMS[choice.algorithm].workspace(op, problem, choice.config)
        self.empty = op != "conv_wgrad" and problem.N == 0
        self.order = {"conv_fprop": (1, 2, 0), "conv_dgrad": (0, 2, 1), "conv_wgrad": (2, 0, 1)}[op]  # of x, w, y
        self._kept: dict[tuple[Any, ...], list[Step]] = {}

    def __call__(self, out: Any, first: Any, second: Any, bias: Any = None) -> None:
        """Enqueue the op on views in canonical axes, in the order of `fastconv.backends.base.OPS`."""
        if self.empty:
            return
        gpu = device.current()
        pointer = gpu.pointer
        given = pointer(out), pointer(first), pointer(second)
        key = (
            gpu, (given[0] | given[1] | given[2]) & 15, out.strides, first.strides, second.strides, first.dtype,
            second.dtype, None if bias is None else (bias.strides, bias.dtype),
        )  # fmt: skip
        steps = self._kept.get(key)
        if steps is None:
            roles, (result,) = OPS[self.op]
            views = dict(zip((result, *roles), (out, first, second, bias), strict=False))
            steps = self.steps(gpu, Operands.of(self.problem, views, aligned=key[1] == 0))
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = steps
        x, w, y = self.order
        self.launch(gpu, steps, (given[x], given[w], given[y], 0 if bias is None else pointer(bias)))

    def steps(self, gpu: Device, operands: Operands) -> list[Step]:
        """The launches for such operands; floats of more than one dtype are convolved directly."""
        module, config = ALGORITHMS[self.choice.algorithm], self.choice.config
        if operands.mixed:
            module, config = conv_direct, {}
        steps: list[Step] = module.steps(self.op, self.problem, config, operands)
        for step in steps:
            step.function = gpu.function(step.instance)
        return steps

    def launch(self, gpu: Device, steps: list[Step], addresses: Ints) -> None:
        """Enqueue launches on operands at these addresses of (x, w, y, bias)."""
        scratch = gpu.scratch(self.workspace) if self.workspace else None
        addresses = (*addresses, 0 if scratch is None else scratch.pointer)
        for step in steps:
            step.launch(gpu, addresses)


def instances() -> Iterator[Instance]:
    """Every instance that a convolution can ask for."""
    for module in ALGORITHMS.values():
        yield from module.instances()
    yield from reductions()


def claims(instance: Instance) -> dict[str, Any]:
    """What the machine code of an instance must show: "sass" mnemonics, and "registers" at most."""
    for module in ALGORITHMS.values():
        if instance.file in module.FILES:
            found: dict[str, Any] = module.claims(instance)
            return found
    return {"registers": 128}

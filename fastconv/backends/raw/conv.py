"""Convolution in CUDA C++: which algorithm, and its launches.

direct     by definition (kernels/cuda/conv_direct.cu); right for every problem and every mix of dtypes
mma        implicit GEMM on tensor cores (conv_mma.cu)
gemm       tiled implicit GEMM in shared memory, without tensor cores (conv_gemm.cu)
depthwise  one filter per channel, or some: memory-bound (conv_depthwise.cu)

Each algorithm is a module ``conv_NAME`` with the same functions: `offer` (whether it takes a problem, with which
config), `workspace`, `steps` (its launches for operands of given strides), `instances` and `claims`. `choose` is a
pure function of op, problem and device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from fastconv import tuning
from fastconv.arrays import dtype_of
from fastconv.backends.base import OPS, Launch
from fastconv.backends.raw import conv_depthwise, conv_direct, conv_gemm, conv_mma, device
from fastconv.backends.raw.conv_steps import Operands, Step, reductions
from fastconv.backends.raw.device import Properties
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem

#: By name; `direct` takes every problem.
ALGORITHMS: dict[str, ModuleType] = {
    "depthwise": conv_depthwise, "mma": conv_mma, "gemm": conv_gemm, "direct": conv_direct,
}  # fmt: skip
KEPT = 64  # sets of strides, dtypes and alignments that a plan remembers the launches of


class Choice(NamedTuple):
    """An algorithm, what it is parametrised with, and why it was taken."""

    algorithm: str
    config: dict[str, Any]
    why: str


def applicable(op: str, problem: ConvProblem, properties: Properties) -> list[Choice]:
    """Every algorithm that takes a problem, the one with the least cost first."""
    offers = {name: module.offer(op, problem, properties) for name, module in ALGORITHMS.items()}
    ranked = sorted((offer.cost, name) for name, offer in offers.items() if offer is not None)
    return [Choice(name, offers[name].config, offers[name].why) for _, name in ranked]


def choose(op: str, problem: ConvProblem, properties: Properties) -> Choice:
    """The algorithm of the least cost: a pure function of op, problem and device."""
    return applicable(op, problem, properties)[0]


def plan(op: str, problem: ConvProblem) -> Launch:
    """The launch of a convolution, by the mode of `fastconv.set_autotune`."""
    properties = device.current().properties
    choices = applicable(op, problem, properties)
    mode = tuning.autotune()
    if mode == "off":
        return build(op, problem, Choice("direct", {}, "autotune is off: the algorithm that takes every problem"))
    if mode == "measure" and len(choices) > 1:
        best = _measure(op, problem, choices)
        return build(op, problem, best._replace(why="the fastest when it was measured on this device"))
    return build(op, problem, choices[0])


def build(op: str, problem: ConvProblem, choice: Choice) -> Launch:
    """The launch of one algorithm."""
    workspace = ALGORITHMS[choice.algorithm].workspace(op, problem, choice.config)
    return Launch(Run(op, problem, choice, workspace), choice.algorithm, choice.why, choice.config, workspace)


def _measure(op: str, problem: ConvProblem, choices: list[Choice]) -> Choice:
    """Time the applicable algorithms on arrays of ones of the problem's shapes."""
    gpu = device.current()
    roles, (result,) = OPS[op]
    dtype = dtype_of("int8" if problem.dtype == "int32" else problem.dtype)
    arrays = [None if role.endswith("bias") else gpu.ones(problem.dims(role), dtype) for role in roles]
    out = gpu.ones(problem.dims(result), dtype_of(problem.dtype))

    def call(launch: Launch) -> None:
        launch.run(out, *arrays)
        gpu.synchronize()

    candidates = {choice.algorithm: partial(call, build(op, problem, choice)) for choice in choices}
    best = tuning.measured("raw", f"{op}: {problem}; {gpu.properties.name}; {tuning.machine()}", candidates)
    return next(choice for choice in choices if choice.algorithm == best)


class Run:
    """A plan's call: picks the launches by the operands' strides, dtypes and alignment, and adds the addresses."""

    def __init__(self, op: str, problem: ConvProblem, choice: Choice, workspace: int):
        self.op, self.problem, self.choice, self.workspace = op, problem, choice, workspace
        self.empty = op != "conv_wgrad" and problem.N == 0
        self._kept: dict[tuple[Any, ...], list[Step]] = {}

    def __call__(self, out: Any, first: Any, second: Any, bias: Any = None) -> None:
        """Enqueue the op on views in canonical axes, in the order of `fastconv.backends.base.OPS`."""
        if self.empty:
            return
        gpu = device.current()
        pointer = gpu.pointer
        to, from1, from2 = pointer(out), pointer(first), pointer(second)
        key = (
            gpu, (to | from1 | from2) & 15, out.strides, first.strides, second.strides, first.dtype, second.dtype,
            None if bias is None else (bias.strides, bias.dtype),
        )  # fmt: skip
        steps = self._kept.get(key)
        if steps is None:
            steps = self._steps(gpu, key, out, first, second, bias)
        scratch = gpu.scratch(self.workspace) if self.workspace else None
        if self.op == "conv_fprop":
            x, w, y = from1, from2, to
        elif self.op == "conv_dgrad":
            x, w, y = to, from2, from1
        else:
            x, w, y = from2, to, from1
        pointers = (x, w, y, 0 if bias is None else pointer(bias), 0 if scratch is None else scratch.pointer)
        for step in steps:
            step.launch(gpu, pointers)

    def _steps(self, gpu: Any, key: tuple[Any, ...], out: Any, first: Any, second: Any, bias: Any) -> list[Step]:
        roles, (result,) = OPS[self.op]
        views = dict(zip((result, *roles), (out, first, second, bias), strict=False))
        operands = Operands.of(self.problem, views, aligned=key[1] == 0)
        algorithm = "direct" if operands.mixed else self.choice.algorithm
        config = self.choice.config if algorithm == self.choice.algorithm else {}
        steps: list[Step] = ALGORITHMS[algorithm].steps(self.op, self.problem, config, operands)
        for step in steps:
            step.function = gpu.function(step.instance)
        if len(self._kept) >= KEPT:
            self._kept.clear()
        self._kept[key] = steps
        return steps


def instances() -> Iterator[Instance]:
    """Every instance that a convolution can ask for."""
    for module in ALGORITHMS.values():
        yield from module.instances()
    yield from reductions()


def claims(instance: Instance) -> dict[str, Any]:
    """What the machine code of an instance must show: "sass" mnemonics, and "registers" at most."""
    module = next(
        module for module in ALGORITHMS.values() if f"{module.__name__.rpartition('.')[2]}.cu" == instance.file
    )
    found: dict[str, Any] = module.claims(instance)
    return found

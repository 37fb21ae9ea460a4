"""`correlate` on a GPU: kernels/cuda/correlate.cu, and transforms by the arrays' own module.

direct    a thread per output: right for every problem
rows      a thread for 8 neighbours of a long last axis, x and taps in shared memory
dot       blocks that share the taps of one output: few outputs of many taps
fft       overlap-save, `fastconv.backends.raw.correlate_fft`

The smaller of the arrays serves as the taps, as on the CPU, and NaNs and infinities stay out of the transforms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastconv import tuning
from fastconv.arrays import module_of
from fastconv.backends.base import Launch
from fastconv.backends.cpu import signal
from fastconv.backends.cpu.signal import Geometry
from fastconv.backends.raw import args, correlate_fft, device
from fastconv.backends.raw.launching import THREADS, Step, blocks_for
from fastconv.compiler.cuda import Instance
from fastconv.problem import ITEMSIZE, SignalProblem

Array = Any

FILE = "correlate.cu"
MOST_AXES, FEW_AXES = 8, 3
ROW_THREADS, ROW_OUTPUTS = 128, 1024  # of a block of "rows"
LONG_ROW, LONG_TAPS = 512, 4  # along the last axis, from which "rows" is taken
MANY_TAPS = 512  # from which "dot" is, where the outputs do not fill the GPU

#: Dtypes by their name in C++; integers as unsigned ones, which wrap alike.
STORED = {
    "bool": "boolean", "float16": "f16", "bfloat16": "bf16", "float32": "float", "float64": "double",
    "complex64": "complex<float>", "complex128": "complex<double>",
    **{f"{sign}int{bits}": f"uint{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
#: Those that have every algorithm.
REAL_AND_COMPLEX = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")

# Estimates from the clock and the bandwidth of a GPU of 2023; nothing here was measured.
LAUNCH_NS = 4_000
MACS_PER_NS = {"direct": 16, "dot": 16, "rows": 80}  # of a multiprocessor, in float32
COST = {"float64": 2, "complex64": 4, "complex128": 8}  # of a product
TRANSFORM_NS, BYTES_PER_NS = 30_000, 1_500  # the start of a transform, and the memory that it goes through


# ---------------------------------------------------------------- instances


def instances() -> Iterator[Instance]:
    """Every instance that `plan` can ask for."""
    for name in dict.fromkeys(STORED.values()):
        for axes in (FEW_AXES, MOST_AXES):
            yield Instance(FILE, "correlate_direct", (name, str(axes)))
    for dtype in REAL_AND_COMPLEX:
        for kernel in ("correlate_dot", "correlate_join", "correlate_rows"):
            yield Instance(FILE, kernel, (STORED[dtype],))


def claims(instance: Instance) -> dict[str, Any]:
    """What the compile gate holds an instance to."""
    large = str(MOST_AXES) in instance.args or STORED["complex128"] in instance.args
    return {"registers": 255 if large else 128}


# ---------------------------------------------------------------- the choice


def axes_of(geometry: Geometry) -> tuple[int, ...]:
    """The axes along which there is something to do: those of extent 1 in both arrays are left out."""
    return tuple(axis for axis, (n, m) in enumerate(zip(geometry.n, geometry.m, strict=True)) if n * m > 1)


def rejects(problem: SignalProblem) -> str | None:
    """Why a problem is not taken, or None."""
    count = len(axes_of(Geometry.of(problem)))
    return f"{count} axes are more than its kernels have, {MOST_AXES}" if count > MOST_AXES else None


def choose(op: str, problem: SignalProblem, on: device.Properties) -> tuple[str, dict[str, Any], str]:
    """(algorithm, config, why): a pure function of the problem, the device and the autotune mode."""
    geometry = Geometry.of(problem)
    exact, config, why = choose_exact(geometry, on)
    if problem.method == "direct" or not axes_of(geometry) or tuning.autotune() == "off":
        return exact, config, why
    blocks = geometry.blocks
    config_fft = {"points": blocks.size, "blocks": blocks.blocks, "parts": blocks.parts}
    if problem.method == "fft":
        return "fft", config_fft, "method='fft'"
    costs = {exact: exact_cost(geometry, exact, on), "fft": fft_cost(geometry)}
    best = min(costs, key=lambda name: costs[name])
    shown = ", ".join(f"{name} {ns / 1e6:.3g} ms" for name, ns in costs.items())
    return best, config_fft if best == "fft" else config, f"the least of the estimates: {shown}"


def choose_exact(geometry: Geometry, on: device.Properties) -> tuple[str, dict[str, Any], str]:
    """The algorithm that sums products."""
    axes = axes_of(geometry)
    outputs, taps = math.prod(geometry.out), math.prod(geometry.m)
    if len(axes) > FEW_AXES or not axes or geometry.dtype not in REAL_AND_COMPLEX:
        return "direct", {"axes": MOST_AXES if len(axes) > FEW_AXES else FEW_AXES}, "a thread per output"
    if outputs < THREADS * on.sms and taps >= MANY_TAPS:
        return "dot", split_of(geometry, on), f"{outputs} outputs do not fill the GPU: blocks share their {taps} taps"
    if geometry.out[axes[-1]] >= LONG_ROW and geometry.m[axes[-1]] >= LONG_TAPS:
        return "rows", {"outputs": ROW_OUTPUTS}, "the last axis is long: 8 outputs per thread"
    return "direct", {"axes": FEW_AXES}, "a thread per output"


def split_of(geometry: Geometry, on: device.Properties) -> dict[str, int]:
    """How "dot" shares the taps: the axis that is cut (of the 8), into how many parts, and threads along the last."""
    m = [1, 1, 1, *(geometry.m[axis] for axis in axes_of(geometry))][-3:]
    cut = max(range(3), key=lambda axis: m[axis])
    lanes = min(THREADS, 1 << (m[2] - 1).bit_length())
    most = -(-m[cut] // (lanes if cut == 2 else 1))
    parts = min(most, -(-4 * on.sms // math.prod(geometry.out)))
    return {"split": 5 + cut, "parts": parts, "lanes": lanes}


def exact_cost(geometry: Geometry, algorithm: str, on: device.Properties) -> float:
    """Estimated nanoseconds of an algorithm that sums products."""
    macs = math.prod(geometry.out) * math.prod(geometry.m) * COST.get(geometry.dtype, 1)
    return LAUNCH_NS + macs / (MACS_PER_NS[algorithm] * on.sms)


def fft_cost(geometry: Geometry) -> float:
    """Estimated nanoseconds of the transforms."""
    blocks = geometry.blocks
    transforms = blocks.blocks * blocks.parts * sum(blocks.limbs)
    touched = 4 * len(blocks.size) * blocks.points * max(8, ITEMSIZE[geometry.dtype])
    return transforms * (TRANSFORM_NS + touched / BYTES_PER_NS)


# ---------------------------------------------------------------- the launches


def plan(op: str, problem: SignalProblem) -> Launch:
    on = device.current().properties
    algorithm, config, why = choose(op, problem, on)
    geometry = Geometry.of(problem)
    if algorithm != "fft":
        product = Products(geometry, algorithm, config)
        run, workspace = product.run, product.workspace
    else:
        exact = choose_exact(geometry, on)
        run, workspace = Transforms(geometry, Products(geometry, *exact[:2])).run, geometry.blocks.workspace

    def correlate(out: Array, in1: Array, in2: Array) -> None:
        run(out, *geometry.operands(in1, in2))

    return Launch(correlate, algorithm, why, config, workspace)


class Products:
    """The kernels that sum products."""

    def __init__(self, geometry: Geometry, algorithm: str, config: dict[str, Any]):
        self.geometry, self.algorithm, self.config, self.axes = geometry, algorithm, config, axes_of(geometry)
        self.name = STORED[geometry.dtype]
        self.steps: dict[Any, tuple[Step, ...]] = {}
        self.filled = self.fill()
        parts = math.prod(geometry.out) * config["parts"] if algorithm == "dot" else 0
        self.workspace = parts * max(4, ITEMSIZE[geometry.dtype])

    def fill(self) -> np.ndarray:
        filled = np.zeros((), args.SIGNAL)
        filled["n"], filled["m"], filled["out"] = 1, 1, args.divisor(1)
        for place, axis in enumerate(self.axes, MOST_AXES - len(self.axes)):
            for name in ("n", "m", "offset"):
                filled[name][place] = getattr(self.geometry, name)[axis]
            filled["out"][place] = args.divisor(self.geometry.out[axis])
        if self.algorithm == "dot":
            for name, value in self.config.items():
                filled[name] = value
        return filled

    def run(self, out: Array, x: Array, w: Array) -> None:
        x, w = (view if whole(view) else view.copy() for view in (x, w))
        if not whole(out):
            dense = module_of(out).empty(out.shape, out.dtype)
            self.run(dense, x, w)
            out[...] = dense
            return
        on = device.current()
        key = (on, x.strides, w.strides, out.strides)
        steps = self.steps.get(key)
        if steps is None:
            steps = self.steps[key] = self.strided(x, w, out)
            for step in steps:
                step.function = on.function(step.instance)
        partial = on.scratch(self.workspace) if self.workspace else None  # held until all is launched
        addresses = on.pointer(x), on.pointer(w), on.pointer(out), partial.pointer if partial else 0
        for step in steps:
            step.launch(on, addresses)

    def strided(self, x: Array, w: Array, y: Array) -> tuple[Step, ...]:
        """The launches for views of these strides."""
        filled = self.filled.copy()
        for name, view in (("xs", x), ("ws", w), ("ys", y)):
            for place, axis in enumerate(self.axes, MOST_AXES - len(self.axes)):
                filled[name][place] = view.strides[axis] // view.dtype.itemsize
        outputs, name = math.prod(self.geometry.out), self.name
        if self.algorithm == "dot":
            return (
                Step(Instance(FILE, "correlate_dot", (name,)), outputs * self.config["parts"], filled),
                Step(Instance(FILE, "correlate_join", (name,)), blocks_for(outputs), filled),
            )
        if self.algorithm == "rows":
            last = int(filled["out"]["value"][-1])
            blocks = outputs // last * -(-last // ROW_OUTPUTS)
            return (Step(Instance(FILE, "correlate_rows", (name,)), blocks, filled, block=ROW_THREADS),)
        instance = Instance(FILE, "correlate_direct", (name, str(self.config["axes"])))
        return (Step(instance, blocks_for(outputs), filled),)


def whole(view: Array) -> bool:
    """Whether the strides are whole numbers of elements: halves of complex numbers may lie between them."""
    return all(stride % view.dtype.itemsize == 0 for stride in view.strides)


class Transforms:
    """Products by transforms; NaNs, infinities and what would overflow go through the kernels."""

    def __init__(self, geometry: Geometry, products: Products):
        self.geometry, self.products = geometry, products

    def run(self, out: Array, x: Array, w: Array) -> None:
        if out.dtype.itemsize > 2 or out.dtype.kind in "iub":
            signal.transformed(self.geometry, out, x, w, correlate_fft.correlate, self.exact)
            return
        total = module_of(out).empty(out.shape, np.float32)
        x, w = x.astype(np.float32), w.astype(np.float32)
        signal.transformed(self.geometry, total, x, w, correlate_fft.correlate, self.exact)
        out[...] = total.astype(out.dtype)

    def exact(self, geometry: Geometry, out: Array, x: Array, w: Array) -> None:
        self.products.run(out, x, w)

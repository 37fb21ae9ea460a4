"""What the algorithms of a convolution share: operands by strides and dtype, and one launch of a kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import canonical, dtype_of, name_of
from fastconv.backends.raw import args
from fastconv.backends.raw.launching import Step, blocks_for
from fastconv.compiler.cuda import Instance
from fastconv.problem import ConvProblem, Ints

#: A dtype of the result: operands and result as template arguments, where all are of one dtype.
TYPES = {
    "float16": ("f16", "f16"), "bfloat16": ("bf16", "bf16"), "float32": ("float", "float"),
    "float64": ("double", "double"), "int32": ("Byte", "int32_t"),
}  # fmt: skip
#: Bytes of a sum.
SUMSIZE = {"float16": 4, "bfloat16": 4, "float32": 4, "float64": 8, "int32": 4}
#: Elements of a type in 16 bytes, for the types that have packed instances.
WIDTHS = {"f16": 8, "bf16": 8, "float": 4}
RESIDENT = 1024  # threads that keep a multiprocessor busy
FAR = 2**62  # the stride of an axis that is never walked along


class Offer(NamedTuple):
    """That an algorithm takes a problem: how, why one would, and what it costs.

    The cost is a rough count, to rank algorithms by: multiply-adds at the full rate of all the device's float units
    that would take as long.
    """

    config: dict[str, Any]
    why: str
    cost: float


@dataclass(frozen=True)
class Operands:
    """What launches depend on besides the problem: element strides and dtypes by role, and alignment.

    Strides are over canonical axes, three of them in space; an axis of extent 1 has the stride 0.
    """

    strides: dict[str, Ints]
    dtypes: dict[str, str]
    aligned: bool  # all of x, w and y start at multiples of 16 bytes
    types: tuple[str, str]

    @classmethod
    def of(cls, problem: ConvProblem, views: dict[str, Any], aligned: bool) -> Operands:
        """The operands of a call; `views` are arrays by role, a bias may be None."""
        present = {role.removeprefix("t"): view for role, view in views.items() if view is not None}
        strides = {
            role: tuple(step if n > 1 else 0 for step, n in zip(args.strides_of(view), _extents(view), strict=True))
            for role, view in present.items()
            if role != "bias"
        }
        if "bias" in present:
            strides["bias"] = args.element_strides(present["bias"])
        dtypes = {role: name_of(view.dtype) for role, view in present.items()}
        types = TYPES[problem.dtype]
        if problem.dtype != "int32" and {dtypes[role] for role in ("x", "w", "y")} != {problem.dtype}:
            types = ("Any", types[1])
        return cls(strides, dtypes, aligned, types)

    @classmethod
    def contiguous(cls, problem: ConvProblem) -> Operands:
        """Contiguous, aligned operands in the problem's layout."""
        views = {}
        for role in ("x", "w", "y"):
            dtype, shape = dtype_of("int8" if problem.dtype == "int32" else problem.dtype), problem.shape(role)
            strides = tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            nowhere = np.lib.stride_tricks.as_strided(np.empty((), dtype), shape, strides)  # its elements are not there
            views[role] = canonical(problem, role, nowhere)
        return cls.of(problem, views, aligned=True)

    @property
    def mixed(self) -> bool:
        """Floats of more than one dtype."""
        return self.types[0] == "Any"

    def closer(self, role: str, axis: int, other: int) -> bool:
        """Whether elements lie closer together along one axis than along another."""
        strides = self.strides[role]
        return (abs(strides[axis]) or FAR) < (abs(strides[other]) or FAR)

    def channels_inside(self, role: str) -> bool:
        """Whether channels lie closer together in memory than pixels of a row."""
        return self.closer(role, 1, 4)

    def packs(self, role: str, axis: int, width: int) -> bool:
        """Whether elements along an axis can be moved `width` at a time, wherever along the other axes."""
        strides = self.strides[role]
        return self.aligned and strides[axis] == 1 and all(s % width == 0 for a, s in enumerate(strides) if a != axis)


def _extents(view: Any) -> Ints:
    shape = tuple(view.shape)
    return (*shape[:2], *args.lift(shape[2:], 1))


def conv_args(
    problem: ConvProblem, operands: Operands, walk: int = 0, blocks: int = 1, lanes: int = 1, splits: int = 1
) -> np.ndarray:
    """The struct Conv but for the addresses."""
    filled = args.conv(problem)
    for role, field in (("x", "xs"), ("w", "ws"), ("y", "ys")):
        filled[field] = operands.strides[role]
    for role, field in (("x", "xt"), ("w", "wt"), ("y", "yt"), ("bias", "bt")):
        filled[field] = args.DTYPES.index(operands.dtypes.get(role, "float32"))
    (filled["bs"],) = operands.strides.get("bias", (0,))
    filled["blocks"] = args.divisor(blocks)
    filled["walk"], filled["lanes"], filled["splits"] = walk, lanes, splits
    return filled


def power_of_two(least: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << max(0, least - 1).bit_length()


def per_group(op: str, problem: ConvProblem) -> tuple[int, int]:
    """Per group, the channels of the result and those summed over (of wgrad: filters and their channels)."""
    K, C = problem.K // problem.groups, problem.C // problem.groups
    return (C, K) if op == "conv_dgrad" else (K, C)


def result_of(op: str) -> str:
    return {"conv_fprop": "y", "conv_dgrad": "x", "conv_wgrad": "w"}[op]


def pixels_of(op: str, problem: ConvProblem) -> int:
    """Pixels of the result, or of wgrad's sum."""
    return problem.N * math.prod(problem.size if op == "conv_dgrad" else problem.out)


# ---------------------------------------------------------------- the second pass of split sums

SPLIT_POINTERS = {"conv_fprop": (4, 2, 3), "conv_dgrad": (4, 0, 3), "conv_wgrad": (4, 1, 3)}


def reduction(
    op: str, problem: ConvProblem, operands: Operands, splits: int, order: tuple[int, int, int] = (0, 1, 2)
) -> Step:
    """The launch that adds the parts of a split sum (kernels/cuda/reduce.cu), whose axes have that order."""
    role = result_of(op)
    dims, strides = problem.dims(role), operands.strides[role]
    extents = args.lift(dims[2:], 1)
    filled = np.zeros((), args.SPLITS)
    filled["extent"] = [args.divisor(n) for n in (*dims[:2], *(extents[axis] for axis in order))]
    filled["stride"] = (*strides[:2], *(strides[2 + axis] for axis in order))
    filled["splits"] = splits
    (filled["bs"],) = operands.strides.get("bias", (0,))
    filled["bt"] = args.DTYPES.index(operands.dtypes.get("bias", "float32"))
    filled["activation"] = args.activation(problem)
    instance = Instance("reduce.cu", "reduce_splits", operands.types[1:])
    return Step(instance, blocks_for(math.prod(dims)), filled, SPLIT_POINTERS[op])


def reductions() -> Iterator[Instance]:
    """Every instance of the second pass."""
    for _, result in TYPES.values():
        yield Instance("reduce.cu", "reduce_splits", (result,))

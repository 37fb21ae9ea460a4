"""What a kernel may touch: the elements of its operands, and scratch memory, as regions for the runtime's checks."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np

OPERAND, SCRATCH, SHARED = range(3)  # Region::Kind in runtime.hpp
OUTSIDE, ACCESSIBLE, UNWRITTEN = range(3)  # Region::State


class Region(ctypes.Structure):
    """The struct of that name in runtime.hpp."""

    _fields_ = (
        ("begin", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("shift", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("state", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
    )


class Scratch:
    """Memory of the emulated device, filled with 0xff: NaN as a float, -1 as an integer."""

    def __init__(self, nbytes: int):
        self.nbytes = nbytes
        self._memory = np.full(nbytes + 256, 0xFF, np.uint8)
        self.pointer = -(-self._memory.ctypes.data // 256) * 256
        self.state = np.full(nbytes, UNWRITTEN, np.uint8)


class Operand(NamedTuple):
    """An array as a kernel sees it."""

    name: str
    view: np.ndarray


def region_of_scratch(scratch: Scratch) -> Region:
    name = f"scratch memory of {scratch.nbytes} bytes".encode()
    return Region(scratch.pointer, scratch.nbytes, 0, SCRATCH, scratch.state.ctypes.data, name)


def regions_of_operands(operands: list[Operand]) -> list[tuple[Region, np.ndarray | None]]:
    """Regions without overlap, each with the array of its granules' states where not all are accessible."""
    groups: list[tuple[int, int, list[Operand]]] = []
    spans = sorted(((*_span(operand.view), operand) for operand in operands if operand.view.size), key=lambda s: s[:2])
    for low, high, operand in spans:
        if groups and low < groups[-1][1]:
            before = groups.pop()
            groups.append((before[0], max(before[1], high), [*before[2], operand]))
        else:
            groups.append((low, high, [operand]))
    return [_region(*group) for group in groups]


def _span(view: np.ndarray) -> tuple[int, int]:
    """The addresses of the first byte, and of the one past the last."""
    reach = [(extent - 1) * stride for extent, stride in zip(view.shape, view.strides, strict=True)]
    start = _address(view)
    low = start + sum(step for step in reach if step < 0)
    return low, start + sum(step for step in reach if step > 0) + view.itemsize


def _address(view: Any) -> int:
    address: int = view.__array_interface__["data"][0]
    return address


def _region(low: int, high: int, operands: list[Operand]) -> tuple[Region, np.ndarray | None]:
    steps = [value for o in operands for value in (o.view.itemsize, _address(o.view) - low, *o.view.strides)]
    granule = math.gcd(8, *steps)
    state = np.zeros((high - low) // granule, np.uint8)
    for operand in operands:
        view = operand.view
        first = (_address(view) - low) // granule
        shape = (*view.shape, view.itemsize // granule)
        strides = (*(stride // granule for stride in view.strides), 1)
        np.ndarray(shape, np.uint8, state, first, strides)[...] = ACCESSIBLE
    name = " and ".join(f"{o.name} ({o.view.dtype}{list(o.view.shape)})" for o in operands)
    gaps = None if state.all() else state
    place = None if gaps is None else gaps.ctypes.data
    return Region(low, high - low, granule.bit_length() - 1, OPERAND, place, name.encode()), gaps

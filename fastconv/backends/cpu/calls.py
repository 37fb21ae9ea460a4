"""What a kernel call needs besides the addresses of its operands, worked out once for each form of these.

A form is the operands' dtypes and strides and the number of threads: a network calls with the same ones over and
over, and the numbers of a call take longer than many a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.cpu.workspace import Scratch, scratch, threads

FORMS = 64  # kept of a launch; a program that passes ever new strides starts again
Call = Callable[..., None]


def by_form(bind: Callable[..., Call]) -> Call:
    """``run(*arrays)``: what `bind` makes for arrays of their form is called with them."""
    known: dict[Any, Call] = {}

    def run(*arrays: np.ndarray | None) -> None:
        form = (threads(), *[None if array is None else (array.strides, array.dtype) for array in arrays])
        call = known.get(form)
        if call is None:
            if len(known) >= FORMS:
                known.clear()
            call = known[form] = bind(*arrays)
        call(*arrays)

    return run


def address(array: np.ndarray) -> int:
    """Where the first element lies: what ``array.ctypes.data`` says, in a tenth of the time."""
    where: int = _address_of()(array)
    return where


@lru_cache(maxsize=1)
def _address_of() -> Callable[[np.ndarray], int]:
    from fastconv.compiler.host import HostKernel
    from fastconv.kernels.numba_cpu import memory

    return HostKernel(memory.address_of).entry(memory.array_type)


class Filters(NamedTuple):
    """How a kernel reads the filters of `groups` from g0 and the channels [m0, m1) of each."""

    g0: int
    groups: int
    m0: int
    m1: int
    steps: tuple[int, ...]  # what the kernel is told of how they lie
    nbytes: int = 0  # of a rearranged copy, which `pack` makes of the filters from byte `first` on; else in place
    first: int = 0
    pack: Call | None = None

    def packed(self, w: np.ndarray) -> Scratch | None:
        """The rearranged copy in memory of its own; None where the kernel reads w itself."""
        if self.pack is None:
            return None
        new = Scratch(self.nbytes)
        self.pack(address(w) + self.first, new.address)
        return new

    def held(self, w: np.ndarray, kept: Scratch | None) -> int:
        """The address the kernel reads from: `kept`, w itself, or scratch memory that the next chunk overwrites."""
        if kept is not None:
            return kept.address
        if self.pack is None:
            return address(w)
        new = scratch(self.nbytes, "weights")
        self.pack(address(w) + self.first, new.address)
        return new.address


def padded_bias(bias: np.ndarray | None, groups: int, channels: int, padded: int, dtype: np.dtype) -> np.ndarray:
    """[groups, padded] of the dtype that is computed in: the bias of each group's channels, then zeros."""
    if bias is not None and channels == padded and bias.dtype == dtype and bias.flags.c_contiguous:
        return bias
    biases = np.zeros((groups, padded), dtype)
    if bias is not None:
        biases[:, :channels] = bias.reshape(groups, channels)
    return biases

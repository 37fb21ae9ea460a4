"""What a kernel call needs besides the addresses of its operands, worked out once for each form of these.

A form is the operands' dtypes and strides and the number of threads: a network calls with the same ones over and
over, and the numbers of a call take longer than many a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.backends import forms
from fastconv.backends.cpu.workspace import Scratch, scratch, threads

Call = forms.Call


def by_form(bind: Callable[..., Call]) -> Call:
    """`forms.by_form`, where the number of threads belongs to the form: the work is cut for it."""
    return forms.by_form(bind, threads)


def address(array: np.ndarray) -> int:
    """Where the first element lies: what ``array.ctypes.data`` says, in a tenth of the time."""
    where: int = _address_of()(array)
    return where


@lru_cache(maxsize=1)
def _address_of() -> Callable[[np.ndarray], int]:
    from fastconv.compiler.host import HostKernel
    from fastconv.kernels.numba_cpu import memory

    return HostKernel(memory.address_of).entry(memory.array_type)


class Place(NamedTuple):
    """An address, and what keeps the memory there: to be held until the kernel returns."""

    address: int
    memory: Scratch | None = None


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

    def place(self, w: np.ndarray, kept: Scratch | None) -> Place:
        """Where the kernel reads: `kept`, w itself, or scratch memory that the next chunk overwrites."""
        if kept is None:
            if self.pack is None:
                return Place(address(w))
            kept = scratch(self.nbytes, "weights")
            self.pack(address(w) + self.first, kept.address)
        return Place(kept.address, kept)


def padded_bias(bias: np.ndarray | None, groups: int, channels: int, padded: int, dtype: np.dtype) -> np.ndarray:
    """[groups, padded] of the dtype that is computed in: the bias of each group's channels, then zeros."""
    if bias is not None and channels == padded and bias.dtype == dtype and bias.flags.c_contiguous:
        return bias
    biases = np.zeros((groups, padded), dtype)
    if bias is not None:
        biases[:, :channels] = bias.reshape(groups, channels)
    return biases

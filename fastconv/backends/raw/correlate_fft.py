"""Correlation by Fourier transforms on a GPU, a block at a time (overlap-save), by the arrays' own module.

The blocks are those of `fastconv.backends.cpu.fft`, with its limbs for integers. NumPy's transform has a proved bound
on its error; cuFFT's is as small in practice and nowhere documented, so a limb has one bit less here, which leaves a
factor of 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arrays import module_of
from fastconv.backends.cpu import fft
from fastconv.backends.cpu.fft import Blocks, Slices

Array = Any


def correlate(blocks: Blocks, out: Array, x: Array, w: Array) -> None:
    """out[o] = sum over i of x[o + start - (m - 1) + i] * w[i]"""
    module = module_of(out)
    x, w = fft.signed(x), fft.signed(w)
    method: Any = Exact if blocks.dtype in fft.BITS else Floats
    own, taps = method(module, blocks, x, w), fft.pieces(blocks.m, blocks.part)
    shared = own.weights(w) if len(taps) == 1 else None
    for block in fft.pieces(blocks.out, blocks.step):
        total = module.zeros(tuple(axis.stop - axis.start for axis in block), own.total)
        for part in taps:
            met = fft.meet(blocks, block, part)
            if met is not None:
                weights = own.weights(w[part]) if shared is None else shared
                total[met.within] += own.product(x[met.segment], weights, met.kept)
        out[block] = total != 0 if out.dtype == bool else total.astype(out.dtype)


class Transform:
    """fft and ifft of real or complex arrays over all axes."""

    def __init__(self, module: Any, size: tuple[int, ...], dtype: np.dtype):
        self.size = size
        self.there, self.back = (
            (module.fft.fftn, module.fft.ifftn) if dtype.kind == "c" else (module.fft.rfftn, module.fft.irfftn)
        )
        self.axes = tuple(range(len(size)))

    def forward(self, segment: Array) -> Array:
        """The spectrum of a segment, zero beyond its extent."""
        return self.there(segment, s=self.size, axes=self.axes)

    def backward(self, spectrum: Array, kept: Slices) -> Array:
        return self.back(spectrum, s=self.size, axes=self.axes)[kept]


class Floats:
    """Transforms of floats and complex numbers."""

    def __init__(self, module: Any, blocks: Blocks, x: Array, w: Array):
        self.total = fft.compute_dtype(blocks.dtype)
        self.transform = Transform(module, blocks.size, self.total)

    def weights(self, taps: Array) -> Array:
        return self.transform.forward(fft.flip(taps))

    def product(self, segment: Array, weights: Array, kept: Slices) -> Array:
        """The kept part of the circular product."""
        return self.transform.backward(self.transform.forward(segment) * weights, kept)


class Exact:
    """Transforms of integers and bools: limbs in float64, sums in int64 modulo 2**64."""

    total = np.dtype(np.int64)

    def __init__(self, module: Any, blocks: Blocks, x: Array, w: Array):
        self.module, self.bits = module, fft.BITS[blocks.dtype]
        self.transform = Transform(module, blocks.size, np.dtype(np.float64))
        x_bits, w_bits = fft.bits_of(x), fft.bits_of(w)
        self.limb = max(1, fft.limb_bits(x_bits, w_bits, self.bits, blocks) - 1)
        self.counts = -(-x_bits // self.limb), -(-w_bits // self.limb)

    def weights(self, taps: Array) -> list[Array]:
        return [self.transform.forward(fft.flip(limb)) for limb in fft.limbs(taps, self.limb, self.counts[1])]

    def product(self, segment: Array, weights: list[Array], kept: Slices) -> Array:
        """The kept part of the circular product, modulo 2**64."""
        total: Any = 0
        x = [self.transform.forward(limb) for limb in fft.limbs(segment, self.limb, self.counts[0])]
        for shift in range(min(len(x) + len(weights) - 1, -(-self.bits // self.limb))):
            pairs = [(x[a], weights[shift - a]) for a in range(len(x)) if 0 <= shift - a < len(weights)]
            spectrum = sum((a * b for a, b in pairs[1:]), pairs[0][0] * pairs[0][1])
            rounded = self.module.rint(self.transform.backward(spectrum, kept)).astype(np.int64)
            total = total + (rounded << (shift * self.limb))
        return total

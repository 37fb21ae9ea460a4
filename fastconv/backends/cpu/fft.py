"""Correlation by Fourier transforms, a block at a time (overlap-save), in bounded memory; ints exactly.

    full = ifft(fft(x) * fft(reversed w)),   circular over `size` points per axis

A block of outputs needs a segment of x that is longer by the taps less one; of the circular result,
the outputs that did not wrap around are kept. Taps too many for the memory are split too, and the
parts' results added. Sizes are 5-smooth, which NumPy's transform (pocketfft) is fast at.

Accuracy: the error of each output is at most a few times ``eps * log2(points) * norm(x) * norm(w)``
over the block's data, eps being the compute dtype's (float32 for 16-bit floats): small against the
largest outputs, not against each.

Ints are split into limbs that are small enough for the float64 result to round to the exact sum; see
`limb_bits`. A block works in WORKSPACE bytes per thread, however large the arrays are.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from fastconv.problem import Ints

WORKSPACE = 48 * 2**20  # bytes of a block's buffers
LEAST = 4096  # points of a block that need no check
FEW_POINTS = 2**14

# Nanoseconds, measured on one core of a 2023 server.
CALL_NS, BLOCK_NS = 40_000, 30_000  # of a call and of a block beside its points: the interpreter
POINT_NS = 2.0  # of copies, per float64 point
COST_NS, LONG_NS, LONG = (
    0.2,
    0.4,
    2**14,
)  # of a float64 transform per point and doubling; of one with LONG points in line
COST_OF = {"float32": 0.75, "float64": 1.0, "complex64": 1.5, "complex128": 2.0}

Array = np.ndarray
Slices = tuple[slice, ...]


# ---------------------------------------------------------------- sizes of the blocks


@lru_cache(maxsize=4096)
def smooth(n: int, primes: Ints = (3, 5)) -> int:
    """The least size of at least n without prime factors other than 2 and `primes`."""
    if not primes:
        return 1 << (n - 1).bit_length()
    prime, best, power = primes[-1], 1 << (n - 1).bit_length(), 1
    while power < 2 * n:
        best = min(best, power * smooth(-(-n // power), primes[:-1]))
        power *= prime
    return best


def smooth_even(n: int, primes: Ints) -> int:
    """`smooth`, and beyond a few points a multiple of 4, which the transform is faster at."""
    return smooth(n, primes) if n <= 16 else 4 * smooth(-(-n // 4), primes)


@dataclass(frozen=True)
class Blocks:
    """How a correlation of sizes n with taps m is cut: `size` points, `step` outputs, `part` taps per axis."""

    n: Ints
    m: Ints
    start: Ints
    out: Ints
    size: Ints
    step: Ints
    part: Ints
    dtype: str

    @cached_property
    def points(self) -> int:
        return math.prod(self.size)

    @property
    def blocks(self) -> int:
        return math.prod(-(-p // s) for p, s in zip(self.out, self.step, strict=True))

    @property
    def parts(self) -> int:
        return math.prod(-(-m // t) for m, t in zip(self.m, self.part, strict=True))

    @cached_property
    def limbs(self) -> tuple[int, int, int]:
        """Transforms of x, of w, and back, that one block and part take; for ints of full range."""
        bits = BITS.get(self.dtype)
        if bits is None:
            return 1, 1, 1
        most = 2 if self.dtype == "bool" else bits
        count = -(-most // limb_bits(most, most, bits, self))
        return count, count, min(2 * count - 1, -(-bits // limb_bits(most, most, bits, self)))

    @cached_property
    def workspace(self) -> int:
        """Bytes that a thread works in: the spectra, the result, and NumPy's copy of what it transforms in place."""
        x, w, _ = self.limbs
        return self.points * compute_dtype(self.dtype).itemsize * (x + w + (8 if self.dtype in BITS else 4))

    @cached_property
    def cost(self) -> float:
        """Estimated nanoseconds on one core."""
        rate = LONG_NS if max(self.size) > LONG else COST_NS
        point = POINT_NS + rate * max(1.0, math.log2(self.points))
        transform = COST_OF[compute_dtype(self.dtype).name] * self.points * point
        x, w, back = self.limbs
        weights = 1 if self.parts == 1 else self.blocks * self.parts
        return CALL_NS + self.blocks * self.parts * ((x + back) * transform + BLOCK_NS) + weights * w * transform


#: Sums of ints are wanted modulo 2**bits; a bool's count its true terms.
BITS = {
    "bool": 32, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64,
}  # fmt: skip


def compute_dtype(name: str) -> np.dtype:
    if name in ("float16", "bfloat16", "float32"):
        return np.dtype(np.float32)
    return np.dtype(name if name.startswith("complex") else np.float64)


@lru_cache(maxsize=1024)
def blocks_of(n: Ints, m: Ints, start: Ints, out: Ints, dtype: str) -> Blocks:
    """The cheapest blocks that fit into the workspace, from the whole to ever smaller ones.

    The axis with the most outputs for its taps is halved while that leaves more outputs than taps;
    where even that does not fit, the taps are halved.
    """
    primes: Ints = () if dtype in BITS else (3, 5)
    step, part, best = out, m, None
    while True:
        size = tuple(smooth_even(circular(*axis), primes) for axis in zip(n, m, start, out, step, part, strict=True))
        blocks = Blocks(n, m, start, out, size, step, part, dtype)
        fits = blocks.workspace <= WORKSPACE or blocks.points <= LEAST
        if fits and (best is None or blocks.cost < best.cost):
            best = blocks
        axis = max(range(len(n)), key=lambda a: step[a] / part[a])
        if step[axis] > part[axis]:
            step = _halved(step, axis)
        elif best is None:
            part = _halved(part, max(range(len(n)), key=lambda a: part[a]))
        else:
            return best


def _halved(extents: Ints, axis: int) -> Ints:
    return tuple(-(-e // 2) if a == axis else e for a, e in enumerate(extents))


def circular(n: int, m: int, start: int, out: int, step: int, part: int) -> int:
    """The circular length that keeps `step` outputs of `part` taps from wrapping onto each other."""
    if step >= out and part >= m:  # all at once: only what lies before `start` or after the outputs may wrap
        return max(n + m - 1 - start, start + out, n, m)
    return step + part - 1


# ---------------------------------------------------------------- the transform


class Transform:
    """fft and ifft of real or complex arrays over all axes, in buffers that are kept (fresh pages cost more)."""

    def __init__(self, size: Ints, dtype: np.dtype):
        self.size, self.dtype = size, dtype
        self.real = dtype.kind != "c"
        self.complex = np.result_type(dtype, np.complex64)
        self.shape = (*size[:-1], size[-1] // 2 + 1) if self.real else size
        # NumPy's forward transform goes by float64 for float32 unless its factor is a float32 too: better for
        # few points, slow for many.
        self.norm: Literal["ortho", "backward"] = (
            "ortho" if self.complex == np.complex64 and math.prod(size) > FEW_POINTS else "backward"
        )
        self._back: Array | None = None

    def forward(self, segment: Array, out: Array | None = None) -> Array:
        """The spectrum of `segment`, zero beyond its extent."""
        spectrum = np.empty(self.shape, self.complex) if out is None else out
        held = tuple(slice(0, n) for n in segment.shape[:-1])
        first = np.fft.rfft if self.real else np.fft.fft
        first(segment, self.size[-1], axis=-1, norm=self.norm, out=spectrum[held])
        for axis in range(segment.ndim - 2, -1, -1):
            view = spectrum[held[:axis]]
            view[(slice(None),) * axis + (slice(segment.shape[axis], None),)] = 0
            np.fft.fft(view, axis=axis, norm=self.norm, out=view)
        return spectrum

    def backward(self, spectrum: Array, kept: Slices) -> Array:
        """The part `kept` of the inverse transform; overwrites the spectrum, and is overwritten by the next call."""
        for axis in range(spectrum.ndim - 1):
            np.fft.ifft(spectrum, axis=axis, norm=self.norm, out=spectrum)
            spectrum = spectrum[(slice(None),) * axis + (kept[axis],)]
        if not self.real:
            return np.fft.ifft(spectrum, axis=-1, norm=self.norm, out=spectrum)[..., kept[-1]]
        if self._back is None:
            self._back = np.empty(self.size, self.dtype)
        back = self._back[tuple(slice(0, n) for n in spectrum.shape[:-1])]
        return np.fft.irfft(spectrum, self.size[-1], axis=-1, norm=self.norm, out=back)[..., kept[-1]]

    def weights(self, taps: Array) -> Array:
        """The spectrum of the reversed taps, with the factor that two "ortho" transforms lack."""
        spectrum = self.forward(flip(taps))
        if self.norm == "ortho":
            spectrum *= np.float32(math.sqrt(math.prod(self.size)))
        return spectrum


def flip(array: Array) -> Array:
    return array[(slice(None, None, -1),) * array.ndim]


# ---------------------------------------------------------------- exact integers


def limb_bits(x_bits: int, w_bits: int, bits: int, blocks: Blocks) -> int:
    """The most bits per limb for which the transformed sums of products err by less than 1/2.

    With u = 2**-53 and N = 2**n points, the error of every element of a product by transforms is below

        norm(x) * norm(w) * ((1 + u)**(3n) * (1 + sqrt(5) u)**(3n + 1) * (1 + t)**(3n) - 1),

    t bounding the error of the twiddle factors, here correctly rounded: u (C. Percival, Rapid
    multiplication modulo the sum and difference of highly composite numbers, Math. Comp. 72, 2003,
    theorem 5.1, with the sqrt(5) of Brent, Percival and Zimmermann, Error bounds on complex
    floating-point multiplication, Math. Comp. 76, 2007). It is proved for powers of two, hence
    `primes=()` above; several axes are one transform of as many passes. Balanced limbs of b bits are at most
    2**(b - 1) in size, and up to `pairs` products of limbs are added before the way back: (1 + u) each.
    By Cauchy and Schwarz the sums themselves stay below 2**53 when the error does below 1/2.
    """
    n, u = math.log2(blocks.points), 2.0**-53
    held = math.prod(min(size, extent) for size, extent in zip(blocks.size, blocks.n, strict=True))
    for limb in range(26, 1, -1):
        pairs = min(-(-min(x_bits, bits) // limb), -(-min(w_bits, bits) // limb))
        growth = math.expm1((3 * n + pairs) * u + (3 * n + 1) * math.sqrt(5) * u + 3 * n * u)
        norms = pairs * math.sqrt(held) * math.sqrt(math.prod(blocks.part)) * 4.0 ** (limb - 1)
        if norms * growth < 0.5:
            return limb
    return 1


def signed(array: Array) -> Array:
    """Unsigned integers and bools as signed ones of the same bits: the same numbers modulo 2**bits."""
    return array.view(f"i{array.itemsize}") if array.dtype.kind in "ub" else array


def bits_of(array: Array) -> int:
    """How many bits the values take, the sign's included."""
    return max(int(array.max()).bit_length(), (-1 - int(array.min())).bit_length()) + 1


def limbs(array: Array, limb: int, count: int) -> Iterator[Array]:
    """Float64 arrays of at most 2**(limb - 1) in size with ``array = sum of limbs[a] * 2**(a * limb)`` modulo 2**64."""
    rest = array.astype(np.int64)
    for _ in range(count - 1):
        low = (rest << (64 - limb)) >> (64 - limb)  # the lower bits, their sign extended
        rest -= low  # may wrap; the shifts put it right modulo 2**64
        rest >>= limb
        yield low.astype(np.float64)
    yield rest.astype(np.float64)


class Exact:
    """Transforms of one thread, for integers and bools: limbs in float64, sums in int64 modulo 2**64."""

    total = np.dtype(np.int64)

    def __init__(self, blocks: Blocks, x: Array, w: Array):
        self.transform, self.bits = Transform(blocks.size, np.dtype(np.float64)), BITS[blocks.dtype]
        x_bits, w_bits = bits_of(x), bits_of(w)
        self.limb = limb_bits(x_bits, w_bits, self.bits, blocks)
        self.x_count, self.w_count = -(-x_bits // self.limb), -(-w_bits // self.limb)

    def weights(self, taps: Array) -> list[Array]:
        return [self.transform.weights(limb) for limb in limbs(taps, self.limb, self.w_count)]

    def product(self, segment: Array, weights: list[Array], kept: Slices) -> Array:
        """The kept part of the circular product, modulo 2**64."""
        total: Any = 0
        x = [self.transform.forward(limb) for limb in limbs(segment, self.limb, self.x_count)]
        for shift in range(min(len(x) + len(weights) - 1, -(-self.bits // self.limb))):
            pairs = [(x[a], weights[shift - a]) for a in range(len(x)) if 0 <= shift - a < len(weights)]
            spectrum = np.multiply(*pairs[0])
            for a, b in pairs[1:]:
                spectrum += a * b
            total = total + (np.rint(self.transform.backward(spectrum, kept)).astype(np.int64) << (shift * self.limb))
        return total


class Floats:
    """Transforms of one thread, for floats and complex numbers."""

    def __init__(self, blocks: Blocks, x: Array, w: Array):
        self.total = compute_dtype(blocks.dtype)
        self.transform = Transform(blocks.size, self.total)
        self.spectrum = np.empty(self.transform.shape, self.transform.complex)

    def weights(self, taps: Array) -> Array:
        return self.transform.weights(taps.astype(self.total, copy=False))

    def product(self, segment: Array, weights: Array, kept: Slices) -> Array:
        """The kept part of the circular product; overwritten by the next one."""
        spectrum = self.transform.forward(segment.astype(self.total, copy=False), self.spectrum)
        spectrum *= weights
        return self.transform.backward(spectrum, kept)


# ---------------------------------------------------------------- overlap-save


def pieces(extents: Ints, steps: Ints) -> list[Slices]:
    """The blocks of `steps` that cover `extents`."""
    axes = [[slice(o, min(o + s, e)) for o in range(0, e, s)] for e, s in zip(extents, steps, strict=True)]
    return list(itertools.product(*axes))


@dataclass(frozen=True)
class Meeting:
    """What a block of outputs meets with a part of the taps, per axis."""

    segment: Slices  # of x
    kept: Slices  # of the circular product of both
    within: Slices  # the block, where that goes


def meet(blocks: Blocks, block: Slices, part: Slices) -> Meeting | None:
    axes = []
    for n, m, start, o, i in zip(blocks.n, blocks.m, blocks.start, block, part, strict=True):
        taps, count, first = i.stop - i.start, o.stop - o.start, o.start + start - (m - 1) + i.start
        low, high = max(first, 0), min(first + count + taps - 1, n)  # output 0 meets x[first] with tap 0
        skip = max(0, low - first - (taps - 1))  # outputs that end before x begins
        if low >= high or skip >= count:
            return None
        kept = first - low + taps - 1
        axes.append((slice(low, high), slice(kept + skip, kept + count), slice(skip, count)))
    return Meeting(*zip(*axes, strict=True))


def correlate(blocks: Blocks, out: Array, x: Array, w: Array) -> None:
    """out[o] = sum over i of x[o + start - (m - 1) + i] * w[i], the blocks in parallel."""
    method: Any = Exact if blocks.dtype in BITS else Floats
    x, w = signed(x), signed(w)
    parts = pieces(blocks.m, blocks.part)
    shared = method(blocks, x, w).weights(w) if len(parts) == 1 else None

    def block_of(own: Any, block: Slices) -> Any:
        total: Any = 0 if shared is not None else np.zeros(out[block].shape, own.total)
        for part in parts:
            met = meet(blocks, block, part)
            if met is None:
                continue
            if shared is not None:
                return own.product(x[met.segment], shared, met.kept)
            total[met.within] += own.product(x[met.segment], own.weights(w[part]), met.kept)
        return total

    def work(mine: list[Slices]) -> None:
        own = method(blocks, x, w)
        for block in mine:
            total = block_of(own, block)
            out[block] = total != 0 if out.dtype == bool else total

    todo = pieces(blocks.out, blocks.step)
    workers = min(threads(), len(todo))
    if workers == 1:
        return work(todo)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, [todo[i::workers] for i in range(workers)]))


def threads() -> int:
    """Numba's setting, which governs here too, without importing Numba for it."""
    if "numba" in sys.modules:
        return int(sys.modules["numba"].get_num_threads())
    named = os.environ.get("NUMBA_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) > 0 else len(os.sched_getaffinity(0))

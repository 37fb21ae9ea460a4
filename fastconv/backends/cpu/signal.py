"""`correlate` on NumPy arrays: three algorithms and the model that chooses among them.

- "numpy": NumPy alone, for problems so small that a kernel's start would cost more (and its first
  compilation seconds). One axis: `numpy.correlate`; more: a product for each tap, or for each output.
- "direct": the kernel of `kernels/numba_cpu/correlate.py`, on all threads.
- "fft": overlap-save transforms, `fastconv.backends.cpu.fft`.

The smaller of the arrays serves as the taps: ``full(in1, in2) = full(flip(in2), flip(in1))``.

A NaN or an infinity touches only the outputs whose windows contain it, by every algorithm: where a
product with a zero, or a transform, would spread it, it is taken out first, and its own products are
added afterwards (`direct`, `transformed`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from fastconv import tuning
from fastconv.backends.base import Launch
from fastconv.backends.cpu import fft
from fastconv.backends.cpu.workspace import threads, workspace
from fastconv.problem import ITEMSIZE, Ints, SignalProblem

Array = np.ndarray

# Nanoseconds of one core of a 2023 server (AVX-512); the ratios, which decide, are alike on other machines.
CALL_NS, TAP_NS, TAP_BYTE_NS = 5_000, 3_500, 0.2  # numpy: a product for each tap; per byte of output
LINE_NS, LINE_OUT_NS, LINE_BYTE_NS = 5_000, 8, 0.0125  # numpy.correlate; the last per byte of products
FEW_TAPS, FEW_TAPS_NS = 11, 2  # to which numpy.correlate has a faster loop
LINE_EXACT_NS = 0.6  # numpy.correlate, per product that no BLAS computes
LAUNCH_NS, MAC_BYTE_NS, SLAB_BYTE_NS = 45_000, 0.0065, 0.15  # the kernel; per byte of products and of packed input
SMALL_NS = 400_000  # beyond this, NumPy alone is not considered
ALONE_NS = 200_000  # below this, the kernel runs in the calling thread
FEW_MACS = 10**8  # products with NaNs and infinities that are added apart from the transforms

#: What a dtype is computed in directly, where it is not itself.
COMPUTED = {"float16": "float32", "bfloat16": "float32", "bool": "int32", "int8": "int32", "int16": "int32"}


# ---------------------------------------------------------------- geometry


@dataclass(frozen=True)
class Geometry:
    """A problem with its operands in their roles: ``out[o] = sum over i of x[o + start - (m - 1) + i] * w[i]``."""

    n: Ints
    m: Ints
    start: Ints
    out: Ints
    dtype: str
    swapped: bool

    @staticmethod
    def of(problem: SignalProblem) -> Geometry:
        n, m = problem.shape1, problem.shape2
        swapped = math.prod(m) > math.prod(n)
        n, m = (m, n) if swapped else (n, m)
        return Geometry(n, m, problem.start, problem.out, problem.dtype, swapped)

    @cached_property
    def offset(self) -> Ints:
        """Where in x the first output meets the first tap."""
        return tuple(start - (m - 1) for start, m in zip(self.start, self.m, strict=True))

    def operands(self, in1: Array, in2: Array) -> tuple[Array, Array]:
        """x and w."""
        return (fft.flip(in2), fft.flip(in1)) if self.swapped else (in1, in2)

    def met(self, tap: Ints) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """The outputs that meet x with a tap, and the x that they meet."""
        outs, sources = [], []
        for i, n, out, offset in zip(tap, self.n, self.out, self.offset, strict=True):
            low, high = max(0, -offset - i), min(out, n - offset - i)
            if low >= high:
                return None
            outs.append(slice(low, high))
            sources.append(slice(low + offset + i, high + offset + i))
        return tuple(outs), tuple(sources)

    @cached_property
    def tiles(self) -> Tiles:
        return tiles_of(self)

    @cached_property
    def alone(self) -> bool:
        """Whether the kernel runs in the calling thread: waking the others costs more than a small problem."""
        return self.tiles.tasks == 1 or direct_cost(self) < ALONE_NS

    @cached_property
    def blocks(self) -> fft.Blocks:
        return fft.blocks_of(self.n, self.m, self.start, self.out, self.dtype)

    def reversed(self) -> Geometry:
        """The same problem with the roles exchanged."""
        return Geometry(self.m, self.n, self.start, self.out, self.dtype, not self.swapped)


# ---------------------------------------------------------------- NumPy alone


def by_numpy(geometry: Geometry, out: Array, x: Array, w: Array) -> None:
    if x.dtype.name in ("float16", "bfloat16"):
        x, w = x.astype(np.float32), w.astype(np.float32)
    if len(geometry.n) == 1:
        along_line(geometry, out, x, w)
    elif math.prod(geometry.m) <= math.prod(geometry.out):
        total = np.zeros(geometry.out, x.dtype)
        for tap in np.ndindex(*geometry.m):
            add_tap(geometry, total, x, w, tap)
        out[...] = total
    else:
        for place in np.ndindex(*geometry.out):
            out[place] = one_output(geometry, x, w, place)


def along_line(geometry: Geometry, out: Array, x: Array, w: Array) -> None:
    """`numpy.convolve` on what of x the outputs meet."""
    ((n,), (m,), (offset,), (count,)) = geometry.n, geometry.m, geometry.offset, geometry.out
    low, high = max(0, offset), min(n, offset + count + m - 1)
    first = offset - low + m - 1  # of the outputs, in the full result of that part
    inner = first == m - 1 and high - low >= m and count == high - low - m + 1
    if inner:
        out[...] = np.convolve(x[low:high], w[::-1], "valid")
    else:
        out[...] = np.convolve(x[low:high], w[::-1], "full")[first : first + count]


def add_tap(geometry: Geometry, out: Array, x: Array, w: Array, tap: Ints) -> None:
    met = geometry.met(tap)
    if met is not None:
        out[met[0]] += x[met[1]] * w[tap]


def one_output(geometry: Geometry, x: Array, w: Array, place: Ints) -> Any:
    window, taps = [], []
    for o, n, m, offset in zip(place, geometry.n, geometry.m, geometry.offset, strict=True):
        low, high = max(0, -offset - o), min(m, n - offset - o)
        window.append(slice(o + offset + low, o + offset + high))
        taps.append(slice(low, high))
    return (x[tuple(window)] * w[tuple(taps)]).sum(dtype=x.dtype)


# ---------------------------------------------------------------- the kernel


@dataclass(frozen=True)
class Tiles:
    """How the kernel walks: which axes are its last two, and a block's extents."""

    order: Ints  # of the axes
    rows: int
    width: int
    chunk: int  # columns of taps that meet one slab
    scratch: int  # bytes per thread
    tasks: int


VECTOR = 64  # bytes; narrower ones only make `width` a multiple of more lanes
SLAB = 2**18  # bytes: what is read once for each row of taps should stay in the L2 cache


def signed(dtype: str) -> str:
    """What the kernel reads: a complex number's two halves, and unsigned integers as signed ones (modulo 2**bits)."""
    return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype.replace("uint", "int"))


def computed(dtype: str) -> str:
    return COMPUTED.get(signed(dtype), signed(dtype))


def planes(dtype: str) -> int:
    return 2 if dtype.startswith("complex") else 1


def tiles_of(geometry: Geometry) -> Tiles:
    order = kernel_axes(geometry.out)
    m, out = [1, *(geometry.m[a] for a in order)], [1, *(geometry.out[a] for a in order)]
    size, count = np.dtype(computed(geometry.dtype)).itemsize, planes(geometry.dtype)
    lanes = VECTOR // size
    width = -(-min(out[-1], 1024) // lanes) * lanes
    rows = min(-(-out[-2] // 4) * 4, 32) if out[-2] > 1 else 1
    while rows > 8 and (rows + m[-2]) * (width + 64) * size > SLAB:
        rows //= 2
    chunk = min(m[-1], max(16, SLAB // ((rows + m[-2] - 1) * size) - width))
    scratch = (count * rows * width + (rows + m[-2] - 1) * (width + chunk)) * size
    tasks = math.prod(out[:-2]) * -(-out[-2] // rows) * -(-out[-1] // width)
    return Tiles(order, rows, width, chunk, scratch, tasks)


def kernel_axes(out: Ints) -> Ints:
    """The axes, the last one holding enough outputs for vectors and the last but one for four rows, if any does."""
    order = list(range(len(out)))
    for place, enough in ((-1, VECTOR), (-2, 4)):
        if len(order) >= -place and out[order[place]] < enough:
            rest = order[: len(order) + place + 1]
            longest = max(rest, key=lambda axis: (out[axis], axis))
            order.remove(longest)
            order.insert(len(rest) - 1, longest)
    return tuple(order)


@lru_cache(maxsize=2)
def kernel(alone: bool) -> Callable[..., None]:
    """The compiled entry point; importing Numba waits until it is needed."""
    from fastconv.compiler.host import HostKernel
    from fastconv.kernels.numba_cpu import correlate

    return HostKernel(correlate.correlate_alone if alone else correlate.correlate)


def by_kernel(geometry: Geometry, out: Array, x: Array, w: Array) -> None:
    from fastconv.kernels.numba_cpu.memory import STORAGE

    if steps(out) is None:
        copy = np.empty(out.shape, out.dtype)
        by_kernel(geometry, copy, x, w)
        out[...] = copy
        return
    tiles, count = geometry.tiles, planes(geometry.dtype)
    x, y, w = (array.transpose(tiles.order) for array in (x if steps(x) is not None else x.copy(), out, w))
    sizes = (geometry.out, geometry.n, geometry.m, geometry.offset)
    rows = [[row[axis] for axis in tiles.order] for row in sizes] + [list(steps(x) or ()), list(steps(y) or ())]
    missing = max(0, 2 - x.ndim)  # the kernel has at least two axes
    axes = np.array([[unit] * missing + row for unit, row in zip((1, 1, 1, 0, 0, 0), rows, strict=True)], np.int64)
    stored, name = signed(geometry.dtype), computed(geometry.dtype)
    size, stored_size = np.dtype(name).itemsize, x.itemsize // count
    workers = 1 if geometry.alone else threads()
    scratch = workspace(workers * tiles.scratch)[: workers * tiles.scratch].reshape(workers, -1)
    kernel(geometry.alone)(
        STORAGE[stored], STORAGE[name], STORAGE[stored], x.ctypes.data, y.ctypes.data, packed(w, name), scratch, axes,
        (count, 1, 1), (tiles.rows, tiles.width, tiles.chunk, VECTOR // size, size, stored_size, stored_size),
        tiles.tasks,
    )  # fmt: skip


def steps(array: Array) -> Ints | None:
    """The strides in elements, in reals for complex arrays; None where they are not whole."""
    size = array.itemsize // (2 if array.dtype.kind == "c" else 1)
    return None if any(stride % size for stride in array.strides) else tuple(s // size for s in array.strides)


def packed(w: Array, name: str) -> Array:
    """w[k, c, leading taps, KH, KW] of the output's plane k and the input's plane c."""
    shape = (math.prod(w.shape[:-2]), *(1, 1, *w.shape)[-2:])
    if w.dtype.kind != "c":
        return np.ascontiguousarray(w, name).reshape(1, 1, *shape)
    real, imag = w.real.reshape(shape), w.imag.reshape(shape)
    return np.array([[real, -imag], [imag, real]], name)


# ---------------------------------------------------------------- NaNs and infinities


def finite(array: Array) -> bool:
    """Whether no value is NaN or infinite: both show in the extremes, and no temporary is made."""
    if array.dtype.kind in "biu" or not array.size:
        return True
    if array.dtype.kind == "c":
        return finite(array.real) and finite(array.imag)
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def specials(array: Array) -> tuple[Array, list[Ints]]:
    """The array with zeros for its NaNs and infinities, and where those are."""
    good = np.isfinite(array)
    return np.where(good, array, array.dtype.type(0)), [tuple(at) for at in np.argwhere(~good).tolist()]


def direct(geometry: Geometry, out: Array, x: Array, w: Array) -> None:
    """The kernel on finite taps; then the products of the other taps, one by one."""
    if finite(w):
        return by_kernel(geometry, out, x, w)
    _, bad = specials(w)
    # Their place takes their sign: with an infinity of x, 0 would give NaN where infinity is right.
    ones = np.ones((), w.dtype) if w.dtype.kind == "c" else np.copysign(np.ones((), w.dtype), w)
    plain = np.where(np.isfinite(w), w, ones)
    by_kernel(geometry, out, x, plain)
    add_specials(geometry, out, x, w, bad)


def add_specials(geometry: Geometry, out: Array, x: Array, w: Array, taps: list[Ints]) -> None:
    with np.errstate(all="ignore"):
        for tap in taps:
            add_tap(geometry, out, x, w, tap)


def transformed(
    geometry: Geometry, out: Array, x: Array, w: Array,
    transform: Callable[..., None] = fft.correlate, exact: Callable[..., None] = direct,
) -> None:  # fmt: skip
    """By transforms, which no NaN or infinity enters; directly, where they are too many or values would overflow."""
    blocks = geometry.blocks
    if in_range(blocks, x, w):
        return transform(blocks, out, x, w)
    (plain_x, bad_x), (plain_w, bad_w) = specials(x), specials(w)
    few = len(bad_x) * math.prod(geometry.m) + len(bad_w) * math.prod(geometry.n) <= FEW_MACS
    if not few or not in_range(blocks, plain_x, plain_w):
        return exact(geometry, out, x, w)
    transform(blocks, out, plain_x, plain_w)
    add_specials(geometry, out, x, w, bad_w)
    mirrored = [tuple(n - 1 - i for n, i in zip(geometry.n, at, strict=True)) for at in bad_x]
    add_specials(geometry.reversed(), out, fft.flip(w), fft.flip(x), mirrored)


def in_range(blocks: fft.Blocks, x: Array, w: Array) -> bool:
    """Whether all is finite and no transform can overflow."""
    if x.dtype.kind in "biu":
        return True
    largest = peak(x) * peak(w) * float(blocks.points) ** 2 * math.prod(blocks.m)
    return largest < float(np.finfo(fft.compute_dtype(blocks.dtype)).max)  # False for NaN


def peak(array: Array) -> float:
    """The largest size of a value; NaN and infinity pass through. No temporary is made."""
    if array.dtype.kind == "c":
        return peak(array.real) + peak(array.imag)
    return float(np.maximum(-float(array.min()), float(array.max())))


# ---------------------------------------------------------------- the choice

RUNS = {"numpy": by_numpy, "direct": direct, "fft": transformed}


def costs(geometry: Geometry) -> dict[str, float]:
    """Estimated nanoseconds of each algorithm."""
    return {"numpy": numpy_cost(geometry), "direct": direct_cost(geometry), "fft": geometry.blocks.cost}


def numpy_cost(geometry: Geometry) -> float:
    size, taps, outs = ITEMSIZE[geometry.dtype], math.prod(geometry.m), math.prod(geometry.out)
    if len(geometry.n) == 1:
        return LINE_NS + outs * line_cost(geometry.dtype, taps)
    fewer, longer = min(taps, outs), max(taps, outs)
    return CALL_NS + fewer * (TAP_NS + longer * size * TAP_BYTE_NS)


def line_cost(dtype: str, taps: int) -> float:
    if dtype in fft.BITS:
        return LINE_OUT_NS + taps * LINE_EXACT_NS
    if taps <= FEW_TAPS and planes(dtype) == 1:
        return FEW_TAPS_NS
    return LINE_OUT_NS + taps * LINE_BYTE_NS * max(4, ITEMSIZE[dtype]) * planes(dtype)


def direct_cost(geometry: Geometry) -> float:
    """Full vectors of outputs are computed, and x is packed again for each leading tap."""
    tiles, size = geometry.tiles, np.dtype(computed(geometry.dtype)).itemsize
    out, m = [geometry.out[a] for a in tiles.order], [geometry.m[a] for a in tiles.order]
    lanes = VECTOR // size
    padded = math.prod(out[:-1]) * -(-out[-1] // lanes) * lanes
    macs = padded * math.prod(m) * planes(geometry.dtype) ** 2
    packs = padded * math.prod(m[:-2]) * planes(geometry.dtype)
    return LAUNCH_NS + size * (macs * MAC_BYTE_NS + packs * SLAB_BYTE_NS)


def choose(problem: SignalProblem, geometry: Geometry, mode: str) -> tuple[str, str]:
    """The algorithm and why; a pure function."""
    if not geometry.n:
        return "numpy", "two scalars"
    estimates = costs(geometry)
    if problem.method == "fft":
        return "fft", "method='fft'"
    exact = "numpy" if estimates["numpy"] <= min(SMALL_NS, estimates["direct"]) else "direct"
    if problem.method == "direct" or mode == "off":
        return exact, "method='direct'" if problem.method == "direct" else "autotune is off"
    best = "fft" if estimates["fft"] < estimates[exact] else exact
    shown = ", ".join(f"{name} {estimates[name] / 1e6:.3g} ms" for name in ("numpy", "direct", "fft"))
    return best, f"the least of the estimates on one core: {shown}"


def plan(op: str, problem: SignalProblem) -> Launch:
    geometry = Geometry.of(problem)
    algorithm, why = choose(problem, geometry, tuning.autotune())
    compute = RUNS[algorithm]

    def run(out: Array, in1: Array, in2: Array) -> None:
        compute(geometry, out, *geometry.operands(in1, in2))

    return Launch(run, algorithm, why, *config_of(geometry, algorithm))


def config_of(geometry: Geometry, algorithm: str) -> tuple[dict[str, Any], int]:
    """What `explain` shows of the algorithm, and the bytes that a thread works in."""
    if algorithm == "fft":
        blocks = geometry.blocks
        return {"points": blocks.size, "blocks": blocks.blocks, "parts": blocks.parts}, blocks.workspace
    if algorithm == "direct":
        tiles = geometry.tiles
        return {"rows": tiles.rows, "width": tiles.width, "taps": tiles.chunk}, tiles.scratch
    return {}, 0

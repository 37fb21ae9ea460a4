"""Winograd convolution on the CPU: what it takes, where it pays, and how kernels/numba_cpu/winograd.py is called."""

from __future__ import annotations

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu.calls import Call, address, by_form, padded_bias
from fastconv.backends.cpu.passes import activation_code, strides_of
from fastconv.backends.cpu.workspace import Scratch, scratch, threads
from fastconv.problem import ConvProblem, Ints

FORMS = ((4, 3), (2, 3), (2, 5))  # the first of each filter's serves its gradient too
BLOCK_BYTES = 2**20  # of V in a thread's cache
BLOCK_TILES, WHOLE_TILES = 64, 96  # of a block, where V is the thread's own, and where it is everybody's
WHOLE_BYTES = 24 * 2**20  # of V at most, where every thread reads all of it
LEAST_CHANNELS = 16  # fewer do not repay the transforms
LEAST_GROUPED = 64  # as groups come one after the other here, and those of fewer are for strips
GAIN = 1.5  # in multiplications, below which sums are as fast
FILTER_CHUNK = 128  # channels of U made at a time, where one block holds all tiles


class Side(NamedTuple):
    """A pass as one correlation: C channels of extents `size` in, M channels of extents `out` out."""

    C: int
    M: int
    size: Ints
    out: Ints
    pad: Ints


def side(op: str, problem: ConvProblem) -> Side:
    window, G = problem.window, problem.groups
    pad = tuple(low for low, _ in window.pad)
    if op != "conv_dgrad":
        return Side(problem.C // G, problem.K // G, problem.size, problem.out, pad)
    turned = tuple(extent - 1 - low for extent, low in zip(window.extent, pad, strict=True))
    return Side(problem.K // G, problem.C // G, problem.out, problem.size, turned)


def refuses(op: str, problem: ConvProblem) -> str | None:
    """Why Winograd does not take a pass of a problem, or None where it does."""
    window = problem.window
    if problem.dtype != "float32" or problem.precision is not None:
        return f"it rounds more than sums do: dtype={problem.dtype} precision={problem.precision} asks for sums"
    if problem.ndim != 2 or window.ksize not in ((3, 3), (5, 5)):
        return f"it is for filters of 3x3 and 5x5, not {'x'.join(map(str, window.ksize))}"
    if set(window.stride) != {1}:
        return f"it is for stride 1, not {'x'.join(map(str, window.stride))}"
    if problem.N * problem.macs == 0:
        return "there is nothing to compute"
    return None


def tiles(problem: ConvProblem, m: int, out: Ints) -> Ints:
    """Tiles along each axis: those of every phase of a dilated problem."""
    return tuple(
        d * math.ceil(math.ceil(extent / d) / m) for extent, d in zip(out, problem.window.dilation, strict=True)
    )


def form_of(op: str, problem: ConvProblem) -> tuple[int, int]:
    """(m, r) of the form with the fewest multiplications, tiles counted in whole rows of registers."""
    one, r = side(op, problem), problem.window.ksize[0]
    forms = [form for form in FORMS if form[1] == r]
    if op == "conv_wgrad":
        return forms[0]

    def cost(form: tuple[int, int]) -> float:
        m, r = form
        rows, columns = tiles(problem, m, one.out)
        count = problem.N * rows * columns
        return (m + r - 1) ** 2 * (-(-count // 8) * 8 + 16)  # 16: what transforming the filters is worth in rows

    return min(forms, key=cost)


def pays(op: str, problem: ConvProblem) -> bool:
    """Whether it is faster than sums, by the rule: a pure function of the problem."""
    one = side(op, problem)
    m, r = form_of(op, problem)
    rows, columns = tiles(problem, m, one.out)
    multiplications = problem.N * rows * columns * (m + r - 1) ** 2
    direct = problem.N * one.out[0] * one.out[1] * r * r
    least = LEAST_CHANNELS if problem.groups == 1 else LEAST_GROUPED
    return min(one.C, one.M) >= least and GAIN * multiplications < direct


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import winograd

    return host_kernels(winograd, "filters", "by_tiles", "by_filters")


class Config(NamedTuple):
    """How the work is cut: blocks of cells, panels of filters, and who keeps what."""

    whole_filters: bool  # by_tiles; else by_filters
    blocks: int
    panels: int
    chunk: int


def configure(problem: ConvProblem, one: Side, m: int, n: int, lanes: int, nv: int, count: int) -> Config:
    """A pure function of the problem, the vectors and the number of threads; results do not depend on it."""
    rows, columns = tiles(problem, m, one.out)
    d = problem.window.dilation[1]
    total = problem.N * rows * columns
    row_bytes = n * n * (-(-one.C // lanes) * lanes * 4 + 64)
    cells = total // d
    blocks = -(-total // max(16, min(BLOCK_TILES, BLOCK_BYTES // row_bytes // 8 * 8)))
    vectors = -(-one.M // lanes)
    panels = -(-vectors // nv)
    filter_bytes = 4 * n * n * one.C * vectors * lanes
    if total * row_bytes > WHOLE_BYTES or (filter_bytes <= 3 * 2**20 and blocks >= 4 * count):
        blocks = min(cells, -(-blocks // count) * count)
        return Config(True, blocks, panels, one.C)
    blocks = min(cells, -(-total // WHOLE_TILES))
    panels = min(vectors, -(-panels // count) * count)
    return Config(False, blocks, panels, one.C if blocks > 1 else FILTER_CHUNK)


def _filters(problem: ConvProblem, op: str, w: np.ndarray) -> tuple[int, Ints]:
    """Bytes from w to the first filter as the pass sees it, and (wm, wc, w0, w1, w_form)."""
    kernel, r = kernels(), problem.window.ksize[0]
    k, c, _, w0, w1 = strides_of(w)
    first = 0
    wm, wc = k, c
    if op == "conv_dgrad":
        wm, wc = c, k
        first = (r - 1) * (w0 + w1) * w.itemsize
        w0, w1 = -w0, -w1
    form = kernel.ANY
    if wm == 1:
        form = kernel.LANES_ADJACENT
    elif (w0, w1) == (r, 1):
        form = kernel.TAPS_ADJACENT
    elif (w0, w1) == (-r, -1):
        form = kernel.TAPS_REVERSED
    return first, (wm, wc, w0, w1, form)


def _room(config: Config, one: Side, cells: int, d: int, m: int, r: int) -> Any:
    """Where everything lies in a thread's workspace."""
    from fastconv.kernels.numba_cpu.simd import NV, ROWS, VECTOR_BYTES
    from fastconv.kernels.numba_cpu.winograd_transforms import LANES

    kernel, n = kernels(), m + r - 1
    planes = n * n + 1
    tile_rows = -(-cells // config.blocks) * d + ROWS
    v_row = -(-one.C // LANES) * VECTOR_BYTES + 64
    v_plane = tile_rows * v_row
    fitting = max(1, (kernel.COLUMNS // d - n) // m + 1)
    pitch = -(-((fitting - 1) * m + n) * d // LANES) * LANES * VECTOR_BYTES
    sizes = {
        "v": planes * v_plane if config.whole_filters else 0,
        "u": 0 if config.whole_filters else planes * (config.chunk * NV + 1) * VECTOR_BYTES,
        "sums": planes * (tile_rows * NV + 1) * VECTOR_BYTES,
        "packed": max(n * pitch, (r * r + 1) * LANES * VECTOR_BYTES),
        "stage": m * pitch,
    }
    offsets, total = {}, 0
    for name, nbytes in sizes.items():
        offsets[name] = total
        total += -(-nbytes // 64) * 64 + 64
    return kernel.Room(**offsets, total=total, v_row=v_row, v_plane=v_plane, pitch=pitch)


class Kept(NamedTuple):
    """The transformed filters of each group, and the cuts that they were made for."""

    config: Config
    filters: list[Scratch]


def plan(op: str, problem: ConvProblem, why: str, kept: Kept | None = None) -> Launch:
    """fprop or dgrad by Winograd."""
    m, r = form_of(op, problem)

    def bind(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> Call:
        return _Call(op, problem, m, r, y, x, w, kept).run

    def prepare(w: np.ndarray) -> Launch:
        return plan(op, problem, why, _Call(op, problem, m, r, None, None, w).transformed(w))

    return Launch(by_form(bind), "winograd", why, {"form": f"F({m}x{m},{r}x{r})"}, 0, prepare)


class _Call:
    """A call for operands of given strides: its geometry and its cuts."""

    def __init__(
        self, op: str, problem: ConvProblem, m: int, r: int, y: np.ndarray | None, x: np.ndarray | None,
        w: np.ndarray, kept: Kept | None = None,
    ):  # fmt: skip
        from fastconv.kernels.numba_cpu.simd import NV
        from fastconv.kernels.numba_cpu.winograd_transforms import FORMS, LANES

        self.groups, self.one, self.count = problem.groups, side(op, problem), threads()
        self.form, self.planes, self.code = FORMS[m, r], (m + r - 1) ** 2 + 1, activation_code(problem)
        one, (d0, d1) = self.one, problem.window.dilation
        self.config = configure(problem, one, m, m + r - 1, LANES, NV, self.count) if kept is None else kept.config
        self.kept = None if kept is None else kept.filters
        rows, columns = tiles(problem, m, one.out)
        self.room = _room(self.config, one, problem.N * rows * columns // d1, d1, m, r)
        self.first, filter_strides = _filters(problem, op, w)
        xs, ys = ((0,) * 5 if array is None else strides_of(array) for array in (x, y))
        self.geometry = kernels().Geometry(
            problem.N, one.C, one.M, *one.size, *one.out, *one.pad, d0, d1, rows, columns // d1,
            xs[0], xs[1], xs[3], xs[4], ys[0], ys[1], ys[3], ys[4], *filter_strides, op == "conv_fprop",
        )  # fmt: skip
        self.filters = strides_of(w)[0] * (problem.K // problem.groups) * w.itemsize  # bytes from group to group
        vectors = -(-one.M // LANES)
        self.padded = vectors * LANES
        self.filter_bytes = self.planes * (one.C * vectors + self.config.panels) * LANES * 4

    def transform(self, w: np.ndarray, group: int, u: Scratch) -> None:
        """The whole of U of a group."""
        nbytes = self.room.total
        work = scratch(self.count * nbytes)  # until the kernel returns
        source = address(w) + self.first + group * self.filters
        packed = work.address + self.room.packed
        kernels().filters(self.form, self.geometry, source, u.address, self.config.panels, packed, nbytes)

    def transformed(self, w: np.ndarray) -> Kept:
        """U of every group, in memory of its own."""
        kept = Kept(self.config, [Scratch(self.filter_bytes) for _ in range(self.groups)])
        for group, u in enumerate(kept.filters):
            self.transform(w, group, u)
        return kept

    def run(self, y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
        kept, one, config, room, kernel = self.kept, self.one, self.config, self.room, kernels()
        biases = padded_bias(bias, self.groups, one.M, self.padded, np.dtype(np.float32))
        work = scratch(self.count * room.total)
        blocks, panels = config.blocks, config.panels
        block_bytes = self.planes * room.v_plane + 64
        for group in range(self.groups):
            source = address(x) + group * one.C * x.strides[1]
            target = address(y) + group * one.M * y.strides[1]
            b = address(biases) + group * self.padded * 4
            if config.whole_filters:
                u = scratch(self.filter_bytes, "weights") if kept is None else kept[group]
                if kept is None:
                    self.transform(w, group, u)
                kernel.by_tiles(
                    self.form, self.geometry, room, source, u.address, address(w) + self.first + group * self.filters,
                    b, self.code, target, blocks, panels, work.address,
                )  # fmt: skip
            else:
                v = scratch(blocks * block_bytes, "tiles")
                kernel.by_filters(
                    self.form, self.geometry, room, source, 0 if kept is None else kept[group].address,
                    address(w) + self.first + group * self.filters, b, self.code, target, v.address, blocks,
                    block_bytes, panels, config.chunk, work.address,
                )  # fmt: skip

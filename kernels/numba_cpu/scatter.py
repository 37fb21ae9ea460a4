"""The gradient to images of few pixels: filters are read where they lie, products added up at the pixels they reach.

    s[p, c, t] = sum over k of dy[k, p] * w[k, c, t]
    dx[c, p * step + offset[t]] += s[p, c, t]

(col2im). `gather` of gemm.py, which sums at each pixel of dx, has to rearrange the filters first: where pixels are few
that takes as long as the products, and with a stride each filter is read once for each residue. Here the rows
(c, t) of a filter are the lanes: a panel of NV vectors of them, [DEPTH filters][lanes], is copied into L1 as it lies
and multiplied by tiles of ROWS pixels, scalars read in place. Then, a vector of channels at a time, the products are
added up in a map of the whole image, [cells][channels], which is turned into rows of dx.

Every result belongs to one task, which adds in one order: the bits do not depend on the number of threads.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import get_thread_id, njit, prange, types
from numba.extending import intrinsic, overload

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.gemm import copy_row
from fastconv.kernels.numba_cpu.memory import computed_name, load, size, store
from fastconv.kernels.numba_cpu.product import multiply
from fastconv.kernels.numba_cpu.simd import (
    NV,
    ROWS,
    VECTOR_BYTES,
    VectorType,
    _add,
    _i64,
    _load,
    add_from,
    get,
    put,
    width,
)
from fastconv.kernels.numba_cpu.strips_vectors import turn

DEPTH = 192  # filters of a panel: 36 KiB of float32 at three vectors


class Image(NamedTuple):
    """Extents, and element strides; spatial axes are always three. Pixels of dy are `xp` apart, all of an image."""

    N: int
    G: int
    K: int  # filters of a group
    C: int  # channels of dx of a group
    P0: int  # of dy
    P1: int
    P2: int
    H0: int  # of dx
    H1: int
    H2: int
    step0: int
    step1: int
    step2: int
    xn: int
    xk: int
    xp: int
    yn: int
    yc: int
    y0: int
    y1: int
    y2: int


@intrinsic
def add_every(typing, storage, step, source, target):
    """target += lanes that lie `step` bytes apart at `source`; of a vector at `target`."""
    element = getattr(types, computed_name(storage.stored))
    vector = VectorType(element)

    def generate(context, builder, signature, args):
        _, step, source, target = args
        llvm = context.get_value_type(vector)
        scalar = llvm.element
        value = ir.Constant(llvm, ir.Undefined)
        i32 = ir.IntType(32)
        for lane in range(vector.lanes):
            one = _load(builder, source, builder.mul(step, _i64(lane)), scalar, element.bitwidth // 8)
            value = builder.insert_element(value, one, ir.Constant(i32, lane))
        sums = _load(builder, target, None, llvm, element.bitwidth // 8)
        stored = builder.store(_add(builder, element, sums, value), builder.inttoptr(target, llvm.as_pointer()))
        stored.align = element.bitwidth // 8
        return context.get_dummy_value()

    return types.void(storage, *(types.int64,) * 3), generate


# ---------------------------------------------------------------- products


@njit(nogil=True)
def tiles_of(g):
    """Tiles of ROWS pixels of an image. The last one ends with it, and so may repeat pixels of the one before."""
    return (g.P0 * g.P1 * g.P2 + ROWS - 1) // ROWS


@njit(nogil=True)
def tile_start(g, tile):
    return max(0, min(tile * ROWS, g.P0 * g.P1 * g.P2 - ROWS))


@njit(nogil=True)
def multiply_images(X, W, S, g, x, w, wk, lanes, n0, n1, panel, sums, sums_row):
    """The products of the images [n0, n1) and `lanes` adjacent rows (c, t) of every filter, a row of sums per pixel."""
    vectors = (lanes + width(S) - 1) // width(S)
    panels = (vectors + NV - 1) // NV
    tiles = tiles_of(g)
    share = (DEPTH + panels * (n1 - n0) * tiles - 1) // (panels * (n1 - n0) * tiles)  # of the next filters, to fetch
    for r0 in range(0, g.K, DEPTH):
        r1 = min(g.K, r0 + DEPTH)
        for q in range(panels):
            v0, v1 = vectors * q // panels, vectors * (q + 1) // panels
            count = (v1 - v0) * width(S)
            for k in range(r0, r1):
                source = w + (k * wk + v0 * width(S)) * size(W)
                high = min(count, lanes - v0 * width(S))
                copy_row(W, S, source, 1, panel + (k - r0) * count * size(S), 0, high, count)
            for n in range(n0, n1):
                for tile in range(tiles):
                    a = x + (n * g.xn + r0 * g.xk + tile_start(g, tile) * g.xp) * size(X)
                    ahead = w + (r1 + ((q * (n1 - n0) + n - n0) * tiles + tile) * share) * wk * size(W)
                    c = sums + ((n - n0) * tiles + tile) * ROWS * sums_row + v0 * VECTOR_BYTES
                    multiply(
                        S, v1 - v0, r0 == 0, False, 0, r1 - r0, a, g.xk * size(X), g.xp * size(X), ahead,
                        wk * size(W), panel, count * size(S), 0, c, sums_row, 0, c, sums_row,
                    )  # fmt: skip


# ---------------------------------------------------------------- sums at the pixels of dx


@njit(nogil=True)
def add_row(S, T, count, source, source_row, target, target_row):
    """Add a vector of channels, elements T apart, of `count` pixels to their cells."""
    for _ in range(count):
        if T == 1:
            put(add_from(get(S, 1, 1, source, 0), 1, 1, target, 0), 1, 1, target, 0)
        else:
            add_every(S, T * size(S), source, target)
        source += source_row
        target += target_row


@njit(nogil=True)
def add_taps(S, g, taps, sums, sums_row, cells):
    """Add the products of one image and one vector of channels, tap by tap, to the cells that they reach."""
    T = taps.shape[0]
    last_tile = tiles_of(g) - 1
    repeated = last_tile * ROWS  # from this pixel on, the last tile has them
    shift = repeated - tile_start(g, last_tile)
    for t in range(T):
        for o0 in range(taps[t, 3], taps[t, 4]):
            for o1 in range(taps[t, 5], taps[t, 6]):
                row = ((o0 * g.step0 + taps[t, 0]) * g.H1 + o1 * g.step1 + taps[t, 1]) * g.H2 + taps[t, 2]
                p = (o0 * g.P1 + o1) * g.P2
                first, last = p + taps[t, 7], p + taps[t, 8]
                middle = min(max(first, repeated), last)
                for begin, end, rows in ((first, middle, 0), (middle, last, shift)):
                    add_row(
                        S, T, end - begin, sums + (begin + rows) * sums_row + t * size(S), sums_row,
                        cells + (row + (begin - p) * g.step2) * VECTOR_BYTES, g.step2 * VECTOR_BYTES,
                    )  # fmt: skip


def deliver_cells(S, Y, cells, row, count, channels, y, yc, step):
    """y[c, j * step] = cells[j, c] for `channels` <= a vector's lanes and `count` cells; `row` bytes, `yc` elements."""
    raise NotImplementedError("only inside kernels")


@overload(deliver_cells)
def _deliver_cells(S, Y, cells, row, count, channels, y, yc, step):
    def each(S, Y, cells, row, count, channels, y, yc, step):
        for c in range(channels):
            for j in range(count):
                store(Y, y + c * yc * size(Y), j * step, load(S, cells + j * row, c))

    if not S.stored == Y.stored == "float32":
        return each
    elements = njit(nogil=True)(each)

    def vectors(S, Y, cells, row, count, channels, y, yc, step):
        if step != 1:
            elements(S, Y, cells, row, count, channels, y, yc, step)
            return
        for j in range(0, count, width(S)):
            turn(cells + j * row, row, min(width(S), count - j), channels, y + j * size(Y), yc * size(Y))

    return vectors


@njit(nogil=True)
def deliver_image(S, Y, g, code, cells, channels, y):
    """Store one vector of channels of an image, row by row, or all at once where rows go on."""
    if code:
        for j in range(g.H0 * g.H1 * g.H2):
            for c in range(channels):
                at = cells + j * VECTOR_BYTES
                store(S, at, c, activate(code, load(S, at, c)))
    if g.y1 == g.H2 * g.y2 and (g.y0 == g.H1 * g.y1 or g.H0 == 1):
        deliver_cells(S, Y, cells, VECTOR_BYTES, g.H0 * g.H1 * g.H2, channels, y, g.yc, g.y2)
        return
    for i0 in range(g.H0):
        for i1 in range(g.H1):
            row = cells + (i0 * g.H1 + i1) * g.H2 * VECTOR_BYTES
            target = y + (i0 * g.y0 + i1 * g.y1) * size(Y)
            deliver_cells(S, Y, row, VECTOR_BYTES, g.H2, channels, target, g.yc, g.y2)


@njit(parallel=True, nogil=True)
def scatter(X, W, S, Y, g, taps, x, w, wg, wk, bias, code, y, chunks, parts, work, work_bytes):
    """dx = act(bias + what dy sends back through w); see the head of this file.

    Rows (c, t) of a filter lie next to each other, filters `wk` and groups `wg` elements apart; X is S, and an image
    of dy has ROWS pixels at least; `bias` is S[G, whole vectors]. Tasks are G x `chunks` of the vectors of channels x
    `parts` of the images; each thread uses `work_bytes` at `work`: a panel of filters, the cells of an image, and a
    task's products.
    """
    T = taps.shape[0]
    cells = g.H0 * g.H1 * g.H2
    vectors = (g.C + width(S) - 1) // width(S)
    for index in prange(g.G * chunks * parts):
        task = np.int64(index)  # prange counts in uint64, which mixes with int64 to float64
        rest, part = divmod(task, parts)
        group, chunk = divmod(rest, chunks)
        n0, n1 = g.N * part // parts, g.N * (part + 1) // parts
        v0, v1 = vectors * chunk // chunks, vectors * (chunk + 1) // chunks
        c0 = v0 * width(S)
        lanes = (min(g.C, v1 * width(S)) - c0) * T
        panel = work + get_thread_id() * work_bytes
        image = panel + DEPTH * NV * VECTOR_BYTES
        sums, sums_row = image + cells * VECTOR_BYTES, (lanes + width(S) - 1) // width(S) * VECTOR_BYTES
        source, filters = x + group * g.K * g.xk * size(X), w + (group * wg + c0 * T) * size(W)
        multiply_images(X, W, S, g, source, filters, wk, lanes, n0, n1, panel, sums, sums_row)
        for n in range(n0, n1):
            for v in range(v0, v1):
                for j in range(cells):
                    put(get(S, 1, 1, bias + (group * vectors + v) * VECTOR_BYTES, 0), 1, 1, image + j * VECTOR_BYTES, 0)
                own = sums + (n - n0) * tiles_of(g) * ROWS * sums_row + (v - v0) * width(S) * T * size(S)
                add_taps(S, g, taps, own, sums_row, image)
                c = v * width(S)
                target = y + (n * g.yn + (group * g.C + c) * g.yc) * size(Y)
                deliver_image(S, Y, g, code, image, min(width(S), g.C - c), target)

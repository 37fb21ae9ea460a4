"""Depthwise convolution in register tiles for channels-last arrays: channels in lanes, else as depthwise_tiles.py.

A tile is a rectangle of outputs by one vector of channels. Every cell of the source that it meets is loaded once, if
it lies inside the image, and serves all outputs that meet it. Tiles of a row follow each other channels first, as they
lie in memory. `wgrad` keeps the sums of all taps, or of as many rows of them as there are registers for, of one
vector of channels.
"""

import numpy as np
from numba import get_thread_id, njit, prange, types
from numba.extending import intrinsic

from fastconv.kernels.numba_cpu.depthwise_tiles import (
    LONGEST,
    WINDOWS,
    _address,
    _between,
    _if,
    _inside,
    _vector_of,
    finish_rows,
    wgrad_zeros,
)
from fastconv.kernels.numba_cpu.memory import load, size, store
from fastconv.kernels.numba_cpu.simd import REGISTERS, VECTOR_BYTES, _i64, _load, _masked, _multiply_add, width

__all__ = ["WINDOWS", "fprop", "spread", "wgrad"]

ROWS, COLUMNS = 2, 4  # of outputs in a tile of fprop
SPREAD_ROWS, SPREAD_COLUMNS = (2, 2) if REGISTERS == 32 else (1, 2)  # of dy's cells in a tile of `spread`
WGRAD_COLUMNS = 4  # of dy that are met by the cells of x in registers


class _Cells:
    """The cells of a plane and the lanes of one vector of its channels."""

    def __init__(self, context, builder, storage, x, strides, extents, channels):
        self.builder = builder
        self.vector, self.llvm = _vector_of(context, storage)
        self.x, self.strides, self.extents = x, strides, extents
        self.lanes = _between(builder, _i64(0), 1, _i64(0), channels, self.llvm.count)

    def at(self, row, column):
        """The vector of a cell."""
        place = _address(self.builder, _address(self.builder, self.x, row, self.strides[0]), column, self.strides[1])
        return _masked(self.builder, "load", place, self.llvm, self.vector.element, self.lanes)

    def put(self, value, row, column):
        place = _address(self.builder, _address(self.builder, self.x, row, self.strides[0]), column, self.strides[1])
        _masked(self.builder, "store", place, self.llvm, self.vector.element, self.lanes, value)

    def each(self, corner, rows, columns, values, change):
        """change(values, i, j, cell) for each cell inside the plane of a rectangle, whose places begin at 0."""
        builder = self.builder
        across = [builder.add(corner[1], _i64(j)) for j in columns]
        within = [_inside(builder, column, self.extents[1]) for column in across]
        for i in rows:
            row = builder.add(corner[0], _i64(i))
            inside = _inside(builder, row, self.extents[0])
            for j, column, met in zip(columns, across, within, strict=True):

                def one(values, i=i, j=j, row=row, column=column):
                    return change(values, i, j, self.at(row, column))

                values = _if(builder, builder.and_(inside, met), values, one)
        return values


def _vectors(builder, cells, w, pitch, count):
    """Whole vectors `pitch` bytes apart: the arrays of filters and of biases are padded."""
    nbytes = cells.vector.element.bitwidth // 8
    return [_load(builder, w, builder.mul(pitch, _i64(t)), cells.llvm, nbytes) for t in range(count)]


# ---------------------------------------------------------------- fprop


@intrinsic
def fprop_tile(typing, window, storage, x, x0, x1, row, rows, column, columns, w, pitch, bias, y, y0, y1, high, right,
               channels):  # fmt: skip
    """ROWS x COLUMNS outputs of a vector of channels, of which `high` x `right` are stored, at y; strides in bytes."""
    r, step = window.window.r, window.window.step

    def generate(context, builder, signature, args):
        _, _, x, x0, x1, row, rows, column, columns, w, pitch, bias, y, y0, y1, high, right, channels = args
        cells = _Cells(context, builder, storage, x, (x0, x1), (rows, columns), channels)
        weights = _vectors(builder, cells, w, pitch, r * r)
        tile = _vectors(builder, cells, bias, pitch, 1) * (ROWS * COLUMNS)

        def add(tile, i, j, value):
            for o in range(ROWS):
                for p in range(COLUMNS):
                    tap, s = i - o * step, j - p * step
                    if 0 <= tap < r and 0 <= s < r:
                        at = o * COLUMNS + p
                        weight = weights[tap * r + s]
                        tile[at] = _multiply_add(builder, cells.vector.element, value, weight, tile[at])
            return tile

        reach = [range((n - 1) * step + r) for n in (ROWS, COLUMNS)]
        tile = cells.each((row, column), *reach, tile, add)
        result = _Cells(context, builder, storage, y, (y0, y1), (high, right), channels)
        for at, value in enumerate(tile):
            o, p = (_i64(place) for place in divmod(at, COLUMNS))
            met = builder.and_(builder.icmp_signed("<", o, high), builder.icmp_signed("<", p, right))
            with builder.if_then(met):
                result.put(value, o, p)
        return context.get_dummy_value()

    return types.void(window, storage, *(types.int64,) * 16), generate


@njit(parallel=True, nogil=True)
def fprop(F, S, g, H, W, pad0, pad1, x, w, pitch, bias, code, y):
    """Tasks are ROWS rows of outputs; `w` is S[R * R, pitch bytes] and `bias` S[G], both padded to whole vectors."""
    parts = (g.P1 + ROWS - 1) // ROWS
    for index in prange(g.N * parts):
        n, part = divmod(np.int64(index), parts)
        o1 = part * ROWS
        high = min(ROWS, g.P1 - o1)
        for o2 in range(0, g.P2, COLUMNS):
            right = min(COLUMNS, g.P2 - o2)
            target = y + (n * g.yn + o1 * g.y1 + o2 * g.y2) * size(S)
            for c in range(0, g.G, width(S)):
                fprop_tile(
                    F, S, x + (n * g.xn + c) * size(S), g.x1 * size(S), g.x2 * size(S), o1 * F.step - pad0, H,
                    o2 * F.step - pad1, W, w + c * size(S), pitch, bias + c * size(S), target + c * size(S),
                    g.y1 * size(S), g.y2 * size(S), high, right, g.G - c,
                )  # fmt: skip
            if code:
                for i in range(high):
                    finish_rows(S, code, target + i * g.y1 * size(S), g.y2 * size(S), right, g.G)


# ---------------------------------------------------------------- dgrad with step 2


@intrinsic
def spread_tile(typing, window, storage, dy, dy0, dy1, row, rows, column, columns, w, pitch, bias, dx, dx0, dx1, low,
                high, left, right, channels):  # fmt: skip
    """The outputs 2 * q + (0 or 1) of SPREAD_ROWS x SPREAD_COLUMNS cells q, of a vector of channels.

    Output (0, 0) gets its first tap from dy's cell (row, column), and is at dx; of the outputs' rows [low, high) and
    columns [left, right) are stored.
    """
    r = window.window.r
    back = (r + 1) // 2  # cells that reach an output, along each axis

    def generate(context, builder, signature, args):
        _, _, dy, dy0, dy1, row, rows, column, columns, w, pitch, bias, *rest = args
        dx, dx0, dx1, low, high, left, right, channels = rest
        cells = _Cells(context, builder, storage, dy, (dy0, dy1), (rows, columns), channels)
        weights = _vectors(builder, cells, w, pitch, r * r)
        height, breadth = 2 * SPREAD_ROWS, 2 * SPREAD_COLUMNS
        tile = _vectors(builder, cells, bias, pitch, 1) * (height * breadth)

        def add(tile, i, j, value):
            for o in range(height):
                for p in range(breadth):
                    tap, s = o - 2 * i, p - 2 * j
                    if 0 <= tap < r and 0 <= s < r:
                        at = o * breadth + p
                        weight = weights[tap * r + s]
                        tile[at] = _multiply_add(builder, cells.vector.element, value, weight, tile[at])
            return tile

        reach = [range(1 - back, n) for n in (SPREAD_ROWS, SPREAD_COLUMNS)]
        tile = cells.each((row, column), *reach, tile, add)
        result = _Cells(context, builder, storage, dx, (dx0, dx1), (high, right), channels)
        for at, value in enumerate(tile):
            o, p = (_i64(place) for place in divmod(at, breadth))
            met = [builder.icmp_signed(">=", o, low), builder.icmp_signed("<", o, high)]
            met += [builder.icmp_signed(">=", p, left), builder.icmp_signed("<", p, right)]
            with builder.if_then(builder.and_(builder.and_(*met[:2]), builder.and_(*met[2:]))):
                result.put(value, o, p)
        return context.get_dummy_value()

    return types.void(window, storage, *(types.int64,) * 18), generate


@njit(parallel=True, nogil=True)
def spread(F, S, g, P, Q, pad0, pad1, dy, w, pitch, bias, code, dx):
    """dx from dy of step 2; g has dy as its source, of P x Q, and dx's extents; tasks are rows of tiles."""
    first, last = pad0 // 2, (g.P1 + pad0 + 1) // 2
    parts = (last - first + SPREAD_ROWS - 1) // SPREAD_ROWS
    for index in prange(g.N * parts):
        n, part = divmod(np.int64(index), parts)
        q1 = first + part * SPREAD_ROWS
        i1 = 2 * q1 - pad0
        target = dx + n * g.yn * size(S)
        for q2 in range(pad1 // 2, (g.P2 + pad1 + 1) // 2, SPREAD_COLUMNS):
            i2 = 2 * q2 - pad1
            for c in range(0, g.G, width(S)):
                spread_tile(
                    F, S, dy + (n * g.xn + c) * size(S), g.x1 * size(S), g.x2 * size(S), q1, P, q2, Q,
                    w + c * size(S), pitch, bias + c * size(S), target + (i1 * g.y1 + i2 * g.y2 + c) * size(S),
                    g.y1 * size(S), g.y2 * size(S), -i1, g.P1 - i1, -i2, g.P2 - i2, g.G - c,
                )  # fmt: skip
        if code:
            for i in range(max(i1, 0), min(i1 + 2 * SPREAD_ROWS, g.P1)):
                finish_rows(S, code, target + i * g.y1 * size(S), g.y2 * size(S), g.P2, g.G)


# ---------------------------------------------------------------- wgrad


@intrinsic(prefer_literal=True)
def wgrad_tile(typing, tile, window, storage, length, x, x0, x1, row, rows, column, columns, dy, dy1, channels):
    """tile[r, s] += dy * x for `length` outputs of a row and a vector of channels.

    The tile has the sums of `part` rows of taps; (row, column) is what the first output's first tap of these meets.
    """
    r, step, part = window.window.r, window.window.step, window.window.part
    right = length.literal_value

    def generate(context, builder, signature, args):
        acc, _, _, _, x, x0, x1, row, rows, column, columns, dy, dy1, channels = args
        cells = _Cells(context, builder, storage, x, (x0, x1), (rows, columns), channels)
        outputs = _Cells(context, builder, storage, dy, (_i64(0), dy1), None, channels)
        grads = [outputs.at(_i64(0), _i64(p)) for p in range(right)]

        def add(sums, i, j, value):
            for p in range(right):
                s = j - p * step
                if 0 <= s < r:
                    at = i * r + s
                    sums[at] = _multiply_add(builder, cells.vector.element, value, grads[p], sums[at])
            return sums

        sums = [builder.extract_value(acc, t) for t in range(part * r)]
        sums = cells.each((row, column), range(part), range((right - 1) * step + r), sums, add)
        for t, value in enumerate(sums):
            acc = builder.insert_value(acc, value, t)
        return acc

    return tile(tile, window, storage, length, *(types.int64,) * 10), generate


@intrinsic
def wgrad_sums(typing, tile, window, storage, sums):
    """sums[t, :] += tile[t], vectors that lie next to each other."""

    def generate(context, builder, signature, args):
        acc, _, _, sums = args
        llvm, nbytes = context.get_value_type(tile.dtype), tile.dtype.element.bitwidth // 8
        for t in range(len(tile)):
            at = builder.add(sums, _i64(t * VECTOR_BYTES))
            total = builder.fadd(_load(builder, at, None, llvm, nbytes), builder.extract_value(acc, t))
            builder.store(total, builder.inttoptr(at, llvm.as_pointer())).align = nbytes
        return context.get_dummy_value()

    return types.void(tile, window, storage, types.int64), generate


@njit(parallel=True, nogil=True)
def wgrad(F, S, g, H, W, pad0, pad1, x, dy, w, wm, wt, work, work_bytes):
    """dw[c, t] at element stride wm and tap offsets wt[R * R]; tasks are vectors of channels, with sums at `work`."""
    lanes = width(S)
    band = max(1, LONGEST // (g.P2 + 1))
    for index in prange((g.G + lanes - 1) // lanes):
        c = np.int64(index) * lanes
        sums = work + get_thread_id() * work_bytes
        for t in range(F.r * (F.r + F.part) * lanes):
            store(S, sums, t, 0)
        for n in range(g.N):
            source = x + (n * g.xn + c) * size(S)
            for b0 in range(0, g.P1, band):
                for r0 in range(0, F.r, F.part):
                    tile = wgrad_zeros(F, S)
                    for o1 in range(b0, min(g.P1, b0 + band)):
                        row = o1 * F.step + r0 - pad0
                        grads = dy + (n * g.yn + o1 * g.y1 + c) * size(S)
                        o2 = 0
                        while o2 + WGRAD_COLUMNS <= g.P2:
                            tile = wgrad_tile(
                                tile, F, S, WGRAD_COLUMNS, source, g.x1 * size(S), g.x2 * size(S), row, H,
                                o2 * F.step - pad1, W, grads + o2 * g.y2 * size(S), g.y2 * size(S), g.G - c,
                            )  # fmt: skip
                            o2 += WGRAD_COLUMNS
                        while o2 < g.P2:
                            tile = wgrad_tile(
                                tile, F, S, 1, source, g.x1 * size(S), g.x2 * size(S), row, H,
                                o2 * F.step - pad1, W, grads + o2 * g.y2 * size(S), g.y2 * size(S), g.G - c,
                            )  # fmt: skip
                            o2 += 1
                    wgrad_sums(tile, F, S, sums + r0 * F.r * VECTOR_BYTES)
        for t in range(F.r * F.r):
            for i in range(min(lanes, g.G - c)):
                store(S, w, (c + i) * wm + wt[t], load(S, sums, t * lanes + i))

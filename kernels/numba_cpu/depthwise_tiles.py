"""Depthwise convolution in register tiles: rows of pixels in lanes, for square windows of 3, 5 and 7 taps.

    y[o] = act(bias + sum over r, s of w[r, s] * x[o * step + (r, s) - pad])        `fprop`, step 1 and 2
    dx[i] = act(bias + sum over r, s of w[r, s] * dy[o]),  o * 2 + (r, s) - pad = i   `spread`
    dw[r, s] = sum over n, o of dy[o] * x[o * step + (r, s) - pad]                  `wgrad`, step 1 and 2

The gradient to x with step 1 is `fprop` of dy with the filter turned round. A tile is some rows of outputs by one
vector along a row; all taps of a row of the source are applied while it is in registers, and every row serves all
outputs that meet it. Rows and lanes beyond the image take no part: they are neither read nor multiplied. With step 2
rows are split into even and odd places, or joined from them, by shuffles. `wgrad` keeps the sums of all taps, or of
as many rows of them as there are registers for.
"""

import numpy as np
from llvmlite import ir
from numba import get_thread_id, njit, prange, types
from numba.extending import NativeValue, intrinsic, models, overload_attribute, register_model, typeof_impl, unbox

from fastconv.kernels.numba_cpu.elementwise import activate
from fastconv.kernels.numba_cpu.memory import computed_name, load, size, store
from fastconv.kernels.numba_cpu.simd import (
    REGISTERS,
    VECTOR_BYTES,
    VectorType,
    _at,
    _halve,
    _i64,
    _load,
    _masked,
    _multiply_add,
    _splat,
    width,
)

ROWS = 8  # of outputs in a tile of fprop
SPREAD_ROWS = 4 if REGISTERS == 32 else 2  # of dy in a tile of `spread`, which has four outputs for each cell
WGRAD_ROWS = 4  # of dy that are met by the rows of x in registers
LONGEST = 512  # vectors that are added up in a lane before the lanes are


class Window:
    """R x R taps and a step, what kernels are compiled for; `part` rows of taps fit into the registers of wgrad."""

    def __init__(self, r, step):
        self.r, self.step = r, step
        parts = -(-r * r // (REGISTERS - 4))
        self.part = -(-r // parts)
        self.name = f"window({r},{step})"


class WindowType(types.Type):
    def __init__(self, window):
        self.window = window
        super().__init__(name=window.name)


register_model(WindowType)(models.OpaqueModel)


@typeof_impl.register(Window)
def _typeof_window(value, context):
    return WindowType(value)


@unbox(WindowType)
def _unbox_window(typ, obj, context):
    return NativeValue(context.context.get_dummy_value())


def _attribute(name):
    @overload_attribute(WindowType, name)
    def attribute(window):
        value = getattr(window.window, name)
        return lambda window: value


for _name in ("r", "step", "part"):
    _attribute(_name)

WINDOWS = {(r, step): Window(r, step) for r in (3, 5, 7) for step in (1, 2)}


# ---------------------------------------------------------------- a row of the source in registers


def _between(builder, first, step, low, high, lanes):
    """The mask of the lanes for which low <= first + step * lane < high."""
    i32 = ir.IntType(32)
    index = ir.Constant(ir.VectorType(i32, lanes), [step * lane for lane in range(lanes)])
    first, low, high = (builder.trunc(value, i32) for value in (first, low, high))
    low, high = (_splat(builder, builder.sub(value, first), index.type) for value in (low, high))
    return builder.and_(builder.icmp_signed(">=", index, low), builder.icmp_signed("<", index, high))


def _pick(builder, a, b, places):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


class _Row:
    """The cells ``first + step * lane + s`` of a row, for each tap s, inside [0, extent) and of `count` outputs."""

    def __init__(self, builder, vector, llvm, taps, step, first, extent, count):
        self.builder, self.element, self.llvm, self.taps, self.step = builder, vector.element, llvm, taps, step
        lanes, zero = llvm.count, _i64(0)
        self.starts = [builder.add(first, _i64(s)) for s in range(taps)]
        within = _between(builder, zero, 1, zero, count, lanes)
        self.met = [builder.and_(_between(builder, at, step, zero, extent, lanes), within) for at in self.starts]
        if step == 2:
            self.read = [
                [_between(builder, builder.add(at, _i64(half * lanes)), 1, zero, extent, lanes) for half in range(2)]
                for at in self.starts[::2]
            ]

    def load(self, row):
        """The vectors of all taps of the row at an address."""
        builder, element, llvm = self.builder, self.element, self.llvm
        nbytes, lanes = element.bitwidth // 8, llvm.count
        if self.step == 1:
            places = (builder.add(row, builder.mul(at, _i64(nbytes))) for at in self.starts)
            loaded = zip(places, self.met, strict=True)
            return [_masked(builder, "load", place, llvm, element, mask) for place, mask in loaded]
        values = []
        for at, masks in zip(self.starts[::2], self.read, strict=True):
            place = builder.add(row, builder.mul(at, _i64(nbytes)))
            halves = [
                _masked(builder, "load", builder.add(place, _i64(half * VECTOR_BYTES)), llvm, element, mask)
                for half, mask in enumerate(masks)
            ]
            values += [_pick(builder, *halves, list(range(odd, 2 * lanes, 2))) for odd in range(2)]
        return values[: self.taps]


def _if(builder, condition, values, change):
    """change(values) where the condition holds, else the values."""
    before = builder.block
    then, after = builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(condition, then, after)
    builder.position_at_end(then)
    changed = change(list(values))
    last = builder.block
    builder.branch(after)
    builder.position_at_end(after)
    results = []
    for old, new in zip(values, changed, strict=True):
        phi = builder.phi(old.type)
        phi.add_incoming(old, before)
        phi.add_incoming(new, last)
        results.append(phi)
    return results


def _inside(builder, row, extent):
    return builder.icmp_unsigned("<", row, extent)  # a negative row is a large one


def _address(builder, x, row, row_bytes):
    return builder.add(x, builder.mul(row, row_bytes))


def _vector_of(context, storage):
    vector = VectorType(getattr(types, computed_name(storage.stored)))
    return vector, context.get_value_type(vector)


def _weights(builder, vector, llvm, w, count):
    nbytes = vector.element.bitwidth // 8
    return [_splat(builder, _load(builder, w, _i64(t * nbytes), llvm.element, nbytes), llvm) for t in range(count)]


# ---------------------------------------------------------------- fprop


@intrinsic
def fprop_tile(typing, window, storage, x, row_bytes, row, rows, column, columns, w, bias, y, y_bytes, high, count):
    """ROWS x one vector of outputs; x is the plane's start, (row, column) what the first output's first tap meets.

    `high` rows and `count` lanes of the tile are stored, at y, in rows `y_bytes` apart.
    """
    r, step = window.window.r, window.window.step

    def generate(context, builder, signature, args):
        _, _, x, row_bytes, row, rows, column, columns, w, bias, y, y_bytes, high, count = args
        vector, llvm = _vector_of(context, storage)
        source = _Row(builder, vector, llvm, r, step, column, columns, count)
        weights = _weights(builder, vector, llvm, w, r * r)
        tile = [_weights(builder, vector, llvm, bias, 1)[0]] * ROWS
        last = builder.add(builder.mul(builder.sub(high, _i64(1)), _i64(step)), _i64(r))  # rows that outputs meet
        for i in range((ROWS - 1) * step + r):
            place = builder.add(row, _i64(i))

            def add_row(tile, i=i, place=place):
                values = source.load(_address(builder, x, place, row_bytes))
                for o in range(ROWS):
                    tap = i - o * step
                    if 0 <= tap < r:
                        for s, value in enumerate(values):
                            weight = weights[tap * r + s]
                            total = _multiply_add(builder, vector.element, value, weight, tile[o])
                            tile[o] = builder.select(source.met[s], total, tile[o])
                return tile

            met = builder.and_(_inside(builder, place, rows), builder.icmp_signed("<", _i64(i), last))
            tile = _if(builder, met, tile, add_row)
        stored = _between(builder, _i64(0), 1, _i64(0), count, llvm.count)
        for o, value in enumerate(tile):
            with builder.if_then(builder.icmp_signed("<", _i64(o), high)):
                _masked(builder, "store", _address(builder, y, _i64(o), y_bytes), llvm, vector.element, stored, value)
        return context.get_dummy_value()

    return types.void(window, storage, *(types.int64,) * 12), generate


@njit(nogil=True)
def finish_rows(S, code, y, row_bytes, rows, count):
    """The activation of `rows` rows of outputs, in place."""
    for i in range(rows):
        for j in range(count):
            store(S, y + i * row_bytes, j, activate(code, load(S, y + i * row_bytes, j)))


@njit(parallel=True, nogil=True)
def fprop(F, S, g, H, W, pad0, pad1, x, w, bias, code, y, bands):
    """Tasks are `bands` of the rows of each plane; `w` is S[G, R * R], `bias` S[G], g as in gemm.py with M = C = 1."""
    x_bytes, y_bytes = g.x1 * size(S), g.y1 * size(S)
    for index in prange(g.N * g.G * bands):
        plane, band = divmod(np.int64(index), bands)
        n, c = divmod(plane, g.G)
        tiles = (g.P1 + ROWS - 1) // ROWS
        first, last = tiles * band // bands * ROWS, min(g.P1, tiles * (band + 1) // bands * ROWS)
        source = x + (n * g.xn + c * g.xc) * size(S)
        target = y + (n * g.yn + c * g.ym) * size(S)
        for o1 in range(first, last, ROWS):
            high = min(ROWS, last - o1)
            for o2 in range(0, g.P2, width(S)):
                fprop_tile(
                    F, S, source, x_bytes, o1 * F.step - pad0, H, o2 * F.step - pad1, W, w + c * F.r * F.r * size(S),
                    bias + c * size(S), target + o1 * y_bytes + o2 * size(S), y_bytes, high, min(width(S), g.P2 - o2),
                )  # fmt: skip
        if code:
            finish_rows(S, code, target + first * y_bytes, y_bytes, last - first, g.P2)


# ---------------------------------------------------------------- dgrad with step 2


@intrinsic
def spread_tile(typing, window, storage, dy, row_bytes, row, rows, column, columns, w, bias, dx, x_bytes, low, high,
                left, right):  # fmt: skip
    """The outputs 2 * (q, lane) + (0 or 1) of SPREAD_ROWS rows q and one vector; dy is the plane's start.

    Output (0, 0) gets its first tap from dy's cell (row, column), and is at dx; of the outputs' rows [low, high) and
    columns [left, right) are stored.
    """
    r = window.window.r
    back = (r + 1) // 2  # cells that reach an output, along each axis

    def generate(context, builder, signature, args):
        _, _, dy, row_bytes, row, rows, column, columns, w, bias, dx, x_bytes, low, high, left, right = args
        vector, llvm = _vector_of(context, storage)
        lanes, nbytes = llvm.count, vector.element.bitwidth // 8
        # A row as its cells `back - 1` to 0 places before each output.
        first = builder.sub(column, _i64(back - 1))
        source = _Row(builder, vector, llvm, back, 1, first, columns, _i64(lanes))
        weights = _weights(builder, vector, llvm, w, r * r)
        tile = [_weights(builder, vector, llvm, bias, 1)[0]] * (SPREAD_ROWS * 4)
        for i in range(1 - back, SPREAD_ROWS):
            place = builder.add(row, _i64(i))

            def add_row(tile, i=i, place=place):
                values = source.load(_address(builder, dy, place, row_bytes))
                for q in range(max(i, 0), min(SPREAD_ROWS, i + back)):
                    for tap in range(2 * (q - i), min(r, 2 * (q - i) + 2)):
                        for s in range(r):
                            at = (q * 2 + tap % 2) * 2 + s % 2
                            met = back - 1 - s // 2
                            weight = weights[tap * r + s]
                            total = _multiply_add(builder, vector.element, values[met], weight, tile[at])
                            tile[at] = builder.select(source.met[met], total, tile[at])
                return tile

            tile = _if(builder, _inside(builder, place, rows), tile, add_row)
        stored = [_between(builder, _i64(half * lanes), 1, left, right, lanes) for half in range(2)]
        joined = [i // 2 + lanes * (i % 2) for i in range(2 * lanes)]
        for o in range(2 * SPREAD_ROWS):
            number = _i64(o)
            met = builder.and_(builder.icmp_signed(">=", number, low), builder.icmp_signed("<", number, high))
            with builder.if_then(met):
                at = _address(builder, dx, number, x_bytes)
                for half, mask in enumerate(stored):
                    value = _pick(builder, *tile[2 * o : 2 * o + 2], joined[half * lanes : (half + 1) * lanes])
                    place = builder.add(at, _i64(half * lanes * nbytes))
                    _masked(builder, "store", place, llvm, vector.element, mask, value)
        return context.get_dummy_value()

    return types.void(window, storage, *(types.int64,) * 14), generate


@njit(parallel=True, nogil=True)
def spread(F, S, g, P, Q, pad0, pad1, dy, w, bias, code, dx):
    """dx from dy of step 2; g has dy as its source, of P x Q, and dx's extents; tasks are planes."""
    dy_bytes, x_bytes = g.x1 * size(S), g.y1 * size(S)
    for index in prange(g.N * g.G):
        n, c = divmod(np.int64(index), g.G)
        source = dy + (n * g.xn + c * g.xc) * size(S)
        target = dx + (n * g.yn + c * g.ym) * size(S)
        for q1 in range(pad0 // 2, (g.P1 + pad0 + 1) // 2, SPREAD_ROWS):
            i1 = 2 * q1 - pad0
            for q2 in range(pad1 // 2, (g.P2 + pad1 + 1) // 2, width(S)):
                i2 = 2 * q2 - pad1
                spread_tile(
                    F, S, source, dy_bytes, q1, P, q2, Q, w + c * F.r * F.r * size(S), bias + c * size(S),
                    target + i1 * x_bytes + i2 * size(S), x_bytes, -i1, g.P1 - i1, -i2, g.P2 - i2,
                )  # fmt: skip
        if code:
            finish_rows(S, code, target, x_bytes, g.P1, g.P2)


# ---------------------------------------------------------------- wgrad


@intrinsic(prefer_literal=True)
def wgrad_tile(typing, tile, window, storage, height, x, row_bytes, row, rows, column, columns, dy, y_bytes, count):
    """tile[r, s] += dy * x lane by lane, for `height` rows of dy and the first `count` lanes of one vector.

    The tile has the sums of `part` rows of taps; (row, column) is what the first output's first tap of these meets.
    """
    r, step, part = window.window.r, window.window.step, window.window.part
    high = height.literal_value

    def generate(context, builder, signature, args):
        acc, _, _, _, x, row_bytes, row, rows, column, columns, dy, y_bytes, count = args
        vector, llvm = _vector_of(context, storage)
        source = _Row(builder, vector, llvm, r, step, column, columns, count)
        met = _between(builder, _i64(0), 1, _i64(0), count, llvm.count)
        grads = [
            _masked(builder, "load", _address(builder, dy, _i64(o), y_bytes), llvm, vector.element, met)
            for o in range(high)
        ]
        sums = [builder.extract_value(acc, t) for t in range(part * r)]
        for i in range((high - 1) * step + part):
            place = builder.add(row, _i64(i))

            def add_row(sums, i=i, place=place):
                values = source.load(_address(builder, x, place, row_bytes))
                for o in range(high):
                    tap = i - o * step
                    if 0 <= tap < part:
                        for s, value in enumerate(values):
                            at = tap * r + s
                            total = _multiply_add(builder, vector.element, value, grads[o], sums[at])
                            sums[at] = total if step == 1 else builder.select(source.met[s], total, sums[at])
                return sums

            sums = _if(builder, _inside(builder, place, rows), sums, add_row)
        for t, value in enumerate(sums):
            acc = builder.insert_value(acc, value, t)
        return acc

    return tile(tile, window, storage, height, *(types.int64,) * 9), generate


@intrinsic
def wgrad_zeros(typing, window, storage):
    tile = types.UniTuple(
        VectorType(getattr(types, computed_name(storage.stored))), window.window.part * window.window.r
    )
    return tile(window, storage), lambda context, builder, signature, args: ir.Constant(
        context.get_value_type(tile), None
    )


@intrinsic
def wgrad_sums(typing, tile, window, storage, sums):
    """sums[t] += the sum of the lanes of tile[t]."""
    element = tile.dtype.element
    nbytes = element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, sums = args
        scalar = context.get_value_type(tile.dtype).element
        for t in range(len(tile)):
            pointer = _at(builder, sums, _i64(t * nbytes), scalar)
            total = _halve(builder, element, builder.extract_value(acc, t))
            builder.store(builder.fadd(builder.load(pointer), total), pointer)
        return context.get_dummy_value()

    return types.void(tile, window, storage, types.int64), generate


@njit(parallel=True, nogil=True)
def wgrad(F, S, g, H, W, pad0, pad1, x, dy, w, wm, wt, work, work_bytes):
    """dw[c, t] at element stride wm and tap offsets wt[R * R]; tasks are channels, with their sums at `work`."""
    x_bytes, y_bytes = g.x1 * size(S), g.y1 * size(S)
    lanes = width(S)
    band = max(1, LONGEST * lanes // (g.P2 + lanes)) * WGRAD_ROWS
    for index in prange(g.G):
        c = np.int64(index)
        sums = work + get_thread_id() * work_bytes
        for t in range(F.r * (F.r + F.part)):
            store(S, sums, t, 0)
        for n in range(g.N):
            source = x + (n * g.xn + c * g.xc) * size(S)
            grads = dy + (n * g.yn + c * g.ym) * size(S)
            for b0 in range(0, g.P1, band):
                b1 = min(g.P1, b0 + band)
                for r0 in range(0, F.r, F.part):
                    tile = wgrad_zeros(F, S)
                    for o2 in range(0, g.P2, lanes):
                        count = min(lanes, g.P2 - o2)
                        column = o2 * F.step - pad1
                        o1 = b0
                        while o1 + WGRAD_ROWS <= b1:
                            tile = wgrad_tile(
                                tile, F, S, WGRAD_ROWS, source, x_bytes, o1 * F.step + r0 - pad0, H, column, W,
                                grads + o1 * y_bytes + o2 * size(S), y_bytes, count,
                            )  # fmt: skip
                            o1 += WGRAD_ROWS
                        while o1 < b1:
                            tile = wgrad_tile(
                                tile, F, S, 1, source, x_bytes, o1 * F.step + r0 - pad0, H, column, W,
                                grads + o1 * y_bytes + o2 * size(S), y_bytes, count,
                            )  # fmt: skip
                            o1 += 1
                    wgrad_sums(tile, F, S, sums + r0 * F.r * size(S))
        for t in range(F.r * F.r):
            store(S, w, c * wm + wt[t], load(S, sums, t))

"""What strips are made of: register tiles of few rows, and transpositions, stores and weaving of vectors."""

from llvmlite import ir
from numba import types
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    overload_attribute,
    register_model,
    typeof_impl,
    unbox,
)

from fastconv.kernels.numba_cpu.memory import computed_name
from fastconv.kernels.numba_cpu.simd import (
    NV,
    REGISTERS,
    ROWS,
    VECTOR_BYTES,
    VectorType,
    _at,
    _i64,
    _load,
    _masked,
    _multiply_add,
    _splat,
)
from fastconv.kernels.numba_cpu.winograd_transforms import FLOAT, LANES, _lanes, _rows_below, _transposed

ACCUMULATORS = 24 if REGISTERS == 32 else 12


class Tile:
    """`rows` by `nv` vectors in registers, what kernels are compiled for.

    With `share`, the lanes that a group has of a vector; rows are broadcast from every `step`-th element.
    """

    def __init__(self, rows, nv, share=0, step=1):
        self.rows, self.nv, self.share, self.step = rows, nv, share, step
        self.name = f"tile({rows},{nv},{share},{step})"


class TileType(types.Type):
    def __init__(self, tile):
        self.tile = tile
        super().__init__(name=tile.name)


register_model(TileType)(models.OpaqueModel)


@typeof_impl.register(Tile)
def _typeof_tile(value, context):
    return TileType(value)


@unbox(TileType)
def _unbox_tile(typ, obj, context):
    return NativeValue(context.context.get_dummy_value())


def _attribute(name):
    @overload_attribute(TileType, name)
    def attribute(tile):
        value = getattr(tile.tile, name)
        return lambda tile: value


for _name in ("rows", "nv", "share", "step"):
    _attribute(_name)

#: The tiles of the gradient to the weights: rows of (tap, channel) by vectors of filters, one of which may hold
#: the filters of several groups.
WGRAD_ROWS = 12
WGRAD_TILES = {share: Tile(WGRAD_ROWS, 1, share) for share in (0, 2, 4)}
WGRAD_WIDE = Tile(ACCUMULATORS // 2, 2)

#: The tiles of pixels by vectors of channels, for a step of 1 and of 2: widths of images are multiples of 7 more
#: often than of 8.
CHANNEL_SIZES = ((7, 1), (7, 2), (14, 1), (14, 2)) if REGISTERS == 32 else ((7, 1),)
CHANNEL_TILES = {step: [Tile(rows, nv, 0, step) for rows, nv in CHANNEL_SIZES] for step in (1, 2)}

#: Up to four results have a tile of their own; more of them take that of GEMM, or a narrower one for small images.
TILES = {rows: [Tile(rows, min(ACCUMULATORS // rows, 8))] for rows in (1, 2, 3, 4)}
TILES[ROWS] = [Tile(ROWS, NV), Tile(ROWS, NV - 1)]


@intrinsic
def turn(typing, source, row, rows, count, target, step):
    """target[j, i] = source[i, j] for i < rows and j < count, at most LANES; `row` and `step` bytes apart."""

    def generate(context, builder, signature, args):
        source, row, rows, count, target, step = args
        llvm = context.get_value_type(VectorType(FLOAT))
        columns, below = _lanes(builder, _i64(0), count), _lanes(builder, _i64(0), rows)
        loaded = [
            _masked(builder, "load", builder.add(source, builder.mul(row, _i64(i))), llvm, FLOAT,
                    _rows_below(builder, columns, i, rows))
            for i in range(LANES)
        ]  # fmt: skip
        for j, value in enumerate(_transposed(builder, loaded)):
            place = builder.add(target, builder.mul(step, _i64(j)))
            _masked(builder, "store", place, llvm, FLOAT, _rows_below(builder, below, j, count), value)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 6), generate


@intrinsic(prefer_literal=True)
def spread(typing, storage, share, source, target):
    """target[c] = the lane c of each run of `share` lanes of a vector, in all lanes of its run; for c < share."""
    element = getattr(types, computed_name(storage.stored))
    vector, run = VectorType(element), share.literal_value

    def generate(context, builder, signature, args):
        _, _, source, target = args
        llvm = context.get_value_type(vector)
        value = _load(builder, source, None, llvm, element.bitwidth // 8)
        for c in range(run):
            places = [i // run * run + c for i in range(vector.lanes)]
            index = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), places)
            store = builder.store(
                builder.shuffle_vector(value, value, index), _at(builder, target, _i64(c * VECTOR_BYTES), llvm)
            )
            store.align = element.bitwidth // 8
        return context.get_dummy_value()

    return types.void(storage, share, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def outer_by_fewer(typing, tile, rows, nv, a, a_row, b):
    """tile[i, j] += a[i] * b[j] as `outer` does; the fewer of scalars and vectors stay in registers meanwhile."""
    element, vector = tile.dtype.element, tile.dtype
    m, n, nbytes = rows.literal_value, nv.literal_value, tile.dtype.element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, a, a_row, b = args
        llvm = context.get_value_type(vector)

        def scalar(i):
            return _splat(builder, _load(builder, a, builder.mul(a_row, _i64(i)), llvm.element, nbytes), llvm)

        def adjacent(j):
            return _load(builder, b, _i64(j * VECTOR_BYTES), llvm, nbytes)

        if m < n:
            few, stream, many = [scalar(i) for i in range(m)], adjacent, n
        else:
            few, stream, many = [adjacent(j) for j in range(n)], scalar, m
        for one in range(many):
            passing = stream(one)
            for other, kept in enumerate(few):
                at = other * n + one if m < n else one * n + other
                total = _multiply_add(builder, element, kept, passing, builder.extract_value(acc, at))
                acc = builder.insert_value(acc, total, at)
        return acc

    return tile(tile, rows, nv, types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def put_lanes(typing, tile, rows, nv, c, c_row, low, high, count):
    """Store the pixels [low, high) of `count` rows at c, where pixel 0 would lie; a row every `c_row` bytes."""
    vector = tile.dtype
    m, n, lanes = rows.literal_value, nv.literal_value, tile.dtype.lanes

    def generate(context, builder, signature, args):
        acc, _, _, c, c_row, low, high, count = args
        llvm = context.get_value_type(vector)
        i32 = ir.IntType(32)
        low, high = (builder.trunc(value, i32) for value in (low, high))
        masks = []
        for j in range(n):
            index = ir.Constant(ir.VectorType(i32, lanes), list(range(j * lanes, (j + 1) * lanes)))
            above = builder.icmp_signed(">=", index, _splat(builder, low, index.type))
            masks.append(builder.and_(above, builder.icmp_signed("<", index, _splat(builder, high, index.type))))
        for i in range(m):
            with builder.if_then(builder.icmp_signed("<", _i64(i), count)):
                row = builder.add(c, builder.mul(c_row, _i64(i)))
                for j in range(n):
                    place = builder.add(row, _i64(j * VECTOR_BYTES))
                    _masked(
                        builder, "store", place, llvm, vector.element, masks[j], builder.extract_value(acc, i * n + j)
                    )
        return context.get_dummy_value()

    return types.void(tile, rows, nv, *(types.int64,) * 5), generate


@intrinsic(prefer_literal=True)
def weave_row(typing, storage, step, source, source_row, target, count):
    """target[i + j * step] = source[i, j] for `step` rows, 2 or 4, `source_row` bytes apart, and j < count.

    Only the first `count` of the `step` * lanes results are stored; source rows are read as whole vectors.
    """
    element = getattr(types, computed_name(storage.stored))
    vector, ways = VectorType(element), step.literal_value

    def generate(context, builder, signature, args):
        _, _, source, source_row, target, count = args
        llvm = context.get_value_type(vector)
        i32, lanes = ir.IntType(32), vector.lanes
        parts = [
            _load(builder, builder.add(source, builder.mul(source_row, _i64(i))), None, llvm, element.bitwidth // 8)
            for i in range(ways)
        ]
        half = lanes // 2
        low = [value for i in range(half) for value in (i, lanes + i)]
        order = [ir.Constant(ir.VectorType(i32, lanes), [at + shift for at in low]) for shift in (0, half)]
        parts = [[part] for part in parts]
        while len(parts) > 1:
            middle = len(parts) // 2
            parts = [
                [builder.shuffle_vector(u, v, places) for u, v in zip(a, b, strict=True) for places in order]
                for a, b in zip(parts[:middle], parts[middle:], strict=True)
            ]
        stop = _splat(builder, builder.trunc(count, i32), ir.VectorType(i32, lanes))
        for j, value in enumerate(parts[0]):
            index = ir.Constant(stop.type, list(range(j * lanes, (j + 1) * lanes)))
            mask = builder.icmp_signed("<", index, stop)
            _masked(builder, "store", builder.add(target, _i64(j * VECTOR_BYTES)), llvm, element, mask, value)
        return context.get_dummy_value()

    return types.void(storage, step, *(types.int64,) * 4), generate

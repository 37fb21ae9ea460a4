"""A register tile as a value that Numba can hold: kernels read as Python, LLVM sees vectors.

A tile is ROWS x `nv` vectors of LANES elements. `outer` adds an outer product to it, `dot` adds
products lane by lane; a whole GEMM microkernel is

    tile = zeros(storage, ROWS, 3)
    for k in range(K):
        tile = outer(tile, ROWS, 3, a + k * a_step, a_row, b + k * b_step)
    put(tile, ROWS, 3, c, c_row)

The tile must stay inside these intrinsics: a tuple that is taken apart in Python loops runs at a
twentieth of the speed. Addresses and strides here are in bytes. Widths come from the host that the
kernel is compiled for: 64-byte vectors with AVX-512, 32 with AVX, else 16.
"""

from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, models, overload, register_model

from fastconv.kernels.numba_cpu.memory import computed_name


def _vector_bytes():
    features = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    names = features.split(",")
    if "+avx512f" in names:
        return 64
    return 32 if "+avx" in names else 16


VECTOR_BYTES = _vector_bytes()
REGISTERS = 32 if VECTOR_BYTES == 64 else 16
#: The outer-product tile: ROWS broadcast scalars by up to NV vectors, inside the register file.
ROWS, NV = (8, 3) if REGISTERS == 32 else (6, 2)
#: The dot-product tile: DOT_ROWS by DOT_COLS accumulators of one vector each.
DOT_ROWS, DOT_COLS = (6, 4) if REGISTERS == 32 else (3, 3)


def lanes(name):
    """Elements of one vector of the type that a stored dtype is computed in."""
    return VECTOR_BYTES * 8 // getattr(types, computed_name(name)).bitwidth


def width(storage):
    """`lanes` inside kernels."""
    raise NotImplementedError("only inside kernels")


@overload(width)
def _width(storage):
    count = lanes(storage.stored)
    return lambda storage: count


class VectorType(types.Type):
    """LANES elements of one dtype."""

    def __init__(self, element):
        self.element = element
        self.lanes = VECTOR_BYTES * 8 // element.bitwidth
        super().__init__(name=f"{element}x{self.lanes}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, typ):
        element = manager.lookup(typ.element).get_value_type()
        super().__init__(manager, typ, ir.VectorType(element, typ.lanes))


def _llvm(context, vector):
    return context.get_value_type(vector)


def _at(builder, address, offset, llvm):
    """A pointer `offset` bytes beyond `address`."""
    if offset is not None:
        address = builder.add(address, offset)
    return builder.inttoptr(address, llvm.as_pointer())


def _i64(value):
    return ir.Constant(ir.IntType(64), value)


def _load(builder, address, offset, llvm, align):
    value = builder.load(_at(builder, address, offset, llvm))
    value.align = align
    return value


def _splat(builder, scalar, llvm):
    undefined = ir.Constant(llvm, ir.Undefined)
    i32 = ir.IntType(32)
    first = builder.insert_element(undefined, scalar, ir.Constant(i32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(i32, llvm.count), [0] * llvm.count))


def _multiply_add(builder, element, a, b, c):
    """a * b + c: fused for floats, wrapping for integers."""
    if isinstance(element, types.Float):
        name = f"llvm.fma.v{c.type.count}f{element.bitwidth}"
        fma = builder.module.globals.get(name)
        if fma is None:
            fma = ir.Function(builder.module, ir.FunctionType(c.type, [c.type] * 3), name)
        return builder.call(fma, [a, b, c])
    return builder.add(builder.mul(a, b), c)


def _add(builder, element, a, b):
    return builder.fadd(a, b) if isinstance(element, types.Float) else builder.add(a, b)


def _tile(storage, rows, nv):
    element = getattr(types, computed_name(storage.stored))
    return types.UniTuple(VectorType(element), rows.literal_value * nv.literal_value)


@intrinsic(prefer_literal=True)
def zeros(typing, storage, rows, nv):
    """A tile of zeros."""
    tile = _tile(storage, rows, nv)

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(storage, rows, nv), generate


@intrinsic(prefer_literal=True)
def outer(typing, tile, rows, nv, a, a_row, b):
    """tile[i, j] += a[i] * b[j]: a scalar every `a_row` bytes, `nv` adjacent vectors at b."""
    element, vector = tile.dtype.element, tile.dtype
    m, n, size = rows.literal_value, nv.literal_value, tile.dtype.element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, a, a_row, b = args
        llvm = _llvm(context, vector)
        b_j = [_load(builder, b, _i64(j * VECTOR_BYTES), llvm, size) for j in range(n)]
        for i in range(m):
            scalar = _load(builder, a, builder.mul(a_row, _i64(i)), llvm.element, size)
            a_i = _splat(builder, scalar, llvm)
            for j in range(n):
                at = i * n + j
                total = _multiply_add(builder, element, a_i, b_j[j], builder.extract_value(acc, at))
                acc = builder.insert_value(acc, total, at)
        return acc

    return tile(tile, rows, nv, types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def dot(typing, tile, rows, cols, a, a_row, b, b_row):
    """tile[i, j] += a[i] * b[j], lane by lane: a vector every `a_row` bytes by one every `b_row`."""
    element, vector = tile.dtype.element, tile.dtype
    m, n, size = rows.literal_value, cols.literal_value, tile.dtype.element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, a, a_row, b, b_row = args
        llvm = _llvm(context, vector)
        b_j = [_load(builder, b, builder.mul(b_row, _i64(j)), llvm, size) for j in range(n)]
        for i in range(m):
            a_i = _load(builder, a, builder.mul(a_row, _i64(i)), llvm, size)
            for j in range(n):
                at = i * n + j
                total = _multiply_add(builder, element, a_i, b_j[j], builder.extract_value(acc, at))
                acc = builder.insert_value(acc, total, at)
        return acc

    return tile(tile, rows, cols, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def get(typing, storage, rows, nv, c, c_row):
    """The tile at c: a row of `nv` vectors every `c_row` bytes."""
    tile = _tile(storage, rows, nv)
    m, n, size = rows.literal_value, nv.literal_value, tile.dtype.element.bitwidth // 8

    def generate(context, builder, signature, args):
        _, _, _, c, c_row = args
        llvm = _llvm(context, tile.dtype)
        acc = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for i in range(m):
            row = builder.add(c, builder.mul(c_row, _i64(i)))
            for j in range(n):
                value = _load(builder, row, _i64(j * VECTOR_BYTES), llvm, size)
                acc = builder.insert_value(acc, value, i * n + j)
        return acc

    return tile(storage, rows, nv, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def add_from(typing, tile, rows, nv, c, c_row):
    """tile += the tile at c, a row of `nv` vectors every `c_row` bytes."""
    element = tile.dtype.element
    m, n, size = rows.literal_value, nv.literal_value, element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, c, c_row = args
        llvm = _llvm(context, tile.dtype)
        for i in range(m):
            row = builder.add(c, builder.mul(c_row, _i64(i)))
            for j in range(n):
                at = i * n + j
                value = _load(builder, row, _i64(j * VECTOR_BYTES), llvm, size)
                acc = builder.insert_value(acc, _add(builder, element, builder.extract_value(acc, at), value), at)
        return acc

    return tile(tile, rows, nv, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def put(typing, tile, rows, nv, c, c_row):
    """Store the tile at c, a row of `nv` vectors every `c_row` bytes."""
    m, n, size = rows.literal_value, nv.literal_value, tile.dtype.element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, c, c_row = args
        llvm = _llvm(context, tile.dtype)
        for i in range(m):
            row = builder.add(c, builder.mul(c_row, _i64(i)))
            for j in range(n):
                value = builder.extract_value(acc, i * n + j)
                store = builder.store(value, _at(builder, row, _i64(j * VECTOR_BYTES), llvm))
                store.align = size
        return context.get_dummy_value()

    return types.void(tile, rows, nv, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def add_sums(typing, tile, rows, cols, c, c_row):
    """c[i, j] += the sum of the lanes of tile[i, j], in a fixed order; a row every `c_row` bytes."""
    element = tile.dtype.element
    m, n, size = rows.literal_value, cols.literal_value, element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, c, c_row = args
        scalar = _llvm(context, tile.dtype).element
        for i in range(m):
            row = builder.add(c, builder.mul(c_row, _i64(i)))
            for j in range(n):
                value = _halve(builder, element, builder.extract_value(acc, i * n + j))
                pointer = _at(builder, row, _i64(j * size), scalar)
                store = builder.store(_add(builder, element, builder.load(pointer), value), pointer)
                store.align = size
        return context.get_dummy_value()

    return types.void(tile, rows, cols, types.int64, types.int64), generate


def _halve(builder, element, value):
    """Add the upper half of a vector to its lower half until one lane is left."""
    i32 = ir.IntType(32)
    count = value.type.count
    while count > 1:
        count //= 2
        parts = [
            builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(i32, count), list(range(at, at + count))))
            for at in (0, count)
        ]
        value = _add(builder, element, *parts)
    return builder.extract_element(value, ir.Constant(i32, 0))


@intrinsic
def prefetch(typing, address):
    """Ask for the cache line at an address, which may be anywhere."""

    def generate(context, builder, signature, args):
        i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32]), name)
        read, near, data = ir.Constant(i32, 0), ir.Constant(i32, 3), ir.Constant(i32, 1)
        builder.call(function, [builder.inttoptr(args[0], pointer), read, near, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


# ---------------------------------------------------------------- the tile's epilogue, and row copies


@intrinsic(prefer_literal=True)
def add_to_rows(typing, tile, rows, nv, bias):
    """tile[i, :] += bias[i], scalars that lie next to each other."""
    element = tile.dtype.element
    m, n, size = rows.literal_value, nv.literal_value, element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, bias = args
        llvm = _llvm(context, tile.dtype)
        for i in range(m):
            value = _splat(builder, _load(builder, bias, _i64(i * size), llvm.element, size), llvm)
            for at in range(i * n, i * n + n):
                acc = builder.insert_value(acc, _add(builder, element, builder.extract_value(acc, at), value), at)
        return acc

    return tile(tile, rows, nv, types.int64), generate


@intrinsic(prefer_literal=True)
def add_to_columns(typing, tile, rows, nv, bias):
    """tile[:, j] += bias[j], adjacent vectors."""
    element, vector = tile.dtype.element, tile.dtype
    m, n, size = rows.literal_value, nv.literal_value, element.bitwidth // 8

    def generate(context, builder, signature, args):
        acc, _, _, bias = args
        llvm = _llvm(context, vector)
        for j in range(n):
            value = _load(builder, bias, _i64(j * VECTOR_BYTES), llvm, size)
            for at in range(j, m * n, n):
                acc = builder.insert_value(acc, _add(builder, element, builder.extract_value(acc, at), value), at)
        return acc

    return tile(tile, rows, nv, types.int64), generate


@intrinsic(prefer_literal=True)
def relu(typing, tile, rows, nv):
    """max(tile, 0); a NaN stays one."""
    element = tile.dtype.element

    def generate(context, builder, signature, args):
        acc = args[0]
        zero = ir.Constant(_llvm(context, tile.dtype), None)
        for at in range(rows.literal_value * nv.literal_value):
            value = builder.extract_value(acc, at)
            compare = builder.fcmp_ordered if isinstance(element, types.Float) else builder.icmp_signed
            acc = builder.insert_value(acc, builder.select(compare("<=", value, zero), zero, value), at)
        return acc

    return tile(tile, rows, nv), generate


@intrinsic
def move(typing, storage, source, target, low, high, count):
    """target[:count] = source[:count] inside [low, high), 0 outside, which is not read; count <= a vector's lanes.

    For dtypes that are stored as they are computed in; addresses of adjacent elements.
    """
    element = getattr(types, computed_name(storage.stored))
    vector = VectorType(element)

    def generate(context, builder, signature, args):
        _, source, target, low, high, count = args
        llvm = _llvm(context, vector)
        i32 = ir.IntType(32)
        index = ir.Constant(ir.VectorType(i32, vector.lanes), list(range(vector.lanes)))
        lane = [_splat(builder, builder.trunc(value, i32), index.type) for value in (low, high, count)]
        inside = builder.and_(builder.icmp_signed(">=", index, lane[0]), builder.icmp_signed("<", index, lane[1]))
        value = _masked(builder, "load", source, llvm, element, inside)
        _masked(builder, "store", target, llvm, element, builder.icmp_signed("<", index, lane[2]), value)
        return context.get_dummy_value()

    return types.void(storage, *(types.int64,) * 5), generate


@intrinsic(prefer_literal=True)
def move_every(typing, storage, step, source, target, low, high, count):
    """`move` of every `step`-th element, 2 or 4: target[:count] = source[: count * step : step] inside [low, high)."""
    element = getattr(types, computed_name(storage.stored))
    vector, step_by = VectorType(element), step.literal_value

    def generate(context, builder, signature, args):
        _, _, source, target, low, high, count = args
        llvm = _llvm(context, vector)
        i32, lanes = ir.IntType(32), vector.lanes
        low, high, count = (builder.trunc(value, i32) for value in (low, high, count))
        scale = ir.Constant(i32, step_by)
        first = _splat(builder, builder.mul(low, scale), ir.VectorType(i32, lanes))
        last = _splat(builder, builder.mul(builder.sub(high, ir.Constant(i32, 1)), scale), first.type)
        parts = []
        for part in range(step_by):
            index = ir.Constant(first.type, list(range(part * lanes, (part + 1) * lanes)))
            inside = builder.and_(builder.icmp_signed(">=", index, first), builder.icmp_signed("<=", index, last))
            address = builder.add(source, _i64(part * VECTOR_BYTES))
            parts.append(_masked(builder, "load", address, llvm, element, inside))
        while len(parts) > 1:  # keep the even lanes of each pair, until every `step`-th is left
            even = ir.Constant(first.type, list(range(0, 2 * lanes, 2)))
            parts = [builder.shuffle_vector(a, b, even) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        lane = ir.Constant(first.type, list(range(lanes)))
        within = builder.icmp_signed("<", lane, _splat(builder, count, first.type))
        _masked(builder, "store", target, llvm, element, within, parts[0])
        return context.get_dummy_value()

    return types.void(storage, step, *(types.int64,) * 5), generate


def _masked(builder, what, address, llvm, element, mask, value=None):
    """llvm.masked.load (zeros where the mask is off) or llvm.masked.store."""
    i32 = ir.IntType(32)
    kind = f"v{llvm.count}{'f' if isinstance(element, types.Float) else 'i'}{element.bitwidth}"
    name = f"llvm.masked.{what}.{kind}.p0"
    pointer = builder.inttoptr(address, llvm.as_pointer())
    align = ir.Constant(i32, element.bitwidth // 8)
    args = [pointer, align, mask, ir.Constant(llvm, None)] if what == "load" else [value, pointer, align, mask]
    result = llvm if what == "load" else ir.VoidType()
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args)

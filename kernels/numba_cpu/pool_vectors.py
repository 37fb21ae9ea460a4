"""Vectors for pooling: one register as a value, with a count where a row ends, and the shuffles of stride 2.

`S` is a storage that is computed in; addresses are in bytes. `unzip` splits a row into its even and odd
places, of which LLVM would make gathers or scalar loops.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from fastconv.kernels.numba_cpu.memory import computed_name, size, zero
from fastconv.kernels.numba_cpu.pool import lowest, number
from fastconv.kernels.numba_cpu.simd import VectorType, _halve, _load, _masked, _splat, width


def _vector(storage):
    return VectorType(getattr(types, computed_name(storage.stored)))


def _lanes_below(builder, count, lanes):
    """The mask of the first `count` lanes."""
    i32 = ir.IntType(32)
    index = ir.Constant(ir.VectorType(i32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", index, _splat(builder, builder.trunc(count, i32), index.type))


def _lanes_in(builder, low, high, lanes):
    """The mask of the lanes [low, high)."""
    i32 = ir.IntType(32)
    index = ir.Constant(ir.VectorType(i32, lanes), list(range(lanes)))
    low, high = (_splat(builder, builder.trunc(bound, i32), index.type) for bound in (low, high))
    return builder.and_(builder.icmp_signed(">=", index, low), builder.icmp_signed("<", index, high))


def lanes_of(vector):
    """How many lanes a vector has."""
    raise NotImplementedError("only inside kernels")


@overload(lanes_of)
def _lanes_of(vector):
    count = vector.lanes
    return lambda vector: count


@intrinsic
def whole(typing, storage, address):
    """A vector from memory."""
    vector = _vector(storage)

    def generate(context, builder, signature, args):
        return _load(builder, args[1], None, context.get_value_type(vector), vector.element.bitwidth // 8)

    return vector(storage, types.int64), generate


@intrinsic
def part(typing, storage, address, count):
    """The first `count` lanes from memory, the others 0 and not read."""
    vector = _vector(storage)

    def generate(context, builder, signature, args):
        mask = _lanes_below(builder, args[2], vector.lanes)
        return _masked(builder, "load", args[1], context.get_value_type(vector), vector.element, mask)

    return vector(storage, types.int64, types.int64), generate


@intrinsic
def first_lanes(typing, vector, count, beyond):
    """The first `count` lanes, and those of another vector beyond them."""

    def generate(context, builder, signature, args):
        mask = _lanes_below(builder, args[1], vector.lanes)
        return builder.select(mask, args[0], args[2])

    return vector(vector, types.int64, vector), generate


@intrinsic
def _inside(typing, storage, address, low, high, beyond):
    vector = _vector(storage)

    def generate(context, builder, signature, args):
        beyond, mask = args[4], _lanes_in(builder, args[2], args[3], vector.lanes)
        value = _masked(builder, "load", args[1], beyond.type, vector.element, mask)
        return builder.select(mask, value, beyond)

    return vector(storage, types.int64, types.int64, types.int64, vector), generate


@njit(nogil=True, forceinline=True)
def between(S, address, low, high, beyond):
    """The lanes [low, high) from memory; the others are those of `beyond` and not read."""
    if low <= 0 and high >= width(S):
        return whole(S, address)
    return _inside(S, address, low, high, beyond)


@intrinsic
def keep(typing, vector, address):
    """A vector to memory."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[1], args[0].type.as_pointer())
        builder.store(args[0], pointer).align = vector.element.bitwidth // 8
        return context.get_dummy_value()

    return types.void(vector, types.int64), generate


@intrinsic
def give(typing, vector, address, count):
    """The first `count` lanes to memory."""

    def generate(context, builder, signature, args):
        value, address, count = args
        mask = _lanes_below(builder, count, vector.lanes)
        _masked(builder, "store", address, value.type, vector.element, mask, value)
        return context.get_dummy_value()

    return types.void(vector, types.int64, types.int64), generate


@intrinsic
def _give_inside(typing, vector, address, low, high):
    def generate(context, builder, signature, args):
        value, address = args[:2]
        mask = _lanes_in(builder, args[2], args[3], vector.lanes)
        _masked(builder, "store", address, value.type, vector.element, mask, value)
        return context.get_dummy_value()

    return types.void(vector, types.int64, types.int64, types.int64), generate


@njit(nogil=True, forceinline=True)
def give_lanes(vector, address, low, high):
    """The lanes [low, high) to memory."""
    if low <= 0 and high >= lanes_of(vector):
        keep(vector, address)
    else:
        _give_inside(vector, address, low, high)


# ---------------------------------------------------------------- numbers of taps, in bytes


@intrinsic
def _numbers_inside(typing, storage, address, low, high):
    vector = _vector(storage)

    def generate(context, builder, signature, args):
        byte, llvm = types.uint8, context.get_value_type(vector)
        narrow = ir.VectorType(ir.IntType(8), vector.lanes)
        mask = _lanes_in(builder, args[2], args[3], vector.lanes)
        return builder.zext(_masked(builder, "load", args[1], narrow, byte, mask), llvm)

    return vector(storage, types.int64, types.int64, types.int64), generate


@intrinsic
def _all_numbers(typing, storage, address):
    """A vector of integers from bytes in memory."""
    vector = _vector(storage)

    def generate(context, builder, signature, args):
        value = _load(builder, args[1], None, ir.VectorType(ir.IntType(8), vector.lanes), 1)
        return builder.zext(value, context.get_value_type(vector))

    return vector(storage, types.int64), generate


@njit(nogil=True, forceinline=True)
def numbers(L, address, low, high):
    """The bytes of the lanes [low, high) as a vector of integers; the others are 0 and not read."""
    if low <= 0 and high >= width(L):
        return _all_numbers(L, address)
    return _numbers_inside(L, address, low, high)


@intrinsic
def _give_bytes(typing, vector, address, count):
    def generate(context, builder, signature, args):
        value, address, count = args
        if isinstance(vector.element, types.Float):
            value = builder.fptosi(value, ir.VectorType(ir.IntType(32), vector.lanes))
        value = builder.trunc(value, ir.VectorType(ir.IntType(8), vector.lanes))
        _masked(builder, "store", address, value.type, types.uint8, _lanes_below(builder, count, vector.lanes), value)
        return context.get_dummy_value()

    return types.void(vector, types.int64, types.int64), generate


@intrinsic
def _keep_bytes(typing, vector, address):
    def generate(context, builder, signature, args):
        value, address = args
        if isinstance(vector.element, types.Float):
            value = builder.fptosi(value, ir.VectorType(ir.IntType(32), vector.lanes))
        value = builder.trunc(value, ir.VectorType(ir.IntType(8), vector.lanes))
        builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(vector, types.int64), generate


@njit(nogil=True, forceinline=True)
def give_numbers(vector, address, count):
    """The first `count` lanes to memory as bytes."""
    if count >= lanes_of(vector):
        _keep_bytes(vector, address)
    else:
        _give_bytes(vector, address, count)


@intrinsic
def give_indices(typing, vector, address, count, start, stride):
    """The first `count` lanes to memory as int64, `start` + lane * `stride` added."""

    def generate(context, builder, signature, args):
        value, address, count, start, stride = args
        wide = ir.VectorType(ir.IntType(64), vector.lanes)
        if isinstance(vector.element, types.Float):
            value = builder.fptosi(value, ir.VectorType(ir.IntType(32), vector.lanes))
        value = builder.sext(value, wide) if value.type != wide else value
        lane = ir.Constant(wide, list(range(vector.lanes)))
        place = builder.add(_splat(builder, start, wide), builder.mul(lane, _splat(builder, stride, wide)))
        mask = _lanes_below(builder, count, vector.lanes)
        _masked(builder, "store", address, wide, types.int64, mask, builder.add(value, place))
        return context.get_dummy_value()

    return types.void(vector, *(types.int64,) * 4), generate


@intrinsic
def splat(typing, storage, value):
    vector = _vector(storage)

    def generate(context, builder, signature, args):
        return _splat(builder, args[1], context.get_value_type(vector))

    return vector(storage, vector.element), generate


def _greater(builder, element, a, b):
    if isinstance(element, types.Float):
        return builder.fcmp_ordered(">", a, b)
    return builder.icmp_signed(">", a, b) if element.signed else builder.icmp_unsigned(">", a, b)


@intrinsic
def largest(typing, a, b):
    """max in which a NaN is the largest."""

    def generate(context, builder, signature, args):
        if not isinstance(a.element, types.Float):
            return builder.select(_greater(builder, a.element, *args), *args)
        llvm = args[0].type
        name = f"llvm.maximum.v{a.lanes}f{a.element.bitwidth}"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(llvm, [llvm, llvm]), name)
        return builder.call(function, args, fastmath=("nsz",))  # either zero may stay

    return a(a, b), generate


@intrinsic
def newer(typing, value, kept, a, b):
    """Per lane, a where `value` replaces the maximum `kept`, else b: ties go to the first, and so do NaNs."""

    def generate(context, builder, signature, args):
        value_, kept_, a_, b_ = args
        wins = _greater(builder, value.element, value_, kept_)
        if isinstance(value.element, types.Float):
            more = builder.fcmp_unordered(">", value_, kept_)
            wins = builder.and_(more, builder.fcmp_ordered("ord", kept_, kept_))
        return builder.select(wins, a_, b_)

    return value(value, value, value, value), generate


@intrinsic
def matching(typing, label, mine, value):
    """Per lane, `value` where two labels agree, else 0; the labels may be of another type of that width."""
    if label.lanes != value.lanes:
        return None

    def generate(context, builder, signature, args):
        label_, mine_, value_ = args
        compare = builder.fcmp_ordered if isinstance(label.element, types.Float) else builder.icmp_signed
        return builder.select(compare("==", label_, mine_), value_, ir.Constant(value_.type, None))

    return value(label, label, value), generate


@intrinsic
def plus(typing, a, b):
    def generate(context, builder, signature, args):
        return (builder.fadd if isinstance(a.element, types.Float) else builder.add)(*args)

    return a(a, b), generate


@intrinsic
def times(typing, a, b):
    def generate(context, builder, signature, args):
        return builder.fmul(*args)

    return a(a, b) if isinstance(a.element, types.Float) else None, generate


@intrinsic
def over(typing, a, b):
    def generate(context, builder, signature, args):
        return builder.fdiv(*args)

    return a(a, b) if isinstance(a.element, types.Float) else None, generate


@intrinsic
def lane_sum(typing, a):
    """The sum of all lanes, in a fixed order."""

    def generate(context, builder, signature, args):
        return _halve(builder, a.element, args[0])

    return a.element(a), generate


def join(kind, a, b):
    """The fold of two vectors."""
    raise NotImplementedError("only inside kernels")


@overload(join)
def _join(kind, a, b):
    if kind.kind == "max":
        return lambda kind, a, b: largest(a, b)
    return lambda kind, a, b: plus(a, b)


def nothing(kind, S):
    """What a fold begins with."""
    raise NotImplementedError("only inside kernels")


@overload(nothing)
def _nothing(kind, S):
    if kind.kind == "max":
        return lambda kind, S: splat(S, lowest(S))
    return lambda kind, S: splat(S, zero(S))


def finish(kind, S, total, divisor):
    """What becomes of a fold: a sum is divided."""
    raise NotImplementedError("only inside kernels")


@overload(finish)
def _finish(kind, S, total, divisor):
    if kind.kind == "max":
        return lambda kind, S, total, divisor: total
    return lambda kind, S, total, divisor: over(total, splat(S, number(S, divisor)))


def same(X, S):
    """Whether values lie in memory as they are computed in."""
    raise NotImplementedError("only inside kernels")


@overload(same)
def _same(X, S):
    alike = X.stored == S.stored
    return lambda X, S: alike


def _shuffle(places):
    """An intrinsic that picks lanes of two vectors that lie one behind the other."""

    @intrinsic
    def pick(typing, a, b):
        def generate(context, builder, signature, args):
            mask = ir.Constant(ir.VectorType(ir.IntType(32), a.lanes), places(a.lanes))
            return builder.shuffle_vector(args[0], args[1], mask)

        return a(a, b), generate

    return pick


evens = _shuffle(lambda n: list(range(0, 2 * n, 2)))
odds = _shuffle(lambda n: list(range(1, 2 * n, 2)))
lower = _shuffle(lambda n: [i // 2 + n * (i % 2) for i in range(n)])
after = _shuffle(lambda n: list(range(1, n + 1)))
upper = _shuffle(lambda n: [(n + i) // 2 + n * (i % 2) for i in range(n)])


# ---------------------------------------------------------------- rows


@njit(nogil=True, forceinline=True)
def copy(S, source, n, target):
    step = width(S) * size(S)
    for _ in range(n // width(S)):
        keep(whole(S, source), target)
        source, target = source + step, target + step
    rest = n % width(S)
    if rest:
        give(part(S, source, rest), target, rest)


@njit(nogil=True, forceinline=True)
def copy_over(S, source, n, target, beyond):
    """`copy` in whole vectors, which later loads need not wait for; `beyond` follows the last element."""
    step = width(S) * size(S)
    for _ in range(n // width(S)):
        keep(whole(S, source), target)
        source, target = source + step, target + step
    keep(first_lanes(part(S, source, n % width(S)), n % width(S), beyond), target)

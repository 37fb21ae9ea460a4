"""The transforms of Winograd's minimal filtering, F(m x m, r x r), on vectors of 32-bit floats.

One axis of a filter g[r] over a piece d[m + r - 1] of the input gives m outputs with n = m + r - 1 products,

    y = A^T ((G g) * (B^T d)),

and two axes apply each matrix to the columns and then to the rows (A. Lavin, S. Gray, Fast Algorithms for
Convolutional Neural Networks, 2016). The matrices evaluate polynomials at n - 1 points and infinity (A. Toom,
S. Cook): 0, 1, -1 for n = 4, and 0 and the four of +-2^(1/2), +-2^(-1/2) for n = 6, which round off a third of
what 0, +-1, +-2 do. B depends on n alone, so one transform of the input serves every m + r - 1 = 6.

Lanes hold channels. Here are the transforms, and the transpositions by which rows of pixels become vectors
of channels and back.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, intrinsic, models, overload_attribute, register_model, typeof_impl, unbox

from fastconv.kernels.numba_cpu.simd import (
    VECTOR_BYTES,
    VectorType,
    _at,
    _i64,
    _load,
    _masked,
    _multiply_add,
    _splat,
)

FLOAT = types.float32
LANES = VECTOR_BYTES // 4
POINTS = {4: (0.0, 1.0, -1.0), 6: (0.0, 2**0.5, -(2**0.5), 0.5**0.5, -(0.5**0.5))}


# ---------------------------------------------------------------- the matrices


def matrices(m, r):
    """(A^T [m, n], G [n, r], B^T [n, n]) of F(m, r) in float64."""
    n = m + r - 1
    points = np.array(POINTS[n])
    a, g, b = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        a[:, i] = point ** np.arange(m)
        g[i] = point ** np.arange(r) / np.prod(point - others)
        b[i, :-1] = np.poly(others)[::-1]  # the coefficients of the product of (z - other)
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    return a, g, b


# ---------------------------------------------------------------- the form as a type


class Form:
    """F(m x m, r x r), what kernels are compiled for: tiles are m cells apart and read n.

    Beside the n^2 planes that it is transformed to, a tile and a filter have the sum of the squares of their cells.
    """

    def __init__(self, m, r):
        self.m, self.r, self.n = m, r, m + r - 1
        self.planes = self.n**2 + 1
        self.name = f"F({m},{r})"
        self.to_outputs, self.to_filter, self.to_input = matrices(m, r)


class GradientForm(Form):
    """The tiles of dy that go with those of F(m x m, r x r): m x m cells, which act as the filter of F(r, m)."""

    def __init__(self, m, r):
        self.m, self.r, self.n = m, r, m
        self.planes = (m + r - 1) ** 2 + 1
        self.name = f"dF({m},{r})"
        self.to_outputs, self.to_input, _ = matrices(r, m)


class FormType(types.Type):
    def __init__(self, form):
        self.form = form
        super().__init__(name=form.name)


register_model(FormType)(models.OpaqueModel)


@typeof_impl.register(Form)
def _typeof_form(value, context):
    return FormType(value)


@unbox(FormType)
def _unbox_form(typ, obj, context):
    return NativeValue(context.context.get_dummy_value())


@lower_constant(FormType)
def _constant(context, builder, typ, value):
    return context.get_dummy_value()


def _attribute(name):
    @overload_attribute(FormType, name)
    def attribute(form):
        value = getattr(form.form, name)
        return lambda form: value


for _name in ("m", "r", "n", "planes"):
    _attribute(_name)


FORMS = {(m, r): Form(m, r) for m, r in ((2, 3), (4, 3), (2, 5))}
GRADIENT_FORMS = {(m, r): GradientForm(m, r) for m, r in ((4, 3), (2, 5))}


# ---------------------------------------------------------------- sums of vectors


def _scaled(builder, value, factor):
    return builder.fmul(value, ir.Constant(value.type, [float(np.float32(factor))] * value.type.count))


def _plus_scaled(builder, total, value, factor):
    constant = ir.Constant(value.type, [float(np.float32(factor))] * value.type.count)
    return _multiply_add(builder, FLOAT, value, constant, total)


def _sum(builder, coefficients, values):
    """The sum of coefficient * value; one whose coefficient is 1 comes first and costs nothing."""
    terms = sorted(
        ((k, value) for k, value in zip(coefficients, values, strict=True) if abs(k) > 1e-12),
        key=lambda term: abs(term[0] - 1.0) > 1e-12,
    )
    (k, value), *rest = terms
    total = value if abs(k - 1.0) <= 1e-12 else _scaled(builder, value, k)
    for k, value in rest:
        total = _plus_scaled(builder, total, value, k)
    return total


def _evaluate(builder, matrix, values):
    """B^T or G times values: the rows of +-p share their even and their odd terms."""
    n = len(matrix)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    results = [_sum(builder, matrix[0], values)]
    for i in range(1, n - 1, 2):
        factor = matrix[i][odd][-1] if abs(matrix[i][odd][-1]) > 1e-12 else matrix[i][1]
        total = _sum(builder, matrix[i][even], values[even])
        part = _sum(builder, matrix[i][odd] / factor, values[odd])
        results += [_plus_scaled(builder, total, part, factor), _plus_scaled(builder, total, part, -factor)]
    return [*results, _sum(builder, matrix[-1], values)]


def _interpolate(builder, matrix, values):
    """A^T times values: those of +-p enter by their sum in even rows, by their difference in odd ones."""
    n = len(values)
    pairs = [(values[i], values[i + 1]) for i in range(1, n - 1, 2)]
    sums = [builder.fadd(a, b) for a, b in pairs]
    differences = [builder.fsub(a, b) for a, b in pairs]
    columns = [0, *range(1, n - 1, 2), n - 1]
    return [
        _sum(builder, row[columns], [values[0], *(differences if i % 2 else sums), values[-1]])
        for i, row in enumerate(matrix)
    ]


def _squares(builder, values):
    total = builder.fmul(values[0], values[0])
    for value in values[1:]:
        total = _multiply_add(builder, FLOAT, value, value, total)
    return total


def _both_axes(builder, apply, matrix, grid):
    """A matrix applied to the columns and then to the rows of a grid of vectors."""
    columns = [apply(builder, matrix, [row[j] for row in grid]) for j in range(len(grid[0]))]
    return [apply(builder, matrix, [column[i] for column in columns]) for i in range(len(columns[0]))]


def _grid(builder, llvm, rows, columns, source, row, column):
    return [
        [
            _load(builder, builder.add(source, builder.mul(row, _i64(i))), builder.mul(column, _i64(j)), llvm, 4)
            for j in range(columns)
        ]
        for i in range(rows)
    ]


def _put(builder, value, address, offset):
    builder.store(value, _at(builder, address, offset, value.type)).align = 4


# ---------------------------------------------------------------- the transforms


def _forward(which):
    """B^T d B or G g G^T of cells `row` and `column` bytes apart, and their squares, to planes `plane` bytes apart."""

    @intrinsic
    def transform(typing, form, source, row, column, target, plane):
        matrix = getattr(form.form, which)

        def generate(context, builder, signature, args):
            _, source, row, column, target, plane = args
            llvm = context.get_value_type(VectorType(FLOAT))
            grid = _grid(builder, llvm, matrix.shape[1], matrix.shape[1], source, row, column)
            planes = [value for line in _both_axes(builder, _evaluate, matrix, grid) for value in line]
            planes.append(_squares(builder, [value for line in grid for value in line]))
            for q, value in enumerate(planes):
                _put(builder, value, target, builder.mul(plane, _i64(q)))
            return context.get_dummy_value()

        return types.void(form, *(types.int64,) * 5), generate

    return transform


transform_filter, transform_input = _forward("to_filter"), _forward("to_input")


def _bits(builder, mask):
    return builder.zext(builder.bitcast(mask, ir.IntType(LANES)), ir.IntType(64))


def _results(builder, form, llvm, source, plane):
    """A^T m A of planes `plane` bytes apart as a grid, and the plane of squares."""
    n = form.to_outputs.shape[1]
    *values, size = (_load(builder, source, builder.mul(plane, _i64(q)), llvm, 4) for q in range(n * n + 1))
    grid = [values[i : i + n] for i in range(0, n * n, n)]
    return _both_axes(builder, _interpolate, form.to_outputs, grid), size


def _largest(builder, values):
    largest, *rest = values
    for value in rest:
        largest = builder.select(builder.fcmp_ordered(">", value, largest), value, largest)
    return largest


def _doubtful(builder, grid, squares, size, least):
    """The lanes, as bits, whose largest square is below `least` times `size`, or where a value is not finite."""
    llvm = size.type
    check = ir.Constant(llvm, None)
    for value in (value for line in grid for value in line):
        check = _multiply_add(builder, FLOAT, value, ir.Constant(llvm, None), check)  # infinity times 0 is NaN too
    largest = builder.fadd(_largest(builder, squares), check)
    enough = builder.fcmp_ordered(">=", largest, builder.fmul(size, _splat(builder, least, llvm)))
    return _bits(builder, builder.not_(enough))


@intrinsic
def transform_output(typing, form, source, plane, least, rows, columns, bias, floor, target, row, column):
    """A^T m A of planes `plane` bytes apart, plus a vector of biases, raised to `floor`, to m x m cells.

    Returns the lanes, as bits, in which none of the first `rows` x `columns` results has a square of `least` times
    the sum of squares, or one is no finite number.
    """
    chosen = form.form

    def generate(context, builder, signature, args):
        _, source, plane, least, rows, columns, bias, floor, target, row, column = args
        llvm = context.get_value_type(VectorType(FLOAT))
        grid, size = _results(builder, chosen, llvm, source, plane)

        def inside(count):
            """Per row or column, 1 where it is one of `count`, else 0."""
            kept = (builder.icmp_signed("<", _i64(i), count) for i in range(chosen.m))
            return [_splat(builder, builder.uitofp(one, llvm.element), llvm) for one in kept]

        keep_row, keep_column = inside(rows), inside(columns)
        squares = []
        for line, kept in zip(grid, keep_row, strict=True):
            of_line = [
                builder.fmul(builder.fmul(value, value), one) for value, one in zip(line, keep_column, strict=True)
            ]
            squares.append(builder.fmul(_largest(builder, of_line), kept))
        bias, floor = _load(builder, bias, None, llvm, 4), _splat(builder, floor, llvm)
        for i, line in enumerate(grid):
            for j, value in enumerate(line):
                value = builder.fadd(value, bias)
                value = builder.select(builder.fcmp_ordered("<=", value, floor), floor, value)
                at = builder.add(builder.mul(row, _i64(i)), builder.mul(column, _i64(j)))
                _put(builder, value, target, at)
        return _doubtful(builder, grid, squares, size, least)

    return types.int64(form, *(types.int64,) * 2, FLOAT, *(types.int64,) * 3, FLOAT, *(types.int64,) * 3), generate


@intrinsic
def transform_gradient(typing, form, source, plane, least, target):
    """A^T m A of planes `plane` bytes apart, to adjacent vectors; returns lanes as `transform_output` does."""
    chosen = form.form

    def generate(context, builder, signature, args):
        _, source, plane, least, target = args
        grid, size = _results(builder, chosen, context.get_value_type(VectorType(FLOAT)), source, plane)
        results = [value for line in grid for value in line]
        for t, value in enumerate(results):
            _put(builder, value, target, _i64(t * VECTOR_BYTES))
        return _doubtful(builder, grid, [builder.fmul(value, value) for value in results], size, least)

    return types.int64(form, types.int64, types.int64, FLOAT, types.int64), generate


# ---------------------------------------------------------------- rows of pixels to vectors of channels, and back


def _transposed(builder, rows):
    """A square of LANES vectors, transposed by exchanging halves, quarters, ..."""
    i32 = ir.IntType(32)
    rows = list(rows)
    step = LANES // 2
    while step:
        low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
        high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
        for i in range(LANES):
            if not i & step:
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = (
                    builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(i32, LANES), index)) for index in (low, high)
                )
        step //= 2
    return rows


def _lanes(builder, low, high):
    """The mask of the lanes in [low, high)."""
    i32 = ir.IntType(32)
    index = ir.Constant(ir.VectorType(i32, LANES), list(range(LANES)))
    low, high = (_splat(builder, builder.trunc(value, i32), index.type) for value in (low, high))
    return builder.and_(builder.icmp_signed(">=", index, low), builder.icmp_signed("<", index, high))


def _rows_below(builder, mask, row, rows):
    return builder.select(builder.icmp_signed("<", _i64(row), rows), mask, ir.Constant(mask.type, None))


@intrinsic
def turn_in(typing, source, row, rows, low, high, target, step):
    """LANES vectors `step` bytes apart: columns of `rows` rows `row` bytes apart, 0 outside [low, high), not read."""

    def generate(context, builder, signature, args):
        source, row, rows, low, high, target, step = args
        llvm = context.get_value_type(VectorType(FLOAT))
        mask = _lanes(builder, low, high)
        loaded = [
            _masked(builder, "load", builder.add(source, builder.mul(row, _i64(i))), llvm, FLOAT,
                    _rows_below(builder, mask, i, rows))
            for i in range(LANES)
        ]  # fmt: skip
        for j, value in enumerate(_transposed(builder, loaded)):
            _put(builder, value, target, builder.mul(step, _i64(j)))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 7), generate


@intrinsic
def turn_out(typing, source, target, row, rows, count):
    """The lanes of `count` adjacent vectors as `rows` rows of `count` elements, `row` bytes apart."""

    def generate(context, builder, signature, args):
        source, target, row, rows, count = args
        llvm = context.get_value_type(VectorType(FLOAT))
        mask = _lanes(builder, _i64(0), count)
        loaded = [_load(builder, source, _i64(j * VECTOR_BYTES), llvm, 4) for j in range(LANES)]
        for i, value in enumerate(_transposed(builder, loaded)):
            address = builder.add(target, builder.mul(row, _i64(i)))
            _masked(builder, "store", address, llvm, FLOAT, _rows_below(builder, mask, i, rows), value)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 5), generate

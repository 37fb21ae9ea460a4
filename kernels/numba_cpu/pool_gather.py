"""The gradient of max pooling with lanes along W, gathered along the taps or the indices of its maxima.

dx[n, c, p * stride - pad + t] += dy[n, c, p], where t is the tap of p's maximum

for dense windows that step by 1 or 2 along W. A task is a run of blocks, `rows` rows of dx along A of one plane;
nothing is shared, and every cell has one order of sums. The rows of outputs that reach a block lie on lines in
scratch: dy on one, the number of each output's tap on another, and on both sides places that nothing comes from, so
that no vector of a line needs a mask. Steps of 2 give even and odd taps to even and odd places of a row.

`reaches` holds per axis and cell the first output that meets it, how many do, and by which tap the first does;
`tables` and the geometry `g` are those of pool_rows.py, with the length of a line and the places before its first
output at last. Taps are numbered in row-major order. An index may be -1, for none; one that is no cell of its window
is not followed, and sets status[0].
"""

import numpy as np
from llvmlite import ir
from numba import get_thread_id, njit, prange, types
from numba.extending import intrinsic, overload

from fastconv.kernels.numba_cpu.memory import STORAGE, load, size, store, zero
from fastconv.kernels.numba_cpu.pool import Kind, number
from fastconv.kernels.numba_cpu.pool_rows import block_after, block_of, layout_of, room, spread
from fastconv.kernels.numba_cpu.pool_vectors import (
    _lanes_below,
    _vector,
    copy_over,
    first_lanes,
    give_lanes,
    keep,
    lower,
    matching,
    numbers,
    plus,
    same,
    splat,
    upper,
    whole,
)
from fastconv.kernels.numba_cpu.simd import _masked, _splat, width

INDEX = STORAGE["int64"]
NONE, FOREIGN = -1, -2  # labels that are the number of no tap: of no maximum, and of a wrong index
NOWHERE, FAR = -(2**31), 2**31 - 1  # offsets from a window's start: of no maximum, and of more than fits

#: Windows of 2x2 and 3x3 cells that step by 2.
TWO, THREE = map(Kind, ("2", "3"))


# ---------------------------------------------------------------- vectors of labels


@intrinsic
def offsets(typing, storage, address, count, start, stride):
    """From int64 indices in memory, the first `count` lanes: each less `start` + lane * `stride`, or NOWHERE, FAR."""
    vector = _vector(storage)

    def generate(context, builder, signature, args):
        _, address, count, start, stride = args
        wide = ir.VectorType(ir.IntType(64), vector.lanes)
        mask = _lanes_below(builder, count, vector.lanes)
        index = _masked(builder, "load", address, wide, types.int64, mask)
        constant = lambda value: ir.Constant(wide, [value] * vector.lanes)  # noqa: E731
        lane = ir.Constant(wide, list(range(vector.lanes)))
        begin = builder.add(_splat(builder, start, wide), builder.mul(lane, _splat(builder, stride, wide)))
        offset = builder.sub(index, begin)
        near = builder.icmp_unsigned("<", offset, constant(FAR))
        offset = builder.select(near, offset, constant(FAR))
        offset = builder.select(builder.icmp_signed("==", index, constant(-1)), constant(NOWHERE), offset)
        llvm = context.get_value_type(vector)
        return offset if llvm == wide else builder.trunc(offset, llvm)

    return vector(storage, *(types.int64,) * 4), generate


@intrinsic
def choose(typing, into, ksize, column, stride, n, label, other):
    """Per lane `label` where 0 <= into < ksize and 0 <= column + lane * stride + into < n, else `other`."""

    def generate(context, builder, signature, args):
        into, ksize, column, stride, n, label, other = args
        llvm = into.type

        def every(value):
            return _splat(builder, builder.trunc(value, llvm.element) if llvm.element.width < 64 else value, llvm)

        lane = ir.Constant(llvm, list(range(llvm.count)))
        at = builder.add(builder.add(every(column), builder.mul(lane, every(stride))), into)
        mask = builder.icmp_unsigned("<", into, every(ksize))
        mask = builder.and_(mask, builder.icmp_unsigned("<", at, every(n)))
        return builder.select(mask, label, other)

    return into(into, *(types.int64,) * 4, into, into), generate


@intrinsic
def add_where(typing, label, mine, share, total):
    """total + share where two labels agree, else total."""

    def generate(context, builder, signature, args):
        label_, mine_, share_, total_ = args
        more = builder.fadd(total_, share_) if isinstance(share.element, types.Float) else builder.add(total_, share_)
        return builder.select(builder.icmp_signed("==", label_, mine_), more, total_)

    return share(label, label, share, share), generate


# ---------------------------------------------------------------- lines


@njit(nogil=True, error_model="numpy", forceinline=True)
def share_row(G, S, dy, at, n, line):
    """A row of dy on a line."""
    if same(G, S) and dy[5] == 1:
        copy_over(S, dy[0] + at * size(S), n, line, splat(S, zero(S)))
        return
    for w in range(n):
        store(S, line, w, load(G, dy[0], at + w * dy[5]))


def label_row(I, L, g, places, at, rows_a, rows_b, line, spare, foreign):
    """The numbers of the taps of a row of outputs on a line.

    The windows meet the rows `rows_a` along A and `rows_b` along B: the first, how many, and the tap of the first.
    Adds to `foreign` a one for each index that is no cell of its window.
    """
    raise NotImplementedError("only inside kernels")


@overload(label_row)
def _label_row(I, L, g, places, at, rows_a, rows_b, line, spare, foreign):
    return _labels_of_bytes if I.stored == "uint8" else _labels_of_indices


def _labels_of_bytes(I, L, g, places, at, rows_a, rows_b, line, spare, foreign):
    n, none = g[1][2], splat(L, number(L, NONE))
    if places[5] == 1:
        for w in range(0, n, width(L)):
            label = numbers(L, places[0] + at + w, 0, n - w)
            keep(label if n - w >= width(L) else first_lanes(label, n - w, none), line + w * size(L))
    else:
        for w in range(n):
            store(L, line, w, number(L, load(I, places[0], at + w * places[5])))
    return foreign


def _labels_of_indices(I, L, g, places, at, rows_a, rows_b, line, spare, foreign):
    n, size_b, size_w, stride, ksize_b, ksize = g[1][2], g[0][1], g[0][2], g[2][2], g[5][1], g[5][2]
    none, unknown = splat(L, number(L, NONE)), splat(L, number(L, FOREIGN))
    for w in range(0, n, width(L)):
        count, column = min(width(L), n - w), w * stride - g[4][2]
        source = places[0] + (at + w) * size(I)
        if not same(I, INDEX) or places[5] != 1:
            for i in range(count):
                store(INDEX, spare, i, np.int64(load(I, places[0], at + (w + i) * places[5])))
            source = spare
        start = (rows_a[0] * size_b + rows_b[0]) * size_w + column
        offset = offsets(L, source, count, start, stride)
        nowhere = matching(offset, splat(L, number(L, NOWHERE)), splat(L, number(L, NONE - FOREIGN)))
        label = plus(nowhere, unknown)
        for i in range(rows_a[1]):
            for j in range(rows_b[1]):
                tap = ((rows_a[2] + i) * ksize_b + rows_b[2] + j) * ksize
                into = plus(offset, splat(L, number(L, -(i * size_b + j) * size_w)))
                label = choose(into, ksize, column, stride, size_w, plus(into, splat(L, number(L, tap))), label)
        label = first_lanes(label, count, none)
        keep(label, line + w * size(L))
        foreign = plus(foreign, matching(label, unknown, splat(L, number(L, 1))))
    return foreign


@njit(nogil=True, error_model="numpy")
def bring(G, S, I, L, g, dy, base, places, place, low, high, tables, shares, labels, spare, foreign):
    """Lines for the rows of outputs [low, high) along A; the new count of foreign indices."""
    table_a, table_b = tables
    for a in range(low, high):
        for b in range(g[1][1]):
            rows_a, rows_b = (
                (table_a[a, 0], table_a[a, 1], table_a[a, 2]),
                (table_b[b, 0], table_b[b, 1], table_b[b, 2]),
            )
            share_row(G, S, dy, base + a * dy[3] + b * dy[4], g[1][2], shares)
            at = place + a * places[3] + b * places[4]
            foreign = label_row(I, L, g, places, at, rows_a, rows_b, labels, spare, foreign)
            shares, labels = shares + g[6][0] * size(S), labels + g[6][0] * size(L)
    return foreign


# ---------------------------------------------------------------- the gather


@njit(nogil=True, error_model="numpy", forceinline=True)
def put_pairs(S, even, odd, row, w, n):
    """Even and odd cells of a row of n cells, from the cell w on."""
    lanes = width(S)
    give_lanes(lower(even, odd), row + w * size(S), -w, n - w)
    if n - w > lanes:
        give_lanes(upper(even, odd), row + (w + lanes) * size(S), -w - lanes, n - w - lanes)


def cells_of(form):
    """The cells along an axis of a form of windows."""
    raise NotImplementedError("only inside kernels")


@overload(cells_of)
def _cells_of(form):
    ksize = int(form.kind)
    return lambda form: ksize


@njit(nogil=True, error_model="numpy")
def gather_square(form, S, L, g, dx, base, first, last, low, high, shares, labels):
    """`gather_pairs` of windows of 2x2 or 3x3 cells that step by 2 in planes: output row by output row.

    An output row meets two rows of dx, and of 3x3 cells a third that it leaves to the next one.
    """
    n, pad, k, three = g[0][2], g[4][2], cells_of(form), cells_of(form) == 3
    nothing, step, pitch, to_label = splat(S, zero(S)), dx[3] * size(S), g[6][0] * size(S), labels - shares
    for q in range(0, (n - 1 + pad) // 2 + 1, width(S)):
        w, share, even, odd, a = 2 * q - pad, shares + q * size(S), nothing, nothing, 2 * low - g[4][0]
        row = dx[0] + (base + a * dx[3]) * size(S)
        for _ in range(low, high):
            value, label = whole(S, share), whole(L, share + to_label)
            even = add_where(label, splat(L, number(L, 0)), value, even)
            odd = add_where(label, splat(L, number(L, 1)), value, odd)
            even_below = add_where(label, splat(L, number(L, k)), value, nothing)
            odd_below = add_where(label, splat(L, number(L, k + 1)), value, nothing)
            even_next = odd_next = nothing
            if three:
                before, its = whole(S, share - size(S)), whole(L, share + to_label - size(L))
                even = add_where(its, splat(L, number(L, 2)), before, even)
                even_below = add_where(its, splat(L, number(L, 5)), before, even_below)
                even_next = add_where(label, splat(L, number(L, 6)), value, nothing)
                even_next = add_where(its, splat(L, number(L, 8)), before, even_next)
                odd_next = add_where(label, splat(L, number(L, 7)), value, nothing)
            if a >= first:
                put_pairs(S, even, odd, row, w, n)
            if first <= a + 1 < last:
                put_pairs(S, even_below, odd_below, row + step, w, n)
            even, odd = even_next, odd_next
            share, a, row = share + pitch, a + 2, row + 2 * step
        if a >= first and a < last:
            put_pairs(S, even, odd, row, w, n)
        for rest in range(max(a + 1, first), last):
            put_pairs(S, nothing, nothing, dx[0] + (base + rest * dx[3]) * size(S), w, n)


@njit(nogil=True, error_model="numpy")
def gather_pairs(S, L, g, dx, base, first, last, low, reaches, shares, labels):
    """Rows [first, last) of dx along A, whose windows step by 2 along W; `low` is the output row of the first line."""
    (reach_a, reach_b), sizes, pad, strides, ksizes, length = reaches, g[0], g[4][2], g[2], g[5], g[6][0]
    for a in range(first, last):
        for b in range(sizes[1]):
            row = dx[0] + (base + a * dx[3] + b * dx[4]) * size(S)
            line = (reach_a[a, 0] - low) * g[1][1] + reach_b[b, 0]
            top = (reach_a[a, 2] * ksizes[1] + reach_b[b, 2]) * ksizes[2]
            for q in range(0, (sizes[2] - 1 + pad) // 2 + 1, width(S)):
                even = odd = splat(S, zero(S))
                for i in range(reach_a[a, 1]):
                    for j in range(reach_b[b, 1]):
                        at = (line + i * g[1][1] + j) * length + q
                        tap = top - (i * strides[0] * ksizes[1] + j * strides[1]) * ksizes[2]
                        for t in range(0, ksizes[2], 2):
                            value, mine = whole(S, shares + at * size(S)), whole(L, labels + at * size(L))
                            even = add_where(mine, splat(L, number(L, tap + t)), value, even)
                            if t + 1 < ksizes[2]:
                                odd = add_where(mine, splat(L, number(L, tap + t + 1)), value, odd)
                            at -= 1
                put_pairs(S, even, odd, row, 2 * q - pad, sizes[2])


@njit(nogil=True, error_model="numpy")
def gather_singles(S, L, g, dx, base, first, last, low, reaches, shares, labels):
    """Rows [first, last) of dx along A, whose windows step by 1 along W."""
    (reach_a, reach_b), sizes, pad, strides, ksizes, length = reaches, g[0], g[4][2], g[2], g[5], g[6][0]
    for a in range(first, last):
        for b in range(sizes[1]):
            row = dx[0] + (base + a * dx[3] + b * dx[4]) * size(S)
            line = (reach_a[a, 0] - low) * g[1][1] + reach_b[b, 0]
            top = (reach_a[a, 2] * ksizes[1] + reach_b[b, 2]) * ksizes[2]
            for w in range(0, sizes[2], width(S)):
                total = splat(S, zero(S))
                for i in range(reach_a[a, 1]):
                    for j in range(reach_b[b, 1]):
                        at = (line + i * g[1][1] + j) * length + w + pad
                        tap = top - (i * strides[0] * ksizes[1] + j * strides[1]) * ksizes[2]
                        for t in range(ksizes[2]):
                            value, mine = whole(S, shares + (at - t) * size(S)), whole(L, labels + (at - t) * size(L))
                            total = add_where(mine, splat(L, number(L, tap + t)), value, total)
                give_lanes(total, row + w * size(S), 0, sizes[2] - w)


@njit(nogil=True, error_model="numpy")
def gather_task(first, last, G, S, I, L, dy, places, dx, C, rows, layout, tables, reaches, scratch):
    """Whether all indices were right."""
    g, reach_a = layout_of(layout), reaches[0]
    square = g[0][1] == 1 and g[5][1] == 1 and g[5][0] == g[5][2] and g[2][0] == 2 and g[2][2] == 2
    foreign, most = splat(L, number(L, 0)), g[6][2] * g[6][0]
    shares = scratch + 16 * width(S)
    labels = shares + room(S, most)
    spread(S, splat(S, zero(S)), shares, most)
    spread(L, splat(L, number(L, NONE)), labels, most)
    shares, labels = shares + g[6][1] * size(S), labels + g[6][1] * size(L)
    block = block_of(first, rows, g[0][0], C)
    for _ in range(first, last):
        image, c, start = block
        stop = min(start + rows, g[0][0])
        block = block_after(block, rows, g[0][0], C)
        low, high = reach_a[start, 0], min(reach_a[stop - 1, 0] + reach_a[stop - 1, 1], g[1][0])
        base, place = image * dy[1] + c * dy[2], image * places[1] + c * places[2]
        foreign = bring(G, S, I, L, g, dy, base, places, place, low, high, tables, shares, labels, scratch, foreign)
        base = image * dx[1] + c * dx[2]
        if square and g[5][0] == 2:
            gather_square(TWO, S, L, g, dx, base, start, stop, low, high, shares, labels)
        elif square and g[5][0] == 3:
            gather_square(THREE, S, L, g, dx, base, start, stop, low, high, shares, labels)
        elif g[2][2] == 2:
            gather_pairs(S, L, g, dx, base, start, stop, low, reaches, shares, labels)
        else:
            gather_singles(S, L, g, dx, base, start, stop, low, reaches, shares, labels)
    keep(foreign, scratch)
    wrong = 0
    for lane in range(width(L)):
        wrong += load(L, scratch, lane)
    return wrong == 0


@njit(parallel=True, nogil=True)
def gather(
    tasks, units, run, G, S, I, L, dy, places, dx, C, rows, g, tables, reaches, status, work, work_bytes
):  # fmt: skip
    for task in prange(tasks):
        scratch, last = work + get_thread_id() * work_bytes, min(task * run + run, units)
        if not gather_task(task * run, last, G, S, I, L, dy, places, dx, C, rows, g, tables, reaches, scratch):
            status[0] = 1


ENTRIES = ("gather",)

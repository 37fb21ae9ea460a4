"""Direct N-D correlation: one array against the taps of another, any number of axes, any strides.

    out[k, o] = sum over c, i of x[c, o + offset + i] * w[k, c, i],   x being zero outside of its extent

Planes c and k are the real and imaginary parts of complex arrays; real arrays have one of each.

A task computes a block of output rows (the last axis) of one leading index. For each leading tap it
packs the rows of x that the block meets into a slab, in the type that is computed in and with the
zeros of the border, and adds all their products to the block's accumulators:

- four rows by NV vectors of outputs stay in registers while the taps pass by, so a loaded vector of x
  serves the four rows (`four_rows`); short windows and the last rows go one by one (`one_row`);
- a border row is skipped, not multiplied: only the columns' border costs products with zero.

Every output adds its products in the taps' order whatever the blocks are, so threads and tiles change
no bit. Weights must be finite (0 * infinity would leave the border); x need not: a lane holds one
output, and multiplies only what its window contains.

Accumulators: float32 for 16-bit floats and float32, float64, int32 for all ints to 32 bits, int64;
ints wrap. Limits: rows of a slab are KH - 1 more than the block's, so the longest axes should be last.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from fastconv.kernels.numba_cpu.memory import load, store, zero
from fastconv.kernels.numba_cpu.simd import REGISTERS, get, outer, put

ROWS = 4
NV = 4 if REGISTERS == 32 else 2  # ROWS x NV accumulators, NV vectors of x and a weight fit the registers

# Rows of `axes`, int64[6, A]: what each axis has.
OUT, SIZE, TAPS, OFFSET, X_STEP, Y_STEP = range(6)


@njit(nogil=True)
def copy_row(X, S, source, step, target, low, high, count):
    """target[:count] = source[:count:step] inside [low, high), 0 outside, where nothing is read."""
    for j in range(min(low, count)):
        store(S, target, j, zero(S))
    if step == 1:
        for j in range(low, high):
            store(S, target, j, load(X, source, j))
    else:
        for j in range(low, high):
            store(S, target, j, load(X, source, j * step))
    for j in range(max(high, 0), count):
        store(S, target, j, zero(S))


@njit(nogil=True)
def inside(first, size, count):
    """The part [low, high) of `count` places from `first` on that lies in [0, size)."""
    low = min(max(-first, 0), count)
    return low, max(low, min(size - first, count))


def _sweeps(nv):
    """`one_row` and `four_rows` for tiles of nv vectors.

    x is the slab row that the tile's first row meets with tap row 0; slab rows [low, high) hold input.
    Taps t of [t0, t1) count; t0 is where x and w point already.
    """

    @njit(nogil=True)
    def one_row(S, acc, x, pitch, w, w_pitch, KH, low, high, taps, size):
        tile = get(S, 1, nv, acc, 0)
        for h in range(max(low, 0), min(high, KH)):
            a, b = w + h * w_pitch, x + h * pitch
            for _ in range(taps):
                tile = outer(tile, 1, nv, a, 0, b)
                a += size
                b += size
        put(tile, 1, nv, acc, 0)

    @njit(nogil=True)
    def four_rows(S, acc, acc_pitch, x, pitch, w, w_pitch, KH, low, high, taps, size):
        low, high = max(low, 0), min(high, KH + 3)
        first = min(max(low, 3), high)  # from here to `last`, a slab row meets a tap row for each of the four
        last = max(first, min(high, KH))
        for r in range(4):
            row = x + r * pitch
            one_row(S, acc + r * acc_pitch, row, pitch, w, w_pitch, KH, low - r, first - r, taps, size)
        tile = get(S, 4, nv, acc, acc_pitch)
        for h in range(first, last):
            a, b = w + h * w_pitch, x + h * pitch
            for _ in range(taps):
                tile = outer(tile, 4, nv, a, -w_pitch, b)
                a += size
                b += size
        put(tile, 4, nv, acc, acc_pitch)
        for r in range(4):
            row = x + r * pitch
            one_row(S, acc + r * acc_pitch, row, pitch, w, w_pitch, KH, last - r, high - r, taps, size)

    return one_row, four_rows


wide_row, wide_rows = _sweeps(NV)
narrow_row, narrow_rows = _sweeps(1)


@njit(nogil=True)
def multiply(S, acc, slab, pitch, w, KH, KW, rows, width, height, columns, taps, lanes, size):
    """acc[rows, width] += slab * w, for `taps` columns of w; input lies in slab rows `height`, columns `columns`."""
    acc_pitch, row_bytes, w_pitch = width * size, pitch * size, KW * size
    c = 0
    while c < width:
        step = NV * lanes if c + NV * lanes <= width else lanes
        first = max(0, columns[0] - c - step + 1)
        count = min(taps, columns[1] - c) - first
        r = 0
        while r < rows and count > 0:
            at, x, a = acc + r * acc_pitch + c * size, slab + r * row_bytes + (c + first) * size, w + first * size
            low, high = height[0] - r, height[1] - r
            four = KH >= ROWS and r + ROWS <= rows
            if four and step == lanes:
                narrow_rows(S, at, acc_pitch, x, row_bytes, a, w_pitch, KH, low, high, count, size)
            elif four:
                wide_rows(S, at, acc_pitch, x, row_bytes, a, w_pitch, KH, low, high, count, size)
            elif step == lanes:
                narrow_row(S, at, x, row_bytes, a, w_pitch, KH, low, high, count, size)
            else:
                wide_row(S, at, x, row_bytes, a, w_pitch, KH, low, high, count, size)
            r += ROWS if four else 1
        c += step


@njit(nogil=True)
def leading(axes, place, tap):
    """Whether the leading index (axes before the last two) of output `place` meets x with `tap`, and its offset."""
    offset = 0
    for axis in range(axes.shape[1] - 3, -1, -1):
        at = place % axes[OUT, axis] + tap % axes[TAPS, axis] + axes[OFFSET, axis]
        place //= axes[OUT, axis]
        tap //= axes[TAPS, axis]
        if at < 0 or at >= axes[SIZE, axis]:
            return False, 0
        offset += at * axes[X_STEP, axis]
    return True, offset


@njit(nogil=True)
def leading_out(axes, place):
    """The element offset of the leading index `place` in the output."""
    offset = 0
    for axis in range(axes.shape[1] - 3, -1, -1):
        offset += place % axes[OUT, axis] * axes[Y_STEP, axis]
        place //= axes[OUT, axis]
    return offset


@njit(nogil=True)
def block(X, S, Y, x, y, w, acc, axes, planes, tiles, place, r0, c0):
    """All products of one block of outputs, and their way into memory. Addresses are in bytes."""
    C, x_plane, y_plane = planes
    block_rows, width, chunk, lanes, size, x_size, y_size = tiles
    KH, KW = axes[TAPS, -2], axes[TAPS, -1]
    rows, cols = min(block_rows, axes[OUT, -2] - r0), min(width, axes[OUT, -1] - c0)
    used = (cols + lanes - 1) // lanes * lanes
    slab = acc + C * block_rows * width * size
    for j in range(C * block_rows * width):
        store(S, acc, j, zero(S))
    for lead in range(w.shape[2]):
        met, offset = leading(axes, place, lead)
        if not met:
            continue
        top = r0 + axes[OFFSET, -2]
        height = inside(top, axes[SIZE, -2], rows + KH - 1)
        for t in range(0, KW, chunk):
            taps = min(chunk, KW - t)
            left, pitch = c0 + axes[OFFSET, -1] + t, used + taps - 1
            columns = inside(left, axes[SIZE, -1], pitch)
            for c in range(C):
                for r in range(height[0], height[1]):
                    element = c * x_plane + offset + (top + r) * axes[X_STEP, -2] + left * axes[X_STEP, -1]
                    source, target = x + element * x_size, slab + r * pitch * size
                    copy_row(X, S, source, axes[X_STEP, -1], target, columns[0], columns[1], pitch)
                for k in range(C):
                    weights = np.int64(w[k, c, lead, 0, t:].ctypes.data)
                    at = acc + k * block_rows * width * size
                    multiply(S, at, slab, pitch, weights, KH, KW, rows, used, height, columns, taps, lanes, size)
    base = leading_out(axes, place) + r0 * axes[Y_STEP, -2] + c0 * axes[Y_STEP, -1]
    for k in range(C):
        for r in range(rows):
            source = acc + (k * block_rows * width + r * used) * size
            target = y + (k * y_plane + base + r * axes[Y_STEP, -2]) * y_size
            for j in range(cols):
                store(Y, target, j * axes[Y_STEP, -1], load(S, source, j))


@njit(nogil=True)
def task_block(X, S, Y, x, y, w, scratch, axes, planes, tiles, task):
    """Block number `task`, in the order of memory."""
    down = (axes[OUT, -2] + tiles[0] - 1) // tiles[0]
    along = (axes[OUT, -1] + tiles[1] - 1) // tiles[1]
    r0, c0 = task // along % down * tiles[0], task % along * tiles[1]
    acc = np.int64(scratch.ctypes.data)
    block(X, S, Y, x, y, w, acc, axes, planes, tiles, task // along // down, r0, c0)


@njit(parallel=True, nogil=True)
def correlate(X, S, Y, x, y, w, scratch, axes, planes, tiles, tasks):
    """x, y: addresses; w[k, c, leading taps, KH, KW]: contiguous, in S; scratch: bytes, a row per thread."""
    for task in prange(tasks):
        task_block(X, S, Y, x, y, w, scratch[get_thread_id()], axes, planes, tiles, task)


@njit(nogil=True)
def correlate_alone(X, S, Y, x, y, w, scratch, axes, planes, tiles, tasks):
    """`correlate` in the calling thread: waking the others costs more than a small problem."""
    for task in range(tasks):
        task_block(X, S, Y, x, y, w, scratch[0], axes, planes, tiles, task)

"""One tile of a product of matrices: ROWS rows by up to NV vectors, in registers from the first term to the last."""

from numba import njit

from fastconv.kernels.numba_cpu.memory import size
from fastconv.kernels.numba_cpu.simd import (
    NV,
    ROWS,
    VECTOR_BYTES,
    add_from,
    add_to_rows,
    get,
    outer,
    prefetch,
    put,
    relu,
    width,
    zeros,
)

AHEAD = 12  # rows of b that are asked for before they are needed, where they lie far apart


@njit(nogil=True)
def fetch(start, row):
    """Ask for a line of each of ROWS rows."""
    for i in range(ROWS):
        prefetch(start + i * row)


def _multiply(nv):
    """`multiply` for tiles of `nv` vectors."""

    @njit(nogil=True)
    def multiply(
        S, fresh, last, code, K, a, a_step, a_row, ahead, ahead_row, b, b_row, keep, c, c_row, bias, out, out_row
    ):
        tile = zeros(S, ROWS, nv)
        if keep:
            for k in range(K):
                row = b + k * b_row
                for j in range(nv):
                    prefetch(row + AHEAD * b_row + j * VECTOR_BYTES)
                tile = outer(tile, ROWS, nv, a + k * a_step, a_row, row)
                put(get(S, 1, nv, row, 0), 1, nv, keep + k * nv * VECTOR_BYTES, 0)
        else:
            for k0 in range(0, K, width(S)):
                fetch(ahead + k0 * size(S), ahead_row)
                for k in range(k0, min(K, k0 + width(S))):
                    row = b + k * b_row
                    prefetch(a + (k + AHEAD) * a_step)
                    for j in range(nv):
                        prefetch(row + AHEAD * b_row + j * VECTOR_BYTES)
                    tile = outer(tile, ROWS, nv, a + k * a_step, a_row, row)
        if not fresh:
            tile = add_from(tile, ROWS, nv, c, c_row)
        if last:
            tile = add_to_rows(tile, ROWS, nv, bias)
            if code == 1:
                tile = relu(tile, ROWS, nv)
        put(tile, ROWS, nv, out, out_row)

    return multiply


_one, _two, _three = _multiply(1), _multiply(2), _multiply(3)


@njit(nogil=True)
def multiply(
    S, nv, fresh, last, code, K, a, a_step, a_row, ahead, ahead_row, b, b_row, keep, c, c_row, bias, out, out_row
):
    """One tile of `nv` vectors: out = (c +) a @ b over K rows; with `last`, bias and ReLU while it is in registers.

    The K products are added up first: many calls round off less than one sum of them all. The rows of b, `b_row`
    bytes apart, are copied to `keep`, one behind the other, if that is not 0; else ROWS rows of K elements at `ahead`,
    `ahead_row` bytes apart, are fetched meanwhile.
    """
    if nv == 1:
        _one(S, fresh, last, code, K, a, a_step, a_row, ahead, ahead_row, b, b_row, keep, c, c_row, bias, out, out_row)
    elif nv == 2 or NV == 2:
        _two(S, fresh, last, code, K, a, a_step, a_row, ahead, ahead_row, b, b_row, keep, c, c_row, bias, out, out_row)
    else:
        _three(
            S, fresh, last, code, K, a, a_step, a_row, ahead, ahead_row, b, b_row, keep, c, c_row, bias, out, out_row
        )

"""Correlation and convolution of one N-D array with another, in SciPy's meaning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import arrays, dispatch
from fastconv.errors import ArgumentError, ShapeError
from fastconv.problem import SignalProblem, signal_problem

BLOCK_BYTES = 16 * 2**20  # of the extended input that a wrapped or mirrored edge is computed from at a time


def admit(in1: Any, in2: Any, backend: str | None) -> arrays.Operands:
    """Both inputs as views; lists and scalars too, as SciPy takes them."""
    return dispatch.admit(("in1", "in2"), (as_operand("in1", in1), as_operand("in2", in2)), backend)


def as_operand(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple | int | float | complex | np.generic):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ShapeError(f"{name} is no rectangular array: {error}") from error
    return value


def signal(in1: Any, in2: Any, mode: Any, method: Any, flip: bool, out: Any, backend: Any) -> Any:
    operands = admit(in1, in2, backend)
    in1, in2 = operands.arrays
    dtype = arrays.signal_dtype(in1.dtype, in2.dtype)
    problem = signal_problem(in1.shape, in2.shape, dtype, flip, mode, method)
    if type(backend) is dispatch.Inquiry:
        return dispatch.Request("correlate", problem, operands, (in1, in2))
    operands.arrays = prepare(in1, in2, problem)
    result = dispatch.run("correlate", problem, operands, out, backend)
    return result[()] if out is None and problem.out == () else result  # of two scalars, a scalar


def prepare(in1: Any, in2: Any, problem: SignalProblem) -> tuple[Any, Any]:
    """Both in the result's dtype; in2 reversed for a convolution, conjugated for a correlation."""
    dtype = arrays.dtype_of(problem.dtype)
    in1, in2 = in1.astype(dtype, copy=False), in2.astype(dtype, copy=False)
    if problem.flip:
        return in1, in2[(slice(None, None, -1),) * in2.ndim]
    return in1, in2.conj() if dtype.kind == "c" else in2


def correlate(
    in1: Any, in2: Any, mode: str = "full", method: str = "auto", *, out: Any = None, backend: str | None = None
) -> Any:
    """Cross-correlate two N-D arrays, as `scipy.signal.correlate`.

    ``full[j] = sum over i of in1[j - (n2 - 1) + i] * conj(in2[i])``, zero outside of in1.

    Parameters
    ----------
    in1, in2 : arrays, lists or scalars of the same number of axes
        Any float, complex, integer or bool dtype; the result has the promoted one. Integers are exact
        (modulo 2**bits), by every method; bools are an "or" of "and"s. float16 and bfloat16 sum in float32.
    mode : "full", "same" or "valid"
        Every overlap; the part centred on in1, of its shape; only where one lies wholly within the other.
    method : "auto", "direct" or "fft"
        "auto" estimates which is faster. By every method a NaN or an infinity touches only the results whose
        windows contain it. The error of "fft" is a few times ``eps * log2(size) * norm(in1) * norm(in2)`` for
        each result: small against the largest ones.
    out : array, optional
    backend : str, optional

    Returns
    -------
    y : array

    Raises
    ------
    ShapeError
        Different numbers of axes, empty inputs, unknown words, and in "valid" neither containing the other.
    DTypeError, BackendError
        As `conv2d`.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.correlate([1, 3, 2, 2, 0, 2, 3], [-1, 0, 1], "valid")
    array([ 1, -1, -2,  0,  3])
    """
    return signal(in1, in2, mode, method, False, out, backend)


def convolve(
    in1: Any, in2: Any, mode: str = "full", method: str = "auto", *, out: Any = None, backend: str | None = None
) -> Any:
    """Convolve two N-D arrays, as `scipy.signal.convolve`: in2 is flipped.

    ``full[j] = sum over i of in1[j - i] * in2[i]``, zero outside of in1. Arguments, results and errors as `correlate`.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.convolve([1, 3, 2, 2, 0, 2, 3], [-1, 0, 1], "valid")
    array([-1,  1,  2,  0, -3])
    """
    return signal(in1, in2, mode, method, True, out, backend)


# ---------------------------------------------------------------- two axes, with boundaries


def correlate2d(
    in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0, *,
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Cross-correlate two 2-D arrays, as `scipy.signal.correlate2d`.

    Parameters
    ----------
    in1, in2 : arrays or lists of two axes
        As `correlate`.
    mode : "full", "same" or "valid"
        As `correlate`, but that the centre of an even in2 is its upper middle in "same", as in SciPy.
    boundary : "fill", "wrap" or "symm"
        What in1 is outside of its extent: `fillvalue`, itself again, or its mirror image.
    fillvalue : scalar
        Taken in the result's dtype.
    out, backend
        As `correlate`.

    Returns
    -------
    y : array

    Raises
    ------
    ShapeError, DTypeError, BackendError
        As `correlate`.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.correlate2d([[1, 2], [3, 4]], [[1, 1]], "same", boundary="wrap")
    array([[3, 3],
           [7, 7]])
    """
    return signal2d(in1, in2, mode, boundary, fillvalue, False, out, backend)


def convolve2d(
    in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0, *,
    out: Any = None, backend: str | None = None,
) -> Any:  # fmt: skip
    """Convolve two 2-D arrays, as `scipy.signal.convolve2d`; arguments, results and errors as `correlate2d`.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.convolve2d([[1, 2], [3, 4]], [[1, 10]])
    array([[ 1, 12, 20],
           [ 3, 34, 40]])
    """
    return signal2d(in1, in2, mode, boundary, fillvalue, True, out, backend)


def signal2d(in1: Any, in2: Any, mode: Any, boundary: Any, fillvalue: Any, flip: bool, out: Any, backend: Any) -> Any:
    operands = admit(in1, in2, backend)
    in1, in2 = operands.arrays
    if in1.ndim != 2 or in2.ndim != 2:
        raise ShapeError(f"in1 and in2 must have 2 axes: got in1{list(in1.shape)}, in2{list(in2.shape)}")
    dtype = arrays.signal_dtype(in1.dtype, in2.dtype)
    problem = signal_problem(in1.shape, in2.shape, dtype, flip, mode, "direct", boundary, not flip)
    fill = as_fill(fillvalue, arrays.dtype_of(dtype))
    if type(backend) is dispatch.Inquiry:
        return dispatch.Request("correlate", problem, operands, (in1, in2))
    operands.arrays = prepare(in1, in2, problem)
    if mode == "valid" or (boundary == "fill" and fill == 0):
        plain = replace(problem, boundary="fill")
        return dispatch.run("correlate", plain, operands, out, backend)
    return by_row_blocks(problem, operands, fill, out, backend)


def as_fill(value: Any, dtype: np.dtype) -> Any:
    """`fillvalue` as a scalar of the result's dtype; SciPy's words where it refuses one."""
    fill = np.asarray(value)
    if fill.size != 1 or fill.dtype.kind not in "?biufcV":
        raise ArgumentError(f"`fillvalue` must be scalar or an array with one element, a number: got {value!r}")
    fill = fill.reshape(())
    whole = dtype.kind not in "iu" or (np.isfinite(fill) and fill == np.trunc(fill.real))
    if not whole or (fill.dtype.kind == "c" and dtype.kind != "c"):
        raise ArgumentError(
            f"could not cast `fillvalue` directly to the output dtype {dtype.name}, which cannot hold it: got {value!r}"
        )
    return fill.astype(dtype)


def by_row_blocks(problem: SignalProblem, operands: arrays.Operands, fill: Any, out: Any, backend: str | None) -> Any:
    """Extend in1 by its boundary a block of rows at a time, and correlate each block where it is valid."""
    in1, in2 = operands.arrays
    target = dispatch.target_of(problem, "out", operands, out)
    rows, cols = problem.out
    left = outside(problem, 1, 0, cols)
    block = max(1, BLOCK_BYTES // (left.size * in1.itemsize))
    for j in range(0, rows, block):
        stop = min(rows, j + block)
        extended = extend(in1, outside(problem, 0, j, stop), left, fill)
        part = signal_problem(extended.shape, in2.shape, problem.dtype, problem.flip, "valid", "direct")
        pair = arrays.Operands((extended, in2), operands.kind, None)
        dispatch.run("correlate", part, pair, target[j:stop], backend)
    if out is not None:
        return out
    return target if operands.wrap is None else operands.wrap(target)


def outside(problem: SignalProblem, axis: int, start: int, stop: int) -> np.ndarray:
    """Where in in1 the cells lie that the results start to stop meet along an axis; -1 for the fill value."""
    n, m = problem.shape1[axis], problem.shape2[axis]
    first = problem.start[axis] + start - (m - 1)
    at = np.arange(first, first + stop - start + m - 1)
    if problem.boundary == "wrap":
        return at % n
    if problem.boundary == "symm":
        at = at % (2 * n)
        return np.where(at < n, at, 2 * n - 1 - at)
    return np.where((at >= 0) & (at < n), at, -1)


def extend(in1: Any, rows: np.ndarray, cols: np.ndarray, fill: Any) -> Any:
    module = arrays.module_of(in1)
    at_rows, at_cols = module.asarray(rows), module.asarray(cols)
    inside = (at_rows >= 0)[:, None] & (at_cols >= 0)
    return module.where(inside, in1[at_rows[:, None], at_cols], module.asarray(fill))

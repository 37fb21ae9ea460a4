"""The self-test: every op of every available backend against the reference, on this machine.

`checks` lists what there is to check, `run` runs it and returns one result per backend and check,
`replay` is the line that a failure prints. The bodies here are also those of the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import fastconv
from fastconv.backends.numba_cuda.simulator import simulated
from fastconv.problem import ACTIVATIONS, ConvProblem, PoolProblem
from fastconv.testing import cases, compare, gpu

Array = np.ndarray

#: Roundings that an activation may add, in units of the roundoff, and the largest slope it has.
ACTIVATION_SLACK, ACTIVATION_SLOPE = 16, 1.13
#: What a precision by request may round off both factors of a product, of its size.
INPUT_ROUNDING = {"tf32": 2 * 2.0**-11 + 2.0**-22, "bf16": 2 * 2.0**-8 + 2.0**-16}
QUICK = 3  # checks of each op in a quick run
EXACT_ACTIVATIONS = (None, "relu", "relu6")


def replay(backend: str, op: str, case: str) -> None:
    """Run one check again; raises the AssertionError that the failure was reported with."""
    OPS[op](backend, op, case)


def repro(backend: str, op: str, case: Any) -> str:
    return f"fastconv.testing.selftest.replay({backend!r}, {op!r}, {str(case)!r})"


def poisoned(shape: Sequence[int], dtype: np.dtype) -> Array:
    """An array in which every element that is not written shows: NaN, or 85"""
    out = np.empty(shape, dtype)
    if dtype.kind in "iu":
        out[...] = 0x55
    else:
        out[...] = np.nan
    return out


def settled(call: Callable[..., Any], expected: Array, inputs: Sequence[Array | None], line: str) -> Array:
    """The result of `call(out=...)` into poisoned memory, once it is known to be that of `call()`, bit for bit."""
    before = [None if array is None else array.copy() for array in inputs]
    out = poisoned(expected.shape, expected.dtype)
    assert call(out=out) is out, f"out= was not returned\nrepro: {line}"
    compare.same_bits(call(), out, line)
    for array, copy in zip(inputs, before, strict=True):
        if copy is not None and array is not None:
            compare.same_bits(array, copy, line)
    return out


# ---------------------------------------------------------------- convolution


def for_op(op: str, problem: ConvProblem) -> ConvProblem:
    """The problem with the bias and activation that `op` takes: gradients take none."""
    if op == "conv_transpose" and problem.bias is not None:
        return replace(problem, bias=(problem.C, *problem.bias[1:]))
    return problem if op in ("conv_fprop", "conv_transpose") else replace(problem, bias=None, activation=None)


def check_conv(backend: str, op: str, case: str | ConvProblem) -> None:
    """Equal on integers, where that is promised; within the rounding bound on floats."""
    problem = for_op(op, ConvProblem.parse(case) if isinstance(case, str) else case)
    if problem.activation in EXACT_ACTIVATIONS:
        conv_exact(backend, op, problem)
    if problem.dtype != "int32":
        conv_bounded(backend, op, problem)


def conv_exact(backend: str, op: str, case: ConvProblem, dtypes: Sequence[str] = ()) -> None:
    """Integer data in the problem's dtype, summed exactly: equal to the reference, and so are two runs."""
    problem = replace(for_op(op, case), precision="ieee")
    operands = cases.conv_integers(problem, op, dtypes)
    line = repro(backend, op, problem)
    expected = cases.conv_call(op, problem, operands, backend="reference")
    actual = settled(partial(cases.conv_call, op, problem, operands, backend=backend), expected, operands, line)
    compare.equal(actual, expected, line)


def conv_bounded(backend: str, op: str, case: ConvProblem) -> None:
    """Normally distributed data: within the bound of the problem's precision of the sums in float64."""
    problem = for_op(op, case)
    operands = cases.conv_floats(problem, op)
    line = repro(backend, op, problem)
    actual = cases.conv_call(op, problem, operands, backend=backend)
    expected, scale = conv_in_float64(op, problem, operands)
    if problem.dtype == "float32" and problem.precision is None and problem.activation is None:
        compare.near(actual, expected, scale, spatial_axes(op, problem), line)
        return
    slope, slack = (1.0, 0.0) if problem.activation is None else (ACTIVATION_SLOPE, ACTIVATION_SLACK)
    slack += slope * INPUT_ROUNDING.get(problem.precision or "", 0.0) / compare.ROUNDOFF["float32"]
    terms = slope * (cases.terms(problem, op) + (problem.bias is not None))
    compare.within(actual, expected, scale, terms, line, slack)


def conv_in_float64(op: str, problem: ConvProblem, operands: Sequence[Array | None]) -> tuple[Array, Array]:
    """The reference in float64, and the same sums over absolute values."""
    exact = [None if array is None else compare.wide(array) for array in operands]
    double = replace(problem, dtype="float64")
    expected = cases.conv_call(op, double, exact, backend="reference")
    linear = replace(double, activation=None)
    scale = cases.conv_call(op, linear, [None if a is None else np.abs(a) for a in exact], backend="reference")
    return expected, scale


def spatial_axes(op: str, problem: ConvProblem) -> tuple[int, ...]:
    """The axes of the result of `op` that lie in space."""
    order = problem.weight_layout if op == "conv_wgrad" else problem.layout
    last = {"NCHW": 0, "OIHW": 0, "NHWC": -1, "OHWI": -1, "HWIO": -2}[order]
    return tuple(range(last - problem.ndim, last))


def check_bias_grad(backend: str, op: str, case: str) -> None:
    """Exact sums of integers over the batch and the pixels."""
    problem = PoolProblem.parse(case)
    dy = cases.pool_integers(problem, "x")
    expected = fastconv.bias_grad(dy, layout=problem.layout, backend="reference")
    call = partial(fastconv.bias_grad, dy, layout=problem.layout, backend=backend)
    compare.equal(settled(call, expected, [dy], repro(backend, op, case)), expected, repro(backend, op, case))


def check_activation(backend: str, op: str, case: str | ConvProblem) -> None:
    """An activation and its gradient through a 1x1 convolution by ones, whose sums have one term."""
    problem = ConvProblem.parse(case) if isinstance(case, str) else case
    x, line = cases.conv_floats(problem, "conv_fprop")[0], repro(backend, op, problem)
    assert x is not None
    w = np.ones(problem.shape("w"), x.dtype)

    def gradient(x: Array, w: Array, dtype: str, name: str) -> tuple[Array, Array]:
        y, pullback = fastconv.conv1d_vjp(x, w, groups=problem.groups, activation=problem.activation, backend=name)
        return y, pullback(np.ones(y.shape, cases.dtype_of(dtype)))[0]

    actual = gradient(x, w, problem.dtype, backend)
    expected = gradient(compare.wide(x), compare.wide(w), "float64", "reference")
    # The derivative is read from an output that was rounded to the dtype, hence the slack in its roundoff.
    slack = ACTIVATION_SLACK * compare.ROUNDOFF[problem.dtype] / compare.ROUNDOFF[compare.ACCUMULATOR[problem.dtype]]
    for got, wanted in zip(actual, expected, strict=True):
        compare.within(got, wanted, 1.0 + np.abs(compare.wide(x)), 2, line, slack)


# ---------------------------------------------------------------- pooling


def check_maxpool(backend: str, op: str, case: str | PoolProblem) -> None:
    """Maxima and their indices equal the reference's, and so do gradients of integers, with indices or without."""
    problem = PoolProblem.parse(case) if isinstance(case, str) else case
    line = repro(backend, op, problem)
    x = cases.pool_integers(problem, "x")
    y, indices = cases.pool_call("max", problem, x, return_indices=True, backend="reference")
    compare.equal(settled(partial(cases.pool_call, "max", problem, x, backend=backend), y, [x], line), y, line)
    out = poisoned(y.shape, y.dtype)
    got, got_indices = cases.pool_call("max", problem, x, return_indices=True, backend=backend, out=out)
    assert got is out, f"out= was not returned\nrepro: {line}"
    compare.equal(got, y, line)
    compare.equal(got_indices, indices, line)
    dy = cases.pool_integers(problem, "y", seed=1)
    expected = max_dgrad(problem, dy, x, "reference")
    compare.equal(max_dgrad(problem, dy, x, backend), expected, line)
    if problem.window is not None:
        kept, pullback = cases.pool_call("max", problem, x, vjp=True, backend=backend)
        compare.equal(kept, y, line)
        compare.equal(pullback(dy), expected, line)
        call = partial(max_dgrad, problem, dy, x, backend, indices=indices)
        compare.equal(settled(call, expected, [dy, x, indices], line), expected, line)


def max_dgrad(problem: PoolProblem, dy: Array, x: Array, backend: str, **options: Any) -> Array:
    if problem.window is None:
        return cases.pool_call("max", problem, x, vjp=True, backend=backend)[1](dy)
    function = getattr(fastconv, f"max_pool{problem.ndim}d_dgrad")
    return function(dy, x, **cases.pool_arguments(problem), backend=backend, **options)


def check_avgpool(backend: str, op: str, case: str | PoolProblem) -> None:
    """Averages and their gradients lie within the rounding bound; where the divisor is 4, integers are exact."""
    problem = PoolProblem.parse(case) if isinstance(case, str) else case
    line = repro(backend, op, problem)
    exact = problem.divisor == 4
    x, dy = ((cases.pool_integers if exact else cases.pool_floats)(problem, role) for role in ("x", "y"))
    double = replace(problem, dtype="float64")
    for data, gradient in ((x, False), (dy, True)):
        wide = compare.wide(data)
        call = partial(avg, problem, data, gradient, backend)
        expected = avg(double, wide, gradient, "reference")
        actual = settled(call, expected.astype(data.dtype), [data], line)
        if exact:
            compare.equal(actual, expected.astype(data.dtype), line)
        scale = avg(
            replace(double, divisor=problem.divisor and abs(problem.divisor)), np.abs(wide), gradient, "reference"
        )
        compare.within(actual, expected, scale, problem.taps + 2, line)


def avg(problem: PoolProblem, data: Array, gradient: bool, backend: str, out: Array | None = None) -> Array:
    """The averages of x, or the gradient from dy."""
    if not gradient:
        return cases.pool_call("avg", problem, data, backend=backend, out=out)
    if problem.window is None:  # has its gradient by vjp only
        x = np.zeros(problem.shape("x"), data.dtype)
        dx = cases.pool_call("avg", problem, x, vjp=True, backend=backend)[1](data)
        if out is None:
            return dx
        out[...] = dx
        return out
    function = getattr(fastconv, f"avg_pool{problem.ndim}d_dgrad")
    return function(
        data, problem.shape("x"), **cases.pool_arguments(problem), count_include_pad=problem.count_include_pad,
        divisor=problem.divisor, backend=backend, out=out,
    )  # fmt: skip


def check_lppool(backend: str, op: str, case: str | PoolProblem) -> None:
    """Norms and their gradients lie within a bound on the roundings of their powers."""
    problem = PoolProblem.parse(case) if isinstance(case, str) else case
    line = repro(backend, op, problem)
    x, dy = cases.pool_floats(problem, "x"), cases.pool_floats(problem, "y", seed=1)
    expected = cases.pool_call("lp", replace(problem, dtype="float64"), compare.wide(x), backend="reference")
    call = partial(cases.pool_call, "lp", problem, x, backend=backend)
    powers = (problem.taps + 16) * max(1.0, 1.0 / problem.p) + 16
    compare.within(settled(call, expected.astype(x.dtype), [x], line), expected, expected, powers, line)
    wanted = lp_dgrad(problem, dy, x, "reference", wide=True)
    scale = lp_dgrad(problem, np.abs(dy), np.abs(x), "reference", wide=True)
    roundings = problem.taps + (abs(problem.p - 1.0) + 1.0) * powers
    compare.within(lp_dgrad(problem, dy, x, backend), wanted, scale, roundings, line)


def lp_dgrad(problem: PoolProblem, dy: Array, x: Array, backend: str, wide: bool = False) -> Array:
    if wide:
        problem, dy, x = replace(problem, dtype="float64"), compare.wide(dy), compare.wide(x)
    return cases.pool_call("lp", problem, x, vjp=True, backend=backend)[1](dy)


def check_unpool(backend: str, op: str, case: str | PoolProblem) -> None:
    """What max pooling took goes back to where it was, and the gradient comes from there."""
    problem = PoolProblem.parse(case) if isinstance(case, str) else case
    line = repro(backend, op, problem)
    assert problem.window is not None
    x = cases.pool_integers(problem, "x")
    y, indices = cases.pool_call("max", problem, x, return_indices=True, backend="reference")
    name, ksize, window = f"max_unpool{problem.ndim}d", problem.window.ksize, problem.window
    arguments = {"stride": window.stride, "output_size": problem.size, "layout": problem.layout}
    expected = getattr(fastconv, name)(y, indices, ksize, **arguments, backend="reference")
    call = partial(getattr(fastconv, name), y, indices, ksize, **arguments, backend=backend)
    compare.equal(settled(call, expected, [y, indices], line), expected, line)
    dx = cases.pool_integers(problem, "x", seed=1)
    vjp = partial(getattr(fastconv, f"{name}_vjp"), y, indices, ksize, **arguments)
    compare.equal(vjp(backend=backend)[1](dx), vjp(backend="reference")[1](dx), line)


# ---------------------------------------------------------------- signals


def check_signal(backend: str, op: str, case: str) -> None:
    """`case` is such as ``in1=6x7 in2=3x2 mode=same dtype=float32``; integers are exact by every method."""
    words = dict(word.split("=") for word in case.split())
    dtype = cases.dtype_of(words["dtype"])
    shapes = [tuple(int(n) for n in words[name].split("x") if n) for name in ("in1", "in2")]
    rng, line = cases.generator(case), repro(backend, op, case)
    in1, in2 = (rng.integers(0 if dtype.kind in "ub" else -4, 5, shape).astype(dtype) for shape in shapes)
    if dtype.kind == "c":
        in1, in2 = in1 + 1j * np.flip(in1), in2 - 2j * np.flip(in2)
    in1, in2 = in1.astype(dtype), in2.astype(dtype)
    options = {name: words[name] for name in ("method", "boundary") if name in words}
    function = partial(getattr(fastconv, op), in1, in2, words["mode"], **options)
    expected = function(backend="reference")
    actual = settled(partial(function, backend=backend), expected, [in1, in2], line)
    if options.get("method") != "fft" or dtype.kind in "iub":
        compare.equal(actual, expected, line)
        return
    limit = FFT_ROUNDINGS * compare.ROUNDOFF[f"float{128 // 2 if dtype.itemsize in (8, 16) else 32}"]
    bound = np.full(expected.shape, limit * np.linalg.norm(np.abs(in1)) * np.linalg.norm(np.abs(in2)))
    compare.within_limit(actual, compare.wide(expected), bound, line)


FFT_ROUNDINGS = 64  # a transform's error is a few roundings per stage, relative to the norm of what it transforms

# ---------------------------------------------------------------- the list, and the run

OPS: dict[str, Callable[[str, str, str], None]] = {
    "conv_fprop": check_conv,
    "conv_transpose": check_conv,
    "conv_dgrad": check_conv,
    "conv_wgrad": check_conv,
    "bias_grad": check_bias_grad,
    "activation": check_activation,
    "max_pool": check_maxpool,
    "avg_pool": check_avgpool,
    "lp_pool": check_lppool,
    "max_unpool": check_unpool,
    "correlate": check_signal,
    "convolve": check_signal,
    "correlate2d": check_signal,
    "convolve2d": check_signal,
}


class Check(NamedTuple):
    """One thing to check: `verify(backend)` raises an AssertionError where that backend is wrong."""

    op: str
    case: str
    verify: Callable[[str], None]


def checks() -> Iterator[Check]:
    """Every op with the problems it is checked on."""
    for op, case in named():
        yield Check(op, case, lambda backend, op=op, case=case: replay(backend, op, case))  # type: ignore[misc]


def named() -> Iterator[tuple[str, str]]:
    large = not simulated()  # Numba's simulator would take hours over them
    convs = [cases.conv(name) for name in cases.CONV | (cases.CONV_MID if large else {})]
    convs += [
        cases.conv(name, dtype=t)
        for name in ("dense", "mid_3x3")[: 1 + large]
        for t in ("float64", "float16", "bfloat16", "int32")
    ]
    pools = [cases.pool(name) for name in cases.POOL | (cases.POOL_MID if large else {})]
    for op in ("conv_fprop", "conv_dgrad", "conv_wgrad", "conv_transpose"):
        yield from ((op, str(for_op(op, problem))) for problem in convs)
    yield from (("bias_grad", cases.POOL[name]) for name in ("halve", "nhwc", "pool1d", "pool3d"))
    yield from (("activation", f"conv1d n=2 c=3 size=65 k=3 ksize=1 groups=3 activation={a}") for a in ACTIVATIONS)
    for op in ("max_pool", "avg_pool"):
        yield from ((op, str(problem)) for problem in pools)
    yield from (("max_pool", str(cases.pool("overlap", dtype=t))) for t in ("int8", "uint8", "int64", "float16"))
    lps = [cases.pool(name, p=p) for name in ("padded", "nhwc", "pool3d", "ceil") for p in (1.0, 2.0, 3.0)]
    yield from (("lp_pool", str(problem)) for problem in lps)
    yield from (("max_unpool", cases.POOL[name]) for name in ("halve", "overlap", "nhwc", "pool1d", "pool3d"))
    yield from signals()


def signals() -> Iterator[tuple[str, str]]:
    for shape1, shape2 in cases.SIGNAL.values():
        shapes = f"in1={'x'.join(map(str, shape1))} in2={'x'.join(map(str, shape2))}"
        for op, mode, method in (
            ("correlate", "full", "direct"),
            ("convolve", "same", "auto"),
            ("correlate", "valid", "fft"),
        ):
            for dtype in ("float32", "complex128", "int32"):
                yield op, f"{shapes} mode={mode} dtype={dtype} method={method}"
        if len(shape1) == 2:
            for boundary in ("fill", "wrap", "symm"):
                yield "correlate2d", f"{shapes} mode=same dtype=float64 boundary={boundary}"
                yield "convolve2d", f"{shapes} mode=full dtype=int16 boundary={boundary}"


@dataclass(frozen=True)
class Result:
    """The outcome of one check on one backend; `detail` tells what was wrong and how to see it again."""

    backend: str
    op: str
    case: str
    ok: bool
    detail: str = ""


Progress = Callable[[list[tuple[str, Check]]], Iterable[tuple[str, Check]]]


def run(backend_names: Iterable[str] | None = None, progress: Progress = list, quick: bool = False) -> list[Result]:
    """Run every check on every backend named, or on every available one. On a GPU, NumPy arrays go there and back.

    Parameters
    ----------
    backend_names : names, optional
        A backend that is named and unavailable fails its checks.
    progress : callable
        Is given the list of what will run and returns an iterable over it: ``tqdm``, ``rich.progress.track``.
    quick : bool
        Only the first problems of each op: for runs under a tool that slows everything down.

    Returns
    -------
    list of Result
    """
    names = (
        [name for name, available, _ in fastconv.backends() if available] if backend_names is None else backend_names
    )
    todo = [(name, check) for name in names for check in (few() if quick else checks())]
    return [outcome(name, check) for name, check in progress(todo)]


def few() -> Iterator[Check]:
    """The first `QUICK` checks of each op."""
    seen: Counter[str] = Counter()
    for check in checks():
        seen[check.op] += 1
        if seen[check.op] <= QUICK:
            yield check


def outcome(backend: str, check: Check) -> Result:
    try:
        with gpu.through_gpu() if gpu.needed(backend) else nullcontext():
            check.verify(backend)
    except Exception as error:  # whatever goes wrong is the finding
        detail = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        return Result(backend, check.op, check.case, False, detail)
    return Result(backend, check.op, check.case, True)

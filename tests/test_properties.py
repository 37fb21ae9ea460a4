"""Geometry that nobody thought of: hypothesis draws the problem, the reference and a count by hand decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastconv
from fastconv import ConvProblem, PoolProblem, ShapeError
from fastconv.testing import cases, compare, selftest

ACTIVATIONS = st.sampled_from([None, "relu", "relu6"])


@st.composite
def conv_problems(draw) -> ConvProblem:
    """Small convolutions of every rank, stride, dilation, padding, grouping, layout and dtype."""
    ndim = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c, k = (groups * draw(st.integers(1, 4)) for _ in range(2))
    layout = draw(st.sampled_from(["NCHW", "NHWC"]))

    def per_axis(low, high):
        return "x".join(str(draw(st.integers(low, high))) for _ in range(ndim))

    pads = "x".join(f"{draw(st.integers(0, 3))}:{draw(st.integers(0, 3))}" for _ in range(ndim))
    words = [
        f"conv{ndim}d n={draw(st.integers(0, 3))} c={c} size={per_axis(1, 9)} k={k} ksize={per_axis(1, 4)}",
        f"stride={per_axis(1, 4)} pad={pads} dilation={per_axis(1, 3)} groups={groups} layout={layout}",
        f"weight_layout={draw(st.sampled_from(['OIHW', 'OHWI', 'HWIO']))}",
        f"dtype={draw(st.sampled_from(['float16', 'bfloat16', 'float32', 'float64', 'int32']))}",
    ]
    if draw(st.booleans()):
        words.append(f"bias={k}")
    if activation := draw(ACTIVATIONS):
        words.append(f"activation={activation}")
    return problem_or_reject(ConvProblem, " ".join(words))


@st.composite
def pool_problems(draw) -> PoolProblem:
    ndim = draw(st.integers(1, 3))
    ksize, dilation = ([draw(st.integers(1, 3)) for _ in range(ndim)] for _ in range(2))
    pads = [[draw(st.integers(0, d * (k - 1))) for _ in range(2)] for k, d in zip(ksize, dilation, strict=True)]
    size, stride = ("x".join(str(draw(st.integers(1, high))) for _ in range(ndim)) for high in (8, 4))
    words = [
        f"pool{ndim}d n={draw(st.integers(0, 2))} c={draw(st.integers(1, 5))} size={size}",
        f"ksize={'x'.join(map(str, ksize))} stride={stride} pad={'x'.join(f'{lo}:{hi}' for lo, hi in pads)}",
        f"dilation={'x'.join(map(str, dilation))} rounding={draw(st.sampled_from(['floor', 'ceil']))}",
        f"layout={draw(st.sampled_from(['NCHW', 'NHWC']))}",
        f"dtype={draw(st.sampled_from(['float32', 'float64', 'float16']))}",
        f"count_include_pad={draw(st.booleans())}",
    ]
    return problem_or_reject(PoolProblem, " ".join(words))


def problem_or_reject(kind, text):
    try:
        return kind.parse(text)
    except ShapeError as error:
        assume("does not fit" not in str(error))
        raise


@given(conv_problems())
@settings(max_examples=200)
def test_conv_lines_parse_back(problem):
    assert ConvProblem.parse(str(problem)) == problem


@given(pool_problems())
@settings(max_examples=200)
def test_pool_lines_parse_back(problem):
    assert PoolProblem.parse(str(problem)) == problem


@given(conv_problems())
@settings(max_examples=200)
def test_output_extents_by_counting(problem):
    """As many outputs as windows fit, one start at a time."""
    window = problem.window
    for n, out, stride, extent, (low, high) in zip(
        problem.size, problem.out, window.stride, window.extent, window.pad, strict=True
    ):
        assert out == sum(start + extent <= low + n + high for start in range(0, low + n + high, stride))


@given(conv_problems())
def test_shapes_of_all_passes(problem):
    """Each pass gives the shape of what it is the gradient to."""
    problem = cases.replace(problem, dtype="float64")
    for op, role in (("conv_fprop", "y"), ("conv_dgrad", "x"), ("conv_wgrad", "w"), ("conv_transpose", "x")):
        bare = selftest.for_op(op, problem)
        result = cases.conv_call(op, bare, cases.conv_integers(bare, op), backend="reference")
        assert result.shape == bare.shape(role)


@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad", "conv_transpose"])
def test_conv(backend, op):
    """Integer data on drawn geometry: equal to the reference."""

    @given(conv_problems())
    @settings(max_examples=120)
    def check(problem):
        selftest.conv_exact(backend, op, problem)

    check()


@pytest.mark.parametrize("check", [selftest.check_maxpool, selftest.check_avgpool, selftest.check_lppool])
def test_pool(backend, check):
    @given(pool_problems())
    @settings(max_examples=80)
    def run(problem):
        check(backend, check.__name__, problem)

    run()


@pytest.mark.parametrize("op", ["correlate", "convolve"])
def test_signal(backend, op):
    """Integers of drawn shapes, modes and methods: equal to the reference."""

    @given(st.data())
    @settings(max_examples=80)
    def check(data):
        ndim = data.draw(st.integers(1, 3))
        high = (40, 9, 5)[ndim - 1]
        shape1, shape2 = (tuple(data.draw(st.integers(1, high)) for _ in range(ndim)) for _ in range(2))
        mode = data.draw(st.sampled_from(["full", "same", "valid"]))
        method = data.draw(st.sampled_from(["direct", "fft", "auto"]))
        dtype = data.draw(st.sampled_from(["int8", "int32", "int64", "uint16"]))
        rng = np.random.default_rng(1)
        info = np.iinfo(dtype)
        in1, in2 = (rng.integers(info.min, info.max, s, dtype=dtype, endpoint=True) for s in (shape1, shape2))
        larger = [a >= b for a, b in zip(shape1, shape2, strict=True)]
        smaller = [a <= b for a, b in zip(shape1, shape2, strict=True)]
        assume(mode != "valid" or all(larger) or all(smaller))
        function = getattr(fastconv, op)
        expected = function(in1, in2, mode, "direct", backend="reference")
        compare.equal(
            function(in1, in2, mode, method, backend=backend), expected, f"{op} {shape1} {shape2} {mode} {method}"
        )

    check()


@given(n=st.integers(1, 12), k=st.integers(1, 4), s=st.integers(1, 3), d=st.integers(1, 3), data=st.data())
def test_transposed_undoes_the_shape(n, k, s, d, data):
    """The forward convolution of the transposed output's shape has the input's shape."""
    pad, extra = data.draw(st.integers(0, 3)), data.draw(st.integers(0, max(s, d) - 1))
    size = (n - 1) * s + d * (k - 1) + 1 - 2 * pad + extra
    assume(size > 0)
    assume(extra < s or extra <= pad)
    x, w = np.ones((1, 2, n)), np.ones((2, 3, k))
    y = fastconv.conv_transpose1d(x, w, stride=s, dilation=d, padding=pad, output_padding=extra, backend="reference")
    assert y.shape == (1, 3, size)
    whole = fastconv.conv_transpose1d(x, w, stride=s, dilation=d, backend="reference")
    longer = np.pad(whole, ((0, 0), (0, 0), (0, extra)))
    assert np.array_equal(y, longer[..., pad : longer.shape[-1] - pad])
    if extra < s:
        assert fastconv.explain("conv1d", y, w, stride=s, dilation=d, padding=pad).problem.out == (n,)

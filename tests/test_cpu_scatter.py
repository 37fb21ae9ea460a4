"""The cpu backend's dgrad to small images: tiles that overlap, images of few pixels, chunks, parts, and any arrays."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest

import fastconv
from fastconv.backends.cpu import conv, scatter
from fastconv.testing import cases, selftest

LINES = {
    "1x1": "conv2d n=2 c=100 size=7 k=300 ksize=1",
    "1x1_s2": "conv2d n=1 c=70 size=27x31 k=65 ksize=1 stride=2",
    "few_pixels": "conv2d n=3 c=96 size=3x2 k=600 ksize=1",
    "one_pixel": "conv2d n=2 c=130 size=4 k=400 ksize=4",
    "strided": "conv2d n=3 c=40 size=15x14 k=200 ksize=3 pad=1 stride=2",
    "residues_without_taps": "conv2d n=2 c=33 size=21x20 k=130 ksize=2x1 stride=3x2",
    "dilated": "conv2d n=1 c=50 size=12 k=193 ksize=3 pad=2 dilation=2 precision=ieee",
    "grouped": "conv2d n=2 c=80 size=13x11 k=260 ksize=3 pad=1:0x2 stride=2 groups=2",
    "many_images": "conv2d n=40 c=17 size=9 k=129 ksize=3 stride=2",
    "1d": "conv1d n=2 c=24 size=90 k=200 ksize=5 pad=2 stride=3",
    "3d": "conv3d n=1 c=20 size=5x6x7 k=131 ksize=3x2x3 pad=1 stride=2x1x1",
}


def problem_of(name, dtype="float32"):
    return cases.ConvProblem.parse(f"{LINES[name]} dtype={dtype}")


@pytest.mark.parametrize("name", LINES)
def test_exact(name):
    problem = selftest.for_op("conv_dgrad", problem_of(name))
    assert conv.choose("conv_dgrad", problem)[0] == "scatter"
    selftest.conv_exact("cpu", "conv_dgrad", problem)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["1x1", "grouped"])
def test_dtypes(name, dtype):
    selftest.conv_exact("cpu", "conv_dgrad", problem_of(name, dtype))
    selftest.conv_bounded("cpu", "conv_dgrad", problem_of(name, dtype))


@pytest.mark.parametrize("name", ["1x1_s2", "strided", "3d"])
def test_transposed(name):
    """A transposed convolution adds a bias and has an activation."""
    problem = problem_of(name)
    rng = np.random.default_rng(3)
    y = rng.integers(-3, 4, problem.dims("y")).astype("f")
    w = rng.integers(-3, 4, problem.dims("w")).astype("f")
    bias = rng.integers(-9, 10, problem.C).astype("f")
    transposed = {2: fastconv.conv_transpose2d, 3: fastconv.conv_transpose3d}[problem.ndim]
    window = problem.window
    options = {"stride": window.stride, "padding": window.pad, "activation": "relu"}
    expected = transposed(y, w, bias, backend="reference", **options)
    assert 0 < (expected == 0).mean() < 1
    np.testing.assert_array_equal(transposed(y, w, bias, backend="cpu", **options), expected)


@pytest.mark.parametrize("weight_layout", ["OHWI", "HWIO"])
def test_weight_layouts(weight_layout):
    """Filters that do not lie one after the other go the way that rearranges them."""
    selftest.conv_exact("cpu", "conv_dgrad", replace(problem_of("strided"), weight_layout=weight_layout))


def test_views():
    """Arrays that lie in no usual order: every second pixel, rows turned round, channels turned to the end."""
    problem = problem_of("strided")
    dy, w = cases.conv_integers(problem, "conv_dgrad")
    options = {"stride": 2, "padding": 1}
    shape = problem.dims("x")
    expected = fastconv.conv2d_dgrad(dy, w, shape, backend="reference", **options)
    wide = np.repeat(dy, 2, axis=-1)[..., ::2]
    turned = np.ascontiguousarray(dy[..., ::-1])[..., ::-1]
    moved = np.ascontiguousarray(np.moveaxis(dy, 1, -1))
    for view in (wide, turned, np.moveaxis(moved, -1, 1)):
        np.testing.assert_array_equal(fastconv.conv2d_dgrad(view, w, shape, **options), expected)
    for out in (np.zeros((*shape[:-1], 2 * shape[-1]), "f")[..., ::2], np.zeros((*shape[:-1], 99), "f")[..., 3:17]):
        np.testing.assert_array_equal(fastconv.conv2d_dgrad(dy, w, shape, out=out, **options), expected)


@pytest.mark.parametrize("where", ["dy", "w"])
def test_infinity(where):
    """It reaches the cells that it has a product with, and no others."""
    problem = problem_of("strided")
    dy, w = (np.abs(array) + np.float32(0.5) for array in cases.conv_floats(problem, "conv_dgrad"))
    (dy if where == "dy" else w).flat[7] = np.inf
    expected = cases.conv_call("conv_dgrad", problem, (dy, w), backend="reference")
    actual = cases.conv_call("conv_dgrad", problem, (dy, w), backend="cpu")
    np.testing.assert_array_equal(np.isposinf(actual), np.isposinf(expected))
    assert not np.isnan(actual).any()


@pytest.mark.parametrize("name", ["1x1", "many_images", "grouped"])
def test_bits_do_not_depend_on_threads(name):
    problem = problem_of(name)
    operands = cases.conv_floats(problem, "conv_dgrad")
    threads = numba.get_num_threads()
    results = []
    for count in (1, threads):
        fastconv.set_num_threads(count)
        results.append(cases.conv_call("conv_dgrad", problem, operands, backend="cpu"))
    np.testing.assert_array_equal(*results)


def test_rule():
    """Large images, few channels and products that strips or Winograd share go other ways."""
    line = "conv2d n=1 c=256 size=14 k=256 ksize=3 pad=1 stride=2"
    others = {
        line: "scatter",
        line.replace("c=256", "c=8"): "gemm",
        line.replace("size=14", "size=112"): "strips",
        line.replace("size=14", "size=56").replace("k=256", "k=64"): "strips",
        line.replace("stride=2", "stride=1"): "winograd",
        line + " layout=NHWC": "gemm",
        "conv2d n=1 c=256 size=7 k=256 ksize=1": "scatter",
        "conv2d n=1 c=256 size=14 k=256 ksize=1": "gemm",
        "conv2d n=1 c=256 size=14 k=256 ksize=1 stride=2": "scatter",
    }
    for one, algorithm in others.items():
        assert conv.choose("conv_dgrad", cases.ConvProblem.parse(one))[0] == algorithm, one
    assert "too large" in scatter.refuses("conv_dgrad", cases.ConvProblem.parse(line.replace("size=14", "size=112")))
    assert "dgrad" in scatter.refuses("conv_fprop", cases.ConvProblem.parse(line))

"""Strips of the cpu backend: every tile and its seams, phases of the step, woven rows, bunches of groups."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest

import fastconv
from fastconv.backends.cpu import conv
from fastconv.testing import cases, selftest

#: Every one is too large for NumPy's product. The passes are those that strips take.
LINES = {
    "image": ("conv2d n=2 c=3 size=35x37 k=40 ksize=3 pad=1 bias=40 activation=relu", "fprop dgrad"),
    "image_s2": ("conv2d n=1 c=3 size=61x58 k=33 ksize=7 stride=2 pad=3", "fprop dgrad wgrad"),
    "image_s4": ("conv2d n=1 c=3 size=83x70 k=20 ksize=11 stride=4", "fprop dgrad wgrad"),
    "two_steps": ("conv2d n=1 c=4 size=41x47 k=33 ksize=5x4 stride=3x2 pad=1:2x0", "fprop dgrad wgrad"),
    "residues_without_taps": ("conv2d n=2 c=3 size=90x91 k=80 ksize=2x3 stride=3x4", "fprop dgrad"),
    "pixels_between": ("conv2d n=2 c=3 size=80x81 k=80 ksize=1x3 stride=2 pad=0x5", "fprop dgrad"),
    "grey": ("conv2d n=1 c=1 size=50x60 k=30 ksize=5 pad=9 dilation=4x2", "fprop dgrad wgrad"),
    "two": ("conv2d n=2 c=2 size=40x31 k=50 ksize=3 bias=50 activation=relu6", "fprop dgrad"),
    "to_image": ("conv2d n=1 c=64 size=31x33 k=3 ksize=3 pad=1 bias=3 activation=relu6", "fprop dgrad"),
    "to_image_s2": ("conv2d n=1 c=45 size=51x53 k=4 ksize=3 pad=1 stride=2", "fprop dgrad"),
    "groups_of_4": ("conv2d n=2 c=40 size=17x19 k=40 ksize=3 pad=1 groups=10 bias=40", "fprop dgrad wgrad"),
    "groups_of_6": ("conv2d n=1 c=30 size=27x21 k=60 ksize=3 pad=1 groups=5", "fprop dgrad"),
    "groups_of_16": ("conv2d n=1 c=48 size=15x14 k=48 ksize=3 pad=1 stride=2 groups=3", "fprop dgrad wgrad"),
    "groups_of_32": ("conv2d n=3 c=64 size=7x7 k=64 ksize=3 pad=1 groups=2", "fprop dgrad wgrad"),
    "groups_of_20": ("conv2d n=1 c=40 size=31x30 k=60 ksize=2x3 stride=3x2 groups=2 bias=60", "fprop dgrad wgrad"),
    "groups_of_2": ("conv2d n=1 c=60 size=21x20 k=40 ksize=3x2 pad=1:0x1 dilation=1x2 groups=20", "wgrad"),
    "1d": ("conv1d n=2 c=2 size=5000 k=10 ksize=9 pad=4 stride=2", "fprop dgrad wgrad"),
    "strided": ("conv2d n=1 c=40 size=33x31 k=70 ksize=3 pad=1 stride=2", "dgrad"),
}
PASSES = [(name, f"conv_{word}") for name, (_, words) in LINES.items() for word in words.split()]


def problem_of(name, layout="NCHW", dtype="float32"):
    return cases.ConvProblem.parse(f"{LINES[name][0]} layout={layout} dtype={dtype}")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("name", "op"), PASSES)
def test_exact(name, op, layout):
    problem = selftest.for_op(op, problem_of(name, layout))
    if layout == "NCHW" or problem.groups > 1:
        assert conv.choose(op, problem)[0] == "strips"
    selftest.conv_exact("cpu", op, problem)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("name", "op", "dtype"),
    [
        ("image_s2", "conv_dgrad", "float64"),
        ("image_s2", "conv_dgrad", "bfloat16"),
        ("groups_of_6", "conv_fprop", "float64"),
        ("groups_of_6", "conv_fprop", "int32"),
        ("groups_of_16", "conv_wgrad", "float64"),
        ("groups_of_32", "conv_fprop", "float64"),
    ],
)
def test_dtypes(name, op, layout, dtype):
    dtypes = ("int8", "int8") if dtype == "int32" else ()
    selftest.conv_exact("cpu", op, problem_of(name, layout, dtype), dtypes)


@pytest.mark.parametrize("weight_layout", ["OHWI", "HWIO"])
@pytest.mark.parametrize(
    ("name", "op"),
    [("image_s2", "conv_dgrad"), ("groups_of_16", "conv_fprop"), ("groups_of_32", "conv_wgrad"), ("1d", "conv_wgrad")],
)
def test_weight_layouts(name, op, weight_layout):
    selftest.conv_exact("cpu", op, replace(problem_of(name), weight_layout=weight_layout))


def test_views():
    """Arrays that lie in no usual order: every second pixel of a row, and rows turned round."""
    problem = problem_of("groups_of_4")
    x, w, bias = cases.conv_integers(problem, "conv_fprop")
    expected = fastconv.conv2d(x, w, bias, padding=1, groups=10)
    wide = np.repeat(x, 2, axis=-1)[..., ::2]
    turned = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    out = np.zeros((*expected.shape[:-1], 2 * expected.shape[-1]), np.float32)[..., ::2]
    for view in (wide, turned):
        np.testing.assert_array_equal(fastconv.conv2d(view, w, bias, padding=1, groups=10), expected)
    np.testing.assert_array_equal(fastconv.conv2d(x, w, bias, padding=1, groups=10, out=out), expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("where", ["data", "w"])
@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("image_s2", "conv_fprop"),
        ("image_s2", "conv_dgrad"),
        ("groups_of_4", "conv_dgrad"),
        ("groups_of_16", "conv_dgrad"),
    ],
)
def test_infinity(name, op, where, layout):
    """It reaches what it has a product with: not the pixels computed beyond a row, nor what lies beyond dy."""
    problem = selftest.for_op(op, replace(problem_of(name, layout), bias=None, activation=None))
    data, w = cases.conv_floats(problem, op)[:2]
    if where == "w" and op == "conv_fprop":
        return  # its padding is of zeros, which are multiplied
    data, w = np.abs(data) + np.float32(0.5), np.abs(w) + np.float32(0.5)
    (data if where == "data" else w).flat[3] = np.inf
    operands = (data, w, None) if op == "conv_fprop" else (data, w)
    expected = cases.conv_call(op, problem, operands, backend="reference")
    actual = cases.conv_call(op, problem, operands, backend="cpu")
    np.testing.assert_array_equal(np.isposinf(actual), np.isposinf(expected))
    assert not np.isnan(actual).any()


def test_bits_do_not_depend_on_threads():
    of_strips = [("image_s2", "conv_dgrad"), ("image", "conv_fprop"), ("groups_of_16", "conv_fprop")]
    for name, op in (*of_strips, ("image_s2", "conv_wgrad"), ("groups_of_4", "conv_wgrad")):
        problem = selftest.for_op(op, problem_of(name))
        operands = cases.conv_floats(problem, op)
        threads = numba.get_num_threads()
        results = []
        for count in (1, threads):
            fastconv.set_num_threads(count)
            results.append(cases.conv_call(op, problem, operands, backend="cpu"))
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_prepared_filters(layout):
    for name in ("image_s2", "groups_of_4", "groups_of_16"):
        problem = replace(problem_of(name, layout), bias=None)
        x, w = cases.conv_floats(problem, "conv_fprop")[:2]
        window = problem.window
        options = {"stride": window.stride, "padding": window.pad, "groups": problem.groups, "layout": layout}
        plan = fastconv.plan("conv2d", x, w, **options).prepare(w)
        np.testing.assert_array_equal(plan(x, w), fastconv.conv2d(x, w, **options))


def test_explain():
    told = fastconv.explain("conv2d", np.ones((1, 3, 64, 64), np.float32), np.ones((64, 3, 3, 3), np.float32))
    assert told.algorithm == "strips"
    assert "few channels" in told.why

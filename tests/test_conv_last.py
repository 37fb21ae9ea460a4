"""Channels-last GEMM of the cpu backend: the tails and the seams of its tiles, and who reads what in place."""

from __future__ import annotations

import numba
import numpy as np
import pytest

import fastconv
from fastconv.backends.cpu.passes import cut
from fastconv.testing import cases, selftest

#: Every one is too large for NumPy's product, and Winograd takes none of them exactly.
LINES = {
    "in_place": "conv2d n=3 c=64 size=9 k=96 ksize=1 bias=96 activation=relu",
    "parts_in_place": "conv2d n=2 c=400 size=7 k=64 ksize=1 bias=64",  # three parts of DEPTH rows
    "idle_lanes": "conv2d n=2 c=50 size=13x11 k=61 ksize=1 bias=61 activation=relu6",
    "parts": "conv2d n=2 c=70 size=13x11 k=61 ksize=3 stride=2 pad=1 bias=61",
    "stem": "conv2d n=2 c=3 size=41x39 k=33 ksize=7x5 stride=2x3 pad=6:1x3",  # taps beyond both borders
    "dilated": "conv2d n=1 c=20 size=19x21 k=50 ksize=3 pad=4 dilation=3",
    "grouped": "conv2d n=2 c=48 size=13 k=96 ksize=3 pad=1 groups=3 bias=96",
    "runs": "conv2d n=2 c=8 size=70 k=17 ksize=2 stride=1",  # of pixels in wgrad
    "1d": "conv1d n=3 c=40 size=99 k=56 ksize=9 pad=4 stride=2",
    "3d": "conv3d n=1 c=9 size=9x11x10 k=24 ksize=3x2x3 pad=1 stride=1x2x1",
}


def problem_of(name, weight_layout="HWIO", dtype="float32"):
    line = f"{LINES[name]} layout=NHWC weight_layout={weight_layout} dtype={dtype}"
    return cases.ConvProblem.parse(line)


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
def test_exact(op, name):
    selftest.conv_exact("cpu", op, problem_of(name))


@pytest.mark.parametrize("weight_layout", ["OHWI", "OIHW"])
@pytest.mark.parametrize("name", ["parts", "grouped"])
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
def test_weight_layouts(op, name, weight_layout):
    selftest.conv_exact("cpu", op, problem_of(name, weight_layout))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
@pytest.mark.parametrize("name", ["in_place", "parts"])
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
def test_dtypes(op, name, dtype):
    dtypes = ("int8", "int8") if dtype == "int32" else ()
    selftest.conv_exact("cpu", op, problem_of(name, "OHWI", dtype), dtypes)


def test_bits_do_not_depend_on_threads():
    """Nor on how the work is cut for them."""
    problem = problem_of("parts")
    threads = numba.get_num_threads()
    for op in ("conv_fprop", "conv_dgrad", "conv_wgrad"):
        operands = cases.conv_floats(cases.replace(problem, precision="ieee"), op)
        results = []
        for count in (1, threads):
            fastconv.set_num_threads(count)
            results.append(cases.conv_call(op, problem, operands, backend="cpu"))
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_work_is_cut_evenly(count):
    """Parts keep to the limits of a task, and the last thread ends soon after the first."""
    a, b = cut(2, 40, 16, 9, 4, count)
    rows, columns = -(-40 // a), -(-9 // b)
    assert rows <= 16
    assert columns <= 4
    assert -(-2 * a * b // count) * rows * columns <= 1.25 * 2 * 40 * 9 / count


@pytest.mark.parametrize("strided", [False, True])
def test_prepared_filters(strided):
    """Kept panels serve arrays of the plan's layout; of another memory order, the filters are read anew."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 15, 15, 40)).astype(np.float32)
    if strided:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    w = rng.standard_normal((3, 3, 40, 50)).astype(np.float32)
    options = {"stride": 2, "padding": 1, "layout": "NHWC", "precision": "ieee"}
    plan = fastconv.plan("conv2d", x, w, **options).prepare(w)
    np.testing.assert_array_equal(plan(x, w), fastconv.conv2d(x, w, **options))


def test_explain_tells_the_lanes():
    line = {"stride": 2, "layout": "NHWC"}
    last = fastconv.explain("conv2d", np.ones((1, 28, 28, 64), np.float32), np.ones((3, 3, 64, 64), np.float32), **line)
    assert (last.algorithm, last.config["lanes"]) == ("gemm", "channels")
    first = fastconv.explain("conv2d", np.ones((1, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32))
    assert first.config.get("lanes") != "channels"

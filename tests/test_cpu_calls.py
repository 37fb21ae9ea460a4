"""How the kernels of the cpu backend are called: by entry point, with numbers worked out once for each form."""

from __future__ import annotations

import threading

import numba
import numpy as np
import pytest

import fastconv
from fastconv import tuning
from fastconv.backends import forms
from fastconv.backends.cpu import calls, conv, workspace
from fastconv.compiler.host import HostKernel
from fastconv.problem import ConvProblem
from fastconv.testing import selftest


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "complex128"])
def test_address(dtype):
    whole = np.ones((4, 5, 6), dtype)
    for array in (whole, whole[1:], whole[::-1, ::2], whole.transpose(2, 0, 1), whole[:, 2, None], whole[:0]):
        assert calls.address(array) == array.ctypes.data


def test_every_call_has_the_types_that_its_kernel_was_compiled_for(monkeypatch):
    """Only what stands for a type is looked at when a compiled form is chosen, so nothing else may change its type."""
    forms, plain = {}, HostKernel.__call__

    def checked(kernel, *arguments):
        plain(kernel, *arguments)
        types = tuple(map(numba.typeof, arguments))
        assert forms.setdefault((id(kernel), kernel._kinds(arguments)), types) == types

    monkeypatch.setattr(HostKernel, "__call__", checked)
    before = tuning.autotune()
    fastconv.set_autotune("off")  # kernels for small problems too
    try:
        outcomes = selftest.run(["cpu"], quick=True)
    finally:
        fastconv.set_autotune(before)
    assert all(outcome.ok for outcome in outcomes)
    assert len(forms) >= 10


def test_forms_are_bound_once_and_forgotten_in_time():
    bound = []

    def bind(*arrays):
        bound.append(arrays)
        return lambda *arrays: None

    run = calls.by_form(bind)
    x = np.ones((4, 6))
    for _ in range(3):
        run(x, None)
    assert len(bound) == 1
    run(x.T, None)
    run(x.astype("f"), None)
    run(x, x)
    assert len(bound) == 4
    for size in range(forms.FORMS):
        run(np.ones((1, size + 1)), None)
    before = len(bound)
    run(x, None)
    run(x, None)
    assert len(bound) == before + 1  # forgotten, and bound anew, once


def test_threads_are_part_of_the_form():
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (2, 24, 9, 9)).astype("f")
    w = rng.integers(-4, 5, (48, 24, 3, 3)).astype("f")
    threads = numba.get_num_threads()
    try:
        fastconv.set_num_threads(1)
        plan = fastconv.plan("conv2d", x, w, padding=1).prepare(w)
        alone = plan(x, w)
        fastconv.set_num_threads(threads)
        np.testing.assert_array_equal(plan(x, w), alone)  # filters transformed for one thread serve all
        np.testing.assert_array_equal(fastconv.conv2d(x, w, padding=1), alone)
    finally:
        fastconv.set_num_threads(threads)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("algorithm", "line"),
    [
        ("gemm", "conv2d n=1 c=40 size=20 k=44 ksize=1"),
        ("gemm", "conv2d n=1 c=40 size=20 k=44 ksize=2"),
        ("winograd", "conv2d n=2 c=32 size=40 k=32 ksize=3 pad=1"),
        ("winograd", "conv2d n=1 c=64 size=8 k=64 ksize=3 pad=1"),
        ("strips", "conv2d n=1 c=24 size=30 k=3 ksize=3 pad=1"),
        ("depthwise", "conv2d n=1 c=40 size=20 k=40 ksize=3 pad=1 groups=40"),
    ],
)
def test_scratch_memory_is_held_until_the_kernel_returns(monkeypatch, algorithm, line, layout):
    """Memory too large to be kept goes back when nobody holds it; here it is spoiled then."""
    memory = []

    class Spoiled(workspace.Scratch):
        def __init__(self, nbytes):
            super().__init__(nbytes)
            memory.append(self.array)

        def __del__(self):
            self.array[:] = 0xFF  # a NaN in every float

    monkeypatch.setattr(workspace, "KEPT_BYTES", 0)
    monkeypatch.setattr(workspace, "_local", threading.local())
    monkeypatch.setattr(workspace, "Scratch", Spoiled)
    problem = ConvProblem.parse(f"{line} layout={layout}")
    assert layout == "NHWC" or conv.choose("conv_fprop", problem)[0] == algorithm
    for op in ("conv_fprop", "conv_dgrad", "conv_wgrad"):
        selftest.conv_bounded("cpu", op, problem)
    assert memory


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("ksize", "groups"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_a_bias_of_any_form(layout, ksize, groups):
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, (1, 32, 12, 12)).astype("f")
    w = rng.integers(-3, 4, (48, 32 // groups, ksize, ksize)).astype("f")
    bias = rng.integers(-9, 10, 96).astype("f")[::2]
    if layout == "NHWC":
        x, w = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    expected = fastconv.conv2d(x, w, groups=groups, layout=layout, precision="ieee")
    expected = expected + (bias if layout == "NHWC" else bias[:, None, None])
    for given in (bias, bias.copy(), bias.astype("f2"), bias.reshape(-1, 1, 1)):
        found = fastconv.conv2d(x, w, given, groups=groups, layout=layout, precision="ieee")
        np.testing.assert_array_equal(found, expected)

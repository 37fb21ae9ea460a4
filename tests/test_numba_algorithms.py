"""Every algorithm of the `numba` backend on problems that it would not choose it for; runs where Numba simulates."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv
from fastconv import dispatch
from fastconv.backends.numba_cuda import conv, launcher
from fastconv.backends.numba_cuda.simulator import Memory, simulated
from fastconv.testing import cases, selftest

pytestmark = pytest.mark.skipif(not simulated(), reason="tests/test_numba_simulator.py runs it with the simulator")

NAMES = ["dense", "strided", "dilated_strided", "grouped", "depthwise_multiplier", "pad_wide", "pointwise_strided",
         "nhwc", "bias_relu", "conv3d_strided"]  # fmt: skip
DEPTHWISE = ["depthwise", "depthwise_multiplier", "depthwise_strided", "depthwise_dilated", "conv1d_depthwise",
             "conv3d_depthwise", "grouped", "depthwise_bias_relu"]  # fmt: skip


@pytest.fixture
def chosen(monkeypatch):
    """A function that makes one algorithm the choice for every problem."""
    dispatch.forget()
    yield lambda algorithm: monkeypatch.setattr(conv, "choose", lambda op, problem: (algorithm, "the test's"))
    dispatch.forget()


@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [("direct", name) for name in NAMES] + [("gemm", name) for name in NAMES] + [("depthwise", n) for n in DEPTHWISE],
)
def test_conv(backend, chosen, algorithm, name, op):
    chosen(algorithm)
    problem = selftest.for_op(op, cases.conv(name, precision="ieee"))
    operands = cases.conv_integers(problem, op)
    expected = cases.conv_call(op, problem, operands, backend="reference")
    actual = selftest.settled(
        lambda **out: cases.conv_call(op, problem, operands, backend=backend, **out), expected, operands, str(problem)
    )
    assert np.array_equal(actual, expected)
    assert dispatch.select(op, problem, "numpy", backend).algorithm == algorithm


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_mixed_dtypes(backend, dtype):
    """A float32 x with weights and a bias of other dtypes: each is read as it is stored."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-3, 4, (1, 3, 5, 6)).astype("float32"), rng.integers(-3, 4, (4, 3, 3, 3))
    w, bias = w.astype(cases.dtype_of(dtype)), np.arange(4).astype("float16")
    y = fastconv.conv2d(x, w, bias, backend=backend)
    expected = fastconv.conv2d(x, w, bias, backend="reference")
    assert y.dtype == expected.dtype
    assert np.array_equal(y, expected)


def test_indices_outside_of_their_windows(backend):
    """A user's own indices: their gradients go where they say, in one order."""
    dy = np.arange(1.0, 7.0, dtype=np.float32).reshape(1, 1, 2, 3)
    x, indices = np.zeros((1, 1, 4, 6), np.float32), np.array([23, 0, 0, 23, 5, 5]).reshape(1, 1, 2, 3)
    results = [fastconv.max_pool2d_dgrad(dy, x, 2, indices=indices, backend=b) for b in (backend, "reference")]
    assert np.array_equal(*results)


@pytest.mark.parametrize(("bad", "span"), [(16, "0 to 16"), (-2, "-2 to 0"), (2**40, "0 to 1099511627776")])
def test_indices_outside_of_the_extent(backend, bad, span):
    """Refused in the words of the reference, before anything is written."""
    indices = np.array([0, 0, bad, 0]).reshape(1, 1, 2, 2)
    y, x = np.zeros((1, 1, 2, 2), np.float32), np.zeros((1, 1, 4, 4), np.float32)
    for call in (
        lambda name, out: fastconv.max_unpool2d(y, indices, 2, backend=name, out=out),
        lambda name, out: fastconv.max_pool2d_dgrad(y, x, 2, indices=indices, backend=name, out=out),
    ):
        out, messages = np.full((1, 1, 4, 4), 7, np.float32), set()
        for name in (backend, "reference"):
            with pytest.raises(fastconv.ShapeError, match=rf"\[0, 16\).*got {span}") as caught:
                call(name, out)
            messages.add(str(caught.value))
        assert len(messages) == 1
        assert (out == 7).all()


def test_kernels_compute_beyond_32_bits(backend):
    """Offsets and indices of an array of more than 2**31 elements, of which one window is real memory."""
    row = np.zeros(1, np.int8)
    x = np.lib.stride_tricks.as_strided(row, (1, 1, 2**33), (0, 0, 0))
    y, indices = fastconv.max_pool1d(x, 1, stride=2**32, return_indices=True, backend=backend)
    assert y.shape == (1, 1, 2)
    assert indices.tolist() == [[[0, 2**32]]]


def test_memory_is_guarded():
    """What the simulator's tests rest on: a read or write outside of an array is an error, also of its gaps' end."""
    base = np.arange(24.0).reshape(4, 6)
    memory = Memory(base[::-1, ::2])
    assert [memory[0], memory[2], memory[-6]] == [18.0, 20.0, 12.0]
    for offset in (5, -19):
        with pytest.raises(IndexError, match="outside"):
            memory[offset]
    base.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        Memory(base)[0] = 1.0


def test_grids_cover_every_result(monkeypatch):
    monkeypatch.setattr(launcher, "THREADS", 256)
    monkeypatch.setattr(launcher, "BLOCKS", 2**16)
    assert launcher.over(1) == launcher.Grid(1, 256)
    assert launcher.over(257).blocks == 2
    assert launcher.over(2**40).blocks == 2**16

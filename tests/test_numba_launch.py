"""The way to a GPU without one: what `numba` would launch, on a stand-in for CuPy, its cache, and its refusals."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import fastconv
from fastconv import dispatch
from fastconv.backends import numba_cuda
from fastconv.backends.numba_cuda import launcher, ptx
from fastconv.backends.numba_cuda.simulator import simulated
from fastconv.testing import standin

pytestmark = pytest.mark.skipif(simulated(), reason="there is no way to a GPU in the simulator")
X, W = np.ones((2, 8, 6, 7), np.float32), np.ones((32, 8, 3, 3), np.float32)


@pytest.fixture
def launched(monkeypatch):
    """CuPy's stand-in, and every launch that is made: (stream, grid, kernel, arguments)."""
    found = []
    monkeypatch.setitem(sys.modules, "cupy", standin.module())
    monkeypatch.setattr(numba_cuda.ptx, "no_gpu", lambda: None)
    monkeypatch.setattr(numba_cuda, "TARGETS", ("numba",))
    monkeypatch.setattr(ptx, "current", lambda: (0, "the stream"))
    monkeypatch.setattr(ptx, "load", lambda device, function, *rest: function.py_func.__name__)
    monkeypatch.setattr(ptx, "launch", lambda *launch: found.append(launch))
    dispatch.forget()
    yield found
    dispatch.forget()


def on(*arrays):
    return tuple(standin.ndarray(array) for array in arrays)


def test_a_launch_is_addresses_and_numbers(launched):
    """The operands' own addresses, without a copy, and a geometry that is worked out once."""
    x, w = on(X, W)
    y = fastconv.conv2d(x, w, backend="numba")
    ((stream, grid, kernel, arguments),) = launched
    assert (stream, kernel, grid.threads) == ("the stream", "conv_gemm_gather", 256)
    assert arguments[:4] == [y.data.ptr, x.data.ptr, w.data.ptr, 0]
    assert len(arguments) == 4 + 42
    assert all(type(number) is int for number in arguments)
    fastconv.conv2d(x, w, backend="numba", out=y)
    assert launched[1][3] == arguments


def test_views_by_address(launched):
    """Numba's device arrays where there is no CuPy: a view has a pointer."""
    from fastconv.gpu_arrays import CudaView

    view = CudaView(4096, (2, 3), (12, 4), np.dtype("float32"), None)
    assert launcher.address(view) == 4096
    assert launcher.address(on(X)[0]) == X.__array_interface__["data"][0]
    assert launcher.address(type("Array", (), {"__cuda_array_interface__": {"data": (8192, False)}})()) == 8192


def test_every_family_launches(launched):
    """One op of each: what comes back has the right shape, kind and dtype, and kernels were launched for it."""
    x, w = on(X, W)
    assert (
        fastconv.conv2d_dgrad(on(np.ones((2, 32, 4, 5), np.float32))[0], w, X.shape, backend="numba").shape == X.shape
    )
    assert fastconv.avg_pool2d(x, 2, backend="numba").shape == (2, 8, 3, 3)
    assert fastconv.lp_pool2d(x, 3, 2, backend="numba").shape == (2, 8, 3, 3)
    assert fastconv.bias_grad(x, backend="numba").shape == (8,)
    assert fastconv.correlate(x, x, "valid", backend="numba").shape == (1, 1, 1, 1)
    names = [kernel for _, _, kernel, _ in launched]
    gradient = ["conv_gemm_gather", "conv_direct_gather"]  # the second takes NaN cells again, without a border
    assert names == [*gradient, "pool_avg_fprop", "pool_lp_fprop", "bias_grad", "correlate_direct"]
    (power,) = [argument for argument in launched[3][3] if type(argument) is ctypes.c_double]
    assert power.value == 3.0


def test_flat_arrays_are_passed_as_numba_has_them(launched):
    call = launcher.Call(None, (), launcher.Grid(1, 1), ("int64", "int64[:]"), (1, 2))
    first, second = on(np.zeros(3, np.int64), np.zeros(5, np.int64))
    call._loaded[0] = "kernel"
    call(first, second)
    assert launched[0][3] == [first.data.ptr, 0, 0, 5, 8, second.data.ptr, 5, 8, 1, 2]


def test_compiled_kernels_are_kept(monkeypatch, tmp_path):
    """One file for a kernel; read, not compiled, the second time; a corrupt one is compiled anew."""
    from fastconv.kernels.numba_cuda import elementwise

    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    made = []
    monkeypatch.setattr(ptx, "compile_ptx", lambda *arguments: made.append(arguments) or b".entry fill(")
    function, grid = launcher.kernel(elementwise.fill, "float32"), launcher.Grid(1, 256)
    signature = (("float32",), (2,))
    for _ in range(2):
        assert ptx.cached(function, ("float32",), signature, (9, 0), grid) == b".entry fill("
    assert len(made) == 1
    ptx.cached(function, ("float32",), signature, (8, 0), grid)
    assert len(made) == 2
    for path in (tmp_path / "numba_cuda").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert ptx.cached(function, ("float32",), signature, (9, 0), grid) == b".entry fill("
    assert len(made) == 3


def test_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(numba_cuda, "TARGETS", ("no_such_module",))
    assert "pip install" in (numba_cuda.backend.unavailable() or "")
    monkeypatch.setattr(numba_cuda, "TARGETS", ("numba",))
    monkeypatch.setattr(numba_cuda.ptx, "no_gpu", lambda: "the CUDA driver finds no GPU")
    reason = numba_cuda.backend.unavailable() or ""
    assert reason.startswith("the CUDA driver finds no GPU")
    assert "NUMBA_ENABLE_CUDASIM=1" in reason
    with pytest.raises(fastconv.BackendError, match="no GPU"):
        fastconv.conv2d(X, W, backend="numba")


@pytest.mark.skipif(not __import__("importlib").util.find_spec("numba_cuda_mlir"), reason="needs numba-cuda-mlir")
def test_the_successor_compiles_the_kernels():
    """Where numba-cuda-mlir is installed and numba-cuda is not, kernels compile with it, bits of bfloat16 included."""
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'numba_cuda' else find(name, *a)\n"
        "import numba_cuda_mlir.tools; numba_cuda_mlir.tools._cached_cc = (9, 0)  # in place of a GPU's\n"
        "from fastconv.backends.numba_cuda import ptx\n"
        "from fastconv.backends.numba_cuda.launcher import kernel\n"
        "from fastconv.kernels.numba_cuda import target\n"
        "from fastconv.testing.numba_resources import instances\n"
        "for one in instances():\n"
        "    if one.signature[0][0] in ('float32', 'bfloat16'):\n"
        "        function = kernel(one.factory, *one.key)\n"
        "        assert b'.entry' in ptx.compile_ptx(function, one.signature, (9, 0), one.grid), one\n"
        "print(target.cuda.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert "numba_cuda_mlir" in done.stdout, done.stderr

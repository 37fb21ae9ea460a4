"""Kernels on a GPU: compiled to PTX, kept on disk, loaded, launched.

A file of the cache depends on every kernel's source, the versions of Numba and its CUDA target, the compute
capability, the kernel, its dtypes and its grid's bounds.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import sys
from functools import lru_cache
from typing import Any

from fastconv.compiler import store

ENTRY = re.compile(rb"\.entry\s+([^\s(]+)")
VERSIONS = ("numba", "numba-cuda", "numba-cuda-mlir", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12")

# ---------------------------------------------------------------- the machine


@lru_cache(maxsize=1)
def no_gpu() -> str | None:
    """Why there is no GPU to launch on, or None. Asks the driver alone; no CUDA library is imported."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"there is no CUDA driver ({name})"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the CUDA driver finds no GPU"
    return None


def current() -> tuple[int, Any]:
    """The current device, and the stream to launch on: CuPy's current one where CuPy is loaded, else the default."""
    from cuda.core import Device

    cupy = sys.modules.get("cupy")
    if cupy is None:
        device, handle = Device(), 0
    else:
        device, handle = Device(cupy.cuda.runtime.getDevice()), cupy.cuda.get_current_stream().ptr
    device.set_current()
    return device.device_id, _stream(handle)


@lru_cache(maxsize=256)
def _stream(handle: int) -> Any:
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(handle) if handle else LEGACY_DEFAULT_STREAM


# ---------------------------------------------------------------- compiling


def types_of(signature: tuple[Any, ...]) -> Any:
    """Numba's types of a kernel's operands and values."""
    from fastconv.kernels.numba_cuda.target import types

    dtypes, lengths = signature
    values = [types.UniTuple(types.int64, n) if n else types.float64 for n in lengths]
    return types.void(*map(operand_type, dtypes), *values)


def operand_type(dtype: str) -> Any:
    """A pointer to elements of that dtype, or a flat array where it ends in ``[:]``."""
    from fastconv.kernels.numba_cuda.memory import stored
    from fastconv.kernels.numba_cuda.target import types

    name = dtype.removesuffix("[:]")
    element = getattr(types, stored(name))
    return types.CPointer(element) if name == dtype else types.Array(element, 1, "C")


def compile_ptx(function: Any, signature: tuple[Any, ...], cc: tuple[int, int], grid: Any) -> bytes:
    """The PTX of a kernel for one compute capability."""
    from fastconv.kernels.numba_cuda.target import cuda

    bounds = (grid.threads, grid.residents)
    code, _ = cuda.compile_ptx(function.py_func, types_of(signature), cc=cc, launch_bounds=bounds)
    return code if isinstance(code, bytes) else str(code).encode()


@lru_cache(maxsize=1)
def source_digest() -> str:
    """A digest of every CUDA kernel's source: a change in any of them compiles all anew."""
    return store.source_digest("fastconv.kernels", "numba_cuda", (".py",))


@lru_cache(maxsize=1)
def versions() -> tuple[str, ...]:
    installed = {found.name.lower().replace("_", "-"): found.version for found in importlib.metadata.distributions()}
    return tuple(f"{name} {installed[name]}" for name in VERSIONS if name in installed)


def cached(
    function: Any, constants: tuple[Any, ...], signature: tuple[Any, ...], cc: tuple[int, int], grid: Any
) -> bytes:
    """The PTX from the disk cache, or compiled now and kept there."""
    name = function.py_func.__name__
    bounds = (grid.threads, grid.residents)
    path = store.place("numba_cuda", name, (source_digest(), versions(), cc, constants, signature, bounds))
    code = store.read(path)
    if code is None:
        code = compile_ptx(function, signature, cc, grid)
        store.write(path, code)
    return code


# ---------------------------------------------------------------- loading and launching


def load(device: int, function: Any, constants: tuple[Any, ...], signature: tuple[Any, ...], grid: Any) -> Any:
    """The kernel on that device, ready to launch."""
    from cuda.core import Device, ObjectCode

    capability = Device(device).compute_capability
    code = cached(function, constants, signature, (capability.major, capability.minor), grid)
    entry = ENTRY.search(code)
    assert entry is not None
    return ObjectCode.from_ptx(code, name=function.py_func.__name__).get_kernel(entry.group(1).decode())


def launch(stream: Any, grid: Any, loaded: Any, arguments: list[Any]) -> None:
    """One launch; an int is an address or a 64-bit number."""
    _core_launch()(stream, _config(grid), loaded, *arguments)


@lru_cache(maxsize=1)
def _core_launch() -> Any:
    from cuda.core import launch as core_launch

    return core_launch


@lru_cache(maxsize=4096)
def _config(grid: Any) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid.blocks, block=grid.threads, shmem_size=grid.shared)

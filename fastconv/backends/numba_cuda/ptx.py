"""Kernels on a GPU: compiled to PTX, kept on disk, loaded, launched.

An entry of the cache is one file, named by a digest of all that it depends on: every kernel's source, the versions
of Numba and its CUDA target, the compute capability, the kernel and its dtypes. It is written whole or not at all,
and checked when it is read. A corrupt or unwritable cache only costs a compilation.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import re
import sys
import tempfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastconv.tuning import cache_dir, warn_once

ENTRY = re.compile(rb"\.entry\s+([^\s(]+)")


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
    handle = 0 if cupy is None else cupy.cuda.get_current_stream().ptr
    device = Device()
    device.set_current()
    return device.device_id, _stream(handle)


@lru_cache(maxsize=256)
def _stream(handle: int) -> Any:
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(handle) if handle else LEGACY_DEFAULT_STREAM


# ---------------------------------------------------------------- compiling


def compile_ptx(kernel: Any, signature: tuple[Any, ...], cc: tuple[int, int]) -> bytes:
    """The PTX of a kernel for the dtypes of its operands and the numbers in its values (`launcher.signature`)."""
    from fastconv.kernels.numba_cuda.target import cuda, types

    dtypes, lengths = signature
    values = [types.UniTuple(types.int64, n) if n else types.float64 for n in lengths]
    code, _ = cuda.compile_ptx(kernel.py_func, types.void(*map(operand_type, dtypes), *values), cc=cc)
    return code if isinstance(code, bytes) else str(code).encode()


REALS = {"complex64": "float32", "complex128": "float64"}


def operand_type(dtype: str) -> Any:
    """Numba's type of an operand: a pointer to its elements, or a flat array where the dtype ends in ``[:]``."""
    from fastconv.kernels.numba_cuda.memory import stored
    from fastconv.kernels.numba_cuda.target import types

    name = dtype.removesuffix("[:]")
    element = getattr(types, REALS.get(name) or stored(name))
    return types.CPointer(element) if name == dtype else types.Array(element, 1, "C")


@lru_cache(maxsize=1)
def source_digest() -> str:
    """A digest of every CUDA kernel's source: a change in any of them compiles all anew."""
    digest = hashlib.sha256()
    folder = files("fastconv.kernels.numba_cuda")
    for path in sorted((e for e in folder.iterdir() if e.name.endswith(".py")), key=lambda entry: entry.name):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def versions() -> tuple[str, ...]:
    names = ("numba", "numba-cuda", "numba-cuda-mlir", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def cached(kernel: Any, constants: tuple[Any, ...], signature: tuple[Any, ...], cc: tuple[int, int]) -> bytes:
    """The PTX from the disk cache, or compiled now and kept there."""
    name = kernel.py_func.__name__
    identity = repr((name, constants, signature, cc, source_digest(), versions()))
    path = cache_dir() / "numba_cuda" / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.ptx"
    code = _read(path)
    if code is None:
        code = compile_ptx(kernel, signature, cc)
        _write(path, code)
    return code


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        warn_once(f"the cached kernel {path} cannot be read and is compiled anew: {error}")
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        warn_once(f"the cached kernel {path} is corrupt and is compiled anew")
        return None
    return content[32:]


def _write(path: Path, code: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(temporary, path)
    except OSError as error:
        warn_once(f"compiled kernels cannot be kept in {path.parent}: {error}")


# ---------------------------------------------------------------- loading and launching


def load(device: int, kernel: Any, constants: tuple[Any, ...], signature: tuple[Any, ...]) -> Any:
    """The kernel on that device, ready to launch."""
    from cuda.core import Device, ObjectCode

    capability = Device(device).compute_capability
    code = cached(kernel, constants, signature, (capability.major, capability.minor))
    entry = ENTRY.search(code)
    assert entry is not None
    return ObjectCode.from_ptx(code, name=kernel.py_func.__name__).get_kernel(entry.group(1).decode())


def launch(stream: Any, loaded: Any, grid: Any, arguments: list[Any]) -> None:
    from cuda.core import launch as launch_kernel

    launch_kernel(stream, _config(grid), loaded, *arguments)


@lru_cache(maxsize=4096)
def _config(grid: Any) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid.blocks, block=grid.threads, shmem_size=grid.shared)

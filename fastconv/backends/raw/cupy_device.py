"""A CUDA GPU through CuPy: kernels run on CuPy's current device and stream, scratch memory is of CuPy's pool."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.backends.raw import tensor_map
from fastconv.backends.raw.device import Grid, Properties
from fastconv.backends.raw.tensor_map import Geometry
from fastconv.compiler import cuda
from fastconv.compiler.cuda import Instance
from fastconv.errors import BackendError

DEFAULT_SHARED = 48 * 1024  # what a kernel may have without asking


@lru_cache(maxsize=1)
def unavailable() -> str | None:
    """Why CuPy cannot reach a GPU, or None."""
    try:
        import cupy
    except Exception as error:  # a CuPy without its CUDA libraries fails in many ways
        return f"CuPy cannot be imported ({error}); install fastconv[cuda13] or fastconv[cuda12]"
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return "CuPy sees no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy sees no GPU: {error}"
    return None


def current() -> CupyDevice:
    """The device that is current in CuPy."""
    if reason := unavailable():
        raise BackendError(reason)
    from cupy.cuda import runtime

    return _device(runtime.getDevice())


@lru_cache(maxsize=64)
def _device(number: int) -> CupyDevice:
    return CupyDevice(number)


def architecture(major: int, minor: int) -> str:
    """What NVRTC compiles for: Hopper's own instructions need the architecture with an "a"."""
    return f"sm_{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


class CupyDevice:
    """One GPU; made for the device that is current, and used while it is."""

    kinds: tuple[str, ...] = ("cuda",)

    def __init__(self, number: int):
        from cupy.cuda import driver, get_current_stream, memory, runtime

        found = runtime.getDeviceProperties(number)
        self.properties = Properties(
            found["name"].decode(),
            architecture(found["major"], found["minor"]),
            found["multiProcessorCount"],
            found["sharedMemPerBlockOptin"],
            found["l2CacheSize"],
        )
        self._driver, self._stream, self._memory = driver, get_current_stream, memory
        self._functions: dict[Instance, Any] = {}

    def function(self, instance: Instance) -> Any:
        """The compiled kernel, loaded on this device; the module lives as long as the process."""
        try:
            return self._functions[instance]
        except KeyError:
            return self._functions.setdefault(instance, self._load(instance))

    def _load(self, instance: Instance) -> Any:
        from cupy.cuda.function import Module

        cubin, symbols = cuda.cubins((instance,), self.properties.arch)
        module = Module()
        module.load(cubin)
        return module.get_function(symbols[instance])

    def launch(self, function: Any, grid: Grid, block: Grid, shared: int, args: np.ndarray) -> None:
        """One launch on CuPy's current stream; the driver copies the struct before it returns."""
        if shared > DEFAULT_SHARED:
            self._driver.funcSetAttribute(
                function.ptr, self._driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared
            )
        parameters = np.array([args.ctypes.data], np.uint64)
        self._driver.launchKernel(function.ptr, *grid, *block, shared, self._stream().ptr, parameters.ctypes.data, 0)

    def tensor_map(self, geometry: Geometry, address: int) -> bytes:
        """What the driver encodes."""
        return tensor_map.encode(geometry, address)

    def scratch(self, nbytes: int) -> Any:
        """Memory of CuPy's pool, which goes back to it with the last reference, in the order of the stream."""
        return _Scratch(self._memory.alloc(nbytes))

    def synchronize(self) -> None:
        """Wait for CuPy's current stream."""
        self._stream().synchronize()

    def pointer(self, view: Any) -> int:
        return int(view.data.ptr)


class _Scratch:
    __slots__ = ("memory", "pointer")

    def __init__(self, memory: Any):
        self.memory, self.pointer = memory, memory.ptr

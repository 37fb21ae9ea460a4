"""Arrays in a GPU's memory: taken without a copy as CuPy's, given back as their own kind.

Streams follow the protocols: an array of another library is ordered after its producer's stream, a result before its
consumer's. Without CuPy, Numba's device arrays are taken as `CudaView`, which knows addresses and no arithmetic.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv.errors import DTypeError

HERE: AbstractContextManager[Any] = nullcontext()


def cupy_or_none() -> Any:
    """The module cupy where it can be imported, else None."""
    if "cupy" in sys.modules:
        return sys.modules["cupy"]
    try:
        import cupy
    except Exception:  # a CuPy without its CUDA libraries fails in many ways
        return None
    return cupy


def is_ours(array: Any) -> bool:
    """True for what backends are given: a CuPy array, or a view by address."""
    cupy = sys.modules.get("cupy")
    return type(array) is CudaView or (cupy is not None and isinstance(array, cupy.ndarray))


def device_number(array: Any) -> int:
    """On which GPU an array lies."""
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[1])
    return int(getattr(array, "device", SimpleNamespace(id=0)).id)


def take(array: Any) -> Any:
    """The array as CuPy's, or by address where there is only Numba."""
    cupy = cupy_or_none()
    if cupy is None:
        return CudaView.of(array)
    if isinstance(array, cupy.ndarray):
        return array
    try:
        if str(getattr(array, "dtype", "")) == "torch.bfloat16":
            import ml_dtypes

            return cupy.from_dlpack(array.view(sys.modules["torch"].int16)).view(ml_dtypes.bfloat16)
        return cupy.from_dlpack(array) if hasattr(array, "__dlpack__") else cupy.asarray(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DTypeError(f"this {type(array).__name__} cannot be read through DLPack: {error}") from error


def wrapper(origin: str) -> Callable[[Any], Any] | None:
    """How a result becomes an array of the library `origin`; None where it is one already."""
    if origin == "cupy":
        return None
    module = sys.modules[origin]
    if origin == "torch":

        def to_torch(result: Any) -> Any:
            if result.dtype.name == "bfloat16":
                return module.from_dlpack(result.view(np.int16)).view(module.bfloat16)
            return module.from_dlpack(result)

        return to_torch
    if origin == "numba":
        return lambda result: result.owner if type(result) is CudaView else module.cuda.as_cuda_array(result)
    if origin in ("jax", "jaxlib"):
        return sys.modules["jax"].dlpack.from_dlpack
    if hasattr(module, "from_dlpack"):
        return module.from_dlpack
    raise DTypeError(f"{origin} has no from_dlpack to give its results back; pass cupy.from_dlpack(x)")


def empty(shape: tuple[int, ...], dtype: np.dtype, like: Any) -> Any:
    """An uninitialised array of the kind that backends are given, on the current device."""
    if type(like) is CudaView:
        from numba import cuda

        return CudaView.of(cuda.device_array(shape, dtype))
    return cupy_or_none().empty(shape, dtype)


def on_device_of(array: Any) -> AbstractContextManager[Any]:
    """A context in which the array's GPU is the current one."""
    if type(array) is CudaView:
        return HERE
    device = array.device
    return HERE if device.id == cupy_or_none().cuda.runtime.getDevice() else device


def addresses(array: Any) -> np.ndarray:
    """A NumPy array over the same addresses, to compare them by; its elements must not be touched."""
    interface = array.__cuda_array_interface__
    strides = interface.get("strides") or contiguous(tuple(array.shape), array.dtype.itemsize)
    memory = {"version": 3, "data": (interface["data"][0] or 0, True), "shape": tuple(array.shape), "strides": strides}
    return np.asarray(SimpleNamespace(__array_interface__={**memory, "typestr": f"|V{array.dtype.itemsize}"}))


def contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides, in bytes, of an array in C order."""
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class CudaView:
    """An array in a GPU's memory by address, with the few moves that bring it into canonical axes."""

    __slots__ = ("dtype", "owner", "pointer", "shape", "strides")

    def __init__(self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype, owner: Any):
        self.pointer, self.shape, self.strides, self.dtype, self.owner = pointer, shape, strides, dtype, owner

    @staticmethod
    def of(array: Any) -> CudaView:
        """A view of anything with ``__cuda_array_interface__``."""
        interface = array.__cuda_array_interface__
        shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
        strides = interface.get("strides") or contiguous(shape, dtype.itemsize)
        return CudaView(interface["data"][0] or 0, shape, tuple(strides), dtype, array)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3, "data": (self.pointer, False), "shape": self.shape, "strides": self.strides,
            "typestr": self.dtype.str, "stream": None,
        }  # fmt: skip

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self.strides == contiguous(self.shape, self.itemsize))

    def transpose(self, *axes: Any) -> CudaView:
        order = axes[0] if len(axes) == 1 else axes
        shape, strides = (tuple(values[axis] for axis in order) for values in (self.shape, self.strides))
        return CudaView(self.pointer, shape, strides, self.dtype, self.owner)

    def reshape(self, *shape: Any) -> CudaView:
        """Only what needs no copy: axes of extent 1 dropped or added."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if wanted == (-1,):
            wanted = (self.size,)
        kept = [stride for n, stride in zip(self.shape, self.strides, strict=True) if n != 1]
        if [n for n in wanted if n != 1] != [n for n in self.shape if n != 1]:
            raise DTypeError(f"reshaping a device array from {list(self.shape)} to {list(wanted)} needs CuPy")
        strides = tuple(kept.pop(0) if n != 1 else self.itemsize for n in wanted)
        return CudaView(self.pointer, tuple(wanted), strides, self.dtype, self.owner)

    def __getitem__(self, key: None) -> CudaView:
        return CudaView(self.pointer, (1, *self.shape), (0, *self.strides), self.dtype, self.owner)

    def astype(self, dtype: Any, copy: bool = True) -> CudaView:
        if np.dtype(dtype) != self.dtype:
            raise DTypeError(f"converting a device array from {self.dtype} to {np.dtype(dtype)} needs CuPy")
        return self

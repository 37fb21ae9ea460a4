"""A CuPy made of NumPy arrays: what the library uses of it, so that the way of GPU arrays is tested without a GPU.

Its arrays are no NumPy arrays, say that they lie on a GPU, and mix with nothing else; kernels reach their memory by
address, through the host emulator.
"""

from __future__ import annotations

import types
from contextlib import nullcontext
from typing import Any

import numpy as np

current = [0]  # the number of the GPU that is current


class ndarray:
    """A NumPy array that shows itself as one on GPU `device`."""

    def __init__(self, host: np.ndarray, device: int = 0):
        self.host, self.number = host, device

    def __getattr__(self, name: str) -> Any:
        return wrapped(getattr(self.host, name))

    def __getitem__(self, key: Any) -> Any:
        return wrapped(self.host[unwrapped(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[unwrapped(key)] = unwrapped(value)

    def __int__(self) -> int:
        return int(self.host)

    def __ge__(self, other: Any) -> Any:
        return wrapped(self.host >= unwrapped(other))

    def __and__(self, other: Any) -> Any:
        return wrapped(self.host & unwrapped(other))

    def get(self) -> np.ndarray:
        return self.host.copy()

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.host.__array_interface__["data"][0])

    @property
    def device(self) -> Device:
        return Device(self.number)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.host.__array_interface__, "version": 3, "stream": None}

    def __dlpack__(self, **options: Any) -> Any:
        return self.host.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number


ndarray.__module__ = "cupy"


class Device(nullcontext[None]):
    """A GPU, current inside a ``with`` block."""

    def __init__(self, number: int):
        super().__init__()
        self.id = number

    def __enter__(self) -> None:
        self.before, current[0] = current[0], self.id

    def __exit__(self, *error: object) -> None:
        current[0] = self.before


def wrapped(value: Any) -> Any:
    """NumPy's results as the stand-in's; functions that take and give such."""
    if isinstance(value, np.ndarray):
        return ndarray(value)
    if not callable(value) or isinstance(value, type | np.dtype):
        return value
    return lambda *args, **options: wrapped(value(*map(unwrapped, args), **options))


def unwrapped(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(unwrapped, value))
    return value.host if isinstance(value, ndarray) else value


def asarray(value: Any, **options: Any) -> ndarray:
    """A copy of a host's array; an array that only speaks ``__cuda_array_interface__`` itself."""
    if isinstance(value, ndarray):
        return value
    if not hasattr(value, "__cuda_array_interface__"):
        return ndarray(np.array(value, **options))
    return ndarray(np.asarray(types.SimpleNamespace(__array_interface__=value.__cuda_array_interface__)))


def module() -> Any:
    """The module to put in CuPy's place."""
    cupy: Any = types.ModuleType("cupy")
    cupy.ndarray = ndarray
    for name in ("empty", "zeros", "where"):
        setattr(cupy, name, wrapped(getattr(np, name)))
    cupy.asarray = asarray
    cupy.from_dlpack = lambda value: ndarray(value.host)
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDevice=lambda: current[0]))
    return cupy

"""A CuPy made of NumPy arrays: what the library uses of it, so that the way of GPU arrays is tested without a GPU.

Its arrays are no NumPy arrays, say that they lie on a GPU, and mix with nothing else; kernels reach their memory by
address, through the host emulator.
"""

from __future__ import annotations

import types
from contextlib import nullcontext

import numpy as np


class ndarray:
    """A NumPy array that shows itself as one on GPU `device`."""

    def __init__(self, host, device=0):
        self.host, self.number = host, device

    def __getattr__(self, name):
        return wrapped(getattr(self.host, name))

    def __getitem__(self, key):
        return wrapped(self.host[unwrapped(key)])

    def __setitem__(self, key, value):
        self.host[unwrapped(key)] = unwrapped(value)

    def __ge__(self, other):
        return wrapped(self.host >= unwrapped(other))

    def __and__(self, other):
        return wrapped(self.host & unwrapped(other))

    def get(self):
        return self.host.copy()

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.host.__array_interface__["data"][0])

    @property
    def device(self):
        return Device(self.number)

    @property
    def __cuda_array_interface__(self):
        return {**self.host.__array_interface__, "version": 3, "stream": None}

    def __dlpack__(self, **options):
        return self.host.__dlpack__()

    def __dlpack_device__(self):
        return 2, self.number


ndarray.__module__ = "cupy"
current = [0]


class Device(nullcontext):
    """A GPU, current inside a ``with`` block."""

    def __init__(self, number):
        super().__init__()
        self.id = number

    def __enter__(self):
        self.before, current[0] = current[0], self.id

    def __exit__(self, *error):
        current[0] = self.before


def wrapped(value):
    if isinstance(value, np.ndarray):
        return ndarray(value)
    return (lambda *args, **options: wrapped(value(*map(unwrapped, args), **options))) if callable(value) else value


def unwrapped(value):
    if isinstance(value, tuple):
        return tuple(map(unwrapped, value))
    return value.host if isinstance(value, ndarray) else value


def module() -> types.ModuleType:
    """The module to put in CuPy's place."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray = ndarray
    for name in ("empty", "zeros", "where"):
        setattr(cupy, name, wrapped(getattr(np, name)))
    cupy.asarray = lambda value, **options: ndarray(np.array(unwrapped(value), **options))
    cupy.from_dlpack = lambda value: ndarray(value.host)
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDevice=lambda: current[0]))
    return cupy

"""The emulated GPU: the raw backend's `Device` on NumPy arrays."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import dispatch
from fastconv.backends.raw import device as raw
from fastconv.compiler.cuda import Instance, source_folder
from fastconv.errors import FastconvError
from fastconv.testing.emulator.build import Toolchain

MESSAGE_BYTES = 1 << 14
MAX_GRID, MAX_BLOCK = (2**31 - 1, 65535, 65535), (1024, 1024, 64)

#: What a device of each architecture has: multiprocessors, shared memory that a block can ask for, L2.
DEVICES = {
    "sm_75": ("T4", 40, 64 << 10, 4 << 20),
    "sm_80": ("A100", 108, 163 << 10, 40 << 20),
    "sm_86": ("A10", 72, 99 << 10, 6 << 20),
    "sm_89": ("L4", 58, 99 << 10, 48 << 20),
    "sm_90a": ("H100", 132, 227 << 10, 50 << 20),
    "sm_100": ("B200", 148, 227 << 10, 126 << 20),
    "sm_120": ("RTX PRO 6000", 188, 99 << 10, 128 << 20),
}


class EmulatorError(FastconvError, RuntimeError):
    """A kernel did what CUDA does not allow; the message says what, where in its source, and which thread."""


class Launch(ctypes.Structure):
    """The struct of that name in runtime.hpp."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("arguments", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
        ("message", ctypes.c_void_p),
        ("message_size", ctypes.c_uint64),
    )


class Function:
    """A loaded kernel."""

    def __init__(self, name: str, entry: Callable[..., int]):
        self.name, self.entry = name, entry


class Scratch:
    """Memory of the emulated device, filled with 0xff: NaN as a float, -1 as an integer."""

    def __init__(self, nbytes: int):
        self._memory = np.full(nbytes + 256, 0xFF, np.uint8)
        self.pointer = -(-self._memory.ctypes.data // 256) * 256


class EmulatedDevice:
    """Runs CUDA C++ kernels on the CPU, one block after the other. See `emulated_gpu`."""

    kinds: tuple[str, ...] = ("numpy",)
    _lock = threading.Lock()  # the runtime runs one block of one launch at a time

    def __init__(self, arch: str = "sm_90a", *, seed: int | None = None):
        name, sms, shared, l2 = DEVICES[arch]
        self.properties = raw.Properties(f"emulated {name}", arch, sms, shared, l2)
        self.seed = seed
        self._toolchain = Toolchain(arch, (source_folder(),))
        self._functions: dict[Instance, Function] = {}

    def function(self, instance: Instance) -> Function:
        """The compiled and loaded kernel; memoised."""
        if instance not in self._functions:
            self.prepare([instance])
        return self._functions[instance]

    def prepare(self, instances: Iterable[Instance]) -> None:
        """Compile many kernels, those of a file together."""
        by_file: dict[str, list[Instance]] = {}
        for instance in instances:
            by_file.setdefault(instance.file, []).append(instance)
        for file, group in by_file.items():
            names = [str(instance) for instance in group]
            path = self._toolchain.unit(f'#include "{file}"\n', names, Path(file).stem)
            functions = self._load(path, names)
            self._functions.update(zip(group, functions, strict=True))

    def compile(self, code: str, name: str, folders: Iterable[str | Path] = ()) -> Function:
        """A kernel of one's own, from its source; `name` is ``"kernel"`` or ``"kernel<float, 4>"``."""
        toolchain = Toolchain(self.properties.arch, (*map(Path, folders), source_folder()))
        path = toolchain.unit(f'#line 1 "kernel.cu"\n{code}\n', [name], "kernel")
        return self._load(path, [name])[0]

    def _load(self, path: Path, names: list[str]) -> list[Function]:
        library = self._toolchain.load(path)
        return [Function(name, library[f"fastconv_launch_{number}"]) for number, name in enumerate(names)]

    def scratch(self, nbytes: int) -> Scratch:
        """Uninitialised memory, 256-byte aligned."""
        return Scratch(nbytes)

    def pointer(self, view: Any) -> int:
        """The address of the first element of a view."""
        address: int = view.__array_interface__["data"][0]
        return address

    def launch(self, function: Function, grid: raw.Grid, block: raw.Grid, shared: int, args: Any) -> None:
        """Run a kernel to its end.

        `args` is the one struct that it takes, or a tuple of all its arguments: arrays (their addresses are passed),
        NumPy scalars, and Python numbers (as ``int`` and ``float``).

        Raises
        ------
        EmulatorError
            What the kernel did wrong, or a launch that no GPU takes.
        """
        self._check(function, grid, block, shared)
        values = [self._bytes_of(value) for value in (args if isinstance(args, tuple) else (args,))]
        addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = (ctypes.c_uint64 * len(values))(*(value.nbytes for value in values))
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        launch = Launch(
            grid, block, shared, 0 if self.seed is None else self.seed + 1, ctypes.addressof(addresses),
            ctypes.addressof(sizes), len(values), ctypes.addressof(message), MESSAGE_BYTES,
        )  # fmt: skip
        with self._lock:
            failed = function.entry(ctypes.byref(launch))
        if failed:
            raise EmulatorError(f"{function.name}: {message.value.decode(errors='replace')}")

    def _bytes_of(self, value: Any) -> np.ndarray:
        """An argument as the kernel gets it."""
        if isinstance(value, np.ndarray) and value.dtype.names is None:
            return np.asarray(self.pointer(value), np.uint64)
        if isinstance(value, bool | int):
            return np.asarray(value, np.int32)
        if isinstance(value, float):
            return np.asarray(value, np.float32)
        return np.asarray(value)

    def _check(self, function: Function, grid: raw.Grid, block: raw.Grid, shared: int) -> None:
        """The limits of a launch on every GPU."""
        for what, extents, limits in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)):
            if not all(1 <= extent <= limit for extent, limit in zip(extents, limits, strict=True)):
                raise EmulatorError(f"{function.name}: a {what} of {extents} is outside of 1 to {limits}")
        if block[0] * block[1] * block[2] > 1024:
            raise EmulatorError(f"{function.name}: a block of {block} has more than 1024 threads")
        if shared > self.properties.shared_per_block:
            limit = self.properties.shared_per_block
            raise EmulatorError(f"{function.name}: {shared} bytes of shared memory, a block can have {limit}")


@contextmanager
def emulated_gpu(arch: str = "sm_90a", *, seed: int | None = None) -> Iterator[EmulatedDevice]:
    """Run the `raw` backend on the emulator, on NumPy arrays, inside the ``with`` block.

    Parameters
    ----------
    arch : str
        The architecture that kernels are compiled for and whose limits hold, such as "sm_80".
    seed : int, optional
        Threads run in an order shuffled by this number. A result that changes with it is a race.

    Yields
    ------
    EmulatedDevice
        Also runs kernels of one's own: `EmulatedDevice.compile`.

    Raises
    ------
    BackendError
        Where there is no g++.
    """
    with using(EmulatedDevice(arch, seed=seed)) as device:
        yield device


@contextmanager
def using(device: EmulatedDevice) -> Iterator[EmulatedDevice]:
    """Run the `raw` backend on this emulated device; launches that were chosen for another one are dropped."""
    dispatch.forget()
    try:
        with raw.use(device):
            yield device
    finally:
        dispatch.forget()

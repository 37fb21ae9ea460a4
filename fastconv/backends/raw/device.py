"""What runs the kernels: a `Device`, implemented by CuPy for GPUs and by the host emulator for tests.

`current()` is the device of a call. The emulator announces itself by `use`; ``FASTCONV_EMULATE=1`` asks for it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from fastconv.backends.raw.tensor_map import Geometry
from fastconv.compiler.cuda import Instance
from fastconv.errors import BackendError

Grid = tuple[int, int, int]
WORKSPACE_MB = 256


@dataclass(frozen=True)
class Properties:
    """What choices depend on."""

    name: str
    arch: str  # what NVRTC compiles for, such as "sm_90a"
    sms: int
    shared_per_block: int  # bytes that a block can have by request
    l2_bytes: int

    @property
    def capability(self) -> int:
        """The compute capability as one number: 90 for sm_90a."""
        return int("".join(letter for letter in self.arch if letter.isdigit()))


class Scratch(Protocol):
    """Memory of the device that lasts as long as this object."""

    pointer: int


class Device(Protocol):
    """The seam between the host side and what runs kernels. Launches are asynchronous, on the current stream."""

    properties: Properties
    kinds: tuple[str, ...]  # of the arrays it takes: "cuda", or "numpy" where it is emulated

    def function(self, instance: Instance) -> Any:
        """The compiled and loaded kernel; memoised."""

    def launch(self, function: Any, grid: Grid, block: Grid, shared: int, args: Any) -> None:
        """Run a kernel on one struct, passed by value (a NumPy structured scalar array)."""

    def tensor_map(self, geometry: Geometry, address: int) -> bytes:
        """The descriptor of what TMA copies from memory at this address; memoised."""

    def scratch(self, nbytes: int) -> Scratch:
        """Uninitialised memory, 256-byte aligned."""

    def synchronize(self) -> None:
        """Wait for what was launched on the current stream."""

    def pointer(self, view: Any) -> int:
        """The address of the first element of a view."""


_emulator: Device | None = None


@contextmanager
def use(device: Device) -> Iterator[None]:
    """Run the backend on this device inside the ``with`` block."""
    global _emulator
    before, _emulator = _emulator, device
    try:
        yield
    finally:
        _emulator = before


def emulated() -> bool:
    """True where the host emulator stands in for a GPU."""
    return _emulator is not None or os.environ.get("FASTCONV_EMULATE") == "1"


def kinds() -> tuple[str, ...]:
    """The kinds of arrays that the device in force takes."""
    return current().kinds if emulated() else ("cuda",)


def current() -> Device:
    """The device of this call: the emulator where it is in force, else CuPy's current device."""
    if _emulator is not None:
        return _emulator
    if emulated():
        return _environment_emulator()
    from fastconv.backends.raw import cupy_device

    return cupy_device.current()


@lru_cache(maxsize=1)
def _environment_emulator() -> Device:
    device: Device = importlib.import_module("fastconv.testing.emulator").EmulatedDevice()
    return device


def unavailable() -> str | None:
    """Why no device can run kernels, or None."""
    if _emulator is not None:
        return None
    if emulated():
        reason: str | None = importlib.import_module("fastconv.testing.emulator").unavailable()
        return reason
    from fastconv.backends.raw import cupy_device

    return cupy_device.unavailable()


def workspace_limit() -> int:
    """The bytes of scratch memory that a call may take: ``FASTCONV_WORKSPACE_MB``, 256 MiB by default."""
    text = os.environ.get("FASTCONV_WORKSPACE_MB", str(WORKSPACE_MB))
    if not text.isdigit():
        raise BackendError(f"FASTCONV_WORKSPACE_MB must be a whole number of MiB: got {text!r}")
    return int(text) * 2**20

"""The emulated GPU: the raw backend's `Device` on NumPy arrays."""

from __future__ import annotations

import ctypes
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastconv import dispatch
from fastconv.backends.raw import device as raw
from fastconv.backends.raw.tensor_map import Geometry
from fastconv.compiler.cuda import Instance, source_folder
from fastconv.errors import BackendError, FastconvError
from fastconv.testing.emulator import symbols, tensor_map
from fastconv.testing.emulator.build import Toolchain
from fastconv.testing.emulator.memory import SHARED, Operand, Region, Scratch, region_of_scratch, regions_of_operands

MESSAGE_BYTES = 1 << 14
VIEWS_KEPT = 64
#: ``extern __shared__ T name[];`` in a kernel of one's own. The kernels of this package call shared_memory<T>().
DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\s*\w+\s*\)\s*)?([\w:]+(?:\s+\w+)*?)\s+(\w+)\s*\[\s*\]\s*;"
)
MAX_GRID, MAX_BLOCK = (2**31 - 1, 65535, 65535), (1024, 1024, 64)

#: What a device of each architecture has: multiprocessors, shared memory that a block can ask for, L2.
DEVICES = {
    "75": ("T4", 40, 64 << 10, 4 << 20),
    "80": ("A100", 108, 163 << 10, 40 << 20),
    "86": ("A10", 72, 99 << 10, 6 << 20),
    "89": ("L4", 58, 99 << 10, 48 << 20),
    "90": ("H100", 132, 227 << 10, 50 << 20),
    "100": ("B200", 148, 227 << 10, 126 << 20),
    "120": ("RTX PRO 6000", 188, 99 << 10, 128 << 20),
}


class EmulatorError(FastconvError, RuntimeError):
    """A kernel did what CUDA does not allow; the message says what, where in its source, and which thread."""


class Traffic(ctypes.Structure):
    """Bytes that kernels moved to and from global memory, by all accesses and by the first of each place."""

    _fields_ = (
        ("read", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
        ("distinct_read", ctypes.c_uint64),
        ("distinct_written", ctypes.c_uint64),
    )

    def plus(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, name) + getattr(other, name) for name, _ in self._fields_))

    def __repr__(self) -> str:
        return "Traffic(" + ", ".join(f"{name}={getattr(self, name)}" for name, _ in self._fields_) + ")"


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
        ("checks", ctypes.c_uint32),
        ("regions", ctypes.c_void_p),
        ("region_count", ctypes.c_uint64),
        ("message", ctypes.c_void_p),
        ("message_size", ctypes.c_uint64),
        ("traffic", Traffic),
    )


class Function(NamedTuple):
    """A loaded kernel, and the object file that it is in."""

    name: str
    entry: Callable[..., int]
    path: Path
    anchor: int


class EmulatedDevice:
    """Runs CUDA C++ kernels on the CPU, one block after the other. See `emulated_gpu`.

    Attributes
    ----------
    properties : Properties
        The architecture and the limits that hold.
    traffic : Traffic
        What kernels moved since the device was made, if they ran with checks; may be set back to ``Traffic()``.
    """

    kinds: tuple[str, ...] = ("numpy",)
    _lock = threading.Lock()  # the runtime runs one block of one launch at a time

    def __init__(self, arch: str = "sm_90a", *, sanitize: bool = False, seed: int | None = None):
        number = "".join(letter for letter in arch if letter.isdigit())
        if number not in DEVICES:
            raise BackendError(f"arch={arch!r}: the emulator knows {', '.join('sm_' + known for known in DEVICES)}")
        name, sms, shared, l2 = DEVICES[number]
        self.properties = raw.Properties(f"emulated {name}", arch, sms, shared, l2)
        self.traffic = Traffic()
        self.sanitize, self.seed = sanitize, seed
        self._toolchain = Toolchain(arch, sanitize, (source_folder(),))
        self._functions: dict[Instance, Function] = {}
        self._views: dict[int, np.ndarray] = {}  # of late, by address
        self._scratch: weakref.WeakSet[Scratch] = weakref.WeakSet()

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
            self._functions.update(zip(group, self._load(path, names), strict=True))

    def compile(self, code: str, name: str, folders: Iterable[str | Path] = ()) -> Function:
        """A kernel of one's own, from its source; `name` is ``"kernel"`` or ``"kernel<float, 4>"``.

        Raises
        ------
        BackendError
            With the compiler's messages where the source does not compile.
        """
        toolchain = replace(self._toolchain, folders=(*map(Path, folders), *self._toolchain.folders))
        code = DYNAMIC_SHARED.sub(r"\1* \2 = shared_memory<\1>();", code)
        path = toolchain.unit(f'#line 1 "kernel.cu"\n{code}\n', [name], "kernel")
        return self._load(path, [name])[0]

    def _load(self, path: Path, names: list[str]) -> list[Function]:
        library = self._toolchain.load(path)
        entries = [library[f"fastconv_launch_{number}"] for number in range(len(names))]
        anchor = ctypes.cast(entries[0], ctypes.c_void_p).value or 0
        return [Function(name, entry, path, anchor) for name, entry in zip(names, entries, strict=True)]

    def tensor_map(self, geometry: Geometry, address: int) -> bytes:
        """The descriptor as bulk.cpp reads it."""
        return tensor_map.of(geometry, address).tobytes()

    def scratch(self, nbytes: int) -> Scratch:
        """Uninitialised memory, 256-byte aligned."""
        scratch = Scratch(nbytes)
        self._scratch.add(scratch)
        return scratch

    def synchronize(self) -> None:
        """Nothing to wait for: a launch returns when its kernel has ended."""

    def pointer(self, view: Any) -> int:
        """The address of the first element of a view."""
        address: int = view.__array_interface__["data"][0]
        if self.sanitize:
            self._views.pop(address, None)
            self._views[address] = view
            if len(self._views) > VIEWS_KEPT:
                del self._views[next(iter(self._views))]
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
        regions, states = self._regions(function, values) if self.sanitize else ([], [])
        table = (Region * len(regions))(*regions)
        launch = Launch(
            grid, block, shared, 0 if self.seed is None else self.seed + 1, ctypes.addressof(addresses),
            ctypes.addressof(sizes), len(values), self.sanitize, ctypes.addressof(table), len(regions),
            ctypes.addressof(message), MESSAGE_BYTES,
        )  # fmt: skip
        with self._lock:
            failed = function.entry(ctypes.byref(launch))
        del states
        self.traffic = self.traffic.plus(launch.traffic)
        if failed:
            text = symbols.locate(message.value.decode(errors="replace"), function.path)
            raise EmulatorError(f"{function.name}: {text}")

    def _bytes_of(self, value: Any) -> np.ndarray:
        """An argument as the kernel gets it."""
        if isinstance(value, np.ndarray) and value.dtype.names is None:
            return np.asarray(self.pointer(value), np.uint64)
        return np.asarray(value, {int: np.int32, float: np.float32}.get(type(value)))

    def _regions(self, function: Function, values: list[np.ndarray]) -> tuple[list[Region], list[Any]]:
        """What the kernel may touch, and what has to live as long as the launch."""
        operands, words = [], set()
        for position, value in enumerate(values):
            for name, word in _words(value, f"argument {position}"):
                words.add(word)
                if word in self._views:
                    operands.append(Operand(name, self._views[word]))
        found = regions_of_operands(operands)
        regions = [region for region, _ in found]
        for scratch in self._scratch:
            if any(scratch.pointer <= word < scratch.pointer + scratch.nbytes for word in words):
                regions.append(region_of_scratch(scratch))
        for variable in symbols.shared_variables(function.path):
            begin = function.anchor + variable.offset
            regions.append(Region(begin, variable.bytes, 0, SHARED, None, variable.name.encode()))
        return regions, [state for _, state in found]

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


def _words(value: np.ndarray, name: str) -> Iterator[tuple[str, int]]:
    """The aligned 8-byte integers of an argument, which may be addresses, each with a name for messages."""
    fields: Any = value.dtype.fields or {}
    starts = {offset: f"operand {field}" for field, (_, offset, *_) in fields.items()}
    words = np.frombuffer(value.tobytes(), np.uint64, count=value.nbytes // 8)
    for position, word in enumerate(words.tolist()):
        yield starts.get(8 * position, name), word


def assert_same_under_schedules(device: EmulatedDevice, call: Callable[[], Any], schedules: int = 3) -> None:
    """Run `call` with the threads in order, then in shuffled orders; its array must have the same bits each time.

    Raises
    ------
    EmulatorError
        With the seed of the first order that gives another result: a race.
    """
    results = []
    before = device.seed
    try:
        for seed in (None, *range(schedules)):
            device.seed = seed
            results.append(np.array(call()))
            differ = results[0].tobytes() != results[-1].tobytes()
            if differ:
                count = np.count_nonzero(~((results[0] == results[-1]) | (results[0] != results[0])))
                raise EmulatorError(f"a race: {count} elements differ when threads run in the order of seed={seed}")
    finally:
        device.seed = before


@contextmanager
def emulated_gpu(arch: str = "sm_90a", *, sanitize: bool = False, seed: int | None = None) -> Iterator[EmulatedDevice]:
    """Run the `raw` backend on the emulator, on NumPy arrays, inside the ``with`` block.

    Parameters
    ----------
    arch : str
        The architecture that kernels are compiled for and whose limits hold, such as "sm_80".
    sanitize : bool
        Check every access: bounds, races, reads of what nothing has written, and undefined behaviour. Ten to fifty
        times slower.
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
    with using(EmulatedDevice(arch, sanitize=sanitize, seed=seed)) as device:
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

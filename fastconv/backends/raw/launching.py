"""What the host sides share: a launch whose struct was filled before, vector widths, and a call in parts."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv.arrays import name_of
from fastconv.backends.raw.args import MAP_BYTES
from fastconv.backends.raw.device import Device, workspace_limit
from fastconv.backends.raw.tensor_map import Geometry
from fastconv.compiler.cuda import Instance
from fastconv.errors import BackendError
from fastconv.problem import Ints

THREADS = 256
LARGEST_GRID = 2**31 - 1
ACCESS = 16  # bytes: the widest that a thread loads or stores at once

#: Dtypes by their name in C++.
STORED = {
    "float16": "f16", "bfloat16": "bf16", "float32": "float", "float64": "double",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


class Mapped(NamedTuple):
    """A tensor map of a struct: its offset there, and which of a call's addresses it begins at, so many bytes past."""

    at: int
    geometry: Geometry
    address: int
    offset: int


class Step:
    """One launch: all of it but the addresses. Buffers for the struct are reused, each by one call at a time.

    Addresses are the first fields of a struct. Where `pointers` is given, they say per field which of a call's
    addresses it takes; else a call has them in the order of the fields. `maps` are the tensor maps of the struct.
    """

    __slots__ = (
        "block", "dtype", "free", "function", "grid", "instance", "maps", "pack", "pointers", "shared", "template",
    )  # fmt: skip

    def __init__(
        self, instance: Instance, grid: int, filled: np.ndarray, pointers: Ints | None = None, block: int = THREADS,
        shared: int = 0, maps: tuple[Mapped, ...] = (),
    ):  # fmt: skip
        self.instance, self.grid, self.block, self.shared = instance, (grid, 1, 1), (block, 1, 1), shared
        self.template, self.dtype, self.pointers = filled.tobytes(), filled.dtype, pointers
        fields = address_fields(filled.dtype) if pointers is None else pointers
        self.pack = struct.Struct(f"={len(fields)}Q").pack_into
        self.maps = maps
        self.free: list[tuple[bytearray, np.ndarray]] = []
        self.function: Any = None

    def launch(self, gpu: Device, addresses: Sequence[int]) -> None:
        """Launch with these addresses; the device copies the struct before it returns."""
        try:
            buffer, filled = self.free.pop()
        except IndexError:
            buffer = bytearray(self.template)
            filled = np.frombuffer(buffer, self.dtype)
        if self.pointers is None:
            self.pack(buffer, 0, *addresses)
        else:
            self.pack(buffer, 0, *[addresses[i] for i in self.pointers])
        for at, geometry, address, offset in self.maps:
            buffer[at : at + MAP_BYTES] = gpu.tensor_map(geometry, addresses[address] + offset)
        gpu.launch(self.function, self.grid, self.block, self.shared, filled)
        self.free.append((buffer, filled))


def address_fields(dtype: np.dtype) -> tuple[str, ...]:
    """The names of a struct's first fields, those that hold addresses."""
    names = dtype.names or ()
    return tuple(itertools.takewhile(lambda name: dtype[name] == np.uint64, names))


def blocks_for(threads: int) -> int:
    """The blocks of a grid-stride launch over that many threads' work."""
    return min(max(1, -(-threads // THREADS)), LARGEST_GRID)


def stored(view: Any) -> str:
    """The C++ name of an operand's dtype."""
    return STORED[name_of(view.dtype)]


def channels_last(view: Any) -> bool:
    """Whether threads should run along the channels of [N, C, spatial]: they lie closer than pixels do."""
    if view.shape[1] == 1:
        return False
    steps = [abs(stride) for stride, n in zip(view.strides[2:], view.shape[2:], strict=True) if n > 1]
    return not steps or abs(view.strides[1]) < min(steps)


def aligned(view: Any, pointer: int, lanes: int, axis: int) -> bool:
    """Whether `lanes` neighbours along an axis can be moved by one access, wherever such a group begins."""
    nbytes = lanes * view.dtype.itemsize
    others = (stride for a, (stride, n) in enumerate(zip(view.strides, view.shape, strict=True)) if a != axis and n > 1)
    return (
        view.shape[axis] % lanes == 0
        and view.strides[axis] == view.dtype.itemsize
        and pointer % nbytes == 0
        and all(stride % nbytes == 0 for stride in others)
    )


Part = tuple[slice, slice]


def parts(N: int, C: int, plane_bytes: int) -> list[Part]:
    """Images and channels to take at a time, so that `plane_bytes` for each of their planes fit into the workspace.

    Raises
    ------
    BackendError
        Where not even one plane fits.
    """
    limit = workspace_limit()
    planes = limit // plane_bytes if plane_bytes else max(1, N * C)
    if planes == 0:
        raise BackendError(
            f"a plane needs a workspace of {plane_bytes / 2**20:.1f} MiB, FASTCONV_WORKSPACE_MB allows "
            f"{limit / 2**20:.0f}: set it higher"
        )
    images, channels = max(1, planes // C), min(C, planes)
    if channels < C:
        channels = max(1, channels - channels % ACCESS) if channels >= ACCESS else channels
    return [
        (slice(n, min(n + images, N)), slice(c, min(c + channels, C)))
        for n in range(0, N, images)
        for c in range(0, C, channels)
    ]


def total(part_list: Iterable[Part], plane_bytes: int) -> int:
    """The bytes of workspace that the largest part takes."""
    return max(((n.stop - n.start) * (c.stop - c.start) * plane_bytes for n, c in part_list), default=0)

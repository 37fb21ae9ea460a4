"""What the host sides share: a launch whose struct was filled before, vector widths, and a call in parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.arrays import name_of
from fastconv.backends.raw.device import Device, workspace_limit
from fastconv.compiler.cuda import Instance
from fastconv.errors import BackendError

THREADS = 256
MOST_BLOCKS = 2**31 - 1
ACCESS = 16  # bytes: the widest that a thread loads or stores at once

#: Dtypes by their name in C++.
STORED = {
    "float16": "f16", "bfloat16": "bf16", "float32": "float", "float64": "double",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One launch of a kernel, its struct filled but for the pointers."""

    instance: Instance
    args: np.ndarray
    blocks: int
    threads: int = THREADS

    def __call__(self, on: Device, **pointers: int) -> None:
        args = self.args.copy()
        for name, pointer in pointers.items():
            args[name] = pointer
        on.launch(on.function(self.instance), (self.blocks, 1, 1), (self.threads, 1, 1), 0, args)


def blocks_for(items: int, threads: int = THREADS) -> int:
    """Enough blocks for a thread per item; kernels loop over the rest."""
    return max(1, min(-(-items // threads), MOST_BLOCKS))


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

"""What an object file knows of its source: shared variables, and the lines behind addresses. By binutils."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

ANCHOR = "fastconv_launch_0"
GUARD = "fastconv_guard_"
PLACE = re.compile(r"@\{([0-9a-f]+)\}")


class Variable(NamedTuple):
    """A ``__shared__`` variable: its distance from the anchor, its bytes, its name."""

    offset: int
    bytes: int
    name: str


@cache
def shared_variables(path: Path) -> list[Variable]:
    """The static shared memory of an object; what lies between these variables is out of bounds."""
    listed = subprocess.run(["nm", "-SC", str(path)], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=3) for line in listed.splitlines()]
    (anchor,) = (int(row[0], 16) for row in rows if row[-1] == ANCHOR)
    return [
        Variable(int(row[0], 16) - anchor, int(row[1], 16), f"shared variable {row[3].rpartition('::')[2]}")
        for row in rows
        if len(row) == 4 and row[2] in "bB" and GUARD not in row[3]
    ]


def locate(message: str, path: Path) -> str:
    """Put lines of the source into the place of addresses, each the return address of a call."""
    for address in sorted(set(PLACE.findall(message))):
        command = ["addr2line", "-i", "-s", "-e", str(path), hex(int(address, 16) - 1)]
        frames = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        frames = [frame.split()[0].replace("<stdin>", "kernel.cu") for frame in frames if "?" not in frame]
        ours = [frame for frame in frames if not frame.startswith(("cuda.hpp", "device.hpp"))] or frames
        text = f" at {ours[0]}" + "".join(f", inlined at {frame}" for frame in ours[1:]) if ours else ""
        message = message.replace(f"@{{{address}}}", text)
    return message

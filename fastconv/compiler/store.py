"""Compiled kernels as files: one each, named by a digest of all that it depends on.

A file is written whole or not at all, and checked when it is read, so that several processes may share the folder.
A corrupt or unwritable cache only costs a compilation, and one logged warning.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from fastconv.tuning import cache_dir, warn_once


def source_digest(package: str, folder: str, endings: Iterable[str]) -> str:
    """A digest of every source of that folder of a package: a change in any of them compiles all anew."""
    digest = hashlib.sha256()
    place = files(package) / folder if folder else files(package)
    entries = (entry for entry in place.iterdir() if entry.name.endswith(tuple(endings)))
    for path in sorted(entries, key=lambda entry: entry.name):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def place(kind: str, name: str, identity: object) -> Path:
    """The file of a compiled kernel of that name, for all that `identity` shows of what it depends on."""
    digest = hashlib.sha256(repr((name, identity)).encode()).hexdigest()[:32]
    return cache_dir() / kind / f"{name}-{digest}.bin"


def read(path: Path) -> bytes | None:
    """What was kept there, or None where there is nothing, or nothing sound."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        warn_once(f"the cached kernel {path} cannot be read and is compiled anew: {error}")
        return None
    checksum, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != checksum:
        warn_once(f"the cached kernel {path} is corrupt and is compiled anew")
        return None
    return payload


def write(path: Path, payload: bytes) -> None:
    """Keep a compiled kernel; other processes see the whole file or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(payload).digest() + payload)
        os.replace(temporary, path)
    except OSError as error:
        warn_once(f"compiled kernels cannot be kept in {path.parent}: {error}")

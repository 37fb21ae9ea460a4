"""Compiled kernels on disk, so that a second process compiles nothing.

Numba's own cache would lie beside the sources, miss changes in the files that a kernel calls into,
and mix up entries when processes write at once. Here each compiled kernel is one file, named by a
digest of all that it depends on (kernel sources, versions, processor, argument types), written whole
or not at all, and checked when it is read. A corrupt or unwritable cache only costs a compilation.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import serialize
from numba.core.compiler import CompileResult

from fastconv.tuning import cache_dir, warn_once


def host_kernel(dispatcher: Any) -> Any:
    """Give a lazily compiled Numba function its place in the disk cache; nothing compiles here."""
    dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher


@lru_cache(maxsize=1)
def source_digest() -> str:
    """A digest of every CPU kernel's source: a change in any of them compiles all anew."""
    folder = files("fastconv.kernels.numba_cpu")
    digest = hashlib.sha256()
    for path in sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".py")), key=lambda entry: entry.name
    ):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class KernelCache:
    """The compiled forms of one function; stands in for Numba's cache object."""

    def __init__(self, function: Any):
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"

    @property
    def cache_path(self) -> str:
        return str(cache_dir())

    def _path(self, signature: Any, codegen: Any) -> Path:
        identity = (source_digest(), numba.__version__, llvmlite.__version__, codegen.magic_tuple(), str(signature))
        digest = hashlib.sha256(repr((self._name, identity)).encode()).hexdigest()[:32]
        return cache_dir() / "numba_cpu" / f"{self._name}-{digest}.bin"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel for these argument types, or None."""
        target_context.refresh()
        path = self._path(signature, target_context.codegen())
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
        return CompileResult._rebuild(target_context, *pickle.loads(payload))

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compiled kernel; other processes see the whole file or none."""
        if result.library.has_dynamic_globals:
            raise AssertionError(f"{self._name} refers to an address of this process and cannot be cached")
        payload = serialize.dumps(result._reduce())
        path = self._path(signature, result.codegen)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
        except OSError as error:
            warn_once(f"compiled kernels cannot be kept in {path.parent}: {error}")

    def flush(self) -> None:
        """Numba calls this before it recompiles; entries are never stale here."""

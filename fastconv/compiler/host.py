"""Numba's CPU kernels in the cache on disk, so that a second process compiles nothing.

Numba's own cache would lie beside the sources, miss changes in the files that a kernel calls into, and mix up
entries when processes write at once. Here a file depends on all kernel sources, versions, the processor and the
argument types.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import serialize
from numba.core.compiler import CompileResult

from fastconv.compiler import store
from fastconv.tuning import cache_dir


def host_kernel(dispatcher: Any) -> Any:
    """Give a lazily compiled Numba function its place in the disk cache; nothing compiles here."""
    dispatcher._cache = KernelCache(dispatcher.py_func)
    return dispatcher


@lru_cache(maxsize=1)
def source_digest() -> str:
    """A digest of every CPU kernel's source."""
    return store.source_digest("fastconv.kernels.numba_cpu", "", (".py",))


class KernelCache:
    """The compiled forms of one function; stands in for Numba's cache object."""

    def __init__(self, function: Any):
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"

    @property
    def cache_path(self) -> str:
        return str(cache_dir())

    def _path(self, signature: Any, codegen: Any) -> Path:
        identity = (source_digest(), numba.__version__, llvmlite.__version__, codegen.magic_tuple(), str(signature))
        return store.place("numba_cpu", self._name, identity)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel for these argument types, or None."""
        target_context.refresh()
        payload = store.read(self._path(signature, target_context.codegen()))
        return None if payload is None else CompileResult._rebuild(target_context, *pickle.loads(payload))

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compiled kernel."""
        if result.library.has_dynamic_globals:
            raise AssertionError(f"{self._name} refers to an address of this process and cannot be cached")
        store.write(self._path(signature, result.codegen), serialize.dumps(result._reduce()))

    def flush(self) -> None:
        """Numba calls this before it recompiles; entries are never stale here."""

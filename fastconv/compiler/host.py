"""Numba's CPU kernels in the cache on disk, so that a second process compiles nothing.

Numba's own cache would lie beside the sources, miss changes in the files that a kernel calls into, and mix up
entries when processes write at once. Here a file depends on all kernel sources, versions, the processor and the
argument types.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import serialize
from numba.core.compiler import CompileResult

from fastconv.compiler import store
from fastconv.tuning import cache_dir


class HostKernel:
    """A compiled kernel, called by its entry point: Numba's dispatcher looks at the type of every argument of every
    call, which takes longer than many a kernel does.

    Which compiled form serves is decided by the arguments that stand for a type, a storage or a form of tiles. All
    others are of one type in every call: ints, floats, arrays of one dtype, tuples of one length.
    """

    __slots__ = ("_dispatcher", "_entries", "_kinds")

    def __init__(self, dispatcher: Any):
        dispatcher._cache = KernelCache(dispatcher.py_func)
        self._dispatcher = dispatcher
        self._kinds: Callable[[tuple[Any, ...]], Any] | None = None
        self._entries: dict[Any, Callable[..., None]] = {}

    def entry(self, *types: Any) -> Callable[..., Any]:
        """The entry point for arguments of these Numba types, from the disk cache if it is there."""
        compiled: Callable[..., Any] = self._dispatcher.compile(types)
        return compiled

    def __call__(self, *arguments: Any) -> None:
        kinds = self._kinds
        if kinds is None:
            kinds = self._kinds = itemgetter(*(at for at, value in enumerate(arguments) if not _is_number(value)))
        try:
            entry = self._entries[kinds(arguments)]
        except KeyError:
            entry = self._entries[kinds(arguments)] = self.entry(*map(numba.typeof, arguments))
        entry(*arguments)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.generic | np.ndarray | tuple)


def host_kernels(module: ModuleType, *names: str) -> SimpleNamespace:
    """The names of a module of kernels, its entry points given their place in the disk cache; nothing compiles here."""
    return SimpleNamespace(**{**vars(module), **{name: HostKernel(getattr(module, name)) for name in names}})


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

"""`show_config`, versions, devices, backends and folders for bug reports, and `set_num_threads`."""

from __future__ import annotations

import os
import platform
from typing import Any

from fastconv import dispatch, tuning
from fastconv.errors import ArgumentError, ShapeError

LIBRARIES = ("numpy", "numba", "llvmlite", "ml_dtypes", "cupy", "numba-cuda", "scipy", "torch", "onnx", "onnxruntime")


def versions() -> dict[str, str]:
    """The installed version of each library that fastconv uses or meets; "-" where it is absent."""
    found = {"fastconv": _version("fastconv"), "python": platform.python_version()}
    return found | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    import importlib.metadata  # a fifth of the package's import time, for a page that is rarely asked for

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def environment() -> dict[str, Any]:
    """Everything `show_config` prints, as a dictionary that JSON can hold."""
    return {
        "versions": versions(),
        "machine": {"system": platform.platform(), "cpu": tuning.cpu_name(), "cores": os.cpu_count()},
        "backends": [
            {"name": name, "available": available, "reason": reason} for name, available, reason in dispatch.backends()
        ],
        "cache": str(tuning.cache_dir()),
        "autotune": tuning.autotune(),
    }


def show_config() -> None:
    """Print the versions, devices, backends and cache folder of this installation.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.show_config()  # doctest: +ELLIPSIS
    fastconv ...
    """
    found = environment()
    for name, version in found["versions"].items():
        print(f"{name:12} {version}")
    machine = found["machine"]
    print(f"{'machine':12} {machine['cpu']}, {machine['cores']} cores, {machine['system']}")
    for backend in found["backends"]:
        print(f"{'backend':12} {backend['name']}: {backend['reason']}")
    print(f"{'cache':12} {found['cache']}")
    print(f"{'autotune':12} {found['autotune']}")


def set_num_threads(count: int) -> None:
    """How many threads the `cpu` backend uses in calls of this Python thread: ``numba.set_num_threads``.

    Parameters
    ----------
    count : int
        From 1 to the number that Numba started with, ``NUMBA_NUM_THREADS`` or all cores.

    Raises
    ------
    ShapeError
        For a number out of that range.
    ArgumentError
        For anything but an int.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.set_num_threads(1)
    """
    import numba

    if not isinstance(count, int) or isinstance(count, bool):
        raise ArgumentError(f"count must be an int, got {type(count).__name__}")
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= most:
        raise ShapeError(f"count must be from 1 to NUMBA_NUM_THREADS={most}: got {count}")
    numba.set_num_threads(count)

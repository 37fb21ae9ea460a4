"""`show_config`: versions, devices, backends and folders, for bug reports."""

from __future__ import annotations

import os
import platform
from typing import Any

from fastconv import dispatch, tuning

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

"""Kernels to shared objects by g++, kept in the cache folder.

An object depends on its source, the files that it includes, the emulator's own, the options, the compiler and the
processor. Objects are written whole or not at all and end in a checksum (a loader ignores what follows an ELF file),
so that several processes may share the folder. One object may hold several instances of a file's kernels, which
spares most of the time that g++ needs to start.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from fastconv.errors import BackendError
from fastconv.tuning import cache_dir, cpu_name, warn_once

HERE = Path(__file__).parent
HEADER = "device.hpp"
OPTIONS = (
    "-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-exceptions",
    "-fno-rtti", "-fPIC", "-fvisibility=hidden", "-pipe", "-w", "-DFASTCONV_EMULATED=1",
)  # fmt: skip
#: Every access is reported to the runtime (checks.cpp), and undefined behaviour too (undefined.cpp).
CHECKS = (
    "-g", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fno-sanitize-recover=all",
    "-fsanitize=bounds-strict,shift,signed-integer-overflow,integer-divide-by-zero,alignment,null,bool,enum,"
    "unreachable,return,vla-bound",
)  # fmt: skip
RUNTIME = ("runtime.cpp", "checks.cpp", "undefined.cpp", "copies.cpp", "matrix.cpp", "bulk.cpp", "wgmma.cpp")
INCLUDE = re.compile(rb'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def unavailable() -> str | None:
    """Why kernels cannot be emulated here, or None."""
    if platform.system() != "Linux":
        return f"the CUDA emulator needs Linux, this is {platform.system()}"
    if shutil.which("g++") is None:
        return "the CUDA emulator needs the compiler g++, which is not on the PATH: install it (apt install g++)"
    return None


@lru_cache(maxsize=1)
def compiler() -> tuple[str, str]:
    """The compiler's path and version.

    Raises
    ------
    BackendError
        Where there is none.
    """
    reason = unavailable()
    if reason is not None:
        raise BackendError(reason)
    path = str(shutil.which("g++"))
    return path, subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


@dataclass(frozen=True)
class Toolchain:
    """How kernels are compiled: for which architecture, with which checks, and where their includes lie."""

    arch: str
    sanitize: bool = False
    folders: tuple[Path, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        digits = "".join(letter for letter in self.arch if letter.isdigit())
        features = ("-D__CUDA_ARCH_FEAT_SM90_ALL",) if self.arch == "sm_90a" else ()
        return (*OPTIONS, f"-D__CUDA_ARCH__={digits}0", *features, *(CHECKS if self.sanitize else ()))

    def unit(self, source: str, kernels: Sequence[str], stem: str) -> Path:
        """The object of a source, with the entry points ``fastconv_launch_0``, ... of these kernels.

        Raises
        ------
        BackendError
            With the compiler's messages where the source does not compile.
        """
        text = source + "".join(f"EMULATOR_ENTRY({number}, {kernel})\n" for number, kernel in enumerate(kernels))
        included = [(name, content) for name, content in sorted(self._included(text.encode()).items())]
        path = _folder() / f"{stem}-{_identity(self.options, text, included)}.so"
        if not _sound(path):
            runtime, header = self.runtime(), self.header()
            places = [f"-I{folder}" for folder in (header.parent, *self.folders)]
            link = ("-shared", "-nostartfiles", "-nodefaultlibs", str(runtime), "-lm", "-lc")
            _compile([*self.options, *places, "-include", HEADER, "-x", "c++", "-", "-x", "none", *link], path, text)
        return path

    def _included(self, text: bytes, found: dict[str, bytes] | None = None) -> dict[str, bytes]:
        """The files that a text includes, by name, through any depth."""
        found = {} if found is None else found
        for name in (match.decode() for match in INCLUDE.findall(text)):
            for path in (folder / name for folder in self.folders):
                if name not in found and path.exists():
                    found[name] = path.read_bytes()
                    self._included(found[name], found)
        return found

    def runtime(self) -> Path:
        """The object that schedules threads; every kernel's object links to it by its name."""
        path = _folder() / f"runtime-{_identity(OPTIONS)}.so"
        if not _sound(path):
            sources = [str(HERE / name) for name in RUNTIME]
            _compile([*OPTIONS, "-O3", "-shared", f"-Wl,-soname,{path.name}", *sources], path)
        return path

    def header(self) -> Path:
        """A copy of the headers with their precompiled form beside it; the folder appears whole."""
        folder = _folder() / f"headers-{_identity(self.options)}"
        if not _sound(folder / f"{HEADER}.gch"):
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="headers-", suffix=".tmp") as temporary:
                made = Path(temporary) / "made"
                made.mkdir()
                for path in HERE.glob("*.hpp"):
                    shutil.copyfile(path, made / path.name)
                _compile([*self.options, "-x", "c++-header", str(made / HEADER)], made / f"{HEADER}.gch")
                if folder.exists() and not _sound(folder / f"{HEADER}.gch"):
                    os.replace(folder, Path(temporary) / "corrupt")
                with contextlib.suppress(OSError):  # another process was faster
                    os.replace(made, folder)
        return folder / HEADER

    def load(self, unit: Path) -> ctypes.CDLL:
        """The loaded object; its runtime is loaded first, so that the loader finds it by name."""
        ctypes.CDLL(str(self.runtime()))
        return ctypes.CDLL(str(unit))


@lru_cache(maxsize=1)
def _own_sources() -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(HERE.glob("*.?pp"))]


def _identity(*parts: object) -> str:
    """A digest of what every object depends on, and of these parts."""
    return hashlib.sha256(repr((compiler(), cpu_name(), _own_sources(), parts)).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _elsewhere() -> Path:
    """A folder for this process where the cache cannot be written."""
    folder = tempfile.mkdtemp(prefix="fastconv-emulator-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _folder() -> Path:
    folder = cache_dir() / "emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warn_once(f"emulated kernels cannot be kept in {folder}: {error}")
        return _elsewhere()
    if os.access(folder, os.W_OK):
        return folder
    warn_once(f"emulated kernels cannot be kept in {folder}: it is read-only")
    return _elsewhere()


def _sound(path: Path) -> bool:
    """Whether a file is there, whole."""
    try:
        status = path.stat()
        return _ends_in_its_checksum(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return False


@cache
def _ends_in_its_checksum(path: Path, changed: int, size: int) -> bool:
    content = path.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _compile(arguments: Iterable[str], path: Path, text: str = "") -> None:
    """Run g++ on standard input; the output takes its place whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    done = subprocess.run([compiler()[0], *arguments, "-o", temporary], input=text, capture_output=True, text=True)
    if done.returncode:
        Path(temporary).unlink(missing_ok=True)  # g++ may have removed it
        raise BackendError(f"g++ does not compile the kernel ({path.stem.rpartition('-')[0]}):\n{done.stderr.strip()}")
    with open(temporary, "r+b") as file:
        checksum = hashlib.sha256(file.read()).digest()
        file.write(checksum)
    os.replace(temporary, path)

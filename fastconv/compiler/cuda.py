"""CUDA C++ to machine code by NVRTC, which needs no GPU; cubins are kept on disk.

The sources are the templates in kernels/cuda. What is compiled is one line that includes a file, with instances of
its kernels as name expressions. A cubin's file depends on the source and what it includes, the options, NVRTC's
version and the architecture.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastconv.compiler import store
from fastconv.errors import BackendError

#: The architectures that every kernel is compiled for in the tests.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
OPTIONS = ("-std=c++17", "-lineinfo")


@dataclass(frozen=True)
class Instance:
    """A kernel of a file with its template arguments; ``str()`` is the C++ name of it."""

    file: str
    kernel: str
    args: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kernel}<{', '.join(self.args)}>" if self.args else self.kernel


def source_folder() -> Path:
    """The folder of the CUDA C++ sources."""
    return Path(str(files("fastconv.kernels") / "cuda"))


@lru_cache(maxsize=64)
def source_digest(file: str) -> str:
    """A digest of a source and of all that it includes: a change in any of them compiles it anew."""
    digest, todo, seen = hashlib.sha256(), [file], set()
    while todo:
        name = todo.pop()
        if name in seen or not (source_folder() / name).exists():
            continue
        seen.add(name)
        content = (source_folder() / name).read_bytes()
        digest.update(name.encode() + content)
        todo += re.findall(r'^\s*#include "([^"]+)"', content.decode(), re.MULTILINE)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def nvrtc() -> Any:
    """CuPy's binding of NVRTC.

    Raises
    ------
    BackendError
        Where CuPy or NVRTC's library is missing.
    """
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # a missing library shows as one of several exceptions
        raise BackendError(
            f"CUDA C++ cannot be compiled: {error}; install cupy-cuda13x with its extra [ctk], or nvidia-cuda-nvrtc"
        ) from None
    return nvrtc


def cubins(instances: tuple[Instance, ...], arch: str) -> tuple[bytes, dict[Instance, str]]:
    """Machine code of instances of one file for an architecture, and each one's symbol in it.

    Raises
    ------
    BackendError
        With the compiler's log where the source does not compile.
    """
    (file,) = {instance.file for instance in instances}
    names = tuple(map(str, instances))
    identity = (source_digest(file), OPTIONS, nvrtc().getVersion(), arch, names)
    stem = f"{Path(file).stem}-{instances[0].kernel}-{arch}"
    path = store.place("cuda", stem, identity)
    kept = store.read(path)
    if kept is not None:
        head, _, cubin = kept.partition(b"\n")
        return cubin, dict(zip(instances, head.decode().split("\t"), strict=True))
    cubin, symbols = _compile(file, names, arch)
    store.write(path, "\t".join(symbols).encode() + b"\n" + cubin)
    return cubin, dict(zip(instances, symbols, strict=True))


def _compile(file: str, names: tuple[str, ...], arch: str) -> tuple[bytes, list[str]]:
    library = nvrtc()
    program = library.createProgram(f'#include "{file}"\n', f"{names[0]}.cu", (), ())
    try:
        for name in names:
            library.addNameExpression(program, name)
        options = [*OPTIONS, f"-arch={arch}", f"-I{source_folder()}"]
        try:
            library.compileProgram(program, options)
        except library.NVRTCError as error:
            log = library.getProgramLog(program).strip()
            raise BackendError(f"{file} does not compile for {arch} ({', '.join(names)}): {error}\n{log}") from None
        # CuPy drops the last byte, as if the image were a string; it is the top of a small number, so 0.
        return library.getCUBIN(program) + b"\0", [library.getLoweredName(program, name) for name in names]
    finally:
        library.destroyProgram(program)

"""What NVRTC makes of the CUDA C++ kernels: registers, spills, shared memory, and the memory instructions used.

Every instance that the `raw` backend can ask for is compiled for every architecture, without a GPU, and its machine
code is read by ``cuobjdump``. ``python -m fastconv.testing.resources --write`` puts the table into
kernels/README.md; the tests hold the same figures against what the kernels claim.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from fastconv.backends.raw import MODULES
from fastconv.compiler import store
from fastconv.compiler.cuda import ARCHITECTURES, Instance, cubins, source_folder
from fastconv.errors import BackendError

WIDE = re.compile(r"\b(LDG|STG|LDS|STS)\.[A-Z0-9.]*128\b")
MATRIX = re.compile(r"\b(HMMA|IMMA|DMMA|HGMMA|LDSM|LDGSTS|UTMALDG)\b")
BEGIN, END = (
    "<!-- resources: begin, written by python -m fastconv.testing.resources --write -->",
    "<!-- resources: end -->",
)


@dataclass(frozen=True)
class Resources:
    """The figures of one instance on one architecture. A spill is local memory that registers overflow into."""

    instance: Instance
    arch: str
    registers: int
    shared: int
    stack: int
    local: int
    instructions: frozenset[str]  # the 16-byte memory instructions and the matrix instructions among its code

    @property
    def spills(self) -> int:
        return self.stack + self.local


def shipped(modules: Iterable[str] = MODULES) -> list[Instance]:
    """Every instance that the host side can ask for."""
    found: dict[Instance, None] = {}
    for name in modules:
        module = importlib.import_module(f"fastconv.backends.raw.{name}")
        found.update(dict.fromkeys(module.instances()))
    return list(found)


@cache
def claims(instance: Instance) -> dict[str, Any]:
    """What the host side of an instance says of it.

    "sass": instructions that it must have; "registers": at most; "capability": the least that has its instructions;
    "archs": the only ones that have them, where later ones do not.
    """
    for name in MODULES:
        module = importlib.import_module(f"fastconv.backends.raw.{name}")
        if instance in set(module.instances()):
            return dict(module.claims(instance))
    raise KeyError(str(instance))


@lru_cache(maxsize=1)
def cuobjdump() -> str:
    """The path of ``cuobjdump``: on PATH, or in NVIDIA's wheel.

    Raises
    ------
    BackendError
        Where it is in neither place.
    """
    if found := shutil.which("cuobjdump"):
        return found
    for folder in dict.fromkeys([sysconfig.get_path("purelib"), *sys.path]):
        for path in Path(folder or ".").glob("nvidia/*/bin/cuobjdump"):
            return str(path)
    raise BackendError("cuobjdump was not found: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def measure(instances: Sequence[Instance], arch: str) -> list[Resources]:
    """Compile instances of one file for an architecture and read the figures off the machine code.

    The figures are kept beside the machine code, by a digest of it.
    """
    cubin, symbols = cubins(tuple(instances), arch)
    names = {symbols[instance]: instance for instance in instances}
    path = store.place("cuda", "resources", (hashlib.sha256(cubin).hexdigest(), WIDE.pattern, MATRIX.pattern))
    kept = store.read(path)
    if kept is None:
        kept = json.dumps(_read(cubin)).encode()
        store.write(path, kept)
    found = json.loads(kept)
    figures = ((names[name], arch, *found[name][:4], frozenset(found[name][4])) for name in names)
    return [Resources(*figure) for figure in figures]


def _read(cubin: bytes) -> dict[str, list[Any]]:
    """By symbol: registers, shared memory, stack, local memory, and the instructions that are looked for."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = _dump("--dump-resource-usage", file.name), _dump("-sass", file.name)
    code = _functions(sass)
    found = {}
    for name, numbers in _usage(usage):
        used = {f"{match[1]}.128" for match in WIDE.finditer(code[name])} | set(MATRIX.findall(code[name]))
        found[name] = [*(numbers[key] for key in ("REG", "SHARED", "STACK", "LOCAL")), sorted(used)]
    return found


def _dump(option: str, path: str) -> str:
    done = subprocess.run([cuobjdump(), option, path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"cuobjdump {option} failed: {done.stderr.strip()}")
    return done.stdout


def _usage(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    for name, line in re.findall(r"Function (\S+):\s*\n\s*(.*)", text):
        yield name, {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}


def _functions(text: str) -> dict[str, str]:
    parts = re.split(r"Function : (\S+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def sass(instances: Sequence[Instance], arch: str) -> dict[Instance, str]:
    """The machine code of instances of one file, as text."""
    cubin, symbols = cubins(tuple(instances), arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code = _functions(_dump("-sass", file.name))
    return {instance: code[symbols[instance]] for instance in instances}


def for_arch(instances: Iterable[Instance], arch: str) -> list[Instance]:
    """Those of the instances whose instructions an architecture has."""
    capability = int(re.sub(r"\D", "", arch))

    def has(claimed: dict[str, Any]) -> bool:
        return capability >= claimed.get("capability", 0) and arch in claimed.get("archs", (arch,))

    return [instance for instance in instances if has(claims(instance))]


def by_file(instances: Iterable[Instance]) -> dict[str, list[Instance]]:
    files: dict[str, list[Instance]] = {}
    for instance in instances:
        files.setdefault(instance.file, []).append(instance)
    return files


def measure_all(instances: Iterable[Instance], archs: Sequence[str] = ARCHITECTURES) -> list[Resources]:
    """The figures of all instances on all architectures, compiled in parallel."""
    jobs = [(for_arch(group, arch), arch) for group in by_file(instances).values() for arch in archs]
    with ThreadPoolExecutor() as pool:
        return [one for part in pool.map(lambda job: measure(*job), [job for job in jobs if job[0]]) for one in part]


def table(found: Sequence[Resources]) -> str:
    """The figures as Markdown: a row per instance, registers per architecture."""
    archs = list(dict.fromkeys(one.arch for one in found))
    rows: dict[Instance, dict[str, Resources]] = {}
    for one in found:
        rows.setdefault(one.instance, {})[one.arch] = one
    lines = [
        f"| file | instance | registers on {', '.join(archs)} | spills | static shared memory | 16-byte accesses |",
        "|---|---|---|---|---|---|",
    ]
    for instance, per in rows.items():
        registers = ", ".join(str(per[arch].registers) if arch in per else "-" for arch in archs)
        wide = sorted(set().union(*(one.instructions for one in per.values())))
        lines.append(
            f"| `{instance.file}` | `{instance}` | {registers} "
            f"| {max(one.spills for one in per.values())} | {max(one.shared for one in per.values())} "
            f"| {', '.join(wide) or '-'} |"
        )
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put the table between its marks in a page."""
    page = path.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into kernels/README.md")
    options = parser.parse_args(arguments)
    text = table(measure_all(shipped()))
    if options.write:
        write(source_folder().parent / "README.md", text)
    else:
        print(text)


if __name__ == "__main__":
    main()

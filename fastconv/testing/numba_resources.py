"""What the compilers make of the Numba CUDA kernels, without a GPU: PTX by NVVM, registers and spills by nvJitLink.

``python -m fastconv.testing.numba_resources --write`` puts the table into kernels/README.md. It needs numba-cuda,
nvidia-nvvm, nvidia-nvjitlink and nvidia-cuda-cuobjdump.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.backends.numba_cuda import conv, ptx
from fastconv.backends.numba_cuda.launcher import Grid, kernel
from fastconv.kernels.numba_cuda import (
    conv_depthwise,
    conv_direct,
    conv_gemm,
    correlate,
    elementwise,
    pool_avg,
    pool_lp,
    pool_max,
    pool_unpool,
)
from fastconv.kernels.numba_cuda.conv_depthwise import Plane
from fastconv.kernels.numba_cuda.conv_gemm import Tile
from fastconv.kernels.numba_cuda.memory import computed
from fastconv.testing.resources import cuobjdump

CAPABILITIES = ((7, 5), (8, 0), (9, 0), (10, 0), (12, 0))
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu")  # besides gelu
BEGIN, END = (
    "<!-- numba resources: begin, written by python -m fastconv.testing.numba_resources --write -->",
    "<!-- numba resources: end -->",
)


@dataclass(frozen=True)
class Instance:
    """A kernel for one dtype: its factory and arguments, what it is launched with, and its blocks of threads."""

    factory: Callable[..., Any]
    key: tuple[Any, ...]
    signature: tuple[Any, ...]
    grid: Grid

    @property
    def file(self) -> str:
        return f"{self.factory.__module__.rpartition('.')[2]}.py"

    def __str__(self) -> str:
        tile = next(("x".join(map(str, part)) for part in self.key if type(part) in (Tile, Plane)), "")
        return " ".join(filter(None, (self.factory.__name__, self.signature[0][0], tile)))


def instances() -> list[Instance]:
    """Every kernel in every dtype that it is launched for; other tiles and activations than the usual in float32."""
    found = [one for dtype in FLOATS for one in of_float(dtype)]
    found += of_conv("int32", "int8", computed("int32"))
    for dtype in INTS:
        found.append(Instance(pool_max.fprop, (dtype, dtype, "uint8"), ((dtype, "uint8", dtype), (36,)), THREADS))
        found.append(Instance(pool_max.gather, (dtype, dtype, True), ((dtype, dtype, "uint8"), (36,)), THREADS))
    for dtype in (*FLOATS, *INTS, "bool"):
        acc = computed(dtype) if dtype in FLOATS else np.int64
        found.append(Instance(correlate.correlate, (dtype, acc, False, 2), ((dtype,) * 3, (16,)), THREADS))
    for dtype in ("float32", "float64"):  # of complex numbers
        found.append(Instance(correlate.correlate, (dtype, computed(dtype), True, 2), ((dtype,) * 3, (16,)), THREADS))
    for name in ACTIVATIONS:
        found.append(
            Instance(elementwise.activation_fprop, (*("float32",) * 2, name), (("float32",) * 2, (15,)), THREADS)
        )
        key = (*("float32",) * 3, name)
        found.append(Instance(elementwise.activation_dgrad, key, (("float32",) * 3, (20,)), THREADS))
    found.append(Instance(pool_max.index_range, (256,), (("int64", "int64"), (26,)), THREADS))
    found.append(Instance(pool_unpool.winners, (), (("int64", "int64[:]"), (11,)), THREADS))
    found.append(Instance(elementwise.fill, ("int64",), (("int64",), (2,)), THREADS))
    return found


THREADS = Grid(1, 256)


def of_conv(dtype: str, x: str, acc: Any) -> Iterator[Instance]:
    """The convolutions of x and w of dtype `x` that give `dtype`."""
    three, bias = (dtype, x, x), None if dtype == "int32" else dtype
    operands, numbers = (*three, bias or "uint8"), ((42,),)
    activation = None if dtype == "int32" else "silu"
    key = (*three, bias, acc, activation)
    yield Instance(conv_direct.gather, key, (operands, *numbers), THREADS)
    if dtype != "int32":
        yield Instance(conv_direct.gather, (*key, True), (operands, *numbers), THREADS)
    yield Instance(conv_direct.wgrad, (*three, acc), (three, (37,)), THREADS)
    plane = Grid(1, conv.PLANE.threads)
    yield Instance(conv_depthwise.gather, (*key, conv.PLANE), (operands, *numbers), plane)
    yield Instance(conv_depthwise.wgrad, (*three, acc, conv.PLANE), (three, (40,)), plane)
    for tile in (conv.NARROW, conv.MEDIUM, conv.LARGE) if dtype == "float32" else (conv.MEDIUM,):
        grid = Grid(1, tile.threads, 0, conv.residents(dtype, tile))
        yield Instance(conv_gemm.gather, (*key, tile, False), (operands, *numbers), grid)
        yield Instance(conv_gemm.wgrad, (*three, acc, tile), (three, (40,)), Grid(1, tile.threads))
    yield Instance(conv_gemm.sum_parts, (dtype, acc), ((dtype, np.dtype(acc).name), (12,)), THREADS)


def of_float(dtype: str) -> Iterator[Instance]:
    acc = computed(dtype)
    name = np.dtype(acc).name
    two, three = (dtype,) * 2, (dtype,) * 3
    yield from of_conv(dtype, dtype, acc)
    yield Instance(elementwise.activation_fprop, (*two, "gelu"), (two, (15,)), THREADS)
    yield Instance(elementwise.activation_dgrad, (*three, "gelu"), (three, (20,)), THREADS)
    yield Instance(elementwise.bias_grad, (*two, 256), (two, (11,)), THREADS)
    yield Instance(pool_max.fprop, (*two, "uint8"), ((dtype, "uint8", dtype), (36,)), THREADS)
    yield Instance(pool_max.gather, (*two, True), ((*two, "uint8"), (36,)), THREADS)
    yield Instance(pool_max.scatter, two, ((name, dtype, "int64"), (16,)), THREADS)
    yield Instance(pool_avg.fprop, two, (two, (36,)), THREADS)
    yield Instance(pool_avg.gather, two, (two, (36,)), THREADS)
    yield Instance(pool_lp.fprop, (*two, acc), (two, (0, 31)), THREADS)
    yield Instance(pool_lp.gather, (*three, acc), ((*three, name), (0, 36)), THREADS)
    yield Instance(pool_unpool.fill, two, ((*two, "int64"), (17,)), THREADS)
    yield Instance(pool_unpool.pick, two, ((*two, "int64", "int64"), (23,)), THREADS)


@contextmanager
def without_gpu() -> Iterator[None]:
    """Let Numba compile device functions where there is no device whose compute capability it could ask for."""
    from numba.cuda import dispatcher

    class Device:
        compute_capability = CAPABILITIES[0]

    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: Device
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def compiled(instance: Instance, capabilities: Sequence[tuple[int, int]] = CAPABILITIES) -> Iterator[bytes]:
    """Its PTX for each capability. What precedes NVVM, the most of the time, is done once."""
    from numba.cuda import compiler

    function, bounds = kernel(instance.factory, *instance.key), (instance.grid.threads, instance.grid.residents)
    with without_gpu():
        library, _ = compiler._compile_pyfunc_with_fixup(
            function.py_func, ptx.types_of(instance.signature), debug=None, lineinfo=False, device=False,
            fastmath=False, cc=capabilities[0], opt=None, abi="numba", abi_info=None, forceinline=False,
            launch_bounds=bounds, lto=False,
        )  # fmt: skip
        for cc in capabilities:
            (code,) = library.get_asm_strs(cc=cc)
            yield code if isinstance(code, bytes) else code.encode()


@dataclass(frozen=True)
class Resources:
    registers: int
    shared: int
    spills: int  # bytes of local memory a thread
    inner: int  # accesses to local memory between the first barrier and the last: in the loop over the summands


def measure(instance: Instance, cc: tuple[int, int] = (9, 0)) -> Resources:
    """Its figures in machine code for one capability."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    (code,) = compiled(instance, (cc,))
    linker = Linker(ObjectCode.from_ptx(code), options=LinkerOptions(arch=f"sm_{cc[0]}{cc[1]}"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(linker.link("cubin").code)
        file.flush()
        usage, sass = (
            subprocess.run([cuobjdump(), option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    rows = [{k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)} for line in usage.splitlines()]
    found = max((row for row in rows if row), key=lambda row: row["REG"])
    loop = re.findall(r"\b(BAR|LDL|STL)\b", sass)
    barriers = [at for at, name in enumerate(loop) if name == "BAR"]
    inside = barriers[-1] - barriers[0] + 1 - len(barriers) if barriers else 0
    return Resources(found["REG"], found["SHARED"], found["STACK"] + found["LOCAL"], inside)


def shown() -> list[Instance]:
    """Those of the table: float32 and float64, and the integers of convolutions."""
    return [one for one in instances() if one.signature[0][0] in ("float32", "float64") or "int8" in one.signature[0]]


def table() -> str:
    lines = ["| file | kernel | registers on sm_90 | static shared memory | spills |", "|---|---|---|---|---|"]
    for instance in {f"{one.file} {one}": one for one in reversed(shown())}.values():
        found = measure(instance)
        lines.append(f"| `{instance.file}` | `{instance}` | {found.registers} | {found.shared} | {found.spills} |")
    return "\n".join([*lines[:2], *sorted(lines[2:])])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into kernels/README.md")
    options = parser.parse_args(arguments)
    text = table()
    if not options.write:
        print(text)
        return
    path = Path(str(conv.__file__)).parents[3] / "kernels" / "README.md"
    head, _, rest = path.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


if __name__ == "__main__":
    main()

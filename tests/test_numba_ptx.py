"""Every Numba CUDA kernel in every dtype compiles to PTX for every compute capability, without a GPU."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from fastconv.backends.numba_cuda import ptx
from fastconv.backends.numba_cuda.simulator import simulated
from fastconv.testing import numba_resources
from fastconv.testing.numba_resources import CAPABILITIES, Instance

KERNELS = Path(__file__).parent.parent / "kernels" / "numba_cuda"

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("numba_cuda"), reason="needs numba-cuda"),
    pytest.mark.skipif(simulated(), reason="Numba's simulator compiles nothing"),
]
INSTANCES = [] if pytestmark[0].args[0] or simulated() else numba_resources.instances()
GROUPS: dict[str, list[Instance]] = {}
for one in INSTANCES:
    GROUPS.setdefault(f"{one.file} {one.signature[0][0]}", []).append(one)


@pytest.mark.parametrize("group", GROUPS)
def test_compiles(group):
    for instance in GROUPS[group]:
        for cc, code in zip(CAPABILITIES, numba_resources.compiled(instance), strict=True):
            assert f".target sm_{cc[0]}{cc[1]}".encode() in code, instance
            assert len(ptx.ENTRY.findall(code)) == 1, instance
            parameters = sum(length or 1 for length in instance.signature[1])
            parameters += sum(7 if dtype.endswith("[:]") else 1 for dtype in instance.signature[0])
            declared = re.search(rb"\.entry[^(]*\(([^)]*)\)", code)
            assert declared, instance
            assert declared[1].count(b".param") == parameters, instance  # what a launch passes


def test_every_file_is_compiled():
    """No kernel file lies unused; those without a kernel of their own are what kernels are made of."""
    files = {path.name for path in KERNELS.glob("*.py") if "@cuda.jit" in path.read_text()}
    assert files == {instance.file for instance in INSTANCES}


@pytest.mark.xfail(strict=True, reason="a known defect: the largest tile keeps its 64 sums in local memory")
@pytest.mark.skipif(not importlib.util.find_spec("nvidia"), reason="needs NVIDIA's wheels")
def test_no_spills():
    """The kernels with the most registers; `python -m fastconv.testing.numba_resources` has all figures."""
    tiled = [one for one in INSTANCES if one.file == "conv_gemm.py" and one.signature[0][0] == "float32"]
    for instance in tiled:
        if instance.factory.__name__ == "gather":
            found = numba_resources.measure(instance)
            assert found.spills == 0, instance
            assert found.registers * instance.grid.threads * instance.grid.residents <= 65536, instance

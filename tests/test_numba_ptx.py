"""Every Numba CUDA kernel in every dtype compiles to PTX for every compute capability, without a GPU."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastconv.backends.numba_cuda import conv, ptx
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


def test_no_spills():
    """The kernels with the most registers; `python -m fastconv.testing.numba_resources` has all figures.

    Of the largest tile, the loop that activates the sums is too long to unroll: they pass through local memory once,
    after the loop over the summands. In that loop nothing does, nor anywhere without an activation.
    """
    tiled = [one for one in INSTANCES if one.file == "conv_gemm.py" and one.signature[0][0] == "float32"]
    gathers = [one for one in tiled if one.factory.__name__ == "gather"]
    assert {tile_of(one) for one in gathers} == {conv.NARROW, conv.MEDIUM, conv.LARGE}
    for instance in gathers:
        found, tile = numba_resources.measure(instance), tile_of(instance)
        assert found.spills <= (tile.TM * tile.TN * 4 if tile == conv.LARGE else 0), instance
        assert found.registers * instance.grid.threads * instance.grid.residents <= 65536, instance
        assert found.inner == 0, instance
        if tile == conv.LARGE:
            key = tuple(None if part == "silu" else part for part in instance.key)
            assert numba_resources.measure(replace(instance, key=key)).spills == 0


def tile_of(instance):
    return next(part for part in instance.key if type(part) is conv.Tile)

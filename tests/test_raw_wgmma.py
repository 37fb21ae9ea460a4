"""Convolution by wgmma and TMA under the emulator: exact on integers, whatever the order of threads; and its choice.

Problems are small, and chosen for the seams: partial tiles of pixels and channels, more steps than stages, tiles that
go on into the next image, strides that leave residues without taps, operands that have to be packed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv.backends.raw import args, conv, conv_direct, conv_mma, conv_wgmma, tensor_map
from fastconv.backends.raw.device import Properties
from fastconv.errors import BackendError
from fastconv.problem import ConvProblem
from fastconv.testing import cases, compare, emulator, resources, selftest

needs_compiler = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

OPS = ("conv_fprop", "conv_dgrad")
PROBLEMS = {
    "tiles": "conv2d n=2 c=72 size=9x11 k=72 ksize=3 pad=1 layout=NHWC",
    "ohwi": "conv2d n=1 c=24 size=8 k=16 ksize=3 pad=1 layout=NHWC weight_layout=OHWI",
    "planes": "conv2d n=2 c=13 size=6x5 k=11 ksize=2 pad=1:0x0:2",
    "strided": "conv2d n=3 c=16 size=11x10 k=24 ksize=3 stride=2 pad=1 layout=NHWC",
    "no_taps": "conv2d n=1 c=16 size=9x8 k=8 ksize=1 stride=2 layout=NHWC",
    "dilated": "conv2d n=1 c=16 size=9 k=8 ksize=3 stride=2 pad=3:1x2 dilation=3x2 layout=NHWC",
    "pointwise": "conv2d n=3 c=72 size=5x4 k=40 ksize=1 bias=40 activation=relu layout=NHWC",
    "conv1d": "conv1d n=2 c=16 size=137 k=24 ksize=5 stride=2 pad=2 bias=24",
    "conv3d": "conv3d n=1 c=8 size=4x5x7 k=16 ksize=3x2x3 pad=1x0x1 layout=NHWC",
}  # fmt: skip
H100 = emulator.EmulatedDevice("sm_90a")


def gpu(arch="sm_90a", sms=132, shared=227 * 1024):
    return Properties("a GPU", arch, sms, shared, 50 << 20)


@pytest.fixture
def only_wgmma(monkeypatch):
    """What it takes runs on it, however small."""
    monkeypatch.setattr(conv, "ALGORITHMS", {"wgmma": conv_wgmma, "direct": conv_direct})
    monkeypatch.setattr(conv_wgmma, "cost", lambda *arguments: 0.0)


@pytest.fixture
def few_blocks(monkeypatch):
    """Every block takes several tiles."""
    found = conv_wgmma.config
    monkeypatch.setattr(conv_wgmma, "config", lambda *given: {**found(*given), "blocks": 2})


def with_tile(monkeypatch, columns):
    monkeypatch.setattr(conv_wgmma, "TILES", [tile for tile in conv_wgmma.TILES if tile.columns == columns])


# ---------------------------------------------------------------- results


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("op", OPS)
def test_exact_and_bounded(op, name, dtype, only_wgmma, few_blocks):
    """The bodies of every backend: integers equal the reference, floats keep the bound of float32 sums."""
    problem = selftest.for_op(op, replace(ConvProblem.parse(PROBLEMS[name]), dtype=dtype))
    assert conv.applicable(op, problem, H100.properties)[0].algorithm == "wgmma"
    with emulator.using(H100):
        selftest.check_conv("raw", op, problem)

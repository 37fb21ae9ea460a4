"""Convolution by wgmma and TMA under the emulator: exact on integers, whatever the order of threads; and its choice.

Problems are small, and chosen for the seams: partial tiles of pixels and channels, more steps than stages, tiles that
go on into the next image, strides that leave residues without taps, operands that have to be packed.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv.backends.raw import args, conv, conv_direct, conv_wgmma, tensor_map
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


@needs_compiler
@pytest.mark.parametrize("columns", [128, 256])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_wide_tiles(columns, layout, only_wgmma, few_blocks, monkeypatch):
    """Tiles that reach past the last filter and the last pixel, and into the next image."""
    with_tile(monkeypatch, columns)
    problem = ConvProblem.parse(f"conv2d n=3 c=72 size=7x9 k={columns + 8} ksize=1x2 layout={layout} dtype=float16")
    with emulator.using(H100):
        selftest.conv_exact("raw", "conv_fprop", problem)


@needs_compiler
@pytest.mark.parametrize("op", OPS)
def test_every_check_in_a_shuffled_order(op, only_wgmma, few_blocks, monkeypatch):
    """No access that CUDA forbids; more steps than stages, and several tiles per block."""
    with_tile(monkeypatch, 64)
    problem = ConvProblem.parse("conv2d n=2 c=72 size=9x11 k=72 ksize=2x3 pad=1 stride=1x2 layout=NHWC dtype=bfloat16")
    with emulator.using(emulator.EmulatedDevice("sm_90a", sanitize=True, seed=3)):
        selftest.conv_exact("raw", op, problem)


@needs_compiler
@pytest.mark.parametrize("op", OPS)
def test_operands_that_tma_cannot_walk_over(op, only_wgmma, monkeypatch):
    """Flipped, broadcast and shifted views are packed first."""
    with_tile(monkeypatch, 64)
    problem = ConvProblem.parse("conv2d n=2 c=16 size=6 k=16 ksize=3 layout=NHWC weight_layout=OHWI dtype=float16")
    data, w = (np.asarray(a) for a in cases.conv_integers(problem, op)[:2])
    shifted = np.zeros(data.size + 1, data.dtype)[1:].reshape(data.shape)
    shifted[...] = data
    for first, second in (
        (data[:, ::-1], w), (data, w[:, :, ::-1]), (np.broadcast_to(data[:1], data.shape), w), (shifted, w),
    ):  # fmt: skip
        operands = (first, second, None)[: len(cases.CONV_OPERANDS[op])]
        expected = cases.conv_call(op, problem, operands, backend="reference")
        with emulator.using(H100):
            compare.equal(cases.conv_call(op, problem, operands, backend="raw"), expected, str(problem))


@needs_compiler
def test_infinities_stay_in_their_windows(only_wgmma, monkeypatch):
    """Channels that fill up a step, and the taps beside them, multiply no value of another tap by zero."""
    with_tile(monkeypatch, 64)
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((1, 6, 7, 8)).astype(np.float16), rng.standard_normal((8, 3, 3, 8)).astype(np.float16)
    x[0, 2, 3, 4], w[5, 1, 1, 2] = np.inf, np.inf

    def call(backend):
        return fastconv.conv2d(x, w, padding=1, layout="NHWC", weight_layout="OHWI", backend=backend)

    with emulator.using(H100):
        actual = call("raw")
    assert np.array_equal(np.isfinite(actual), np.isfinite(call("reference")))


@needs_compiler
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("name", ["tiles", "strided", "planes", "conv1d", "conv3d"])
def test_dgrad_of_a_bad_weight(name, value, only_wgmma, monkeypatch):
    """It meets no product beyond dy, whatever zeros TMA fills in there."""
    with_tile(monkeypatch, 64)
    problem = replace(ConvProblem.parse(PROBLEMS[name]), dtype="bfloat16", bias=None, activation=None)
    dy, w = cases.conv_floats(problem, "conv_dgrad")
    dy, w[0, 0, ..., :1] = np.abs(dy) + dy.dtype.type(0.5), value
    with emulator.using(H100):
        actual = cases.conv_call("conv_dgrad", problem, (dy, w), backend="raw")
    expected = cases.conv_call("conv_dgrad", problem, (dy, w), backend="reference")
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))
    assert np.array_equal(actual[~np.isfinite(actual)], expected[~np.isfinite(expected)], equal_nan=True)


# ---------------------------------------------------------------- the pipeline, broken on purpose


class Mutant(emulator.EmulatedDevice):
    """A device whose kernel has another text."""

    def __init__(self, old, new):
        super().__init__("sm_90a", sanitize=True, seed=1)
        text = (resources.source_folder() / conv_wgmma.FILE).read_text()
        assert text.count(old) == 1
        self.text = text.replace(old, new)

    def function(self, instance):
        if instance.file != conv_wgmma.FILE:
            return super().function(instance)
        return self.compile(self.text, str(instance))


MUTANTS = {
    "reads before the copies have landed": ("barrier_wait(&full[next.stage], next.parity);", "", "copy has landed"),
    "copies before all have read": (
        "barrier_wait(&empty[next.stage], next.parity ^ 1);",
        "",
        "a write before an async",
    ),
    "frees a stage that is being read": ("wgmma_wait<1>();", "wgmma_wait<3>();", "race"),
    "expects too few bytes": ("&full[next.stage], STAGE)", "&full[next.stage], STAGE - 16)", "deadlock|landed"),
}


@needs_compiler
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_pipeline_is_caught(name, only_wgmma, few_blocks, monkeypatch):
    with_tile(monkeypatch, 64)
    old, new, report = MUTANTS[name]
    problem = ConvProblem.parse("conv2d n=1 c=72 size=5x9 k=8 ksize=2x3 layout=NHWC dtype=float16")
    with emulator.using(Mutant(old, new)), pytest.raises(emulator.EmulatorError, match=report):
        selftest.conv_exact("raw", "conv_fprop", problem)


# ---------------------------------------------------------------- the choice

ASPP = "conv2d n=8 c=2048 size=33 k=256 ksize=3 pad=12 dilation=12 layout=NHWC dtype=bfloat16"
REFUSED = {
    "conv2d n=8 c=64 size=56 k=64 ksize=3 dtype=float32": "wgmma is for float16 and bfloat16: got float32",
    "conv2d n=8 c=64 size=56 k=64 ksize=3 groups=2 dtype=float16": "groups=2",
    "conv2d n=8 c=2 size=56 k=64 ksize=3 dtype=float16": "to fill a tile: N=8, C=2, K=64",
    "conv2d n=8 c=64 size=56 k=64 ksize=3 stride=9 dtype=float16": "stride 9: TMA steps over at most 8",
    "conv2d n=8 c=64 size=400 k=64 ksize=3 dilation=65 pad=65 dtype=float16": None,
    "conv2d n=8 c=64 size=400 k=64 ksize=3 dilation=60 pad=129 dtype=float16": "reach of -129 and 9 cells",
    "conv2d n=8 c=64 size=600 k=64 ksize=3 dilation=128 pad=128 dtype=float16": "taps 256 cells apart: .* reaches 254",
    "conv3d n=1 c=64 size=40 k=64 ksize=5 dilation=4 pad=8 dtype=float16": None,
    "conv3d n=1 c=64 size=60 k=64 ksize=3 dilation=16 pad=16 dtype=float16": "taps 32 cells apart: .* reaches 30",
    "conv3d n=1 c=64 size=60 k=64 ksize=3 pad=17 dtype=float16": "reach of -17 and 15 cells: .* holds -16 to 15",
    "conv1d n=1 c=64 size=9000 k=64 ksize=3 dilation=2000 pad=2000 dtype=float16": None,
    ASPP: None,
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_refusals_have_a_reason(line):
    """What TMA or wgmma cannot do, the portable path serves."""
    problem = ConvProblem.parse(line)
    reason = conv_wgmma.refusal("conv_fprop", problem, gpu())
    if REFUSED[line] is None:
        assert reason is None
        assert conv_wgmma.offer("conv_fprop", problem, gpu()) is not None
        return
    assert re.search(REFUSED[line], reason)
    assert conv_wgmma.offer("conv_fprop", problem, gpu()) is None
    assert conv.applicable("conv_fprop", problem, gpu())


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_only_hopper_has_it(arch):
    problem = ConvProblem.parse(ASPP)
    assert conv_wgmma.refusal("conv_fprop", problem, gpu(arch)) == f"wgmma is of sm_90a, the device has {arch}"
    assert "wgmma" not in {choice.algorithm for choice in conv.applicable("conv_fprop", problem, gpu(arch))}


CHOSEN = {
    "conv2d n=256 c=256 size=14 k=256 ksize=3 pad=1 layout=NHWC dtype=bfloat16": ("wgmma", "128x256"),
    "conv2d n=256 c=64 size=56 k=64 ksize=3 pad=1 layout=NHWC dtype=bfloat16": ("wgmma", "128x64"),
    "conv2d n=4 c=256 size=14 k=256 ksize=3 pad=1 layout=NHWC dtype=bfloat16": ("mma", "64x64"),
    "conv2d n=256 c=3 size=224 k=64 ksize=7 stride=2 pad=3 layout=NHWC dtype=bfloat16": ("mma", "128x64"),
}  # fmt: skip


@pytest.mark.parametrize("line", CHOSEN)
def test_the_choice(line):
    """wgmma where its tiles are filled; the portable path for few pixels, and for few channels."""
    choice = conv.choose("conv_fprop", ConvProblem.parse(line), gpu())
    assert (choice.algorithm, choice.config["tile"]) == CHOSEN[line]


@pytest.mark.parametrize("tile", conv_wgmma.TILES, ids=str)
def test_a_block_fits(tile):
    """On a Hopper multiprocessor, with the kernel's barriers."""
    assert tile.shared + 16 * tile.stages <= 227 * 1024
    assert tile.stages >= 3


# ---------------------------------------------------------------- the machine code


INSTANCES = list(conv_wgmma.instances())


def test_registers_are_what_setmaxnreg_deals_out():
    """384 threads of 168: fewer, and the math warpgroups would wait for ever."""
    for found in resources.measure(INSTANCES, "sm_90a"):
        assert found.registers * 384 == 128 * 40 + 256 * 232
        assert found.spills == 0


def test_pixels_come_by_im2col():
    """One copy instruction per number of spatial axes, one for the filters; no product waits for the one before it."""
    code = resources.sass(INSTANCES, "sm_90a")[INSTANCES[0]]
    copies = Counter(re.findall(r"\bUTMALDG\.\S+", code))
    assert copies == {f"UTMALDG.{axes}D.IM2COL": 1 for axes in (3, 4, 5)} | {"UTMALDG.5D": 1}
    assert "USETMAXREG.DEALLOC" in code
    assert "USETMAXREG.TRY_ALLOC" in code
    products = re.findall(r"\bHGMMA\.[^;]*|WARPGROUP\.DEPBAR[^;]*", code)
    assert products[:5] == [one for one in products[:4] if "HGMMA" in one] + [products[4]]
    assert "DEPBAR" in products[4]


# ---------------------------------------------------------------- tensor maps


class Driver:
    """The driver's functions as far as their arguments."""

    def __init__(self, status=0):
        self.status, self.calls = status, []

    def cuTensorMapEncodeTiled(self, *given):
        return self.call("tiled", given)

    def cuTensorMapEncodeIm2col(self, *given):
        return self.call("im2col", given)

    def call(self, name, given):
        values = [list(one) if hasattr(one, "__len__") else getattr(one, "value", one) for one in given]
        assert values[0] % 64 == 0
        ctypes.memset(values[0], 0xA5, 128)
        self.calls.append((name, values[1:]))
        return self.status


def test_what_the_driver_is_asked_for(monkeypatch):
    """Arrays fastest axis first; elements as 16-bit integers; one encoding per address."""
    driver = Driver()
    monkeypatch.setattr(tensor_map, "driver", lambda: driver)
    tensor_map.encode.cache_clear()
    boxes = tensor_map.Boxes((72, 1, 3, 5, 40), (1200, 1200, 400, 80, 2), (64, 1, 1, 1, 64))
    pixels = tensor_map.Pixels((2, 9, 11, 72), (14256, 1584, 144, 2), (-1, -2), (0, 1), 64, 128, (2, 1))
    assert tensor_map.encode(boxes, 0x1000) == b"\xa5" * 128
    for address in (0x2000, 0x2000, 0x3000):
        tensor_map.encode(pixels, address)
    tensor_map.encode.cache_clear()
    assert driver.calls == [
        ("tiled", [1, 5, 0x1000, [40, 5, 3, 1, 72], [80, 400, 1200, 1200], [64, 1, 1, 1, 64], [1] * 5, 0, 3, 3, 0]),
        *(("im2col", [1, 4, address, [72, 11, 9, 2], [144, 1584, 14256], [-2, -1], [1, 0], 64, 128, [1, 1, 2, 1],
                      0, 3, 3, 0]) for address in (0x2000, 0x3000)),
    ]  # fmt: skip


def test_what_the_driver_refuses_is_told(monkeypatch):
    monkeypatch.setattr(tensor_map, "driver", lambda: Driver(status=1))
    with pytest.raises(BackendError, match=r"refuses a tensor map \(error 1\): Boxes.* at 0x1010"):
        tensor_map.encode(tensor_map.Boxes((8, 8), (16, 2), (8, 8)), 0x1010)


@needs_compiler
def test_the_struct():
    """Offsets are the compiler's."""
    fields = [name for name in args.GATHER_MAPS.names if name != "aligning"]
    code = '#include "args.cuh"\n__global__ void k(int* out) {\n    out[0] = sizeof(GatherMaps);\n'
    code += "".join(f"    out[{n}] = __builtin_offsetof(GatherMaps, {f});\n" for n, f in enumerate(fields, 1)) + "}\n"
    found = np.zeros(1 + len(fields), np.int32)
    H100.launch(H100.compile(code, "k"), (1, 1, 1), (1, 1, 1), 0, (found,))
    assert found.tolist() == [args.GATHER_MAPS.itemsize, *(args.GATHER_MAPS.fields[f][1] for f in fields)]

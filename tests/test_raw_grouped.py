"""Grouped convolution on tensor cores under the emulator: exact on integers, in bounds on floats, never out of place.

Problems are small, and chosen for the seams: groups side by side in a chunk of 8 channels and across chunks, partial
tiles, several images to a tile, residues without taps. The device has one multiprocessor, so that a block goes from
tile to tile.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fastconv import dispatch
from fastconv.backends.raw import args, conv, conv_direct, conv_grouped, conv_mma, device
from fastconv.backends.raw.conv_steps import Operands
from fastconv.problem import ConvProblem
from fastconv.testing import cases, emulator, selftest

needs_compiler = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad")
H100 = device.Properties("H100", "sm_90a", 132, 227 << 10, 50 << 20)
A10 = device.Properties("A10", "sm_86", 72, 99 << 10, 6 << 20)
T4 = device.Properties("T4", "sm_75", 40, 64 << 10, 4 << 20)
PROBLEMS = {
    "of_4": "conv2d n=2 c=72 size=13x11 k=72 ksize=3 pad=1 groups=18 bias=72 activation=relu layout=NHWC",
    "of_8": "conv2d n=3 c=64 size=11x10 k=64 ksize=3 stride=2 pad=1 groups=8 layout=NHWC",
    "of_12": "conv2d n=1 c=96 size=6x7 k=96 ksize=3 pad=1 groups=8 layout=NHWC weight_layout=OIHW",
    "of_16": "conv2d n=5 c=96 size=4 k=48 ksize=2 groups=6 bias=48 activation=relu6 layout=NHWC",
    "of_32": "conv2d n=1 c=128 size=9x6 k=64 ksize=3 pad=1 dilation=2 groups=4 layout=NHWC weight_layout=OHWI",
    "uneven": "conv2d n=2 c=48 size=5x9 k=64 ksize=2x3 pad=0:1x1 groups=8 layout=NHWC",
    "many_taps": "conv2d n=1 c=32 size=9 k=32 ksize=7 pad=3 groups=4 layout=NHWC",
    "planes": "conv2d n=3 c=32 size=7x9 k=64 ksize=3 pad=1 groups=4 bias=64",
    "no_taps": "conv2d n=1 c=16 size=9x8 k=16 ksize=1 stride=2 groups=2 layout=NHWC",
    "in_1d": "conv1d n=2 c=16 size=301 k=32 ksize=5 stride=3 pad=2 groups=4 bias=32 layout=NHWC",
    "in_3d": "conv3d n=1 c=16 size=4x7x9 k=16 ksize=3x2x3 stride=1x2x2 pad=1x0x1 groups=4 layout=NHWC",
}


def emulated(arch="sm_90a", **options):
    gpu = emulator.EmulatedDevice(arch, **options)
    gpu.properties = replace(gpu.properties, sms=1)
    return gpu


@pytest.fixture(scope="module")
def gpu():
    """An emulated GPU of one multiprocessor with all of these kernels."""
    found = emulated()
    found.prepare(conv_grouped.instances())
    return found


@pytest.fixture
def nothing_but_grouped(monkeypatch):
    """What these kernels take runs on them, however small."""
    monkeypatch.setattr(conv, "ALGORITHMS", {"grouped": conv_grouped, "direct": conv_direct})
    monkeypatch.setattr(conv, "choose", None)
    monkeypatch.setattr(conv_grouped, "cost", lambda *arguments: 0.0)


def of(name, op, dtype):
    problem = replace(ConvProblem.parse(PROBLEMS[name]), dtype=dtype, precision="tf32" if dtype == "float32" else None)
    return selftest.for_op(op, problem)


def took_grouped(op, problem, gpu):
    op = op.replace("transpose", "dgrad")
    return conv.applicable(op, problem, gpu.properties)[0].algorithm == "grouped"


# ---------------------------------------------------------------- the kernels


@needs_compiler
@pytest.mark.usefixtures("nothing_but_grouped")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("op", [*OPS, "conv_transpose"])
def test_exact_and_bounded(gpu, op, name, dtype):
    """The bodies of every backend: integers equal the reference, floats keep their bound."""
    problem = of(name, op, dtype)
    assert took_grouped(op, problem, gpu)
    with emulator.using(gpu):
        if dtype == "float32":
            selftest.conv_exact("raw", op, problem)
            selftest.conv_bounded("raw", op, problem)
        else:
            selftest.check_conv("raw", op, problem)


@needs_compiler
@pytest.mark.usefixtures("nothing_but_grouped")
@pytest.mark.parametrize("name", ["of_4", "of_8", "of_16"])
@pytest.mark.parametrize("op", OPS)
def test_half_precision_on_turing(op, name):
    """Without cp.async, with half as long products and less shared memory, sm_75 computes the same."""
    gpu, problem = emulated("sm_75"), of(name, op, "float16")
    assert took_grouped(op, problem, gpu)
    with emulator.using(gpu):
        selftest.conv_exact("raw", op, problem)


@needs_compiler
@pytest.mark.usefixtures("nothing_but_grouped")
@pytest.mark.parametrize(("name", "dtype"), [("of_4", "float16"), ("of_8", "float32"), ("in_3d", "bfloat16")])
@pytest.mark.parametrize("op", OPS)
def test_every_check(op, name, dtype):
    """Bounds, races, poison and undefined behaviour, with threads in a shuffled order."""
    gpu, problem = emulated(sanitize=True, seed=11), of(name, op, dtype)
    with emulator.using(gpu):
        assert took_grouped(op, problem, gpu)
        selftest.conv_exact("raw", op, problem)


@needs_compiler
@pytest.mark.usefixtures("nothing_but_grouped")
@pytest.mark.parametrize("op", OPS)
def test_images_some_at_a_time(gpu, monkeypatch, op):
    """With little workspace the images are packed a few at a time; with none, other algorithms serve."""
    problem = ConvProblem.parse("conv2d n=3 c=32 size=16 k=32 ksize=1x2 groups=4 dtype=float16")
    limit = conv_mma.weight_bytes(op, problem, 6) + 3 * conv_mma.LINE + 3 * conv_mma.image_bytes(op, problem) // 2
    monkeypatch.setattr(conv_mma, "workspace_limit", lambda: limit)
    found = conv_grouped.offer(op, problem, gpu.properties)
    assert found.config["images"] == 1
    assert conv_grouped.workspace(op, problem, found.config) <= limit
    with emulator.using(gpu):
        selftest.conv_exact("raw", op, problem)
    monkeypatch.setattr(conv_mma, "workspace_limit", lambda: 0)
    assert conv_grouped.offer(op, problem, gpu.properties) is None


@needs_compiler
@pytest.mark.usefixtures("nothing_but_grouped")
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("name", ["of_4", "of_8", "of_12", "planes"])
@pytest.mark.parametrize("bad", ["data", "weight"])
@pytest.mark.parametrize("op", OPS)
def test_a_bad_value(gpu, op, bad, name, value):
    """It reaches what it has a product with: no other group, and in dgrad no cell beyond dy.

    The data's stands in a corner, where in "of_8" no window but one meets it, and in wgrad next to places of a tile
    that have no output.
    """
    problem = of(name, op, "float16")
    operands = cases.conv_floats(problem, op)
    data, w = (np.abs(operand) + operand.dtype.type(0.5) for operand in operands[:2])
    if bad == "data" and op == "conv_wgrad":
        w[-1, -1, -1, -1] = value
    elif bad == "data":
        data[-1, -1, -1, -1] = value
    elif op == "conv_wgrad":
        data[0, 0, 0, 0] = value
    else:
        w[0, 0, ..., :1] = value
    expected = cases.conv_call(op, problem, (data, w, *operands[2:]), backend="reference")
    with emulator.using(gpu):
        assert took_grouped(op, problem, gpu)
        actual = cases.conv_call(op, problem, (data, w, *operands[2:]), backend="raw")
    assert not np.isfinite(expected).all()
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))
    assert np.array_equal(actual[~np.isfinite(actual)], expected[~np.isfinite(expected)], equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("name", ["Tiling", "Grouped", "GroupedWgrad"])
def test_struct(name):
    """Sizes and offsets are the compiler's."""
    dtype = {"Tiling": args.TILING, "Grouped": args.GROUPED, "GroupedWgrad": args.GROUPED_WGRAD}[name]
    code = '#include "args.cuh"\n__global__ void k(int* out) {\n' + f"    out[0] = sizeof({name});\n"
    code += "".join(f"    out[{n}] = __builtin_offsetof({name}, {f});\n" for n, f in enumerate(dtype.names, 1)) + "}\n"
    found = np.zeros(1 + len(dtype.names), np.int32)
    gpu = emulator.EmulatedDevice()
    gpu.launch(gpu.compile(code, "k"), (1, 1, 1), (1, 1, 1), 0, (found,))
    assert found.tolist() == [dtype.itemsize, *(dtype.fields[f][1] for f in dtype.names)]


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("line", "op", "config"),
    [
        (
            "c=128 size=56 k=128 ksize=3 pad=1 groups=32",
            "conv_fprop",
            {"tile": "1x1x8x14", "chunks": 1, "workers": 132},
        ),
        ("c=128 size=56 k=128 ksize=3 pad=1 groups=32", "conv_wgrad", {"tile": "1x1x8x14", "pairs": 5, "parts": 132}),
        ("c=256 size=56 k=256 ksize=3 pad=1 stride=2 groups=32", "conv_dgrad", {"tile": "1x1x4x28", "workers": 66}),
        ("c=512 size=14 k=512 ksize=3 pad=1 groups=32", "conv_fprop", {"tile": "1x1x7x14", "chunks": 2, "workers": 33}),
        ("c=512 size=14 k=512 ksize=3 pad=1 groups=32", "conv_wgrad", {"tile": "1x1x7x14", "pairs": 9, "parts": 33}),
        ("c=1024 size=7 k=1024 ksize=3 pad=1 groups=32", "conv_fprop", {"tile": "2x1x7x7", "chunks": 4, "workers": 16}),
        ("c=240 size=28 k=240 ksize=3 pad=1 groups=10", "conv_wgrad", {"tile": "1x1x4x28", "pairs": 18, "parts": 33}),
    ],
)
def test_config(line, op, config):
    """ResNeXt's and strided layers: tiles that divide the image, blocks that fill the device, groups kept together."""
    problem = ConvProblem.parse(f"conv2d n=256 {line} layout=NHWC dtype=bfloat16")
    found = conv.choose(op, problem, H100)
    assert found.algorithm == "grouped"
    assert config.items() <= found.config.items()
    cut = conv_grouped.Cut.of(found.config)
    assert conv_grouped.shared_bytes(op, problem, cut) <= H100.shared_per_block


@pytest.mark.parametrize("gpu", [H100, A10, T4], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("groups", [4, 8, 16, 32])
@pytest.mark.parametrize("op", OPS)
def test_shared_memory(op, groups, gpu):
    """Tiles shrink until they fit; where two blocks fit a multiprocessor without much loss, it holds two."""
    problem = ConvProblem.parse(f"conv2d n=8 c=128 size=28 k=128 ksize=3 pad=1 groups={groups} dtype=float16")
    cut, resident = conv_grouped.cuts_of(op, problem, conv_grouped.width_of(op, problem), gpu)[0]
    assert resident * conv_grouped.shared_bytes(op, problem, cut) <= gpu.shared_per_block
    assert np.prod(cut.tile) <= conv_grouped.OUTPUTS


@pytest.mark.parametrize(
    ("line", "op", "gpu", "why"),
    [
        ("c=64 k=64 groups=1 dtype=float16", "conv_fprop", H100, "1 groups of 64 and 64"),
        ("c=64 k=64 groups=32 dtype=float16", "conv_fprop", H100, "32 groups of 2 and 2"),
        ("c=66 k=66 groups=11 dtype=float16", "conv_fprop", H100, "fill no rows"),
        ("c=64 k=64 groups=8", "conv_fprop", H100, "float32 with precision=None on sm_90a"),
        ("c=64 k=64 groups=8 dtype=bfloat16", "conv_fprop", T4, "bfloat16 with precision=None on sm_75"),
        ("c=64 k=64 groups=8 stride=3 dtype=float16", "conv_dgrad", H100, "9 residues"),
        ("c=64 k=64 groups=2 dtype=float16 dilation=9", "conv_fprop", T4, "more than 65536 bytes"),
    ],
)
def test_what_is_refused(line, op, gpu, why):
    """With the reason; it goes to another algorithm."""
    problem = ConvProblem.parse(f"conv2d n=2 size=32 ksize=3 {line} layout=NHWC")
    assert why in conv_grouped.refusal(op, problem, gpu)
    assert conv.choose(op, problem, gpu).algorithm != "grouped"


@pytest.mark.parametrize("M", [4, 8, 12, 16, 24, 32])
@pytest.mark.parametrize("C", [4, 6, 10, 16, 28, 32])
def test_chunks_cover_their_groups(M, C):
    """A warp's source chunks hold all channels that its result channels have products with; a block's hold those."""
    outputs = 8 * M
    first = np.arange(outputs) // M * C
    for chunks in conv_grouped.CHUNKS:
        span = conv_grouped.span_of(M, C, outputs, chunks)
        held = conv_grouped.source_chunks(M, C, outputs, chunks)
        for m in range(outputs):
            begin = first[m // (8 * chunks) * 8 * chunks] // 8
            block = first[m // conv_grouped.COLUMNS * conv_grouped.COLUMNS] // 8
            assert begin * 8 <= first[m]
            assert first[m] + C <= (begin + span) * 8
            assert begin + span - block <= held


@pytest.mark.parametrize("op", OPS)
def test_what_is_measured(op):
    """Every width and residency that fits, each of which asks for shipped instances, none twice."""
    problem = replace(ConvProblem.parse(PROBLEMS["of_16"]), dtype="float16")
    found = [one for one in conv.candidates(op, problem, H100) if one.algorithm == "grouped"]
    width = "pairs" if op == "conv_wgrad" else "chunks"
    assert {one.config[width] for one in found} == set(
        conv_grouped.PAIRS if op == "conv_wgrad" else conv_grouped.CHUNKS
    )
    assert len({str(one.config) for one in found}) == len(found)
    shipped = set(conv.instances())
    for one in found:
        steps = conv_grouped.steps(op, problem, one.config, Operands.contiguous(problem))
        assert {step.instance for step in steps} <= shipped


@needs_compiler
@pytest.mark.parametrize("op", OPS)
def test_every_width(gpu, monkeypatch, op):
    """What measuring may choose computes the same."""
    problem = selftest.for_op(op, replace(ConvProblem.parse(PROBLEMS["of_16"]), dtype="float16"))
    for config in conv_grouped.variants(op, problem, gpu.properties):
        offered = conv_grouped.Offer(config, "as the test wants it", 0.0)
        only = SimpleNamespace(**{**vars(conv_grouped), "offer": lambda *_, offered=offered: offered})
        monkeypatch.setattr(conv, "ALGORITHMS", {"grouped": only})
        dispatch.forget()
        with emulator.using(gpu):
            selftest.conv_exact("raw", op, problem)


def test_every_launch_is_shipped():
    """No plan asks for an instance that `instances()` does not list."""
    shipped = set(conv.instances())
    for name in PROBLEMS:
        for dtype in ("float16", "bfloat16", "float32"):
            for op in OPS:
                problem = of(name, op, dtype)
                found = conv_grouped.offer(op, problem, H100)
                steps = conv_grouped.steps(op, problem, found.config, Operands.contiguous(problem))
                assert {step.instance for step in steps} <= shipped

"""The raw backend's direct, tiled and depthwise convolutions: what is chosen, and each kernel on the emulator.

Every algorithm runs the bodies that all backends run, whatever the choice would have been: exact on integers, in
bounds on floats.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastconv
from fastconv import arrays
from fastconv.backends.raw import (
    args,
    backend,
    conv,
    conv_depthwise,
    conv_depthwise_wgrad,
    conv_direct,
    conv_gemm,
    device,
)
from fastconv.backends.raw.conv_steps import Operands
from fastconv.problem import ConvProblem
from fastconv.testing import cases, emulator, selftest

needs_compiler = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad")
ALL_OPS = (*OPS, "conv_transpose")
MODULES = {"direct": conv_direct, "gemm": conv_gemm, "depthwise": conv_depthwise}
H100 = device.Properties("H100", "sm_90a", 132, 227 << 10, 50 << 20)
T4 = device.Properties("T4", "sm_75", 40, 64 << 10, 4 << 20)


# ---------------------------------------------------------------- pure functions


@pytest.mark.parametrize(
    ("line", "op", "algorithm"),
    [
        ("conv2d n=32 c=64 size=56 k=64 ksize=3 pad=1 dtype=float64", "conv_fprop", "gemm"),
        ("conv2d n=32 c=64 size=56 k=64 ksize=3 pad=1 dtype=float64", "conv_wgrad", "gemm"),
        ("conv2d n=32 c=128 size=28 k=128 ksize=3 pad=1 stride=2 dtype=float64", "conv_dgrad", "gemm"),
        ("conv2d n=32 c=128 size=56 k=128 ksize=3 pad=1 groups=4 dtype=int32", "conv_fprop", "gemm"),
        ("conv2d n=32 c=144 size=56 k=144 ksize=3 pad=1 groups=144", "conv_fprop", "depthwise"),
        ("conv2d n=32 c=144 size=56 k=288 ksize=3 pad=1 groups=144", "conv_dgrad", "depthwise"),
        ("conv2d n=32 c=144 size=56 k=144 ksize=7 pad=3 groups=144 layout=NHWC", "conv_wgrad", "depthwise"),
        ("conv2d n=1 c=1 size=1 k=1 ksize=1", "conv_fprop", "direct"),
        ("conv2d n=0 c=3 size=5 k=4 ksize=3", "conv_wgrad", "direct"),
    ],
)
def test_choice(line, op, algorithm):
    """By regime, with a reason, the same on every device that has no other way."""
    for properties in (H100, T4):
        found = conv.choose(op, ConvProblem.parse(line), properties)
        assert (found.algorithm, bool(found.why)) == (algorithm, True)


def test_direct_takes_everything():
    for name in (*cases.CONV, *cases.CONV_MID):
        for op in OPS:
            assert "direct" in [choice.algorithm for choice in conv.applicable(op, cases.conv(name), H100)]
    far = replace(cases.conv("dense"), N=2**28)  # more pixels than the tiled kernel counts
    assert conv_gemm.offer("conv_fprop", far, H100) is None


@pytest.mark.parametrize(
    "line",
    [
        "conv1d n=1 c=1 size=2147483648 k=1 ksize=1",
        "conv1d n=1 c=1 size=1073741824 k=1 ksize=3 stride=1073741824 pad=1073741824",
    ],
)
def test_what_is_too_long_is_refused(line):
    """The kernels count cells along an axis, padding included, in 32 bits."""
    assert "2**31 - 1" in str(backend.rejects("conv_fprop", ConvProblem.parse(line)))
    assert backend.rejects("conv_wgrad", replace(cases.conv("conv1d"), K=2**31))
    shorter = line.replace("2147483648", "2147483647").replace("1073741824", "715827882")
    assert backend.rejects("conv_fprop", ConvProblem.parse(shorter)) is None


def test_tiles_and_splits(monkeypatch):
    """Large problems take large tiles unsplit; few tiles are split, within the workspace; thin ones take flat tiles."""
    large = ConvProblem.parse("conv2d n=64 c=256 size=28 k=256 ksize=3 pad=1")
    assert conv_gemm.offer("conv_fprop", large, H100).config == {"tile": "64x128", "splits": 1}
    stem = ConvProblem.parse("conv2d n=64 c=3 size=112 k=64 ksize=7 stride=2 pad=3")
    assert conv_gemm.offer("conv_dgrad", stem, H100).config == {"tile": "16x128", "splits": 1}
    late = ConvProblem.parse("conv2d n=1 c=512 size=7 k=512 ksize=3 pad=1")
    for op in OPS:
        config = conv_gemm.offer(op, late, H100).config
        assert config["splits"] > 1 or op == "conv_wgrad"
        assert conv_gemm.workspace(op, late, config) <= device.workspace_limit()
    config = conv_gemm.offer("conv_fprop", late, H100).config
    assert conv_gemm.workspace("conv_fprop", late, config) == config["splits"] * 4 * 512 * 49
    monkeypatch.setenv("FASTCONV_WORKSPACE_MB", "0")
    assert conv_gemm.offer("conv_fprop", late, H100).config["splits"] == 1


def test_residues_count_their_own_taps():
    """dgrad with stride 2: four products over a quarter of the taps each, rounded up."""
    problem = ConvProblem.parse("conv2d n=2 c=8 size=9x10 k=16 ksize=3 stride=2 pad=1")
    found = conv_gemm.Extents.of("conv_dgrad", problem)
    assert found == (8, 2 * 5 * 5, 16 * 4, 1, 4)


@pytest.mark.parametrize(
    ("line", "op", "packed"),
    [
        ("conv2d n=1 c=8 size=5 k=8 ksize=3 layout=NHWC", "conv_fprop", "OUTPUTS"),
        ("conv2d n=1 c=8 size=5 k=8 ksize=3 layout=NHWC weight_layout=OHWI", "conv_fprop", "SUMS"),
        ("conv2d n=1 c=8 size=5 k=8 ksize=3 layout=NHWC", "conv_dgrad", "SUMS"),
        ("conv2d n=1 c=8 size=5 k=8 ksize=3 layout=NHWC weight_layout=OHWI", "conv_dgrad", "OUTPUTS"),
        ("conv2d n=1 c=8 size=5 k=8 ksize=3 layout=NHWC weight_layout=OIHW", "conv_fprop", "SCALAR"),
        ("conv2d n=1 c=8 size=5 k=8 ksize=3 layout=NHWC", "conv_wgrad", "OUTPUTS"),
        ("conv2d n=1 c=6 size=5 k=6 ksize=3 layout=NHWC", "conv_fprop", "SCALAR"),
        ("conv2d n=1 c=16 size=5 k=16 ksize=3 groups=4 layout=NHWC dtype=float16", "conv_fprop", "SCALAR"),
        ("conv2d n=1 c=8 size=5 k=8 ksize=3", "conv_fprop", "SCALAR"),
        ("conv2d n=1 c=8 size=5 k=8 ksize=3 layout=NHWC dtype=float64", "conv_fprop", "SCALAR"),
    ],
)
def test_packed_instances(line, op, packed):
    """16 bytes at a time where channels lie side by side on both sides, in whole packs, aligned."""
    problem = ConvProblem.parse(line)
    given = Operands.contiguous(problem)
    assert conv_direct.packing(op, problem, given)[0] == packed
    assert conv_direct.packing(op, problem, replace(given, aligned=False))[0] == "SCALAR"


def test_walks():
    """Threads lie side by side along what does in memory, in A, in B and in the result."""
    problem = ConvProblem.parse("conv2d n=1 c=8 size=5 k=8 ksize=3")
    planar = Operands.contiguous(problem)
    assert conv_gemm.walk("conv_fprop", problem, planar, 1) == args.A_ALONG_SUM
    assert conv_gemm.walk("conv_wgrad", problem, planar, 1) == args.A_ALONG_SUM | args.B_ALONG_SUM
    inside = Operands.contiguous(replace(problem, layout="NHWC", weight_layout="HWIO"))
    columns = args.CHANNELS_FASTEST | args.CHANNELS
    assert conv_gemm.walk("conv_fprop", problem, inside, 1) == args.B_ALONG_SUM | columns
    assert conv_gemm.walk("conv_wgrad", problem, inside, 1) == columns
    assert not conv_gemm.walk("conv_fprop", problem, inside, 2) & args.CHANNELS  # parts lie in planes


@pytest.mark.parametrize(
    ("line", "op", "axis", "instance"),
    [
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 pad=1 groups=32 layout=NHWC", "conv_fprop", "W", "float, 4, 1"),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 pad=1 stride=2 groups=32 layout=NHWC", "conv_fprop", "W", "float, 4, 2"),
        ("conv2d n=8 c=30 size=14 k=30 ksize=3 pad=1 groups=30 layout=NHWC", "conv_fprop", "W", "float, 1, 1"),
        ("conv2d n=8 c=32 size=14 k=32 ksize=7 pad=3 groups=32", "conv_dgrad", "H", "float, 1, 1"),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 stride=2 groups=32", "conv_dgrad", "H", "float, 1, 1"),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 stride=2x3 groups=32", "conv_fprop", "H", "float, 1, 2"),
        ("conv1d n=8 c=32 size=99 k=32 ksize=4 pad=3:0 groups=32 layout=NHWC", "conv_fprop", "W", "float, 4, 1"),
        ("conv1d n=8 c=32 size=99 k=32 ksize=4 pad=3:0 groups=32", "conv_fprop", None, None),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 stride=3 groups=32", "conv_fprop", None, None),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 stride=3 groups=32", "conv_dgrad", None, None),
        ("conv2d n=8 c=32 size=14 k=64 ksize=3 groups=32", "conv_fprop", None, None),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 groups=32 dtype=int32", "conv_fprop", None, None),
    ],
)
def test_strips(line, op, axis, instance):
    """Along W where channels lie side by side, else along H; what strips do not take goes to the general kernel."""
    problem = ConvProblem.parse(line)
    offered = conv_depthwise.offer(op, problem, H100)
    assert offered.config == ({"kernel": "general"} if axis is None else {"kernel": "strips", "axis": axis})
    assert conv_depthwise.WHY[offered.config["kernel"]] in offered.why
    (step,) = conv_depthwise.steps(op, problem, offered.config, Operands.contiguous(problem))
    assert step.instance.kernel == ("conv_depthwise_strips" if axis else f"{op}_depthwise")
    assert instance is None or str(step.instance) == f"conv_depthwise_strips<{instance}>"


@pytest.mark.parametrize(
    ("line", "lanes", "workers", "splits"),
    [
        ("conv2d n=256 c=144 size=56 k=144 ksize=3 pad=1 groups=144 layout=NHWC dtype=float16", 18, 4, 528),
        ("conv2d n=256 c=144 size=56 k=144 ksize=3 pad=1 groups=144", 1, 64, 3),
        ("conv2d n=256 c=96 size=56 k=96 ksize=7 pad=3 groups=96 layout=NHWC", 24, 1, 528),
        ("conv2d n=2 c=64 size=14 k=64 ksize=5 pad=2 stride=2 groups=64 layout=NHWC", 16, 3, 1),
        ("conv1d n=8 c=2048 size=4096 k=2048 ksize=4 pad=3:0 groups=2048 layout=NHWC dtype=bfloat16", 32, 8, 16),
        ("conv3d n=8 c=32 size=16 k=32 ksize=3 pad=1 groups=32 layout=NHWC", 8, 3, 170),
    ],
)
def test_one_pass_of_wgrad(line, lanes, workers, splits):
    """Lanes divide the packs of channels evenly, workers fill the block, parts the device; the filter is read whole."""
    problem = ConvProblem.parse(line)
    offered = conv_depthwise.offer("conv_wgrad", problem, H100)
    assert offered.config == {"kernel": "one pass", "splits": splits}
    assert "one pass" in offered.why
    product, *rest = conv_depthwise.steps("conv_wgrad", problem, offered.config, Operands.contiguous(problem))
    rows = problem.window.taps // int(product.instance.args[2])
    assert product.instance.kernel == "conv_depthwise_wgrad"
    assert product.block == (lanes * workers * rows, 1, 1)
    assert (len(rest) == 1) == (splits > 1)
    assert conv_depthwise.workspace("conv_wgrad", problem, offered.config) <= device.workspace_limit()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("conv2d n=8 c=32 size=14 k=64 ksize=3 groups=32", "more than one filter"),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 groups=32 dtype=int32", "integers"),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 stride=3 groups=32", "3 taps with stride 3 along H"),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3x9 groups=32 layout=NHWC", "9 taps with stride 1 along W"),
        ("conv2d n=8 c=32 size=14 k=32 ksize=3 dilation=1x2 groups=32 layout=NHWC", "dilation along W"),
        ("conv1d n=8 c=32 size=99 k=32 ksize=4 groups=32", "1 taps with stride 1 along H"),
    ],
)
def test_what_one_pass_refuses(line, why):
    """It goes to the general kernel, and the reason says so."""
    offered = conv_depthwise.offer("conv_wgrad", ConvProblem.parse(line), H100)
    assert offered.config["kernel"] == "general"
    assert why in offered.why


def test_every_launch_is_shipped():
    """No plan asks for an instance that `instances()` does not list; none is listed twice."""
    listed = list(conv.instances())
    shipped = set(listed)
    assert len(listed) == len(shipped)
    for name in (*cases.CONV, *cases.CONV_MID):
        for dtype in ("float16", "bfloat16", "float32", "float64", "int32"):
            problem = cases.conv(name, dtype=dtype)
            for op in OPS:
                for choice in conv.applicable(op, problem, H100):
                    module = conv.ALGORITHMS[choice.algorithm]
                    steps = module.steps(op, problem, choice.config, Operands.contiguous(problem))
                    assert {step.instance for step in steps} <= shipped
                    assert all(1 <= step.grid[0] < 2**31 for step in steps)


def test_claims():
    """What moves 16 bytes at a time says so; the compile gate reads it off the machine code."""
    for module in MODULES.values():
        for instance in module.instances():
            promised = module.claims(instance)
            assert promised["registers"] <= 255
            packed = {"conv_direct.cu": "SCALAR", "conv_depthwise.cu": "1"}.get(instance.file)
            assert packed is None or ("LDG.128" in promised.get("sass", ())) == (instance.args[-1] != packed)
            if instance.file in ("conv_depthwise_strips.cu", "conv_depthwise_wgrad.cu"):
                assert ("LDG.128" in promised.get("sass", ())) == (instance.args[1] != "1")


# ---------------------------------------------------------------- the structs


@needs_compiler
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Conv", args.CONV), ("Splits", args.SPLITS), ("Divisor", args.DIVISOR), ("Pool", args.POOL),
        ("Map", args.MAP), ("BiasGrad", args.BIAS_GRAD), ("Signal", args.SIGNAL), ("Strips", args.STRIPS),
    ],
)  # fmt: skip
def test_struct(name, dtype):
    """Sizes and offsets are the compiler's."""
    fields = list(dtype.names)
    code = '#include "args.cuh"\n__global__ void k(int* out) {\n' + f"    out[0] = sizeof({name});\n"
    code += "".join(f"    out[{n}] = __builtin_offsetof({name}, {f});\n" for n, f in enumerate(fields, 1)) + "}\n"
    found = np.zeros(1 + len(fields), np.int32)
    gpu = emulator.EmulatedDevice()
    gpu.launch(gpu.compile(code, "k"), (1, 1, 1), (1, 1, 1), 0, (found,))
    assert found.tolist() == [dtype.itemsize, *(dtype.fields[f][1] for f in fields)]


# ---------------------------------------------------------------- the kernels

SMALL = ("dense", "strided", "stride_skips", "dilated_strided", "asymmetric", "pad_wide", "grouped_strided",
         "depthwise_multiplier", "depthwise_strided", "depthwise_dilated", "depthwise_nhwc", "nhwc", "nhwc_ohwi",
         "nchw_hwio", "bias_relu", "relu6_nhwc", "conv1d_depthwise", "conv1d_nwc", "conv3d_strided", "conv3d_grouped",
         "empty_batch", "one")  # fmt: skip
#: Whole packs, several tiles, partial ones, several parts.
SEAMS = {
    "packs": "conv2d n=2 c=16 size=6x5 k=24 ksize=3 stride=2 pad=1 layout=NHWC",
    "packs_ohwi": "conv2d n=1 c=16 size=6x5 k=24 ksize=2x3 pad=1 layout=NHWC weight_layout=OHWI",
    "packs_depthwise": "conv2d n=2 c=24 size=7x6 k=24 ksize=3x5 pad=1:2x2 groups=24 layout=NHWC",
    "packs_depthwise_oihw": "conv2d n=1 c=16 size=7x6 k=16 ksize=3 stride=2 groups=16 layout=NHWC weight_layout=OIHW",
    "packs_depthwise_far": "conv2d n=1 c=16 size=8x9 k=16 ksize=3 stride=3 pad=1 groups=16 layout=NHWC",
    "strips_strided": "conv2d n=2 c=16 size=19x21 k=16 ksize=3 pad=2 stride=2 dilation=3 groups=16",
    "strips_nhwc": "conv2d n=1 c=8 size=5x45 k=8 ksize=4x6 pad=0:3x5:2 stride=1x2 dilation=1x2 groups=8 layout=NHWC",
    "strips_long": "conv2d n=1 c=8 size=40x6 k=8 ksize=11x5 pad=5 stride=1x3 dilation=2x1 groups=8",
    "strips_3d": "conv3d n=1 c=8 size=5x9x11 k=8 ksize=2x3x7 pad=1 stride=2 dilation=1x2x1 groups=8 layout=NHWC",
    "one_pass": "conv2d n=2 c=24 size=7x9 k=24 ksize=3 pad=1 groups=24 layout=NHWC",
    "one_pass_strided": "conv2d n=2 c=40 size=5x71 k=40 ksize=5 pad=2 stride=2 groups=40 layout=NHWC",
    "one_pass_planar": "conv2d n=2 c=3 size=75x9 k=3 ksize=7 pad=3 groups=3",
    "one_pass_rows": "conv2d n=2 c=3 size=19x9 k=3 ksize=3x5 pad=1x2 stride=2x1 dilation=1x2 groups=3",
    "one_pass_1d": "conv1d n=2 c=16 size=150 k=16 ksize=4 pad=3:0 groups=16 layout=NHWC",
    "one_pass_3d": "conv3d n=1 c=8 size=4x5x9 k=8 ksize=2x3x3 pad=1 stride=1x2x1 groups=8 layout=NHWC",
    "one_pass_3d_planar": "conv3d n=1 c=2 size=4x9x6 k=2 ksize=3 pad=1 dilation=2x1x1 groups=2",
    "tiles": "conv2d n=3 c=10 size=9x10 k=67 ksize=3 stride=2 pad=1 bias=67 activation=relu",
    "tiles_nhwc": "conv2d n=2 c=68 size=9x10 k=132 ksize=2 layout=NHWC",
    "tiles_grouped": "conv3d n=2 c=12 size=5x6x7 k=30 ksize=3 pad=1 groups=3",
}


@pytest.fixture(scope="module")
def gpu():
    """An emulated GPU with all of these kernels."""
    emulated = emulator.EmulatedDevice()
    emulated.prepare(instance for module in MODULES.values() for instance in module.instances())
    return emulated


@pytest.fixture(params=MODULES)
def only(request, gpu, monkeypatch):
    """One algorithm alone on the emulated GPU; where it does not take a problem, none does."""
    monkeypatch.setattr(conv, "ALGORITHMS", {request.param: MODULES[request.param]})
    with emulator.using(gpu):
        yield request.param


def takes(algorithm: str, op: str, problem: ConvProblem) -> bool:
    return MODULES[algorithm].offer(op.replace("transpose", "dgrad"), problem, H100) is not None


@needs_compiler
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in SMALL]
    + [(name, dtype) for name in SEAMS for dtype in ("float16", "bfloat16", "float32", "float64")],
)
@pytest.mark.parametrize("op", ALL_OPS)
def test_conv(only, op, name, dtype):
    problem = ConvProblem.parse((cases.CONV | SEAMS)[name])
    if takes(only, op, problem):
        selftest.check_conv("raw", op, replace(problem, dtype=dtype))


@needs_compiler
@pytest.mark.parametrize("dtypes", [("int8", "int8"), ("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")])
@pytest.mark.parametrize("name", ["strided", "depthwise_nhwc", "packs", "tiles", "packs_depthwise"])
@pytest.mark.parametrize("op", ALL_OPS)
def test_conv_of_bytes(only, op, name, dtypes):
    problem = replace(ConvProblem.parse((cases.CONV | SEAMS)[name]), dtype="int32")
    if takes(only, op, problem):
        selftest.conv_exact("raw", op, problem, dtypes)


@needs_compiler
@pytest.mark.parametrize("tile", conv_gemm.TILES["float32"], ids=str)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("name", ["tiles", "tiles_nhwc", "tiles_grouped"])
@pytest.mark.parametrize("op", ALL_OPS)
def test_tiles(gpu, monkeypatch, op, name, splits, tile):
    """Every tile on problems of several, whole and partial, split or not; the parts add up to the same."""
    monkeypatch.setattr(conv, "ALGORITHMS", {"gemm": conv_gemm})
    offered = conv_gemm.Offer({"tile": str(tile), "splits": splits}, "as the test wants it", 0.0)
    monkeypatch.setattr(conv_gemm, "offer", lambda *_: offered)
    with emulator.using(gpu):
        selftest.conv_exact("raw", op, ConvProblem.parse(SEAMS[name]))


@needs_compiler
@pytest.mark.parametrize(
    "name", ["packs_depthwise", "depthwise_multiplier", "mid_depthwise_nhwc", *(n for n in SEAMS if "one_pass" in n)]
)
def test_split_pixels(gpu, monkeypatch, name):
    """A depthwise gradient in parts."""
    monkeypatch.setattr(conv, "ALGORITHMS", {"depthwise": conv_depthwise})
    monkeypatch.setattr(conv_depthwise, "split", lambda *_: 3)
    monkeypatch.setattr(conv_depthwise_wgrad, "config", lambda *_: {"kernel": "one pass", "splits": 3})
    with emulator.using(gpu):
        selftest.check_conv("raw", "conv_wgrad", ConvProblem.parse((cases.CONV | cases.CONV_MID | SEAMS)[name]))


@needs_compiler
@pytest.mark.parametrize("pair", [("float16", "float32"), ("float64", "bfloat16"), ("float16", "bfloat16")])
@pytest.mark.parametrize("name", ["dense", "grouped_strided", "pointwise"])
@pytest.mark.parametrize("op", OPS)
def test_mixed_floats(gpu, op, name, pair):
    """Operands of two dtypes promote; the direct kernels read both as they are."""
    dtype = arrays.conv_dtype(*map(arrays.dtype_of, pair))
    with emulator.using(gpu):
        selftest.conv_exact("raw", op, cases.conv(name, dtype=dtype), pair)


@needs_compiler
@pytest.mark.parametrize("order", ["reversed", "shifted", "broadcast"])
def test_strides(only, order):
    """Negative strides, an odd address and a repeated axis, next to contiguous operands of the same plan."""
    problem = ConvProblem.parse("conv2d n=2 c=8 size=6 k=8 ksize=3 pad=1 groups=8 layout=NHWC")
    x, w, _ = cases.conv_integers(problem, "conv_fprop")
    expected = []
    for data in (x, {"reversed": x[:, ::-1, :, ::-1], "shifted": np.concatenate([x, x], -1)[..., 1:9],
                     "broadcast": np.broadcast_to(x[:1], x.shape)}[order]):  # fmt: skip
        for call in (fastconv.conv2d, fastconv.conv2d_wgrad):
            given = (data, w) if call is fastconv.conv2d else (data, x, w.shape)
            expected.append([call(*given, padding=1, groups=8, layout="NHWC", backend=b) for b in ("raw", "reference")])
    assert all(np.array_equal(*pair) for pair in expected)


@needs_compiler
@pytest.mark.parametrize(
    "name", ["dilated_strided", "packs", "tiles_grouped", "depthwise_nhwc", "one_pass_strided", "one_pass_planar"]
)
@pytest.mark.parametrize("op", OPS)
def test_schedules(only, monkeypatch, op, name):
    """Threads in shuffled orders give the same bits."""
    problem = selftest.for_op(op, ConvProblem.parse((cases.CONV | SEAMS)[name]))
    if not takes(only, op, problem):
        return
    given = cases.conv_floats(problem, op)
    first = cases.conv_call(op, problem, given, backend="raw")
    for seed in (1, 2):
        monkeypatch.setattr(device.current(), "seed", seed)
        assert np.array_equal(cases.conv_call(op, problem, given, backend="raw"), first)


@pytest.mark.parametrize(
    ("line", "op", "kernels"),
    [
        ("groups=32 pad=1 layout=NHWC", "conv_fprop", ["strips", "general"]),
        ("groups=32 pad=1 layout=NHWC", "conv_wgrad", ["one pass", "one pass", "one pass", "general"]),
        ("groups=32 stride=3 layout=NHWC", "conv_wgrad", ["general"]),
    ],
)
def test_what_is_measured_of_depthwise(line, op, kernels):
    """Its kernels side by side, one pass in half and twice as many parts too; no part beyond the workspace."""
    problem = ConvProblem.parse(f"conv2d n=64 c=32 size=14 k=32 ksize=3 {line}")
    found = [one for one in conv.candidates(op, problem, H100) if one.algorithm == "depthwise"]
    assert [one.config["kernel"] for one in found] == kernels
    for one in found:
        assert conv_depthwise.workspace(op, problem, one.config) <= device.workspace_limit()
        assert conv_depthwise.steps(op, problem, one.config, Operands.contiguous(problem))


def test_measured(monkeypatch, tmp_path):
    """A measured choice is one of the applicable ones, and is kept."""
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))

    class Stub:
        """A device on which the tiled product takes the least time."""

        properties = H100
        function = staticmethod(lambda instance: instance)
        scratch = staticmethod(lambda nbytes: type("Scratch", (), {"pointer": 256})())
        launched: list[str] = []  # noqa: RUF012

        def launch(self, function, grid, block, shared, filled):
            self.launched.append(function.file)

        def synchronize(self):
            if self.launched[-1] != "conv_gemm.cu":
                sum(range(20000))

    problem = ConvProblem.parse("conv2d n=1 c=8 size=8 k=8 ksize=3 dtype=float64")
    fastconv.set_autotune("measure")
    with device.use(Stub()):
        assert conv.plan("conv_fprop", problem).algorithm == "gemm"
        Stub.launched.clear()
        assert conv.plan("conv_fprop", problem).algorithm == "gemm"  # from disk
        assert not Stub.launched
        fastconv.set_autotune("off")
        assert conv.plan("conv_fprop", problem).algorithm == "direct"

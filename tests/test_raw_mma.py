"""Convolution on tensor cores under the emulator: exact on integers, as accurate as FMA on floats, never out of place.

Problems are small, and chosen for the seams: partial tiles of pixels and channels, several steps per tap, several
parts, strides that leave residues without taps, channels that fill no 16 bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastconv import arrays
from fastconv.backends.raw import conv, conv_direct, conv_mma
from fastconv.backends.raw.device import Properties
from fastconv.problem import ConvProblem
from fastconv.testing import cases, emulator, selftest

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason="the emulator needs a C++ compiler")

OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad")
PROBLEMS = {
    "tiles": "conv2d n=2 c=40 size=7x9 k=72 ksize=3 pad=1",
    "tiles_nhwc": "conv2d n=2 c=40 size=7x9 k=72 ksize=3 pad=1 layout=NHWC",
    "ohwi": "conv2d n=1 c=24 size=8 k=16 ksize=3 pad=1 layout=NHWC weight_layout=OHWI",
    "strided": "conv2d n=1 c=16 size=11x10 k=24 ksize=3 stride=2 pad=1 layout=NHWC",
    "no_taps": "conv2d n=1 c=16 size=9x8 k=8 ksize=1 stride=2 layout=NHWC",
    "dilated": "conv2d n=1 c=16 size=9 k=8 ksize=3 stride=2 pad=3:1x2 dilation=3x2 layout=NHWC",
    "stem": "conv2d n=1 c=3 size=15 k=20 ksize=5 stride=2 pad=2",
    "odd_channels": "conv2d n=2 c=13 size=6x5 k=11 ksize=2 layout=NHWC",
    "grouped": "conv2d n=1 c=64 size=5 k=64 ksize=3 pad=1 groups=2 layout=NHWC",
    "pointwise": "conv2d n=3 c=72 size=5x4 k=40 ksize=1 bias=40 activation=relu layout=NHWC",
    "conv1d": "conv1d n=2 c=16 size=37 k=24 ksize=5 stride=2 pad=2 bias=24",
    "conv3d": "conv3d n=1 c=8 size=4x5x3 k=16 ksize=3x2x3 pad=1x0x1 layout=NHWC",
    "unbatched": "conv2d n=1 c=8 size=6 k=8 ksize=3 pad=1 batched=False",
}
H100 = emulator.EmulatedDevice("sm_90a")
T4 = emulator.EmulatedDevice("sm_75")


@pytest.fixture(autouse=True)
def nothing_but_mma(monkeypatch):
    """What the tensor cores take runs on them, however small."""
    monkeypatch.setattr(conv, "ALGORITHMS", {"mma": conv_mma, "direct": conv_direct})
    monkeypatch.setattr(conv, "choose", None)
    monkeypatch.setattr(conv_mma, "cost", lambda *arguments: 0.0)


def took_mma(op, problem, device=H100):
    return conv.applicable(op, problem, device.properties)[0].algorithm == "mma"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("op", [*OPS, "conv_transpose"])
def test_exact_and_bounded(op, name, dtype):
    """The bodies of every backend: integers equal the reference, floats keep the bound of float32 sums."""
    problem = selftest.for_op(op, replace(ConvProblem.parse(PROBLEMS[name]), dtype=dtype))
    assert took_mma({"conv_transpose": "conv_dgrad"}.get(op, op), problem)
    with emulator.using(H100):
        selftest.check_conv("raw", op, problem)


@pytest.mark.parametrize("name", ["tiles", "strided", "stem"])
@pytest.mark.parametrize("op", OPS)
def test_half_precision_on_turing(op, name):
    """Without cp.async and with half as long products, sm_75 computes the same."""
    problem = selftest.for_op(op, replace(ConvProblem.parse(PROBLEMS[name]), dtype="float16"))
    assert took_mma(op, problem, T4)
    with emulator.using(T4):
        selftest.conv_exact("raw", op, problem)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("op", OPS)
def test_precision_by_request(op, precision):
    problem = replace(ConvProblem.parse(PROBLEMS["strided"]), precision=precision)
    found = conv.applicable(op, problem, H100.properties)[0]
    assert found.config["element"] == "Tf32"
    with emulator.using(H100):
        selftest.conv_bounded("raw", op, problem)


@pytest.mark.parametrize("op", OPS)
def test_images_some_at_a_time(op, monkeypatch):
    """With little workspace the images are packed a few at a time; with none, other algorithms serve."""
    problem = ConvProblem.parse("conv2d n=5 c=12 size=8x9 k=8 ksize=3 pad=1")
    limit = conv_mma.weight_bytes(op, problem, 3) + 3 * conv_mma.LINE + 5 * conv_mma.image_bytes(op, problem) // 2
    monkeypatch.setattr(conv_mma, "workspace_limit", lambda: limit)
    found = conv_mma.offer(op, problem, H100.properties)
    assert 1 <= found.config["images"] < problem.N
    assert conv_mma.workspace(op, problem, found.config) <= limit
    with emulator.using(H100):
        selftest.conv_exact("raw", op, problem)
    monkeypatch.setattr(conv_mma, "workspace_limit", lambda: 0)
    assert conv_mma.offer(op, problem, H100.properties) is None


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_parts_of_wgrad(dtype):
    """Many pixels are cut into parts, whose sums are added in order: the same bits twice."""
    problem = ConvProblem.parse(f"conv1d n=2 c=8 size=1200 k=8 ksize=3 pad=1 layout=NHWC dtype={dtype}")
    assert conv_mma.offer("conv_wgrad", problem, H100.properties).config["parts"] > 1
    with emulator.using(H100):
        selftest.check_conv("raw", "conv_wgrad", problem)


# ---------------------------------------------------------------- accuracy of the split


def draws(rng, kind, shape):
    values = rng.standard_normal(shape)
    if kind == "wide":
        values *= np.exp2(rng.integers(-40, 40, shape))
    if kind == "cancelling":
        values = np.where(rng.random(shape) < 0.5, 1e4, -1e4) + values
    if kind == "tiny":
        values *= 1e-30
    if kind == "positive":
        values = np.abs(values) + 1
    return values.astype(np.float32)


def fused(total, a, b):
    """total + a * b in float32, rounded once."""
    return (total.astype(np.float64) + a.astype(np.float64) * b.astype(np.float64)).astype(np.float32)


def in_order(op, problem, first, second):
    """A plain loop in float32: one FMA after the other. `problem` is 3 x 3, stride 1, padded by 1, NHWC."""
    H, W = problem.size
    padded = np.pad(second if op == "conv_wgrad" else first, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.zeros(problem.shape({"conv_fprop": "y", "conv_dgrad": "x", "conv_wgrad": "w"}[op]), np.float32)
    for r, s in np.ndindex(3, 3):
        at = (r, s) if op != "conv_dgrad" else (2 - r, 2 - s)
        cells = padded[:, at[0] : at[0] + H, at[1] : at[1] + W]
        if op == "conv_wgrad":
            for n, p, q in np.ndindex(first.shape[:3]):
                total[r, s] = fused(total[r, s], cells[n, p, q][:, None], first[n, p, q][None, :])
            continue
        weights = second[r, s] if op == "conv_fprop" else second[r, s].T
        for c in range(cells.shape[-1]):
            total = fused(total, cells[..., c, None], weights[c])
    return total


@pytest.mark.parametrize("kind", ["normal", "positive", "wide", "cancelling", "tiny"])
@pytest.mark.parametrize("op", OPS)
def test_the_split_is_as_accurate_as_fma(op, kind):
    """Against float64, relative to the sums of absolute values: no larger an error than a loop of float32 FMA has.

    Where one product makes up a sum ("wide"), FMA rounds once, and the split drops terms of a quarter of that: the
    root mean square may be a tenth larger, the maximum not.
    """
    problem = ConvProblem.parse("conv2d n=2 c=64 size=8x7 k=32 ksize=3 pad=1 layout=NHWC precision=ieee")
    rng = np.random.default_rng(5)
    operands = [draws(rng, kind, problem.shape(role)) for role in cases.CONV_OPERANDS[op][:2]]
    expected, scale = selftest.conv_in_float64(op, problem, [*operands, None][: len(cases.CONV_OPERANDS[op])])
    with emulator.using(H100):
        results = cases.conv_call(op, problem, operands, backend="raw"), in_order(op, problem, *operands)
    split, fma = (np.abs(result - expected) / scale for result in results)
    assert split.max() <= fma.max()
    assert np.sqrt((split**2).mean()) <= np.sqrt((fma**2).mean()) * (1.1 if kind == "wide" else 1.0)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, np.float32(3.4e38)])
@pytest.mark.parametrize("op", ["conv_fprop", "conv_wgrad"])
def test_values_that_do_not_split(op, value):
    """An infinity, a NaN, and a number that rounds to infinity as bfloat16 come out as FMA has them."""
    problem = ConvProblem.parse("conv2d n=1 c=8 size=6x5 k=8 ksize=3 pad=1 layout=NHWC precision=ieee")
    rng = np.random.default_rng(2)
    data, w = (np.abs(draws(rng, "normal", problem.shape(role))) + 0.5 for role in cases.CONV_OPERANDS[op][:2])
    w *= np.float32(0.25)
    data[0, 2, 3, 4] = value
    expected = cases.conv_call(op, problem, (data, w), backend="reference")
    with emulator.using(H100):
        actual = cases.conv_call(op, problem, (data, w), backend="raw")
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))
    assert np.array_equal(actual[~np.isfinite(actual)], expected[~np.isfinite(expected)], equal_nan=True)
    finite = np.isfinite(expected)
    assert np.all(np.abs(actual[finite] - expected[finite]) <= 1e-5 * np.abs(expected[finite]) + 1e-5)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("precision", [None, "tf32", "ieee"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["tiles", "strided", "grouped", "conv1d"])
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad"])
def test_a_bad_weight_at_the_borders(op, name, dtype, precision, value):
    """fprop multiplies it by the zeros of the padding, dgrad by nothing beyond dy."""
    if precision is not None and dtype != "float32":
        return
    problem = replace(ConvProblem.parse(PROBLEMS[name]), dtype=dtype, precision=precision)
    data, w, *bias = cases.conv_floats(problem, op)
    data, w[0, 0, ..., :1] = np.abs(data) + data.dtype.type(0.5), value
    expected = cases.conv_call(op, problem, (data, w, *bias), backend="reference")
    with emulator.using(H100):
        assert took_mma(op, problem)
        actual = cases.conv_call(op, problem, (data, w, *bias), backend="raw")
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))
    assert np.array_equal(actual[~np.isfinite(actual)], expected[~np.isfinite(expected)], equal_nan=True)


# ---------------------------------------------------------------- the choice


def gpu(arch, sms=132):
    return Properties("a GPU", arch, sms, 227 * 1024 if arch == "sm_90a" else 99 * 1024, 50 << 20)


@pytest.mark.parametrize(
    ("dtype", "arch", "element"),
    [
        ("float16", "sm_75", "f16"), ("float16", "sm_90a", "f16"), ("bfloat16", "sm_80", "bf16"),
        ("bfloat16", "sm_75", None), ("float32", "sm_90a", "Ieee"), ("float32", "sm_86", None),
        ("float32", "sm_75", None), ("float64", "sm_90a", None), ("int32", "sm_90a", None),
    ],
)  # fmt: skip
def test_elements(dtype, arch, element):
    problem = replace(cases.conv("mid_3x3"), dtype=dtype)
    assert conv_mma.element_of(problem, gpu(arch)) == element


def test_tiles_by_size():
    """Large products take the large tile; few pixels, smaller ones, so that the device is busy."""
    large = ConvProblem.parse("conv2d n=256 c=256 size=14 k=256 ksize=3 pad=1 dtype=bfloat16 layout=NHWC")
    small = replace(large, N=2)
    assert str(conv_mma.best_tile("conv_fprop", large, "bf16", gpu("sm_90a"))) == "128x128"
    assert str(conv_mma.best_tile("conv_fprop", small, "bf16", gpu("sm_90a"))) == "64x64"


def test_every_instance_is_named():
    """What the steps ask for is among what is shipped and compiled."""
    shipped = set(conv_mma.instances()) | set(conv.instances())
    for name in PROBLEMS:
        for dtype in ("float16", "bfloat16", "float32"):
            for op in OPS:
                problem = selftest.for_op(op, replace(ConvProblem.parse(PROBLEMS[name]), dtype=dtype))
                config = conv_mma.offer(op, problem, H100.properties).config
                rows = [view(problem, role) for role in ("x", "w", "y")]
                operands = conv_mma.Operands.of(problem, dict(zip(("x", "w", "y"), rows, strict=True)), aligned=True)
                assert {step.instance for step in conv_mma.steps(op, problem, config, operands)} <= shipped


def view(problem, role):
    return arrays.canonical(problem, role, np.empty(problem.shape(role), cases.dtype_of(problem.dtype)))

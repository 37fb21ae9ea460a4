"""The suites of whole networks are the networks: layers chain, and their weights add up to what was published."""

import math
import re
from importlib.resources import files

import pytest

from fastconv.benchmarks.architectures import SUITES
from fastconv.benchmarks.architectures.walk import Walk
from fastconv.benchmarks.cases import load_suite, parse_problem

WALKS = {walk.network: walk for suite in SUITES.values() for walk in suite.walks()}


def convolutions(network, without=""):
    """(count, filters of the layer, weights, problem, name) of each convolution."""
    for line in WALKS[network].lines:
        if line.family.startswith("conv") and not (without and re.search(without, line.name)):
            problem = parse_problem(line.text, line.family)
            yield line.count, problem, line


def weights(network, pattern=""):
    return sum(
        count * math.prod(problem.dims("w"))
        for count, problem, line in convolutions(network)
        if re.search(pattern, line.name)
    )


def filters(network, without=""):
    """How many output channels all convolutions have together: the length of their biases, or of half the norms."""
    return sum(
        count * (problem.C if line.family == "convtranspose" else problem.K)
        for count, problem, line in convolutions(network, without)
    )


def inputs(network):
    return sum(count * problem.C for count, problem, _ in convolutions(network))


SE = "squeeze|excite"
#: Parameters that are published (torchvision's tables, the papers), and those that are not weights of convolutions:
#: batch normalisation has two per channel, a dense layer m*n + n; squeeze-and-excitation has biases and no norm.
PUBLISHED = {
    "ResNet-50": (25_557_032, lambda n: 2 * filters(n) + 2049 * 1000),
    "ResNet-152": (60_192_808, lambda n: 2 * filters(n) + 2049 * 1000),
    "ResNeXt-50": (25_028_904, lambda n: 2 * filters(n) + 2049 * 1000),
    "GoogLeNet": (6_998_552, lambda n: filters(n) + 1025 * 1000),  # of its Caffe model, without auxiliary classifiers
    "SqueezeNet": (1_248_424, filters),
    "MobileNetV2": (3_504_872, lambda n: 2 * filters(n) + 1281 * 1000),
    "MobileNetV3": (5_483_032, lambda n: 2 * filters(n, SE) + (filters(n) - filters(n, SE)) + 961 * 1280 + 1281 * 1000),
    "EfficientNet-B0": (5_288_548, lambda n: 2 * filters(n, SE) + (filters(n) - filters(n, SE)) + 1281 * 1000),
    # norms come before the convolutions, but for the stem, and after the last one
    "DenseNet-121": (7_978_856, lambda n: 2 * (inputs(n) - 3 + 64 + 1024) + 1025 * 1000),
    # layer norms of the stem, before each step down and at the end; per block one norm and one scale
    "ConvNeXt-T": (
        28_589_128,
        lambda n: (
            filters(n) + 2 * (96 + 96 + 192 + 384 + 768) + 3 * (96 * 3 + 192 * 3 + 384 * 9 + 768 * 3) + 769 * 1000
        ),
    ),
    "UNet": (31_030_658, filters),
    "R3D-18": (33_371_472, lambda n: 2 * filters(n) + 513 * 400),
    "3D-UNet": (19_069_955, lambda n: filters(n) - 128 - 256 - 512),  # its transposed convolutions have no bias
}
#: Weights of a part of the network, where only those are published.
PARTS = {
    ("VGG-19", ""): 20_018_880,  # 144 million less the dense layers and biases
    ("AlexNet", ""): 2_332_704,
    ("wav2vec2-base", "conv"): 4_199_424,
    ("C3D", ""): 27_655_936 - 2_752,
    ("Mamba-130m", ""): 24 * 1536 * 4,
}


@pytest.mark.parametrize("network", PUBLISHED)
def test_parameters(network):
    total, others = PUBLISHED[network]
    assert weights(network) + others(network) == total


@pytest.mark.parametrize(("network", "pattern"), PARTS)
def test_weights(network, pattern):
    assert weights(network, pattern) == PARTS[network, pattern]


def test_x3d_and_replknet():
    """Published to three digits: 3.79 and 79 million."""
    squeezed = filters("X3D-M") - filters("X3D-M", SE)
    x3d = weights("X3D-M") + 2 * filters("X3D-M", f"{SE}|head") + squeezed + 2049 * 400
    assert x3d == pytest.approx(3.79e6, rel=0.003)
    replknet = weights("RepLKNet-31B") + 2 * filters("RepLKNet-31B") + 1025 * 1000
    assert replknet == pytest.approx(79e6, rel=0.01)


@pytest.mark.parametrize(
    ("network", "end"),
    [
        ("AlexNet", (256, (6, 6))), ("VGG-19", (512, (7, 7))), ("UNet", (2, (388, 388))),
        ("DeepLabV3-head", (21, (33, 33))), ("Whisper-large-v2", (1280, (1500,))), ("EnCodec-24kHz", (1, (24000,))),
        ("C3D", (512, (1, 4, 4))), ("3D-UNet", (3, (28, 44, 44))),
    ],
)  # fmt: skip
def test_where_networks_end(network, end):
    assert WALKS[network].at == end


def test_shapes_that_everyone_quotes():
    text = {line.name: line.text for walk in WALKS.values() for line in walk.lines}
    assert "c=80 size=3000 k=1280 ksize=3" in text["whisper-conv1"]
    assert "c=1 size=16000 k=512 ksize=10 stride=5" in text["wav2vec2-conv1"]
    assert parse_problem(text["encodec-first"], "conv").out == (24000,)
    assert "k=256 ksize=10 stride=5" in text["encodec-down5"]
    assert parse_problem(text["encodec-down5"], "conv").out == (600,)
    assert "c=2048 size=33 k=256 ksize=3 pad=12 dilation=12" in text["3x3-d12"]
    assert "c=128 size=56 k=128 ksize=31 pad=15 groups=128" in text["stage1-31x31"]


@pytest.mark.parametrize("suite", SUITES)
def test_the_file_is_the_walk(suite):
    """Made by ``python -m fastconv.benchmarks.architectures``."""
    assert (files("fastconv.benchmarks") / "suites" / f"{suite}.txt").read_text("utf-8") == SUITES[suite].text()
    counts = [line.count for walk in SUITES[suite].walks() for line in walk.lines]
    assert [layer.count for layer in load_suite(suite)] == counts


def test_a_walk_that_does_not_fit():
    net = Walk("net", 8, (9, 9))
    net.conv("a", 16, 3, 2)
    with pytest.raises(AssertionError, match="two layers are named a"):
        net.conv("a", 4, 1)
    with pytest.raises(AssertionError, match="branches of different extents"):
        net.concat(lambda: net.conv("b", 4, 3), lambda: net.conv("c", 4, 3, 2))
    with pytest.raises(AssertionError):
        net.add((8, (9, 9)))

"""The suites are the networks they are named after, and a line that cannot be read says so."""

import itertools
import math

import pytest

from fastconv.benchmarks import cases, regimes
from fastconv.benchmarks.cases import Case, Layer, SuiteError, build_cases, load_suite, parse_problem, parse_suite
from fastconv.problem import ConvProblem, SignalProblem

#: convolutions, poolings, weights of the convolutions, multiply-adds of the convolutions at batch 1
NETWORKS = {
    "alexnet": (5, 3, 2_332_704, 665_784_864),
    "vgg19": (16, 5, 20_018_880, 19_508_428_800),
    "resnet152": (155, 2, 57_992_384, 11_511_578_624),
}


@pytest.mark.parametrize("suite", NETWORKS)
def test_suite_is_the_network(suite):
    layers = [(layer, parse_problem(layer.text, layer.family)) for layer in load_suite(suite)]
    convs = [(layer.count, problem) for layer, problem in layers if isinstance(problem, ConvProblem)]
    assert (
        sum(count for count, _ in convs),
        sum(layer.count for layer, _ in layers if layer.family != "conv"),
        sum(count * math.prod(problem.dims("w")) for count, problem in convs),
        sum(count * problem.macs for count, problem in convs),
    ) == NETWORKS[suite]
    assert len({problem for _, problem in layers}) == len(layers)


@pytest.mark.parametrize("suite", ["alexnet", "vgg19"])
def test_layers_fit_together(suite):
    """Where layers follow each other, the output of one is the input of the next."""
    problems = [parse_problem(layer.text, layer.family) for layer in load_suite(suite)]
    for this, following in itertools.pairwise(problems):
        assert (following.C, following.size) == (this.dims("y")[1], this.out)


def test_alexnet_sizes():
    assert [parse_problem(layer.text, layer.family).out[0] for layer in load_suite("alexnet")] == [
        55,
        27,
        27,
        13,
        13,
        13,
        13,
        6,
    ]


def test_every_suite_loads_in_every_form():
    for suite in cases.suite_names():
        for layout in ("NCHW", "NHWC"):
            for case in build_cases([suite], dtype="float16", layout=layout, batch=3):
                assert case.problem.dtype == "float16"
                if case.layer.family != "signal":
                    assert (case.problem.N, case.problem.layout) == (3, layout)
                assert case.flops > 0
                assert case.nbytes > 0
                assert case.terms > 0
                assert {case.regime(device) in regimes.GOALS[device] for device in regimes.GOALS} == {True}


def test_the_batch_is_the_suites_own():
    assert {case.problem.N for case in build_cases(["deepbench"])} == {4, 8, 16, 32}
    assert {case.problem.N for case in build_cases(["resnet50"])} == {1}


def test_huge_is_beyond_32_bits():
    assert all(layer_is_huge(name) for name in {case.layer.name for case in build_cases(["huge"])})
    assert not any(case.huge for suite in ("resnet50", "medical") for case in build_cases([suite]))


def layer_is_huge(name):
    return any(case.huge for case in build_cases(["huge"], ("fprop",)) if case.layer.name == name)


def test_cases_of_a_layer():
    found = build_cases(["alexnet"])
    assert [case.name for case in found[:5]] == [
        "alexnet/conv1/fprop", "alexnet/conv1/dgrad", "alexnet/conv1/wgrad", "alexnet/pool1/fprop",
        "alexnet/pool1/dgrad",
    ]  # fmt: skip
    conv, pool = found[0], found[3]
    assert (conv.op, conv.roles, conv.result) == ("conv_fprop", ("x", "w"), "y")
    assert (pool.op, pool.roles, pool.group) == ("maxpool_fprop", ("x",), "pool fprop")
    assert conv.nbytes == 4 * (3 * 227 * 227 + 96 * 3 * 121 + 96 * 55 * 55)
    assert conv.layer.first
    assert not pool.layer.first


def test_a_transposed_convolution_is_the_adjoint():
    up = {case.pass_: case for case in build_cases(["unet"]) if case.layer.name == "up4"}
    assert (up["fprop"].op, up["fprop"].roles, up["fprop"].result) == ("conv_dgrad", ("y", "w"), "x")
    assert (up["fprop"].problem.dims("y"), up["fprop"].problem.dims("x")) == ((1, 1024, 28, 28), (1, 512, 56, 56))
    assert (up["dgrad"].op, up["wgrad"].op) == ("conv_fprop", "conv_wgrad")
    assert up["fprop"].terms == 1024 * 4
    assert len({case.flops for case in up.values()}) == 1


def test_a_layer_of_no_network():
    layer, *_ = load_suite("tiny")
    assert (layer.network, layer.whole, layer.first) == ("tiny", False, False)


@pytest.mark.parametrize(
    "line",
    ["correlate in1=64 in2=5 mode=full", "convolve in1=9x8 in2=3x2 mode=same dtype=complex64 method=fft"],
)
def test_signals_parse(line):
    problem = SignalProblem.parse(line)
    assert SignalProblem.parse(str(problem)) == problem
    assert problem.flip == line.startswith("convolve")


@pytest.mark.parametrize(
    ("problem", "op", "cpu", "gpu"),
    [
        ("conv2d n=8 c=64 size=56 k=64 ksize=3 pad=1", "fprop", "3x3", "float32 dense"),
        ("conv2d n=8 c=64 size=56 k=64 ksize=3 pad=1", "wgrad", "3x3 wgrad", "float32 dense"),
        ("conv2d n=8 c=64 size=56 k=64 ksize=3 pad=1 dtype=float16", "dgrad", "16-bit or float64", "dense dgrad"),
        ("conv2d n=8 c=8 size=56 k=64 ksize=3 pad=1", "fprop", "strided, large or few channels", "float32 dense"),
        ("conv2d n=8 c=64 size=56 k=64 ksize=3 pad=2 dilation=2", "dgrad", "5x5 or dilated", "float32 dense"),
        ("conv1d n=8 c=64 size=999 k=64 ksize=5 dtype=bfloat16", "fprop", "16-bit or float64", "1-D and 3-D dense"),
        ("conv2d n=8 c=64 size=56 k=256 ksize=1", "fprop", "1x1", "1x1 and patches"),
        ("conv2d n=8 c=64 size=56 k=256 ksize=1", "wgrad", "wgrad of the rest", "1x1 and patches"),
        ("conv2d n=8 c=96 size=56 k=192 ksize=2 stride=2", "dgrad", "dgrad strided or few channels", "1x1 and patches"),
        ("conv2d n=8 c=3 size=224 k=64 ksize=3 pad=1", "dgrad", "dgrad strided or few channels", "stem"),
        ("conv2d n=8 c=128 size=56 k=128 ksize=3 pad=1 groups=32", "fprop", "grouped", "grouped"),
        ("conv2d n=8 c=96 size=56 k=96 ksize=7 pad=3 groups=96", "dgrad", "depthwise dgrad", "depthwise above 5x5"),
        ("conv2d n=8 c=96 size=56 k=96 ksize=3 pad=1 groups=96", "wgrad", "depthwise wgrad", "depthwise wgrad"),
        ("conv2d n=1 c=4 size=8 k=4 ksize=3 pad=1", "fprop", "tiny", "tiny"),
    ],
)
def test_regimes(problem, op, cpu, gpu):
    parsed = parse_problem(problem, "conv")
    layer = Layer("s", "n", "l", 1, "conv", problem)
    case = Case(layer, op, parsed)
    assert (case.regime("cpu"), case.regime("gpu")) == (cpu, gpu)


def test_pools_and_signals_have_regimes():
    found = {case.name: case for case in build_cases(["pooling", "signal"])}
    assert found["pooling/max-2x2/dgrad"].regime("cpu") == "pooling dgrad"
    assert found["pooling/avg-2x2/fprop"].regime("gpu") == "average pooling"
    assert found["signal/2d-31x31/fprop"].regime("cpu") == "correlation"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("net conv1 conv conv2d n=1", "s.txt:1: expected 'network layer xCOUNT family problem'"),
        ("net conv1 x0 conv conv2d n=1 c=1 size=1 k=1 ksize=1", "s.txt:1: expected"),
        ("net conv1 x1 blur conv2d n=1 c=1 size=1 k=1 ksize=1", "family must be one of conv, convtranspose, maxpool"),
        ("net conv1 x1 maxpool conv2d n=1 c=1 size=1 k=1 ksize=1", "a maxpool problem begins with poolNd"),
        ("net conv1 x1 conv conv2d n=1 c=1 size=1 k=1", "lacks ksize"),
        ("net conv1 x1 conv conv2d n=1 c=1 size=2 k=1 ksize=3", "window does not fit"),
        ("net a x1 conv conv2d n=1 c=1 size=1 k=1 ksize=1\n" * 2, "s.txt:2: there is a layer 'a' already"),
        ("# nothing", "has no layers"),
    ],
)
def test_bad_lines(line, message):
    with pytest.raises(SuiteError, match=message):
        parse_suite("s", line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["lenet"],), "no suite 'lenet': the suites are alexnet"),
        ((["tiny"], ("sideways",)), "no pass 'sideways'"),
        ((["tiny"], ("fprop",), "int3"), "no dtype 'int3'"),
        ((["tiny"], ("fprop",), "float32", "CHWN"), "no layout 'CHWN'"),
        ((["tiny"], ("fprop",), "float32", "NCHW", 0), "batch must be at least 1"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(SuiteError, match=message):
        build_cases(*arguments)

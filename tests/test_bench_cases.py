"""The suites are the networks they are named after, and a line that cannot be read says so."""

import itertools
import math

import pytest

from fastconv.benchmarks import cases
from fastconv.benchmarks.cases import SuiteError, build_cases, load_suite, parse_problem, parse_suite
from fastconv.problem import ConvProblem

#: convolutions, poolings, weights of the convolutions, multiply-adds of the convolutions at batch 1
NETWORKS = {
    "alexnet": (5, 3, 2_332_704, 665_784_864),
    "vgg19": (16, 5, 20_018_880, 19_508_428_800),
    "resnet152": (155, 2, 57_992_384, 11_511_578_624),
}


@pytest.mark.parametrize("suite", NETWORKS)
def test_suite_is_the_network(suite):
    layers = [(layer, parse_problem(layer.text)) for layer in load_suite(suite)]
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
    problems = [parse_problem(layer.text) for layer in load_suite(suite)]
    for this, following in itertools.pairwise(problems):
        assert (following.C, following.size) == (this.dims("y")[1], this.out)


def test_alexnet_sizes():
    assert [parse_problem(layer.text).out[0] for layer in load_suite("alexnet")] == [55, 27, 27, 13, 13, 13, 13, 6]


def test_every_suite_loads_in_every_form():
    for suite in cases.suite_names():
        for layout in ("NCHW", "NHWC"):
            for case in build_cases([suite], dtype="float16", layout=layout, batch=3):
                assert (case.problem.N, case.problem.layout, case.problem.dtype) == (3, layout, "float16")
                assert case.flops > 0
                assert case.nbytes > 0
                assert case.terms > 0


def test_cases_of_a_layer():
    found = build_cases(["alexnet"])
    assert [case.name for case in found[:5]] == [
        "alexnet/conv1/fprop", "alexnet/conv1/dgrad", "alexnet/conv1/wgrad", "alexnet/pool1/fprop",
        "alexnet/pool1/dgrad",
    ]  # fmt: skip
    conv, pool = found[0], found[3]
    assert (conv.op, conv.roles, conv.result, conv.regime) == ("conv_fprop", ("x", "w"), "y", "stem")
    assert (pool.op, pool.roles, pool.group, pool.regime) == ("maxpool_fprop", ("x",), "pool fprop", "pooling")
    assert conv.nbytes == 4 * (3 * 227 * 227 + 96 * 3 * 121 + 96 * 55 * 55)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("net conv1 conv conv2d n=1", "s.txt:1: expected 'network layer xCOUNT family problem'"),
        ("net conv1 x0 conv conv2d n=1 c=1 size=1 k=1 ksize=1", "s.txt:1: expected"),
        ("net conv1 x1 blur conv2d n=1 c=1 size=1 k=1 ksize=1", "family must be one of conv, maxpool, avgpool"),
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

"""fastconv under ONNX: the backend suite's cases, the networks in the onnx wheel, and what neither of them holds."""

import glob
import importlib
import math
import os
import re
import runpy
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx.backend.test.case import node as node_cases  # noqa: E402
from onnx.backend.test.loader import load_model_tests  # noqa: E402
from onnx.backend.test.runner import Runner  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import fastconv  # noqa: E402
import fastconv.interop.onnx  # noqa: E402
from fastconv.interop.onnx import Backend, older  # noqa: E402

#: The public function that each operator must have called.
FUNCTIONS = {
    "Conv": "conv", "ConvTranspose": "conv_transpose", "ConvInteger": "conv", "QLinearConv": "conv",
    "MaxPool": "max_pool", "AveragePool": "avg_pool", "LpPool": "lp_pool", "MaxUnpool": "max_unpool",
    "GlobalAveragePool": "global_avg_pool", "GlobalMaxPool": "global_max_pool", "GlobalLpPool": "global_lp_pool",
}  # fmt: skip

MODULES = (
    "averagepool", "causal_conv_with_state", "conv", "convinteger", "convtranspose", "globalaveragepool",
    "globalmaxpool", "lppool", "maxpool", "maxunpool", "qlinearconv",
)  # fmt: skip

#: Every case of the backend suite that has one of the operators; `test_the_patterns_leave_nothing_out` holds this.
PATTERNS = {
    "node": r"(basic_)?conv_|convtranspose|convinteger|qlinearconv|causal_conv_with_state_.*_expanded$"
    r"|maxpool|averagepool|lppool|maxunpool|globalaveragepool|globalmaxpool",
    "pytorch-converted": r"Conv(Transpose)?[123]d|MaxPool[123]d|AvgPool[123]d",
    "pytorch-operator": r"operator_(conv|convtranspose|maxpool)$",
}

NETWORKS = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
    "vgg19", "zfnet512",
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of fastconv's public functions, without their 1d, 2d or 3d."""
    counts = Counter()

    def counting(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for public in fastconv.__all__:
        name = re.sub("[123]d$", "", public)
        if name in FUNCTIONS.values():
            monkeypatch.setattr(fastconv, public, counting(name, getattr(fastconv, public)))
    return counts


def expected_calls(graph):
    return Counter(FUNCTIONS[node.op_type] for node in graph.node if node.op_type in FUNCTIONS)


# ---------------------------------------------------------------- the backend suite


def load(kind):
    """The cases of one kind by name; onnx computes some of them with deliberate overflows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "node":
            for module in MODULES:
                importlib.import_module(f"onnx.backend.test.case.node.{module}")
            cases = node_cases._NodeTestCases
        else:
            cases = load_model_tests(kind=kind)
    pattern = re.compile(f"test_({PATTERNS[kind]})")
    return {case.name: case for case in cases if pattern.match(case.name)}


SUITE = {(kind, name): case for kind in PATTERNS for name, case in sorted(load(kind).items())}


def model_of(case):
    return case.model or onnx.load(os.path.join(case.model_dir, "model.onnx"))


def as_array(value):
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def data_sets(case):
    """The (inputs, outputs) of a case, which are in memory or in files."""
    if case.data_sets:
        return [tuple([as_array(value) for value in part] for part in data) for data in case.data_sets]
    folders = glob.glob(os.path.join(case.model_dir, "test_data_set_*"))
    return [(tensors(folder, "input"), tensors(folder, "output")) for folder in folders]


def tensors(folder, role):
    count = len(glob.glob(os.path.join(folder, f"{role}_*.pb")))
    return [as_array(onnx.load_tensor(os.path.join(folder, f"{role}_{i}.pb"))) for i in range(count)]


@pytest.mark.parametrize(("kind", "name"), SUITE)
def test_backend_suite(kind, name, calls):
    case = SUITE[kind, name]
    model, data = model_of(case), data_sets(case)
    prepared = Backend.prepare(model)
    assert data
    for inputs, outputs in data:
        calls.clear()
        Runner.assert_similar_outputs(outputs, prepared.run(inputs), case.rtol, case.atol)
        expected = expected_calls(model.graph)
        # Weights with a zero point take a second convolution.
        assert calls >= expected if "conv" in case.name.lower() else calls == expected


def test_the_patterns_leave_nothing_out():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [(kind, case) for kind in (*PATTERNS, "simple") for case in load_model_tests(kind=kind)]
    ours = {(kind, case.name) for kind, case in cases if any(n.op_type in FUNCTIONS for n in model_of(case).graph.node)}
    assert ours == set(SUITE)
    assert len(ours) >= 130
    assert {case.model_name for case in load_model_tests(kind="real")} == set(NETWORKS)


# ---------------------------------------------------------------- the networks


def network(name):
    folder = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light")
    expected = onnx.numpy_helper.to_array(onnx.load_tensor(os.path.join(folder, f"light_{name}_output_0.pb")))
    return onnx.load(os.path.join(folder, f"light_{name}.onnx")), expected


def ramp(model):
    """The input that onnx's own runner gives to these models."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    (value,) = [value for value in model.graph.input if value.name not in initialized]
    return {value.name: Runner.generate_dummy_data(value)}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_their_shipped_outputs(name, calls):
    model, expected = network(name)
    evaluator = ReferenceEvaluator(model, new_ops=fastconv.interop.onnx.ops)
    (y,) = evaluator.run(None, ramp(model))
    Runner.assert_similar_outputs([expected], [y], rtol=1e-3, atol=1e-7)
    assert calls == expected_calls(model.graph)


def randomised(model):
    """The model with random weights: those in the wheel are constants, which hide a swapped axis."""
    rng = np.random.default_rng(0)
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    weights = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = shapes[node.input[0]].tolist()
            scale = math.sqrt(2 / max(math.prod(shape[1:]), 1))
            w = rng.standard_normal(shape) * scale if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
            weights.append(onnx.numpy_helper.from_array(w.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)
    return model


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "resnet50"])
def test_networks_with_random_weights_match_onnx_node_by_node(name):
    model = randomised(network(name)[0])
    feeds = {k: np.random.default_rng(1).standard_normal(x.shape).astype(np.float32) for k, x in ramp(model).items()}
    ours = ReferenceEvaluator(model, new_ops=fastconv.interop.onnx.ops).run(None, feeds, intermediate=True)
    stock = ReferenceEvaluator(model, new_ops=[older.Softmax, older.BatchNormalization])
    theirs = stock.run(None, feeds, intermediate=True)
    for node in model.graph.node:
        if node.op_type in FUNCTIONS:
            # Each side goes on from its own results: rounding adds up through the depth.
            expected = theirs[node.output[0]]
            np.testing.assert_allclose(ours[node.output[0]], expected, rtol=0, atol=1e-4 * abs(expected).max())


def test_the_example_prints_the_top_class_and_the_time_per_operator(capsys):
    example = Path(__file__).parent.parent / "examples" / "run_onnx_model.py"
    runpy.run_path(str(example))["main"]()
    printed = capsys.readouterr().out
    assert re.search(r"light_squeezenet.onnx: top class \d+ of 1000, probability 0.0010", printed)
    assert re.search(r"Conv +26 calls +[\d.]+ ms", printed)


# ---------------------------------------------------------------- geometry


def run(op, *inputs, outputs=1, **attributes):
    """One node; returns its outputs, or the only one."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = onnx.helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
    results = Backend.run_node(node, [x for x in inputs if x is not None])
    return results if outputs > 1 else results[0]


def integers(*shape, dtype=np.float32, low=-4, high=5, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def same_pads(size, ksize, stride, upper):
    """The pads of the ONNX equation, as the attribute wants them."""
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, ksize, stride, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return small + large if upper else large + small


@pytest.mark.parametrize("op", ["Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("size", [(7,), (6, 5), (4, 5, 6)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_auto_pad_is_the_pads_of_its_equation(op, size, stride):
    rank, ksize = len(size), [3, 2, 4][: len(size)]
    window = {"kernel_shape": ksize, "strides": [stride] * rank}
    kind = np.uint8 if op == "ConvInteger" else np.float32
    inputs = [integers(2, 4, *size, low=0, dtype=kind)]
    if op.startswith("Conv"):
        inputs.append(integers(4, 2, *ksize, low=0, dtype=kind))
        window["group"] = 2
    if op == "ConvInteger":
        inputs.append(np.array(3, np.uint8))
    for upper in (True, False):
        auto = run(op, *inputs, auto_pad="SAME_UPPER" if upper else "SAME_LOWER", **window)
        explicit = run(op, *inputs, pads=same_pads(size, ksize, window["strides"], upper), **window)
        assert auto.shape[2:] == tuple(-(-n // stride) for n in size)
        np.testing.assert_array_equal(auto, explicit)
    valid = run(op, *inputs, auto_pad="VALID", **window)
    np.testing.assert_array_equal(valid, run(op, *inputs, pads=[0] * 2 * rank, **window))


@pytest.mark.parametrize(
    ("auto_pad", "out", "low"),
    [
        ("SAME_UPPER", None, (0, 1)),  # natural 7x9 for 6x6: one too many, three too many
        ("SAME_LOWER", None, (1, 2)),
        ("SAME_UPPER", [6, 7], (0, 1)),
        ("NOTSET", [6, 6], (1, 2)),  # the odd row is cut at the low end
        ("NOTSET", [7, 10], (0, 0)),  # more than there is: zeros at the high end
    ],
)
def test_conv_transpose_output_shape(auto_pad, out, low):
    x, w, bias = integers(2, 4, 3, 3), integers(4, 3, 3, 5), integers(6)
    extra = {"output_shape": out} if out else {}
    y = run("ConvTranspose", x, w, bias, strides=[2, 2], group=2, auto_pad=auto_pad, **extra)
    P, Q = out or (6, 6)
    everything = np.zeros((2, 6, 7, 10), np.float32)
    everything[..., :9] = fastconv.conv_transpose2d(x, w, stride=2, groups=2, backend="reference")
    expected = everything[..., low[0] : low[0] + P, low[1] : low[1] + Q] + bias[:, None, None]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_float_dtypes(dtype):
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x, w = integers(1, 2, 5, 5, dtype=dtype), integers(3, 2, 3, 3, dtype=dtype)
    y = run("Conv", x, w)
    assert y.dtype == dtype
    np.testing.assert_array_equal(
        y.astype(np.float64), fastconv.conv2d(x.astype(np.float64), w.astype(np.float64)).astype(dtype)
    )
    for op in ("ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"):
        inputs = (x, np.swapaxes(w, 0, 1)) if op == "ConvTranspose" else (x,)
        window = {"kernel_shape": [3, 3]} if "Global" not in op else {}
        assert run(op, *inputs, **window).dtype == dtype


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 4])
def test_global_pools_of_any_rank(rank):
    x = integers(2, 3, *(2, 3, 2, 3)[:rank])
    axes = tuple(range(2, 2 + rank))
    np.testing.assert_array_equal(run("GlobalMaxPool", x), x.max(axis=axes, keepdims=True))
    np.testing.assert_allclose(run("GlobalAveragePool", x), x.mean(axis=axes, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(run("GlobalLpPool", x, p=1), abs(x).sum(axis=axes, keepdims=True), rtol=1e-6)


# ---------------------------------------------------------------- indices


def test_max_pool_indices_count_through_the_whole_tensor():
    x = np.random.default_rng(0).permutation(2 * 3 * 5 * 6 * 4).reshape(2, 3, 5, 6, 4).astype(np.float32)
    window = {"kernel_shape": [2, 3, 2], "strides": [2, 2, 1], "pads": [1, 0, 1, 0, 1, 0], "ceil_mode": 1}
    y, rows = run("MaxPool", x, outputs=2, **window)
    np.testing.assert_array_equal(x.reshape(-1)[rows], y)
    _, columns = run("MaxPool", x, outputs=2, storage_order=1, **window)
    reordered = np.stack([plane.reshape(-1, order="F") for plane in x.reshape(6, 5, 6, 4)])
    np.testing.assert_array_equal(reordered.reshape(-1)[columns], y)


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 5, 6), (1, 2, 5, 4, 6)])
def test_max_unpool_inverts_max_pool_at_its_output_shape(shape):
    x = np.random.default_rng(0).permutation(math.prod(shape)).reshape(shape).astype(np.float32) + 1
    window = {"kernel_shape": [2] * (len(shape) - 2), "strides": [2] * (len(shape) - 2)}
    y, indices = run("MaxPool", x, outputs=2, **window)
    back = run("MaxUnpool", y, indices, np.array(shape), **window)
    np.testing.assert_array_equal(back, np.where(np.isin(x, y), x, 0))


# ---------------------------------------------------------------- integers


@pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("w_dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("per_filter", [True, False])
def test_conv_integer_is_exact(x_dtype, w_dtype, groups, per_filter):
    x_range, w_range = np.iinfo(x_dtype), np.iinfo(w_dtype)
    x = integers(2, 4, 7, 6, low=x_range.min, high=x_range.max + 1, dtype=x_dtype)
    w = integers(8, 4 // groups, 3, 2, low=w_range.min, high=w_range.max + 1, dtype=w_dtype)
    x_zero = np.array(x_range.max, x_dtype)
    w_zero = integers(*((8,) if per_filter else ()), low=w_range.min, high=w_range.max + 1, dtype=w_dtype)
    exact = fastconv.conv2d(
        x.astype(np.float64) - x_zero, w.astype(np.float64) - w_zero.reshape(-1, 1, 1, 1),
        stride=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 2), groups=groups, backend="reference",
    )  # fmt: skip
    y = run("ConvInteger", x, w, x_zero, w_zero, group=groups, strides=[2, 1], pads=[1, 0, 0, 2], dilations=[1, 2])
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, exact)


def test_qlinear_conv_rounds_half_to_even_then_shifts_and_saturates():
    x = np.array([[[1, 3, 5, 7, 255]]], np.uint8)
    one, half = np.array(1, np.float32), np.array(0.5, np.float32)
    zero, odd = np.array(0, np.uint8), np.array(1, np.uint8)
    y = run("QLinearConv", x, half, zero, np.ones((1, 1, 1), np.uint8), one, zero, one, odd, np.array([500], np.int32))
    np.testing.assert_array_equal(y.reshape(-1), [251, 253, 253, 255, 255])  # 250.5, 251.5, 252.5, 253.5, 377.5


# ---------------------------------------------------------------- models, old and nested


@pytest.mark.parametrize(("version", "expected"), [(9, 0.25), (13, 1.0)])
def test_softmax_before_set_13_is_over_all_axes_from_the_second(version, expected):
    model = parse(version, "net (float[1, 4, 1] x) => (float[1, 4, 1] y) { y = Softmax(x) }")
    np.testing.assert_array_equal(
        Backend.run_model(model, np.zeros((1, 4, 1), np.float32))[0], np.full((1, 4, 1), expected)
    )


@pytest.mark.parametrize("version", [8, 9, 15])
def test_batch_normalization_with_one_output_is_inference(version):
    signature = "float[2, 1, 2] x, float[1] s, float[1] b, float[1] m, float[1] v"
    model = parse(version, f"net ({signature}) => (float[2, 1, 2] y) {{ y = BatchNormalization(x, s, b, m, v) }}")
    x, s, b, m, v = (np.array(n, np.float32) for n in ([[[1, 2]], [[3, 4]]], [2], [3], [1], [4]))
    np.testing.assert_allclose(Backend.run_model(model, [x, s, b, m, v])[0], x + 2, rtol=1e-5)


def parse(version, text):
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {version}, "f": 1]> {text}')


def test_functions_and_subgraphs_run_on_fastconv_too(calls):
    model = parse(18, """
        net (float[1, 1, 4] x, float[1, 1, 2] w, bool c) => (float[1, 1, ?] y) {
            z = f.twice(x, w)
            y = If (c) <
                then_branch = a () => (float[1, 1, ?] p) { p = MaxPool <kernel_shape = [2]> (z) },
                else_branch = b () => (float[1, 1, ?] q) { q = GlobalMaxPool(z) }>
        }
        <domain: "f", opset_import: ["": 18]>
        twice (x, w) => (y) { z = Conv(x, w) y = Conv(z, w) }""")  # fmt: skip
    x, w = np.array([[[1, 2, 3, 4]]], np.float32), np.ones((1, 1, 2), np.float32)
    assert Backend.run_model(model, [x, w, np.array(True)])[0].tolist() == [[[12.0]]]
    assert Backend.run_model(model, {"x": x, "w": w, "c": np.array(False)})[0].tolist() == [[[12.0]]]
    assert calls == {"conv": 4, "max_pool": 1, "global_max_pool": 1}


def test_what_the_backend_says_of_itself():
    model = parse(18, "net (float[1, 1, 4] x) => (float[1, 1, 1] y) { y = GlobalMaxPool(x) }")
    unknown = parse(18, "net (float[1, 1, 4] x) => (float[1, 1, 1] y) { y = f.Nothing(x) }")
    assert Backend.supports_device("CPU")
    assert not Backend.supports_device("CUDA")
    assert Backend.is_compatible(model)
    assert not Backend.is_compatible(unknown)
    assert not Backend.is_compatible(model, "CUDA:0")
    with pytest.raises(fastconv.BackendError, match="'CPU'"):
        Backend.run_model(model, [], "CUDA")
    with pytest.raises(fastconv.ShapeError, match="takes 1 inputs"):
        Backend.run_model(model, [])


X, W = np.zeros((1, 2, 5, 5), np.float32), np.zeros((2, 2, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("Conv", (X, W), {"pads": [1, 1]}, "pads must have 4 ints"),
        ("Conv", (X, W), {"pads": [-1, 0, 0, 0]}, "at least 0"),
        ("Conv", (X, W), {"strides": [1]}, "strides must have 2 ints"),
        ("Conv", (X, W), {"kernel_shape": [3, 1]}, "kernel_shape"),
        ("Conv", (X, W), {"auto_pad": "SAME"}, "auto_pad"),
        ("Conv", (X, W), {"group": 3}, "groups=3"),
        ("Conv", (np.zeros((1, 1, 2, 2, 2, 2)), np.zeros((1,) * 6)), {}, "1 to 3 spatial axes"),
        ("ConvTranspose", (X, W), {"output_shape": [1, 2, 7, 7]}, "output_shape must have 2 ints"),
        ("ConvTranspose", (X, W), {"output_shape": [9, 7]}, "output_padding"),
        ("MaxPool", (X,), {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]}, "at most"),
        ("AveragePool", (X,), {"kernel_shape": [2]}, "ksize"),
        ("MaxUnpool", (X, np.zeros(X.shape, np.int64), np.array([9, 9])), {"kernel_shape": [2, 2]}, "whole shape"),
        ("MaxUnpool", (X, np.full(X.shape, 999)), {"kernel_shape": [2, 2]}, "999|index"),
    ],
)  # fmt: skip
def test_errors(op, inputs, attributes, message):
    with pytest.raises(fastconv.ShapeError, match=message):
        run(op, *inputs, **attributes)

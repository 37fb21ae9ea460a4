"""ONNX Runtime on the CPU: a model of one node, its weights an initializer that the session packs beforehand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused
from fastconv.benchmarks.peers.library import output_padding
from fastconv.problem import ConvProblem, PoolProblem, SignalProblem

Array = np.ndarray
LIMIT = 2**31  # bytes of a model


class OnnxRuntime(Contestant):
    """Forward passes: ONNX has no operators for gradients."""

    def version(self) -> str:
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise Absent(f"ONNX Runtime or onnx is not installed ({error}): pip install onnxruntime onnx") from error
        threads = os.environ.get("OMP_NUM_THREADS", "its own choice of")
        return f"onnxruntime {onnxruntime.__version__} (onnx {onnx.__version__}), CPU, {threads} threads"

    def bind(self, case: Case, given: Sequence[Any]) -> Job:
        if case.pass_ != "fprop":
            raise Refused("ONNX has no operators for gradients")
        if isinstance(case.problem, SignalProblem):
            raise Refused("ONNX has no correlation of one array with another")
        session = _session(_model(case, given))
        feed = {"x": given[0]}
        note = "weights packed beforehand" if len(given) == 2 else ""
        return Job(lambda: session.run(None, feed)[0], lambda y: y, note)


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads := os.environ.get("OMP_NUM_THREADS"):
        options.intra_op_num_threads = int(threads)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions, by status: most often that a kernel lacks a dtype
        raise Refused(f"ONNX Runtime: {error}") from error


def _model(case: Case, given: Sequence[Array]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    problem = case.problem
    node, attributes = _node(case)
    kind = TensorProto.DataType.Value({"float16": "FLOAT16", "float64": "DOUBLE", "bfloat16": "BFLOAT16"}.get(
        problem.dtype, "FLOAT"))  # fmt: skip
    if sum(array.nbytes for array in given[1:]) >= LIMIT:
        raise Refused("an ONNX model of more than 2 GB")
    weights = [numpy_helper.from_array(np.ascontiguousarray(array), "w") for array in given[1:]]
    names = ["x", *(tensor.name for tensor in weights)]
    x, y = (
        helper.make_tensor_value_info(name, kind, problem.dims(role))
        for name, role in (("x", case.roles[0]), ("y", case.result))
    )
    graph = helper.make_graph([helper.make_node(node, names, ["y"], **attributes)], "layer", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _node(case: Case) -> tuple[str, dict[str, Any]]:
    """The operator and its attributes."""
    problem = case.problem
    if isinstance(problem, PoolProblem) and problem.window is None:
        if set(problem.out) != {1}:
            raise Refused("ONNX has no adaptive pooling but the global ones")
        return {"maxpool": "GlobalMaxPool", "avgpool": "GlobalAveragePool"}[case.layer.family], {}
    window = problem.window
    pads = [low for low, _ in window.pad] + [high for _, high in window.pad]
    attributes = {"kernel_shape": window.ksize, "strides": window.stride, "dilations": window.dilation, "pads": pads}
    if isinstance(problem, ConvProblem):
        attributes["group"] = problem.groups
        if case.layer.family == "convtranspose":
            return "ConvTranspose", attributes | {"output_padding": output_padding(problem)}
        return "Conv", attributes
    attributes["ceil_mode"] = int(window.rounding == "ceil")
    if case.layer.family == "maxpool":
        return "MaxPool", attributes
    if problem.divisor is not None:
        raise Refused("ONNX has no divisor of an average")
    return "AveragePool", attributes | {"count_include_pad": int(problem.count_include_pad)}

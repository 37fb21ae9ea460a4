"""Two operators of older models, as their own operator sets define them.

onnx's `ReferenceEvaluator` reads `Softmax` and `BatchNormalization` in old models with meanings that
they got later: its results for SqueezeNet and DenseNet (operator set 9) are not those that ONNX ships.
Neither runs on fastconv; they stand in `ops` so that the networks around our convolutions come out right.
"""

from __future__ import annotations

import math
from typing import Any

from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_batch_normalization import BatchNormalization_14
from onnx.reference.ops.op_softmax import Softmax as Softmax_13


def opset(op: OpRun) -> int:
    """The version of the operator set that a node's model imports."""
    version: int = op.run_params["opsets"][op.onnx_node.domain]
    return version


def given(op: OpRun, name: str, default: Any) -> Any:
    """An attribute that the node itself has, or an older default than the evaluator's."""
    return getattr(op, name) if any(attribute.name == name for attribute in op.onnx_node.attribute) else default


class Softmax(Softmax_13):
    """Softmax: before set 13, over all axes from `axis` on (1 by default) taken as one."""

    def _run(self, x: Any, axis: Any = None) -> Any:
        if opset(self) >= 13:
            return super()._run(x, axis)
        axis = given(self, "axis", 1)
        (y,) = super()._run(x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])), 1)
        return (y.reshape(x.shape),)


class BatchNormalization(BatchNormalization_14):
    """BatchNormalization: before set 14, a node with one output (before set 7, `is_test`) is inference."""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, **attributes: Any) -> Any:
        version = opset(self)
        if version < 14:
            inference = given(self, "is_test", 0) if version < 7 else len(self.output) == 1
            if not inference or not given(self, "spatial", 1):
                raise NotImplementedError(
                    f"BatchNormalization of operator set {version} runs for inference, with one mean per channel only"
                )
            attributes = {"epsilon": attributes["epsilon"], "training_mode": 0}
        return super()._run(x, scale, bias, mean, var, **attributes)

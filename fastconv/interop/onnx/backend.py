"""Whole ONNX models: an onnx `Backend` whose evaluator runs on fastconv's operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend as OnnxBackend
from onnx.backend.base import BackendRep, namedtupledict
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fastconv.errors import BackendError, ShapeError
from fastconv.interop.onnx import older, operators

#: For ``onnx.reference.ReferenceEvaluator(model, new_ops=fastconv.interop.onnx.ops)``.
ops: list[type[OpRun]] = [
    operators.Conv, operators.ConvTranspose, operators.ConvInteger, operators.QLinearConv,
    operators.MaxPool, operators.AveragePool, operators.LpPool, operators.MaxUnpool,
    operators.GlobalAveragePool, operators.GlobalMaxPool, operators.GlobalLpPool,
    older.Softmax, older.BatchNormalization,
]  # fmt: skip


class Evaluator(ReferenceEvaluator):
    """A `ReferenceEvaluator` with `ops`, in the model's functions and subgraphs too."""

    def __init__(self, proto: Any, *args: Any, new_ops: Sequence[type[OpRun]] | None = None, **kwargs: Any):
        super().__init__(proto, *args, new_ops=[*(new_ops or []), *ops], **kwargs)


class Prepared(BackendRep):
    """A model that is ready to run; what `Backend.prepare` returns."""

    def __init__(self, model: onnx.ModelProto | onnx.FunctionProto, names: Sequence[str]):
        self.evaluator, self.names = Evaluator(model), list(names)

    def run(self, inputs: Any, **kwargs: Any) -> Any:
        """Run on arrays in the order of the model's inputs, or on a dict of arrays by name.

        Returns
        -------
        outputs : named tuple of arrays, in the order of the model's outputs
        """
        if not isinstance(inputs, Mapping):
            inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(inputs) != len(self.names):
                raise ShapeError(f"the model takes {len(self.names)} inputs ({self.names}): got {len(inputs)}")
            inputs = dict(zip(self.names, inputs, strict=True))
        options: dict[str, Any] = {"attributes": {}} if isinstance(self.evaluator.proto_, onnx.FunctionProto) else {}
        outputs = self.evaluator.run(None, dict(inputs), **options)
        return namedtupledict("Outputs", self.evaluator.output_names)(*outputs)


class Backend(OnnxBackend):
    """An `onnx.backend.base.Backend` whose convolutions and poolings are fastconv's, on the CPU.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> from fastconv.interop.onnx import Backend
    >>> node = onnx.helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], strides=[2])
    >>> Backend.run_node(node, [np.array([[[1.0, 3.0, 2.0, 0.0]]], np.float32)])["y"]
    array([[[3., 2.]]], dtype=float32)
    """

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for "CPU": the evaluator between the nodes works on NumPy arrays."""
        return device.partition(":")[0] == "CPU"

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model is valid and each of its operators has an implementation."""
        try:
            cls.prepare(model, device, **kwargs)
        except (NotImplementedError, RuntimeError, onnx.checker.ValidationError):
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Check and load a model for repeated runs; inputs that have an initializer are not asked for."""
        cls._check_device(device)
        super().prepare(model, device, **kwargs)
        initialized = {tensor.name for tensor in model.graph.initializer}
        return Prepared(model, [value.name for value in model.graph.input if value.name not in initialized])

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> Any:
        """Run one node, of the newest operator set or of ``opset_version=``."""
        cls._check_device(device)
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        names = [name for name in dict.fromkeys(node.input) if name]
        outputs = [name for name in node.output if name]
        opset = onnx.helper.make_opsetid(node.domain, version)
        function = onnx.helper.make_function("fastconv", node.op_type, names, outputs, [node], [opset])
        return Prepared(function, names).run(inputs)

    @classmethod
    def _check_device(cls, device: str) -> None:
        if not cls.supports_device(device):
            raise BackendError(f"device must be 'CPU': got {device!r}")

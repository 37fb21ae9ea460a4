"""ONNX models on fastconv: `ops` for onnx's `ReferenceEvaluator`, and an onnx `Backend`; needs ``onnx``.

Examples
--------
>>> import numpy as np, onnx.parser
>>> from onnx.reference import ReferenceEvaluator
>>> import fastconv.interop.onnx
>>> model = onnx.parser.parse_model('''
...     <ir_version: 10, opset_import: ["": 22]>
...     net (float[1, 1, 7] x, float[1, 1, 3] w) => (float[1, 1, 5] y) { y = Conv(x, w) }''')
>>> evaluator = ReferenceEvaluator(model, new_ops=fastconv.interop.onnx.ops)
>>> x, w = np.array([[[1, 3, 2, 2, 0, 2, 3]]], np.float32), np.array([[[-1, 0, 1]]], np.float32)
>>> evaluator.run(None, {"x": x, "w": w})[0]
array([[[ 1., -1., -2.,  0.,  3.]]], dtype=float32)
"""

from fastconv.interop.onnx.backend import Backend, ops

__all__ = ["Backend", "ops"]

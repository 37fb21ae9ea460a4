"""Run a network from an ONNX file with fastconv doing its convolutions and poolings.

    python examples/run_onnx_model.py [model.onnx]

Without a file it runs the SqueezeNet that ships inside the `onnx` package: the real graph with
constant weights, so that all its classes come out equally likely.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

import fastconv.interop.onnx

SQUEEZENET = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"


def timed(op: type, seconds: dict[str, list[float]]) -> type:
    """The operator class, adding the duration of each run to `seconds`."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        outputs = op._run(self, *args, **kwargs)
        seconds[op.__name__].append(time.perf_counter() - start)
        return outputs

    return type(op.__name__, (op,), {"_run": run})


def image_for(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """A random image for the model's one input that has no initializer."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    (value,) = [value for value in model.graph.input if value.name not in initialized]
    shape = [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def main(path: str | Path = SQUEEZENET) -> None:
    model = onnx.load(path)
    seconds: dict[str, list[float]] = defaultdict(list)
    evaluator = ReferenceEvaluator(model, new_ops=[timed(op, seconds) for op in fastconv.interop.onnx.ops])
    feeds = image_for(model)
    evaluator.run(None, feeds)  # compiles what is not in the cache yet
    seconds.clear()
    start = time.perf_counter()
    scores = evaluator.run(None, feeds)[0].reshape(-1)
    total = time.perf_counter() - start
    print(f"{Path(path).name}: top class {scores.argmax()} of {scores.size}, probability {scores.max():.4f}")
    for name, each in sorted(seconds.items(), key=lambda item: -sum(item[1])):
        print(f"{name:20} {len(each):4} calls {sum(each) * 1e3:9.1f} ms")
    print(f"{'the whole network':31} {total * 1e3:9.1f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])

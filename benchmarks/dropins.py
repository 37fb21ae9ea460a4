"""Time programs of other libraries on those libraries' own kernels and under fastconv's patches.

    python -m fastconv.benchmarks.dropins [torch] [keras-torch] [keras-numpy] [--seconds 10]

Each program is one step of work: a forward pass, or a training step from fixed weights. Its results under the
patch are compared with its results without it, and a wrong one has no time: PyTorch's programs in float64 too,
to 1e-9; in float32, before and after the timing, to 1e-3 of the largest output and 0.1 of a gradient's norm,
because rounding that pushes a value over ReLU's or a maximum's edge moves gradients by percents, with either
library. The two take turns in short blocks, in one process, where PyTorch and Numba share their threads.
Printed is a table of the median of each, the ratio of the medians, and what a step passed on. Run it on an
idle machine.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastconv.testing.timing import quantile, time_calls

Results = list[np.ndarray]


@dataclass(frozen=True)
class Program:
    """One step of a library's work, deterministic, and the patch under which to repeat it."""

    name: str
    step: Callable[[], Results]  # the output first, then gradients
    patch: Callable[[], Any]
    exact: Callable[[], Results] | None = None  # the step in float64


# ---------------------------------------------------------------- PyTorch


def torch_programs() -> Iterator[Program]:
    import torch
    from torch import nn

    from fastconv.interop.torch import patch

    def conv(c: int, k: int, ksize: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
        layer = nn.Conv2d(c, k, ksize, stride, ksize // 2, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(k), nn.ReLU())

    class Block(nn.Module):
        """ResNet's basic block."""

        def __init__(self, c: int, k: int, stride: int):
            super().__init__()
            self.body = nn.Sequential(conv(c, k, 3, stride), conv(k, k))
            self.skip = nn.Identity() if c == k and stride == 1 else conv(c, k, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) + self.skip(x)

    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
              (512, 512, 1)]  # fmt: skip
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    resnet = nn.Sequential(
        conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), *(Block(*width) for width in widths), *head, nn.Linear(512, 1000)
    )
    mobile = nn.Sequential(
        conv(3, 32, 3, 2),
        *(nn.Sequential(conv(c, c, 3, stride, c), conv(c, k, 1)) for c, k, stride in
          [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]),
        *head, nn.Linear(256, 1000),
    )  # fmt: skip
    small = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding="same"), nn.ReLU(), nn.Conv2d(16, 32, 3, padding="same"), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 36, 10),
    )  # fmt: skip

    def forward(model: nn.Module, x: torch.Tensor) -> Results:
        with torch.inference_mode():
            return [model(x).numpy()]

    def train(model: nn.Module, x: torch.Tensor) -> Results:
        model.zero_grad()
        y = model(x)
        nn.functional.cross_entropy(y, torch.arange(len(x)) % y.shape[1]).backward()
        return [y.detach().numpy(), *(weight.grad.numpy() for weight in model.parameters())]

    torch.manual_seed(0)
    for name, model, shape in (
        ("small CNN", small, (64, 1, 28, 28)),
        ("ResNet-18", resnet, (4, 3, 224, 224)),
        ("depthwise network", mobile, (8, 3, 160, 160)),
    ):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).contiguous(memory_format=form)
            placed = copy.deepcopy(model).to(memory_format=form)
            exact = copy.deepcopy(placed).double()
            title = f"{name} {'x'.join(map(str, shape))}" + (", channels_last" * (form is torch.channels_last))
            for work, step in (("forward", forward), ("training step", train)):
                mode = work != "forward"
                yield Program(
                    f"{title}, {work}", partial(step, placed.train(mode), x), patch,
                    partial(step, exact.train(mode), x.double()),
                )  # fmt: skip


# ---------------------------------------------------------------- Keras


def keras_programs() -> Iterator[Program]:
    import keras
    from keras import layers

    from fastconv.interop.keras import patch

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)), layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 4, padding="same", activation="relu"), layers.Conv2D(64, 4, activation="relu"),
            layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(50, activation="relu"),
            layers.Dense(20, activation="relu"), layers.Dense(10, activation="softmax"),
        ]
    )  # fmt: skip
    x, labels = np.random.default_rng(0).random((64, 28, 28, 1), np.float32), np.arange(64) % 10
    yield Program("the notes' model, 64 images, predict", lambda: [np.asarray(model.predict_on_batch(x))], patch)
    if keras.config.backend() == "torch":
        model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")  # the weights stay
        yield Program(
            "the notes' model, 64 images, training step", lambda: [np.asarray(model.train_on_batch(x, labels))], patch
        )


# ---------------------------------------------------------------- measuring


def differs(found: Results, expected: Results, output: float, gradient: float) -> str | None:
    """What is wrong with the results of a step: bounds relative to the largest output and to a gradient's norm."""
    for at, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        size = np.linalg.norm if at else lambda array: np.abs(array).max()
        error = float(size((ours - theirs).ravel()) / (size(theirs.ravel()) + 1e-6))
        if not error <= (gradient if at else output):
            return f"wrong: {'gradient' if at else 'output'} {at} differs by {error:.1e}"
    return None


def under(patch: Any, step: Callable[[], Results]) -> tuple[Results, Results]:
    """The results of a step under the patch, and without it."""
    with patch:
        found = [array.copy() for array in step()]
    return found, step()


def compare(program: Program, seconds: float) -> list[str]:
    """A row of the table: the medians in ms, their ratio, and what a step passed on."""
    patch = program.patch()
    wrong = program.exact and differs(*under(patch, program.exact), 1e-9, 1e-9)
    wrong = wrong or differs(*under(patch, program.step), 1e-3, 0.1)
    passed = patch.report().passed
    times: dict[bool, list[float]] = {False: [], True: []}
    end = time.perf_counter() + seconds
    while not wrong and (time.perf_counter() < end or len(times[True]) < 10):
        taken, expected = time_calls(program.step, 3)
        times[False] += taken[1:]
        with patch:
            taken, found = time_calls(program.step, 3)
        times[True] += taken[1:]
        wrong = differs(found, expected, 1e-3, 0.1)
    if wrong:
        return [program.name, "-", "-", "-", wrong]
    theirs, ours = (quantile(times[patched], 0.5) for patched in (False, True))
    listing = ", ".join(f"{name} ({why})" for name, why in passed) or "nothing"
    return [program.name, f"{theirs * 1e3:.2f}", f"{ours * 1e3:.2f}", f"{theirs / ours:.2f}", listing]


#: Per library, its programs and the environment that they need.
LIBRARIES: dict[str, tuple[Callable[[], Iterator[Program]], dict[str, str]]] = {
    "torch": (torch_programs, {}),
    "keras-torch": (keras_programs, {"KERAS_BACKEND": "torch"}),
    "keras-numpy": (keras_programs, {"KERAS_BACKEND": "numpy"}),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="*", choices=[*LIBRARIES, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="per program (default: %(default)s)")
    options = parser.parse_args(arguments)
    libraries = options.library or list(LIBRARIES)
    if len(libraries) > 1:  # each in a process of its own
        for library in libraries:
            command = [sys.executable, "-m", "fastconv.benchmarks.dropins", library, "--seconds", str(options.seconds)]
            subprocess.run(command, env=os.environ | LIBRARIES[library][1], check=True)
        return
    programs, environment = LIBRARIES[libraries[0]]
    os.environ.update(environment)
    print(f"| {libraries[0]} | own, ms | fastconv, ms | ratio | passed on |\n| --- | --- | --- | --- | --- |")
    for program in programs():
        print(f"| {' | '.join(compare(program, options.seconds))} |", flush=True)


if __name__ == "__main__":
    main()

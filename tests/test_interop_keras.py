"""Keras 3 under `patch`: its torch backend trains in this process, its NumPy backend predicts in another."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
keras = pytest.importorskip("keras")

import fastconv  # noqa: E402
import fastconv.interop.keras  # noqa: E402
from fastconv.interop.keras import patch  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_keras_model.py"


@pytest.fixture(scope="module")
def example():
    """The notes' two models, and their training."""
    return runpy.run_path(str(EXAMPLE))


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_the_notes_models_have_the_notes_parameters(example, kind):
    model = example[kind]()
    assert [layer.count_params() for layer in model.layers if "conv" in layer.name] == [160, 8_224, 32_832]
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_model_trains_as_it_does_without_the_patch(example, kind, tmp_path):
    images, labels = example["characters"](128)
    histories = []
    for name in ("theirs", "ours"):
        model = example[kind](dropout=0.5)
        if name == "ours":
            with patch() as patched:
                histories.append(example["train"](model, str(tmp_path / "ours.keras"), images, labels, 2))
        else:
            histories.append(example["train"](model, str(tmp_path / "theirs.keras"), images, labels, 2))
    theirs, ours = histories
    assert theirs.keys() == ours.keys() >= {"loss", "val_loss", "accuracy", "learning_rate"}
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-2)
    report = patched.report()
    assert report.passed == {}
    assert report.ran["convolution_backward"] == 3 * 2 * 3  # layers, epochs, batches
    assert report.ran["max_pool2d_with_indices_backward"] == 2 * 3
    kept = keras.models.load_model(tmp_path / "ours.keras")
    assert kept.predict(images[:2], verbose=0).shape == (2, 10)


def test_callbacks_act(example, tmp_path):
    """A loss that cannot get better: the rate falls, then the training ends."""
    images, labels = example["characters"](16)
    model = example["sequential"]()
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1),
        keras.callbacks.EarlyStopping(monitor="loss", patience=3),
    ]
    with patch() as patched:
        history = model.fit(images, labels, epochs=9, verbose=0, callbacks=callbacks, shuffle=False)
    assert len(history.history["loss"]) == 4
    assert patched.report().ran["convolution"] == 3 * 4


def test_every_layer_runs_here():
    """Strides, padding, dilation, groups, depthwise, separable, transposed and all poolings, in two layouts."""
    layers = keras.layers
    stack = [
        layers.Conv2D(8, 3, strides=2, padding="same"), layers.Conv2D(8, 3, dilation_rate=2, groups=4),
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), layers.SeparableConv2D(6, 3, padding="same"),
        layers.Conv2DTranspose(4, 3, strides=2, padding="same"), layers.MaxPooling2D(3, 2, "same"),
        layers.AveragePooling2D(2, 1, "same"),
    ]  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 20, 19, 4)).astype(np.float32)
    model = keras.Sequential([keras.Input(x.shape[1:]), *stack])
    expected = model.predict(x, verbose=0)
    with patch() as patched:
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    report = patched.report()
    assert report.passed == {}
    assert report.ran == {"convolution": 6, "max_pool2d_with_indices": 1, "avg_pool2d": 1}


# ---------------------------------------------------------------- the NumPy backend

NUMPY = """
import json, sys
import numpy as np
from keras import ops
from keras.src.backend.numpy import nn
from fastconv.interop.keras import FUNCTIONS, patch

random = np.random.default_rng(0)
before = [getattr(nn, ours.__name__) for ours in FUNCTIONS]

def integers(*shape):
    return random.integers(-3, 4, shape).astype(np.float32)

def calls(n, layout):
    size = (9, 8, 7)[:n]
    x = integers(2, *size, 4) if layout == "channels_last" else integers(2, 4, *size)
    full, half, each, back = (integers(*[3] * n, *k) for k in ((4, 6), (2, 6), (4, 2), (6, 4)))
    yield ops.conv, (x, full, 2, "same", layout)
    yield ops.conv, (x, half, 1, "valid", layout, 2)
    if n < 3:
        yield ops.depthwise_conv, (x, each, [1] * n, "same", layout)
        yield ops.separable_conv, (x, each, integers(*[1] * n, 8, 5), [1] * n, "same", layout)
    for stride in (1, 2, 3):
        for padding in ("same", "valid"):
            yield ops.conv_transpose, (x, back, stride, padding, None, layout)
    yield ops.conv_transpose, (x, back, 2, "valid", 1, layout)
    yield ops.conv_transpose, (x, back, 1, "same", None, layout, 2)
    yield ops.max_pool, (x, 3, 2, "same", layout)
    yield ops.average_pool, (x, 2, 2, "valid", layout)
    yield ops.average_pool, (x, 3, 2, "same", layout)
    yield ops.adaptive_max_pool, (x, (3,) * n, layout)
    yield ops.adaptive_average_pool, (x, (3,) * n, layout)

wrong, ran = [], {}
for n in (1, 2, 3):
    for layout in ("channels_last", "channels_first"):
        for function, arguments in calls(n, layout):
            expected = function(*arguments)
            with patch() as patched:
                found = function(*arguments)
            report = patched.report()
            for name, count in report.ran.items():
                ran[name] = ran.get(name, 0) + count
            close = found.shape == expected.shape and np.allclose(found, expected, rtol=1e-5, atol=1e-4)
            if not close or report.passed or found.dtype != expected.dtype:
                wrong.append(f"{function.__name__} {n} {layout}")
with patch() as patched:
    ops.conv(np.ones((1, 5, 5, 2), np.int32), np.ones((3, 3, 2, 1), np.int32))
passed = [*patched.report().passed][0]
with patch(), patch():
    pass
undone = [getattr(nn, ours.__name__) for ours in FUNCTIONS] == before
print(json.dumps({"wrong": wrong, "ran": ran, "passed": passed, "undone": undone}))
"""


def run(*command: str, backend: str) -> str:
    """What a new process prints whose Keras has that backend."""
    options = [] if backend == "jax" else ["-W", "error", "-W", "ignore::DeprecationWarning"]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, *options, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_numpy_backend_computes_as_with_jax():
    pytest.importorskip("jax")
    found = json.loads(run("-c", NUMPY, backend="numpy").splitlines()[-1])
    assert found["wrong"] == []
    assert found["undone"]
    assert set(found["ran"]) == {function.__name__ for function in fastconv.interop.keras.FUNCTIONS}
    assert found["passed"][0] == "conv"
    assert "int32" in found["passed"][1]


def test_a_model_trained_on_torch_predicts_on_numpy(example, tmp_path):
    """The example, its second command; the first is `test_a_model_trains_as_it_does_without_the_patch`."""
    pytest.importorskip("jax")
    path = tmp_path / "digits.keras"
    accuracy = example["main"](str(path), count=128, epochs=1)
    printed = run(str(EXAMPLE), str(path), backend="numpy")
    assert "numpy backend" in printed
    assert "max_pool" in printed
    assert 0 <= accuracy <= 1


def test_other_backends_are_refused():
    pytest.importorskip("jax")
    code = (
        "import fastconv.interop.keras as k\n"
        "try: k.patch()\n"
        "except k.BackendError as error: print(error)"
    )  # fmt: skip
    assert "KERAS_BACKEND" in run("-c", code, backend="jax")

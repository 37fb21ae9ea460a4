"""Keras 3: the network of the course notes on the backend that KERAS_BACKEND names, unmodified under the patch."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
from keras import layers

from fastconv.benchmarks.dropins.measure import Program
from fastconv.interop.keras import patch


def network() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)), layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 4, padding="same", activation="relu"), layers.Conv2D(64, 4, activation="relu"),
            layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(50, activation="relu"),
            layers.Dense(20, activation="relu"), layers.Dense(10, activation="softmax"),
        ]
    )  # fmt: skip


def programs() -> Iterator[Program]:
    keras.utils.set_random_seed(0)
    model = network()
    x, labels = np.random.default_rng(0).random((64, 28, 28, 1), np.float32), np.arange(64) % 10
    name = f"the notes' network on {keras.config.backend()}, 64x28x28x1"
    yield Program(f"{name}, predict", lambda: [np.asarray(model.predict_on_batch(x))], patch)
    if keras.config.backend() == "torch":
        model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")  # the weights stay
        yield Program(f"{name}, training step", lambda: [np.asarray(model.train_on_batch(x, labels))], patch)

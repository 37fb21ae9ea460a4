"""Train a Keras 3 model on the torch backend, and let its NumPy backend predict, on fastconv.

    KERAS_BACKEND=torch python examples/train_keras_model.py digits.keras
    KERAS_BACKEND=numpy python examples/train_keras_model.py digits.keras

The first command trains on small images of made-up characters and keeps the best model in the file. The
second one reads the file and predicts: Keras's NumPy backend has no gradients.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras import layers

from fastconv.interop.keras import patch


def functional(dropout: float = 0.0) -> keras.Model:
    """Three convolutions, a pooling, three dense layers, put together by calling each on the one before."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(32, 4, padding="same", activation="relu")(x)
    x = layers.Conv2D(64, 4, activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    for units in (50, 20):
        x = layers.Dropout(dropout)(layers.Dense(units, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def sequential(dropout: float = 0.0) -> keras.Model:
    """The same layers as a list."""
    return keras.Sequential([keras.Input((28, 28, 1)), *functional(dropout).layers[1:]])


def characters(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten blocky characters, moved about and noisy: images [count, 28, 28, 1] and their labels."""
    random = np.random.default_rng(0)
    shapes = np.kron(random.integers(0, 2, (10, 5, 5)), np.ones((4, 4)))
    labels = random.integers(0, 10, count)
    images = 0.1 * random.random((count, 28, 28, 1), np.float32)
    for image, label, (row, column) in zip(images, labels, random.integers(0, 8, (count, 2)), strict=True):
        image[row : row + 20, column : column + 20, 0] += shapes[label]
    return images, labels


def train(model: keras.Model, path: str, images: np.ndarray, labels: np.ndarray, epochs: int) -> dict[str, list[float]]:
    """Adam on the cross-entropy, a quarter of the images held out; the best model goes to the file `path`."""
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    callbacks = [
        keras.callbacks.ModelCheckpoint(path, save_best_only=True),
        keras.callbacks.ReduceLROnPlateau(patience=2),
        keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True),
    ]
    fit = model.fit(images, labels, 32, epochs, verbose=0, callbacks=callbacks, validation_split=0.25)
    return fit.history


def main(path: str = "digits.keras", count: int = 512, epochs: int = 6) -> float:
    images, labels = characters(count)
    with patch() as patched:
        if keras.config.backend() == "torch":
            history = train(functional(dropout=0.1), path, images, labels, epochs)
            print("validation loss", *(f"{loss:.3f}" for loss in history["val_loss"]))
        model = keras.models.load_model(path)
        accuracy = float(np.mean(model.predict(images, verbose=0).argmax(1) == labels))
    print(f"{keras.config.backend()} backend: {accuracy:.1%} of {count} characters")
    print(patched.report())
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:])

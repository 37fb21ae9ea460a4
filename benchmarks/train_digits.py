"""Train a small convolutional network on real digit images, with fastconv's gradients.

    python -m fastconv.benchmarks.train_digits

The network is three convolutions with ReLU, a max pooling and three dense layers; the data are 1797 digits of 8x8
pixels. Every convolution and pooling, and the gradient of each, is fastconv's; the rest is NumPy, written out.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import fastconv

Array = np.ndarray
Data = tuple[Array, Array]  # images [N, 1, 8, 8] in 0..1, labels [N]
Params = dict[str, tuple[Array, Array]]  # layer -> (weights, bias)
Vjp = tuple[Array, Callable[[Array], Any]]  # y, and the pullback: dy -> dx or (dx, dw, dbias)


def dense_vjp(x: Array, w: Array, bias: Array) -> Vjp:
    return x @ w.T + bias, lambda dy: (dy @ w, dy.T @ x, dy.sum(axis=0))


def dense_relu_vjp(x: Array, w: Array, bias: Array) -> Vjp:
    y, pullback = dense_vjp(x, w, bias)
    return np.maximum(y, 0), lambda dy: pullback(dy * (y > 0))


def flatten_vjp(x: Array) -> Vjp:
    return x.reshape(len(x), -1), lambda dy: dy.reshape(x.shape)


def dropout_vjp(x: Array, rng: np.random.Generator | None, rate: float = 0.5) -> Vjp:
    """Inverted dropout: what stays is scaled up in training; without `rng`, afterwards, all of it stays as it is."""
    if rng is None:
        return x, lambda dy: dy
    mask = (rng.random(x.shape) >= rate).astype(x.dtype) / (1 - rate)
    return x * mask, lambda dy: dy * mask


conv_relu_vjp = partial(fastconv.conv2d_vjp, activation="relu")

#: Each layer's weights [outputs, inputs, window], if any, and its vjp.
LAYERS: dict[str, tuple[tuple[int, ...], Callable[..., Vjp]]] = {
    "conv1": ((16, 1, 3, 3), partial(conv_relu_vjp, padding="same")),
    "conv2": ((32, 16, 4, 4), partial(conv_relu_vjp, padding="same")),
    "conv3": ((64, 32, 4, 4), partial(conv_relu_vjp, padding="valid")),
    "pool": ((), partial(fastconv.max_pool2d_vjp, ksize=2)),
    "flatten": ((), flatten_vjp),
    "dropout": ((), dropout_vjp),
    "dense1": ((50, 256), dense_relu_vjp),
    "dense2": ((20, 50), dense_relu_vjp),
    "dense3": ((10, 20), dense_vjp),
}


def initialise(rng: np.random.Generator) -> Params:
    """Glorot's uniform weights, within sqrt(6 / (fan-in + fan-out)) of zero, and zero biases."""
    params = {}
    for name, (shape, _) in LAYERS.items():
        if shape:
            limit = math.sqrt(6 / ((shape[0] + shape[1]) * math.prod(shape[2:])))
            params[name] = rng.uniform(-limit, limit, shape).astype("float32"), np.zeros(shape[0], "float32")
    return params


def forward(params: Params, x: Array, rng: np.random.Generator | None = None) -> Vjp:
    """The logits of images x, and their pullback to the parameters; under dropout where `rng` is given."""
    tape, arguments = [], params | {"dropout": (rng,)}
    for name, (_, layer) in LAYERS.items():
        x, pullback = layer(x, *arguments.get(name, ()))
        tape.append((name, pullback))

    def backward(dy: Array) -> Params:
        grads = {}
        for name, pullback in reversed(tape):
            dy, *grads[name] = pullback(dy) if name in params else [pullback(dy)]
        return grads

    return x, backward


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean of -log softmax(logits)[label], and its gradient to the logits, (softmax - one_hot) / N."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    one_hot = np.eye(10, dtype=logits.dtype)[labels]
    return -float((log_softmax * one_hot).sum(axis=1).mean()), (np.exp(log_softmax) - one_hot) / len(labels)


class Adam:
    """Kingma, Ba: Adam, a method for stochastic optimization, 2015 (arXiv:1412.6980), algorithm 1."""

    def __init__(self, params: Params, beta1: float = 0.9, beta2: float = 0.999):
        self.beta1, self.beta2, self.step = beta1, beta2, 0
        self.moments = {name: [(np.zeros_like(a), np.zeros_like(a)) for a in pair] for name, pair in params.items()}

    def update(self, params: Params, grads: Params, rate: float) -> None:
        self.step += 1
        rate *= math.sqrt(1 - self.beta2**self.step) / (1 - self.beta1**self.step)
        for name in params:
            for value, grad, (mean, square) in zip(params[name], grads[name], self.moments[name], strict=True):
                mean += (1 - self.beta1) * (grad - mean)
                square += (1 - self.beta2) * (grad * grad - square)
                value -= rate * mean / (np.sqrt(square) + 1e-8)


def digits(seed: int) -> tuple[Data, Data, Data]:
    """Training (60 %), validation and test set (20 % each)."""
    data = load_digits()
    x, labels = (data.images[:, None] / 16).astype(np.float32), data.target
    x, x_test, labels, test = train_test_split(x, labels, test_size=0.2, stratify=labels, random_state=seed)
    x, x_valid, labels, valid = train_test_split(x, labels, test_size=0.25, stratify=labels, random_state=seed)
    return (x, labels), (x_valid, valid), (x_test, test)


def evaluate(params: Params, x: Array, labels: Array) -> tuple[float, float]:
    """Loss and accuracy."""
    logits, _ = forward(params, x)
    return cross_entropy(logits, labels)[0], float((logits.argmax(axis=1) == labels).mean())


def train(training: Data, validation: Data, epochs: int, seed: int) -> tuple[Params, list[tuple[float, float]]]:
    """The parameters after the epoch of least validation loss, and each epoch's (training, validation) loss."""
    rng = np.random.default_rng(seed)
    params = best = initialise(rng)
    adam, history = Adam(params), []
    progress = tqdm(range(epochs), unit="epoch", disable=None)
    for epoch in progress:
        losses, rate = [], 2e-3 * (1 - epoch / epochs)
        for chosen in np.split(rng.permutation(len(training[0])), range(32, len(training[0]), 32)):
            logits, backward = forward(params, training[0][chosen], rng)
            loss, grad = cross_entropy(logits, training[1][chosen])
            adam.update(params, backward(grad), rate)
            losses.append(loss)
        loss, accuracy = evaluate(params, *validation)
        if all(loss < earlier for _, earlier in history):
            best = {name: (w.copy(), bias.copy()) for name, (w, bias) in params.items()}
        history.append((float(np.mean(losses)), loss))
        progress.set_postfix(loss=f"{history[-1][0]:.3f}", validation=f"{accuracy:.1%}")
    return best, history


def mosaic(maps: Array) -> Array:
    """Maps [K, H, W], up to 16 in a row, as one image: each scaled to 0..1, NaN between them."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    scaled = np.pad((maps - low) / np.maximum(high - low, 1e-12), ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    rows = scaled.reshape(-1, min(len(maps), 16), *scaled.shape[1:])
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])[:-1, :-1]


def draw(params: Params, history: list[tuple[float, float]], image: Array, path: Path) -> None:
    """The loss curves; one digit; the first filters; and what each convolution makes of that digit."""
    x, pictures = image[None], {"digit": image, "conv1's filters": params["conv1"][0][:, 0]}
    for name in ("conv1", "conv2", "conv3"):
        x, _ = LAYERS[name][1](x, *params[name])
        pictures[f"{name}'s maps"] = x[0]
    figure = Figure(figsize=(11, 9), layout="constrained")
    top, bottom = figure.subfigures(2, height_ratios=(1, 2.2))
    curves, digit = top.subplots(1, 2, width_ratios=(3, 1))
    curves.plot(range(1, len(history) + 1), history, label=("training", "validation"))
    curves.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    curves.legend()
    panels = [digit, *bottom.subplots(4, height_ratios=(1, 1, 2, 4))]
    for axes, (title, maps) in zip(panels, pictures.items(), strict=True):
        axes.imshow(mosaic(maps), cmap="gray")
        axes.set_title(title, fontsize="medium")
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CNN on 8x8 digits with fastconv's gradients.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1, help="of the split, the first weights and the batches")
    parser.add_argument("--output", type=Path, default=Path("fastconv-report/digits.png"), help=".png, .svg or .pdf")
    args = parser.parse_args()
    training, validation, test = digits(args.seed)
    params, history = train(training, validation, args.epochs, args.seed)
    for name, (w, bias) in params.items():
        print(f"{name}  {'x'.join(map(str, w.shape)):10} {w.size + bias.size:6} parameters")
    draw(params, history, test[0][0], args.output)
    loss, accuracy = evaluate(params, *test)
    print(f"test accuracy {accuracy:.2%}, loss {loss:.3f}; loss curves and feature maps: {args.output}")


if __name__ == "__main__":
    main()

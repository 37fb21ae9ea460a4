"""HIPS autograd: a layer of its convolutional network on its own `convolve` and on `fastconv.interop.autograd`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import autograd.numpy
import numpy as np
from autograd import value_and_grad
from autograd.scipy.signal import convolve

from fastconv.benchmarks.dropins.measure import Program, Results
from fastconv.interop import autograd as fc


def own_conv2d(x: Any, w: Any) -> Any:
    """autograd's convolution flips the filter, and its w is [C, K, R, S]."""
    flipped = autograd.numpy.transpose(w[:, :, ::-1, ::-1], (1, 0, 2, 3))
    return convolve(x, flipped, axes=([2, 3], [2, 3]), dot_axes=([1], [0]), mode="valid")


def forward(conv2d: Callable[..., Any], x: Any, w: Any) -> Results:
    return [np.asarray(conv2d(x, w))]


def train(conv2d: Callable[..., Any], x: Any, w: Any) -> Results:
    loss, gradient = value_and_grad(lambda w: autograd.numpy.sum(autograd.numpy.maximum(conv2d(x, w), 0) ** 2))(w)
    return [np.asarray(loss), gradient]


def programs() -> Iterator[Program]:
    generator = np.random.default_rng(0)
    for c, k, size, n in ((1, 6, 28, 64), (6, 16, 12, 64)):
        x, w = generator.standard_normal((n, c, size, size)), generator.standard_normal((k, c, 5, 5))
        for work, step in (("forward", forward), ("training step", train)):
            name = f"5x5, {n}x{c}x{size}x{size} -> {k}, {work}"
            yield Program(name, partial(step, own_conv2d, x, w), ours=partial(step, fc.conv2d, x, w))

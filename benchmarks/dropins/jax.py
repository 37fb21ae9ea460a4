"""JAX: jitted layers and a training step of a small network, on `jax.lax` and on `fastconv.interop.jax`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastconv.benchmarks.dropins.measure import Program, Results
from fastconv.interop import jax as fc


def lax_conv2d(x: Any, w: Any, padding: int = 1, groups: int = 1) -> Any:
    around = [(padding, padding)] * 2
    return lax.conv_general_dilated(
        x, w, (1, 1), around, dimension_numbers=("NCHW", "OIHW", "NCHW"), feature_group_count=groups
    )


def lax_max_pool2d(x: Any, ksize: int) -> Any:
    window = (1, 1, ksize, ksize)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def fc_conv2d(x: Any, w: Any, padding: int = 1, groups: int = 1) -> Any:
    return fc.conv2d(x, w, padding=padding, groups=groups)


def network(conv2d: Callable[..., Any], max_pool2d: Callable[..., Any], weights: list[Any], x: Any) -> Any:
    *convs, dense = weights
    for w in convs:
        x = max_pool2d(jax.nn.relu(conv2d(x, w)), 2)
    return x.reshape(len(x), -1) @ dense


def loss(network: Callable[..., Any], weights: list[Any], x: Any) -> Any:
    scores = jax.nn.log_softmax(network(weights, x))
    return -scores[jnp.arange(len(x)), jnp.arange(len(x)) % 10].mean()


def results(function: Callable[..., Any], *operands: Any) -> Results:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(function(*operands))]


def programs() -> Iterator[Program]:
    def normal(*shape: int) -> Any:
        return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))

    def both(name: str, own: Callable[..., Any], ours: Callable[..., Any], *operands: Any) -> Program:
        own, ours = jax.jit(own), jax.jit(ours)
        return Program(name, partial(results, own, *operands), ours=partial(results, ours, *operands))

    x, w = normal(8, 64, 56, 56), normal(64, 64, 3, 3)
    yield both("3x3, 8x64x56x56 -> 64, forward", lax_conv2d, fc_conv2d, x, w)

    def gradients(conv2d: Callable[..., Any]) -> Callable[..., Any]:
        def step(x: Any, w: Any, dy: Any) -> Any:
            y, pullback = jax.vjp(conv2d, x, w)
            return y, *pullback(dy)

        return step

    yield both("3x3, 8x64x56x56 -> 64, training step", gradients(lax_conv2d), gradients(fc_conv2d), x, w, x)
    yield both("depthwise 3x3, 8x64x56x56, forward", partial(lax_conv2d, groups=64), partial(fc_conv2d, groups=64), x,
               normal(64, 1, 3, 3))  # fmt: skip
    yield both("max pool 2/2, 8x64x56x56, forward", partial(lax_max_pool2d, ksize=2), partial(fc.max_pool2d, ksize=2),
               x)  # fmt: skip
    weights = [normal(16, 1, 3, 3), normal(32, 16, 3, 3), normal(32 * 49, 10) * 0.01]
    steps = [
        jax.value_and_grad(partial(loss, partial(network, *functions)))
        for functions in ((lax_conv2d, lax_max_pool2d), (fc_conv2d, fc.max_pool2d))
    ]
    yield both("small CNN 64x1x28x28, training step", *steps, weights, normal(64, 1, 28, 28))
    yield both("tiny 3x3, 1x4x8x8 -> 4, forward", lax_conv2d, fc_conv2d, normal(1, 4, 8, 8), normal(4, 4, 3, 3))

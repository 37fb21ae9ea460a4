"""JAX, compiled by XLA: one jitted function per case, its gradients by JAX's own transformations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.benchmarks.cases import Case
from fastconv.benchmarks.peers.base import Absent, Contestant, Job, Refused
from fastconv.problem import ConvProblem, PoolProblem, SignalProblem

Array = np.ndarray


class Jax(Contestant):
    """On the CPU. JAX's arrays cannot be written to: a placed operand is a box with one in it."""

    platform, clock = "cpu", ""

    def version(self) -> str:
        try:
            import jax

            devices = jax.devices(self.platform)
            jax.config.update("jax_default_device", devices[0])
            jax.config.update("jax_enable_x64", True)
            jax.config.update("jax_default_matmul_precision", "highest")
        except (ImportError, RuntimeError) as error:
            raise Absent(f"JAX has no {self.platform} here ({error}): pip install jax") from error
        return f"jax {jax.__version__} (XLA), {devices[0].device_kind}{self.clock}"

    def place(self, case: Case, role: str, array: Array) -> list[Any]:
        import jax.numpy as jnp

        return [jnp.array(array)]

    def write(self, case: Case, role: str, operand: list[Any], array: Array) -> None:
        operand[:] = self.place(case, role, array)

    def bind(self, case: Case, given: Sequence[list[Any]]) -> Job:
        solve = _compiled(case)

        def run() -> Any:
            return solve(*(box[0] for box in given)).block_until_ready()

        return Job(run, np.asarray)


class JaxCuda(Jax):
    """On a GPU. XLA runs on a stream of its own, that no mark can be put in."""

    platform, clock = "cuda", ", by the clock on the wall, caches warm"


@lru_cache(maxsize=1)
def _compiled(case: Case) -> Callable[..., Any]:
    """Compiled when it is first called; other data does not compile anew."""
    import jax

    return jax.jit(_function(case))


def _function(case: Case) -> Callable[..., Any]:
    """The case as a function of its operands, to be jitted: what it does not need is dead code."""
    import jax
    import jax.numpy as jnp

    problem, dtype = case.problem, case.problem.dtype
    if isinstance(problem, SignalProblem):
        function = jax.scipy.signal.convolve if problem.flip else jax.scipy.signal.correlate
        return lambda in1, in2: function(in1, in2, problem.mode, problem.method)
    if isinstance(problem, PoolProblem):
        forward = _pool(case, problem)
        if case.pass_ == "fprop":
            return forward
        zeros = jnp.zeros(problem.dims("x"), dtype)
        return lambda dy, x=zeros: jax.vjp(forward, x)[1](dy)[0]
    shape = jax.ShapeDtypeStruct(problem.dims(case.result), dtype)
    if case.op == "conv_dgrad":
        return lambda dy, w: jax.linear_transpose(lambda x: _conv(problem, x, w), shape)(dy)[0]
    if case.op == "conv_wgrad":
        return lambda dy, x: jax.linear_transpose(lambda w: _conv(problem, x, w), shape)(dy)[0]
    return lambda x, w: _conv(problem, x, w)


def _conv(problem: ConvProblem, x: Any, w: Any) -> Any:
    import jax

    window = problem.window
    return jax.lax.conv_general_dilated(
        x, w, window.stride, window.pad, rhs_dilation=window.dilation, feature_group_count=problem.groups
    )


def _pool(case: Case, problem: PoolProblem) -> Callable[[Any], Any]:
    import jax
    import jax.numpy as jnp

    axes, most = tuple(range(2, 2 + problem.ndim)), case.layer.family == "maxpool"
    if problem.window is None:
        if set(problem.out) != {1}:
            raise Refused("JAX has no adaptive pooling but the global ones")
        return lambda x: (jnp.max if most else jnp.mean)(x, axes, keepdims=True)
    window = problem.window
    if window.rounding == "ceil" or problem.divisor is not None:
        raise Refused("JAX has neither ceil rounding nor a divisor")
    if most and case.pass_ == "dgrad" and max(window.dilation) > 1:
        raise Refused("JAX has no gradient of dilated max pooling")
    geometry = ((1, 1, *window.ksize), (1, 1, *window.stride), ((0, 0), (0, 0), *window.pad))
    dilation = (1, 1, *window.dilation)

    def fold(x: Any, start: float, step: Any) -> Any:
        return jax.lax.reduce_window(x, np.asarray(start, x.dtype)[()], step, *geometry, window_dilation=dilation)

    if most:
        return lambda x: fold(x, -np.inf, jax.lax.max)
    if problem.count_include_pad:
        return lambda x: fold(x, 0, jax.lax.add) / np.asarray(window.taps, x.dtype)
    return lambda x: fold(x, 0, jax.lax.add) / fold(jnp.ones_like(x), 0, jax.lax.add)

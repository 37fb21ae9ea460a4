"""What the convolution kernels are told: per axis, which cells of the source a result meets at each tap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastconv.backends.numba_cuda.launcher import channels_last, lifted
from fastconv.problem import ConvProblem

Ints = tuple[int, ...]


class Axis(NamedTuple):
    """One axis of a pass: result o reads the source cell ``o * step + start + t * reach`` at tap t.

    Tap t is the filter's cell ``first + t * apart``; result o lies at ``residue + o * spread``.
    """

    results: int
    source: int
    taps: int
    step: int
    start: int
    reach: int
    first: int = 0
    apart: int = 1
    residue: int = 0
    spread: int = 1

    @property
    def leaves_source(self) -> bool:
        """Whether some result meets no source cell at some tap."""
        ends = [o * self.step + self.start + t * self.reach for o in (0, self.results - 1) for t in (0, self.taps - 1)]
        return self.taps > 0 and (min(ends) < 0 or max(ends) >= self.source)


UNIT = Axis(1, 1, 1, 1, 0, 1)


def forward(problem: ConvProblem) -> tuple[Axis, ...]:
    """fprop, as one pass over x."""
    window = problem.window
    each = zip(problem.out, problem.size, window.ksize, window.stride, window.dilation, window.pad, strict=True)
    axes = tuple(Axis(out, size, k, s, -low, d) for out, size, k, s, d, (low, _) in each)
    return (UNIT,) * (3 - problem.ndim) + axes


def backward(problem: ConvProblem) -> Iterator[tuple[Axis, ...]]:
    """dgrad, as one pass over dy for each residue of dx's cells modulo the stride."""
    window = problem.window
    each = zip(problem.out, problem.size, window.ksize, window.stride, window.dilation, window.pad, strict=True)
    choices = [[UNIT]] * (3 - problem.ndim) + [_residues(*axis) for axis in each]
    yield from itertools.product(*choices)


def _residues(out: int, size: int, k: int, s: int, d: int, pad: tuple[int, int]) -> list[Axis]:
    """Cell ``a + o * s`` meets output ``(a + o * s + low - r * d) / s`` where that is whole."""
    low = pad[0]
    apart = s // math.gcd(s, d)  # of the taps that meet one residue
    axes = []
    for a in range(min(s, size)):
        met = [r for r in range(min(apart, k)) if (a + low - r * d) % s == 0]
        taps = range(met[0], k, apart) if met else range(0)
        start = (a + low - taps.start * d) // s
        axes.append(Axis(-(-(size - a) // s), out, len(taps), 1, start, -(apart * d // s), taps.start, apart, a, s))
    return axes


def gather_geometry(
    problem: ConvProblem, axes: tuple[Axis, ...], is_forward: bool, y: Any, x: Any, w: Any, bias: Any
) -> Ints:
    """The geometry of a `gather` kernel, as it unpacks it: y is the result and x the source, of either pass."""
    yn, yk, *y_steps = lifted(y)
    xn, xc, *x_steps = lifted(x)
    wk, wc, *w_steps = lifted(w)
    G = problem.groups
    M, C = problem.K // G, problem.C // G
    wg, wm, wr = wk * M, wk, wc
    if not is_forward:
        M, C, wm, wr = C, M, wc, wk
    y0 = sum(axis.residue * step for axis, step in zip(axes, y_steps, strict=True))
    w0 = sum(axis.first * step for axis, step in zip(axes, w_steps, strict=True))
    return (
        problem.N, G, M, C, channels_last(y),
        *(axis.results for axis in axes), *(axis.source for axis in axes), *(axis.taps for axis in axes),
        *(axis.step for axis in axes), *(axis.start for axis in axes), *(axis.reach for axis in axes),
        y0, yn, yk, *(axis.spread * step for axis, step in zip(axes, y_steps, strict=True)),
        xn, xc, *x_steps, w0, wg, wm, wr, *(axis.apart * step for axis, step in zip(axes, w_steps, strict=True)),
        0 if bias is None else bias.strides[0] // bias.dtype.itemsize,
    )  # fmt: skip


def wgrad_geometry(problem: ConvProblem, dw_steps: Ints, dy: Any, x: Any) -> Ints:
    """The geometry of a `wgrad` kernel, as it unpacks it."""
    axes, G = forward(problem), problem.groups
    return (
        problem.N, G, problem.K // G, problem.C // G,
        *(axis.results for axis in axes), *(axis.source for axis in axes), *(axis.taps for axis in axes),
        *(axis.step for axis in axes), *(-axis.start for axis in axes), *(axis.reach for axis in axes),
        *dw_steps, *lifted(dy), *lifted(x),
    )  # fmt: skip

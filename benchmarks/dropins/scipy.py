"""SciPy: its functions of signals and ours in their place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.signal

import fastconv
from fastconv.benchmarks.dropins.measure import Program


def programs() -> Iterator[Program]:
    generator = np.random.default_rng(0)
    for name, size, ksize, rest in (
        ("correlate2d", (512, 512), (15, 15), ("same", "symm")),
        ("convolve2d", (512, 512), (3, 3), ("same", "fill")),
        ("correlate", (1_000_000,), (1000,), ("same",)),
        ("correlate", (1024, 1024), (5, 5), ("same",)),
        ("correlate", (1024, 1024), (64, 64), ("same",)),
        ("correlate", (64, 64, 64), (9, 9, 9), ("same",)),
        ("convolve", (200,), (20,), ("full",)),
    ):
        a, v = (generator.standard_normal(shape, np.float32) for shape in (size, ksize))
        own, ours = getattr(scipy.signal, name), getattr(fastconv, name)
        shapes = " with ".join("x".join(map(str, shape)) for shape in (size, ksize))
        yield Program(
            f"{name} {shapes}, {', '.join(rest)}",
            lambda own=own, a=a, v=v, rest=rest: [own(a, v, *rest)],
            ours=lambda ours=ours, a=a, v=v, rest=rest: [ours(a, v, *rest)],
        )

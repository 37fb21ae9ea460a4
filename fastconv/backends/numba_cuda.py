"""The seam of the `numba` backend: Numba CUDA kernels will live in ``kernels/numba_cuda``."""

from __future__ import annotations

from fastconv.backends.base import Unbuilt

backend = Unbuilt("numba", ("cuda", "numpy"), "this release has no Numba CUDA kernels yet; use backend='cpu'")

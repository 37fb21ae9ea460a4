"""The seam of the `raw` backend: CUDA C++ kernels will live in ``kernels/cuda``."""

from __future__ import annotations

from fastconv.backends.base import Unbuilt

backend = Unbuilt("raw", ("cuda", "numpy"), "this release has no CUDA C++ kernels yet; use backend='cpu'")

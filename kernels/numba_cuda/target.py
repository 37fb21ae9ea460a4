"""The CUDA target of Numba that the kernels are written for.

`numba.cuda`, of the package numba-cuda or of Numba's simulator (``NUMBA_ENABLE_CUDASIM=1``). Where the
successor numba-cuda-mlir is installed and numba-cuda is not, that one. Kernels use what both have.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

if not SIMULATED and importlib.util.find_spec("numba_cuda_mlir") and not importlib.util.find_spec("numba_cuda"):
    from numba_cuda_mlir import cuda, types
else:
    from numba import cuda, types

__all__ = ["SIMULATED", "cuda", "device", "types"]


def device(function: Any) -> Any:
    """A function that kernels call. The simulator runs it as Python, without the cost of its own wrapper."""
    return function if SIMULATED else cuda.jit(device=True)(function)

"""The CUDA target of Numba that the kernels are written for.

`numba.cuda`, of the package numba-cuda or of Numba's simulator (``NUMBA_ENABLE_CUDASIM=1``). Where the
successor numba-cuda-mlir is installed and numba-cuda is not, that one. Kernels use what both have.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

if not SIMULATED and importlib.util.find_spec("numba_cuda_mlir") and not importlib.util.find_spec("numba_cuda"):
    from numba_cuda_mlir import cuda, types
else:
    from numba import cuda, types

__all__ = ["SIMULATED", "bits_of", "cuda", "device", "float_of", "types"]

if SIMULATED:

    def float_of(bits: Any) -> Any:
        """The float32 with the bits of an int32."""
        return bits.view(np.float32)

    def bits_of(value: Any) -> Any:
        """The bits of a float32, as an int32."""
        return value.view(np.int32)

else:
    float_of, bits_of = cuda.libdevice.int_as_float, cuda.libdevice.float_as_int


def device(function: Any) -> Any:
    """A function that kernels call. The simulator runs it as Python, without the cost of its own wrapper."""
    return function if SIMULATED else cuda.jit(device=True)(function)

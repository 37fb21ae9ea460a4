"""The `numba` backend in Numba's CUDA simulator: the test bodies of all backends, on small problems.

Numba decides once per process whether it simulates, so each selection runs in a process of its own. There a CUDA
thread is a Python thread: the problems are those that a GPU would finish before it had started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SLOW = "mid or stem or large_kernel or row or column or conv3d or 1d_long or bytes or precision or fused"
FEW = "dense or depthwise_multiplier or grouped_strided or nhwc_ohwi or bias_relu"
SHAPES = f"{FEW} or strided or dilated or asymmetric or unbatched or conv1d or nchw_hwio or empty_batch"
WINDOWS = "halve or overlap or ceil_padded or dilated or exclude_pad or pool3d or adaptive_nhwc or empty_batch"

#: What runs: the file, and which of its tests.
SELECTIONS = {
    "conv_fprop": ("test_exact.py", f"test_conv and conv_fprop and float32 and ({SHAPES}) and not ({SLOW})"),
    "conv_dgrad": ("test_exact.py", f"test_conv and conv_dgrad and float32 and ({SHAPES}) and not ({SLOW})"),
    "conv_wgrad": ("test_exact.py", f"test_conv and conv_wgrad and float32 and ({SHAPES}) and not ({SLOW})"),
    "conv_dtypes": ("test_exact.py", f"test_conv and not float32 and (dense or nhwc_ohwi) and not ({SLOW})"),
    "conv_bytes": ("test_exact.py", f"test_conv_of_bytes and dtypes2 and ({FEW}) and not mid"),
    "activations": (
        "test_exact.py",
        "test_activation and (gelu-float32 or silu-bfloat16 or relu6-float16 or tanh-float64) or bias_grad and not mid",
    ),
    "max_pool": ("test_exact.py", f"test_max_pool and ({WINDOWS}) and (16 or float32 or int8 or int64)"),
    "avg_pool": ("test_exact.py", f"test_avg_pool and ({WINDOWS} or divisor)"),
    "lp_pool": ("test_exact.py", f"test_lp_pool and ({WINDOWS}) and (3.0 or 0.5) and not float16"),
    "max_unpool": ("test_exact.py", "test_max_unpool"),
    "adjoint": ("test_adjoint.py", f"(vjp or pool) and not ({SLOW}) or test_signal and (2d_row or 3d or 0d)"),
    "nonfinite": ("test_nonfinite.py", f"not ({SLOW}) and not wgrad"),
    "signal": (
        "test_signal.py",
        "test_direct and (2d_larger or 4d) or integers and direct or bools and direct or lists or test_out"
        " or strided_views and direct or mixed",
    ),
    # Indices are checked by a kernel, whose import takes longer than a refusal may: see test_numba_algorithms.py.
    "errors": ("test_errors.py", "(pool or groups or bias) and not (range or negative)"),
    "algorithms": ("test_numba_algorithms.py", ""),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_simulated(name):
    file, expression = SELECTIONS[name]
    selected = f"numba and ({expression})" if expression else "numba"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-rf", f"tests/{file}", "-k", selected]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ, NUMBA_ENABLE_CUDASIM="1"), capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        pytest.fail(f"NUMBA_ENABLE_CUDASIM=1 {' '.join(command)}\n{done.stdout[-8000:]}{done.stderr[-2000:]}", False)

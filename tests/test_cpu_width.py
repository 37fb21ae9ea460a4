"""The cpu backend's kernels at narrower vectors than this machine's: AVX2's 32 bytes and SSE's 16."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

RUN = """
import sys
from fastconv.kernels.numba_cpu import simd
from fastconv.testing import cases, selftest
assert simd.VECTOR_BYTES == int(sys.argv[1]), simd.VECTOR_BYTES
for word in sys.argv[2:]:
    op, name = word.split(":")
    if op.startswith("conv"):
        selftest.conv_bounded("cpu", op, cases.conv(name))
    else:
        selftest.check_maxpool("cpu", op, cases.pool(name))
print("right")
"""

FORWARD = "conv_fprop:mid_3x3_bias_relu", "conv_fprop:mid_1x1", "conv_dgrad:mid_depthwise", "max_pool:mid_overlap"
STRIPS = "conv_dgrad:mid_stem", "conv_fprop:mid_grouped", "conv_wgrad:mid_stem", "conv_wgrad:mid_grouped"
CHANNELS = ("conv_dgrad:mid_depthwise_nhwc",)
WGRAD = "conv_wgrad:mid_3x3_bias_relu", "conv_wgrad:mid_depthwise", "conv_wgrad:mid_strided"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are names of x86 processors")
@pytest.mark.parametrize(
    ("name", "features", "width", "checks"),
    [
        ("haswell", "+sse4.2,+avx,+avx2,+fma,+f16c", 32, (*FORWARD, *STRIPS, *WGRAD, *CHANNELS)),
        ("x86-64", "+sse4.2", 16, (*FORWARD, *STRIPS, *CHANNELS)),
    ],
)
def test_width(name, features, width, checks):
    """The same bounds hold in a process whose kernels are compiled for another processor."""
    environment = dict(os.environ, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    command = [sys.executable, "-c", RUN, str(width), *checks]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == "right", done.stderr

"""The raw backend's kernels under the emulator's checks, threads in a shuffled order: no access that CUDA forbids."""

from __future__ import annotations

import pytest

from fastconv.testing import emulator, selftest

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

#: The first case of every op, and dense convolutions that fill the tiles of the faster algorithms.
FIRST = {check.op: check.case for check in reversed(list(selftest.checks()))}
TILED = [
    (op, f"conv2d n=1 c=16 size=9x7 k=24 ksize=3x3 pad=1x1 layout={layout} dtype={dtype}")
    for op in ("conv_fprop", "conv_dgrad", "conv_wgrad")
    for layout, dtype in (("NHWC", "float16"), ("NCHW", "float32"), ("NCHW", "float64"))
]
STRIPS = [
    (op, f"conv2d n=1 c=16 size=9x19 k=16 ksize=3x5 pad=1x2 stride=2 groups=16 layout={layout} dtype={dtype}")
    for op in ("conv_fprop", "conv_dgrad")
    for layout, dtype in (("NHWC", "float16"), ("NCHW", "float32"))
]
ONE_PASS = [
    ("conv_wgrad", f"conv2d n=2 c=16 size=9x19 k=16 ksize=5 pad=2 stride=2 groups=16 layout={layout} dtype={dtype}")
    for layout, dtype in (("NHWC", "float16"), ("NCHW", "float32"))
] + [("conv_wgrad", "conv1d n=2 c=8 size=21 k=8 ksize=4 pad=3:0 groups=8 layout=NHWC dtype=float32")]
CHECKED = emulator.EmulatedDevice(sanitize=True, seed=7)


@pytest.mark.parametrize(("op", "case"), [*FIRST.items(), *TILED, *STRIPS, *ONE_PASS])
def test_kernels_pass_every_check(op, case):
    with emulator.using(CHECKED):
        selftest.replay("raw", op, case)

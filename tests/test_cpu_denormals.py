"""No convolution multiplies what scratch memory held before: denormals there would cost a hundredfold.

What is computed in idle lanes reaches no result, so that no comparison of results can tell. The processor does: it
keeps a flag of denormal operands.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import sys

import numba
import numpy as np
import pytest

import fastconv
from fastconv.backends.cpu import workspace

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="reads the MXCSR register as glibc saves it"
)
MXCSR, DENORMAL = 28, 0x02  # its place in fenv_t, and the flag


class Flags:
    """The floating-point flags of this thread."""

    def __init__(self):
        self.libm = ctypes.CDLL(ctypes.util.find_library("m"))
        self.environment = (ctypes.c_uint8 * 32)()

    def clear(self):
        self.libm.feclearexcept(0x3F)
        self.libm.fegetenv(self.environment)
        self.environment[MXCSR] &= ~DENORMAL
        self.libm.fesetenv(self.environment)

    def denormal(self):
        self.libm.fegetenv(self.environment)
        return bool(self.environment[MXCSR] & DENORMAL)


@pytest.fixture
def flags():
    threads = numba.get_num_threads()
    fastconv.set_num_threads(1)  # the calling one, whose flags these are
    yield Flags()
    fastconv.set_num_threads(threads)


def poison():
    for slot in vars(workspace._local):
        kept = getattr(workspace._local, slot).array
        kept[: kept.size // 8 * 8].view(np.uint64)[:] = 0x0000000100000001  # denormal in every float


def test_the_flag_tells(flags):
    flags.clear()
    assert not flags.denormal()
    tiny = np.full(64, 1e-40, np.float32)
    assert (tiny * np.float32(0.5)).any()
    assert flags.denormal()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("c", "k", "size", "ksize", "stride", "groups"),
    [
        (64, 100, 13, 1, 1, 1),
        (30, 61, 14, 3, 2, 1),
        (33, 33, 21, 3, 1, 1),
        (33, 34, 21, 5, 1, 1),
        (3, 61, 55, 7, 2, 1),
        (128, 128, 15, 3, 1, 32),
        (65, 65, 21, 3, 1, 65),
        (65, 65, 21, 3, 2, 65),
    ],
)
def test_convolution(flags, dtype, layout, c, k, size, ksize, stride, groups):
    rng = np.random.default_rng(0)
    if layout == "NCHW":
        x = rng.uniform(1, 2, (2, c, size, size)).astype(dtype)
        w = rng.uniform(1, 2, (k, c // groups, ksize, ksize)).astype(dtype)
    else:
        x = rng.uniform(1, 2, (2, size, size, c)).astype(dtype)
        w = rng.uniform(1, 2, (ksize, ksize, c // groups, k)).astype(dtype)
    rest = {"stride": stride, "padding": ksize // 2, "groups": groups, "layout": layout}
    dy = np.ones_like(fastconv.conv2d(x, w, **rest))
    calls = [
        lambda: fastconv.conv2d(x, w, **rest),
        lambda: fastconv.conv2d_dgrad(dy, w, x.shape, **rest),
        lambda: fastconv.conv2d_wgrad(dy, x, w.shape, **rest),
    ]
    for call in calls:
        call()  # its scratch memory is there from here on
        poison()
        flags.clear()
        call()
        assert not flags.denormal()

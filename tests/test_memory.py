"""Peak memory: a call needs its inputs, its output and at most 64 MB per thread, never a whole im2col."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from fastconv.testing import cases

LIMIT = 64 * 2**20

#: Layers whose im2col matrix would take several times the limit of two threads.
LAYERS = {
    "vgg": "conv2d n=1 c=64 size=256 k=64 ksize=3 pad=1",
    "5x5": "conv2d n=2 c=32 size=160 k=32 ksize=5 pad=2",
    "depthwise": "conv2d n=4 c=64 size=128 k=64 ksize=7 pad=3 groups=64",
    "dilated": "conv2d n=1 c=64 size=256 k=32 ksize=3 pad=4 dilation=4",
    "strided": "conv2d n=2 c=48 size=255 k=48 ksize=5 stride=2 pad=2",
    "1d": "conv1d n=4 c=64 size=30000 k=64 ksize=9 pad=4",
    "3d": "conv3d n=1 c=16 size=40x64x64 k=16 ksize=3 pad=1",
    "nhwc": "conv2d n=1 c=64 size=256 k=64 ksize=3 pad=1 layout=NHWC",
}
OPS = ("conv_fprop", "conv_dgrad", "conv_wgrad", "conv_transpose")


def im2col_bytes(problem):
    return problem.N * problem.C * problem.window.taps * math.prod(problem.out) * 4


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("op", OPS)
def test_no_whole_im2col(op, name):
    """NumPy's allocations, as tracemalloc sees them, beside the inputs; the output is given."""
    problem = cases.ConvProblem.parse(LAYERS[name])
    threads = int(os.environ.get("NUMBA_NUM_THREADS", os.cpu_count() or 1))
    operands = [
        None if role.endswith("bias") else np.ones(problem.shape(role), np.float32) for role in cases.CONV_OPERANDS[op]
    ]
    assert im2col_bytes(problem) > 2 * LIMIT
    role = {"conv_fprop": "y", "conv_wgrad": "w"}.get(op, "x")
    out = np.empty(problem.shape(role), np.float32)
    tracemalloc.start()
    cases.conv_call(op, problem, operands, out=out, backend="cpu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= threads * LIMIT, f"{peak / 2**20:.0f} MB for {op} of {problem}"


RESIDENT = """
import numpy as np, resource, sys
from fastconv.testing import cases
op, line, small = sys.argv[1:]
def run(text):
    problem = cases.ConvProblem.parse(text)
    roles = cases.CONV_OPERANDS[op]
    operands = [None if role.endswith("bias") else np.ones(problem.shape(role), np.float32) for role in roles]
    result = cases.conv_call(op, problem, operands, backend="cpu")
    return sum(a.nbytes for a in (*operands, result) if a is not None)
run(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
data = run(line)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before - data)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux only")
@pytest.mark.parametrize("name", ["vgg", "depthwise"])
@pytest.mark.parametrize("op", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
def test_resident_memory(op, name):
    """The whole process, native allocations too: what a large layer adds to a small one of its kind."""
    small = LAYERS[name].replace("size=256", "size=28").replace("size=128", "size=16")
    command = [sys.executable, "-c", RESIDENT, op, LAYERS[name], small]
    environment = dict(os.environ, NUMBA_NUM_THREADS="2")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 2 * LIMIT, f"{float(done.stdout) / 2**20:.0f} MB for {op} of {LAYERS[name]}"

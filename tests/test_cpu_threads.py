"""The cpu backend in several threads, after a fork, with fewer threads, and in a second process."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

import fastconv
from fastconv import dispatch
from fastconv.testing import warmup

#: A depthwise problem compiles quickly and is no tiny one.
SETUP = """
import os, threading, numpy as np, fastconv
x, w = np.random.default_rng(0).standard_normal((2, 64, 64, 64)).astype("f"), np.ones((64, 1, 3, 3), "f")
def call(**options): return fastconv.conv2d(x, w, padding=1, groups=64, **options)
y = call()
"""


RECORDER = """
from numba.core import event
seen = event.RecordingListener()
event.register("numba:compile", seen)
"""


def fresh(code: str, before: str = "", **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", before + SETUP + code]
    return subprocess.run(command, env=dict(os.environ, **environment), capture_output=True, text=True, timeout=300)


THREADS = """
results = []
threads = [threading.Thread(target=lambda: results.extend(call() for _ in range(10))) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(results), all(np.array_equal(result, y) for result in results))
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_calls_from_several_threads(layer):
    """Also on the layer that takes one call at a time, which is warned of once."""
    done = fresh(THREADS, NUMBA_THREADING_LAYER=layer)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"Numba has no layer {layer} here")
    assert done.stdout.split() == ["40", "True"], done.stderr
    assert done.stderr.count("workqueue only") == (layer == "workqueue")


FORK = """
child = os.fork()
if child == 0:
    try: print("same", np.array_equal(call(), y), flush=True)
    except fastconv.BackendError as error: print("refused", "spawn" in str(error), flush=True)
    os._exit(0)
print("status", os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_after_fork(layer):
    """The child computes, or is told why it cannot; it is never killed."""
    done = fresh(FORK, NUMBA_THREADING_LAYER=layer)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"Numba has no layer {layer} here")
    words = done.stdout.split()
    assert words[1] == "True", done.stderr
    assert words[2:] == ["status", "0"]
    if layer == "workqueue":
        assert words[0] == "same"


def test_second_process_compiles_nothing(tmp_path):
    """What the first process left in the cache folder is all that the second one needs."""
    folder = {"FASTCONV_CACHE_DIR": str(tmp_path)}
    assert fresh("", **folder).returncode == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "numba_cpu").iterdir()}
    assert files
    done = fresh("print([str(event) for _, event in seen.buffer])", RECORDER, **folder)
    assert done.stdout.strip() == "[]", done.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "numba_cpu").iterdir()} == files


def test_set_num_threads():
    """A thin name for Numba's; the bits do not depend on it."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 32, 30, 31), np.float32), rng.standard_normal((40, 32, 3, 3), np.float32)
    most = numba.get_num_threads()
    results = []
    try:
        for count in (1, most):
            fastconv.set_num_threads(count)
            assert numba.get_num_threads() == count
            results.append(fastconv.conv2d(x, w, padding=1))
    finally:
        numba.set_num_threads(most)
    assert np.array_equal(*results)
    for bad in (0, -1, numba.config.NUMBA_NUM_THREADS + 1):
        with pytest.raises(fastconv.ShapeError, match="NUMBA_NUM_THREADS"):
            fastconv.set_num_threads(bad)
    with pytest.raises(fastconv.DTypeError):
        fastconv.set_num_threads(1.5)


def test_warmup_reaches_what_compiles():
    """The rule takes no algorithm that compiles nothing for its problems, and all that compile something."""
    chosen = {dispatch.select(op, problem, "numpy", "cpu").algorithm for op, problem in warmup.todo(["float32"])}
    assert {"gemm", "winograd", "depthwise"} <= chosen
    assert "small" not in chosen

"""What all tests share: the backends that can run here, and a profile for hypothesis.

`raw` runs on the host emulator where there is a C++ compiler. On a machine with a GPU, both GPU backends run there
too, on CuPy arrays; ``-m gpu`` runs those alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

import fastconv
from fastconv.backends.raw import cupy_device
from fastconv.testing import emulator, gpu

HAS_GPU = cupy_device.unavailable() is None
AVAILABLE = ["reference", "cpu", *(["raw"] if emulator.unavailable() is None else [])]
ON_GPU = [pytest.param(f"{name} on gpu", marks=pytest.mark.gpu) for name in gpu.GPU_BACKENDS if HAS_GPU]
EMULATED = emulator.EmulatedDevice()

#: The libraries that fastconv drops into: the extra `interop` of pyproject.toml.
INTEROP = ("torch", "keras", "jax", "autograd", "dask", "distributed", "sigpy", "onnx", "onnxruntime")
if_installed = pytest.importorskip


def required(name: str, *args: Any, **kwargs: Any) -> Any:
    """`pytest.importorskip` where all of `INTEROP` must be there, as in CI: their tests run or fail."""
    try:
        return if_installed(name, *args, **kwargs)
    except pytest.skip.Exception as skipped:
        if name.partition(".")[0] in INTEROP:
            pytest.fail(f"FASTCONV_REQUIRE_INTEROP is set: {skipped}", pytrace=False)
        raise


if os.environ.get("FASTCONV_REQUIRE_INTEROP"):
    pytest.importorskip = required

hypothesis.settings.register_profile("fastconv", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("fastconv")


@pytest.fixture(params=[*AVAILABLE, *ON_GPU])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend that can run here; the same test body runs on each."""
    if request.param == "raw":
        with emulator.using(EMULATED):
            yield request.param
    elif request.param.endswith(" on gpu"):
        with gpu.through_gpu():
            yield request.param.partition(" ")[0]
    else:
        yield request.param


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch):
    """No test inherits a choice of backend or of tuning from the environment, and none leaves one behind."""
    for name in ("FASTCONV_BACKEND", "FASTCONV_AUTOTUNE"):
        monkeypatch.delenv(name, raising=False)
    yield
    fastconv.set_backend(None)
    fastconv.set_autotune(None)

"""What all tests share: the backends that can run here, and a profile for hypothesis.

`raw` runs on the host emulator where there is a C++ compiler. On a machine with a GPU, both GPU backends run there
too, on CuPy arrays; ``-m gpu`` runs those alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

import fastconv
from fastconv.backends.raw import cupy_device
from fastconv.testing import emulator, gpu

HAS_GPU = cupy_device.unavailable() is None
AVAILABLE = ["reference", "cpu", *(["raw"] if emulator.unavailable() is None else [])]
ON_GPU = [pytest.param(f"{name} on gpu", marks=pytest.mark.gpu) for name in gpu.GPU_BACKENDS if HAS_GPU]
EMULATED = emulator.EmulatedDevice()

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

"""What all tests share: the backends that can run here, and a profile for hypothesis.

`raw` runs on the host emulator where there is a C++ compiler; with ``-m gpu`` on the GPU (tests/test_gpu.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

import fastconv
from fastconv.testing import emulator

AVAILABLE = ["reference", "cpu", *(["raw"] if emulator.unavailable() is None else [])]
EMULATED = emulator.EmulatedDevice()

hypothesis.settings.register_profile("fastconv", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("fastconv")


@pytest.fixture(params=AVAILABLE)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend that can run here; the same test body runs on each."""
    if request.param == "raw":
        with emulator.using(EMULATED):
            yield request.param
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

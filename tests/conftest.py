"""What all tests share: the backends that this machine has, and a profile for hypothesis."""

from __future__ import annotations

import hypothesis
import pytest

import fastconv

AVAILABLE = [name for name, available, _ in fastconv.backends() if available]

hypothesis.settings.register_profile("fastconv", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("fastconv")


@pytest.fixture(params=AVAILABLE)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that can run here; the same test body runs on each."""
    return request.param


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch):
    """No test inherits a choice of backend or of tuning from the environment, and none leaves one behind."""
    for name in ("FASTCONV_BACKEND", "FASTCONV_AUTOTUNE"):
        monkeypatch.delenv(name, raising=False)
    yield
    fastconv.set_backend(None)
    fastconv.set_autotune(None)

"""What all tests share: the backends that can run here, and a profile for hypothesis.

`raw` runs on the host emulator where there is a C++ compiler, on smaller problems of the same names. A process with
``NUMBA_ENABLE_CUDASIM=1`` has `numba` alone, in Numba's simulator: tests/test_numba_simulator.py starts some. On a
machine with a GPU, both GPU backends run there too, on CuPy arrays; ``-m gpu`` runs those alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

import fastconv
from fastconv.backends.numba_cuda.simulator import simulated
from fastconv.backends.raw import cupy_device
from fastconv.testing import cases, emulator, gpu

HAS_GPU = cupy_device.unavailable() is None
AVAILABLE = ["reference", "cpu", *(["raw"] if emulator.unavailable() is None else [])]
if simulated():
    AVAILABLE = ["numba"]
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
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every backend that can run here; the same test body runs on each."""
    if request.param == "raw":
        monkeypatch.setattr(cases, "CONV_MID", cases.CONV_MID_EMULATED)
        with emulator.using(EMULATED):
            yield request.param
    elif request.param.endswith(" on gpu"):
        with gpu.through_gpu():
            yield request.param.partition(" ")[0]
    else:
        yield request.param


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch):
    """No test inherits a choice of backend or of tuning from the environment, and none leaves one behind.

    Nor a mode of another library: the benchmark's peers set theirs for a process of their own.
    """
    for name in ("FASTCONV_BACKEND", "FASTCONV_AUTOTUNE"):
        monkeypatch.delenv(name, raising=False)
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    grad, x64 = torch is None or torch.is_grad_enabled(), jax is not None and jax.config.jax_enable_x64
    yield
    fastconv.set_backend(None)
    fastconv.set_autotune(None)
    if torch := sys.modules.get("torch"):
        torch.set_grad_enabled(grad)
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_enable_x64", x64)


class MadeUp:
    """Benchmark runs as if they had been measured, for the tests of what is made of them."""

    @staticmethod
    def measured(seconds, **changes):
        """An outcome: that time, whatever else `changes` say."""
        from fastconv.benchmarks.runner import Outcome
        from fastconv.testing.timing import Timing

        timing = Timing.of([[seconds, seconds * 1.1], [seconds * 0.9, seconds]])
        figures = {"first": 0.1, "error": 0.3, "tolerance": 1e-5, "warm": seconds, "cold": 2 * seconds, "memory": 2**20}
        return Outcome(timing=timing, **figures | changes)

    def run_of(self, suites, peers=(), speed=1.0, **changes):
        """A run: torch half as fast, torch-nhwc equal and without dgrad, onnxruntime a third as fast."""
        from fastconv.benchmarks.limits import Limits
        from fastconv.benchmarks.runner import Outcome, Row, Run, Settings

        settings, rows = Settings(suites=suites, peers=peers), []
        for case in settings.cases():
            seconds = 1e-6 + case.flops / 50e9 + case.nbytes / 10e9
            outcomes = {"fastconv.cpu": self.measured(seconds / speed, note="gemm")}
            if "torch" in peers:
                outcomes["torch"] = self.measured(2 * seconds)
                refusal = Outcome("refused", "no <such> call & no other")
                outcomes["torch-nhwc"] = refusal if case.pass_ == "dgrad" else self.measured(seconds)
            if "onnxruntime" in peers:
                refusal = Outcome("refused", "ONNX has no operators for gradients")
                outcomes["onnxruntime"] = self.measured(3 * seconds) if case.pass_ == "fprop" else refusal
            rows.append(Row(case, outcomes))
        contestants = {name: name for name in settings.contestants()}
        return Run(settings, rows, Limits(100e9, 20e9), contestants, {}, 12.0, **changes)


@pytest.fixture(scope="session")
def made_up() -> MadeUp:
    return MadeUp()

"""CUDA C++ kernels on the CPU: the same ``.cu`` files, compiled by g++ and run with all their threads and barriers."""

from fastconv.testing.emulator.build import unavailable
from fastconv.testing.emulator.device import (
    EmulatedDevice,
    EmulatorError,
    Traffic,
    assert_same_under_schedules,
    emulated_gpu,
    using,
)

__all__ = [
    "EmulatedDevice",
    "EmulatorError",
    "Traffic",
    "assert_same_under_schedules",
    "emulated_gpu",
    "unavailable",
    "using",
]

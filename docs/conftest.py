"""Pages whose examples cannot run here are left out."""

from fastconv.testing import emulator

collect_ignore = [] if emulator.unavailable() is None else ["emulator.md"]

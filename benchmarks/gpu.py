"""Everything a GPU has to show, in one command: ``make gpu``, or ``python -m fastconv.benchmarks.gpu``.

The shared test bodies on CuPy arrays, compute-sanitizer over small kernels, the self-test, and the verified benchmark
beside cuDNN, one after the other within a time limit. Each part's command, outcome and last lines go into one JSON file
of benchmarks/results/, written after every part; a part that passed for the same commit and GPU is not run again, so
that a run which was cut off goes on. The benchmark keeps its own file. No network is used.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

TAIL = 2000  # characters of a part's output that are kept
SUITES = "resnet50,mobilenetv2,convnext,resnext,replknet,pooling,audio,volume"


@dataclass(frozen=True)
class Part:
    """A command with the most seconds that it may take; without a limit it gets what is left."""

    name: str
    command: tuple[str, ...]
    limit: float | None


def parts(left: float, sanitizer: str | None) -> list[Part]:
    """What to run, the most telling first."""
    python, fastconv = sys.executable, (sys.executable, "-m", "fastconv")
    tests = (python, "-m", "pytest", "-q", "-m", "gpu", "tests/test_exact.py", "tests/test_adjoint.py",
             "tests/test_nonfinite.py", "tests/test_signal.py", "tests/test_gpu.py", "tests/test_interop_torch.py",
             "tests/test_interop_jax.py", "tests/test_interop_dask.py", "tests/test_interop_cupy_cudnn.py")  # fmt: skip
    found = [
        Part("tests", tests, left / 4),
        Part("selftest", (*fastconv, "selftest", "--backend", "raw,numba"), left / 6),
    ]
    if sanitizer is not None:
        few = (*fastconv, "selftest", "--backend", "raw", "--quick")
        found += [
            Part(tool, (sanitizer, "--tool", tool, "--error-exitcode", "1", *few), left / 8)
            for tool in ("memcheck", "racecheck")
        ]
    bench = (*fastconv, "bench", "--gpu", "--suite", SUITES, "--dtype", "bfloat16", "--layout", "NHWC",
             "--batch", "256", "--peers", "torch", "--keep", "--resume")  # fmt: skip
    return [*found, Part("bench", bench, None)]


def run(part: Part, limit: float) -> dict[str, Any]:
    """The part's outcome: "passed", "failed" or "out of time", with the end of what it printed."""
    command = list(part.command)
    if part.name == "bench":
        command += ["--budget", str(int(max(30, limit - 20)))]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        outcome, text = "passed" if done.returncode == 0 else "failed", done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        outcome, text = "out of time", str(error.stdout or "")
    return {
        "command": command, "outcome": outcome, "seconds": round(time.monotonic() - start, 1), "end": text[-TAIL:],
    }  # fmt: skip


def identity() -> dict[str, str]:
    """What a record holds for: the GPU and the commit."""
    from fastconv.backends.raw import device
    from fastconv.benchmarks.results import commit

    return {"device": device.current().properties.name, "commit": commit() or "-"}


def record_path(folder: Path, found: dict[str, str]) -> Path:
    device = "-".join(found["device"].lower().split())
    return folder / f"gpu-{datetime.date.today().isoformat()}-{device}-{found['commit'][:12]}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not passed yet; the exit status is 1 where a part failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=520.0, help="for all parts together (default: 520)")
    options = parser.parse_args(arguments)
    found = identity()
    path = record_path(Path(str(files("fastconv.benchmarks") / "results")), found)
    record = json.loads(path.read_text()) if path.exists() else {**found, "parts": {}}
    end = time.monotonic() + options.seconds
    for part in parts(options.seconds, shutil.which("compute-sanitizer")):
        if record["parts"].get(part.name, {}).get("outcome") == "passed":
            continue
        left = end - time.monotonic()
        if left < 10:
            print(f"{part.name}: no time left; run it again to go on")
            continue
        record["parts"][part.name] = run(part, min(left, part.limit or left))
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{part.name}: {record['parts'][part.name]['outcome']} in {record['parts'][part.name]['seconds']} s")
    print(path)
    return int(any(part["outcome"] == "failed" for part in record["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())

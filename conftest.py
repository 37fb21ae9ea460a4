"""The modules of `fastconv.interop` need their libraries: without one of them, its module has no doctests."""

import os
from importlib.util import find_spec
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"  # Keras takes its backend when it is imported

FOLDER = Path(__file__).parent / "fastconv" / "interop"
LIBRARY = {"cupy_cudnn": "cupy", "patching": "fastconv"}


def missing(module: str) -> bool:
    return find_spec(LIBRARY.get(module, module)) is None


collect_ignore = [
    str(path) for path in FOLDER.iterdir() if not path.name.startswith("_") and missing(path.name.removesuffix(".py"))
]

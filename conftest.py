"""Drop-in modules are collected where the libraries that they drop into are installed."""

import os
from importlib.util import find_spec

os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported

LIBRARIES = {
    "autograd.py": ["autograd"], "cupy_cudnn.py": ["cupy"], "dask.py": ["dask"], "jax.py": ["jax"],
    "keras.py": ["keras", "torch"], "torch": ["torch"],
}  # fmt: skip
collect_ignore = [
    f"fastconv/interop/{module}" for module, needed in LIBRARIES.items() if not all(map(find_spec, needed))
]

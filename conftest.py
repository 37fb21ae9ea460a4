"""Drop-in modules are collected where the library that they drop into is installed."""

from importlib.util import find_spec

LIBRARIES = {"autograd": "autograd", "dask": "dask", "jax": "jax"}
collect_ignore = [
    f"fastconv/interop/{module}.py" for module, library in LIBRARIES.items() if find_spec(library) is None
]

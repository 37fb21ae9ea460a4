"""Numba CUDA kernels of the `numba` backend; see kernels/README.md."""

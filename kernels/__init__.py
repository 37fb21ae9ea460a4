"""Kernels, by the language they are written in."""

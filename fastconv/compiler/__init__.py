"""From kernel sources to loaded code, compiled once and kept on disk.

`store` keeps the files, `host` gives Numba's CPU functions their place there, `cuda` compiles CUDA C++ by NVRTC.
"""

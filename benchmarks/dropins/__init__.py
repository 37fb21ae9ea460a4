"""Programs of other libraries, timed on those libraries' own kernels and on fastconv's.

    python -m fastconv.benchmarks.dropins [torch] [jax] ... [--seconds 10] [--keep]

Here is a file for the programs of each library. `measure` times a program, `__main__` makes the tables.
"""

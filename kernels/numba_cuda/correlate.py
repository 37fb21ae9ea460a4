"""Correlation of one N-D array with another, directly.

    out[j] = sum over i of in1[j + first + i] * in2[i],    in1 is zero outside of its extent

One thread an output, and every gridsize-th after it. The taps i go in row-major order; along the last axis only
those that meet in1 are visited. Integers are summed in 64 bits and stored modulo their own width; complex numbers are
pairs of floats. No shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.kernels.numba_cuda.memory import reader, writer
from fastconv.kernels.numba_cuda.target import cuda


def correlate(out: str, acc: Any, paired: bool, ndim: int) -> Any:
    """The kernel for three operands of that dtype, of their real parts where they are `paired`."""
    read, write = reader(out, acc), writer(out)
    last = ndim - 1

    @cuda.jit
    def correlate_direct(out, in1, in2, geometry):
        results, taps = geometry[0], geometry[1]
        sizes = geometry[2:]  # per axis: the extents of out, in1 and in2, first, and the three strides
        corner = cuda.local.array(ndim, np.int64)
        for index in range(cuda.grid(1), results, cuda.gridsize(1)):
            rest, target = index, 0
            for axis in range(last, -1, -1):
                j = rest % sizes[7 * axis]
                rest = rest // sizes[7 * axis]
                corner[axis] = j + sizes[7 * axis + 3]
                target += j * sizes[7 * axis + 4]
            begin = max(0, -corner[last])
            end = min(sizes[7 * last + 2], sizes[7 * last + 1] - corner[last])
            real, imaginary = acc(0), acc(0)
            for tap in range(taps):  # over all axes but the last
                rest, source, weight, inside = tap, corner[last] * sizes[7 * last + 5], 0, True
                for axis in range(last - 1, -1, -1):
                    i = rest % sizes[7 * axis + 2]
                    rest = rest // sizes[7 * axis + 2]
                    at = corner[axis] + i
                    inside = inside and at >= 0 and at < sizes[7 * axis + 1]
                    source += at * sizes[7 * axis + 5]
                    weight += i * sizes[7 * axis + 6]
                if inside:
                    for i in range(begin, end):
                        a = source + i * sizes[7 * last + 5]
                        b = weight + i * sizes[7 * last + 6]
                        real += read(in1[a]) * read(in2[b])
                        if paired:
                            real -= read(in1[a + 1]) * read(in2[b + 1])
                            imaginary += read(in1[a]) * read(in2[b + 1])
                            imaginary += read(in1[a + 1]) * read(in2[b])
            out[target] = write(real)
            if paired:
                out[target + 1] = write(imaginary)

    return correlate_direct

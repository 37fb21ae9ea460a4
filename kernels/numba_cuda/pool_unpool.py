"""Max unpooling and its gradient.

    x[n, c, indices[n, c, p]] = y[n, c, p], 0 elsewhere; of several outputs p with one index, the last one
    dy[n, c, p] = dx[n, c, indices[n, c, p]] where p was that last one, else 0

winners: one thread an output p; each cell keeps the largest p that names it, by an atomic maximum of integers,
whose result no order changes. fill: one thread a cell. pick: one thread an output. No shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.kernels.numba_cuda.memory import computed, place, reader, writer
from fastconv.kernels.numba_cuda.target import cuda


def winners() -> Any:
    """The kernel; `winner` is a flat array of -1, one for each cell."""

    @cuda.jit
    def pool_unpool_winners(indices, winner, geometry):
        N, C, Z, P, Q, plane, jn, jc, jz, jp, jq = geometry
        for index in range(cuda.grid(1), N * C * Z * P * Q, cuda.gridsize(1)):
            n, c, z, p, q = place(index, C, Z, P, Q, 0)
            cell = np.int64(indices[n * jn + c * jc + z * jz + p * jp + q * jq])
            cuda.atomic.max(winner, (n * C + c) * plane + cell, (z * P + p) * Q + q)

    return pool_unpool_winners


def fill(x: str, y: str) -> Any:
    """The kernel for operands of these dtypes."""
    acc = computed(x)
    read, write = reader(y, acc), writer(x)

    @cuda.jit
    def pool_unpool_fill(x, y, winner, geometry):
        N, C, D, H, W, P, Q, xn, xc, xd, xh, xw, yn, yc, yz, yp, yq = geometry
        for index in range(cuda.grid(1), N * C * D * H * W, cuda.gridsize(1)):
            n, c, d, h, w = place(index, C, D, H, W, 0)
            won = winner[index]
            value = acc(0)
            if won >= 0:
                value = read(y[n * yn + c * yc + won // Q // P * yz + won // Q % P * yp + won % Q * yq])
            x[n * xn + c * xc + d * xd + h * xh + w * xw] = write(value)

    return pool_unpool_fill


def pick(dy: str, dx: str) -> Any:
    """The kernel for operands of these dtypes."""
    acc = computed(dy)
    read, write = reader(dx, acc), writer(dy)

    @cuda.jit
    def pool_unpool_pick(dy, dx, indices, winner, geometry):
        N, C, Z, P, Q, H, W, plane, yn, yc, yz, yp, yq, xn, xc, xd, xh, xw, jn, jc, jz, jp, jq = geometry
        for index in range(cuda.grid(1), N * C * Z * P * Q, cuda.gridsize(1)):
            n, c, z, p, q = place(index, C, Z, P, Q, 0)
            cell = np.int64(indices[n * jn + c * jc + z * jz + p * jp + q * jq])
            value = acc(0)
            if winner[(n * C + c) * plane + cell] == (z * P + p) * Q + q:
                value = read(dx[n * xn + c * xc + cell // W // H * xd + cell // W % H * xh + cell % W * xw])
            dy[n * yn + c * yc + z * yz + p * yp + q * yq] = write(value)

    return pool_unpool_pick

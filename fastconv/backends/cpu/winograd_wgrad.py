"""The gradient to the weights by Winograd: how kernels/numba_cpu/winograd_wgrad.py is called."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv.backends.base import Launch
from fastconv.backends.cpu.calls import Call, address, by_form
from fastconv.backends.cpu.passes import strides_of
from fastconv.backends.cpu.winograd import form_of, tiles
from fastconv.backends.cpu.workspace import scratch, threads
from fastconv.problem import ConvProblem

SHARES = 16  # tasks that there should be at least, by cutting the tiles where the weights are few


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    from fastconv.compiler.host import host_kernels
    from fastconv.kernels.numba_cpu import winograd_wgrad

    return host_kernels(winograd_wgrad, "wgrad")


def parts(vectors: int, most: int) -> int:
    return -(-vectors // most)


def plan(problem: ConvProblem, why: str) -> Launch:
    m, r = form_of("conv_wgrad", problem)

    def bind(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> Call:
        k, c = problem.K // problem.groups, problem.C // problem.groups
        group = _bind_group(problem, m, r, dw[:k], dy[:, :k], x[:, :c])

        def call(dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> None:
            for at in range(problem.groups):
                group(
                    address(dw) + at * k * dw.strides[0], address(dy) + at * k * dy.strides[1],
                    address(x) + at * c * x.strides[1],
                )  # fmt: skip

        return call

    return Launch(by_form(bind), "winograd", why, {"form": f"F({r}x{r},{m}x{m})"})


def _geometry(problem: ConvProblem, array: np.ndarray, m: int, pad: tuple[int, int]) -> Any:
    """One side's tiles: the fields that concern filters and results are not read."""
    from fastconv.kernels.numba_cpu.winograd import Geometry

    rows, columns = tiles(problem, m, problem.out)
    d0, d1 = problem.window.dilation
    n, c, _, s0, s1 = strides_of(array)
    return Geometry(
        array.shape[0], array.shape[1], 0, *array.shape[2:], *problem.out, *pad, d0, d1, rows, columns // d1,
        n, c, s0, s1, *(0,) * 9, False,
    )  # fmt: skip


def _bind_group(problem: ConvProblem, m: int, r: int, dw: np.ndarray, dy: np.ndarray, x: np.ndarray) -> Call:
    """The kernel's call for one group, whose parts of the operands these are like; it takes addresses."""
    from fastconv.kernels.numba_cpu.simd import ROWS, VECTOR_BYTES
    from fastconv.kernels.numba_cpu.winograd import COLUMNS
    from fastconv.kernels.numba_cpu.winograd_transforms import FORMS, GRADIENT_FORMS, LANES

    kernel, n = kernels(), m + r - 1
    k, c, _, w0, w1 = strides_of(dw)
    low0, low1 = (low for low, _ in problem.window.pad)
    source = FORMS[m, r], _geometry(problem, x, m, (low0, low1)), c
    grads = GRADIENT_FORMS[m, r], _geometry(problem, dy, m, (0, 0)), k
    rows_are_dy = k != 1
    (FR, gr, row), (FL, gl, lane) = (grads, source) if rows_are_dy else (source, grads)
    d = problem.window.dilation[1]
    total = gr.N * gr.TH * gr.TW * d
    blocks = -(-total // kernel.TILES)
    cells = gr.N * gr.TH * gr.TW
    blocks = min(blocks, cells)
    row_vectors, lane_vectors = -(-gr.C // LANES), -(-gl.C // LANES)
    row_parts, lane_parts = parts(row_vectors, kernel.ROW_PART), parts(lane_vectors, kernel.LANE_PART)
    tasks = row_parts * lane_parts
    splits = max(1, min(SHARES // tasks, blocks // 2))
    tile_rows = -(-cells // blocks) * d
    v_row = max(kernel.ROW_PART, kernel.LANE_PART) * VECTOR_BYTES + 64
    v_plane = tile_rows * v_row + 64
    fitting = max(1, (COLUMNS // d - m) // m + 1)
    pitch = -(-((fitting - 1) * m + n) * d // LANES) * LANES * VECTOR_BYTES
    wide, long = -(-lane_vectors // lane_parts), -(-row_vectors // row_parts)
    planes = n * n + 1
    part_bytes = planes * ((long * LANES + ROWS) * wide + 1) * VECTOR_BYTES
    sizes = {
        "rows": planes * v_plane,
        "lanes": planes * v_plane,
        "sums": part_bytes if splits == 1 else 0,
        "packed": n * pitch,
        "planes": (planes + r * r + LANES) * VECTOR_BYTES,
    }
    offsets, end = {}, 0
    for name, nbytes in sizes.items():
        offsets[name] = end
        end += -(-nbytes // 64) * 64 + 64
    room = kernel.Room(**offsets, total=end, v_row=v_row, v_plane=v_plane, pitch=pitch)
    count = threads()
    weights = kernel.Weights(row, lane, w0, w1, rows_are_dy)

    def call(dw: int, dy: int, x: int) -> None:
        work = scratch(count * end)
        sums = scratch(tasks * splits * part_bytes if splits > 1 else 64, "tiles")
        rows, lanes = (dy, x) if rows_are_dy else (x, dy)
        kernel.wgrad(
            GRADIENT_FORMS[m, r], FR, FL, gr, gl, room, rows, lanes, dw, weights, row_parts, lane_parts, splits,
            blocks, sums.address, part_bytes, work.address,
        )  # fmt: skip

    return call

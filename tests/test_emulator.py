"""The host emulator is right about CUDA: threads, barriers, collectives, and every planted mistake is reported."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv.testing import emulator

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))


def run(code: str, *args: object, name: str = "k", grid: int = 1, block: int = 64, shared: int = 0, **options) -> None:
    """Compile a kernel and run it on these arguments."""
    device = emulator.EmulatedDevice(**options)
    device.launch(device.compile(code, name), (grid, 1, 1), (block, 1, 1), shared, args)


# ---------------------------------------------------------------- threads and blocks

INDICES = """
__global__ void k(int* y) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    y[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}
"""


@pytest.mark.parametrize("seed", [None, 0])
def test_every_thread_of_every_block_runs_once(seed):
    y = np.zeros(2 * 3 * 2 * 5 * 4 * 3, np.int32)
    device = emulator.EmulatedDevice(seed=seed)
    device.launch(device.compile(INDICES, "k"), (2, 3, 2), (5, 4, 3), 0, (y,))
    assert (y == 1).all()


TRANSPOSE = """
template <class T>
__global__ void k(const T* x, T* y) {
    __shared__ T tile[32][33];
    T* row = shared_memory<T>();
    for (int j = threadIdx.y; j < 32; j += blockDim.y) tile[j][threadIdx.x] = x[j * 32 + threadIdx.x];
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += blockDim.y) {
        row[j * 32 + threadIdx.x] = tile[threadIdx.x][j];
        __syncthreads();
        y[j * 32 + threadIdx.x] = row[j * 32 + 31 - threadIdx.x];
    }
}
"""


@pytest.mark.parametrize("seed", [None, 1])
def test_threads_meet_at_barriers_and_share_memory(seed):
    x, y = np.arange(1024, dtype=np.float64).reshape(32, 32), np.empty((32, 32))
    device = emulator.EmulatedDevice(seed=seed)
    device.launch(device.compile(TRANSPOSE, "k<double>"), (1, 1, 1), (32, 8, 1), 8192, (x, y))
    assert (y == x.T[:, ::-1]).all()


def test_a_collective_moves_values_between_lanes():
    code = """
    __global__ void k(int* y) {
        int lane = threadIdx.x % 32, *mine = y + 8 * threadIdx.x;
        mine[0] = __shfl_sync(~0u, lane, 5);
        mine[1] = __shfl_up_sync(~0u, lane, 3);
        mine[2] = __shfl_down_sync(~0u, lane, 3, 8);
        mine[3] = __shfl_xor_sync(~0u, lane, 9);
        mine[4] = __ballot_sync(~0u, lane % 3 == 0);
        mine[5] = lane < 16 ? __reduce_add_sync(0xffffu, lane) : __reduce_max_sync(0xffff0000u, lane);
        mine[6] = __any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane < 31) + 4 * __syncthreads_count(lane < 3);
        mine[7] = __match_any_sync(~0u, lane / 8);
    }
    """
    y = np.zeros((64, 8), np.int32)
    run(code, y)
    lane = np.arange(64) % 32
    expected = [
        np.full(64, 5), np.where(lane >= 3, lane - 3, lane), np.where(lane % 8 < 5, lane + 3, lane), lane ^ 9,
        np.full(64, sum(1 << i for i in range(0, 32, 3))), np.where(lane < 16, 120, 31), np.full(64, 1 + 4 * 6),
        0xFF << lane // 8 * 8,
    ]  # fmt: skip
    assert (y.view(np.uint32) == np.array(expected, np.int64).T.astype(np.uint32)).all()

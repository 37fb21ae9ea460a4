"""The host emulator is right about CUDA: threads, barriers, collectives, and every planted mistake is reported."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

import fastconv
from fastconv.testing import emulator
from fastconv.testing.emulator import build

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


# ---------------------------------------------------------------- planted mistakes

#: One wrong statement each, for 64 threads with x[64], y[64]; what the report says, and the line that it names.
HEAD = """__global__ void k(const float* x, float* y) { __shared__ float s[64]; __shared__ float t[64];
int i = threadIdx.x; s[i] = 0; """
MISTAKES = {
    "read past the end": ("y[i] = x[i + 1];", "out of bounds: a read of 4 bytes, 0 bytes after argument 0", 63),
    "read before the start": ("y[i] = x[i - 2];", "a read of 4 bytes, 8 bytes before argument 0", 0),
    "write past the end": ("y[i + 1] = x[i];", "out of bounds: a write of 4 bytes, 0 bytes after argument 1", 63),
    "stray pointer": ("y[i] = x[i + 1000000];", "out of bounds: a read of 4 bytes, no operand is near", 0),
    "shared index": ("if (i == 63) s[i + 1] = 1;", r"out of bounds: the index 64 into 'float \[64\]'", 63),
    "shared read by pointer": ("float* p = s; y[i] = p[64];", "a read of 4 bytes, 0 bytes after shared variable s", 0),
    "shared write by pointer": ("float* p = s; if (!i) p[i - 1] = 1;", "4 bytes before shared variable s", 0),
    "index of a register array": ("float r[4]; r[i % 4] = 1; y[i] = r[i / 8];", "the index 4 into 'float", 32),
    "uninitialised": ("y[i] = t[i];", "uninitialised: a read .* nothing has written yet, 0 bytes into .* t", 0),
    "uninitialised by others": ("if (i) t[i] = 0; __syncthreads(); y[i] = t[63 - i];", "uninitialised: a read", 63),
    "race of writes": ("y[i / 2] = x[i];", r"race: a write, .*\n  the write was by thread \(0,", 1),
    "no barrier": ("t[i] = x[i]; __syncwarp(); y[i] = s[63 - i] + 1;", "race: a read, 252 bytes into .* s, with no", 0),
    "no barrier before reuse": ("__syncthreads(); y[i] = s[9]; if (i == 63) s[9] = 2;", "a write, .*after a read", 63),
    "misaligned vector": ("y[i] = ((const float4*)(x + i))[0].x;", "misaligned: .*'const struct float4' is not", 1),
    "signed overflow": ("int v = 2147483600 + i; y[i] = v;", "overflow of .*2147483600.* in 'int'", 48),
    "shift": ("y[i] = 1u << i;", "a shift of 1 by 32", 32),
    "division by zero": ("y[i] = 7 / (i - 5);", "overflow of 7 / 0|division", 5),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_checked_run_reports(mistake):
    """What is wrong, the thread, and the line."""
    statement, report, thread = MISTAKES[mistake]
    with pytest.raises(emulator.EmulatorError, match=report) as caught:
        run(HEAD + statement + "}", np.zeros(64, np.float32), np.zeros(64, np.float32), sanitize=True)
    assert f"in block (0, 0, 0), thread ({thread}, 0, 0) at kernel.cu:2" in str(caught.value)


def test_a_race_between_blocks_is_reported():
    code = "__global__ void k(float* y) { y[threadIdx.x] = 1; }"
    with pytest.raises(emulator.EmulatorError, match=r"thread \(0, 0, 0\) of block \(0, 0, 0\) at kernel.cu:1"):
        run(code, np.zeros(64, np.float32), grid=2, sanitize=True)


def test_dynamic_shared_memory_has_its_bounds():
    code = "__global__ void k() { extern __shared__ int s[]; s[threadIdx.x] = 1; }"
    run(code, shared=256, sanitize=True)
    with pytest.raises(emulator.EmulatorError, match="0 bytes after dynamic shared memory of 252 bytes"):
        run(code, shared=252, sanitize=True)


def test_only_the_elements_of_a_view_are_in_bounds():
    """Between the elements of a slice lies somebody else's memory."""
    code = "__global__ void k(short* y, int step) { y[step * int(threadIdx.x)] = 1; }"
    whole = np.zeros((64, 2), np.int16)
    run(code, whole[::-1, 1], -2, sanitize=True)
    assert (whole == [0, 1]).all()
    with pytest.raises(emulator.EmulatorError, match=r"between the elements of argument 0 \(int16\[64\]\), 2 bytes"):
        run(code, whole[:, 1], 1, sanitize=True)


def test_operands_may_overlap():
    """An operation in place, and two views of one array."""
    code = "__global__ void k(const float* x, float* y) { y[2 * threadIdx.x] = x[2 * threadIdx.x] + 1; }"
    whole = np.zeros((64, 2), np.float32)
    run(code, whole[:, 0], whole[:, 1], sanitize=True)
    run(code, whole[:, 0], whole[:, 0], sanitize=True)
    assert (whole == 1).all()


def test_scratch_memory_must_be_written_first():
    device = emulator.EmulatedDevice(sanitize=True)
    write = device.compile("__global__ void k(int* s) { s[threadIdx.x + 1] = 1; }", "k")
    read = device.compile("__global__ void k(int* s) { s[threadIdx.x] += 1; }", "k")
    scratch = device.scratch(65 * 4)
    device.launch(write, (1, 1, 1), (64, 1, 1), 0, (np.uint64(scratch.pointer),))
    device.launch(read, (1, 1, 1), (64, 1, 1), 0, (np.uint64(scratch.pointer + 4),))
    with pytest.raises(emulator.EmulatorError, match="nothing has written yet, 0 bytes into scratch memory of 260"):
        device.launch(read, (1, 1, 1), (64, 1, 1), 0, (np.uint64(scratch.pointer),))
    with pytest.raises(emulator.EmulatorError, match="0 bytes after scratch memory of 260 bytes"):
        device.launch(write, (1, 1, 1), (65, 1, 1), 0, (np.uint64(scratch.pointer),))


def test_a_shared_variable_is_poisoned_before_each_block():
    """Without checks, too, what was not written shows: NaN as a float, -1 as an integer."""
    code = """
    __global__ void k(float* y) {
        __shared__ float s[64];
        extern __shared__ float d[];
        if (threadIdx.x == 0) y[blockIdx.x] = s[63] * d[63];
        __syncthreads();
        s[threadIdx.x] = d[threadIdx.x] = 1;
    }
    """
    y = np.zeros(3, np.float32)
    run(code, y, grid=3, shared=256)
    assert np.isnan(y).all()


WRONG_BARRIERS = {
    "divergent barrier": ("if (i < 40) __syncthreads();\n else __syncthreads();",
                          r"divergent barrier.*\n.*\(39, 0, 0\): __syncthreads at kernel.cu:2\n.*kernel.cu:3"),
    "deadlock": ("if (i < 40) __syncwarp();\n else __syncthreads();",
                 r"deadlock .*\n.*\(32, 0, 0\) to \(39, 0, 0\): __syncwarp of lanes 0xffffffff at kernel.cu:2\n"
                 r".*\(40, 0, 0\) to \(63, 0, 0\): __syncthreads at kernel.cu:3\n  32 of 64 threads have exited"),
    "masks": ("if (i < 8) __shfl_sync(0x1ffu, i, 0);\n else __shfl_sync(~0u, i, 0);", "lanes 0x000001ff"),
    "foreign mask": ("__shfl_sync(0xffu, i, 0);", "mask 0x000000ff does not name lane 8"),
    "collectives": ("if (i % 2) __syncwarp();\n else __ballot_sync(~0u, 1);", "divergent warp"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG_BARRIERS)
def test_threads_that_miss_each_other_are_reported(mistake):
    statement, report = WRONG_BARRIERS[mistake]
    with pytest.raises(emulator.EmulatorError, match=report):
        run("__global__ void k() { int i = threadIdx.x;\n" + statement + "}")


def test_a_thread_may_exit_before_a_barrier():
    """As on every GPU since Volta; the other lanes of a warp, too, go on without it."""
    code = """
    __global__ void k(int* y) {
        if (threadIdx.x % 2) return;
        __syncthreads();
        y[threadIdx.x] = __popc(__ballot_sync(~0u, 1));
    }
    """
    y = np.zeros(64, np.int32)
    run(code, y)
    assert (y == np.tile([16, 0], 32)).all()


def test_a_race_shows_under_shuffled_schedules():
    racy = "__global__ void k(int* y) { y[0] = y[0] * 3 + threadIdx.x; }"
    sound = "__global__ void k(int* y) { atomicAdd(y, int(threadIdx.x)); }"
    device = emulator.EmulatedDevice()

    def call(code):
        y = np.zeros(1, np.uint32)
        device.launch(device.compile(code, "k"), (1, 1, 1), (64, 1, 1), 0, (y,))
        return y

    emulator.assert_same_under_schedules(device, lambda: call(sound))
    with pytest.raises(emulator.EmulatorError, match="a race: 1 elements differ"):
        emulator.assert_same_under_schedules(device, lambda: call(racy))


def test_a_fault_is_an_error_and_not_the_end_of_the_process():
    with pytest.raises(emulator.EmulatorError, match="segmentation fault at address"):
        run("__global__ void k(int* y) { y[1ll << 44] = 1; }", np.zeros(1, np.int32))
    with pytest.raises(emulator.EmulatorError, match=r"assertion failed: i < 5\n.*thread \(5, 0, 0\) at kernel.cu:1"):
        run("__global__ void k() { int i = threadIdx.x; assert(i < 5); }")


def test_traffic_counts_bytes_of_global_memory():
    code = "__global__ void k(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x / 2]; }"
    device = emulator.EmulatedDevice(sanitize=True)
    x, y = np.zeros(32, np.float32), np.zeros(64, np.float32)
    device.launch(device.compile(code, "k"), (1, 1, 1), (64, 1, 1), 0, (x, y))
    assert repr(device.traffic) == "Traffic(read=256, written=256, distinct_read=128, distinct_written=256)"


# ---------------------------------------------------------------- launches and compilation


def test_a_launch_has_the_limits_of_a_gpu():
    device = emulator.EmulatedDevice("sm_75")
    kernel = device.compile("__global__ void k(int n) {}", "k")
    for grid, block, shared, report in (
        ((1, 65536, 1), (1, 1, 1), 0, "a grid of"),
        ((1, 1, 1), (1, 1, 65), 0, "a block of"),
        ((1, 1, 1), (32, 33, 1), 0, "more than 1024 threads"),
        ((1, 1, 1), (1, 1, 1), 65537, "a block can have 65536"),
    ):
        with pytest.raises(emulator.EmulatorError, match=report):
            device.launch(kernel, grid, block, shared, (1,))
    with pytest.raises(emulator.EmulatorError, match="argument 0 of the kernel has 4 bytes, got 8"):
        device.launch(kernel, (1, 1, 1), (1, 1, 1), 0, (np.float64(1),))
    with pytest.raises(emulator.EmulatorError, match="takes 1 arguments, got 2"):
        device.launch(kernel, (1, 1, 1), (1, 1, 1), 0, (1, 2))


def test_what_does_not_compile_is_a_backend_error():
    with pytest.raises(
        fastconv.errors.BackendError, match=r"kernel.cu:1:\d+: error: 'flaot'|kernel.cu:1:\d+: error: .flaot"
    ):
        run("__global__ void k(flaot* x) {}")
    with pytest.raises(fastconv.errors.BackendError, match="the emulator knows sm_75"):
        emulator.EmulatedDevice("sm_12")


def test_a_kernel_is_compiled_once_and_a_corrupt_object_again():
    code = f"// {uuid.uuid4()}\n__global__ void k(int* y) {{ y[0] = 7; }}"  # new to the cache
    unit = emulator.EmulatedDevice().compile(code, "k").path
    first = unit.stat().st_mtime_ns
    assert emulator.EmulatedDevice().compile(code, "k").path == unit
    assert unit.stat().st_mtime_ns == first
    unit.unlink()
    unit.write_bytes(b"no object")
    y = np.zeros(1, np.int32)
    run(code, y)
    assert y[0] == 7
    unit.unlink()


def test_without_a_compiler_the_reason_is_given(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    build.compiler.cache_clear()
    with pytest.raises(fastconv.errors.BackendError, match="needs the compiler g"):
        run("__global__ void k() {}")
    build.compiler.cache_clear()

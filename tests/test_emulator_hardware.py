"""The emulator's models of copies that run ahead, barriers and products of tiles, against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fastconv.compiler.cuda import ARCHITECTURES, OPTIONS, nvrtc, source_folder
from fastconv.errors import ShapeError
from fastconv.testing import emulator
from fastconv.testing.emulator import tensor_map

pytestmark = pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))

INTEGERS = np.random.default_rng(5)
MATRIX, HOPPER = '#include "matrix.cuh"\n', '#include "hopper.cuh"\n'


def run(
    code: str, *args: object, block: int = 32, shared: int = 0, sanitize: bool = True, arch: str = "sm_90a"
) -> None:
    device = emulator.EmulatedDevice(arch, sanitize=sanitize)
    device.launch(device.compile(code, "k"), (1, 1, 1), (block, 1, 1), shared, args)


def small(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return INTEGERS.integers(-4, 5, shape).astype(dtype)


def bits(x: np.ndarray) -> np.ndarray:
    """16-bit floats as the integers that a kernel takes."""
    return x.view(np.uint16)


# ---------------------------------------------------------------- ldmatrix, mma.sync


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("crossed", [False, True])
def test_load_tiles(count, crossed):
    """Lane l gets elements (l / 4, 2 * (l % 4) + {0, 1}) of each tile, or of its transpose."""
    load = "load_tiles_crossed" if crossed else "load_tiles"
    code = (
        MATRIX
        + f"""
    __global__ void k(const uint4* x, uint32_t* y) {{
        __shared__ uint4 rows[32];
        int lane = threadIdx.x;
        rows[lane] = x[lane];
        __syncthreads();
        uint32_t tiles[{count}];
        emulator::load_tiles(tiles, {count}, &rows[lane], {int(crossed)}, emulator::Site::here());
        for (int i = 0; i < {count}; ++i) y[{count} * lane + i] = tiles[i];
    }}"""
    )
    if count == 4:
        code = code.replace(
            f"emulator::load_tiles(tiles, 4, &rows[lane], {int(crossed)}, emulator::Site::here())",
            f"{load}(tiles, &rows[lane])",
        )
    x, y = np.arange(256, dtype=np.uint16).reshape(4, 8, 8), np.zeros((32, count, 2), np.uint16)
    run(code, x.view(np.uint32), y.view(np.uint32))
    tiles = x.swapaxes(1, 2) if crossed else x
    assert (y == tiles[:count].reshape(count, 32, 2).swapaxes(0, 1)).all()


#: Loads A[16, K] and B[K, 8] by the layout of the PTX ISA, element by element, and stores D[16, 8].
MMA = """
template <int K, int P> __device__ void fragments(const uint8_t* A, const uint8_t* B, uint32_t* a, uint32_t* b) {
    constexpr int bytes = 4 / P;
    int g = threadIdx.x / 4, q = threadIdx.x % 4;
    for (int r = 0; r < 4 * K / 8 / P; ++r)
        for (int p = 0; p < P; ++p)
            memcpy((char*)(a + r) + p * bytes, A + ((g + r % 2 * 8) * K + (r / 2 * 4 + q) * P + p) * bytes, bytes);
    for (int r = 0; r < 2 * K / 8 / P; ++r)
        for (int p = 0; p < P; ++p)
            memcpy((char*)(b + r) + p * bytes, B + (((r * 4 + q) * P + p) * 8 + g) * bytes, bytes);
}
__global__ void k(const uint8_t* A, const uint8_t* B, SUM* D) {
    int g = threadIdx.x / 4, q = threadIdx.x % 4;
    uint32_t a[4], b[2];
    fragments<K, P>(A, B, a, b);
    SUM d[4];
    for (int i = 0; i < 4; ++i) d[i] = D[(g + i / 2 * 8) * 8 + 2 * q + i % 2];
    CALL;
    for (int i = 0; i < 4; ++i) D[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = d[i];
}
"""
HALF_K = "uint32_t h[2] = {a[0], a[1]}; mma_%s(d, h, b[0])"
MMAS = {
    "f16": (np.float16, 16, 2, "float", "mma_f16(d, a, b[0], b[1])"),
    "bf16": (ml_dtypes.bfloat16, 16, 2, "float", "mma_bf16(d, a, b[0], b[1])"),
    "tf32": (np.float32, 8, 1, "float", "mma_tf32(d, a, b[0], b[1])"),
    "f16 k8": (np.float16, 8, 2, "float", HALF_K % "f16"),
    "bf16 k8": (ml_dtypes.bfloat16, 8, 2, "float", HALF_K % "bf16"),
    "s8": (np.int8, 32, 4, "int", "mma_int8<true, true>(d, a, b[0], b[1])"),
}


@pytest.mark.parametrize("kind", MMAS)
def test_mma(kind):
    dtype, K, P, sum_, call = MMAS[kind]
    A, B, D = (
        small(16, K, dtype=dtype),
        small(K, 8, dtype=dtype),
        small(16, 8, dtype=np.int32 if sum_ == "int" else np.float32),
    )
    expected = D + A.astype(D.dtype) @ B.astype(D.dtype)
    code = MATRIX + MMA.replace("SUM", sum_).replace("CALL", call).replace("<K, P>", f"<{K}, {P}>")
    run(code, A.view(np.uint8), B.view(np.uint8), D)
    assert (expected == D).all()


def test_mma_int8_takes_each_sign():
    code = (
        MATRIX
        + """
    __global__ void k(int* y) {
        uint32_t ones[4] = {0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu};
        int d[4][4] = {};
        mma_int8<true, true>(d[0], ones, ones[0], ones[1]);
        mma_int8<true, false>(d[1], ones, ones[0], ones[1]);
        mma_int8<false, true>(d[2], ones, ones[0], ones[1]);
        mma_int8<false, false>(d[3], ones, ones[0], ones[1]);
        for (int i = 0; i < 4; ++i) y[threadIdx.x * 4 + i] = d[i][i];
    }"""
    )
    y = np.zeros((32, 4), np.int32)
    run(code, y)
    assert (y == 32 * np.array([1, -255, -255, 255 * 255])).all()


def test_mma_f64():
    code = (
        MATRIX
        + """
    __global__ void k(const double* A, const double* B, double* D) {
        int g = threadIdx.x / 4, q = threadIdx.x % 4;
        double d[2] = {D[g * 8 + 2 * q], D[g * 8 + 2 * q + 1]};
        mma_f64(d, A[g * 4 + q], B[q * 8 + g]);
        D[g * 8 + 2 * q] = d[0], D[g * 8 + 2 * q + 1] = d[1];
    }"""
    )
    A, B, D = small(8, 4, dtype=np.float64), small(4, 8, dtype=np.float64), small(8, 8, dtype=np.float64)
    expected = D + A @ B
    run(code, A, B, D)
    assert (expected == D).all()


def test_a_tensor_core_cuts_its_sums_off():
    """Below the largest addend's 25th bit; and it takes a factor's bits that its type has, and no more."""
    code = (
        MATRIX
        + """
    __global__ void k(float* y) {
        float big[4] = {16777216, 0, 0, 0}, exact[4] = {};
        uint32_t a[4] = {__float_as_uint(1.0f), 0, 0, 0}, b = threadIdx.x == 0 ? __float_as_uint(0.96875f) : 0;
        mma_tf32(big, a, b, 0);
        a[0] = __float_as_uint(1.00048828125f), b = threadIdx.x == 0 ? __float_as_uint(1.0f) : 0;  // 1 + 2^-11
        mma_tf32(exact, a, b, 0);
        if (threadIdx.x == 0) y[0] = big[0], y[1] = exact[0];
    }"""
    )
    y = np.zeros(2, np.float32)
    run(code, y)
    assert (y == [16777216, 1]).all()


# ---------------------------------------------------------------- cp.async

AHEAD = (
    MATRIX
    + """
__global__ void k(const float4* x, float4* y) {
    __shared__ float4 tile[2][32];
    int lane = threadIdx.x;
    for (int i = 0; i < 2; ++i) {
        copy_ahead(&tile[i][lane], x + 32 * i + lane, i == 0 || lane < 16);
        commit_copies();
    }
    wait_copies<FIRST>();
    BARRIER;
    y[lane] = tile[0][31 - lane];
    wait_copies<SECOND>();
    BARRIER;
    y[32 + lane] = tile[1][31 - lane];
}
"""
)


def ahead(first: int, second: int, barrier: str = "__syncthreads()", sanitize: bool = True) -> np.ndarray:
    x, y = np.arange(1, 257, dtype=np.float32).reshape(64, 4), np.zeros((64, 4), np.float32)
    code = AHEAD.replace("FIRST", str(first)).replace("SECOND", str(second)).replace("BARRIER", barrier)
    run(code, x, y, sanitize=sanitize)
    x[48:] = 0
    return y == np.concatenate([x[31::-1], x[:31:-1]])


def test_copies_land_when_they_are_waited_for():
    assert ahead(1, 0).all()
    assert not ahead(2, 0, sanitize=False)[:16].any()  # NaN, as the threads that copied these have not waited yet
    with pytest.raises(
        emulator.EmulatorError, match=r"a read before an asynchronous copy has landed.*\n.*at kernel.cu:7"
    ):
        ahead(2, 0)
    with pytest.raises(
        emulator.EmulatorError, match=r"before an asynchronous copy has landed, .* into shared variable tile"
    ):
        ahead(1, 1)


def test_copies_of_4_and_8_bytes():
    code = (
        MATRIX
        + """
    __global__ void k(const int* x, int* y) {
        __shared__ int a[32];
        __shared__ __align__(8) int b[64];
        int i = threadIdx.x;
        copy_ahead<4>(a + i, x + i, i < 20);
        copy_ahead<8>(b + 2 * i, x + 2 * i, i < 20);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        y[i] = a[31 - i], y[32 + i] = b[31 - i], y[64 + i] = b[63 - i];
    }"""
    )
    x, y = np.arange(1, 65, dtype=np.int32), np.zeros(96, np.int32)
    run(code, x, y)
    a, b = np.where(np.arange(32) < 20, x[:32], 0), np.where(np.arange(64) < 40, x, 0)
    assert (y == np.concatenate([a[::-1], b[31::-1], b[:31:-1]])).all()


def test_a_wait_is_for_ones_own_copies():
    with pytest.raises(emulator.EmulatorError, match="nothing has written yet, 496 bytes into shared variable tile"):
        ahead(0, 0, barrier="")


# ---------------------------------------------------------------- barriers

PIPELINE = (
    HOPPER
    + """
__global__ void k(const int* x, int* y, int rounds) {
    __shared__ alignas(8) Barrier full[2], empty[2];
    __shared__ int stage[2][32];
    int lane = threadIdx.x % 32;
    if (threadIdx.x == 0)
        for (int s = 0; s < 2; ++s) barrier_init(&full[s], 32), barrier_init(&empty[s], 32);
    __syncthreads();
    for (int i = 0; i < rounds; ++i) {
        int s = i % 2, parity = i / 2 % 2;
        if (threadIdx.x < 32) {
            barrier_wait(&empty[s], parity ^ 1);
            stage[s][lane] = x[32 * i + lane];
            barrier_arrive(&full[s]);
        } else {
            barrier_wait(&full[s], parity);
            y[32 * i + lane] = stage[s][31 - lane];
            barrier_arrive(&empty[s]);
        }
    }
}
"""
)


@pytest.mark.parametrize("rounds", [1, 5])
def test_barriers_order_a_producer_and_a_consumer(rounds):
    x, y = np.arange(32 * rounds, dtype=np.int32).reshape(rounds, 32), np.zeros((rounds, 32), np.int32)
    run(PIPELINE, x, y, rounds, block=64)
    assert (y == x[:, ::-1]).all()


WRONG_PIPELINES = {
    "no arrival": ("barrier_arrive(&empty[s])", "", r"barrier_wait \(phase 0 lacks 32 of 32 arrivals and 0 bytes\)"),
    "two arrivals": ("arrive(&empty[s])", "arrive(&empty[s]), barrier_arrive(&empty[s])", "deadlock"),
    "the wrong barrier": ("wait(&empty[s], parity ^ 1)", "wait(&full[s], parity ^ 1)", "race: a .* variable stage"),
    "not initialised": ("barrier_init(&empty[s], 32)", "0", "used before barrier_init"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG_PIPELINES)
def test_wrong_barriers_are_reported(mistake):
    old, new, report = WRONG_PIPELINES[mistake]
    x, y = np.zeros((5, 32), np.int32), np.zeros((5, 32), np.int32)
    with pytest.raises(emulator.EmulatorError, match=report):
        run(PIPELINE.replace(old, new), x, y, 5, block=64)


def test_named_barriers_let_some_warps_meet():
    code = (
        HOPPER
        + """
    __global__ void k(int* y) {
        __shared__ int s[96];
        int i = threadIdx.x;
        s[i] = i;
        if (i < 32) named_barrier_arrive(1, 96); else named_barrier_wait(1, 96);
        if (i >= 32) y[i] = s[i - 32] + s[127 - i];
    }"""
    )
    y = np.zeros(96, np.int32)
    run(code, y, block=96)
    assert (y[32:] == 95).all()
    with pytest.raises(emulator.EmulatorError, match=r"deadlock.*\n.*barrier 1 of 128 threads"):
        run(code.replace("wait(1, 96)", "wait(1, 128)").replace("arrive(1, 96)", "arrive(1, 128)"), y, block=96)


def test_copies_arrive_at_a_barrier():
    code = (
        HOPPER
        + """
    __global__ void k(const uint4* x, uint4* y) {
        __shared__ uint4 s[32];
        __shared__ Barrier barrier;
        int i = threadIdx.x;
        if (i == 0) barrier_init(&barrier, 32);
        __syncthreads();
        copy_ahead(&s[i], x + i, true);
        copies_arrive(&barrier);
        WAIT;
        y[i] = s[31 - i];
    }"""
    )
    x, y = np.arange(128, dtype=np.int32).reshape(32, 4), np.zeros((32, 4), np.int32)
    run(code.replace("WAIT", "barrier_wait(&barrier, 0)"), x, y)
    assert (y == x[::-1]).all()
    with pytest.raises(emulator.EmulatorError, match="before an asynchronous copy has landed"):
        run(code.replace("WAIT", "__syncthreads()"), x, y)


# ---------------------------------------------------------------- TMA


def with_map(words: np.ndarray, *arrays: np.ndarray, device: emulator.EmulatedDevice) -> np.ndarray:
    """The struct of a kernel that takes a tensor map and then addresses."""
    names = ["map", *(f"p{i}" for i in range(len(arrays)))]
    offsets = [0, *(128 + 8 * i for i in range(len(arrays)))]
    struct = np.dtype(
        {"names": names, "formats": [("u8", 16)] + ["u8"] * len(arrays), "offsets": offsets, "itemsize": 192}
    )
    args = np.zeros((), struct)
    args["map"] = words
    for name, array in zip(names[1:], arrays, strict=True):
        args[name] = device.pointer(array)
    return args


LOAD = (
    HOPPER
    + """
struct Args { TensorMap map; void *to, *whole; };
__global__ void k(const __grid_constant__ Args a) {
    char* tile = shared_memory<char>();
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        barrier_init(&barrier, 1);
        barrier_init_fence();
        COPY;
        barrier_arrive_expect(&barrier, EXPECT);
    }
    __syncthreads();
    barrier_wait(&barrier, 0);
    for (int i = threadIdx.x; i < BYTES; i += 32) ((char*)a.to)[i] = tile[i];
}
"""
)


def load(
    words: np.ndarray, copy: str, whole: np.ndarray, shape: tuple[int, ...], expect: int | None = None
) -> np.ndarray:
    """The tile that one bulk copy brings, byte by byte as it lies in shared memory."""
    device = emulator.EmulatedDevice(sanitize=True)
    tile = np.zeros(shape, whole.dtype)
    code = LOAD.replace("COPY", copy).replace("EXPECT", str(expect or tile.nbytes)).replace("BYTES", str(tile.nbytes))
    args = with_map(words, tile.view(np.uint8), whole, device=device)
    device.launch(device.compile(code, "k"), (1, 1, 1), (32, 1, 1), tile.nbytes, args)
    return tile


def swizzled(tile: np.ndarray, span: int) -> np.ndarray:
    """A tile of rows of `span` bytes, its 16-byte chunks permuted: chunk c of row r lies at c ^ (r * span / 128)."""
    if not span:
        return tile
    rows = tile.reshape(-1, span).view(np.uint8).reshape(-1, span // 16, 16)
    out = np.empty_like(rows)
    for r in range(len(rows)):
        for c in range(span // 16):
            out[r, c ^ (r * span // 128 % (span // 16))] = rows[r, c]
    return out.reshape(-1).view(tile.dtype).reshape(tile.shape)


def box_of(x: np.ndarray, corner: tuple[int, ...], box: tuple[int, ...], steps: tuple[int, ...]) -> np.ndarray:
    out = np.zeros([-(-extent // step) for extent, step in zip(box, steps, strict=True)], x.dtype)
    for at in np.ndindex(out.shape):
        index = tuple(c + a * s for c, a, s in zip(corner, at, steps, strict=True))
        if all(0 <= i < extent for i, extent in zip(index, x.shape, strict=True)):
            out[at] = x[index]
    return out


BOXES = {
    "inside": ((8, 32), (2, 8), (4, 16), (1, 1), 0),
    "over every edge": ((5, 6, 32), (-2, -1, 24), (8, 9, 16), (1, 1, 1), 0),
    "past all": ((4, 32), (9, 0), (3, 16), (1, 1), 0),
    "steps": ((9, 7, 16), (-1, 1, 0), (9, 5, 16), (2, 3, 1), 0),
    "swizzle 32": ((3, 9, 16), (1, -1, 0), (2, 12, 16), (1, 1, 1), 32),
    "swizzle 64": ((3, 9, 48), (1, -1, 16), (2, 12, 32), (1, 1, 1), 64),
    "swizzle 128": ((2, 3, 9, 96), (1, 1, 2, 48), (1, 2, 9, 64), (1, 1, 1, 1), 128),
    "five axes": ((2, 3, 2, 3, 8), (0, 1, 1, -1, 0), (2, 2, 2, 3, 8), (1, 1, 1, 1, 1), 0),
}


@pytest.mark.parametrize("name", BOXES)
def test_a_box_is_loaded(name):
    shape, corner, box, steps, span = BOXES[name]
    x = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) + np.int16(1)
    words = tensor_map.tiled(x, box, steps=steps, swizzle=span)
    index = ", ".join(map(str, corner[::-1]))
    expected = box_of(x, corner, box, steps)
    tile = load(words, f"box_load(tile, &a.map, &barrier, {index})", x, expected.shape)
    assert (tile == swizzled(expected, span)).all()


#: (N, sizes, C), ksize, stride, dilation, pad, first pixel, channels from, channels, pixels, swizzle
RUNS = {
    "1-D": ((2, 9, 16), (3,), (1,), (2,), (2,), 3, 0, 16, 12, 0),
    "2-D": ((2, 6, 5, 32), (3, 3), (1, 1), (1, 1), (1, 1), 7, 0, 32, 40, 64),
    "stride": ((2, 7, 9, 64), (3, 3), (2, 2), (1, 1), (1, 1), 4, 0, 64, 24, 128),
    "dilation": ((1, 8, 8, 32), (3, 2), (1, 2), (2, 3), (2, 1), 0, 16, 16, 32, 32),
    "3-D": ((2, 3, 4, 5, 8), (2, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 11, 0, 8, 70, 0),
}


@pytest.mark.parametrize("name", RUNS)
def test_pixels_of_a_convolution_are_loaded(name):
    """A run of outputs' input pixels under one tap, across rows and samples; past the last sample come zeros."""
    shape, ksize, stride, dilation, pad, start, c0, channels, pixels, span = RUNS[name]
    x = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) + np.int16(1)
    axes = range(len(ksize))
    upper = [pad[a] - dilation[a] * (ksize[a] - 1) for a in axes]
    out = [(shape[1 + a] + 2 * pad[a] - dilation[a] * (ksize[a] - 1) - 1) // stride[a] + 1 for a in axes]
    words = tensor_map.im2col(x, [-p for p in pad], upper, channels, pixels, steps=stride, swizzle=span)
    tap = [k - 1 for k in ksize]
    expected = np.zeros((pixels, channels), np.int16)
    for i in range(pixels):
        n, *o = np.unravel_index(start + i, (shape[0] + pixels, *out))
        at = [o[a] * stride[a] - pad[a] + tap[a] * dilation[a] for a in axes]
        if n < shape[0] and all(0 <= at[a] < shape[1 + a] for a in axes):
            expected[i] = x[(n, *at, slice(c0, c0 + channels))]
    n, *o = np.unravel_index(start, (shape[0], *out))
    corner = [int(o[a] * stride[a] - pad[a]) for a in axes]
    index = [c0, *corner[::-1], int(n), *(tap[a] * dilation[a] for a in reversed(axes))]
    copy = f"pixels_load(tile, &a.map, &barrier, {', '.join(map(str, index))})"
    assert (load(words, copy, x, expected.shape) == swizzled(expected, span)).all()


def test_a_wrong_expectation_is_a_deadlock():
    x = np.ones((8, 16), np.int16)
    with pytest.raises(emulator.EmulatorError, match=r"barrier_wait \(phase 0 lacks 0 of 1 arrivals and 16 bytes\)"):
        load(tensor_map.tiled(x, (2, 16)), "box_load(tile, &a.map, &barrier, 0, 0)", x, (2, 16), expect=80)


def test_a_bulk_copy_needs_a_visible_barrier_and_its_wait():
    x, y = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    code = (
        HOPPER
        + """
    __global__ void k(const int* x, int* y) {
        __shared__ alignas(16) int s[64];
        __shared__ Barrier barrier;
        if (threadIdx.x == 0) {
            barrier_init(&barrier, 1);
            barrier_init_fence();
            bulk_load(s, x, 256, &barrier);
            barrier_arrive_expect(&barrier, 256);
        }
        __syncthreads();
        barrier_wait(&barrier, 0);
        y[threadIdx.x] = s[63 - threadIdx.x];
    }"""
    )
    run(code, x, y, block=64)
    assert (y == x[::-1]).all()
    with pytest.raises(emulator.EmulatorError, match="no barrier_init_fence"):
        run(code.replace("barrier_init_fence();", ""), x, y, block=64)
    with pytest.raises(emulator.EmulatorError, match="before an asynchronous copy has landed"):
        run(code.replace("barrier_wait(&barrier, 0);", ""), x, y, block=64)
    with pytest.raises(emulator.EmulatorError, match=r"uninitialised|used before barrier_init"):
        run(code.replace("__syncthreads();", "").replace("threadIdx.x == 0", "threadIdx.x == 1"), x, y, block=64)


STORE = (
    HOPPER
    + """
struct Args { TensorMap map; void* whole; };
__global__ void k(const __grid_constant__ Args a) {
    int16_t* tile = shared_memory<int16_t>();
    for (int i = threadIdx.x; i < 6 * 32; i += 32) tile[i] = i + 1;
    FENCE;
    __syncthreads();
    if (threadIdx.x == 0) {
        box_store(&a.map, tile, -8, 1, -1);
        bulk_commit();
        WAIT;
        AFTER;
    }
}
"""
)


def store(fence: str = "async_fence()", wait: str = "bulk_wait_read<0>()", after: str = "tile[70] = 0") -> np.ndarray:
    device = emulator.EmulatedDevice(sanitize=True)
    y = np.zeros((3, 4, 32), np.int16)
    args = with_map(tensor_map.tiled(y, (3, 4, 16)), y, device=device)
    code = STORE.replace("FENCE", fence).replace("WAIT", wait).replace("AFTER", after)
    device.launch(device.compile(code, "k"), (1, 1, 1), (32, 1, 1), 6 * 32 * 2, args)
    return y


def test_a_box_is_stored():
    expected = np.zeros((3, 4, 32), np.int16)
    expected[:2, 1:, :8] = (np.arange(192).reshape(3, 4, 16) + 1)[1:, :3, 8:]
    assert (store() == expected).all()
    with pytest.raises(emulator.EmulatorError, match="no async_fence between a write and an asynchronous read"):
        store(fence="")
    with pytest.raises(emulator.EmulatorError, match="bulk_wait_read is missing"):
        store(wait="", after="")


def test_tensor_maps_have_the_limits_of_the_driver():
    x = np.zeros((4, 6, 24), np.float32)
    for make, report in (
        (lambda: tensor_map.tiled(x[..., 1:], (1, 1, 4)), "16-byte aligned start"),
        (lambda: tensor_map.tiled(np.zeros((4, 3), np.float32), (1, 4)), "multiples of 16"),
        (lambda: tensor_map.tiled(x, (1, 1, 300)), "extents of 1 to 256"),
        (lambda: tensor_map.tiled(x, (1, 1, 3)), "multiple of 16 bytes: got 12"),
        (lambda: tensor_map.tiled(x, (1, 1, 16), swizzle=128), "128 bytes, the swizzle: got 64"),
        (lambda: tensor_map.tiled(x, (1, 1, 4), steps=(1, 9, 1)), "1 to 8"),
        (lambda: tensor_map.im2col(x, (-40000,), (0,), 8, 8), "outside of -32768"),
        (lambda: tensor_map.im2col(x, (0,), (0,), 8, 2000), "1024 pixels"),
    ):
        with pytest.raises(ShapeError, match=report):
            make()


# ---------------------------------------------------------------- wgmma

PRODUCT = (
    HOPPER
    + """
struct Args { const uint8_t *A, *B; float* D; };
__global__ void __launch_bounds__(128, 1) k(const Args a) {
    uint8_t *A = shared_memory<uint8_t>(), *B = A + A_BYTES;
    for (int i = threadIdx.x; i < A_BYTES; i += 128) A[i] = a.A[i];
    for (int i = threadIdx.x; i < B_BYTES; i += 128) B[i] = a.B[i];
    async_fence();
    __syncthreads();
    float d[N / 2];
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    auto at = [&](int i) -> float& { return a.D[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2]; };
    for (int i = 0; i < N / 2; ++i) d[i] = at(i);
    wgmma_fence();
    for (int k = 0; k < STEPS; ++k) { CALL; }
    wgmma_commit();
    WAIT;
    for (int i = 0; i < N / 2; ++i) at(i) = d[i];
}
"""
)


def tile_of(matrix: np.ndarray, span: int, crossed: bool) -> np.ndarray:
    """A matrix [rows, K] as a tile: 8 rows of `span` bytes after another, or 8 columns where `crossed`."""
    wide = span // matrix.itemsize
    if crossed:  # [blocks of columns, blocks of rows, 8 columns, rows]
        blocks = matrix.reshape(-1, wide, matrix.shape[1] // 8, 8).transpose(2, 0, 3, 1)
    else:  # [blocks of rows, 8 rows, K]
        assert matrix.shape[1] == wide
        blocks = matrix.reshape(-1, 8, wide)
    return swizzled(np.ascontiguousarray(blocks).reshape(-1, wide), span)


@pytest.mark.parametrize("span", [32, 64, 128])
@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_wgmma_of_rows_along_the_sum(kind, span):
    """Both tiles K-major; a step along K moves the descriptors by its bytes."""
    dtype = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32}[kind]
    N, K = 16, span // np.dtype(dtype).itemsize
    A, B = small(64, K, dtype=dtype), small(N, K, dtype=dtype)
    call = f"""uint64_t x = tile_descriptor(A + 32 * k, SWIZZLE_{span}, 16, {8 * span});
        uint64_t y = tile_descriptor(B + 32 * k, SWIZZLE_{span}, 16, {8 * span});
        Wgmma<N>::{kind}(d, x, y, true)"""
    D = product(call, tile_of(A, span, False), tile_of(B, span, False), N, span // 32)
    assert (1 + A.astype(np.float32) @ B.astype(np.float32).T == D).all()


@pytest.mark.parametrize("span", [32, 64, 128])
def test_wgmma_of_rows_across_the_sum(span):
    """Both tiles MN-major, K = 16 in two blocks of 8."""
    M, N, K = 64, 128, 16
    A, B = small(M, K, dtype=np.float16), small(N, K, dtype=np.float16)
    call = f"""uint64_t x = tile_descriptor(A, SWIZZLE_{span}, {8 * span}, {64 * 16});
        uint64_t y = tile_descriptor(B, SWIZZLE_{span}, {8 * span}, {128 * 16});
        Wgmma<N>::f16<1, 1>(d, x, y, true)"""
    D = product(call, tile_of(A, span, True), tile_of(B, span, True), N, 1)
    assert (1 + A.astype(np.float32) @ B.astype(np.float32).T == D).all()


def test_wgmma_with_a_in_registers():
    A, B = small(64, 16, dtype=np.float16), small(8, 16, dtype=np.float16)
    call = """uint32_t r[4];
        for (int i = 0; i < 4; ++i) memcpy(&r[i], A + ((row + i % 2 * 8) * 16 + column + i / 2 * 8) * 2, 4);
        Wgmma<N>::f16(d, r, tile_descriptor(B, SWIZZLE_32, 16, 256), true)"""
    D = product(call, A, tile_of(B, 32, False), 8, 1)
    assert (1 + A.astype(np.float32) @ B.astype(np.float32).T == D).all()


def product(call: str, A: np.ndarray, B: np.ndarray, N: int, steps: int, wait: str = "wgmma_wait<0>()") -> np.ndarray:
    """D = 1 + what the steps add."""
    D = np.ones((64, N), np.float32)
    names = {"A_BYTES": A.nbytes, "B_BYTES": B.nbytes, "STEPS": steps, "CALL": call, "WAIT": wait}
    code = PRODUCT
    for name, value in names.items():
        code = code.replace(name, str(value))
    device = emulator.EmulatedDevice(sanitize=True)
    operands = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (A, B)]
    args = np.array((*map(device.pointer, (*operands, D)),), [("A", "u8"), ("B", "u8"), ("D", "u8")])
    code = code.replace("N>", f"{N}>").replace("N /", f"{N} /").replace("* N", f"* {N}")
    device.launch(device.compile(code, "k"), (1, 1, 1), (128, 1, 1), A.nbytes + B.nbytes, args)
    return D


ONES = np.ones((64, 16), np.float16), np.ones((8, 16), np.float16)
ONCE = """Wgmma<N>::f16(d, tile_descriptor(A, SWIZZLE_32, 16, 256), tile_descriptor(B, SWIZZLE_32, 16, 256), %s)"""


def test_wgmma_may_start_from_zero_and_needs_its_wait():
    """Sums read NaN until their group is waited for."""
    assert (product(ONCE % "k > 0", *ONES, 8, 3) == 48).all()
    assert np.isnan(product(ONCE % "true", *ONES, 8, 1, wait="wgmma_wait<1>()")).all()
    two = ONCE % "true" + "; wgmma_commit()"
    assert np.isnan(product(two, *ONES, 8, 2, wait="wgmma_wait<2>()")).all()


def test_wrong_use_of_wgmma_is_reported():
    def wrong(old: str, new: str) -> None:
        global PRODUCT
        before, PRODUCT = PRODUCT, PRODUCT.replace(old, new)
        try:
            product(ONCE % "true", *ONES, 8, 1)
        finally:
            PRODUCT = before

    for old, new, report in (
        ("wgmma_fence();", "", "wgmma without wgmma_fence"),
        ("async_fence();", "", "no async_fence between a write and an asynchronous read"),
        ("wgmma_commit();", "wgmma_commit(); A[threadIdx.x] = 1;", "no async_fence|race"),
    ):
        with pytest.raises(emulator.EmulatorError, match=report):
            wrong(old, new)


# ---------------------------------------------------------------- the same functions on GPUs


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_modelled_compiles_for_gpus(arch):
    """Each wrapper is the instruction that it says."""
    source = HOPPER + MODELLED
    library = nvrtc()
    program = library.createProgram(source, "modelled.cu", (), ())
    try:
        library.compileProgram(program, [*OPTIONS, f"-arch={arch}", f"-I{source_folder()}"])
        ptx = library.getPTX(program).decode()
    except library.NVRTCError:
        raise AssertionError(library.getProgramLog(program)) from None
    finally:
        library.destroyProgram(program)
    number = int("".join(letter for letter in arch if letter.isdigit()))
    for least, instructions in INSTRUCTIONS.items():
        if least <= number:
            assert not [name for name in instructions if name not in ptx], arch
    if arch == "sm_90a":
        for name in WGMMA:
            assert name in ptx


MODELLED = """
extern "C" __global__ void __launch_bounds__(128, 1)
k(const __grid_constant__ TensorMap map, float* y, const uint4* x, int s) {
    Barrier* barrier = shared_memory<Barrier>();
    char* tile = shared_memory<char>() + 1024;
    uint32_t r[4], h[2] = {1, 2};
    float f[4] = {};
    load_tiles(r, tile);
    load_tiles_crossed(r, tile);
    mma_f16(f, h, 3);
    named_barrier_arrive(2, 128);
    named_barrier_wait(2, 128);
#if __CUDA_ARCH__ >= 800
    double e[2] = {};
    int i[4] = {};
    mma_f64(e, 1, 2);
    mma_int8<true, false>(i, r, 1, 2);
    mma_bf16(f, h, 3);
    mma_tf32(f, r, 1, 2);
    copy_ahead<4>(tile, x, s);
    if (elected()) barrier_init(barrier, 1);
    barrier_arrive(barrier);
    copies_arrive(barrier);
    barrier_wait(barrier, 0);
    barrier_wait(barrier, 1);
    y[1] = e[0] + i[0];
#endif
#if __CUDA_ARCH__ >= 900
    barrier_init_fence(), barrier_arrive_expect(barrier, 64), async_fence(), prefetch_map(&map);
    bulk_load(tile, x, 64, barrier), bulk_store(y, tile, 64), bulk_commit(), bulk_wait_read<0>(), bulk_wait<1>();
    box_load(tile, &map, barrier, 1), box_load(tile, &map, barrier, 1, 2), box_load(tile, &map, barrier, 1, 2, 3);
    box_load(tile, &map, barrier, 1, 2, 3, 4), box_load(tile, &map, barrier, 1, 2, 3, 4, 5);
    box_store(&map, tile, 1), box_store(&map, tile, 1, 2), box_store(&map, tile, 1, 2, 3);
    pixels_load(tile, &map, barrier, 0, s, 3, 1), pixels_load(tile, &map, barrier, 0, s, 3, 1, 2, 1);
    pixels_load(tile, &map, barrier, 0, s, 3, 1, 2, 1, 1, 1);
#endif
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    fewer_registers<40>();
    float d[64] = {}, big[128] = {};
    uint64_t a = tile_descriptor(tile, SWIZZLE_128, 16, 1024);
    wgmma_fence();
    Wgmma<128>::bf16(d, a, a + 2, s), Wgmma<128>::f16<0, 1>(d, a, a + 2, s), Wgmma<128>::tf32(d, a, a, true);
    Wgmma<128>::bf16<1>(d, r, a, s), Wgmma<128>::tf32(d, r, a, s), Wgmma<256>::bf16(big, a, a + 2, s);
    wgmma_commit(), wgmma_wait<0>();
    for (int j = 0; j < 64; j++) y[threadIdx.x * 64 + j] = d[j] + big[2 * j];
#endif
    y[0] = f[0] + r[0];
}
"""
INSTRUCTIONS = {
    75: ["ldmatrix.sync.aligned.m8n8.x4.trans", "m16n8k8.row.col.f32.f16", "bar.arrive", "bar.sync"],
    80: ["mbarrier.init", "cp.async.mbarrier.arrive.noinc", "m8n8k4.row.col.f64", "m16n8k32.row.col.s32.s8.u8",
         "m16n8k8.row.col.f32.tf32", "m16n8k8.row.col.f32.bf16"],
    90: ["mbarrier.try_wait.parity", "mbarrier.arrive.expect_tx", "cp.async.bulk.shared::cluster.global",
         "cp.async.bulk.tensor.5d", "cp.async.bulk.tensor.4d.shared::cluster.global.im2col", "elect.sync",
         "cp.async.bulk.tensor.2d.global.shared::cta", "fence.proxy.async"],
}  # fmt: skip
WGMMA = ["wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", "m64n128k8.f32.tf32.tf32", "m64n256k16",
         "setmaxnreg.dec", "wgmma.wait_group"]  # fmt: skip

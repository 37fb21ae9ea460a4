// Dense convolution on Hopper's tensor cores: an implicit GEMM by wgmma, fed by TMA. sm_90a and nothing else.
//
//   conv_wgmma  d[n, m, o] = f(bias[m] + sum over taps t, c of a[n, c, o * step + first + offset(t)] * w[m, c, t])
//
// is fprop (a = x, d = y) and dgrad (a = dy, d = dx), the latter in a pass for each residue of dx's cells modulo the
// stride, as conv_mma.cu has them. 16-bit floats, sums in float32.
//
//   GEMM      rows      pixels (n, o)                128 to a tile, 64 to a warpgroup
//             columns   output channels m            BN
//             sum       (t, c), c fastest            64 channels (128 bytes) of one tap at a time
//
// A block stays on its multiprocessor and takes every gridDim-th tile, columns first, so that neighbours share pixels
// in L2. Three warpgroups: one thread of the first issues all copies, STAGES steps ahead and on into the next tile;
// the other two multiply. Per stage a barrier `full` (the copies have landed) and a barrier `empty` (the eight warps
// have read them).
//
//   A step's copies: 128 pixels by an im2col copy, which follows the pixels over rows and images by itself, and BN
//   filters by a tiled one. Cells of the padding, pixels past the last image, channels past C and filters past M come
//   as zeros. So channels that are filled up need no zeros in w: but they must be zeros in a.
//
// Shared memory: STAGES times 128 and BN rows of 128 bytes, then 2560 bytes for each warp's way out. Each tile is 8
// rows of 128 bytes after another, the 16-byte chunks of a row permuted by its number modulo 8 (128-byte swizzle):
// TMA writes so, wgmma reads so.
//
// What only a GPU can show, and nothing here may break:
// - A swizzle is a function of address bits: stages start at multiples of 1024 bytes, the eight rows of its pattern.
//   Dynamic shared memory promises 16, so the kernel rounds up and the host asks for 1008 bytes more.
// - In a tile whose rows lie along the sum, one swizzle wide, the descriptor's leading distance is not used; the
//   stride is 1024 bytes, from 8 rows to the next. A step of 16 along the sum adds 32 bytes to the start: the
//   hardware permutes the sum of both, so the place inside of the pattern stays right.
// - A phase of `full` expects the bytes of whole boxes: what lies outside of the array counts, as it is written too.
// - expect comes before the copies in one thread, so that a phase cannot end between them.
// - Reading a stage is over once its products were waited for, for the warp that waited: so each of the eight warps
//   arrives at `empty`. No proxy fence is needed there: both sides of the reuse, wgmma and TMA, are asynchronous.
// - setmaxnreg deals with what the launch was given: 384 threads at 168 registers, and 3 * 168 = 40 + 2 * 232. With
//   fewer, `inc` would wait for ever. __launch_bounds__(384, 1) is what makes ptxas give 168; without the 1 it ignores
//   setmaxnreg.
// - All warps of a warpgroup execute setmaxnreg; only then do three of the first one's four warps leave.
// - An im2col copy wraps where the next pixel lies beyond size - 1 + upper: the host sets `upper` so that this is
//   the last output's cell, whatever the stride leaves over, or rows would drift apart silently.
// - Offsets of taps are unsigned: where taps run against the cells (dgrad), the base is the lowest cell.
//
// Source: PTX ISA, "Tensor Map", "im2col mode", "Asynchronous Warpgroup Level Matrix Instructions"; the pipeline is
// CUTLASS's "warp-specialised persistent cooperative" one.
#include "hopper.cuh"
#include "mma.cuh"

constexpr int ROWS = 128, WARPS = 8, ROW_BYTES = 128, DEPTH = 64;
constexpr int PART = 32, PITCH = PART + 8;  // columns that a warp writes at a time, and its rows of them

// sum += 64 rows of A times BN rows of B, over a row's 128 bytes.
template <class E, int BN> __device__ inline void multiply(float (&sum)[BN / 2], const char* A, const char* B) {
#pragma unroll
    for (int k = 0; k < ROW_BYTES; k += 32) {
        const uint64_t a = tile_descriptor(A + k, SWIZZLE_128, 16, 1024), b = tile_descriptor(B + k, SWIZZLE_128, 16, 1024);
        if constexpr (Same<E, f16>::value) Wgmma<BN>::f16(sum, a, b, true);
        else Wgmma<BN>::bf16(sum, a, b, true);
    }
}

// The stage that comes next, and the parity of its barriers.
template <int STAGES> struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// Copies the pixels of a step: `at` is the lowest cell of the first one's window, `offset` the tap's distance from it.
__device__ inline void copy_pixels(char* to, const GatherMaps& a, Barrier* full, int c, const int (&at)[3], int n,
                                   const uint16_t (&offset)[3]) {
    if (a.rank == 1) pixels_load(to, &a.a, full, c, at[2], n, offset[2]);
    else if (a.rank == 2) pixels_load(to, &a.a, full, c, at[2], at[1], n, offset[2], offset[1]);
    else pixels_load(to, &a.a, full, c, at[2], at[1], at[0], n, offset[2], offset[1], offset[0]);
}

// One thread's work: all copies of all tiles of this block.
template <int BN, int STAGES>
__device__ inline void produce(const GatherMaps& a, char* stages, Barrier* full, Barrier* empty, int columns,
                               int64_t tiles) {
    constexpr int STAGE = (ROWS + BN) * ROW_BYTES;
    prefetch_map(&a.a), prefetch_map(&a.w);
    Ring<STAGES> next;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int64_t n = tile;
        const int column0 = take(n, columns) * BN;
        n *= ROWS;
        int at[3];
        for (int axis = 2; axis >= 0; --axis) at[axis] = take(n, a.pass.out[axis]) * a.pass.step[axis] + a.lowest[axis];
        int tap[3];
        for (tap[0] = 0; tap[0] < a.pass.taps[0]; ++tap[0])
            for (tap[1] = 0; tap[1] < a.pass.taps[1]; ++tap[1])
                for (tap[2] = 0; tap[2] < a.pass.taps[2]; ++tap[2]) {
                    uint16_t offset[3];
                    int of_w[3];
                    for (int i = 0; i < 3; ++i) {
                        offset[i] = uint16_t((a.pass.apart[i] < 0 ? tap[i] - (a.pass.taps[i] - 1) : tap[i]) * a.pass.apart[i]);
                        of_w[i] = a.tap0[i] + tap[i] * a.tap_step[i];
                    }
                    for (int c = 0; c < a.pass.C; c += DEPTH) {
                        char* const A = stages + next.stage * STAGE;
                        barrier_wait(&empty[next.stage], next.parity ^ 1);  // the first round finds all of them empty
                        barrier_arrive_expect(&full[next.stage], STAGE);
                        copy_pixels(A, a, &full[next.stage], c, at, int(n), offset);
                        box_load(A + ROWS * ROW_BYTES, &a.w, &full[next.stage], c, of_w[2], of_w[1], of_w[0], column0);
                        next.advance();
                    }
                }
    }
}

// Writes a warp's 16 rows of sums to d, 32 columns at a time through its share of shared memory.
template <class E, int BN>
__device__ inline void deliver(const GatherMaps& a, const float (&sum)[BN / 2], float* staged, int64_t row0, int column0) {
    const int lane = threadIdx.x % 32;
    // Two rows and 16 bytes of channels for each lane, or one row and every other channel.
    int64_t to[2];
    bool exists[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        int64_t n = row0 + (a.pass.wide ? lane / 4 + 8 * k : lane % 16);
        exists[k] = n < a.pass.pixels;
        to[k] = a.pass.d0;
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) to[k] += take(n, a.pass.out[axis]) * a.pass.ds[axis + 2];
        to[k] += n * a.pass.ds[0];
    }
    E* const d = static_cast<E*>(a.pass.d);
    auto finished = [&](float value, int64_t row, int m) {
        value = checked<E>(a.pass, value, row, 0, m);
        return narrow<E>(activate(a.pass.activation, value + bias_of<float>(a.pass.bias, m * a.pass.bs, a.pass.bt)));
    };
#pragma unroll 1
    for (int part = 0; part < BN / PART; ++part) {
        const int first = column0 + part * PART;
        __syncwarp();  // the part before has been read
#pragma unroll
        for (int p = 0; p < BN / PART; ++p)
            if (p == part)  // registers have no index at run time
#pragma unroll
                for (int i = 0; i < PART / 2; i += 2)
                    store(staged + (lane / 4 + i / 2 % 2 * 8) * PITCH + i / 4 * 8 + lane % 4 * 2,
                          Pack<float, 2>{sum[p * PART / 2 + i], sum[p * PART / 2 + i + 1]});
        __syncwarp();
        if (a.pass.wide) {
            const int column = lane % 4 * 8;
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                if (!exists[k] || first + column >= a.pass.M) continue;
                Pack<E, 8> values;
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    values.at[i] = finished(staged[(lane / 4 + 8 * k) * PITCH + column + i], row0 + lane / 4 + 8 * k, first + column + i);
                store(d + to[k] + first + column, values);
            }
        } else {
#pragma unroll 1
            for (int column = lane / 16; exists[0] && column < min(PART, a.pass.M - first); column += 2)
                d[to[0] + (first + column) * a.pass.ds[1]] = finished(staged[lane % 16 * PITCH + column], row0 + lane % 16, first + column);
        }
    }
}

template <class E, int BN, int STAGES>
__global__ void __launch_bounds__(384, 1) conv_wgmma(const __grid_constant__ GatherMaps a) {
    static_assert(STAGES >= 3);
    constexpr int STAGE = (ROWS + BN) * ROW_BYTES;
    __shared__ alignas(8) Barrier full[STAGES], empty[STAGES];
    char* const stages = shared_memory<char>() + (-shared_address(shared_memory<char>()) & 1023);

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], WARPS);
        barrier_init_fence();
    }
    __syncthreads();
    const int columns = (a.pass.M + BN - 1) / BN;
    const int64_t tiles = (a.pass.pixels + ROWS - 1) / ROWS * columns;
    const int steps = a.pass.taps[0] * a.pass.taps[1] * a.pass.taps[2] * ((a.pass.C + DEPTH - 1) / DEPTH);

    if (threadIdx.x < 128) {
        fewer_registers<40>();
        if (threadIdx.x == 0 && steps > 0) produce<BN, STAGES>(a, stages, full, empty, columns, tiles);
        return;
    }
    more_registers<232>();
    const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
    float* const staged = reinterpret_cast<float*>(stages + STAGES * STAGE) + warp * 16 * PITCH;
    Ring<STAGES> next;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float sum[BN / 2] = {};
        int before = 0;
        for (int step = 0; step < steps; ++step) {
            barrier_wait(&full[next.stage], next.parity);
            const char* const A = stages + next.stage * STAGE;
            wgmma_fence();
            multiply<E, BN>(sum, A + warp / 4 * (64 * ROW_BYTES), A + ROWS * ROW_BYTES);
            wgmma_commit();
            wgmma_wait<1>();  // this step's products run on; those of the step before are done
            if (step > 0 && lane == 0) barrier_arrive(&empty[before]);
            before = next.stage;
            next.advance();
        }
        wgmma_wait<0>();
        settle(sum);
        if (steps > 0 && lane == 0) barrier_arrive(&empty[before]);
        int64_t row = tile;
        const int column0 = take(row, columns) * BN;
        deliver<E, BN>(a, sum, staged, row * ROWS + warp * 16, column0);
    }
}

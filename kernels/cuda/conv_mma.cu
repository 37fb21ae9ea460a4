// Dense convolution on tensor cores: an implicit GEMM with mma.sync, for sm_80 on (16-bit halves on sm_75 too).
//
//   conv_mma    d[n, m, o] = f(bias[m] + sum over taps t, c of a[n, c, o * step + offset(t)] * w[m, c, t])
//
// is fprop (a = x, d = y) and dgrad (a = dy, d = dx). A dgrad of stride s is one such pass for each residue of dx's
// cells modulo s, with the taps that meet them: no product with a zero between dy's cells is computed.
//
//   GEMM      rows      pixels (n, o)                BM to a block
//             columns   output channels m            BN
//             sum       (t, c), c fastest            64 bytes of one tap at a time
//
// A block computes BM x BN outputs of one group with WARPS_M x WARPS_N warps. Rows of a and w come into shared memory
// 16 bytes at a time by cp.async, STAGES - 1 blocks of the sum ahead; a cell of the padding, or past the channels, is
// filled with zeros. Rows are 64 bytes; chunk j of row i lies at j ^ (i / 2 % 4), so that the eight rows of an ldmatrix
// meet all banks. Where w has its output channels side by side (CROSSED), a row is a channel c and ldmatrix
// transposes. The outputs go through shared memory too, and from there 16 bytes at a time along whichever axis of d
// is contiguous.
//
// Limits: a's channels are contiguous, and channels and pixels lie 16 bytes apart; C and, CROSSED, M fill whole
// chunks. The host packs what does not (pack.cu). Element types: mma.cuh.
#include "mma.cuh"

// Row `row`, chunk `chunk` of a tile whose rows are 64 bytes.
__device__ inline int place(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }

// Row `row`, chunk `chunk` of a tile whose rows are channels of BN outputs.
template <int BN> __device__ inline int place_crossed(int row, int chunk) { return row * BN * 2 + ((chunk ^ (row & 7)) << 4); }

// One warp's products of a stage: sum[i][j] += A's 16 rows i times B's 8 columns j, over the 64 bytes of a row.
template <class E, int TM, int TN, bool CROSSED, int BN> struct Product {
    // 16-bit halves and tf32: two steps of two chunks.
    __device__ static void add(float (&sum)[TM][TN][4], const char* A, const char* B, int row0, int column0) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t b[TN][2];
#pragma unroll
            for (int j = 0; j < TN; j += 2) {
                uint32_t tile[4];
                const int inner = lane / 8 % 2, outer = lane / 16;
                if constexpr (CROSSED)
                    load_tiles_crossed(tile, B + place_crossed<BN>(16 * step + 8 * inner + lane % 8, column0 / 8 + j + outer));
                else
                    load_tiles(tile, B + place(column0 + 8 * (j + outer) + lane % 8, 2 * step + inner));
                b[j][0] = tile[0], b[j][1] = tile[1], b[j + 1][0] = tile[2], b[j + 1][1] = tile[3];
            }
            if constexpr (Same<E, Tf32>::value)
#pragma unroll
                for (int j = 0; j < TN; ++j) b[j][0] = round_tf32(b[j][0]), b[j][1] = round_tf32(b[j][1]);
#pragma unroll
            for (int i = 0; i < TM; ++i) {
                uint32_t a[4];
                load_tiles(a, A + place(row0 + 16 * i + lane % 16, 2 * step + lane / 16));
                if constexpr (Same<E, Tf32>::value)
#pragma unroll
                    for (int r = 0; r < 4; ++r) a[r] = round_tf32(a[r]);
#pragma unroll
                for (int j = 0; j < TN; ++j) {
                    if constexpr (Same<E, f16>::value) mma_f16(sum[i][j], a, b[j][0], b[j][1]);
                    if constexpr (Same<E, bf16>::value) mma_bf16(sum[i][j], a, b[j][0], b[j][1]);
                    if constexpr (Same<E, Tf32>::value) mma_tf32(sum[i][j], a, b[j][0], b[j][1]);
                }
            }
        }
    }
};

// Three bf16 each: one step of four chunks. Element t of chunks 0 and 1 stand side by side, as those of 2 and 3 do:
// another order of the sum than in memory, the same for A and B.
template <int TM, int TN, bool CROSSED, int BN> struct Product<Ieee, TM, TN, CROSSED, BN> {
    __device__ static void add(float (&sum)[TM][TN][4], const char* A, const char* B, int row0, int column0) {
        const int lane = threadIdx.x % 32;
        Parts b[TN][2];
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            uint32_t tile[4];
            load_tiles(tile, B + place(column0 + 8 * j + lane % 8, lane / 8));
            b[j][0] = split(tile[0], tile[1]), b[j][1] = split(tile[2], tile[3]);
        }
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            Parts a[4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t tile[4];
                load_tiles(tile, A + place(row0 + 16 * i + lane % 16, 2 * half + lane / 16));
                a[2 * half] = split(tile[0], tile[2]), a[2 * half + 1] = split(tile[1], tile[3]);
            }
            add_split(sum[i], a, b);
        }
    }
};

// The place in the sum that is fetched next: a tap, and the first of a row's channels.
struct Step {
    int tap[3], c;
    __device__ void advance(const Gather& a, int channels) {
        c += channels;
        if (c < a.C) return;
        c = 0;
        if (++tap[2] < a.taps[2]) return;
        tap[2] = 0;
        if (++tap[1] < a.taps[1]) return;
        tap[1] = 0, ++tap[0];
    }
};

// What is written for the sum of one row and output channel m of all groups.
template <class E> __device__ inline float finished(const Gather& a, float sum, int64_t row, int group, int m) {
    sum = checked<E>(a, sum, row, group, m);
    return activate(a.activation, sum + bias_of<float>(a.bias, (int64_t(group) * a.M + m) * a.bs, a.bt));
}

// From rows of sums in shared memory to d, along whichever axis of it is contiguous.
template <class E, int BM, int BN, int THREADS, int PITCH>
__device__ inline void deliver(const Gather& a, const float* sums, int64_t row0, int group, int column0) {
    using T = typename Element<E>::type;
    T* const d = static_cast<T*>(a.d) + a.d0 + int64_t(group) * a.M * a.ds[1];
    auto at = [&](int64_t row) {
        const Pixel pixel(a, row);
        return pixel.n * a.ds[0] + pixel.o[0] * a.ds[2] + pixel.o[1] * a.ds[3] + pixel.o[2] * a.ds[4];
    };
    constexpr int CHUNK = 16 / sizeof(T), ACROSS = BN / CHUNK;
    const bool along_channels = a.ds[1] == 1;
#pragma unroll 1
    for (int n = threadIdx.x; a.wide && n < BM * ACROSS; n += THREADS) {
        const int row = n / ACROSS, column = n % ACROSS * CHUNK;
        if (row0 + row >= a.pixels || column0 + column >= a.M) continue;
        Pack<T, CHUNK> values;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) {
            const float sum = sums[row * PITCH + column + k];
            values.at[k] = narrow<T>(finished<E>(a, sum, row0 + row, group, column0 + column + k));
        }
        store(d + at(row0 + row) + column0 + column, values);
    }
#pragma unroll 1
    for (int n = threadIdx.x; !a.wide && n < BM * BN; n += THREADS) {
        const int row = along_channels ? n / BN : n % BM, column = along_channels ? n % BN : n / BM;
        if (row0 + row >= a.pixels || column0 + column >= a.M) continue;
        const float value = finished<E>(a, sums[row * PITCH + column], row0 + row, group, column0 + column);
        d[at(row0 + row) + (column0 + column) * a.ds[1]] = narrow<T>(value);
    }
}

template <class E, int BM, int BN, int WARPS_M, int WARPS_N, bool CROSSED, int STAGES>
__global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, 1) conv_mma(const __grid_constant__ Gather a) {
    using T = typename Element<E>::type;
    constexpr int THREADS = 32 * WARPS_M * WARPS_N, CHUNK = 16 / sizeof(T), BK = 4 * CHUNK;
    constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N, TM = WM / 16, TN = WN / 8;
    constexpr int A_ROWS = 4 * BM / THREADS, B_CHUNKS = 4 * BN / THREADS;
    constexpr int STAGE = 64 * (BM + BN), PITCH = BN + 8;
    char* const memory = shared_memory<char>();
    const int thread = threadIdx.x, warp = thread / 32, chunk = thread % 4;

    int64_t block = blockIdx.x;
    const int column0 = take(block, (a.M + BN - 1) / BN) * BN;
    const int group = int(block % a.G);
    const int64_t row0 = block / a.G * BM;
    const T* const source = static_cast<const T*>(a.a) + a.a0 + int64_t(group) * a.C * a.as[1];
    const T* const filters = static_cast<const T*>(a.w) + a.w0 + group * a.wg;

    // The rows of A that this thread fetches: where their windows begin.
    int64_t base[A_ROWS];
    int at[A_ROWS][3];
    bool exists[A_ROWS];
#pragma unroll
    for (int r = 0; r < A_ROWS; ++r) {
        const int64_t row = row0 + thread / 4 + r * (THREADS / 4);
        const Pixel pixel(a, row);
        exists[r] = row < a.pixels;
        base[r] = pixel.n * a.as[0];
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) at[r][axis] = pixel.o[axis] * a.step[axis] + a.first[axis];
    }

    Step next = {};
    auto fetch = [&](int stage) {
        char* const A = memory + stage * STAGE;
        char* const B = A + 64 * BM;
        const int c = next.c + chunk * CHUNK;
#pragma unroll
        for (int r = 0; r < A_ROWS; ++r) {
            const int d = at[r][0] + next.tap[0] * a.apart[0], h = at[r][1] + next.tap[1] * a.apart[1],
                      w = at[r][2] + next.tap[2] * a.apart[2];
            const bool inside = exists[r] && c < a.C && uint32_t(d) < uint32_t(a.source[0]) &&
                                uint32_t(h) < uint32_t(a.source[1]) && uint32_t(w) < uint32_t(a.source[2]);
            const T* from = inside ? source + base[r] + d * a.as[2] + h * a.as[3] + w * a.as[4] + c : source;
            copy_ahead(A + place(thread / 4 + r * (THREADS / 4), chunk), from, inside);
        }
        const T* const tap = filters + next.tap[0] * a.wt[0] + next.tap[1] * a.wt[1] + next.tap[2] * a.wt[2];
#pragma unroll
        for (int r = 0; r < B_CHUNKS; ++r) {
            if constexpr (CROSSED) {
                constexpr int ACROSS = BN / CHUNK;
                const int number = thread + r * THREADS, row = number / ACROSS, column = number % ACROSS;
                const int m = column0 + column * CHUNK;
                const bool inside = next.c + row < a.C && m < a.M;
                copy_ahead(B + place_crossed<BN>(row, column), inside ? tap + (next.c + row) * a.ws[1] + m : tap, inside);
            } else {
                const int row = thread / 4 + r * (THREADS / 4), m = column0 + row;
                const bool inside = c < a.C && m < a.M;
                copy_ahead(B + place(row, chunk), inside ? tap + m * a.ws[0] + c : tap, inside);
            }
        }
        next.advance(a, BK);
    };

    const int steps = a.taps[0] * a.taps[1] * a.taps[2] * ((a.C + BK - 1) / BK);
    float sum[TM][TN][4] = {};
    const int warp_row = warp / WARPS_N * WM, warp_column = warp % WARPS_N * WN;
    pipelined<STAGES>(steps, fetch, [&](int stage) {
        const char* const A = memory + stage * STAGE;
        Product<E, TM, TN, CROSSED, BN>::add(sum, A, A + 64 * BM, warp_row, warp_column);
    });

    float* const sums = shared_memory<float>();
    spread<PITCH>(sums, sum, warp_row, warp_column);
    __syncthreads();
    deliver<E, BM, BN, THREADS, PITCH>(a, sums, row0, group, column0);
}

// The gradient to the filters on tensor cores: an implicit GEMM with mma.sync, for sm_80 on (f16 on sm_75 too).
//
//   conv_mma_wgrad   w[k, c, t] = sum over n, o of y[n, k, o] * x[n, c, o * stride + t * dilation - pad]
//
//   GEMM      rows      filters k                BM to a block
//             columns   (t, c), c fastest        BN
//             sum       pixels (n, o)            BP at a time: 32 of 16-bit elements, 16 of float32
//
// A block computes BM x BN weights of one group over one part of the pixels. Channels of y and of x come into shared
// memory 16 bytes at a time by cp.async, STAGES - 1 steps ahead, pixel by pixel: both operands of the product lie
// crossed. 16-bit halves are transposed by ldmatrix, chunk j of pixel i at j ^ (i % 8); float32 is read word by word
// from rows that are 8 words longer than a multiple of 32, so that a warp meets all banks. A thread always fetches the
// same chunk of channels, and so the same tap; its pixels move on by a mixed-radix addition.
//
// With one part the sums go to w. With more, each part goes to its own place in scratch, [part][k][t, c] in float32,
// and reduce.cu adds them in order.
//
// Limits: channels of x and y are contiguous, pixels lie 16 bytes apart, C and K of a group fill whole chunks. The host
// packs what does not (pack.cu). Element types: mma.cuh.
#include "mma.cuh"

// Where an operand's pixels lie in shared memory: `B` channels to each.
template <class T, int B> struct Tile {
    static constexpr int CHUNK = 16 / sizeof(T), ACROSS = B / CHUNK;
    static constexpr int PITCH = sizeof(T) == 2 ? 2 * B : 4 * (B + 8);  // bytes of a pixel
    __device__ static int place(int pixel, int chunk) {
        return pixel * PITCH + ((sizeof(T) == 2 ? chunk ^ (pixel & 7) : chunk) << 4);
    }
};

// The pixels that a thread fetches next, moved on by a fixed number of pixels at a time.
struct Pixels {
    int64_t n;
    int o[3];
    __device__ Pixels(const Wgrad& a, int64_t index) {
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) o[axis] = take(index, a.out[axis]);
        n = index;
    }
    __device__ void advance(const Wgrad& a) {
        int carry = 0;
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) {
            o[axis] += a.advance[axis] + carry;
            carry = o[axis] >= a.out[axis];
            if (carry) o[axis] -= a.out[axis];
        }
        n += a.advance_n + carry;
    }
};

// One warp's products of a stage: sum[i][j] += y's 16 filters i times x's 8 columns j, over BP pixels.
template <class E, int TM, int TN, class TileA, class TileB> struct Product {
    __device__ static void add(float (&sum)[TM][TN][4], const char* A, const char* B, int row0, int column0) {
        const int lane = threadIdx.x % 32, inner = lane / 8 % 2, outer = lane / 16;
#pragma unroll
        for (int step = 0; step < 32; step += 16) {
            uint32_t b[TN][2];
#pragma unroll
            for (int j = 0; j < TN; j += 2) {
                uint32_t tile[4];
                load_tiles_crossed(tile, B + TileB::place(step + 8 * inner + lane % 8, column0 / 8 + j + outer));
                b[j][0] = tile[0], b[j][1] = tile[1], b[j + 1][0] = tile[2], b[j + 1][1] = tile[3];
            }
#pragma unroll
            for (int i = 0; i < TM; ++i) {
                uint32_t a[4];
                load_tiles_crossed(a, A + TileA::place(step + 8 * outer + lane % 8, row0 / 8 + 2 * i + inner));
#pragma unroll
                for (int j = 0; j < TN; ++j) {
                    if constexpr (Same<E, f16>::value) mma_f16(sum[i][j], a, b[j][0], b[j][1]);
                    else mma_bf16(sum[i][j], a, b[j][0], b[j][1]);
                }
            }
        }
    }
};

// Word by word: element `channel` of pixel `pixel`.
template <class T> __device__ inline uint32_t word(const char* tile, int pixel, int channel) {
    return *reinterpret_cast<const uint32_t*>(tile + pixel * T::PITCH + 4 * channel);
}

template <int TM, int TN, class TileA, class TileB> struct Product<Tf32, TM, TN, TileA, TileB> {
    __device__ static void add(float (&sum)[TM][TN][4], const char* A, const char* B, int row0, int column0) {
        const int lane = threadIdx.x % 32, place = lane / 4;
#pragma unroll
        for (int step = 0; step < 16; step += 8) {
            const int pixel = step + lane % 4;
            uint32_t b[TN][2];
#pragma unroll
            for (int j = 0; j < TN; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    b[j][half] = round_tf32(word<TileB>(B, pixel + 4 * half, column0 + 8 * j + place));
#pragma unroll
            for (int i = 0; i < TM; ++i) {
                uint32_t a[4];
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    a[r] = round_tf32(word<TileA>(A, pixel + 4 * (r / 2), row0 + 16 * i + place + 8 * (r % 2)));
#pragma unroll
                for (int j = 0; j < TN; ++j) mma_tf32(sum[i][j], a, b[j][0], b[j][1]);
            }
        }
    }
};

// Pixels t and t + 4 stand side by side, as t + 8 and t + 12 do: the same order for both operands.
template <int TM, int TN, class TileA, class TileB> struct Product<Ieee, TM, TN, TileA, TileB> {
    __device__ static void add(float (&sum)[TM][TN][4], const char* A, const char* B, int row0, int column0) {
        const int lane = threadIdx.x % 32, place = lane / 4, pixel = lane % 4;
        Parts b[TN][2];
#pragma unroll
        for (int j = 0; j < TN; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int column = column0 + 8 * j + place;
                b[j][half] = split(word<TileB>(B, pixel + 8 * half, column), word<TileB>(B, pixel + 8 * half + 4, column));
            }
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            Parts a[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int row = row0 + 16 * i + place + 8 * (r % 2), first = pixel + 8 * (r / 2);
                a[r] = split(word<TileA>(A, first, row), word<TileA>(A, first + 4, row));
            }
            add_split(sum[i], a, b);
        }
    }
};

// A column of the GEMM: a channel of x, seen through a tap.
struct Column {
    int c, tap[3];
    __device__ Column(const Wgrad& a, int number) {
        int64_t index = number;
        c = take(index, a.C);
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) tap[axis] = take(index, a.ksize[axis]);
    }
    __device__ int64_t weight(const Wgrad& a) const {
        return c * a.ws[1] + tap[0] * a.ws[2] + tap[1] * a.ws[3] + tap[2] * a.ws[4];
    }
};

// One weight's part summed by FMA, where the split did not hold.
__device__ inline float summed_again(const Wgrad& a, int64_t begin, int64_t end, int group, int k, const Column& column) {
    const float* const x = static_cast<const float*>(a.x) + a.x0 + (int64_t(group) * a.C + column.c) * a.xs[1];
    const float* const y = static_cast<const float*>(a.y) + a.y0 + (int64_t(group) * a.K + k) * a.ys[1];
    float sum = 0;
    for (int64_t p = begin; p < end; ++p) {
        const Pixels pixel(a, p);
        int64_t from = pixel.n * a.xs[0], at = pixel.n * a.ys[0];
        bool inside = true;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            const int cell = pixel.o[axis] * a.stride[axis] + column.tap[axis] * a.dilation[axis] - a.pad[axis];
            inside = inside && uint32_t(cell) < uint32_t(a.size[axis]);
            from += cell * a.xs[axis + 2], at += pixel.o[axis] * a.ys[axis + 2];
        }
        sum = fmaf(y[at], inside ? x[from] : 0.0f, sum);  // the padding is zeros, which are multiplied
    }
    return sum;
}

template <class E, int BM, int BN, int WARPS_M, int WARPS_N, int STAGES>
__global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, 1) conv_mma_wgrad(const __grid_constant__ Wgrad a) {
    using T = typename Element<E>::type;
    using TileA = Tile<T, BM>;
    using TileB = Tile<T, BN>;
    constexpr int THREADS = 32 * WARPS_M * WARPS_N, CHUNK = TileA::CHUNK, BP = 64 / sizeof(T);
    constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N, TM = WM / 16, TN = WN / 8;
    constexpr int A_PIXELS = BP * TileA::ACROSS / THREADS, B_PIXELS = BP * TileB::ACROSS / THREADS;
    constexpr int STAGE = BP * (TileA::PITCH + TileB::PITCH), PITCH = BN + 8;
    char* const memory = shared_memory<char>();
    const int thread = threadIdx.x, warp = thread / 32;

    const int columns = a.C * a.ksize[0] * a.ksize[1] * a.ksize[2];
    int64_t block = blockIdx.x;
    const int column0 = take(block, (columns + BN - 1) / BN) * BN;
    const int row0 = take(block, (a.K + BM - 1) / BM) * BM;
    const int group = take(block, a.G), part = int(block);
    const int64_t begin = part * a.part, end = begin + a.part < a.pixels ? begin + a.part : a.pixels;

    // What this thread fetches: a chunk of filters of y, and a chunk of channels of x through a tap.
    const int k = row0 + thread % TileA::ACROSS * CHUNK;
    const bool k_exists = k < a.K;
    const T* const y = static_cast<const T*>(a.y) + a.y0 + (int64_t(group) * a.K + k) * a.ys[1];
    const int number = column0 + thread % TileB::ACROSS * CHUNK;
    const bool c_exists = number < columns;
    const Column column(a, number);
    const T* const x = static_cast<const T*>(a.x) + a.x0 + (int64_t(group) * a.C + column.c) * a.xs[1];
    int64_t next = begin;
    constexpr int A_APART = THREADS / TileA::ACROSS, B_APART = THREADS / TileB::ACROSS;
    Pixels from_y(a, begin + thread / TileA::ACROSS), from_x(a, begin + thread / TileB::ACROSS);

    auto fetch = [&](int stage) {
        char* const A = memory + stage * STAGE;
        char* const B = A + BP * TileA::PITCH;
#pragma unroll
        for (int r = 0; r < A_PIXELS; ++r) {
            const int pixel = thread / TileA::ACROSS + r * A_APART;
            const bool inside = k_exists && next + pixel < end;
            const int64_t at = from_y.n * a.ys[0] + from_y.o[0] * a.ys[2] + from_y.o[1] * a.ys[3] + from_y.o[2] * a.ys[4];
            copy_ahead(A + TileA::place(pixel, thread % TileA::ACROSS), inside ? y + at : static_cast<const T*>(a.y), inside);
            from_y.advance(a);
        }
#pragma unroll
        for (int r = 0; r < B_PIXELS; ++r) {
            const int pixel = thread / TileB::ACROSS + r * B_APART;
            bool inside = c_exists && next + pixel < end;
            int64_t at = from_x.n * a.xs[0];
#pragma unroll
            for (int axis = 0; axis < 3; ++axis) {
                const int cell = from_x.o[axis] * a.stride[axis] + column.tap[axis] * a.dilation[axis] - a.pad[axis];
                inside = inside && uint32_t(cell) < uint32_t(a.size[axis]);
                at += cell * a.xs[axis + 2];
            }
            copy_ahead(B + TileB::place(pixel, thread % TileB::ACROSS), inside ? x + at : static_cast<const T*>(a.x), inside);
            from_x.advance(a);
        }
        next += BP;
    };
    static_assert(A_APART == B_APART, "both operands' pixels move on by the same number");

    const int64_t steps = end > begin ? (end - begin + BP - 1) / BP : 0;
    float sum[TM][TN][4] = {};
    const int warp_row = warp / WARPS_N * WM, warp_column = warp % WARPS_N * WN;
    pipelined<STAGES>(steps, fetch, [&](int stage) {
        const char* const A = memory + stage * STAGE;
        Product<E, TM, TN, TileA, TileB>::add(sum, A, A + BP * TileA::PITCH, warp_row, warp_column);
    });

    float* const sums = shared_memory<float>();
    spread<PITCH>(sums, sum, warp_row, warp_column);
    __syncthreads();
#pragma unroll 1
    for (int n = thread; n < BM * BN; n += THREADS) {
        const int row = n / BN, at = n % BN;
        const Column place(a, column0 + at);
        if (row0 + row >= a.Kw || column0 + at >= columns || place.c >= a.Cw) continue;
        const int64_t filter = int64_t(group) * a.Kw + row0 + row;
        float value = sums[row * PITCH + at];
        if constexpr (Same<E, Ieee>::value)
            if (!(fabsf(value) < INFINITY_F)) value = summed_again(a, begin, end, group, row0 + row, place);
        if (a.parts > 1) {
            const int64_t tap = (column0 + at) / a.C, weights = int64_t(a.G) * a.Kw * (columns / a.C) * a.Cw;
            const int64_t to = part * weights + (filter * (columns / a.C) + tap) * a.Cw + place.c;
            reinterpret_cast<float*>(static_cast<char*>(a.scratch) + a.s0)[to] = value;
        } else {
            static_cast<T*>(a.w)[filter * a.ws[0] + place.weight(a)] = narrow<T>(value);
        }
    }
}

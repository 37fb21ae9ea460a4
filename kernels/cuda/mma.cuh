// What the tensor-core convolutions share: the element types, and float32 as three bf16.
//
// f16, bf16   m16n8k16, sums in float32.
// Tf32        float32 with factors rounded to 11 bits, m16n8k8.
// Ieee        float32 by three bf16 of 8 bits each, x = h + m + l. Six products of m16n8k16, the small ones first,
//             l*h + h*l + m*m + m*h + h*m + h*h; each starts from zero and is added in float32, so that a tensor
//             core's truncated sums do not pile up. Where a result is not finite it is summed again by FMA: a split
//             infinity, or a value next to the largest, is not one.
//
// The products take what lies beyond the source as zeros. That is fprop's definition; dgrad has no products there, so
// that a sum next to the border which is not finite is taken again without them, whatever the type.
//
// Source: Markidis et al., "NVIDIA Tensor Core Programmability" (2018), and Ootomo and Yokota, "Recovering single
// precision accuracy from Tensor Cores" (2022), for splitting and for adding outside of the tensor core.
#pragma once
#include "conv.cuh"
#include "matrix.cuh"

struct Tf32;
struct Ieee;

// What an operand is stored as.
template <class E> struct Element { using type = E; };
template <> struct Element<Tf32> { using type = float; };
template <> struct Element<Ieee> { using type = float; };

template <class A, class B> struct Same { static constexpr bool value = false; };
template <class A> struct Same<A, A> { static constexpr bool value = true; };

// float32 as three bf16: of two values, their high, middle and low parts side by side.
struct Parts { uint32_t high, middle, low; };
__device__ inline Parts split(uint32_t first, uint32_t second) {
    float x = __uint_as_float(first), y = __uint_as_float(second);
    Parts parts;
    parts.high = pack_bf16(x, y);
    x -= __uint_as_float(parts.high << 16), y -= __uint_as_float(parts.high & 0xffff0000u);
    parts.middle = pack_bf16(x, y);
    x -= __uint_as_float(parts.middle << 16), y -= __uint_as_float(parts.middle & 0xffff0000u);
    parts.low = pack_bf16(x, y);
    return parts;
}

// sum[j] += a * b[j] to float32's accuracy, over one m16n8k16 for each of TN tiles of columns.
template <int TN>
__device__ inline void add_split(float (&sum)[TN][4], const Parts (&a)[4], const Parts (&b)[TN][2]) {
    const uint32_t high[4] = {a[0].high, a[1].high, a[2].high, a[3].high};
    const uint32_t middle[4] = {a[0].middle, a[1].middle, a[2].middle, a[3].middle};
    const uint32_t low[4] = {a[0].low, a[1].low, a[2].low, a[3].low};
#pragma unroll
    for (int j = 0; j < TN; ++j) {
        float part[4] = {};
        mma_bf16(part, low, b[j][0].high, b[j][1].high);
        mma_bf16(part, high, b[j][0].low, b[j][1].low);
        mma_bf16(part, middle, b[j][0].middle, b[j][1].middle);
        mma_bf16(part, middle, b[j][0].high, b[j][1].high);
        mma_bf16(part, high, b[j][0].middle, b[j][1].middle);
        mma_bf16(part, high, b[j][0].high, b[j][1].high);
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[j][r] += part[r];
    }
}

// A row of a gathering pass's GEMM as a place: the image, and the output along each axis.
struct Pixel {
    int64_t n;
    int o[3];
    __device__ Pixel() {}
    __device__ Pixel(const Gather& a, int64_t index) {
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) o[axis] = take(index, a.out[axis]);
        n = index;
    }
    // The cell of the source that a tap meets, which may lie beyond it.
    __device__ int cell(const Gather& a, int axis, int tap) const {
        return o[axis] * a.step[axis] + a.first[axis] + tap * a.apart[axis];
    }
};

// One output summed by FMA over the source and filters at these addresses. Beyond the source, fprop has zeros, which it
// multiplies; dgrad has no products.
template <class T>
__device__ inline float summed_again(const Gather& a, const void* from_a, const void* from_w, const Pixel& pixel, int group, int m) {
    const T* const source = static_cast<const T*>(from_a) + a.a0 + pixel.n * a.as[0] + int64_t(group) * a.C * a.as[1];
    const T* const filter = static_cast<const T*>(from_w) + a.w0 + group * a.wg + m * a.ws[0];
    const bool forward = a.apart[2] > 0;
    float sum = 0;
    for (int t = 0; t < a.taps[0]; ++t)
        for (int r = 0; r < a.taps[1]; ++r)
            for (int s = 0; s < a.taps[2]; ++s) {
                const int tap[3] = {t, r, s};
                int64_t from = 0;
                bool inside = true;
#pragma unroll
                for (int axis = 0; axis < 3; ++axis) {
                    const int cell = pixel.cell(a, axis, tap[axis]);
                    inside = inside && uint32_t(cell) < uint32_t(a.source[axis]);
                    from += cell * a.as[axis + 2];
                }
                if (!inside && !forward) continue;
                const T* const weight = filter + t * a.wt[0] + r * a.wt[1] + s * a.wt[2];
                for (int c = 0; c < a.C; ++c)
                    sum = fmaf(inside ? widen(source[from + c * a.as[1]]) : 0.0f, widen(weight[c * a.ws[1]]), sum);
            }
    return sum;
}

// A sum, taken again where it is not finite and need not be so: Ieee's split may not hold; and in dgrad, zeros beyond dy
// were multiplied by an infinite weight.
template <class E> __device__ inline float checked(const Gather& a, float sum, int64_t row, int group, int m) {
    if (fabsf(sum) < INFINITY_F) return sum;
    const Pixel pixel(a, row);
    bool again = Same<E, Ieee>::value;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        const uint32_t first = pixel.cell(a, axis, 0), last = pixel.cell(a, axis, a.taps[axis] - 1), size = a.source[axis];
        again = again || (a.apart[2] < 0 && (first >= size || last >= size));
    }
    return again ? summed_again<typename Element<E>::type>(a, a.a, a.w, pixel, group, m) : sum;
}

// The steps of a sum through a ring of STAGES parts of shared memory: fetch(stage) begins the next step's copies,
// STAGES - 1 steps ahead of multiply(stage), which finds them there.
template <int STAGES, class Count, class Fetch, class Multiply>
__device__ inline void pipelined(Count steps, Fetch fetch, Multiply multiply) {
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < steps) fetch(stage);
        commit_copies();
    }
    int stage = 0;
    for (Count step = 0; step < steps; ++step) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) fetch(stage == 0 ? STAGES - 1 : stage - 1);  // the one that all have read
        commit_copies();
        multiply(stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    wait_copies<0>();
    __syncthreads();
}

// A warp's sums from its fragments to rows of PITCH floats in shared memory.
template <int PITCH, int TM, int TN>
__device__ inline void spread(float* sums, const float (&sum)[TM][TN][4], int row0, int column0) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j)
#pragma unroll
            for (int r = 0; r < 4; r += 2) {
                const int row = row0 + 16 * i + lane / 4 + 4 * r, column = column0 + 8 * j + lane % 4 * 2;
                store(sums + row * PITCH + column, Pack<float, 2>{sum[i][j][r], sum[i][j][r + 1]});
            }
}

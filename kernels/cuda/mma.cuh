// What the tensor-core convolutions share: the element types, and float32 as three bf16.
//
// f16, bf16   m16n8k16, sums in float32.
// Tf32        float32 with factors rounded to 11 bits, m16n8k8.
// Ieee        float32 by three bf16 of 8 bits each, x = h + m + l. Six products of m16n8k16, the small ones first,
//             l*h + h*l + m*m + m*h + h*m + h*h; each starts from zero and is added in float32, so that a tensor
//             core's truncated sums do not pile up. Where a result is not finite it is summed again by FMA: a split
//             infinity, or a value next to the largest, is not one.
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

// Copies that run ahead and products of tiles, as the hardware has them. What a fragment holds: PTX ISA, section
// "Matrix multiply-accumulate operation using mma instruction".
#pragma once
#include "device.cuh"

#ifndef FASTCONV_EMULATED

__device__ inline uint32_t shared_address(const void* pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, or zeros where not `inside`. They are there once the group that they were
// committed in has been waited for, and the block has met at a barrier.
__device__ inline void copy_ahead(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
#else
    *static_cast<uint4*>(to) = inside ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}

// 4 or 8 bytes.
#if __CUDA_ARCH__ >= 800
template <int BYTES> __device__ inline void copy_ahead(void* to, const void* from, bool inside) {
    static_assert(BYTES == 4 || BYTES == 8);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
                 "r"(inside ? BYTES : 0)
                 : "memory");
}
#endif

__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `LATEST` of the thread's groups are still under way.
template <int LATEST> __device__ inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
#endif
}

// Four 8 x 8 tiles of 16-bit elements: lane l gives the address of row l % 8 of tile l / 8.
__device__ inline void load_tiles(uint32_t (&tile)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void load_tiles_crossed(uint32_t (&tile)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a * b, 16 x 8 x 16 of 16-bit elements, or 16 x 8 x 8 of tf32, summed in float32.
#define FASTCONV_MMA(name, shape, type)                                                                            \
    __device__ inline void name(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {                 \
        asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 "                              \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                             \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                              \
    }
#if __CUDA_ARCH__ >= 800
FASTCONV_MMA(mma_f16, "m16n8k16", "f16")
FASTCONV_MMA(mma_bf16, "m16n8k16", "bf16")
FASTCONV_MMA(mma_tf32, "m16n8k8", "tf32")
#else
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    for (int half = 0; half < 2; ++half)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(half ? b1 : b0));
}
#endif
#undef FASTCONV_MMA

// d += a * b, 16 x 8 x 8 of 16-bit elements.
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

#if __CUDA_ARCH__ >= 800
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

// 8 x 8 x 4 of float64.
__device__ inline void mma_f64(double (&d)[2], double a, double b) {
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+d"(d[0]), "+d"(d[1])
                 : "d"(a), "d"(b));
}

// 16 x 8 x 32 of bytes, signed or not, summed in int32.
#define FASTCONV_MMA_INT8(types)                                                                      \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." types ".s32 "                               \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <bool A_SIGNED, bool B_SIGNED>
__device__ inline void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (A_SIGNED && B_SIGNED) FASTCONV_MMA_INT8("s8.s8");
    else if constexpr (A_SIGNED) FASTCONV_MMA_INT8("s8.u8");
    else if constexpr (B_SIGNED) FASTCONV_MMA_INT8("u8.s8");
    else FASTCONV_MMA_INT8("u8.u8");
}
#undef FASTCONV_MMA_INT8
#endif

// float32 rounded to tf32's 11 bits, ties away from zero.
__device__ inline uint32_t round_tf32(uint32_t bits) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
}

// Two floats rounded to bf16, `low` in the low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

#endif

// Hopper's ways to move and multiply tiles: barriers in shared memory, bulk copies (TMA), products by warpgroups.
//
// The functions say what PTX says, one instruction each; the reference is the PTX ISA. The host emulator has the same
// ones (FASTCONV_EMULATED). Barriers need sm_80, bulk copies sm_90, wgmma and setmaxnreg sm_90a and nothing else.
#pragma once
#include "args.cuh"
#include "matrix.cuh"

// A barrier in shared memory. A phase ends when all threads have arrived and all expected bytes have landed.
using Barrier = uint64_t;

// How the 16-byte chunks of a tile's rows are permuted: the value of a descriptor's field.
enum Swizzle { SWIZZLE_NONE = 0, SWIZZLE_128 = 1, SWIZZLE_64 = 2, SWIZZLE_32 = 3 };

// A tile in shared memory as wgmma finds it; leading and stride are the bytes between its parts (PTX ISA, "Strides").
__device__ inline uint64_t tile_descriptor(const void* tile, Swizzle swizzle, uint32_t leading, uint32_t stride) {
    return uint64_t(shared_address(tile) >> 4 & 0x3fff) | uint64_t(leading >> 4 & 0x3fff) << 16 |
           uint64_t(stride >> 4 & 0x3fff) << 32 | uint64_t(swizzle) << 62;
}

#ifndef FASTCONV_EMULATED

// ---------------------------------------------------------------- barriers

// The block's barrier `id` (1 to 15; __syncthreads is 0): waits until `threads` have come, or comes without waiting.
__device__ inline void named_barrier_wait(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// One lane of a converged warp.
__device__ inline bool elected() {
#if __CUDA_ARCH__ >= 900
    uint32_t chosen;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(chosen));
    return chosen;
#else
    return threadIdx.x % 32 == 0;
#endif
}

#if __CUDA_ARCH__ >= 800
__device__ inline void barrier_init(Barrier* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ inline void barrier_arrive(Barrier* barrier) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(shared_address(barrier))
                 : "memory");
}

// Arrives once this thread's copies by copy_ahead have landed.
__device__ inline void copies_arrive(Barrier* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Waits for the end of the phase of this parity: 0 for the first one, 1 for the second, 0 again.
__device__ inline void barrier_wait(Barrier* barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
#if __CUDA_ARCH__ >= 900
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
#else
        "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
#endif
        "@!done bra again;\n}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}
#endif

#if __CUDA_ARCH__ >= 900
// Makes barrier_init visible to bulk copies.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and lets the phase wait for `bytes` more.
__device__ inline void barrier_arrive_expect(Barrier* barrier, uint32_t bytes) {
    asm volatile(
        "{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n}" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

// ---------------------------------------------------------------- bulk copies

// Makes this thread's writes to shared memory visible to bulk stores and to wgmma.
__device__ inline void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// `bytes` (a multiple of 16) that lie side by side.
__device__ inline void bulk_load(void* to, const void* from, uint32_t bytes, Barrier* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
__device__ inline void bulk_store(void* to, const void* from, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                 "r"(bytes)
                 : "memory");
}

// Bulk stores are grouped per thread. bulk_wait_read waits until their shared memory may be written again, bulk_wait
// until all has arrived.
__device__ inline void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int LATEST>
__device__ inline void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LATEST) : "memory");
}
template <int LATEST>
__device__ inline void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(LATEST) : "memory");
}

// The box of a tiled map whose first element is i0, i1, ... (fastest axis first); outside of the array it reads zeros.
__device__ inline void box_load(void* to, const TensorMap* map, Barrier* barrier, int32_t i0) {
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3}], [%2];" ::
            "r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(i0)
        : "memory");
}
__device__ inline void box_load(void* to, const TensorMap* map, Barrier* barrier, int32_t i0, int32_t i1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
        "[%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(i0), "r"(i1)
        : "memory");
}
__device__ inline void box_load(void* to, const TensorMap* map, Barrier* barrier, int32_t i0, int32_t i1, int32_t i2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(i0), "r"(i1), "r"(i2)
        : "memory");
}
__device__ inline void box_load(void* to, const TensorMap* map, Barrier* barrier, int32_t i0, int32_t i1, int32_t i2,
                                int32_t i3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6}], [%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
        : "memory");
}
__device__ inline void box_load(void* to, const TensorMap* map, Barrier* barrier, int32_t i0, int32_t i1, int32_t i2,
                                int32_t i3, int32_t i4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
        "%7}], [%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(i0), "r"(i1), "r"(i2), "r"(i3), "r"(i4)
        : "memory");
}

__device__ inline void box_store(const TensorMap* map, const void* from, int32_t i0) {
    asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%0, {%2}], [%1];" ::"l"(map),
                 "r"(shared_address(from)), "r"(i0)
                 : "memory");
}
__device__ inline void box_store(const TensorMap* map, const void* from, int32_t i0, int32_t i1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(shared_address(from)), "r"(i0), "r"(i1)
                 : "memory");
}
__device__ inline void box_store(const TensorMap* map, const void* from, int32_t i0, int32_t i1, int32_t i2) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(shared_address(from)), "r"(i0), "r"(i1), "r"(i2)
                 : "memory");
}
__device__ inline void box_store(const TensorMap* map, const void* from, int32_t i0, int32_t i1, int32_t i2,
                                 int32_t i3) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(shared_address(from)), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
                 : "memory");
}
__device__ inline void box_store(const TensorMap* map, const void* from, int32_t i0, int32_t i1, int32_t i2, int32_t i3,
                                 int32_t i4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
        "r"(shared_address(from)), "r"(i0), "r"(i1), "r"(i2), "r"(i3), "r"(i4)
        : "memory");
}

// The pixels of an im2col map from (w, h, d, n) on, each moved by the offsets of a tap, and their channels from c on.
__device__ inline void pixels_load(void* to, const TensorMap* map, Barrier* barrier, int32_t c, int32_t w, int32_t n,
                                   uint16_t s) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2], {%6};" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(n), "h"(s)
        : "memory");
}
__device__ inline void pixels_load(void* to, const TensorMap* map, Barrier* barrier, int32_t c, int32_t w, int32_t h,
                                   int32_t n, uint16_t s, uint16_t r) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"(s), "h"(r)
        : "memory");
}
__device__ inline void pixels_load(void* to, const TensorMap* map, Barrier* barrier, int32_t c, int32_t w, int32_t h,
                                   int32_t d, int32_t n, uint16_t s, uint16_t r, uint16_t t) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6, %7}], [%2], {%8, %9, %10};" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(d), "r"(n), "h"(s), "h"(r), "h"(t)
        : "memory");
}
#endif

// ---------------------------------------------------------------- wgmma

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Before the first product, and after registers of its operands were written.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `LATEST` groups are under way; until then their sums and their tiles are not to be touched.
template <int LATEST>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATEST) : "memory");
}

// The sums of products that were waited for: what reads them stays behind the wait, which names no registers.
template <int N>
__device__ inline void settle(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Registers of a thread of this warpgroup from here on: 24 to 240 in eights, in kernels with __launch_bounds__(n, 1).
template <int N>
__device__ inline void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ inline void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// d = a * b, or d += a * b where `add`: 64 x N x 16 of 16-bit elements, 64 x N x 8 of tf32. a is a tile in shared
// memory, or the warps' fragments (as of mma, 16 rows each); b is a tile. CROSSED: a tile's rows go across the sum.
template <int N>
struct Wgmma;

// The sums as operands, and their names in the instruction.
#define FASTCONV_SUMS_4(i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define FASTCONV_SUMS_8(i) FASTCONV_SUMS_4(i), FASTCONV_SUMS_4((i) + 4)
#define FASTCONV_SUMS_16(i) FASTCONV_SUMS_8(i), FASTCONV_SUMS_8((i) + 8)
#define FASTCONV_SUMS_32(i) FASTCONV_SUMS_16(i), FASTCONV_SUMS_16((i) + 16)
#define FASTCONV_SUMS_48(i) FASTCONV_SUMS_32(i), FASTCONV_SUMS_16((i) + 32)
#define FASTCONV_SUMS_64(i) FASTCONV_SUMS_32(i), FASTCONV_SUMS_32((i) + 32)
#define FASTCONV_SUMS_96(i) FASTCONV_SUMS_64(i), FASTCONV_SUMS_32((i) + 64)
#define FASTCONV_SUMS_128(i) FASTCONV_SUMS_64(i), FASTCONV_SUMS_64((i) + 64)
#define FASTCONV_NAMES_4 "%0, %1, %2, %3"
#define FASTCONV_NAMES_8 FASTCONV_NAMES_4 ", %4, %5, %6, %7"
#define FASTCONV_NAMES_16 FASTCONV_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FASTCONV_NAMES_32 \
    FASTCONV_NAMES_16     \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTCONV_NAMES_48 \
    FASTCONV_NAMES_32     \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define FASTCONV_NAMES_64 \
    FASTCONV_NAMES_48     \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTCONV_NAMES_96                                                                                              \
    FASTCONV_NAMES_64                                                                                                  \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
    "%86, %87"                                                                                                         \
    ", %88, %89, %90, %91, %92, %93, %94, %95"
#define FASTCONV_NAMES_128                                                                                             \
    FASTCONV_NAMES_96                                                                                                  \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, " \
    "%115, %116, %117, %118, %119"                                                                                     \
    ", %120, %121, %122, %123, %124, %125, %126, %127"

#define FASTCONV_WGMMA_BEGIN(N, shape, H, add)                                                   \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N shape \
    " {" FASTCONV_NAMES_##H "}, "

#define FASTCONV_WGMMA_16(type, text, N, H, I1, I2, I3, I4, I5, I6)                                                 \
    template <int A_CROSSED = 0, int B_CROSSED = 0>                                                                 \
    __device__ static void type(float (&d)[H], uint64_t a, uint64_t b, bool add) {                                  \
        asm volatile(FASTCONV_WGMMA_BEGIN(N, "k16.f32." text "." text, H, I2) "%" #H ", %" #I1 ", p, 1, 1, %" #I3   \
                                                                              ", %" #I4 ";\n}"                      \
                     : FASTCONV_SUMS_##H(0)                                                                         \
                     : "l"(a), "l"(b), "r"(int(add)), "n"(A_CROSSED), "n"(B_CROSSED));                              \
    }                                                                                                               \
    template <int B_CROSSED = 0>                                                                                    \
    __device__ static void type(float (&d)[H], const uint32_t (&a)[4], uint64_t b, bool add) {                      \
        asm volatile(FASTCONV_WGMMA_BEGIN(N, "k16.f32." text "." text, H, I5) "{%" #H ", %" #I1 ", %" #I2 ", %" #I3 \
                                                                              "}, %" #I4 ", p, 1, 1, %" #I6 ";\n}"  \
                     : FASTCONV_SUMS_##H(0)                                                                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(B_CROSSED));          \
    }

#define FASTCONV_WGMMA_TF32(N, H, I1, I2, I3, I4, I5)                                                         \
    __device__ static void tf32(float (&d)[H], uint64_t a, uint64_t b, bool add) {                            \
        asm volatile(FASTCONV_WGMMA_BEGIN(N, "k8.f32.tf32.tf32", H, I2) "%" #H ", %" #I1 ", p, 1, 1;\n}"      \
                     : FASTCONV_SUMS_##H(0)                                                                   \
                     : "l"(a), "l"(b), "r"(int(add)));                                                        \
    }                                                                                                         \
    __device__ static void tf32(float (&d)[H], const uint32_t (&a)[4], uint64_t b, bool add) {                \
        asm volatile(FASTCONV_WGMMA_BEGIN(N, "k8.f32.tf32.tf32", H, I5) "{%" #H ", %" #I1 ", %" #I2 ", %" #I3 \
                                                                        "}, %" #I4 ", p, 1, 1;\n}"            \
                     : FASTCONV_SUMS_##H(0)                                                                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));                    \
    }

// N, its sums per thread, and the numbers of the operands that follow them.
#define FASTCONV_WGMMA(N, H, I1, I2, I3, I4, I5, I6)                  \
    template <>                                                       \
    struct Wgmma<N> {                                                 \
        FASTCONV_WGMMA_16(f16, "f16", N, H, I1, I2, I3, I4, I5, I6)   \
        FASTCONV_WGMMA_16(bf16, "bf16", N, H, I1, I2, I3, I4, I5, I6) \
        FASTCONV_WGMMA_TF32(N, H, I1, I2, I3, I4, I5)                 \
    };
FASTCONV_WGMMA(8, 4, 5, 6, 7, 8, 9, 10)
FASTCONV_WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
FASTCONV_WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
FASTCONV_WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
FASTCONV_WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
FASTCONV_WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
FASTCONV_WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
FASTCONV_WGMMA(256, 128, 129, 130, 131, 132, 133, 134)
#endif
#endif

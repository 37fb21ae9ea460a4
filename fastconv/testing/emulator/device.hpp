// The functions of kernels/cuda/device.cuh, modelled by what they promise.
#pragma once
#include "cuda.hpp"
#include "hardware.hpp"

#define INFINITY_F __int_as_float(0x7f800000)

/// The dynamic shared memory of the block, 16-byte aligned.
template <class T>
T* shared_memory() {
    return static_cast<T*>(emulator::dynamic_shared());
}

inline float float_of_half(uint16_t bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint(float(fraction) * 0x1p-24f));
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

/// Rounds to nearest even; a NaN becomes 0x7fff, as on the device.
inline uint16_t half_of_float(float value) {
    unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and above
    if (magnitude < 0x38800000u)                         // subnormal: the addition rounds at 2^-24
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
    unsigned rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | (rounded - 0x38000000u) >> 13;
}

// ---------------------------------------------------------------- copies that run ahead, products of tiles

// A model is called from the kernel's own line, so that reports name it.
#define EMULATOR_MODEL inline __attribute__((always_inline))

EMULATOR_MODEL uint32_t shared_address(const void* pointer) { return emulator::shared_offset(pointer); }

#if __CUDA_ARCH__ >= 800
EMULATOR_MODEL void copy_ahead(void* to, const void* from, bool inside) {
    emulator::copy_async(to, from, 16, inside ? 16 : 0);
}
template <int BYTES>
EMULATOR_MODEL void copy_ahead(void* to, const void* from, bool inside) {
    static_assert(BYTES == 4 || BYTES == 8);
    emulator::copy_async(to, from, BYTES, inside ? BYTES : 0);
}
EMULATOR_MODEL void commit_copies() { emulator::copy_async_commit(); }
template <int LATEST>
EMULATOR_MODEL void wait_copies() {
    emulator::copy_async_wait(LATEST);
}
#else
EMULATOR_MODEL void copy_ahead(void* to, const void* from, bool inside) {
    *static_cast<uint4*>(to) = inside ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
}
EMULATOR_MODEL void commit_copies() {}
template <int LATEST>
EMULATOR_MODEL void wait_copies() {}
#endif

template <int COUNT>
EMULATOR_MODEL void load_tiles(uint32_t (&tiles)[COUNT], const void* row,
                               emulator::Site here = emulator::Site::here()) {
    emulator::load_tiles(tiles, COUNT, row, false, here);
}
template <int COUNT>
EMULATOR_MODEL void load_tiles_crossed(uint32_t (&tiles)[COUNT], const void* row,
                                       emulator::Site here = emulator::Site::here()) {
    emulator::load_tiles(tiles, COUNT, row, true, here);
}

#define EMULATOR_MMA(name, type)                                                              \
    EMULATOR_MODEL void name(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, \
                             emulator::Site here = emulator::Site::here()) {                  \
        const uint32_t b[2] = {b0, b1};                                                       \
        emulator::mma(emulator::Type::type, d, a, b, here);                                   \
    }
EMULATOR_MMA(mma_f16, f16)
#if __CUDA_ARCH__ >= 800
EMULATOR_MMA(mma_bf16, bf16)
EMULATOR_MMA(mma_tf32, tf32)
#endif
#undef EMULATOR_MMA

EMULATOR_MODEL void mma_f16(float (&d)[4], const uint32_t (&a)[2], uint32_t b,
                            emulator::Site here = emulator::Site::here()) {
    emulator::mma_half_k(emulator::Type::f16, d, a, &b, here);
}
#if __CUDA_ARCH__ >= 800
EMULATOR_MODEL void mma_bf16(float (&d)[4], const uint32_t (&a)[2], uint32_t b,
                             emulator::Site here = emulator::Site::here()) {
    emulator::mma_half_k(emulator::Type::bf16, d, a, &b, here);
}
EMULATOR_MODEL void mma_f64(double (&d)[2], double a, double b, emulator::Site here = emulator::Site::here()) {
    emulator::mma_f64(d, a, b, here);
}
template <bool A_SIGNED, bool B_SIGNED>
EMULATOR_MODEL void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             emulator::Site here = emulator::Site::here()) {
    const uint32_t b[2] = {b0, b1};
    emulator::mma_int8(d, a, b, A_SIGNED, B_SIGNED, here);
}
#endif

/// float32 rounded to tf32's 11 bits, ties away from zero.
inline uint32_t round_tf32(uint32_t bits) {
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits & 0x7fffffu ? 0x7fffffffu : bits;
    return (bits + 0x1000u) & 0xffffe000u;
}

inline uint32_t bf16_of_float(float value) {
    uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

/// Two floats rounded to bf16, `low` in the low half.
inline uint32_t pack_bf16(float low, float high) { return bf16_of_float(high) << 16 | bf16_of_float(low); }

// ---------------------------------------------------------------- Hopper's barriers, bulk copies and wgmma

struct TensorMap;

EMULATOR_MODEL void named_barrier_wait(int id, int threads, emulator::Site here = emulator::Site::here()) {
    emulator::named_barrier(id, threads, true, here);
}
EMULATOR_MODEL void named_barrier_arrive(int id, int threads, emulator::Site here = emulator::Site::here()) {
    emulator::named_barrier(id, threads, false, here);
}
inline bool elected() { return emulator::lane_number() == unsigned(__builtin_ctz(emulator::live_lanes())); }

#if __CUDA_ARCH__ >= 800
EMULATOR_MODEL void barrier_init(uint64_t* barrier, uint32_t arrivals) { emulator::barrier_init(barrier, arrivals); }
EMULATOR_MODEL void barrier_arrive(uint64_t* barrier) { emulator::barrier_arrive(barrier); }
EMULATOR_MODEL void copies_arrive(uint64_t* barrier) { emulator::copies_arrive(barrier); }
EMULATOR_MODEL void barrier_wait(uint64_t* barrier, uint32_t parity, emulator::Site here = emulator::Site::here()) {
    emulator::barrier_wait(barrier, parity, here);
}
#endif

#if __CUDA_ARCH__ >= 900
EMULATOR_MODEL void barrier_init_fence() { emulator::async_fence(); }
EMULATOR_MODEL void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    emulator::barrier_arrive_expect(barrier, bytes);
}
EMULATOR_MODEL void async_fence() { emulator::async_fence(); }
inline void prefetch_map(const TensorMap*) {}
EMULATOR_MODEL void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
    emulator::bulk_load(to, from, bytes, barrier);
}
EMULATOR_MODEL void bulk_store(void* to, const void* from, uint32_t bytes) { emulator::bulk_store(to, from, bytes); }
EMULATOR_MODEL void bulk_commit() { emulator::bulk_commit(); }
template <int LATEST>
EMULATOR_MODEL void bulk_wait_read() {
    emulator::bulk_wait(LATEST, true);
}
template <int LATEST>
EMULATOR_MODEL void bulk_wait() {
    emulator::bulk_wait(LATEST, false);
}
template <class... Index>
EMULATOR_MODEL void box_load(void* to, const TensorMap* map, uint64_t* barrier, Index... index) {
    const int32_t corner[] = {index...};
    emulator::box_load(to, map, barrier, sizeof...(index), corner);
}
template <class... Index>
EMULATOR_MODEL void box_store(const TensorMap* map, const void* from, Index... index) {
    const int32_t corner[] = {index...};
    emulator::box_store(map, from, sizeof...(index), corner);
}
EMULATOR_MODEL void pixels_load(void* to, const TensorMap* map, uint64_t* barrier, int32_t c, int32_t w, int32_t n,
                                uint16_t s) {
    const int32_t corner[] = {c, w, n};
    emulator::pixels_load(to, map, barrier, 3, corner, &s);
}
EMULATOR_MODEL void pixels_load(void* to, const TensorMap* map, uint64_t* barrier, int32_t c, int32_t w, int32_t h,
                                int32_t n, uint16_t s, uint16_t r) {
    const int32_t corner[] = {c, w, h, n};
    const uint16_t tap[] = {s, r};
    emulator::pixels_load(to, map, barrier, 4, corner, tap);
}
EMULATOR_MODEL void pixels_load(void* to, const TensorMap* map, uint64_t* barrier, int32_t c, int32_t w, int32_t h,
                                int32_t d, int32_t n, uint16_t s, uint16_t r, uint16_t t) {
    const int32_t corner[] = {c, w, h, d, n};
    const uint16_t tap[] = {s, r, t};
    emulator::pixels_load(to, map, barrier, 5, corner, tap);
}
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
EMULATOR_MODEL void wgmma_fence() { emulator::wgmma_fence(); }
EMULATOR_MODEL void wgmma_commit() { emulator::wgmma_commit(); }
template <int LATEST>
EMULATOR_MODEL void wgmma_wait(emulator::Site here = emulator::Site::here()) {
    emulator::wgmma_wait(LATEST, here);
}
template <int N>
inline void settle(float (&)[N]) {}
template <int N>
inline void more_registers() {}
template <int N>
inline void fewer_registers() {}

#define EMULATOR_WGMMA_16(type)                                                                                     \
    template <int A_CROSSED = 0, int B_CROSSED = 0>                                                                 \
    static EMULATOR_MODEL void type(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {                          \
        emulator::wgmma({emulator::Type::type, N, d, a, b, {}, false, A_CROSSED, B_CROSSED, add});                  \
    }                                                                                                               \
    template <int B_CROSSED = 0>                                                                                    \
    static EMULATOR_MODEL void type(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add) {              \
        emulator::wgmma({emulator::Type::type, N, d, 0, b, {a[0], a[1], a[2], a[3]}, true, false, B_CROSSED, add}); \
    }
template <int N>
struct Wgmma {
    EMULATOR_WGMMA_16(f16)
    EMULATOR_WGMMA_16(bf16)
    static EMULATOR_MODEL void tf32(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {
        emulator::wgmma({emulator::Type::tf32, N, d, a, b, {}, false, false, false, add});
    }
    static EMULATOR_MODEL void tf32(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
        emulator::wgmma({emulator::Type::tf32, N, d, 0, b, {a[0], a[1], a[2], a[3]}, true, false, false, add});
    }
};
#undef EMULATOR_WGMMA_16
#endif

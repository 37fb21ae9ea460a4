// The functions of kernels/cuda/device.cuh, modelled by what they promise.
#pragma once
#include "cuda.hpp"
#include "hardware.hpp"

constexpr float INFINITY_F = __builtin_huge_valf();

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
    if (magnitude < 0x38800000u)  // subnormal: the addition rounds at 2^-24
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
    unsigned rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | (rounded - 0x38000000u) >> 13;
}

// ---------------------------------------------------------------- copies that run ahead, products of tiles

// A model is called from the kernel's own line, so that reports name it.
#define EMULATOR_MODEL inline __attribute__((always_inline))

EMULATOR_MODEL uint32_t shared_address(const void* pointer) { return emulator::shared_offset(pointer); }

#if __CUDA_ARCH__ >= 800
EMULATOR_MODEL void copy_ahead(void* to, const void* from, bool inside) { emulator::copy_async(to, from, 16, inside ? 16 : 0); }
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
EMULATOR_MODEL void load_tiles(uint32_t (&tiles)[COUNT], const void* row, emulator::Site here = emulator::Site::here()) {
    emulator::load_tiles(tiles, COUNT, row, false, here);
}
template <int COUNT>
EMULATOR_MODEL void load_tiles_crossed(uint32_t (&tiles)[COUNT], const void* row, emulator::Site here = emulator::Site::here()) {
    emulator::load_tiles(tiles, COUNT, row, true, here);
}

#define EMULATOR_MMA(name, type)                                                                                         \
    EMULATOR_MODEL void name(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,                            \
                             emulator::Site here = emulator::Site::here()) {                                             \
        const uint32_t b[2] = {b0, b1};                                                                                  \
        emulator::mma(emulator::Type::type, d, a, b, here);                                                              \
    }
EMULATOR_MMA(mma_f16, f16)
#if __CUDA_ARCH__ >= 800
EMULATOR_MMA(mma_bf16, bf16)
EMULATOR_MMA(mma_tf32, tf32)
#endif
#undef EMULATOR_MMA

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

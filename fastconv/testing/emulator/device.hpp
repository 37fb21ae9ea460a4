// The functions of kernels/cuda/device.cuh, modelled by what they promise.
#pragma once
#include "cuda.hpp"

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

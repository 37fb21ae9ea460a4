// Stored dtypes and the types they are computed in.
//
//   stored                          computed in
//   f16, bf16, float                float
//   double                          double
//   int8_t, uint8_t, int32_t        int32_t
//   every other integer             itself
//
// widen() reads a stored value, narrow<T>() rounds one to nearest even; integers wrap.
#pragma once
#include "device.cuh"

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

template <class T> struct Computed { using type = T; };
template <> struct Computed<f16> { using type = float; };
template <> struct Computed<bf16> { using type = float; };
template <> struct Computed<int8_t> { using type = int32_t; };
template <> struct Computed<uint8_t> { using type = int32_t; };
template <class T> using computed = typename Computed<T>::type;

template <class T> __device__ inline computed<T> widen(T value) { return value; }
template <> __device__ inline float widen(f16 value) { return float_of_half(value.bits); }
template <> __device__ inline float widen(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

template <class T> __device__ inline T narrow(computed<T> value) { return T(value); }
template <> __device__ inline f16 narrow<f16>(float value) { return {half_of_float(value)}; }
template <> __device__ inline bf16 narrow<bf16>(float value) {
    uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40u)};  // a NaN stays one
    return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// V neighbours in memory, moved by one access where V * sizeof(T) is 4, 8 or 16 bytes.
template <class T, int V> struct alignas(V * sizeof(T)) Pack {
    T at[V];
};

template <int V, class T> __device__ inline Pack<T, V> load(const T* from) {
    return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <int V, class T> __device__ inline void store(T* to, const Pack<T, V>& values) {
    *reinterpret_cast<Pack<T, V>*>(to) = values;
}

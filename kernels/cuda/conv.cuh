// What the convolution kernels share: operands of any dtype, indices, and the geometry of a pass along one axis.
#pragma once
#include "activation.cuh"
#include "args.cuh"

enum Pass { FPROP, DGRAD, WGRAD };

// Operands that are not of one dtype per instance: an 8-bit integer of either sign, and a float of any size.
struct Byte { uint8_t bits; };
struct Any { uint8_t bits; };

// A stored value in the type that is summed in. All bits 0 are the value 0 in every dtype.
template <class A, class T> __device__ inline A value(T stored, int) { return widen(stored); }
template <class A> __device__ inline A value(Byte stored, int dtype) {
    int flip = dtype == INT8 ? 128 : 0;
    return (int(stored.bits) ^ flip) - flip;
}

// Element i of an operand.
template <class A, class T> __device__ inline A read(const T* from, int64_t i, int dtype) { return value<A>(from[i], dtype); }
template <class A> __device__ inline A read(const Any* from, int64_t i, int dtype) {
    switch (dtype) {
        case FLOAT16: return widen(reinterpret_cast<const f16*>(from)[i]);
        case BFLOAT16: return widen(reinterpret_cast<const bf16*>(from)[i]);
        case FLOAT32: return reinterpret_cast<const float*>(from)[i];
        default: return reinterpret_cast<const double*>(from)[i];
    }
}

// The weights of V channels, `stride` apart.
template <class A, int V, class T> __device__ inline void weights_of(A (&weights)[V], const T* from, int64_t stride, int type) {
    if (V > 1 && stride == 1) {
        Pack<T, V> packed = load<V>(from);
#pragma unroll
        for (int v = 0; v < V; ++v) weights[v] = value<A>(packed.at[v], type);
    } else {
#pragma unroll
        for (int v = 0; v < V; ++v) weights[v] = read<A>(from, v * stride, type);
    }
}

// The bias of a channel, 0 where there is none; its dtype is its own.
template <class A> __device__ inline A bias_of(const void* bias, int64_t i, int dtype) {
    return bias ? read<A>(static_cast<const Any*>(bias), i, dtype) : A(0);
}
template <> __device__ inline int32_t bias_of(const void* bias, int64_t i, int dtype) {
    if (!bias) return 0;
    return dtype == INT32 ? static_cast<const int32_t*>(bias)[i] : read<int32_t>(static_cast<const Byte*>(bias), i, dtype);
}

// Takes the fastest axis off a flat index: returns the place along it.
__device__ inline int take(uint32_t& index, int extent) {
    uint32_t rest = index / uint32_t(extent);
    int place = int(index - rest * uint32_t(extent));
    index = rest;
    return place;
}
__device__ inline int take(int64_t& index, int extent) {
    if (uint64_t(index) <= 0xffffffffu) {
        uint32_t flat = uint32_t(index);
        int place = take(flat, extent);
        index = flat;
        return place;
    }
    int64_t rest = index / extent;
    int place = int(index - rest * extent);
    index = rest;
    return place;
}
__device__ inline int take(int64_t& index, const Divisor& extent) { return int(split(index, extent)); }

// The cell of the source that output `at` meets through tap r along an axis, or -1.
// fprop: x's cell at * stride + r * dilation - pad. dgrad: y's cell (at + pad - r * dilation) / stride, where whole.
template <int PASS> __device__ inline int source(const Conv& a, int axis, int at, int r) {
    if (PASS == DGRAD) {
        const int scaled = at + a.pad[axis] - r * a.dilation[axis];
        if (scaled < 0) return -1;
        const int cell = int(int64_t(scaled) / a.stride[axis]);
        return cell * int(a.stride[axis]) == scaled && cell < int(a.out[axis]) ? cell : -1;
    }
    const int cell = at * int(a.stride[axis]) + r * a.dilation[axis] - a.pad[axis];
    return uint32_t(cell) < uint32_t(a.size[axis]) ? cell : -1;
}

// The places of a thread among the pixels [N, Z, P, Q]: `step` pixels further at a time, without division.
struct Odometer {
    int64_t n, dn;
    int at[3], d[3];

    __device__ Odometer(const Conv& a, int64_t first, int64_t step) {
        for (int axis = 2; axis >= 0; --axis) at[axis] = take(first, a.out[axis]), d[axis] = take(step, a.out[axis]);
        n = first, dn = step;
    }
    __device__ void advance(const Conv& a) {
        int carry = 0;
        for (int axis = 2; axis >= 0; --axis) {
            at[axis] += d[axis] + carry;
            carry = at[axis] >= int(a.out[axis]);
            if (carry) at[axis] -= int(a.out[axis]);
        }
        n += dn + carry;
    }
};

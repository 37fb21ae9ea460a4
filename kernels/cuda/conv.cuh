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

// The bias of a channel, 0 where there is none; its dtype is its own.
template <class A> __device__ inline A bias_of(const void* bias, int64_t i, int dtype) {
    return bias ? read<A>(static_cast<const Any*>(bias), i, dtype) : A(0);
}
template <> __device__ inline int32_t bias_of(const void* bias, int64_t i, int dtype) {
    if (!bias) return 0;
    return dtype == INT32 ? static_cast<const int32_t*>(bias)[i] : read<int32_t>(static_cast<const Byte*>(bias), i, dtype);
}

// Takes the fastest axis off a flat index: returns the place along it. Division is in 32 bits where that suffices.
__device__ inline int take(int64_t& index, int extent) {
    if (uint64_t(index) <= 0xffffffffu) {
        uint32_t flat = uint32_t(index), rest = flat / uint32_t(extent);
        index = rest;
        return int(flat - rest * uint32_t(extent));
    }
    int64_t rest = index / extent;
    int place = int(index - rest * extent);
    index = rest;
    return place;
}

__device__ inline int take(uint32_t& index, int extent) {
    uint32_t rest = index / uint32_t(extent);
    int place = int(index - rest * uint32_t(extent));
    index = rest;
    return place;
}

__device__ inline int64_t thread_number() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t thread_count() { return int64_t(gridDim.x) * blockDim.x; }

// The cell of the source that output `at` meets through tap r along an axis, or -1.
// fprop: x's cell at * stride + r * dilation - pad. dgrad: y's cell (at + pad - r * dilation) / stride, where whole.
template <int PASS> __device__ inline int source(const Conv& a, int axis, int at, int r) {
    if (PASS == DGRAD) {
        int scaled = at + a.pad[axis] - r * a.dilation[axis];
        int cell = scaled / a.stride[axis];
        return scaled >= 0 && cell * a.stride[axis] == scaled && cell < a.out[axis] ? cell : -1;
    }
    int cell = at * a.stride[axis] + r * a.dilation[axis] - a.pad[axis];
    return uint32_t(cell) < uint32_t(a.size[axis]) ? cell : -1;
}

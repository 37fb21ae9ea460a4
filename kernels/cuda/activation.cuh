// Activations by number: 0 none, then the order of fastconv.problem.ACTIVATIONS.
#pragma once
#include "types.cuh"

enum Activation { NONE, RELU, RELU6, LEAKY_RELU, SIGMOID, TANH, GELU, SILU };

__device__ inline float exp_of(float v) { return expf(v); }
__device__ inline double exp_of(double v) { return exp(v); }
__device__ inline float tanh_of(float v) { return tanhf(v); }
__device__ inline double tanh_of(double v) { return tanh(v); }
__device__ inline float erfc_of(float v) { return erfcf(v); }
__device__ inline double erfc_of(double v) { return erfc(v); }

template <class A> __device__ inline A sigmoid(A v) {
    // From the side where exp cannot overflow.
    A e = exp_of(v < A(0) ? v : -v);
    return v < A(0) ? e / (A(1) + e) : A(1) / (A(1) + e);
}

// Comparisons are written so that a NaN passes through.
template <class A> __device__ inline A activate(int code, A v) {
    switch (code) {
        case RELU: return v < A(0) ? A(0) : v;
        case RELU6: return v < A(0) ? A(0) : v > A(6) ? A(6) : v;
        case LEAKY_RELU: return v < A(0) ? A(0.01) * v : v;
        case SIGMOID: return sigmoid(v);
        case TANH: return tanh_of(v);
        case GELU: return v == -INFINITY_F ? A(0) : v * A(0.5) * erfc_of(-v * A(0.70710678118654752440));
        case SILU: return v == -INFINITY_F ? A(0) : v * sigmoid(v);
        default: return v;
    }
}

template <> __device__ inline int32_t activate(int code, int32_t v) {
    if (code != NONE && v < 0) return 0;
    return code == RELU6 && v > 6 ? 6 : v;
}

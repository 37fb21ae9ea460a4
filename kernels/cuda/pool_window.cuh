// What the pooling kernels share: which cells a window meets, which windows meet a cell, and a thread's place.
//
// Along an axis, tap t of output o is the cell  first(o) + t * dilation;  regular: first(o) = o * stride - pad and
// ksize taps; adaptive: first(o) = o * size / out and as many taps as reach ceil((o + 1) * size / out), at most ksize.
// Taps outside of the input are skipped: padding is never read.
//
// A thread takes V neighbouring channels of one output or cell. Threads run along channels first where those are
// adjacent (a.channels_last), else along the last spatial axis.
#pragma once
#include "args.cuh"
#include "types.cuh"

__device__ inline int64_t thread_number() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t thread_count() { return int64_t(gridDim.x) * blockDim.x; }

// rest = rest / extent; returns the remainder.
__device__ inline int32_t split(int64_t& rest, int32_t extent) {
    int64_t whole = rest / extent;
    int32_t part = int32_t(rest - whole * extent);
    rest = whole;
    return part;
}

// Channels [c, c + V) of image n at a spatial place.
struct Place {
    int64_t n;
    int32_t c, at[3];
};

template <int V> __device__ inline Place place(const Pool& a, const int32_t (&extent)[3], int64_t rest) {
    Place p;
    if (a.channels_last) p.c = split(rest, a.C / V) * V;
    for (int axis = 2; axis >= 0; --axis) p.at[axis] = split(rest, extent[axis]);
    if (!a.channels_last) p.c = split(rest, a.C / V) * V;
    p.n = rest;
    return p;
}

template <int V> __device__ inline int64_t places(const Pool& a, const int32_t (&extent)[3]) {
    return a.N * (a.C / V) * extent[0] * extent[1] * extent[2];
}

__device__ inline int64_t offset(const int64_t (&strides)[5], int64_t n, int32_t c) {
    return n * strides[0] + c * strides[1];
}

__device__ inline int64_t offset(const int64_t (&strides)[5], const Place& p) {
    return offset(strides, p.n, p.c) + p.at[0] * strides[2] + p.at[1] * strides[3] + p.at[2] * strides[4];
}

// The flat offset of a cell in the spatial extent.
__device__ inline int64_t flat(const Pool& a, int64_t d, int64_t h, int64_t w) {
    return (d * a.size[1] + h) * a.size[2] + w;
}

// The taps [begin, end) of an output lie inside of the input.
struct Taps {
    int64_t first;
    int32_t begin, end;
    __device__ int32_t count() const { return begin < end ? end - begin : 0; }
};

__device__ inline Taps taps_of(const Pool& a, int axis, int32_t o) {
    const int64_t n = a.size[axis], d = a.dilation[axis], k = a.ksize[axis];
    if (a.adaptive) {
        const int64_t m = a.out[axis], first = o * n / m;
        return {first, 0, int32_t(((o + 1) * n + m - 1) / m - first)};
    }
    const int64_t first = int64_t(o) * a.stride[axis] - a.pad[axis], room = n - first;  // until the end of the input
    const int64_t begin = first < 0 ? (-first + d - 1) / d : 0, end = room > 0 ? (room + d - 1) / d : 0;
    return {first, int32_t(begin < k ? begin : k), int32_t(end < k ? end : k)};
}

// How many taps of an output lie inside of the padded input.
__device__ inline int32_t padded_count(const Pool& a, int axis, const Taps& taps) {
    if (a.adaptive) return taps.end;
    const int64_t d = a.dilation[axis], room = int64_t(a.size[axis]) + a.pad_high[axis] - taps.first;
    const int64_t end = room > 0 ? (room + d - 1) / d : 0;
    return int32_t(end < a.ksize[axis] ? end : a.ksize[axis]);
}

// The outputs [begin, end) along an axis whose windows may meet a cell.
struct Outputs {
    int32_t begin, end;
};

__device__ inline Outputs outputs_of(const Pool& a, int axis, int32_t cell) {
    const int64_t n = a.size[axis], m = a.out[axis], i = cell;
    int64_t begin, end;
    if (a.adaptive) {
        begin = i * m / n;
        end = ((i + 1) * m + n - 1) / n;
    } else {
        const int64_t s = a.stride[axis], at = i + a.pad[axis];
        const int64_t behind = at - int64_t(a.dilation[axis]) * (a.ksize[axis] - 1);  // the first place of a last tap
        begin = behind > 0 ? (behind + s - 1) / s : 0;
        end = at / s + 1;
    }
    return {int32_t(begin), int32_t(end < m ? end : m)};
}

// The tap by which an output of outputs_of() meets the cell, or -1: dilation may step over it.
__device__ inline int32_t tap_at(const Pool& a, int axis, int32_t o, int32_t cell) {
    if (a.adaptive) return int32_t(cell - int64_t(o) * a.size[axis] / a.out[axis]);
    const int64_t beyond = int64_t(cell) + a.pad[axis] - int64_t(o) * a.stride[axis];
    if (a.dilation[axis] == 1) return int32_t(beyond);
    return beyond % a.dilation[axis] == 0 ? int32_t(beyond / a.dilation[axis]) : -1;
}

// A maximum in which a NaN is the largest and stays.
template <class A> __device__ inline A larger(A kept, A value) {
    return value > kept || value != value ? value : kept;
}

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

// Channels [c, c + V) of image n at a spatial place.
struct Place {
    int64_t n;
    int32_t c, at[3];
};

template <int V> __device__ inline Place place(const Pool& a, int64_t rest) {
    Place p;
    if (a.channels_last) p.c = int32_t(split(rest, a.packs)) * V;
#pragma unroll
    for (int axis = 2; axis >= 0; --axis) p.at[axis] = int32_t(split(rest, a.over[axis]));
    if (!a.channels_last) p.c = int32_t(split(rest, a.packs)) * V;
    p.n = rest;
    return p;
}

__device__ inline int64_t places(const Pool& a) {
    return a.N * a.packs.value * a.over[0].value * a.over[1].value * a.over[2].value;
}

__device__ inline int64_t offset(const int64_t (&strides)[5], int64_t n, int32_t c) {
    return n * strides[0] + c * strides[1];
}

__device__ inline int64_t offset(const int64_t (&strides)[5], const Place& p) {
    return offset(strides, p.n, p.c) + p.at[0] * strides[2] + p.at[1] * strides[3] + p.at[2] * strides[4];
}

// The flat offset of a cell in the spatial extent.
__device__ inline int64_t flat(const Pool& a, int64_t d, int64_t h, int64_t w) {
    return (d * a.size[1].value + h) * a.size[2].value + w;
}

// The taps [begin, end) of an output lie inside of the input.
struct Taps {
    int64_t first;
    int32_t begin, end;
    __device__ int32_t count() const { return begin < end ? end - begin : 0; }
};

__device__ inline bool holds(const Taps& taps, int64_t t) { return t >= taps.begin && t < taps.end; }

// The offset in x of a tap along a spatial axis.
__device__ inline int64_t cell(const Pool& a, const Taps& taps, int axis, int64_t t) {
    return (taps.first + t * a.dilation[axis].value) * a.xs[axis + 2];
}

// n / d, rounded up.
__device__ inline int64_t up(int64_t n, const Divisor& d) { return (n + d.value - 1) / d; }

__device__ inline Taps taps_of(const Pool& a, int axis, int32_t o) {
    const int64_t n = a.size[axis].value, k = a.ksize[axis].value;
    if (a.adaptive) {
        const int64_t first = o * n / a.out[axis];
        return {first, 0, int32_t(up((o + 1) * n, a.out[axis]) - first)};
    }
    const int64_t first = o * a.stride[axis].value - a.pad[axis], room = n - first;  // until the end of the input
    const int64_t begin = first < 0 ? up(-first, a.dilation[axis]) : 0, end = room > 0 ? up(room, a.dilation[axis]) : 0;
    return {first, int32_t(begin < k ? begin : k), int32_t(end < k ? end : k)};
}

// How many taps of an output lie inside of the padded input.
__device__ inline int32_t padded_count(const Pool& a, int axis, const Taps& taps) {
    if (a.adaptive) return taps.end;
    const int64_t room = a.size[axis].value + a.pad_high[axis] - taps.first, k = a.ksize[axis].value;
    const int64_t end = room > 0 ? up(room, a.dilation[axis]) : 0;
    return int32_t(end < k ? end : k);
}

// The outputs [begin, end) along an axis whose windows may meet a cell.
struct Outputs {
    int32_t begin, end;
};

__device__ inline Outputs outputs_of(const Pool& a, int axis, int32_t cell) {
    const int64_t m = a.out[axis].value;
    int64_t begin, end;
    if (a.adaptive) {
        begin = cell * m / a.size[axis];
        end = up((cell + 1) * m, a.size[axis]);
    } else {
        const int64_t at = int64_t(cell) + a.pad[axis];
        const int64_t behind = at - a.dilation[axis].value * (a.ksize[axis].value - 1);  // the first place of a last tap
        begin = behind > 0 ? up(behind, a.stride[axis]) : 0;
        end = at / a.stride[axis] + 1;
    }
    return {int32_t(begin), int32_t(end < m ? end : m)};
}

// The tap by which an output of outputs_of() meets the cell, or -1: dilation may step over it.
__device__ inline int32_t tap_at(const Pool& a, int axis, int32_t o, int32_t cell) {
    if (a.adaptive) return cell - int32_t(o * a.size[axis].value / a.out[axis]);
    int64_t tap = int64_t(cell) + a.pad[axis] - o * a.stride[axis].value;
    if (a.dilation[axis].value == 1) return int32_t(tap);
    return split(tap, a.dilation[axis]) == 0 ? int32_t(tap) : -1;
}

// A maximum in which a NaN is the largest and stays.
template <class A> __device__ inline A larger(A kept, A value) {
    return value > kept || value != value ? value : kept;
}

// Max pooling, its gradient, and max unpooling.
//
//   maxpool_fprop     y[n, c, o] = max of the cells of window o; the flat offset or the tap number of the first maximum
//   maxpool_fprop_strips, maxpool_fprop_wide
//                     the same in planes of pixels, for K x K windows that step by S and for windows of many cells
//   maxpool_check     flags an index that is no cell of its window, nor -1
//   maxpool_dgrad     dx[n, c, i] = sum of dy[n, c, o] over the windows o whose first maximum is cell i
//   maxpool_dgrad_blocks
//                     the same for K x K windows that step by S, whose maxima are noted by tap numbers
//   maxunpool_check   flags an index that is no cell of the extent
//   maxunpool_clear, maxunpool_claim
//                     winner[n, c, indices[n, c, o]] = the last o, plus one
//   maxunpool_fprop   x[n, c, i] = y[n, c, winner], 0 where there is none
//   maxunpool_dgrad   y[n, c, o] = x[n, c, indices[n, c, o]] where o is the winner, else 0
//
// A NaN is larger than any number; a window over no cell gives minus infinity or the integer's minimum, and the index
// -1. Threads as in pool_window.cuh; no shared memory. The gradient gathers, in the order of o. The winners are taken by
// atomic maxima, whose order changes no result.
#include "pool_window.cuh"

// What a window over no cell gives.
template <class X> __device__ inline computed<X> lowest() {
    if constexpr (computed<X>(0.5f) != computed<X>(0)) return -INFINITY_F;
    else return X(-1) < X(0) ? X(uint64_t(1) << (8 * sizeof(X) - 1)) : X(0);
}

// Whether a value replaces an earlier maximum: ties go to the first, and so do NaNs.
template <class A> __device__ inline bool beats(A value, A kept) {
    return value > kept || (value != value && kept == kept);
}

// Tap numbers of V > 1 channels have 32 bits to save registers: the host keeps larger windows to V = 1.
template <int V> struct Number { using type = int32_t; };
template <> struct Number<1> { using type = int64_t; };

constexpr int NO_TAP = 255;  // of the 8 bits of a stored tap number

// What fprop leaves of an output: the maxima, and where asked their tap numbers in bytes, or their offsets.
template <class X, int V, class Tap>
__device__ inline void note(const Pool& a, const Place& o, const computed<X> (&best)[V], const Tap (&tap)[V]) {
    if (a.y) {
        Pack<X, V> values;
#pragma unroll
        for (int k = 0; k < V; ++k) values.at[k] = narrow<X>(best[k]);
        store(static_cast<X*>(a.y) + offset(a.ys, o), values);
    }
    if (a.scratch) {
        Pack<uint8_t, V> taps;
#pragma unroll
        for (int k = 0; k < V; ++k) taps.at[k] = uint8_t(tap[k] < 0 ? NO_TAP : tap[k]);
        store(static_cast<uint8_t*>(a.scratch) + offset(a.ss, o), taps);
    }
    if (a.indices) {
        int64_t* const indices = static_cast<int64_t*>(a.indices) + offset(a.is, o);
#pragma unroll
        for (int k = 0; k < V; ++k) {
            int64_t rest = tap[k], index = -1;
            if (rest >= 0) {
                const int64_t w = taps_of(a, 2, o.at[2]).first + split(rest, a.ksize[2]) * a.dilation[2].value;
                const int64_t h = taps_of(a, 1, o.at[1]).first + split(rest, a.ksize[1]) * a.dilation[1].value;
                index = flat(a, taps_of(a, 0, o.at[0]).first + rest * a.dilation[0].value, h, w);
            }
            indices[k * a.is[1]] = index;
        }
    }
}

template <class X, int V>
__global__ void __launch_bounds__(256, 2) maxpool_fprop(const __grid_constant__ Pool a) {
    using A = computed<X>;
    using Tap = typename Number<V>::type;
    for (int64_t i = thread_number(); i < places(a); i += thread_count()) {
        const Place o = place<V>(a, i);
        const Taps z = taps_of(a, 0, o.at[0]), p = taps_of(a, 1, o.at[1]), q = taps_of(a, 2, o.at[2]);
        const bool any = z.count() && p.count() && q.count();
        const Tap first = any ? (Tap(z.begin) * Tap(a.ksize[1]) + p.begin) * Tap(a.ksize[2]) + q.begin : -1;
        A best[V];
        Tap tap[V];
#pragma unroll
        for (int k = 0; k < V; ++k) {
            best[k] = lowest<X>();
            tap[k] = first;
        }
        const X* const x = static_cast<const X*>(a.x) + offset(a.xs, o.n, o.c);
        for (int32_t t = z.begin; t < z.end; ++t) {
            const X* const plane = x + cell(a, z, 0, t);
            for (int32_t r = p.begin; r < p.end; ++r) {
                const X* const row = plane + cell(a, p, 1, r);
                const Tap number = (Tap(t) * Tap(a.ksize[1]) + r) * Tap(a.ksize[2]);
                for (int32_t s = q.begin; s < q.end; ++s) {
                    const Pack<X, V> values = load<V>(row + cell(a, q, 2, s));
#pragma unroll
                    for (int k = 0; k < V; ++k) {
                        const A value = widen(values.at[k]);
                        if (beats(value, best[k])) best[k] = value, tap[k] = number + s;
                    }
                }
            }
        }
        note<X, V>(a, o, best, tap);
    }
}

// K x K windows that step by S in planes of pixels: a thread takes ROWS outputs of a column, and reads a row of x once
// for all of them.
constexpr int ROWS = 4;

template <class X, int K, int S>
__global__ void __launch_bounds__(256, 2) maxpool_fprop_strips(const __grid_constant__ Pool a) {
    using A = computed<X>;
    for (int64_t i = thread_number(); i < places(a); i += thread_count()) {
        Place o = place<1>(a, i);
        o.at[1] *= ROWS;
        const int64_t h = int64_t(o.at[1]) * S - a.pad[1], w = int64_t(o.at[2]) * S - a.pad[2];
        const X* const x = static_cast<const X*>(a.x) + offset(a.xs, o.n, o.c) + o.at[0] * a.xs[2] + h * a.xs[3] + w * a.xs[4];
        A best[ROWS];
        int32_t tap[ROWS];
#pragma unroll
        for (int k = 0; k < ROWS; ++k) {
            const Taps p = taps_of(a, 1, o.at[1] + k), q = taps_of(a, 2, o.at[2]);
            best[k] = lowest<X>();
            tap[k] = p.count() && q.count() ? p.begin * K + q.begin : -1;
        }
#pragma unroll
        for (int row = 0; row < (ROWS - 1) * S + K; ++row) {
            const bool inside = h + row >= 0 && h + row < a.size[1].value;
#pragma unroll
            for (int s = 0; s < K; ++s) {
                // What lies outside beats nothing.
                const bool there = inside && w + s >= 0 && w + s < a.size[2].value;
                const A value = there ? widen(x[row * a.xs[3] + s * a.xs[4]]) : lowest<X>();
#pragma unroll
                for (int k = 0; k < ROWS; ++k) {
                    const int t = row - k * S;
                    if (t >= 0 && t < K && beats(value, best[k])) best[k] = value, tap[k] = t * K + s;
                }
            }
        }
#pragma unroll
        for (int k = 0; k < ROWS; ++k, ++o.at[1])
            if (o.at[1] < a.out[1].value) note<X, 1, int32_t>(a, o, {best[k]}, {tap[k]});
    }
}

// Windows of many cells in planes of pixels: a warp per output, its lanes along the taps.
template <class X> __global__ void __launch_bounds__(256, 2) maxpool_fprop_wide(const __grid_constant__ Pool a) {
    using A = computed<X>;
    const int lane = threadIdx.x % 32;
    const int64_t all = a.ksize[0].value * a.ksize[1].value * a.ksize[2].value;
    for (int64_t i = thread_number() / 32; i < places(a); i += thread_count() / 32) {
        const Place o = place<1>(a, i);
        const Taps z = taps_of(a, 0, o.at[0]), p = taps_of(a, 1, o.at[1]), q = taps_of(a, 2, o.at[2]);
        const X* const x = static_cast<const X*>(a.x) + offset(a.xs, o.n, o.c);
        A best = lowest<X>();
        int64_t tap = -1;
        for (int64_t number = lane; number < all; number += 32) {
            int64_t t = number;
            const int64_t s = split(t, a.ksize[2]), r = split(t, a.ksize[1]);
            if (!holds(z, t) || !holds(p, r) || !holds(q, s)) continue;
            const A value = widen(x[cell(a, z, 0, t) + cell(a, p, 1, r) + cell(a, q, 2, s)]);
            if (tap < 0 || beats(value, best)) best = value, tap = number;
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const A value = __shfl_xor_sync(~0u, best, step);
            const int64_t number = __shfl_xor_sync(~0u, tap, step);
            if (number < 0) continue;
            const bool first = number < tap && !beats(best, value);  // of two that are alike
            if (tap < 0 || beats(value, best) || first) best = value, tap = number;
        }
        if (lane == 0) note<X, 1, int64_t>(a, o, {best}, {tap});
    }
}

__device__ inline bool meets(const Pool& a, int axis, int32_t o, int64_t cell) {
    const Taps taps = taps_of(a, axis, o);
    int64_t tap = cell - taps.first;
    return tap >= 0 && split(tap, a.dilation[axis]) == 0 && tap < taps.end;  // a cell is no tap before begin
}

__global__ void __launch_bounds__(256, 2) maxpool_check(const __grid_constant__ Pool a) {
    const int64_t cells = a.size[0].value * a.size[1].value * a.size[2].value;
    for (int64_t i = thread_number(); i < places(a); i += thread_count()) {
        const Place o = place<1>(a, i);
        int64_t rest = static_cast<const int64_t*>(a.indices)[offset(a.is, o)];
        if (rest == -1) continue;
        bool right = rest >= 0 && rest < cells;
        right = right && meets(a, 2, o.at[2], split(rest, a.size[2]));
        right = right && meets(a, 1, o.at[1], split(rest, a.size[1]));
        right = right && meets(a, 0, o.at[0], rest);
        if (!right) *static_cast<int32_t*>(a.flag) = 1;
    }
}

// How a first maximum was noted: by a tap number, or by the flat offset of its cell.
template <class T> __device__ inline T noted(const Pool& a, const Place& i, int32_t t, int32_t r, int32_t s);
template <> __device__ inline uint8_t noted<uint8_t>(const Pool& a, const Place&, int32_t t, int32_t r, int32_t s) {
    return uint8_t((t * int32_t(a.ksize[1].value) + r) * int32_t(a.ksize[2].value) + s);
}
template <> __device__ inline int64_t noted<int64_t>(const Pool& a, const Place& i, int32_t, int32_t, int32_t) {
    return flat(a, i.at[0], i.at[1], i.at[2]);
}

// A pack as one access, where the compiler would rather load the values that are picked, one by one.
template <int V, class T> __device__ inline Pack<T, V> load_whole(const T* from) {
    if constexpr (V * sizeof(T) == 16) {
        Pack<T, V> values;
        *reinterpret_cast<uint4*>(&values) = __ldg(reinterpret_cast<const uint4*>(from));
        return values;
    } else {
        return load<V>(from);
    }
}

template <class G, class T, int V>
__global__ void __launch_bounds__(256, 2) maxpool_dgrad(const __grid_constant__ Pool a) {
    for (int64_t number = thread_number(); number < places(a); number += thread_count()) {
        const Place i = place<V>(a, number);
        const Outputs z = outputs_of(a, 0, i.at[0]), p = outputs_of(a, 1, i.at[1]), q = outputs_of(a, 2, i.at[2]);
        const G* const dy = static_cast<const G*>(a.y) + offset(a.ys, i.n, i.c);
        const T* const notes = static_cast<const T*>(a.indices) + offset(a.is, i.n, i.c);
        computed<G> sum[V] = {};
        for (int32_t d = z.begin; d < z.end; ++d) {
            const int32_t t = tap_at(a, 0, d, i.at[0]);
            for (int32_t h = p.begin; h < p.end && t >= 0; ++h) {
                const int32_t r = tap_at(a, 1, h, i.at[1]);
                for (int32_t w = q.begin; w < q.end && r >= 0; ++w) {
                    const int32_t s = tap_at(a, 2, w, i.at[2]);
                    if (s < 0) continue;
                    const T mine = noted<T>(a, i, t, r, s);
                    const Pack<T, V> taken = load<V>(notes + d * a.is[2] + h * a.is[3] + w * a.is[4]);
                    const Pack<G, V> share = load_whole<V>(dy + d * a.ys[2] + h * a.ys[3] + w * a.ys[4]);
#pragma unroll
                    for (int k = 0; k < V; ++k)
                        sum[k] += taken.at[k] == mine ? widen(share.at[k]) : computed<G>(0);
                }
            }
        }
        Pack<G, V> values;
#pragma unroll
        for (int k = 0; k < V; ++k) values.at[k] = narrow<G>(sum[k]);
        store(static_cast<G*>(a.dx) + offset(a.dxs, i), values);
    }
}

// K x K windows that step by S: a thread takes a block of S x S cells that the same windows meet, by taps that are known.
template <class G, int K, int S, int V>
__global__ void __launch_bounds__(256, 2) maxpool_dgrad_blocks(const __grid_constant__ Pool a) {
    constexpr int M = (K + S - 1) / S;
    for (int64_t number = thread_number(); number < places(a); number += thread_count()) {
        Place i = place<V>(a, number);
        const int32_t p = i.at[1] + a.pad[1] / S, q = i.at[2] + a.pad[2] / S;  // the last window that meets the block
        const G* const dy = static_cast<const G*>(a.y) + offset(a.ys, i.n, i.c) + i.at[0] * a.ys[2];
        const uint8_t* const notes = static_cast<const uint8_t*>(a.indices) + offset(a.is, i.n, i.c) + i.at[0] * a.is[2];
        computed<G> sum[S][S][V] = {};
#pragma unroll
        for (int m = M - 1; m >= 0; --m) {
#pragma unroll
            for (int n = M - 1; n >= 0; --n) {
                const int64_t h = p - m, w = q - n;
                if (h < 0 || h >= a.out[1].value || w < 0 || w >= a.out[2].value) continue;
                const Pack<uint8_t, V> taken = load<V>(notes + h * a.is[3] + w * a.is[4]);
                const Pack<G, V> share = load_whole<V>(dy + h * a.ys[3] + w * a.ys[4]);
#pragma unroll
                for (int u = 0; u < S && m * S + u < K; ++u)
#pragma unroll
                    for (int v = 0; v < S && n * S + v < K; ++v)
#pragma unroll
                        for (int k = 0; k < V; ++k)
                            sum[u][v][k] +=
                                taken.at[k] == (m * S + u) * K + n * S + v ? widen(share.at[k]) : computed<G>(0);
            }
        }
#pragma unroll
        for (int u = 0; u < S; ++u)
#pragma unroll
            for (int v = 0; v < S; ++v) {
                i.at[1] = p * S - a.pad[1] + u, i.at[2] = q * S - a.pad[2] + v;
                if (i.at[1] < 0 || i.at[1] >= a.size[1].value || i.at[2] < 0 || i.at[2] >= a.size[2].value) continue;
                Pack<G, V> values;
#pragma unroll
                for (int k = 0; k < V; ++k) values.at[k] = narrow<G>(sum[u][v][k]);
                store(static_cast<G*>(a.dx) + offset(a.dxs, i), values);
            }
    }
}

// ---------------------------------------------------------------- unpooling

__device__ inline uint32_t* winner(const Pool& a, const Place& at, int64_t cell) {
    return static_cast<uint32_t*>(a.scratch) + offset(a.ss, at.n, at.c) + cell * a.ss[4];
}

__device__ inline int64_t index_of(const Pool& a, const Place& o) {
    return static_cast<const int64_t*>(a.indices)[offset(a.is, o)];
}

__device__ inline uint32_t rank(const Pool& a, const Place& o) {
    return uint32_t((o.at[0] * a.out[1].value + o.at[1]) * a.out[2].value + o.at[2] + 1);
}

__global__ void __launch_bounds__(256, 2) maxunpool_check(const __grid_constant__ Pool a) {
    const int64_t cells = a.size[0].value * a.size[1].value * a.size[2].value;
    for (int64_t i = thread_number(); i < places(a); i += thread_count()) {
        const int64_t index = index_of(a, place<1>(a, i));
        if (index < 0 || index >= cells) *static_cast<int32_t*>(a.flag) = 1;
    }
}

__global__ void __launch_bounds__(256, 2) maxunpool_clear(const __grid_constant__ Pool a) {
    for (int64_t i = thread_number(); i < places(a); i += thread_count())
        static_cast<uint32_t*>(a.scratch)[i] = 0;
}

__global__ void __launch_bounds__(256, 2) maxunpool_claim(const __grid_constant__ Pool a) {
    for (int64_t i = thread_number(); i < places(a); i += thread_count()) {
        const Place o = place<1>(a, i);
        atomicMax(winner(a, o, index_of(a, o)), rank(a, o));
    }
}

// B is an unsigned integer of the values' size: they are only moved.
template <class B>
__global__ void __launch_bounds__(256, 2) maxunpool_fprop(const __grid_constant__ Pool a) {
    for (int64_t number = thread_number(); number < places(a); number += thread_count()) {
        const Place i = place<1>(a, number);
        const uint32_t won = *winner(a, i, flat(a, i.at[0], i.at[1], i.at[2]));
        B value = 0;
        if (won) {
            int64_t rest = won - 1;
            Place o = i;
            for (int axis = 2; axis >= 0; --axis) o.at[axis] = int32_t(split(rest, a.out[axis]));
            value = static_cast<const B*>(a.y)[offset(a.ys, o)];
        }
        static_cast<B*>(a.x)[offset(a.xs, i)] = value;
    }
}

template <class B>
__global__ void __launch_bounds__(256, 2) maxunpool_dgrad(const __grid_constant__ Pool a) {
    for (int64_t number = thread_number(); number < places(a); number += thread_count()) {
        const Place o = place<1>(a, number);
        const int64_t index = index_of(a, o);
        B value = 0;
        if (*winner(a, o, index) == rank(a, o)) {
            int64_t rest = index;
            Place i = o;
            for (int axis = 2; axis >= 0; --axis) i.at[axis] = int32_t(split(rest, a.size[axis]));
            value = static_cast<const B*>(a.x)[offset(a.xs, i)];
        }
        static_cast<B*>(a.y)[offset(a.ys, o)] = value;
    }
}

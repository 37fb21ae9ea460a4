// Average pooling and its gradient.
//
//   avgpool_fprop   y[n, c, o] = (sum of the cells of window o) / divisor(o)
//   avgpool_fprop_wide
//                   the same in planes of pixels, for windows of many cells
//   avgpool_dgrad   dx[n, c, i] = sum of dy[n, c, o] / divisor(o) over the windows o that meet cell i
//
// divisor(o) is what was given, or how many cells the window meets, of the padded input where padding counts; an
// average over no cell is 0. Sums run in the order of taps or of o. Threads as in pool_window.cuh; no shared memory.
#include "pool_window.cuh"

__device__ inline int32_t cells_along(const Pool& a, int axis, const Taps& taps) {
    return a.count_include_pad ? padded_count(a, axis, taps) : taps.count();
}

// A is a float type; a product of counts or a divisor is rounded to it once.
template <class A> __device__ inline A divisor(const Pool& a, const Taps& z, const Taps& p, const Taps& q) {
    if (a.divisor) return A(a.divisor);
    const int64_t cells = int64_t(cells_along(a, 0, z)) * cells_along(a, 1, p) * cells_along(a, 2, q);
    return A(cells ? cells : 1);
}

template <class X, int V>
__global__ void __launch_bounds__(256, 2) avgpool_fprop(const __grid_constant__ Pool a) {
    using A = computed<X>;
    for (int64_t i = thread_number(); i < places(a); i += thread_count()) {
        const Place o = place<V>(a, i);
        const Taps z = taps_of(a, 0, o.at[0]), p = taps_of(a, 1, o.at[1]), q = taps_of(a, 2, o.at[2]);
        const X* const x = static_cast<const X*>(a.x) + offset(a.xs, o.n, o.c);
        A sum[V] = {};
        for (int32_t t = z.begin; t < z.end; ++t) {
            const X* const plane = x + cell(a, z, 0, t);
            for (int32_t r = p.begin; r < p.end; ++r) {
                const X* const row = plane + cell(a, p, 1, r);
                for (int32_t s = q.begin; s < q.end; ++s) {
                    const Pack<X, V> values = load<V>(row + cell(a, q, 2, s));
#pragma unroll
                    for (int k = 0; k < V; ++k) sum[k] += widen(values.at[k]);
                }
            }
        }
        const A count = divisor<A>(a, z, p, q);
        Pack<X, V> values;
#pragma unroll
        for (int k = 0; k < V; ++k) values.at[k] = narrow<X>(sum[k] / count);
        store(static_cast<X*>(a.y) + offset(a.ys, o), values);
    }
}

// Windows of many cells in planes of pixels: a warp per output, its lanes along the taps.
template <class X> __global__ void __launch_bounds__(256, 2) avgpool_fprop_wide(const __grid_constant__ Pool a) {
    using A = computed<X>;
    const int lane = threadIdx.x % 32;
    const int64_t all = a.ksize[0].value * a.ksize[1].value * a.ksize[2].value;
    for (int64_t i = thread_number() / 32; i < places(a); i += thread_count() / 32) {
        const Place o = place<1>(a, i);
        const Taps z = taps_of(a, 0, o.at[0]), p = taps_of(a, 1, o.at[1]), q = taps_of(a, 2, o.at[2]);
        const X* const x = static_cast<const X*>(a.x) + offset(a.xs, o.n, o.c);
        A sum = 0;
        for (int64_t number = lane; number < all; number += 32) {
            int64_t t = number;
            const int64_t s = split(t, a.ksize[2]), r = split(t, a.ksize[1]);
            if (holds(z, t) && holds(p, r) && holds(q, s))
                sum += widen(x[cell(a, z, 0, t) + cell(a, p, 1, r) + cell(a, q, 2, s)]);
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (lane == 0) static_cast<X*>(a.y)[offset(a.ys, o)] = narrow<X>(sum / divisor<A>(a, z, p, q));
    }
}

template <class X, int V>
__global__ void __launch_bounds__(256, 2) avgpool_dgrad(const __grid_constant__ Pool a) {
    using A = computed<X>;
    for (int64_t number = thread_number(); number < places(a); number += thread_count()) {
        const Place i = place<V>(a, number);
        const Outputs z = outputs_of(a, 0, i.at[0]), p = outputs_of(a, 1, i.at[1]), q = outputs_of(a, 2, i.at[2]);
        const X* const dy = static_cast<const X*>(a.y) + offset(a.ys, i.n, i.c);
        A sum[V] = {};
        for (int32_t d = z.begin; d < z.end; ++d) {
            if (tap_at(a, 0, d, i.at[0]) < 0) continue;
            const Taps along_d = taps_of(a, 0, d);
            for (int32_t h = p.begin; h < p.end; ++h) {
                if (tap_at(a, 1, h, i.at[1]) < 0) continue;
                const Taps along_h = taps_of(a, 1, h);
                for (int32_t w = q.begin; w < q.end; ++w) {
                    if (tap_at(a, 2, w, i.at[2]) < 0) continue;
                    const A count = divisor<A>(a, along_d, along_h, taps_of(a, 2, w));
                    const Pack<X, V> share = load<V>(dy + d * a.ys[2] + h * a.ys[3] + w * a.ys[4]);
#pragma unroll
                    for (int k = 0; k < V; ++k) sum[k] += widen(share.at[k]) / count;
                }
            }
        }
        Pack<X, V> values;
#pragma unroll
        for (int k = 0; k < V; ++k) values.at[k] = narrow<X>(sum[k]);
        store(static_cast<X*>(a.dx) + offset(a.dxs, i), values);
    }
}

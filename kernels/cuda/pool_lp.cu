// Lp pooling and its gradient.
//
//   lppool_fprop   y[n, c, o] = (sum over the cells of window o of |x|^p)^(1/p), scaled by the largest against overflow
//   lppool_dgrad   dx[n, c, i] = sum over the windows o that meet i of dy[n, c, o] * sign(x) * (|x| / norm(o))^(p - 1)
//
// The gradient reads the norms that lppool_fprop left in scratch, in the type computed in. A window whose norm is 0
// has no gradient. A thread per output or cell, as in pool_window.cuh; no
// shared memory.
#include "pool_window.cuh"

__device__ inline float power(float base, float p) { return powf(base, p); }
__device__ inline double power(double base, double p) { return pow(base, p); }
__device__ inline float root_of(float v) { return sqrtf(v); }
__device__ inline double root_of(double v) { return sqrt(v); }
__device__ inline float size_of(float v) { return fabsf(v); }
__device__ inline double size_of(double v) { return fabs(v); }

template <class A> __device__ inline A raised(A base, A p) {
    if (p == A(1)) return base;
    if (p == A(0.5)) return root_of(base);
    return p == A(2) ? base * base : power(base, p);
}

// Calls use(value) for every cell of a window.
template <class X, class Use>
__device__ inline void each_cell(const Pool& a, const X* x, const Taps& z, const Taps& p, const Taps& q, Use use) {
    for (int32_t t = z.begin; t < z.end; ++t) {
        const X* const plane = x + cell(a, z, 0, t);
        for (int32_t r = p.begin; r < p.end; ++r) {
            const X* const row = plane + cell(a, p, 1, r);
            for (int32_t s = q.begin; s < q.end; ++s)
                use(widen(row[cell(a, q, 2, s)]));
        }
    }
}

template <class X> __global__ void __launch_bounds__(256, 2) lppool_fprop(const __grid_constant__ Pool a) {
    using A = computed<X>;
    const A exponent = A(a.p), root = A(1.0 / a.p);
    for (int64_t i = thread_number(); i < places(a); i += thread_count()) {
        const Place o = place<1>(a, i);
        const Taps z = taps_of(a, 0, o.at[0]), p = taps_of(a, 1, o.at[1]), q = taps_of(a, 2, o.at[2]);
        const X* const x = static_cast<const X*>(a.x) + offset(a.xs, o.n, o.c);
        A scale = 0, sum = 0;
        each_cell(a, x, z, p, q, [&](A value) { scale = larger(scale, size_of(value)); });
        if (!(scale > A(0) && scale < A(INFINITY_F))) scale = 1;
        each_cell(a, x, z, p, q, [&](A value) { sum += raised(size_of(value) / scale, exponent); });
        const A norm = scale * raised(sum, root);
        if (a.y) static_cast<X*>(a.y)[offset(a.ys, o)] = narrow<X>(norm);
        if (a.scratch) static_cast<A*>(a.scratch)[offset(a.ss, o)] = norm;
    }
}

// sign(x) * (|x| / norm)^(p - 1)
template <class A> __device__ inline A slope(A x, A norm, A exponent) {
    if (x == A(0)) return A(0);
    const A size = raised(size_of(x) / (norm == A(0) ? A(1) : norm), exponent);
    return x < A(0) ? -size : x > A(0) ? size : x;  // a NaN stays one
}

template <class X> __global__ void __launch_bounds__(256, 2) lppool_dgrad(const __grid_constant__ Pool a) {
    using A = computed<X>;
    const A exponent = A(a.p - 1.0);
    for (int64_t number = thread_number(); number < places(a); number += thread_count()) {
        const Place i = place<1>(a, number);
        const Outputs z = outputs_of(a, 0, i.at[0]), p = outputs_of(a, 1, i.at[1]), q = outputs_of(a, 2, i.at[2]);
        const X* const dy = static_cast<const X*>(a.y) + offset(a.ys, i.n, i.c);
        const A* const norms = static_cast<const A*>(a.scratch) + offset(a.ss, i.n, i.c);
        const A x = widen(static_cast<const X*>(a.x)[offset(a.xs, i)]);
        A sum = 0;
        for (int32_t d = z.begin; d < z.end; ++d) {
            if (tap_at(a, 0, d, i.at[0]) < 0) continue;
            for (int32_t h = p.begin; h < p.end; ++h) {
                if (tap_at(a, 1, h, i.at[1]) < 0) continue;
                for (int32_t w = q.begin; w < q.end; ++w) {
                    if (tap_at(a, 2, w, i.at[2]) < 0) continue;
                    const A norm = norms[d * a.ss[2] + h * a.ss[3] + w * a.ss[4]];
                    sum += widen(dy[d * a.ys[2] + h * a.ys[3] + w * a.ys[4]]) * slope(x, norm, exponent);
                }
            }
        }
        static_cast<X*>(a.dx)[offset(a.dxs, i)] = narrow<X>(sum);
    }
}

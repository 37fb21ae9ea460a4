// Convolution by its definition: right for every problem, strides, groups and dtypes.
//
//   conv_fprop_direct   y[n,k,p]   = f(b[k] + sum over c, r of x[n, c, p*stride + r*dilation - pad] * w[k,c,r])
//   conv_dgrad_direct   x[n,c,h]   = f(b[c] + sum over k, r of y[n, k, (h + pad - r*dilation)/stride] * w[k,c,r])
//   conv_wgrad_direct   w[k,c,r]   = sum over n, p of y[n,k,p] * x[n, c, p*stride + r*dilation - pad]
//
// fprop and dgrad: a thread sums B output channels of one pixel, over taps and then channels. Threads lie side by side
// along pixels or, where the channels of the result do, along blocks of channels (Walk). Packed instances move 16
// bytes at a time: OUTPUTS where result and filters have their output channels side by side (fprop of NHWC with HWIO),
// SUMS where source and filters have the channels that are summed over so (fprop of NHWC with OHWI, dgrad with HWIO).
//
// Two blocks share a multiprocessor, but for scalar fprop, which would spill for it on sm_120.
//
// wgrad: a block sums B filters' weights at one (c, tap) for each of its `lanes`; its other threads share the pixels.
// Their sums are added in shared memory as a tree, which has the same shape in every run.
#include "conv.cuh"

enum Packed { SCALAR, OUTPUTS, SUMS };

template <class T, class R, int P> struct Shape {
    static constexpr int B = P == OUTPUTS ? 16 / sizeof(R) : 4;  // output channels of a thread
    static constexpr int V = P == SUMS ? 16 / sizeof(T) : 1;     // channels summed at a time
};

// acc[b] += sum over the V channels at `from` of source * filter; m of the B output channels exist.
template <class A, int P, int B, int V, class T>
__device__ inline void add(A (&acc)[B], const T* from, const T* filter, int64_t wm, int m, int type, int filter_type) {
    if constexpr (P == SUMS) {
        Pack<T, V> cells = load<V>(from);
#pragma unroll
        for (int b = 0; b < B; ++b) {
            if (b >= m) break;
            Pack<T, V> weights = load<V>(filter + b * wm);
#pragma unroll
            for (int v = 0; v < V; ++v) acc[b] += widen(cells.at[v]) * widen(weights.at[v]);
        }
    } else if constexpr (P == OUTPUTS) {
        A cell = widen(*from);
        Pack<T, B> weights = load<B>(filter);
#pragma unroll
        for (int b = 0; b < B; ++b) acc[b] += cell * widen(weights.at[b]);
    } else {
        A cell = read<A>(from, 0, type);
#pragma unroll
        for (int b = 0; b < B; ++b)
            if (b < m) acc[b] += cell * read<A>(filter, b * wm, filter_type);
    }
}

// A pointer to element i of an operand that may be stored in any dtype.
template <class T> __device__ inline const T* element(const void* base, int64_t i, int) { return static_cast<const T*>(base) + i; }
template <> __device__ inline const Any* element<Any>(const void* base, int64_t i, int dtype) {
    return static_cast<const Any*>(base) + i * (dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2);
}

// fprop and dgrad: `source` is what is read, with M output channels and L summed ones per group.
template <int PASS, class T, class R, int P> __device__ inline void gather(const Conv& a) {
    using A = computed<R>;
    constexpr int B = Shape<T, R, P>::B, V = Shape<T, R, P>::V;
    constexpr bool forward = PASS == FPROP;
    const int G = a.groups, blocks = a.blocks, K = a.K / G, C = a.C / G, M = forward ? K : C, L = forward ? C : K;
    const int64_t* ss = forward ? a.xs : a.ys;
    const int64_t* rs = forward ? a.ys : a.xs;
    const Divisor* extent = forward ? a.out : a.size;
    const int64_t wm = a.ws[forward ? 0 : 1], wl = a.ws[forward ? 1 : 0], wg = a.ws[0] * K;
    const void* from = forward ? a.x : a.y;
    R* to = static_cast<R*>(forward ? a.y : a.x);
    const int type = forward ? a.xt : a.yt;
    const int64_t total = a.N * G * blocks * extent[0] * extent[1] * extent[2];

    for (int64_t flat = thread_number(); flat < total; flat += thread_count()) {
        int64_t rest = flat;
        int block = 0, g = 0, at[3];
        if (a.walk & CHANNELS) block = take(rest, a.blocks), g = take(rest, a.groups);
        for (int axis = 2; axis >= 0; --axis) at[axis] = take(rest, extent[axis]);
        if (!(a.walk & CHANNELS)) block = take(rest, a.blocks), g = take(rest, a.groups);
        const int64_t n = rest;
        const int first = block * B, m = min(B, M - first);
        const int64_t base = n * ss[0] + int64_t(g) * L * ss[1], filters = g * wg + first * wm;

        A acc[B] = {};
        for (int t = 0; t < int(a.ksize[0]); ++t) {
            const int d = source<PASS>(a, 0, at[0], t);
            if (d < 0) continue;
            for (int r = 0; r < int(a.ksize[1]); ++r) {
                const int h = source<PASS>(a, 1, at[1], r);
                if (h < 0) continue;
                for (int s = 0; s < int(a.ksize[2]); ++s) {
                    const int w = source<PASS>(a, 2, at[2], s);
                    if (w < 0) continue;
                    const int64_t cell = base + d * ss[2] + h * ss[3] + w * ss[4];
                    const int64_t tap = filters + t * a.ws[2] + r * a.ws[3] + s * a.ws[4];
                    for (int l = 0; l < L; l += V)
                        add<A, P, B, V>(acc, element<T>(from, cell + l * ss[1], type),
                                        element<T>(a.w, tap + l * wl, a.wt), wm, m, type, a.wt);
                }
            }
        }

        const int64_t channel = int64_t(g) * M + first;
        R* result = to + n * rs[0] + channel * rs[1] + at[0] * rs[2] + at[1] * rs[3] + at[2] * rs[4];
        Pack<R, B> values;
#pragma unroll
        for (int b = 0; b < B; ++b)
            if (b < m) values.at[b] = narrow<R>(activate(a.activation, acc[b] + bias_of<A>(a.bias, (channel + b) * a.bs, a.bt)));
        if constexpr (P == OUTPUTS) {
            store<B>(result, values);
        } else {
#pragma unroll
            for (int b = 0; b < B; ++b)
                if (b < m) result[b * rs[1]] = values.at[b];
        }
    }
}

template <class T, class R, int P> __global__ void __launch_bounds__(256, P == SCALAR ? 1 : 2) conv_fprop_direct(const __grid_constant__ Conv a) {
    gather<FPROP, T, R, P>(a);
}

template <class T, class R, int P> __global__ void __launch_bounds__(256, 2) conv_dgrad_direct(const __grid_constant__ Conv a) {
    gather<DGRAD, T, R, P>(a);
}

template <class T, class R, int P> __global__ void __launch_bounds__(256, 2) conv_wgrad_direct(const __grid_constant__ Conv a) {
    using A = computed<R>;
    constexpr int B = Shape<T, R, P>::B;
    __shared__ A sums[256][B];
    const int G = a.groups, M = a.K / G, L = a.C / G, bundles = a.blocks;
    const int lane = threadIdx.x % a.lanes, row = threadIdx.x / a.lanes, rows = 256 / a.lanes;
    const int64_t total = int64_t(G) * bundles * L * a.ksize[0] * a.ksize[1] * a.ksize[2];

    for (int64_t flat = blockIdx.x; flat < total; flat += gridDim.x) {
        int64_t rest = flat;
        int tap[3];
        for (int axis = 2; axis >= 0; --axis) tap[axis] = take(rest, a.ksize[axis]);
        const int bundle = take(rest, a.blocks), g = take(rest, a.groups), l = int(rest);
        const int first = (bundle * a.lanes + lane) * B, m = min(B, M - first);
        const int64_t k = int64_t(g) * M + first, c = int64_t(g) * L + l;

        A acc[B] = {};
        for (Odometer pixel(a, row, rows); m > 0 && pixel.n < a.N; pixel.advance(a)) {
            const int d = source<WGRAD>(a, 0, pixel.at[0], tap[0]), h = source<WGRAD>(a, 1, pixel.at[1], tap[1]);
            const int w = source<WGRAD>(a, 2, pixel.at[2], tap[2]);
            if (d < 0 || h < 0 || w < 0) continue;
            const int64_t cell = pixel.n * a.xs[0] + c * a.xs[1] + d * a.xs[2] + h * a.xs[3] + w * a.xs[4];
            const int64_t y = pixel.n * a.ys[0] + k * a.ys[1] + pixel.at[0] * a.ys[2] + pixel.at[1] * a.ys[3] + pixel.at[2] * a.ys[4];
            add<A, P, B, 1>(acc, element<T>(a.x, cell, a.xt), element<T>(a.y, y, a.yt), a.ys[1], m, a.xt, a.yt);
        }
#pragma unroll
        for (int b = 0; b < B; ++b) sums[threadIdx.x][b] = acc[b];
        for (int half = rows / 2; half > 0; half /= 2) {
            __syncthreads();
            if (row < half)
#pragma unroll
                for (int b = 0; b < B; ++b) sums[threadIdx.x][b] += sums[threadIdx.x + half * a.lanes][b];
        }
        if (row == 0) {
            R* to = static_cast<R*>(a.w) + k * a.ws[0] + l * a.ws[1] + tap[0] * a.ws[2] + tap[1] * a.ws[3] + tap[2] * a.ws[4];
#pragma unroll
            for (int b = 0; b < B; ++b)
                if (b < m) to[b * a.ws[0]] = narrow<R>(sums[threadIdx.x][b]);
        }
        __syncthreads();
    }
}

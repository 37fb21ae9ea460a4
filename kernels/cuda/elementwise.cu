// Activations on their own, their gradients, and the gradient of a bias.
//
//   activation_fprop   y = act(x)
//   activation_dgrad   dx = dy * act'(saved), saved being the activation's output, or its input for gelu and silu
//   bias_grad_partial  partial[part, c] = sum over the part's n, o of y[n, c, o]
//   bias_grad          b[c] = sum of the parts
//
// Elementwise: a thread takes V neighbours of arrays that are one run of memory (V > 1: 16-byte accesses, the rest one
// by one), or one element by its place along up to 8 axes. Sums: a block of `lanes` threads along channels and the
// others along pixels, V neighbours each (of channels where those are adjacent, else of pixels); each thread adds in
// order, then the block in a tree in shared memory, then the parts in float64 in order. No atomics.
#include "activation.cuh"
#include "args.cuh"

// The derivative of an activation at its output, or at its input for gelu and silu. A NaN passes through.
template <class A> __device__ inline A slope(int code, A at) {
    const A finite = at == A(INFINITY_F) || at == A(-INFINITY_F) ? A(0) : at;
    switch (code) {
        case RELU: return at <= A(0) ? A(0) : A(1);
        case RELU6: return at <= A(0) || at >= A(6) ? A(0) : A(1);
        case LEAKY_RELU: return at <= A(0) ? A(0.01) : A(1);
        case SIGMOID: return at * (A(1) - at);
        case TANH: return A(1) - at * at;
        case GELU: return A(0.5) * erfc_of(at * A(-0.70710678118654752440)) +
                          finite * (A(0.39894228040143267794) * exp_of(A(-0.5) * at * at));
        case SILU: return sigmoid(at) * (A(1) + finite * sigmoid(-at));
        default: return A(1);
    }
}

__device__ inline void places(const Map& a, int64_t rest, int64_t& y, int64_t& x, int64_t& saved) {
    y = x = saved = 0;
    for (int axis = a.axes - 1; axis >= 0; --axis) {
        const int64_t part = split(rest, a.shape[axis]);
        y += part * a.ys[axis], x += part * a.xs[axis], saved += part * a.ss[axis];
    }
}

template <class X, int V>
__global__ void __launch_bounds__(256) activation_fprop(const __grid_constant__ Map a) {
    X* const y = static_cast<X*>(a.y);
    const X* const x = static_cast<const X*>(a.x);
    const int64_t packs = V > 1 ? a.count / V : 0;
    for (int64_t i = thread_number(); i < packs; i += thread_count()) {
        Pack<X, V> values = load<V>(x + i * V);
#pragma unroll
        for (int k = 0; k < V; ++k) values.at[k] = narrow<X>(activate(a.activation, widen(values.at[k])));
        store(y + i * V, values);
    }
    for (int64_t i = packs * V + thread_number(); i < a.count; i += thread_count()) {
        int64_t to, from, saved;
        places(a, i, to, from, saved);
        y[to] = narrow<X>(activate(a.activation, widen(x[from])));
    }
}

template <class X, int V>
__global__ void __launch_bounds__(256) activation_dgrad(const __grid_constant__ Map a) {
    X* const dx = static_cast<X*>(a.y);
    const X *const dy = static_cast<const X*>(a.x), *const at = static_cast<const X*>(a.saved);
    const int64_t packs = V > 1 ? a.count / V : 0;
    for (int64_t i = thread_number(); i < packs; i += thread_count()) {
        Pack<X, V> values = load<V>(dy + i * V);
        const Pack<X, V> places = load<V>(at + i * V);
#pragma unroll
        for (int k = 0; k < V; ++k)
            values.at[k] = narrow<X>(widen(values.at[k]) * slope(a.activation, widen(places.at[k])));
        store(dx + i * V, values);
    }
    for (int64_t i = packs * V + thread_number(); i < a.count; i += thread_count()) {
        int64_t to, from, saved;
        places(a, i, to, from, saved);
        dx[to] = narrow<X>(widen(dy[from]) * slope(a.activation, widen(at[saved])));
    }
}

// ---------------------------------------------------------------- sums

template <class X, int V>
__global__ void __launch_bounds__(256) bias_grad_partial(const __grid_constant__ BiasGrad a) {
    using A = computed<X>;
    __shared__ A sums[256 * V];
    const int lane = threadIdx.x % a.lanes, row = threadIdx.x / a.lanes, rows = blockDim.x / a.lanes;
    const int along_channels = a.channels_last ? V : 1, along_pixels = V / along_channels;
    const int32_t blocks = (a.C + a.lanes * along_channels - 1) / (a.lanes * along_channels);
    const int32_t c = (blockIdx.x % blocks * a.lanes + lane) * along_channels, part = blockIdx.x / blocks;
    const int64_t packs = a.N * a.plane.value;
    const int64_t per_part = (packs + a.parts - 1) / a.parts, begin = part * per_part;
    const int64_t end = begin + per_part < packs ? begin + per_part : packs;
    const X* const y = static_cast<const X*>(a.y) + c * a.ys[1];
    A sum[V] = {};
    for (int64_t i = begin + row; i < end && c < a.C; i += rows) {
        int64_t n = i, rest = split(n, a.plane) * along_pixels;
        int64_t at = n * a.ys[0] + split(rest, a.size[2]) * a.ys[4];
        at += split(rest, a.size[1]) * a.ys[3] + rest * a.ys[2];
        const Pack<X, V> values = load<V>(y + at);
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] += widen(values.at[k]);
    }
#pragma unroll
    for (int k = 0; k < V; ++k) sums[threadIdx.x * V + k] = sum[k];
    for (int width = rows / 2; width > 0; width /= 2) {
        __syncthreads();
        if (row < width) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                sum[k] += sums[(threadIdx.x + width * a.lanes) * V + k];
                sums[threadIdx.x * V + k] = sum[k];
            }
        }
    }
    if (row > 0 || c >= a.C) return;
    A* const partial = static_cast<A*>(a.partial) + int64_t(part) * a.C + c;
    if (a.channels_last) {
#pragma unroll
        for (int k = 0; k < V; ++k) partial[k] = sum[k];
    } else {
        A total = sum[0];
#pragma unroll
        for (int k = 1; k < V; ++k) total += sum[k];
        *partial = total;
    }
}

template <class X> __global__ void __launch_bounds__(256) bias_grad(const __grid_constant__ BiasGrad a) {
    using A = computed<X>;
    for (int64_t c = thread_number(); c < a.C; c += thread_count()) {
        double total = 0;
        for (int64_t part = 0; part < a.parts; ++part) total += static_cast<const A*>(a.partial)[part * a.C + c];
        static_cast<X*>(a.b)[c * a.bs] = narrow<X>(A(total));
    }
}

// Convolution with one channel per group: each channel of x has its own filter, or m = K/C of them.
//
//   conv_fprop_depthwise   y[n,k,p]  = f(b[k] + sum over r of x[n, k/m, p*stride + r*dilation - pad] * w[k,0,r])
//   conv_dgrad_depthwise   x[n,c,h]  = f(b[c] + sum over j < m, r of y[n, c*m+j, (h + pad - r*dilation)/stride] * w[c*m+j,0,r])
//   conv_wgrad_depthwise   w[k,0,r]  = sum over n, p of y[n,k,p] * x[n, k/m, p*stride + r*dilation - pad]
//
// fprop and dgrad: a thread sums V channels of one pixel. V = 1 serves any layout, threads side by side along pixels or
// channels (Walk); V channels of 16 bytes are moved at a time where m = 1 and channels lie side by side in x and y.
//
// wgrad: a block sums TAPS taps of V channels for each of its `lanes`, and its other threads share the pixels, so that
// y is read once for TAPS taps. With splits, blocks sum parts of the pixels into scratch[split, k, r], and reduce.cu
// adds them in order. Within a block, sums are added in shared memory as a tree: 256 * V of them.
#include "conv.cuh"

constexpr int TAPS = 9;

template <int PASS, class T, class R, int V> __device__ inline void gather(const Conv& a) {
    using A = computed<R>;
    constexpr bool forward = PASS == FPROP;
    const int multiple = a.K / a.C, blocks = a.blocks;
    const int64_t* ss = forward ? a.xs : a.ys;
    const int64_t* rs = forward ? a.ys : a.xs;
    const Divisor* extent = forward ? a.out : a.size;
    const T* from = static_cast<const T*>(forward ? a.x : a.y);
    const T* filters = static_cast<const T*>(a.w);
    const int type = forward ? a.xt : a.yt;
    const int64_t total = a.N * blocks * extent[0] * extent[1] * extent[2];

    for (int64_t flat = thread_number(); flat < total; flat += thread_count()) {
        int64_t n = flat;
        int channel = 0, at[3];
        if (a.walk & CHANNELS) channel = take(n, a.blocks) * V;
        for (int axis = 2; axis >= 0; --axis) at[axis] = take(n, extent[axis]);
        if (!(a.walk & CHANNELS)) channel = take(n, a.blocks) * V;

        A acc[V] = {};
        for (int j = 0; j < (forward ? 1 : multiple); ++j) {
            const int filter = forward ? channel : channel * multiple + j;
            const T* cells = from + n * ss[0] + (forward ? channel / multiple : filter) * ss[1];
            for (int t = 0; t < int(a.ksize[0]); ++t) {
                const int d = source<PASS>(a, 0, at[0], t);
                if (d < 0) continue;
                for (int r = 0; r < int(a.ksize[1]); ++r) {
                    const int h = source<PASS>(a, 1, at[1], r);
                    if (h < 0) continue;
                    for (int s = 0; s < int(a.ksize[2]); ++s) {
                        const int w = source<PASS>(a, 2, at[2], s);
                        if (w < 0) continue;
                        Pack<T, V> cell = load<V>(cells + d * ss[2] + h * ss[3] + w * ss[4]);
                        A weights[V];
                        weights_of(weights, filters + filter * a.ws[0] + t * a.ws[2] + r * a.ws[3] + s * a.ws[4], a.ws[0], a.wt);
#pragma unroll
                        for (int v = 0; v < V; ++v) acc[v] += value<A>(cell.at[v], type) * weights[v];
                    }
                }
            }
        }
        Pack<R, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v)
            result.at[v] = narrow<R>(activate(a.activation, acc[v] + bias_of<A>(a.bias, (channel + v) * a.bs, a.bt)));
        R* to = static_cast<R*>(forward ? a.y : a.x);
        store<V>(to + n * rs[0] + channel * rs[1] + at[0] * rs[2] + at[1] * rs[3] + at[2] * rs[4], result);
    }
}

template <class T, class R, int V> __global__ void __launch_bounds__(256, 2) conv_fprop_depthwise(const __grid_constant__ Conv a) {
    gather<FPROP, T, R, V>(a);
}

template <class T, class R, int V> __global__ void __launch_bounds__(256, 2) conv_dgrad_depthwise(const __grid_constant__ Conv a) {
    gather<DGRAD, T, R, V>(a);
}

template <class T, class R, int V> __global__ void __launch_bounds__(256, V > 1 ? 1 : 2) conv_wgrad_depthwise(const __grid_constant__ Conv a) {
    using A = computed<R>;
    __shared__ A sums[256][V];
    __shared__ int64_t moves[TAPS];
    __shared__ int at[TAPS][3];
    const int taps = a.ksize[0] * a.ksize[1] * a.ksize[2], multiple = a.K / a.C, blocks = a.K / V;
    const int lane = threadIdx.x % a.lanes, row = threadIdx.x / a.lanes, rows = 256 / a.lanes;

    uint32_t rest = blockIdx.x;
    const int first_tap = take(rest, (taps - 1) / TAPS + 1) * TAPS;
    const int bundle = take(rest, (blocks - 1) / a.lanes + 1), part_number = int(rest);
    const int block = bundle * a.lanes + lane, k = block * V, c = k / multiple;
    const int64_t pixels = a.N * a.out[0] * a.out[1] * a.out[2], part = (pixels + a.splits - 1) / a.splits;
    const int64_t first = min(pixels, part * part_number), end = block < blocks ? min(pixels, first + part) : 0;

    if (threadIdx.x < TAPS) {
        int64_t tap = first_tap + threadIdx.x, move = 0;
        for (int axis = 2; axis >= 0; --axis) {
            const int step = take(tap, a.ksize[axis]) * a.dilation[axis];
            at[threadIdx.x][axis] = step;
            move += step * a.xs[2 + axis];
        }
        moves[threadIdx.x] = move;
    }
    __syncthreads();

    A acc[TAPS][V] = {};
    Odometer pixel(a, first + row, rows);
    for (int64_t index = first + row; index < end; index += rows, pixel.advance(a)) {
        const int d = pixel.at[0] * int(a.stride[0]) - a.pad[0], h = pixel.at[1] * int(a.stride[1]) - a.pad[1];
        const int w = pixel.at[2] * int(a.stride[2]) - a.pad[2];
        const T* y = static_cast<const T*>(a.y) + pixel.n * a.ys[0] + k * a.ys[1] + pixel.at[0] * a.ys[2] + pixel.at[1] * a.ys[3] + pixel.at[2] * a.ys[4];
        const T* x = static_cast<const T*>(a.x) + pixel.n * a.xs[0] + c * a.xs[1] + d * a.xs[2] + h * a.xs[3] + w * a.xs[4];
        Pack<T, V> gradient = load<V>(y);
#pragma unroll
        for (int i = 0; i < TAPS; ++i) {
            if (first_tap + i >= taps || uint32_t(d + at[i][0]) >= uint32_t(a.size[0]) ||
                uint32_t(h + at[i][1]) >= uint32_t(a.size[1]) || uint32_t(w + at[i][2]) >= uint32_t(a.size[2])) continue;
            Pack<T, V> cell = load<V>(x + moves[i]);
#pragma unroll
            for (int v = 0; v < V; ++v) acc[i][v] += value<A>(gradient.at[v], a.yt) * value<A>(cell.at[v], a.xt);
        }
    }

#pragma unroll
    for (int i = 0; i < TAPS; ++i) {
        if (first_tap + i >= taps) break;
#pragma unroll
        for (int v = 0; v < V; ++v) sums[threadIdx.x][v] = acc[i][v];
        for (int half = rows / 2; half > 0; half /= 2) {
            __syncthreads();
            if (row < half)
#pragma unroll
                for (int v = 0; v < V; ++v) sums[threadIdx.x][v] += sums[threadIdx.x + half * a.lanes][v];
        }
        if (row == 0 && block < blocks) {
            int64_t tap = first_tap + i, offset = 0;
            A* parts = static_cast<A*>(a.scratch) + (part_number * int64_t(a.K) + k) * taps + tap;
            for (int axis = 2; axis >= 0; --axis) offset += take(tap, a.ksize[axis]) * a.ws[2 + axis];
            R* result = static_cast<R*>(a.w) + k * a.ws[0] + offset;
#pragma unroll
            for (int v = 0; v < V; ++v) {
                if (a.splits > 1) parts[v * int64_t(taps)] = sums[threadIdx.x][v];
                else result[v * a.ws[0]] = narrow<R>(sums[threadIdx.x][v]);
            }
        }
        __syncthreads();
    }
}

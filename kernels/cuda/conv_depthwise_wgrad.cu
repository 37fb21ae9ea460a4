// The gradient to depthwise filters in one pass over x and dy: a block sums every tap of its channels' filters.
//
//   conv_depthwise_wgrad   w[c,t] = sum over n, p of y[n,c,p] * x[n, c, p*stride + t*dilation - pad]
//
// A thread sums one row of K taps, of V channels, in registers, while both operands slide past it along the last axis:
// OUTS outputs at a time, of whose K + (OUTS - 1) * S cells the last K - S stay for the next. The threads of a block are
// lanes along channels (16 bytes each where V > 1), then workers, which share the rows of outputs, then the filter's
// rows. So all rows of the filter meet a row of outputs at about the same time, and x and y come from memory once,
// for the other rows from the first-level cache.
//
// The host orders the axes. Where channels lie side by side, lanes run along them, and the last axis is W. Else there
// is one lane, workers lie side by side along W (axis 1 here) and the last axis is H.
//
// Rows of outputs are cut into `blocks` segments, and all segments into `splits` parts. The workers' sums are added in
// shared memory as a tree; with parts, blocks write scratch[part, c, t], and reduce.cu adds them in order.
//
// Limits: as many filters as channels; dilation 1 along the last axis; the threads of the filter's rows fit a block.
#include "conv.cuh"

constexpr int OUTS = 4, MOST = 256;  // outputs at a time, threads of a block

template <class T, int V, int K, int S> __global__ void __launch_bounds__(MOST, V > 1 ? 1 : 2) conv_depthwise_wgrad(const __grid_constant__ Conv a) {
    using A = computed<T>;
    constexpr int CELLS = K + (OUTS - 1) * S, KEPT = K > S ? K - S : 0;
    __shared__ A sums[MOST][V];
    const int rows = int(a.ksize[0]) * int(a.ksize[1]), workers = blockDim.x / (a.lanes * rows);
    const int lane = threadIdx.x % a.lanes, worker = threadIdx.x / a.lanes % workers, row = threadIdx.x / a.lanes / workers;
    const int bundles = (a.C / V + a.lanes - 1) / a.lanes;
    const int pack = int(blockIdx.x % uint32_t(bundles)) * a.lanes + lane, part = blockIdx.x / uint32_t(bundles);
    const int tap[2] = {row / int(a.ksize[1]), row % int(a.ksize[1])}, channel = pack * V;
    const int extent = a.out[2], segments = a.blocks, length = ((extent - 1) / segments / OUTS + 1) * OUTS;
    const int64_t total = a.N * a.out[0] * segments * a.out[1], share = (total + a.splits - 1) / a.splits;
    const int64_t end = channel < a.C ? min(total, share * (part + 1)) : 0;

    A acc[K][V] = {};
    for (int64_t item = share * part + worker; item < end; item += workers) {
        int64_t n = item;
        int at[3], source[2];
        at[1] = take(n, a.out[1]);
        at[2] = take(n, a.blocks) * length;
        at[0] = take(n, a.out[0]);
        for (int axis = 0; axis < 2; ++axis) source[axis] = at[axis] * int(a.stride[axis]) + tap[axis] * a.dilation[axis] - a.pad[axis];
        if (uint32_t(source[0]) >= uint32_t(a.size[0]) || uint32_t(source[1]) >= uint32_t(a.size[1])) continue;
        const T* x = static_cast<const T*>(a.x) + n * a.xs[0] + channel * a.xs[1] + source[0] * a.xs[2] + source[1] * a.xs[3];
        const T* y = static_cast<const T*>(a.y) + n * a.ys[0] + channel * a.ys[1] + at[0] * a.ys[2] + at[1] * a.ys[3];
        const int last = min(extent, at[2] + length);

        Pack<T, V> cells[CELLS] = {};
        auto fetch = [&](int i, int cell) {
            cells[i] = {};
            if (uint32_t(cell) < uint32_t(a.size[2])) cells[i] = load<V>(x + cell * a.xs[4]);
        };
#pragma unroll
        for (int i = 0; i < KEPT; ++i) fetch(i, at[2] * S - a.pad[2] + i);
#pragma unroll 1
        for (int o = at[2]; o < last; o += OUTS) {
            Pack<T, V> gradients[OUTS] = {};
#pragma unroll
            for (int j = 0; j < OUTS; ++j)
                if (o + j < last) gradients[j] = load<V>(y + (o + j) * a.ys[4]);
#pragma unroll
            for (int i = KEPT; i < CELLS; ++i) fetch(i, o * S - a.pad[2] + i);
#pragma unroll
            for (int j = 0; j < OUTS; ++j) {
                if (o + j >= last) break;
#pragma unroll
                for (int k = 0; k < K; ++k)
#pragma unroll
                    for (int v = 0; v < V; ++v) acc[k][v] += widen(gradients[j].at[v]) * widen(cells[j * S + k].at[v]);
            }
#pragma unroll
            for (int i = 0; i < KEPT; ++i) cells[i] = cells[OUTS * S + i];
        }
    }

    const int64_t taps = int64_t(rows) * K;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[threadIdx.x][v] = acc[k][v];
        for (int left = workers, half; left > 1; left = half) {
            half = (left + 1) / 2;
            __syncthreads();
            if (worker < left - half)
#pragma unroll
                for (int v = 0; v < V; ++v) sums[threadIdx.x][v] += sums[threadIdx.x + half * a.lanes][v];
        }
        if (worker == 0 && channel < a.C) {
            A* parts = static_cast<A*>(a.scratch) + (part * int64_t(a.C) + channel) * taps + row * K + k;
            T* result = static_cast<T*>(a.w) + channel * a.ws[0] + tap[0] * a.ws[2] + tap[1] * a.ws[3] + k * a.ws[4];
#pragma unroll
            for (int v = 0; v < V; ++v) {
                if (a.splits > 1) parts[v * taps] = sums[threadIdx.x][v];
                else result[v * a.ws[0]] = narrow<T>(sums[threadIdx.x][v]);
            }
        }
        __syncthreads();
    }
}

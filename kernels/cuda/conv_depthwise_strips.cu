// Convolution with one channel and one filter per group, in strips: a cell of the source is read once for all the
// outputs of a strip that it meets.
//
//   d[n,c,o] = f(b[c] + sum over t of a[n, c, o * step + first + t * apart] * w[c, t])        along each axis
//
// fprop is one pass over a = x; dgrad one over a = dy for each residue of dx's cells modulo the stride, its taps in
// reverse, so that `apart` is above 0. A launch runs all passes: neighbouring blocks take the residues of one place,
// which share dy in the caches.
//
// A thread sums a strip of STRIP outputs along the last axis, of V channels. The outputs of a strip are `apart` apart,
// so cell i of the strip's source meets output o through tap i - o * S, whatever the dilation: the sums and a row of 1,
// 2, 3, 5 or 7 taps lie in registers, the source slides past them. Other rows are summed in stretches of such lengths.
// Cells beyond the source are multiplied as zeros along a strip; a sum other than finite is taken again without them.
//
// The host orders the axes. Where channels lie side by side, threads do so along them, V = 16 bytes at a time, and a
// strip runs along W. Else threads lie along W (axis 1 here), a strip runs along H, and rows are read as wholes.
#include "conv.cuh"

template <class T, int V> constexpr int STRIP = V * sizeof(T) == 16 && sizeof(T) == 2 ? 4 : 8;

// Adds K taps of a row of filters, from tap `s` on, which it moves on. The strip meets tap 0 from cell `left` on.
template <int K, int S, int OUTS, class A, class T, int V>
__device__ inline void add_taps(const Strips& a, A (&sums)[OUTS][V], const T* row, int left, const T* taps, int& s) {
    const int apart = a.apart[2], first = left + s * apart;
    A weights[K][V];
#pragma unroll
    for (int k = 0; k < K; ++k) weights_of(weights[k], taps + (s + k) * a.wt[2], a.ws, 0);
#pragma unroll
    for (int i = 0; i < (OUTS - 1) * S + K; ++i) {
        const int cell = first + i * apart;
        Pack<T, V> found = {};
        if (uint32_t(cell) < uint32_t(a.source[2])) found = load<V>(row + cell * a.as[4]);
#pragma unroll
        for (int o = 0; o < OUTS; ++o) {
            const int k = i - o * S;
            if (k < 0 || k >= K) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) sums[o][v] += widen(found.at[v]) * weights[k][v];
        }
    }
    s += K;
}

// One output's sum by definition, of one channel: without the zeros around the source, which make a NaN of an infinite weight.
template <class A, class T>
__device__ inline A summed_again(const Strips& a, const StripPass& pass, const T* image, const T* filter, const int (&at)[3]) {
    A sum = A(0);
#pragma unroll 1
    for (int t = 0; t < pass.taps[0] * pass.taps[1] * pass.taps[2]; ++t) {
        const int tap[3] = {t / pass.taps[2] / pass.taps[1], t / pass.taps[2] % pass.taps[1], t % pass.taps[2]};
        int64_t from = 0, weight = 0;
        bool inside = true;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            const int cell = at[axis] * a.step[axis] + pass.first[axis] + tap[axis] * a.apart[axis];
            inside = inside && uint32_t(cell) < uint32_t(a.source[axis]);
            from += cell * a.as[axis + 2], weight += tap[axis] * a.wt[axis];
        }
        if (inside) sum += widen(image[from]) * widen(filter[weight]);
    }
    return sum;
}

template <class T, int V, int S>
__global__ void __launch_bounds__(128, V > 1 ? 2 : 4) conv_depthwise_strips(const __grid_constant__ Strips a) {
    using A = computed<T>;
    constexpr int OUTS = STRIP<T, V>;
    const StripPass& pass = a.passes[blockIdx.x % uint32_t(a.count)];
    const bool inside = a.walk & CHANNELS;
    const int64_t total = a.N * a.blocks * a.extent[0] * a.extent[1] * a.extent[2];
    const int64_t threads = int64_t(gridDim.x / uint32_t(a.count)) * blockDim.x;

    for (int64_t flat = int64_t(blockIdx.x / uint32_t(a.count)) * blockDim.x + threadIdx.x; flat < total; flat += threads) {
        int64_t n = flat;
        int channel = 0, at[3];
        if (inside) channel = take(n, a.blocks) * V;
        else at[1] = take(n, a.extent[1]);
        int64_t strip = take(n, a.extent[2]);
        if (inside) at[1] = take(n, a.extent[1]);
        at[0] = take(n, a.extent[0]);
        if (!inside) channel = take(n, a.blocks) * V;
        at[2] = take(strip, a.apart[2]);
        at[2] += int(strip) * OUTS * a.apart[2];
        if (at[0] >= pass.out[0] || at[1] >= pass.out[1] || at[2] >= pass.out[2]) continue;

        A sums[OUTS][V] = {};
        const T* image = static_cast<const T*>(a.a) + n * a.as[0] + channel * a.as[1];
        const T* filter = static_cast<const T*>(a.w) + pass.w0 + channel * a.ws;
        const int left = at[2] * S + pass.first[2];
        for (int t = 0; t < pass.taps[0]; ++t) {
            const int d = at[0] * a.step[0] + pass.first[0] + t * a.apart[0];
            if (uint32_t(d) >= uint32_t(a.source[0])) continue;
            for (int r = 0; r < pass.taps[1]; ++r) {
                const int h = at[1] * a.step[1] + pass.first[1] + r * a.apart[1];
                if (uint32_t(h) >= uint32_t(a.source[1])) continue;
                const T* cells = image + d * a.as[2] + h * a.as[3];
                const T* taps = filter + t * a.wt[0] + r * a.wt[1];
                for (int s = 0, more; (more = pass.taps[2] - s) > 0;) {
                    if (more >= 7) add_taps<7, S>(a, sums, cells, left, taps, s);
                    else if (more >= 5) add_taps<5, S>(a, sums, cells, left, taps, s);
                    else if (more >= 3) add_taps<3, S>(a, sums, cells, left, taps, s);
                    else if (more == 2) add_taps<2, S>(a, sums, cells, left, taps, s);
                    else add_taps<1, S>(a, sums, cells, left, taps, s);
                }
            }
        }

        T* to = static_cast<T*>(a.d) + pass.d0 + n * a.ds[0] + channel * a.ds[1] + at[0] * a.ds[2] + at[1] * a.ds[3];
#pragma unroll
        for (int o = 0; o < OUTS; ++o) {
            const int q = at[2] + o * a.apart[2];
            if (q >= pass.out[2]) break;
            Pack<T, V> result;
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A sum = sums[o][v];
                if (sum - sum != A(0)) {  // not finite
                    const int place[3] = {at[0], at[1], q};
                    sum = summed_again<A>(a, pass, image + v * a.as[1], filter + v * a.ws, place);
                }
                result.at[v] = narrow<T>(activate(a.activation, sum + bias_of<A>(a.bias, (channel + v) * a.bs, a.bt)));
            }
            store<V>(to + q * a.ds[4], result);
        }
    }
}

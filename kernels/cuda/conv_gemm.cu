// Convolution as an implicit product of matrices in shared memory, without tensor cores; nothing is unfolded in memory.
//
// Per group:  C[m, n] = sum over k of A[k, m] * B[k, n]
//
//           m                 n                    k                    A            B
//   fprop   output channel    pixel of y           (channel, tap)       w            x at pixel and tap
//   dgrad   channel of x      pixel of a residue   (filter, tap)        w            y at pixel and tap
//   wgrad   filter            (channel, tap)       pixel of y           y            x at pixel and tap
//
// dgrad: cells of x of one residue modulo the stride meet the same taps, each at cells of y side by side. Each residue
// is a product of its own, with those taps only: no work is spent on cells that the stride leaves out. Cells beyond y
// are multiplied as zeros; where that made a sum other than finite, it is summed again without them.
//
// A block of 128 threads owns a tile of BM x BN of C; a thread has TM x TN of it in registers, in chunks of 16 bytes
// a tile's width apart, so that warps read shared memory without conflicts. k advances by BK = 8: while one slice of A
// and B is multiplied from shared memory, the next is on its way to registers. B is gathered by two tables, of
// the slice's k and of the tile's n: the offset of an element is the sum of both, and so is its place in the source,
// which tells the padding. Threads read along k or along m and n, whichever lies side by side in memory (Walk).
//
// The sums leave through shared memory, row by row or column by column as the result lies in memory. With splits,
// blocks sum parts of k into scratch[split, result in canonical order], and reduce.cu adds them in order.
//
// Shared memory: A and B twice, 8 * (BM + BN) sums each, the tables: 16 KB for 64 x 128.
// Limits: channels * taps of a group, the pixels, and the number of tiles are below 2^31.
#include "conv.cuh"

constexpr int THREADS = 128, BK = 8;

// An element of the source is at the sum of two of these.
struct Place {
    int64_t offset;
    int32_t at[3], valid;
};

// An index that is summed over: its place in the source of B, and its offset in A.
struct Row {
    Place place;
    int64_t a;
};

// One axis of space: pixel j is the cell start + j * apart of the result and reads the source at j * step + base +
// i * move through its tap i < taps, which is tap first + i * every of the filter.
struct Axis {
    int count, start, apart, step, base, taps, first, every, move;
};

template <int PASS> __device__ inline Axis axis_of(const Conv& a, int i, int residue) {
    if (PASS != DGRAD) return {int(a.out[i]), 0, 1, int(a.stride[i]), -a.pad[i], int(a.ksize[i]), 0, 1, a.dilation[i]};
    const int stride = a.stride[i], every = a.tap_step[i], ksize = a.ksize[i];
    const int count = (int(a.size[i]) - residue + stride - 1) / stride;
    const int move = -int(int64_t(every) * a.dilation[i] / stride);
    for (int first = 0; first < min(every, ksize); ++first) {
        const int scaled = residue + a.pad[i] - first * a.dilation[i];
        if (scaled % stride == 0)
            return {count, residue, stride, 1, scaled / stride, (ksize - 1 - first) / every + 1, first, every, move};
    }
    return {count, residue, stride, 1, 0, 0, 0, every, move};
}

// Where pixel `index` of [N, counts] lies, by strides [5], and through its axes in the source.
__device__ inline Place pixel_source(const Axis (&axes)[3], const int64_t* strides, uint32_t index) {
    Place found{0, {}, 1};
    for (int i = 2; i >= 0; --i) {
        found.at[i] = take(index, axes[i].count) * axes[i].step + axes[i].base;
        found.offset += found.at[i] * strides[2 + i];
    }
    found.offset += index * strides[0];
    return found;
}
__device__ inline int64_t pixel_result(const Axis (&axes)[3], const int64_t* strides, uint32_t index) {
    int64_t offset = 0;
    for (int i = 2; i >= 0; --i) offset += (take(index, axes[i].count) * axes[i].apart + axes[i].start) * strides[2 + i];
    return offset + index * strides[0];
}

// Where (channel, tap) `index` lies in the source, and in the filter with strides `wl` of channels and ws[2..] of taps.
__device__ inline Row tap_place(const Axis (&axes)[3], const int64_t* strides, int64_t wl, const int64_t* ws, int L, bool channels_fastest, uint32_t index) {
    Row found{{0, {}, 1}, 0};
    int64_t channel = 0;
    if (channels_fastest) channel = take(index, L);
    for (int i = 2; i >= 0; --i) {
        const int tap = take(index, axes[i].taps);
        found.place.at[i] = tap * axes[i].move;
        found.place.offset += found.place.at[i] * strides[2 + i];
        found.a += (axes[i].first + tap * axes[i].every) * ws[2 + i];
    }
    if (!channels_fastest) channel = index;
    found.place.offset += channel * strides[1];
    found.a += channel * wl;
    return found;
}

// The elements of a slice [BK, EXTENT] that a thread moves: place(i) for i < COUNT. Threads lie side by side along k
// or along the other axis.
template <int EXTENT, bool ALONG_SUM> struct Share {
    static constexpr bool ALL = EXTENT * BK >= THREADS;  // every thread has some
    static constexpr int COUNT = ALL ? EXTENT * BK / THREADS : 1;
    static __device__ int k(int i) { return ALONG_SUM ? threadIdx.x % BK : threadIdx.x / EXTENT + i * (THREADS / EXTENT); }
    static __device__ int x(int i) { return ALONG_SUM ? threadIdx.x / BK + i * (THREADS / BK) : threadIdx.x % EXTENT; }
    static __device__ bool mine() { return ALL || (k(0) < BK && x(0) < EXTENT); }
};

// dgrad: whether a tap of a pixel lies beyond y.
__device__ inline bool meets_border(const Conv& a, const Axis (&axes)[3], const Place& pixel) {
    bool inside = true;
    for (int i = 0; i < 3; ++i)
        inside = inside && uint32_t(pixel.at[i]) < uint32_t(a.out[i]) &&
                 uint32_t(pixel.at[i] + (axes[i].taps - 1) * axes[i].move) < uint32_t(a.out[i]);
    return !inside;
}

// dgrad's sum over indices [begin, end) for a pixel and one channel, by definition: without the zeros beyond y, which make
// a NaN of an infinite weight.
template <class A, class T>
__device__ inline A summed_again(const Conv& a, const Axis (&axes)[3], const T* w, const T* y, bool channels_fastest, int begin, int end, const Place& pixel) {
    A sum = A(0);
#pragma unroll 1
    for (int k = begin; k < end; ++k) {
        const Row row = tap_place(axes, a.ys, a.ws[0], a.ws, int(a.K) / int(a.groups), channels_fastest, k);
        bool met = true;
        for (int i = 0; i < 3; ++i) met = met && uint32_t(pixel.at[i] + row.place.at[i]) < uint32_t(a.out[i]);
        if (met) sum += value<A>(w[row.a], a.wt) * value<A>(y[pixel.offset + row.place.offset], a.yt);
    }
    return sum;
}

// What all threads of a block know of its tile. In shared memory, as registers are short.
struct Tile {
    Axis axes[3];
    int g, split, first_m, first_n, M, L, total_n, total_k, first_slice, slices;
    int64_t from_a, from_b;
    int64_t strides[5], part;  // of the result, where it is one of several parts
};

template <int PASS, int BM, int BN> __device__ inline Tile tile_of(const Conv& a) {
    Tile t;
    const int G = a.groups, K = a.K / G, C = a.C / G;
    t.M = PASS == DGRAD ? C : K, t.L = PASS == DGRAD ? K : C;
    uint32_t rest = blockIdx.x;
    t.first_m = take(rest, (t.M - 1) / BM + 1) * BM;
    int most = PASS == WGRAD ? t.L : int(a.N);  // columns of the largest residue
    for (int i = 0; i < 3; ++i) most *= PASS == WGRAD ? int(a.ksize[i]) : PASS == FPROP ? int(a.out[i]) : (int(a.size[i]) - 1) / int(a.stride[i]) + 1;
    t.first_n = take(rest, (most - 1) / BN + 1) * BN;
    t.g = take(rest, G), t.split = take(rest, a.splits);
    int pixels = int(a.N), taps = t.L;
    for (int i = 2; i >= 0; --i) {
        t.axes[i] = axis_of<PASS>(a, i, PASS == DGRAD ? take(rest, min(int(a.stride[i]), int(a.size[i]))) : 0);
        pixels *= t.axes[i].count, taps *= t.axes[i].taps;
    }
    t.total_n = PASS == WGRAD ? taps : pixels, t.total_k = PASS == WGRAD ? pixels : taps;
    const int slices = (t.total_k + BK - 1) / BK, part = (slices + a.splits - 1) / a.splits;
    t.first_slice = min(slices, part * t.split), t.slices = min(slices - t.first_slice, part);
    t.from_a = (PASS == WGRAD ? a.ys[1] : a.ws[0]) * (int64_t(t.g) * K);
    t.from_b = (PASS == DGRAD ? a.ys[1] : a.xs[1]) * (int64_t(t.g) * t.L);
    const Divisor* cells = PASS == WGRAD ? a.ksize : PASS == FPROP ? a.out : a.size;
    t.strides[4] = 1, t.strides[3] = cells[2], t.strides[2] = t.strides[3] * cells[1];
    t.strides[1] = t.strides[2] * cells[0], t.strides[0] = t.strides[1] * (PASS == WGRAD ? t.L : PASS == FPROP ? a.K : a.C);
    t.part = t.strides[0] * (PASS == WGRAD ? int64_t(a.K) : a.N);
    return t;
}

template <int PASS, class T, class R, int BM, int BN, int TM, int TN> __device__ inline void gemm(const Conv& a) {
    using A = computed<R>;
    constexpr int V = 16 / sizeof(A), TX = BN / TN, TY = BM / TM;
    static_assert(TX * TY == THREADS && TX % 8 == 0 && TY % 4 == 0 && TM % V == 0 && TN % V == 0);
    constexpr bool forward = PASS != DGRAD;
    alignas(16) __shared__ A as[2][BK][BM + V], bs[2][BK][BN + V];
    __shared__ Row rows[2][BK];
    __shared__ Place columns[BN];
    __shared__ Tile tile;

    const int tid = threadIdx.x;
    if (tid == 0) tile = tile_of<PASS, BM, BN>(a);
    __syncthreads();
    const bool channels_fastest = a.walk & CHANNELS_FASTEST;
    const int64_t wl = a.ws[forward ? 1 : 0];
    const int64_t* ss = forward ? a.xs : a.ys;
    for (int n = tid; n < BN; n += THREADS) {
        const int index = tile.first_n + n;
        columns[n] = {0, {}, 0};
        if (index < tile.total_n)
            columns[n] = PASS == WGRAD ? tap_place(tile.axes, ss, wl, a.ws, tile.L, channels_fastest, index).place
                                       : pixel_source(tile.axes, ss, index);
    }
    auto prepare = [&](int slice) {
        if (tid >= BK) return;
        const int index = (tile.first_slice + slice) * BK + tid;
        Row row{{0, {}, 0}, 0};
        if (index < tile.total_k) {
            if (PASS == WGRAD) row = {pixel_source(tile.axes, ss, index), pixel_result(tile.axes, a.ys, index)};
            else row = tap_place(tile.axes, ss, wl, a.ws, tile.L, channels_fastest, index);
        }
        rows[slice & 1][tid] = row;
    };

    // One slice of A and of B, from memory to registers and on to shared memory.
    T next_a[Share<BM, true>::COUNT], next_b[Share<BN, true>::COUNT];
    const int64_t am = PASS == WGRAD ? a.ys[1] : a.ws[forward ? 0 : 1];
    const T* from_a = static_cast<const T*>(PASS == WGRAD ? a.y : a.w) + tile.from_a + tile.first_m * am;
    const T* from_b = static_cast<const T*>(forward ? a.x : a.y) + tile.from_b;
    const int rows_a = tile.M - tile.first_m;
    auto fetch_a = [&](auto share, const Row* row) {
        using S = decltype(share);
#pragma unroll
        for (int i = 0; i < S::COUNT; ++i) {
            next_a[i] = T{};
            if (S::mine() && S::x(i) < rows_a && row[S::k(i)].place.valid) next_a[i] = from_a[row[S::k(i)].a + S::x(i) * am];
        }
    };
    auto fetch_b = [&](auto share, const Row* row) {
        using S = decltype(share);
        const Divisor* extent = forward ? a.size : a.out;
#pragma unroll
        for (int i = 0; i < S::COUNT; ++i) {
            const Place &p = row[S::k(i)].place, &q = columns[S::x(i)];
            next_b[i] = T{};
            if (p.valid & q.valid & (uint32_t(p.at[0] + q.at[0]) < uint32_t(extent[0])) &
                (uint32_t(p.at[1] + q.at[1]) < uint32_t(extent[1])) & (uint32_t(p.at[2] + q.at[2]) < uint32_t(extent[2])))
                next_b[i] = from_b[p.offset + q.offset];
        }
    };
    auto fetch = [&](int slice) {
        if (a.walk & A_ALONG_SUM) fetch_a(Share<BM, true>(), rows[slice & 1]);
        else fetch_a(Share<BM, false>(), rows[slice & 1]);
        if (a.walk & B_ALONG_SUM) fetch_b(Share<BN, true>(), rows[slice & 1]);
        else fetch_b(Share<BN, false>(), rows[slice & 1]);
    };
    auto keep_in = [&](auto share, auto& shared, const T* next, int type) {
        using S = decltype(share);
#pragma unroll
        for (int i = 0; i < S::COUNT; ++i)
            if (S::mine()) shared[S::k(i)][S::x(i)] = value<A>(next[i], type);
    };
    auto keep = [&](int slice) {
        const int type_a = PASS == WGRAD ? a.yt : a.wt, type_b = forward ? a.xt : a.yt;
        if (a.walk & A_ALONG_SUM) keep_in(Share<BM, true>(), as[slice & 1], next_a, type_a);
        else keep_in(Share<BM, false>(), as[slice & 1], next_a, type_a);
        if (a.walk & B_ALONG_SUM) keep_in(Share<BN, true>(), bs[slice & 1], next_b, type_b);
        else keep_in(Share<BN, false>(), bs[slice & 1], next_b, type_b);
    };

    // A warp's lanes are 4 x 8 neighbours of the tile's threads.
    const int tx = tid / 32 % (TX / 8) * 8 + tid % 8, ty = tid / 32 / (TX / 8) * 4 + tid % 32 / 8;
    A acc[TM][TN] = {};
    const int slices = tile.slices;
    prepare(0);
    __syncthreads();
    if (slices > 0) {
        prepare(1);
        fetch(0);
        keep(0);
    }
    __syncthreads();
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        if (slice + 1 < slices) {
            prepare(slice + 2);
            fetch(slice + 1);
        }
#pragma unroll
        for (int k = 0; k < BK; ++k) {
            Pack<A, V> fa[TM / V], fb[TN / V];
#pragma unroll
            for (int i = 0; i < TM / V; ++i) fa[i] = load<V>(&as[slice & 1][k][i * TY * V + ty * V]);
#pragma unroll
            for (int j = 0; j < TN / V; ++j) fb[j] = load<V>(&bs[slice & 1][k][j * TX * V + tx * V]);
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) acc[i][j] += fa[i / V].at[i % V] * fb[j / V].at[j % V];
        }
        if (slice + 1 < slices) keep(slice + 1);
        __syncthreads();
    }

    // The result, or this block's part of it in scratch.
    const int64_t* strides = a.splits > 1 ? tile.strides : PASS == WGRAD ? a.ws : forward ? a.ys : a.xs;
    const int64_t step_m = strides[PASS == WGRAD ? 0 : 1];
    A* parts = static_cast<A*>(a.scratch) + tile.split * tile.part;
    R* result = static_cast<R*>(PASS == WGRAD ? a.w : forward ? a.y : a.x);
    for (int n = tid; n < BN; n += THREADS)
        if (columns[n].valid)
            columns[n].offset = PASS == WGRAD ? tap_place(tile.axes, ss, strides[1], strides, tile.L, channels_fastest, tile.first_n + n).a
                                              : pixel_result(tile.axes, strides, tile.first_n + n);
    A* stage = &bs[0][0][0];
    static_assert(TY * BN <= 2 * BK * (BN + V) && TX * BM <= 2 * BK * (BN + V) && TX * BM <= TM * THREADS && TM * TN <= 64);
    const bool by_column = a.walk & CHANNELS;  // neighbours in the result are neighbours in m
    auto row_of = [&](int step, int e) { return tile.first_m + (by_column ? e % BM : step / V * V * TY + e / BN * V + step % V); };
    auto column_of = [&](int step, int e) { return by_column ? step / V * V * TX + e / BM * V + step % V : e % BN; };
    auto write = [&](int m, int n, A sum) {
        const int64_t channel = int64_t(tile.g) * tile.M + m, offset = channel * step_m + columns[n].offset;
        if (a.splits > 1) parts[offset] = sum;
        else if (PASS == WGRAD) result[offset] = narrow<R>(sum);
        else result[offset] = narrow<R>(activate(a.activation, sum + bias_of<A>(a.bias, channel * a.bs, a.bt)));
    };
    uint64_t again = 0;  // dgrad's sums that are not finite: a bit for each that this thread writes
#pragma unroll 1
    for (int step = 0; step < (by_column ? TN : TM); ++step) {
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                const int m = i / V * TY * V + ty * V + i % V, n = j / V * TX * V + tx * V + j % V;
                if (by_column ? j == step : i == step) stage[by_column ? tx * BM + m : ty * BN + n] = acc[i][j];
            }
        __syncthreads();
#pragma unroll 1
        for (int e = tid; e < (by_column ? TX * BM : TY * BN); e += THREADS) {
            const int m = row_of(step, e), n = column_of(step, e);
            if (m >= tile.M || !columns[n].valid) continue;
            write(m, n, stage[e]);
            if (PASS == DGRAD && stage[e] - stage[e] != A(0)) again |= uint64_t(1) << (step * TM + e / THREADS);
        }
        __syncthreads();
    }
#pragma unroll 1
    for (int bit = 0; again >> bit != 0 && bit < 64; ++bit) {
        if (!(again >> bit & 1)) continue;
        const int e = bit % TM * THREADS + tid, n = column_of(bit / TM, e), m = row_of(bit / TM, e);
        const int begin = tile.first_slice * BK, end = min(tile.total_k, begin + slices * BK);
        const Place pixel = pixel_source(tile.axes, ss, tile.first_n + n);
        if (meets_border(a, tile.axes, pixel))
            write(m, n, summed_again<A>(a, tile.axes, from_a + (m - tile.first_m) * am, from_b, channels_fastest, begin, end, pixel));
    }
}

template <class T, class R, int BM, int BN, int TM, int TN> __global__ void __launch_bounds__(THREADS, TM * TN == 64 ? 3 : 4) conv_fprop_gemm(const __grid_constant__ Conv a) {
    gemm<FPROP, T, R, BM, BN, TM, TN>(a);
}

template <class T, class R, int BM, int BN, int TM, int TN> __global__ void __launch_bounds__(THREADS, TM * TN == 64 ? 3 : 4) conv_dgrad_gemm(const __grid_constant__ Conv a) {
    gemm<DGRAD, T, R, BM, BN, TM, TN>(a);
}

template <class T, class R, int BM, int BN, int TM, int TN> __global__ void __launch_bounds__(THREADS, TM * TN == 64 ? 3 : 4) conv_wgrad_gemm(const __grid_constant__ Conv a) {
    gemm<WGRAD, T, R, BM, BN, TM, TN>(a);
}

// Grouped convolution with few channels to a group, on tensor cores by mma.sync: bound by memory, not by products.
//
//   conv_grouped   d[n, m, o] = f(bias[m] + sum over taps t and m's group's c of a[n, c, o * step + offset(t)] * w[m, c, t])
//
// is fprop (a = x, d = y) and dgrad (a = dy, d = dx). The residues of a strided dgrad are passes over one box of dy, so
// that dy is read once. How tiles, boxes and chunks of channels lie: grouped.cuh.
//
//   mma       rows      16 outputs of the tile
//             columns   a chunk of 8 result channels
//             sum       terms (t, chunk of 8 source channels), chunk fastest: two to an m16n8k16, one to a tf32 m16n8k8
//
// A warp computes TN chunks, which share the fragments of a, for 8 / TN times 16 outputs. The filters are laid out once
// per block, as the fragments want them: the two words of a lane side by side. A block goes from tile to tile, the next
// one's box on its way while it computes; sums leave through shared memory in whole rows of channels.
//
// Shared memory: two boxes; 64 x 72 sums, half of a tile's at a time; filters, 2 KB per step of the sum; places of cells and outputs.
//
// The zeros between groups are multiplied, and those past the last term: where a sum is not finite it is taken again by
// FMA without them.
//
// Limits: as conv_mma.cu for a; strides of w and d are free. The filters and one box must fit into shared memory.
#include "grouped.cuh"

constexpr int PITCH = COLUMNS + 8;   // floats of a row of sums
constexpr int ROWS = OUTPUTS / 2;    // of sums that leave at a time

__device__ inline int terms_of(const Gather& a, int span) { return a.taps[0] * a.taps[1] * a.taps[2] * span; }

// The weight from source channel c to result channel m, both counted over all groups; 0 across groups.
template <class T> __device__ inline T weight(const Gather& a, const void* w, int tap, int c, int m) {
    const int group = m / a.M;
    c -= group * a.C;
    if (m >= a.M * a.G || uint32_t(c) >= uint32_t(a.C)) return T{};
    int64_t at = a.w0 + group * a.wg + (m - group * a.M) * a.ws[0] + c * a.ws[1];
    uint32_t rest = tap;
#pragma unroll
    for (int axis = 2; axis >= 0; --axis) at += take(rest, a.taps[axis]) * a.wt[axis];
    return static_cast<const T*>(w)[at];
}

// One word of a fragment: two neighbouring channels of 16 bits, or one of tf32.
template <class T> __device__ inline uint32_t word(const Gather& a, const void* w, int tap, int c, int m) {
    if constexpr (sizeof(T) == 2)
        return weight<T>(a, w, tap, c, m).bits | uint32_t(weight<T>(a, w, tap, c + 1, m).bits) << 16;
    else
        return round_tf32(__float_as_uint(weight<T>(a, w, tap, c, m)));
}

// The filters of a pass as fragments, and where in a box the terms of its sum begin.
template <class T, int TN>
__device__ inline void prepare(const Gather& a, const void* w, const Tiling& t, int column0, Pack<uint32_t, 2>* filters, int* offsets) {
    constexpr int PIECES = sizeof(T) / 2, TERMS = 2 / PIECES;
    const int terms = terms_of(a, t.span), steps = (terms + TERMS - 1) / TERMS;
    for (int n = threadIdx.x; n < steps * 256; n += THREADS) {
        const int lane = n % 32, column = column0 + n / 32 % 8 * 8, step = n / 256;
        const int chunk = first_chunk(column0 + n / 32 % 8 / TN * TN * 8, a.M, a.C, a.G);
        Pack<uint32_t, 2> words = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int term = TERMS == 2 ? 2 * step + half : step, within = TERMS == 2 ? lane % 4 * 2 : lane % 4 + 4 * half;
            if (term < terms)
                words.at[half] = word<T>(a, w, term / t.span, (chunk + term % t.span) * 8 + within, column + lane / 4);
        }
        filters[n] = words;
    }
    for (int n = threadIdx.x; n < steps * TERMS; n += THREADS) {
        const int term = min(n, terms - 1);
        uint32_t rest = term / t.span;
        int at[3];
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) at[axis] = a.first[axis] + take(rest, a.taps[axis]) * a.apart[axis] - t.lowest[axis];
        offsets[n] = (at[0] * t.box[2] + at[1]) * t.box[3] + at[2] + term % t.span * PIECES * (t.cells | 1);
    }
}

// From rows of sums in shared memory to d, along whichever axis of it is contiguous. The rows are half of those of each
// warp, SHARE: the lower or the upper. `first` has the addresses.
template <class T, int SHARE>
__device__ inline void deliver(const Gather& a, const Gather& first, const Tiling& t, const Corner& corner, const Place* places,
                               float* sums, int column0, int half) {
    const int64_t origin = a.d0 + corner.n * a.ds[0] + corner.o[0] * a.ds[2] + corner.o[1] * a.ds[3] + corner.o[2] * a.ds[4];
    T* const d = static_cast<T*>(first.d) + origin;
    const int channels = a.M * a.G;
    auto output_of = [&](int row) { return row / SHARE * 2 * SHARE + half * SHARE + row % SHARE; };
    auto mend = [&](float* sum, const Place& place, int m) {
        if (fabsf(*sum) < INFINITY_F) return;
        Pixel pixel;
        pixel.n = corner.n + place.at[0];
        for (int axis = 0; axis < 3; ++axis) pixel.o[axis] = corner.o[axis] + place.at[axis + 1];
        *sum = summed_again<T>(a, first.a, first.w, pixel, m / a.M, m % a.M);
    };
    auto finished = [&](float sum, int m) {
        return narrow<T>(activate(a.activation, sum + bias_of<float>(first.bias, m * a.bs, a.bt)));
    };
    constexpr int CHUNK = 16 / sizeof(T), ACROSS = COLUMNS / CHUNK;
#pragma unroll 1
    for (int n = threadIdx.x; a.wide && n < ROWS * ACROSS; n += THREADS) {
        const int row = n / ACROSS, column = n % ACROSS * CHUNK;
        const Place place = places[output_of(row)];
        if (column0 + column >= channels || !corner.has(t, place, a.out)) continue;
        float* const sum = sums + row * PITCH + column;
#pragma unroll 1
        for (int k = 0; k < CHUNK; ++k) mend(sum + k, place, column0 + column + k);
        Pack<T, CHUNK> values;
#pragma unroll
        for (int k = 0; k < CHUNK; ++k) values.at[k] = finished(sum[k], column0 + column + k);
        store(d + place.offset + column0 + column, values);
    }
    const bool along_channels = a.ds[1] == 1;
#pragma unroll 1
    for (int n = threadIdx.x; !a.wide && n < ROWS * COLUMNS; n += THREADS) {
        const int row = along_channels ? n / COLUMNS : n % ROWS, column = along_channels ? n % COLUMNS : n / ROWS;
        const Place place = places[output_of(row)];
        if (column0 + column >= channels || !corner.has(t, place, a.out)) continue;
        float* const sum = sums + row * PITCH + column;
        mend(sum, place, column0 + column);
        d[place.offset + (column0 + column) * a.ds[1]] = finished(*sum, column0 + column);
    }
}

template <class E, int TN> __global__ void __launch_bounds__(THREADS, 2) conv_grouped(const __grid_constant__ Grouped g) {
    using T = typename Element<E>::type;
    constexpr int TM = 8 / TN, PIECES = sizeof(T) / 2, TERMS = 2 / PIECES;
    const Gather& a = g.pass[0];
    const Tiling& t = g.tiling;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, chunk = warp % TM * TN, output0 = warp / TM * 16 * TM;
    int64_t worker = blockIdx.x;
    const int column0 = take(worker, (a.M * a.G + COLUMNS - 1) / COLUMNS) * COLUMNS;
    const int chunk0 = first_chunk(column0, a.M, a.C, a.G), pitch = t.cells | 1, stage_bytes = 16 * pitch * t.pieces;

    char* const memory = shared_memory<char>();
    float* const sums = reinterpret_cast<float*>(memory + 2 * stage_bytes);
    Place* const cells = reinterpret_cast<Place*>(sums + ROWS * PITCH);
    Place* const outputs = cells + t.cells;
    auto* const filters = reinterpret_cast<Pack<uint32_t, 2>*>(outputs + OUTPUTS);
    int* const starts = reinterpret_cast<int*>(filters + 256 * t.steps);  // the first cell that an output meets
    int* const offsets = starts + OUTPUTS;
    lay_out(cells, t.cells, t.cells, t.box, a.as);
    lay_out(outputs, OUTPUTS, t.outputs, t.extent, a.ds);
    if (threadIdx.x < OUTPUTS) starts[threadIdx.x] = first_cell(t, threadIdx.x);
    for (int number = 0, step = 0; number < g.passes; ++number) {
        prepare<T, TN>(g.pass[number], a.w, t, column0, filters + 256 * step, offsets + TERMS * step);
        step += (terms_of(g.pass[number], t.span) + TERMS - 1) / TERMS;
    }
    __syncthreads();

    const int base = (first_chunk(column0 + 8 * chunk, a.M, a.C, a.G) - chunk0) * PIECES * pitch + (TERMS == 1 ? lane / 16 * pitch : 0);

    int64_t next = worker, now = worker;
    auto fetch = [&](int stage) {
        const Corner corner(t, next);
        int first[3];
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) first[axis] = corner.o[axis] * t.step[axis] + t.lowest[axis];
        fetch_box<T>(memory + stage * stage_bytes, a.a, a.a0, a.as, cells, t.cells, t.pieces, 8 * chunk0, a.C * a.G, corner.n,
                     t.images, first, a.source);
        next += t.workers;
    };
    pipelined<2>(tiles_of(t, worker), fetch, [&](int stage) {
        const char* const box = memory + stage * stage_bytes;
        const Corner corner(t, now);
        now += t.workers;
        for (int number = 0, step = 0; number < g.passes; ++number) {
            const int end = step + (terms_of(g.pass[number], t.span) + TERMS - 1) / TERMS;
            int rows[TM];  // of ldmatrix, for this lane
#pragma unroll
            for (int i = 0; i < TM; ++i) rows[i] = 16 * (base + starts[output0 + 16 * i + lane % 16]);
            float sum[2][TM / 2][TN][4] = {};  // of the lower half of the warp's outputs, and of the upper
#pragma unroll 1
            for (; step < end; ++step) {
                const int offset = 16 * offsets[TERMS == 2 ? 2 * step + lane / 16 : step];
                Pack<uint32_t, 2> b[TN];
#pragma unroll
                for (int j = 0; j < TN; ++j) b[j] = filters[(step * 8 + chunk + j) * 32 + lane];
#pragma unroll
                for (int i = 0; i < TM; ++i) {
                    uint32_t tile[4];
                    load_tiles(tile, box + rows[i] + offset);
                    if constexpr (TERMS == 1)
#pragma unroll
                        for (int r = 0; r < 4; ++r) tile[r] = round_tf32(tile[r]);
#pragma unroll
                    for (int j = 0; j < TN; ++j) {
                        float(&of)[4] = sum[2 * i / TM][i % (TM / 2)][j];
                        if constexpr (Same<E, f16>::value) mma_f16(of, tile, b[j].at[0], b[j].at[1]);
                        if constexpr (Same<E, bf16>::value) mma_bf16(of, tile, b[j].at[0], b[j].at[1]);
                        if constexpr (Same<E, Tf32>::value) mma_tf32(of, tile, b[j].at[0], b[j].at[1]);
                    }
                }
            }
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {
                if (number || half) __syncthreads();  // the sums before have left
                if (half == 0) spread<PITCH>(sums, sum[0], output0 / 2, 8 * chunk);
                else spread<PITCH>(sums, sum[1], output0 / 2, 8 * chunk);
                __syncthreads();
                deliver<T, 8 * TM>(g.pass[number], a, t, corner, outputs, sums, column0, half);
            }
        }
    });
}

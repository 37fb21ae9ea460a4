// The gradient to grouped filters with few channels to a group, on tensor cores by mma.sync: bound by memory.
//
//   conv_grouped_wgrad   w[k, c, t] = sum over n, o of y[n, k, o] * x[n, c, o * stride + t * dilation - pad]
//
//   mma       rows      two terms (t, chunk of 8 channels of x), chunk fastest
//             columns   a chunk of 8 filters
//             sum       outputs of the tile: 16 at a time, or 8 of tf32
//
// How tiles, boxes and chunks of channels lie: grouped.cuh. Each warp has one of a block's 8 chunks of filters, and PAIRS
// pairs of terms in registers; where a filter has more, other blocks take those. A block goes from tile to tile, the next
// one's box of x and outputs of y on their way while it computes. 16-bit halves are transposed by ldmatrix, float32 is
// read word by word. What a row of 8 x 8 has across groups is computed and not written.
//
// An output that a tile has no place for contributes nothing: its row of x is read as zeros, since the box may hold an
// infinity there.
//
// Each worker's sums go to its own part of scratch, [part][k][t, c] in float32, which reduce.cu adds in order; those of
// a single worker go to w.
//
// Limits: as conv_mma_wgrad.cu.
#include "grouped.cuh"

template <class E, int PAIRS>
__global__ void __launch_bounds__(THREADS, PAIRS > 9 ? 1 : 2) conv_grouped_wgrad(const __grid_constant__ GroupedWgrad g) {
    using T = typename Element<E>::type;
    constexpr int PIECES = sizeof(T) / 2;
    const Wgrad& a = g.pass;
    const Tiling& t = g.tiling;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int taps = a.ksize[0] * a.ksize[1] * a.ksize[2], terms = taps * t.span;
    int64_t worker = blockIdx.x;
    const int column0 = take(worker, (a.K * a.G + COLUMNS - 1) / COLUMNS) * COLUMNS;
    const int term0 = take(worker, (terms + 2 * PAIRS - 1) / (2 * PAIRS)) * 2 * PAIRS;
    const int chunk0 = first_chunk(column0, a.K, a.C, a.G), chunk = first_chunk(column0 + 8 * warp, a.K, a.C, a.G);
    const int pitch = t.cells | 1, rounds = (t.outputs + 31) / 32, y_pitch = 32 * rounds | 1;
    const int x_bytes = 16 * pitch * t.pieces, stage_bytes = x_bytes + 16 * y_pitch * 8 * PIECES;

    char* const memory = shared_memory<char>();
    Place* const cells = reinterpret_cast<Place*>(memory + 2 * stage_bytes);
    Place* const outputs = cells + t.cells;
    uint4* const zeros = reinterpret_cast<uint4*>(outputs + OUTPUTS);
    int* const rows = reinterpret_cast<int*>(zeros + 1);  // of both stages: an output's first cell, or -1
    int* const offsets = rows + 2 * OUTPUTS;
    lay_out(cells, t.cells, t.cells, t.box, a.xs);
    lay_out(outputs, OUTPUTS, t.outputs, t.extent, a.ys);
    if (threadIdx.x == 0) *zeros = uint4{0, 0, 0, 0};
    if (threadIdx.x < 2 * PAIRS) {
        const int term = min(term0 + int(threadIdx.x), terms - 1);
        uint32_t rest = term / t.span;
        int at[3];
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) at[axis] = take(rest, a.ksize[axis]) * a.dilation[axis];
        offsets[threadIdx.x] = (at[0] * t.box[2] + at[1]) * t.box[3] + at[2] + term % t.span * PIECES * pitch;
    }
    const int own = first_cell(t, threadIdx.x % OUTPUTS);
    __syncthreads();

    int64_t next = worker;
    auto fetch = [&](int stage) {
        const Corner corner(t, next);
        int first[3];
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) first[axis] = corner.o[axis] * t.step[axis] + t.lowest[axis];
        char* const x = memory + stage * stage_bytes;
        fetch_box<T>(x, a.x, a.x0, a.xs, cells, t.cells, t.pieces, 8 * chunk0, a.C * a.G, corner.n, t.images, first, a.size);
        fetch_box<T>(x + x_bytes, a.y, a.y0, a.ys, outputs, 32 * rounds, 8 * PIECES, column0, a.K * a.G, corner.n, t.images,
                     corner.o, a.out);
        if (threadIdx.x < OUTPUTS) rows[stage * OUTPUTS + threadIdx.x] = corner.has(t, outputs[threadIdx.x], a.out) ? own : -1;
        next += t.workers;
    };

    float sum[PAIRS][4] = {};
    pipelined<2>(tiles_of(t, worker), fetch, [&](int stage) {
        const char* const x = memory + stage * stage_bytes + 16 * (chunk - chunk0) * PIECES * pitch;
        const char* const y = memory + stage * stage_bytes + x_bytes + 16 * warp * PIECES * y_pitch;
        const int* const row = rows + stage * OUTPUTS;
        if constexpr (PIECES == 1) {
#pragma unroll 1
            for (int round = 0; round < rounds; ++round) {
                uint32_t b[4];
                load_tiles_crossed(b, y + 16 * (32 * round + lane));
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int cell = row[32 * round + 16 * half + lane / 16 * 8 + lane % 8];
#pragma unroll
                    for (int p = 0; p < PAIRS; ++p) {
                        uint32_t tile[4];
                        const char* const from = x + 16 * (cell + offsets[2 * p + lane / 8 % 2]);
                        load_tiles_crossed(tile, cell < 0 ? reinterpret_cast<const char*>(zeros) : from);
                        if constexpr (Same<E, f16>::value) mma_f16(sum[p], tile, b[2 * half], b[2 * half + 1]);
                        else mma_bf16(sum[p], tile, b[2 * half], b[2 * half + 1]);
                    }
                }
            }
        } else {
            // A lane's channel among 8, and filter among 8: word `within` of piece `piece`.
            const int piece = lane / 16, within = lane / 4 % 4 * 4;
#pragma unroll 1
            for (int step = 0; step < 4 * rounds; ++step) {
                uint32_t b[2];
                int cell[2];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int output = 8 * step + 4 * half + lane % 4;
                    b[half] = round_tf32(*reinterpret_cast<const uint32_t*>(y + 16 * (piece * y_pitch + output) + within));
                    cell[half] = row[output];
                }
#pragma unroll
                for (int p = 0; p < PAIRS; ++p) {
                    uint32_t tile[4];
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        const int at = cell[r / 2];
                        const char* const from = x + 16 * (at + offsets[2 * p + r % 2] + piece * pitch) + within;
                        tile[r] = at < 0 ? 0 : round_tf32(*reinterpret_cast<const uint32_t*>(from));
                    }
                    mma_tf32(sum[p], tile, b[0], b[1]);
                }
            }
        }
    });

    const int64_t weights = int64_t(a.G) * a.K * a.C * taps;
#pragma unroll
    for (int p = 0; p < PAIRS; ++p)
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int term = term0 + 2 * p + r / 2, k = column0 + 8 * warp + lane % 4 * 2 + r % 2, group = k / a.K;
            const int c = (chunk + term % t.span) * 8 + lane / 4 - group * a.C;
            if (term >= terms || k >= a.K * a.G || uint32_t(c) >= uint32_t(a.C)) continue;
            if (a.parts > 1) {
                float* const part = reinterpret_cast<float*>(static_cast<char*>(a.scratch) + a.s0) + worker * weights;
                part[(int64_t(k) * taps + term / t.span) * a.C + c] = sum[p][r];
                continue;
            }
            uint32_t rest = term / t.span;
            int64_t at = k * a.ws[0] + c * a.ws[1];
#pragma unroll
            for (int axis = 2; axis >= 0; --axis) at += take(rest, a.ksize[axis]) * a.ws[axis + 2];
            static_cast<T*>(a.w)[at] = narrow<T>(sum[p][r]);
        }
}

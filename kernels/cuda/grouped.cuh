// What the grouped convolutions share: tiles of outputs with the cells that they meet in shared memory.
//
// A block takes COLUMNS adjacent channels of the result, 8 to a chunk, and those of the source that their groups have,
// 8 to a chunk too. A chunk of the result meets `span` adjacent chunks of the source; the product of two chunks is 8 x 8,
// with zeros where groups differ. So groups of 4 lie two to a chunk, and those of 12 or 20 lie across chunks.
//
// A tile's box of cells comes into shared memory 16 bytes at a time by cp.async: piece i of cell j lies at
// i * pitch + j, with an odd pitch, so that both the copies and ldmatrix of neighbouring cells meet all banks. Every tap
// reads the same box, its rows moved on by the tap's offset.
#pragma once
#include "mma.cuh"

constexpr int THREADS = 256;
constexpr int OUTPUTS = 128;  // of a tile at most
constexpr int COLUMNS = 64;  // of the result, to a block

// A cell of a box or an output of a tile: elements past the first one, and its place along (n, d, h, w).
struct alignas(16) Place {
    int64_t offset;
    int16_t at[4];  // at[0] is -1 where there is none
};

// The places of a box, in row-major order; those past its `cells` are none.
__device__ inline void lay_out(Place* places, int count, int cells, const int32_t (&extent)[4], const int64_t (&strides)[5]) {
    for (int n = threadIdx.x; n < count; n += THREADS) {
        Place place = {};
        uint32_t rest = n;
#pragma unroll
        for (int axis = 3; axis >= 0; --axis) {
            const int at = take(rest, extent[axis]);
            place.at[axis] = int16_t(at), place.offset += at * strides[axis ? axis + 1 : 0];
        }
        if (n >= cells) place = {0, {-1, 0, 0, 0}};
        places[n] = place;
    }
}

// The first output of a tile.
struct Corner {
    int64_t n;
    int o[3];
    __device__ Corner(const Tiling& t, int64_t tile) {
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) o[axis] = take(tile, t.count[axis + 1]) * t.extent[axis + 1];
        n = tile * t.extent[0];
    }
    __device__ bool has(const Tiling& t, const Place& place, const int32_t (&out)[3]) const {
        bool inside = place.at[0] >= 0 && n + place.at[0] < t.images;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) inside = inside && o[axis] + place.at[axis + 1] < out[axis];
        return inside;
    }
};

// Which cell of its box output number `index` of a tile meets first.
__device__ inline int first_cell(const Tiling& t, int index) {
    uint32_t rest = index < t.outputs ? index : 0;
    int at[4];
#pragma unroll
    for (int axis = 3; axis >= 0; --axis) at[axis] = take(rest, t.extent[axis]);
    return ((at[0] * t.box[1] + at[1] * t.step[0]) * t.box[2] + at[2] * t.step[1]) * t.box[3] + at[3] * t.step[2];
}

// The first chunk of source channels that a result channel has products with: of M and C channels in a group.
__device__ inline int first_chunk(int channel, int M, int C, int G) { return min(channel, M * G - 1) / M * C / 8; }

// Begins the copies of a box: of channels from `channel` on of `channels`, from cell `first` of image n on.
template <class T>
__device__ inline void fetch_box(char* to, const void* from, int64_t from0, const int64_t (&strides)[5], const Place* places,
                                 int cells, int pieces, int channel, int channels, int64_t n, int64_t images,
                                 const int (&first)[3], const int32_t (&size)[3]) {
    constexpr int CHUNK = 16 / sizeof(T);
    const T* const source = static_cast<const T*>(from);
    int64_t origin = from0 + n * strides[0] + channel * strides[1];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) origin += first[axis] * strides[axis + 2];
    int cell = threadIdx.x / pieces, piece = threadIdx.x % pieces;
    const int cells_on = THREADS / pieces, pieces_on = THREADS % pieces;
    while (cell < cells) {
        const Place place = places[cell];
        bool inside = channel + piece * CHUNK < channels && place.at[0] >= 0 && n + place.at[0] < images;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) inside = inside && uint32_t(first[axis] + place.at[axis + 1]) < uint32_t(size[axis]);
        const T* const at = inside ? source + (origin + place.offset + piece * CHUNK) : source;
        copy_ahead(to + 16 * (piece * (cells | 1) + cell), at, inside);
        cell += cells_on, piece += pieces_on;
        if (piece >= pieces) piece -= pieces, ++cell;
    }
}

// The tiles of a worker: its own number, and every `workers` further.
__device__ inline int64_t tiles_of(const Tiling& t, int64_t worker) {
    return worker < t.tiles ? (t.tiles - worker - 1) / t.workers + 1 : 0;
}

// What a kernel is told: one struct by value. fastconv/backends/raw/args.py fills the same fields.
//
// Geometry is in forward terms whichever pass runs, always with three spatial axes (a missing one has the extent 1).
// Strides are in elements, over the canonical axes x[N, C, D, H, W], w[K, C/G, T, R, S], y[N, K, Z, P, Q].
#pragma once
#include "device.cuh"

// A divisor above 0 that the host knows, with what turns a division into a multiplication: with l bits in value - 1,
// multiplier = ceil(2^(63 + l) / value) gives the quotient of every n in [0, 2^62), and small = ceil(2^(31 + l) / value)
// that of every n below 2^31 (0 where value is above 2^31). Granlund and Montgomery, Division by invariant integers
// using multiplication, PLDI 1994.
struct Divisor {
    uint64_t multiplier;
    int64_t value;
    uint32_t small;
    int32_t shift;
    __device__ operator int64_t() const { return value; }
};

__device__ inline int64_t operator/(int64_t n, const Divisor& d) {
    if (n >> 31 == 0) return __umulhi(uint32_t(n) << 1, d.small) >> (d.shift & 31);
    return int64_t(__umul64hi(uint64_t(n) << 1, d.multiplier) >> d.shift);
}

// rest = rest / extent; returns the remainder.
__device__ inline int64_t split(int64_t& rest, const Divisor& extent) {
    const int64_t whole = rest / extent, part = rest - whole * extent.value;
    rest = whole;
    return part;
}

__device__ inline int64_t thread_number() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t thread_count() { return int64_t(gridDim.x) * blockDim.x; }

// How elements are stored, for operands whose dtype is not a template argument; the order of args.DTYPES.
enum Dtype { FLOAT16, BFLOAT16, FLOAT32, FLOAT64, INT8, UINT8, INT32 };

// How the threads of a block walk over memory; the order of bits of args.py.
enum Walk { CHANNELS = 1, A_ALONG_SUM = 2, B_ALONG_SUM = 4, CHANNELS_FASTEST = 8 };

// conv: fprop reads x, w, bias and writes y; dgrad reads y, w, bias (over x's channels) and writes x;
// wgrad reads y, x and writes w.
struct Conv {
    void *x, *w, *y, *bias, *scratch;
    int64_t xs[5], ws[5], ys[5], bs;
    int64_t N;
    Divisor size[3], ksize[3], out[3], stride[3];
    Divisor groups, blocks;  // blocks: of the channels that a thread takes
    int32_t C, K, activation;
    int32_t dilation[3], pad[3];
    int32_t tap_step[3];     // stride / gcd(stride, dilation): how far apart the taps are that meet one cell of dx
    int32_t xt, wt, yt, bt;  // Dtype
    int32_t walk;            // Walk
    int32_t lanes;           // threads of a block side by side along channels; the others lie along pixels
    int32_t splits;          // into how many parts the sum is cut; each writes its own part of scratch
};

// reduce: out[i] = activate(sum over s < splits of scratch[s, i] + bias[i1]), over the five axes of out.
struct Splits {
    void *scratch, *out, *bias;
    Divisor extent[5];
    int64_t stride[5], bs;
    int32_t splits, activation, bt;
};

// pool: x or its gradient dx, y or its gradient (dgrad reads it). `indices` are flat spatial offsets. `scratch` is what
// a gradient's first pass leaves to its second, of y's shape: tap numbers (max), norms (lp); for unpooling, per cell,
// one more than the output that wins it. An adaptive pooling has the extent of its largest window as ksize.
struct Pool {
    void *x, *y, *dx, *indices, *scratch, *flag;
    int64_t xs[5], ys[5], dxs[5], is[5], ss[5];
    int64_t N, divisor;  // divisor 0: the number of cells
    double p;
    Divisor packs, over[3];  // of channels that a thread takes, and what threads run over: outputs, cells or blocks
    Divisor size[3], out[3], ksize[3], stride[3], dilation[3];
    int32_t pad[3], pad_high[3], adaptive, count_include_pad, channels_last;
};

// elementwise: y from x, or dx (= y) from dy (= x) and what the activation's gradient is read from (= saved).
struct Map {
    void *y, *x, *saved;
    int64_t ys[8], xs[8], ss[8];
    Divisor shape[8];
    int64_t count;
    int32_t axes, activation;
};

// bias_grad: sums of y over all but the channels; `partial` holds a row of C sums per part.
struct BiasGrad {
    void *y, *b, *partial;
    int64_t ys[5], bs, N;
    Divisor plane, size[3];  // plane: the packs of pixels of one image, size: the extents in pixels
    int32_t C, channels_last, lanes, parts;  // lanes: how many threads of a block lie along channels
};

// correlate: y[o] = sum over i of x[o + offset + i] * w[i], zero outside of x; missing axes lead, with the extent 1.
struct Signal {
    void *x, *w, *y, *partial;
    int64_t n[8], m[8], offset[8], xs[8], ws[8], ys[8];
    Divisor out[8];
    int32_t split, parts, lanes;  // of correlate_dot: the axis whose taps are split, and threads along the last one
};

// conv_mma: one gathering pass, fprop or one residue of a dgrad. a is the source, d the result; C channels are summed
// and M are written, per group. Along an axis, output o meets source cell o * step + first + t * apart through tap t.
struct Gather {
    void *a, *w, *d, *bias;
    int64_t a0, w0, d0;                          // elements before the first one used
    int64_t as[5], ws[2], wt[3], wg, ds[5], bs;  // w: strides of m and c, of a tap along each axis, of a group
    int64_t pixels;                              // of all images
    int32_t C, M, G, activation, bt;
    int32_t source[3], out[3], step[3], taps[3], first[3], apart[3];
    int32_t wide;  // 1: rows of d's channels can be written 16 bytes at a time
};

// conv_depthwise_strips: what differs between its passes, all of which are over the same axes.
struct StripPass {
    int64_t w0, d0;  // elements before the first ones used
    int32_t out[3], taps[3], first[3];
};

// conv_depthwise_strips: a is the source, d the result, as in Gather. The axes are in the kernel's order, a strip along
// the last of them. `extent`: of the largest pass, in strips along the last axis; `apart` is above 0.
struct Strips {
    void *a, *w, *d, *bias;
    int64_t as[5], ws, wt[3], ds[5], bs, N;
    Divisor blocks, extent[3];
    int32_t activation, bt, walk, count;  // count: of the passes
    int32_t source[3], step[3], apart[3];
    StripPass passes[8];
};

// conv_mma_wgrad: C and K are those of a group as x and y have them, Cw and Kw as w has them (fewer, where rows of
// channels were filled up). The pixels of all images are cut into parts of `part`; a step of the kernel moves a
// thread's pixel on by `advance_n` images and `advance` outputs along each axis. The sums go to w, or with more
// parts than one to scratch.
struct Wgrad {
    void *x, *w, *y, *scratch;
    int64_t x0, y0, s0;
    int64_t xs[5], ws[5], ys[5];
    int64_t pixels, part, advance_n;
    int32_t C, K, G, Cw, Kw, parts;
    int32_t size[3], ksize[3], out[3], stride[3], dilation[3], pad[3], advance[3];
};

// The grouped convolutions: how the outputs of all images are cut into tiles, over (n, d, h, w). A tile of `extent`
// outputs meets a box of the source's cells, whose first is output * step + lowest.
struct Tiling {
    int64_t images, tiles;
    int32_t extent[4], box[4], count[4];  // count: of tiles along each axis
    int32_t step[3], lowest[3];
    int32_t outputs, cells;  // of a tile, of a box
    int32_t span;            // chunks of 8 source channels that the result channels of a warp have products with
    int32_t pieces;          // of 16 bytes, that a block takes of each cell
    int32_t steps;           // of conv_grouped: of the sums of all passes
    int32_t workers;         // blocks that share the tiles
};

// conv_grouped: all residues of a dgrad, or fprop alone; the addresses are those of the first.
struct Grouped {
    Gather pass[8];
    Tiling tiling;
    int32_t passes;
};

struct GroupedWgrad {
    Wgrad pass;
    Tiling tiling;
};

// pack: `pixels` counts those of all images; strides over [N, C, D, H, W].
struct Packing {
    void *from, *to;
    int64_t from0, to0, strides[5], pixels;
    int32_t C, padded;
    int32_t extent[3];
};

// What the host encodes for a TMA copy (cuTensorMapEncodeTiled, ...Im2col); kernels take it as __grid_constant__.
struct alignas(64) TensorMap {
    uint64_t words[16];
};

// conv_wgmma: a pass, with its source and filters as maps too: a over (channels, [w, [h, [d]]], images) of `rank`
// spatial axes, w over (channels, taps along each of three axes, filters). `lowest` is the lowest cell that output 0
// meets: through the first tap or, with apart < 0, through the last.
struct GatherMaps {
    Gather pass;
    int32_t rank, lowest[3];
    int32_t tap0[3], tap_step[3];  // which of w's taps these are
    TensorMap a, w;
};

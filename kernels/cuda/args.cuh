// What a kernel is told: one struct by value. fastconv/backends/raw/args.py fills the same fields.
//
// Geometry is in forward terms whichever pass runs, always with three spatial axes (a missing one has the extent 1).
// Strides are in elements, over the canonical axes x[N, C, D, H, W], w[K, C/G, T, R, S], y[N, K, Z, P, Q].
#pragma once
#include "device.cuh"

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
    int32_t C, K, G, activation;
    int32_t size[3], ksize[3], out[3], stride[3], dilation[3], pad[3];
    int32_t tap_step[3];     // stride / gcd(stride, dilation): how far apart the taps are that meet one cell of dx
    int32_t xt, wt, yt, bt;  // Dtype
    int32_t walk;            // Walk
    int32_t lanes;           // threads of a block side by side along channels; the others lie along pixels
    int32_t splits;          // into how many parts the sum is cut; each writes its own part of scratch
};

// reduce: out[i] = activate(sum over s < splits of scratch[s, i] + bias[i1]), over the five axes of out.
struct Splits {
    void *scratch, *out, *bias;
    int64_t extent[5], stride[5], bs;
    int32_t splits, activation, bt;
};

// pool: fprop reads x and writes y (and indices); dgrad reads dy, and x, y or indices where the op needs them, and
// writes dx. Without a window (adaptive) the cells of output o are [o * size / out, ceil((o + 1) * size / out)).
struct Pool {
    void *x, *y, *dx, *dy, *indices;
    int64_t xs[5], ys[5], dxs[5], dys[5], is[5];
    int64_t N, divisor;  // divisor 0: the number of cells
    double p;
    int32_t C, adaptive, count_include_pad;
    int32_t size[3], ksize[3], out[3], stride[3], dilation[3], pad[3], pad_high[3];
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

// pack: `pixels` counts those of all images; strides over [N, C, D, H, W].
struct Packing {
    void *from, *to;
    int64_t from0, to0, strides[5], pixels;
    int32_t C, padded;
    int32_t extent[3];
};

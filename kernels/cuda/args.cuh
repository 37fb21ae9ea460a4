// What a kernel is told: one struct by value. fastconv/backends/raw/args.py fills the same fields.
//
// Geometry is in forward terms whichever pass runs, always with three spatial axes (a missing one has the extent 1).
// Strides are in elements, over the canonical axes x[N, C, D, H, W], w[K, C/G, T, R, S], y[N, K, Z, P, Q].
#pragma once
#include "device.cuh"

// conv: fprop reads x, w, bias and writes y; dgrad reads y, w, bias (over x's channels) and writes x;
// wgrad reads y, x and writes w.
struct Conv {
    void *x, *w, *y, *bias, *scratch;
    int64_t xs[5], ws[5], ys[5], bs;
    int64_t N;
    int32_t C, K, G, activation;
    int32_t size[3], ksize[3], out[3], stride[3], dilation[3], pad[3];
    int32_t splits;  // into how many parts a pass over pixels is cut (wgrad)
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

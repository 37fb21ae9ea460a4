// Correlation of one N-D array with another, computed directly.
//
//   y[o] = sum over i of x[o + offset + i] * w[i],   nothing where x[...] would lie outside of x
//
//   correlate_direct   a thread per output; A axes, the missing ones leading
//   correlate_dot      a block per output and part of the taps, which lie along one axis: few outputs of many taps
//   correlate_join     adds the parts of correlate_dot in their order
//   correlate_rows     long last axes: a block takes 1024 outputs along it, a thread 8 neighbours in registers; the
//                      stretch of x and up to 128 taps lie in shared memory (5.1 KiB of 32-bit values)
//
// Integers are summed modulo 2**bits as unsigned ones, bools by "or" of "and", 16-bit floats in float, complex numbers
// by their parts. What lies outside takes part in no product, so that 0 * infinity makes no NaN.
#include "args.cuh"
#include "types.cuh"

// ---------------------------------------------------------------- numbers

struct boolean { uint8_t value; };
template <class R> struct complex { R re, im; };

// How a dtype is summed: the type of sums, a stored value in it, sum += a * b, and the result.
template <class T> struct Sum {
    using type = computed<T>;
    static __device__ type of(T value) { return widen(value); }
    static __device__ void add(type& sum, type a, type b) { sum += a * b; }
    static __device__ void join(type& sum, type other) { sum += other; }
    static __device__ T result(type sum) { return narrow<T>(sum); }
};
template <class T> struct Unsigned {
    using type = uint32_t;
    static __device__ type of(T value) { return value; }
    static __device__ void add(type& sum, type a, type b) { sum += a * b; }
    static __device__ void join(type& sum, type other) { sum += other; }
    static __device__ T result(type sum) { return T(sum); }
};
template <> struct Sum<uint8_t> : Unsigned<uint8_t> {};
template <> struct Sum<uint16_t> : Unsigned<uint16_t> {};
template <> struct Sum<boolean> {
    using type = uint32_t;
    static __device__ type of(boolean v) { return v.value; }
    static __device__ void add(type& sum, type a, type b) { sum |= a & b; }
    static __device__ void join(type& sum, type other) { sum |= other; }
    static __device__ boolean result(type sum) { return {uint8_t(sum != 0)}; }
};
template <class R> struct Sum<complex<R>> {
    using type = complex<R>;
    static __device__ type of(type value) { return value; }
    static __device__ void add(type& sum, type a, type b) {
        sum.re += a.re * b.re - a.im * b.im;
        sum.im += a.re * b.im + a.im * b.re;
    }
    static __device__ void join(type& sum, type other) { sum.re += other.re, sum.im += other.im; }
    static __device__ type result(type sum) { return sum; }
};

// ---------------------------------------------------------------- one output

// The taps [begin, end) of an output along an axis that meet x.
struct Range {
    int64_t begin, end;
};

__device__ inline Range range_of(const Signal& a, int axis, int64_t o) {
    const int64_t first = o + a.offset[axis], room = a.n[axis] - first;
    return {first < 0 ? -first : 0, room < a.m[axis] ? room : a.m[axis]};
}

// The taps of one output along the axes [8 - A, 8), and the offsets in x and y of its tap 0: x's may lie outside.
template <class T, int A> struct Output {
    Range taps[A];
    int64_t x = 0, y = 0;

    __device__ Output(const Signal& a, int64_t rest) {
#pragma unroll
        for (int k = A - 1; k >= 0; --k) {
            const int axis = 8 - A + k;
            const int64_t o = split(rest, a.out[axis]);
            taps[k] = range_of(a, axis, o);
            x += (o + a.offset[axis]) * a.xs[axis];
            y += o * a.ys[axis];
        }
    }

    // Calls use(offset in x, offset in w) for every tap of the axes [8 - A, END).
    template <int END, int K = 0, class Use> __device__ void each(const Signal& a, int64_t x, int64_t w, Use&& use) const {
        constexpr int axis = 8 - A + K;
        if constexpr (axis < END) {
            for (int64_t i = taps[K].begin; i < taps[K].end; ++i)
                each<END, K + 1>(a, x + i * a.xs[axis], w + i * a.ws[axis], use);
        } else {
            use(x, w);
        }
    }
};

template <int A> __device__ inline int64_t outputs(const Signal& a) {
    int64_t count = 1;
#pragma unroll
    for (int axis = 8 - A; axis < 8; ++axis) count *= a.out[axis].value;
    return count;
}

template <class T, int A>
__global__ void __launch_bounds__(256, 1) correlate_direct(const __grid_constant__ Signal a) {
    using S = Sum<T>;
    const T *const x = static_cast<const T*>(a.x), *const w = static_cast<const T*>(a.w);
    for (int64_t i = thread_number(); i < outputs<A>(a); i += thread_count()) {
        const Output<T, A> output(a, i);
        typename S::type sum{};
        output.template each<8>(a, output.x, 0, [&](int64_t at, int64_t tap) {
            S::add(sum, S::of(x[at]), S::of(w[tap]));
        });
        static_cast<T*>(a.y)[output.y] = S::result(sum);
    }
}

// ---------------------------------------------------------------- few outputs of many taps

// The part of a range that the block's part of the taps takes.
__device__ inline Range part_of(const Range& range, int64_t part, int64_t parts) {
    const int64_t length = range.end > range.begin ? range.end - range.begin : 0;
    const int64_t each = (length + parts - 1) / parts, begin = range.begin + part * each, end = begin + each;
    return {begin, end < range.end ? end : range.end};
}

// Block = part * outputs + output; threads: `lanes` along the last axis, the others along the last but one.
template <class T> __global__ void __launch_bounds__(256) correlate_dot(const __grid_constant__ Signal a) {
    using S = Sum<T>;
    __shared__ typename S::type sums[256];
    const T *const x = static_cast<const T*>(a.x), *const w = static_cast<const T*>(a.w);
    const int lane = threadIdx.x % a.lanes, row = threadIdx.x / a.lanes, rows = blockDim.x / a.lanes;
    const int64_t count = outputs<3>(a), number = blockIdx.x % count;
    Output<T, 3> output(a, number);
#pragma unroll
    for (int k = 0; k < 3; ++k)
        if (a.split == 5 + k) output.taps[k] = part_of(output.taps[k], blockIdx.x / count, a.parts);
    typename S::type sum{};
    output.template each<6>(a, output.x, 0, [&](int64_t at, int64_t tap) {
        for (int64_t i = output.taps[1].begin + row; i < output.taps[1].end; i += rows)
            for (int64_t j = output.taps[2].begin + lane; j < output.taps[2].end; j += a.lanes)
                S::add(sum, S::of(x[at + i * a.xs[6] + j * a.xs[7]]), S::of(w[tap + i * a.ws[6] + j * a.ws[7]]));
    });
    sums[threadIdx.x] = sum;
    for (int width = blockDim.x / 2; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) S::join(sums[threadIdx.x], sums[threadIdx.x + width]);
    }
    if (threadIdx.x == 0) static_cast<typename S::type*>(a.partial)[blockIdx.x] = sums[0];
}

template <class T> __global__ void __launch_bounds__(256) correlate_join(const __grid_constant__ Signal a) {
    using S = Sum<T>;
    const int64_t count = outputs<3>(a);
    for (int64_t i = thread_number(); i < count; i += thread_count()) {
        typename S::type sum{};
        for (int64_t part = 0; part < a.parts; ++part)
            S::join(sum, static_cast<const typename S::type*>(a.partial)[part * count + i]);
        static_cast<T*>(a.y)[Output<T, 3>(a, i).y] = S::result(sum);
    }
}

// ---------------------------------------------------------------- long last axes

constexpr int THREADS = 128, EACH = 8, TILE = THREADS * EACH, CHUNK = 128, STRETCH = TILE + CHUNK;

// Eight neighbours are followed by a gap, so that threads that read EACH apart meet different banks.
__device__ inline int padded(int at) { return at + at / EACH; }

// sum[k] += x[k + j] * w[j] over j < taps. Where Edge, only cells of x count: k + j in [low, high).
template <bool Edge, class S, class A = typename S::type>
__device__ inline void slide(A (&sum)[EACH], const A* x, const A* w, int at, int taps, int64_t low, int64_t high) {
    A cells[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) cells[k] = x[padded(at + k)];
    for (int j = 0; j < taps; j += EACH) {
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            if (j + u < taps) {
                const A tap = w[j + u];
#pragma unroll
                for (int k = 0; k < EACH; ++k)
                    if (!Edge || (j + u + k >= low && j + u + k < high)) S::add(sum[k], cells[(u + k) % EACH], tap);
                cells[u] = x[padded(at + j + u + EACH)];
            }
        }
    }
}

template <class T> __global__ void __launch_bounds__(THREADS, 2) correlate_rows(const __grid_constant__ Signal a) {
    using S = Sum<T>;
    using A = typename S::type;
    __shared__ A cells[STRETCH + STRETCH / EACH];
    __shared__ A taps[CHUNK];
    const T *const x = static_cast<const T*>(a.x), *const w = static_cast<const T*>(a.w);
    const int64_t tiles = (a.out[7].value + TILE - 1) / TILE, row = blockIdx.x / tiles;
    const int64_t tile = (blockIdx.x - row * tiles) * TILE, first = tile + a.offset[7];
    const int at = threadIdx.x * EACH;
    const Output<T, 3> output(a, row * a.out[7].value + tile);
    A sum[EACH] = {};
    output.template each<7>(a, output.x - first * a.xs[7], 0, [&](int64_t from, int64_t tap) {
        for (int64_t j = 0; j < a.m[7]; j += CHUNK) {
            const int count = int(a.m[7] - j < CHUNK ? a.m[7] - j : CHUNK);
            const int64_t low = first + j, high = low + TILE + count;  // the stretch of x, one cell beyond the last
            if (high <= 0 || low >= a.n[7]) continue;
            for (int i = threadIdx.x; i < TILE + count; i += THREADS) {
                const int64_t cell = low + i;
                cells[padded(i)] = cell >= 0 && cell < a.n[7] ? S::of(x[from + cell * a.xs[7]]) : A{};
            }
            for (int i = threadIdx.x; i < count; i += THREADS) taps[i] = S::of(w[tap + (j + i) * a.ws[7]]);
            __syncthreads();
            if (tile + at < a.out[7].value) {
                if (low >= 0 && high <= a.n[7]) slide<false, S>(sum, cells, taps, at, count, 0, 0);
                else slide<true, S>(sum, cells, taps, at, count, -low - at, a.n[7] - low - at);
            }
            __syncthreads();
        }
    });
    T* const y = static_cast<T*>(a.y) + output.y;
#pragma unroll
    for (int k = 0; k < EACH; ++k)
        if (tile + at + k < a.out[7].value) y[(at + k) * a.ys[7]] = S::result(sum[k]);
}

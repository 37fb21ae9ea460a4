// What makes CUDA C++ compile under g++: qualifiers, built-in variables, vector types, barriers, warp collectives and
// the mathematics of device code. Only meaning is modelled, not speed.
//
// `__shared__` variables are the only zero-initialised static data of a kernel's object file, so its .bss as a whole is
// shared memory: the runtime fills it with 0xff (NaN, -1) before each block. A guard lies between any two of them. They
// are `used`, as g++ would take one that nothing writes for the constant 0.
#pragma once
#include "runtime.hpp"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define alignas(bytes) __attribute__((aligned(bytes)))  // which may stand after __shared__, too
#define __noinline__ __attribute__((noinline))

#define EMULATOR_JOIN_(a, b) a##b
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_(a, b)
#define __shared__                                                                                  \
    static emulator::SharedGuard EMULATOR_JOIN(fastconv_guard_, __COUNTER__) __attribute__((used)); \
    static __attribute__((used, aligned(16)))

#undef assert
#define assert(condition) \
    ((condition) ? (void)0 : emulator::fail(emulator::Site::here(), "assertion failed: %s", #condition))

namespace emulator {
struct alignas(16) SharedGuard {
    char bytes[64];
};
}  // namespace emulator

// ---------------------------------------------------------------- vector types

#define EMULATOR_VECTOR(T, name, align2, align4)                       \
    struct name##1 { T x; };                                           \
    struct alignas(align2) name##2 { T x, y; };                        \
    struct name##3 { T x, y, z; };                                     \
    struct alignas(align4) name##4 { T x, y, z, w; };                  \
    inline name##1 make_##name##1(T x) { return {x}; }                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned;
using ulong = unsigned long;
using longlong = long long;
using ulonglong = unsigned long long;
#define uint3 emulator_uint3  // runtime.hpp has this one
EMULATOR_VECTOR(signed char, char, 2, 4)
EMULATOR_VECTOR(uchar, uchar, 2, 4)
EMULATOR_VECTOR(short, short, 4, 8)
EMULATOR_VECTOR(ushort, ushort, 4, 8)
EMULATOR_VECTOR(int, int, 8, 16)
EMULATOR_VECTOR(uint, uint, 8, 16)
EMULATOR_VECTOR(long, long, 16, 16)
EMULATOR_VECTOR(ulong, ulong, 16, 16)
EMULATOR_VECTOR(longlong, longlong, 16, 16)
EMULATOR_VECTOR(ulonglong, ulonglong, 16, 16)
EMULATOR_VECTOR(float, float, 8, 16)
EMULATOR_VECTOR(double, double, 16, 16)
#undef uint3

constexpr int warpSize = emulator::WARP;

// ---------------------------------------------------------------- barriers

inline void __syncthreads(emulator::Site here = emulator::Site::here()) {
    emulator::block_barrier("__syncthreads", false, here);
}
inline int __syncthreads_count(int vote, emulator::Site here = emulator::Site::here()) {
    return emulator::block_barrier("__syncthreads_count", vote != 0, here);
}
inline int __syncthreads_or(int vote, emulator::Site here = emulator::Site::here()) {
    return emulator::block_barrier("__syncthreads_or", vote != 0, here) != 0;
}
inline int __syncthreads_and(int vote, emulator::Site here = emulator::Site::here()) {
    return emulator::block_barrier("__syncthreads_and", vote == 0, here) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, emulator::Site here = emulator::Site::here()) {
    emulator::warp_collective("__syncwarp", mask, nullptr, nullptr, here);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned, emulator::Site here = emulator::Site::here()) { emulator::yield(here); }
#define __trap() emulator::fail(emulator::Site::here(), "__trap")
inline unsigned __activemask() { return emulator::live_lanes(); }

// ---------------------------------------------------------------- warp collectives

namespace emulator {

/// A lane's part of a shuffle: its value, the lane that it reads, and what it gets. An exited lane gives 0xff bytes.
template <class T>
struct Shuffle {
    T value, result;
    unsigned source;

    static void perform(void* const* lanes, unsigned count) {
        for (unsigned i = 0; i < count; ++i) {
            if (!lanes[i]) continue;
            auto* self = static_cast<Shuffle*>(lanes[i]);
            if (auto* other = static_cast<Shuffle*>(lanes[self->source])) self->result = other->value;
            else memset(&self->result, 0xff, sizeof(T));
        }
    }
};

template <class T>
T shuffle(const char* what, unsigned mask, T value, unsigned source, Site here) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Shuffle<T> mine{value, value, source};
    warp_collective(what, mask, Shuffle<T>::perform, &mine, here);
    return mine.result;
}

inline unsigned segment(int width) { return lane_number() & ~(unsigned(width) - 1); }

/// A lane's part of a vote.
struct Vote {
    unsigned long long value;
    unsigned mask, equal;

    static void ballot(void* const* lanes, unsigned count) {
        unsigned mask = 0;
        for (unsigned i = 0; i < count; ++i)
            if (lanes[i] && static_cast<Vote*>(lanes[i])->value) mask |= 1u << i;
        for (unsigned i = 0; i < count; ++i)
            if (lanes[i]) static_cast<Vote*>(lanes[i])->mask = mask;
    }
    static void match(void* const* lanes, unsigned count) {
        for (unsigned i = 0; i < count; ++i)
            for (unsigned j = 0; j < count; ++j)
                if (lanes[i] && lanes[j] && static_cast<Vote*>(lanes[i])->value == static_cast<Vote*>(lanes[j])->value)
                    static_cast<Vote*>(lanes[i])->mask |= 1u << j;
    }
};

/// A lane's part of a reduction over the group.
template <class T, class Op>
struct Reduce {
    T value;

    static void perform(void* const* lanes, unsigned count) {
        T result{};
        bool any = false;
        for (unsigned i = 0; i < count; ++i) {
            if (!lanes[i]) continue;
            T value = static_cast<Reduce*>(lanes[i])->value;
            result = any ? Op{}(result, value) : value;
            any = true;
        }
        for (unsigned i = 0; i < count; ++i)
            if (lanes[i]) static_cast<Reduce*>(lanes[i])->value = result;
    }
};

template <class Op, class T>
T reduce(const char* what, unsigned mask, T value, Site here) {
    Reduce<T, Op> mine{value};
    warp_collective(what, mask, Reduce<T, Op>::perform, &mine, here);
    return mine.value;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, emulator::Site here = emulator::Site::here()) {
    unsigned source = emulator::segment(width) | (unsigned(lane) & (unsigned(width) - 1));
    return emulator::shuffle("__shfl_sync", mask, value, source, here);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, emulator::Site here = emulator::Site::here()) {
    unsigned lane = emulator::lane_number();
    unsigned source = lane - emulator::segment(width) >= delta ? lane - delta : lane;
    return emulator::shuffle("__shfl_up_sync", mask, value, source, here);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulator::Site here = emulator::Site::here()) {
    unsigned lane = emulator::lane_number();
    unsigned source = lane - emulator::segment(width) + delta < unsigned(width) ? lane + delta : lane;
    return emulator::shuffle("__shfl_down_sync", mask, value, source, here);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, emulator::Site here = emulator::Site::here()) {
    unsigned lane = emulator::lane_number(), other = lane ^ unsigned(bits);
    unsigned source = other < emulator::segment(width) + unsigned(width) ? other : lane;
    return emulator::shuffle("__shfl_xor_sync", mask, value, source, here);
}
inline unsigned __ballot_sync(unsigned mask, int vote, emulator::Site here = emulator::Site::here()) {
    emulator::Vote mine{vote != 0, 0, 0};
    emulator::warp_collective("__ballot_sync", mask, emulator::Vote::ballot, &mine, here);
    return mine.mask;
}
inline int __any_sync(unsigned mask, int vote, emulator::Site here = emulator::Site::here()) {
    emulator::Vote mine{vote != 0, 0, 0};
    emulator::warp_collective("__any_sync", mask, emulator::Vote::ballot, &mine, here);
    return mine.mask != 0;
}
inline int __all_sync(unsigned mask, int vote, emulator::Site here = emulator::Site::here()) {
    emulator::Vote mine{vote == 0, 0, 0};
    emulator::warp_collective("__all_sync", mask, emulator::Vote::ballot, &mine, here);
    return mine.mask == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, emulator::Site here = emulator::Site::here()) {
    emulator::Vote mine{0, 0, 0};
    memcpy(&mine.value, &value, sizeof value);
    emulator::warp_collective("__match_any_sync", mask, emulator::Vote::match, &mine, here);
    return mine.mask;
}

#define EMULATOR_REDUCE(name, T, expression)                                                                           \
    namespace emulator {                                                                                               \
    struct EMULATOR_JOIN(name, _of_##T) {                                                                              \
        T operator()(T a, T b) const { return expression; }                                                            \
    };                                                                                                                 \
    }                                                                                                                  \
    inline T __reduce_##name##_sync(unsigned mask, T value, emulator::Site here = emulator::Site::here()) {            \
        return emulator::reduce<emulator::EMULATOR_JOIN(name, _of_##T)>("__reduce_" #name "_sync", mask, value, here); \
    }
EMULATOR_REDUCE(add, uint, a + b)
EMULATOR_REDUCE(min, uint, a < b ? a : b)
EMULATOR_REDUCE(max, uint, a > b ? a : b)
EMULATOR_REDUCE(min, int, a < b ? a : b)
EMULATOR_REDUCE(max, int, a > b ? a : b)
EMULATOR_REDUCE(and, uint, (a & b))
EMULATOR_REDUCE(or, uint, a | b)
EMULATOR_REDUCE(xor, uint, a ^ b)
inline int __reduce_add_sync(unsigned mask, int value, emulator::Site here = emulator::Site::here()) {
    return int(__reduce_add_sync(mask, unsigned(value), here));
}

// ---------------------------------------------------------------- loads with a hint, bits

#define EMULATOR_LOAD(name)    \
    template <class T>         \
    T name(const T* address) { \
        return *address;       \
    }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
#define EMULATOR_STORE(name)         \
    template <class T>               \
    void name(T* address, T value) { \
        *address = value;            \
    }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)

namespace emulator {
template <class To, class From>
To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace emulator

inline int __float_as_int(float v) { return emulator::bits<int>(v); }
inline unsigned __float_as_uint(float v) { return emulator::bits<unsigned>(v); }
inline float __int_as_float(int v) { return emulator::bits<float>(v); }
inline float __uint_as_float(unsigned v) { return emulator::bits<float>(v); }
inline long long __double_as_longlong(double v) { return emulator::bits<long long>(v); }
inline double __longlong_as_double(long long v) { return emulator::bits<double>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(v) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
    return r;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t both = uint64_t(b) << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned s = selector >> 4 * i & 15, byte = both >> 8 * (s & 7) & 255;
        r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return r;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return (uint64_t(hi) << 32 | lo) << (n & 31) >> 32;
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) { return (uint64_t(hi) << 32 | lo) >> (n & 31); }
inline int __mulhi(int a, int b) { return int64_t(a) * b >> 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += int(int8_t(a >> 8 * i)) * int8_t(b >> 8 * i);
    return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; ++i) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
    return c;
}

// ---------------------------------------------------------------- mathematics

#define EMULATOR_ORDER(A, B, R)                            \
    inline R min(A a, B b) { return R(a) < R(b) ? a : b; } \
    inline R max(A a, B b) { return R(a) > R(b) ? a : b; }
EMULATOR_ORDER(int, int, int)
EMULATOR_ORDER(unsigned, unsigned, unsigned)
EMULATOR_ORDER(int, unsigned, unsigned)
EMULATOR_ORDER(unsigned, int, unsigned)
EMULATOR_ORDER(long, long, long)
EMULATOR_ORDER(ulong, ulong, ulong)
EMULATOR_ORDER(longlong, longlong, longlong)
EMULATOR_ORDER(ulonglong, ulonglong, ulonglong)
#undef EMULATOR_ORDER
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// One rounding per operation, as g++ is told not to contract.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __exp10f(float a) { return powf(10.0f, a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __sinf(float a) { return sinf(a); }
inline float __cosf(float a) { return cosf(a); }
inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }
inline float rsqrtf(float a) { return float(1.0 / sqrt(double(a))); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float rcbrtf(float a) { return float(1.0 / cbrt(double(a))); }

inline int __float2int_rn(float v) { return int(rintf(v)); }
inline int __float2int_rz(float v) { return int(v); }
inline int __float2int_rd(float v) { return int(floorf(v)); }
inline int __float2int_ru(float v) { return int(ceilf(v)); }
inline unsigned __float2uint_rn(float v) { return unsigned(rintf(v)); }
inline float __int2float_rn(int v) { return float(v); }
inline float __uint2float_rn(unsigned v) { return float(v); }
inline float __double2float_rn(double v) { return float(v); }

// ---------------------------------------------------------------- atomics: threads switch at barriers only

namespace emulator {
template <class T, class F>
__attribute__((no_sanitize("thread"))) T atomic(T* address, F next) {
    updates(address, sizeof(T));
    T old = *address;
    *address = next(old);
    return old;
}
}  // namespace emulator

#define EMULATOR_ATOMIC(name, expression)                                         \
    template <class T>                                                            \
    T name(T* address, T value) {                                                 \
        return emulator::atomic(address, [=](T old) -> T { return expression; }); \
    }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicMin, old < value ? old : value)
EMULATOR_ATOMIC(atomicMax, old > value ? old : value)
EMULATOR_ATOMIC(atomicAnd, old& value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicExch, value)
template <class T>
T atomicCAS(T* address, T expected, T value) {
    return emulator::atomic(address, [=](T old) { return old == expected ? value : old; });
}

// ---------------------------------------------------------------- launching

extern char __bss_start[] __attribute__((visibility("hidden")));  // from the linker: all of the object's shared memory
extern char _end[] __attribute__((visibility("hidden")));
extern const char __ehdr_start[] __attribute__((visibility("hidden")));

namespace emulator {

constexpr size_t SLOT = 64;  // an argument takes a multiple of this, so that each is aligned
constexpr size_t slot_bytes(size_t bytes) { return (bytes + SLOT - 1) / SLOT * SLOT; }

template <class...>
struct Caller;

/// Calls a kernel with the arguments that lie in slots.
template <class First, class... Rest>
struct Caller<First, Rest...> {
    template <class F, class... Done>
    static void call(F kernel, const char* slots, const Done&... done) {
        Caller<Rest...>::call(kernel, slots + slot_bytes(sizeof(First)), done...,
                              *reinterpret_cast<const First*>(slots));
    }
};
template <>
struct Caller<> {
    template <class F, class... Done>
    static void call(F kernel, const char*, const Done&... done) {
        kernel(done...);
    }
};

template <auto kernel>
struct Entry;

template <class... A, void (*kernel)(A...)>
struct Entry<kernel> {
    static constexpr size_t SIZES[] = {sizeof(A)..., 0};
    static constexpr size_t BYTES = (slot_bytes(sizeof(A)) + ... + SLOT);

    static void run(const void* slots) { Caller<A...>::call(kernel, static_cast<const char*>(slots)); }

    /// Launches the kernel; 0, or 1 with a message.
    static int launch(Launch* launch) {
        alignas(SLOT) char slots[BYTES];
        if (launch->count != sizeof...(A)) {
            snprintf(launch->message, launch->message_size, "the kernel takes %zu arguments, got %u", sizeof...(A),
                     launch->count);
            return 1;
        }
        char* slot = slots;
        for (unsigned i = 0; i < launch->count; ++i) {
            if (launch->sizes[i] != SIZES[i]) {
                snprintf(launch->message, launch->message_size, "argument %u of the kernel has %zu bytes, got %zu", i,
                         SIZES[i], size_t(launch->sizes[i]));
                return 1;
            }
            memcpy(slot, launch->arguments[i], SIZES[i]);
            slot += slot_bytes(SIZES[i]);
        }
        return emulator::run(*launch, Kernel{run, slots, BYTES, __ehdr_start, __bss_start, _end});
    }
};

}  // namespace emulator

#define EMULATOR_ENTRY(number, ...)                                                                  \
    extern "C" EMULATOR_API int EMULATOR_JOIN(fastconv_launch_, number)(emulator::Launch * launch) { \
        return emulator::Entry<&__VA_ARGS__>::launch(launch);                                        \
    }

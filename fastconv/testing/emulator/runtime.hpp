// The emulator's runtime as a kernel sees it: one block at a time, one fiber per thread that waits.
//
// runtime.cpp is compiled once into a shared object; every kernel's shared object links to it. A thread that never
// waits is a plain function call. One that waits gives its stack away to the next, and continues when it is released.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define EMULATOR_API __attribute__((visibility("default")))

#ifndef EMULATOR_RUNTIME
#define EMULATOR_CONSTANT const  // for one thread they never change
#else
#define EMULATOR_CONSTANT
#endif
extern EMULATOR_API EMULATOR_CONSTANT uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

/// Where in the kernel's source something happens: as a default argument `Site::here()` is the caller's place.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

/// Memory that a checked kernel may touch.
struct Region {
    enum Kind : uint32_t { operand, scratch, shared };
    enum State : uint8_t { outside, accessible, unwritten };  // of a granule; unwritten: accessible once it is written
    uint64_t begin, bytes;
    uint32_t shift;  // of a granule of 1 << shift bytes
    Kind kind;
    uint8_t* state;  // of each granule; null: all are accessible
    const char* name;
};

/// Bytes that a checked kernel moved to and from global memory: by all accesses, and by the first of each place.
struct Traffic {
    uint64_t read, written, distinct_read, distinct_written;
};

/// What a launch is told, and what it tells, field by field as in device.py.
struct Launch {
    uint32_t grid[3], block[3];
    uint64_t shared;               // bytes of dynamic shared memory
    uint64_t seed;                 // 0: threads run in order, else in an order shuffled by this
    const void* const* arguments;  // one address per parameter of the kernel
    const uint64_t* sizes;         // its bytes
    uint32_t count, checks;
    const Region* regions;
    uint64_t region_count;
    char* message;  // what went wrong, for the caller
    uint64_t message_size;
    Traffic traffic;
};

/// A kernel with its arguments, and its object file: from its first byte to the static shared memory at its end.
struct Kernel {
    void (*run)(const void*);
    const void* arguments;
    size_t argument_bytes;
    const char* image_begin;
    char* shared_begin;
    char* shared_end;
};

constexpr unsigned WARP = 32;

/// What the last thread to arrive does for all of the group: lanes[i] is what thread i brought, null if it exited.
using Perform = void (*)(void* const* lanes, unsigned count);

EMULATOR_API int run(Launch& launch, const Kernel& kernel);
[[noreturn]] EMULATOR_API void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

EMULATOR_API unsigned thread_number();  // of the running thread in its block
inline unsigned lane_number() { return thread_number() % WARP; }
EMULATOR_API unsigned live_lanes();  // of the running thread's warp, as a mask
EMULATOR_API void* dynamic_shared();
EMULATOR_API size_t dynamic_shared_size();
char* static_shared();
size_t static_shared_size();

/// Waits for all live lanes of `mask`; the last one performs for all of them.
EMULATOR_API void warp_collective(const char* what, unsigned mask, Perform perform, void* mine, Site site);
/// Waits for all live threads of the block; gives how many brought `vote`.
EMULATOR_API unsigned block_barrier(const char* what, bool vote, Site site);
/// PTX's bar.sync / bar.arrive: barrier `id` of `threads` threads (0: all of the block).
EMULATOR_API void named_barrier(unsigned id, unsigned threads, bool wait, Site site);

/// Waits until some thread calls `wake` with this key.
EMULATOR_API void park(const char* what, const void* key, Site site);
EMULATOR_API void wake(const void* key);
/// Lets every other thread run first.
EMULATOR_API void yield(Site site);

/// An atomic access by the running thread, for the checks.
EMULATOR_API void updates(void* address, size_t bytes);

}  // namespace emulator

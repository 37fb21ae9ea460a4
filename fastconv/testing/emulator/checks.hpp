// Shadow memory: what the runtime knows of each byte that a kernel may touch. Internal to the runtime.
//
// Kernels compiled with checks report each access through the functions that g++ calls for -fsanitize=thread, here with
// a runtime of our own. An access must lie inside a region (an operand's elements, a shared variable, scratch memory);
// a read of shared or scratch memory must follow a write; and two accesses of the same place by different threads, one
// of them a write, must be ordered by a barrier. Order is kept as happens-before: a thread's accesses carry its epoch,
// and each thread knows up to which epoch it has seen the others.
#pragma once
#define EMULATOR_RUNTIME
#include "runtime.hpp"

namespace emulator {

constexpr unsigned MAX_THREADS = 1024;
extern unsigned running_thread;  // its number in the block

namespace checks {

/// What a barrier passes on: the epoch up to which each thread's accesses are seen by who acquires it.
struct Clock {
    uint32_t seen[MAX_THREADS];
};

extern bool on;

/// How memory is touched: `start` is the write of an asynchronous copy, which `land` finishes; `async_read` is a read
/// by a bulk copy or wgmma, which sees a thread's own writes only after its `async_fence`.
enum Mode { read, write, update, start, async_read };

void access(const void* address, size_t bytes, Mode mode, const void* caller);
/// `seen`: a bulk copy has written it, which needs no fence.
void land(const void* address, size_t bytes, bool seen = false);
void async_fence();
/// An error at the place that a model was called from.
[[noreturn]] void fail_at(const void* caller, const char* format, ...) __attribute__((format(printf, 2, 3)));

void begin_launch(const Launch& launch, const Kernel& kernel, unsigned threads, char* stacks, size_t stack_bytes);
void end_launch(Launch& launch);
void begin_block();

void release(unsigned thread, Clock& clock);
void acquire(unsigned thread, const Clock& clock);
void clear(Clock& clock);
void synchronise_block();
void synchronise_warp(unsigned warp, unsigned lanes);

}  // namespace checks

// What the models keep for a block: dropped before the next one; a thread that exits must have nothing left to store.
void forget_copies(unsigned threads);
void forget_bulk(unsigned threads);
void forget_products(unsigned threads);
void exit_bulk();
/// What the barrier at this address waits for, in words.
void describe_barrier(const void* key, char* text, size_t size);

/// The thread's own copies by cp.async that have not landed, handed over to who makes them land.
struct Landing {
    void* to;
    uint32_t bytes;
    char data[16];
};
size_t take_copies(Landing* into, size_t room);

}  // namespace emulator

// Copies that run ahead, and products of tiles, as a kernel's object file calls them. The runtime models what PTX
// promises: data of an asynchronous copy lands when its wait returns, and until then the place reads 0xff.
#pragma once
#include "runtime.hpp"

namespace emulator {

/// Whether all of it lies in the shared memory of the block.
EMULATOR_API bool is_shared(const void* address, size_t bytes);
/// The 32-bit address in the shared window, and back.
EMULATOR_API uint32_t shared_offset(const void* address);
EMULATOR_API char* shared_pointer(uint32_t offset);

// cp.async: `bytes` from global to shared memory, of which the first `filled` are read and the rest are zeros.
EMULATOR_API void copy_async(void* to, const void* from, unsigned bytes, unsigned filled);
EMULATOR_API void copy_async_commit();
EMULATOR_API void copy_async_wait(unsigned latest);

// ldmatrix: `count` tiles of 8 x 8 16-bit elements.
EMULATOR_API void load_tiles(uint32_t* tiles, unsigned count, const void* row, bool crossed, Site site);

// mma.sync: m16n8k16 (m16n8k8 for tf32); m16n8k8 of 16-bit elements; m8n8k4; m16n8k32.
enum class Type { f16, bf16, tf32 };
EMULATOR_API void mma(Type type, float* d, const uint32_t* a, const uint32_t* b, Site site);
EMULATOR_API void mma_half_k(Type type, float* d, const uint32_t* a, const uint32_t* b, Site site);
EMULATOR_API void mma_f64(double* d, double a, double b, Site site);
EMULATOR_API void mma_int8(int* d, const uint32_t* a, const uint32_t* b, bool a_signed, bool b_signed, Site site);

// mbarrier; a barrier is known by its address.
EMULATOR_API void barrier_init(uint64_t* barrier, uint32_t arrivals);
EMULATOR_API void barrier_arrive(uint64_t* barrier);
EMULATOR_API void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes);
EMULATOR_API void barrier_wait(uint64_t* barrier, uint32_t parity, Site site);
EMULATOR_API void copies_arrive(uint64_t* barrier);

// Bulk copies. `async_fence` shows them, and wgmma, what the thread wrote to shared memory, its barriers too.
EMULATOR_API void async_fence();
EMULATOR_API void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* barrier);
EMULATOR_API void bulk_store(void* to, const void* from, uint32_t bytes);
EMULATOR_API void bulk_commit();
EMULATOR_API void bulk_wait(unsigned latest, bool read);
EMULATOR_API void box_load(void* to, const void* map, uint64_t* barrier, unsigned rank, const int32_t* corner);
EMULATOR_API void box_store(const void* map, const void* from, unsigned rank, const int32_t* corner);
/// corner: c, w, h, d, n; tap: its offsets along w, h, d.
EMULATOR_API void pixels_load(void* to, const void* map, uint64_t* barrier, unsigned rank, const int32_t* corner,
                              const uint16_t* tap);

// wgmma: d[64, n] (+)= a * b, as this thread's `n / 2` sums; a is a descriptor, or four registers.
struct Wgmma {
    Type type;
    uint32_t n;
    float* d;
    uint64_t a, b;
    uint32_t registers[4];
    bool a_in_registers, a_crossed, b_crossed, add;
};
EMULATOR_API void wgmma(const Wgmma& product);
EMULATOR_API void wgmma_fence();
EMULATOR_API void wgmma_commit();
EMULATOR_API void wgmma_wait(unsigned latest, Site site);

}  // namespace emulator

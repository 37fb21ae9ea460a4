// Copies that run ahead, and products of tiles, as a kernel's object file calls them. The runtime models what PTX promises:
// data of an asynchronous copy lands when its wait returns, and until then the place reads 0xff.
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

// mma.sync
enum class Type { f16, bf16, tf32 };
EMULATOR_API void mma(Type type, float* d, const uint32_t* a, const uint32_t* b, Site site);  // m16n8k16, m16n8k8 for tf32
EMULATOR_API void mma_half_k(Type type, float* d, const uint32_t* a, const uint32_t* b, Site site);  // m16n8k8, 16 bits
EMULATOR_API void mma_f64(double* d, double a, double b, Site site);                        // m8n8k4
EMULATOR_API void mma_int8(int* d, const uint32_t* a, const uint32_t* b, bool a_signed, bool b_signed, Site site);  // m16n8k32

}  // namespace emulator

// What mma.sync and wgmma share. Internal to the runtime.
#pragma once
#include "hardware.hpp"

namespace emulator {

/// An element of a fragment, or of memory read as 32-bit words, as float32.
float element(Type type, const uint32_t* registers, unsigned index);

/// d[rows, columns] += a[rows, k] * b[columns, k] as a tensor core sums it; k is 8 or 16.
void product(float* d, const float* a, const float* b, unsigned rows, unsigned columns, unsigned k);

}  // namespace emulator

// The seam between the kernels and what runs them: everything that is not plain C++.
//
// Under NVRTC these are CUDA's builtins and inline PTX; under the host emulator (FASTCONV_EMULATED) the same names
// come from its own header. No header of the CUDA toolkit is used, so a kernel compiles in some tens of milliseconds.
#pragma once

#ifdef FASTCONV_EMULATED
#include "device.hpp"
#else

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

#define INFINITY_F __int_as_float(0x7f800000)

// The dynamic shared memory of the block, 16-byte aligned.
template <class T>
__device__ inline T* shared_memory() {
    extern __shared__ __align__(16) unsigned char fastconv_shared[];
    return reinterpret_cast<T*>(fastconv_shared);
}

__device__ inline float float_of_half(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline uint16_t half_of_float(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

#endif

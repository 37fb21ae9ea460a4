// Any strides to rows of channels: what lets the tensor-core kernels read operands that lie otherwise.
//
//   pack    to[n, o, c] = from[n, c, o], 0 for the channels past C that fill a row up to `padded`
//
// A block moves 32 pixels by 32 channels through shared memory: read along the pixels and written along the channels,
// or read along the channels where those are contiguous. Elements move as bits.
#include "conv.cuh"

template <class T>
__global__ void __launch_bounds__(256) pack(const __grid_constant__ Packing a) {
    __shared__ T tile[32][33];
    const int across = (a.padded + 31) / 32;
    const int64_t blocks = (a.pixels + 31) / 32 * across;
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32;
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        const int64_t pixel0 = block / across * 32;
        const int channel0 = int(block % across) * 32;
        const bool along_channels = a.strides[1] == 1;
#pragma unroll
        for (int r = 0; r < 32; r += 8) {
            const int p = along_channels ? row + r : lane, c = along_channels ? lane : row + r;
            int64_t rest = pixel0 + p, offset = (channel0 + c) * a.strides[1];
            const bool inside = rest < a.pixels && channel0 + c < a.C;
#pragma unroll
            for (int axis = 2; axis >= 0; --axis) offset += take(rest, a.extent[axis]) * a.strides[axis + 2];
            tile[p][c] = inside ? static_cast<const T*>(a.from)[a.from0 + offset + rest * a.strides[0]] : T(0);
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < 32; r += 8) {
            const int64_t pixel = pixel0 + row + r;
            if (pixel < a.pixels && channel0 + lane < a.padded)
                static_cast<T*>(a.to)[a.to0 + pixel * a.padded + channel0 + lane] = tile[row + r][lane];
        }
        __syncthreads();
    }
}

// What every kernel of the emulator's own tests is given.
#pragma once

#include "platform.cuh"

struct Buffers {
    uint64_t in;
    uint64_t out;
    uint64_t count;
};

template <class T> __device__ inline const T* input(const Buffers* buffers) {
    return reinterpret_cast<const T*>(buffers->in);
}
template <class T> __device__ inline T* output(const Buffers* buffers) { return reinterpret_cast<T*>(buffers->out); }

__device__ inline uint32_t global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline uint32_t all_threads() { return gridDim.x * blockDim.x; }

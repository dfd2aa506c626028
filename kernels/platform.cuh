// What the kernels need of their platform: NVIDIA's compiler (NVRTC or nvcc), or a host C++ compiler under the emulator
// of `emulator/`, which declares the same built-ins. No header of CUDA is included, so that compiling takes NVRTC alone.
#pragma once

#ifdef __CUDACC__
using int32_t = int;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

// Declares a kernel; `TPGM_REGISTER` after it makes it known to the emulator by name. A file may ask for the registers of
// one resident block per multiprocessor where the assembler would rather spill than take them.
#ifdef TPGM_ONE_BLOCK
#define TPGM_KERNEL extern "C" __global__ void __launch_bounds__(TPGM_THREADS, 1)
#else
#define TPGM_KERNEL extern "C" __global__ void __launch_bounds__(TPGM_THREADS)
#endif
#define TPGM_REGISTER(name)
#define TPGM_NOINLINE __noinline__
#else
#include "emulator/emulator.h"
#define TPGM_NOINLINE __attribute__((noinline))
#endif

// Threads of a block. Each holds `PER_THREAD` elements of a piece, so a piece has at most their product. The emulator takes
// fewer: there each thread costs a context switch at every barrier.
#ifndef TPGM_THREADS
#define TPGM_THREADS 256
#endif

constexpr int THREADS = TPGM_THREADS;
constexpr int WARP = 32;
constexpr int WARPS = THREADS / WARP;
static_assert(THREADS % WARP == 0 && (THREADS & (THREADS - 1)) == 0, "whole warps, and a power of two");

// Waits a little in a loop that polls memory.
__device__ inline void pause_polling() {
#ifdef __CUDACC__
    __nanosleep(100);
#else
    emulator_yield();
#endif
}

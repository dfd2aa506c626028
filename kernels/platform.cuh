// What the kernels need of their platform: NVIDIA's compiler (NVRTC or nvcc), or a host C++ compiler under the emulator
// of `emulator/`, which declares the same built-ins. No header of CUDA is included, so that compiling takes NVRTC alone.
#pragma once

#ifdef __CUDACC__
#ifdef __CUDACC_RTC__ // nvcc includes headers of its host compiler that declare them
using int32_t = int;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

// Declares a kernel; `TPGM_REGISTER` after it makes it known to the emulator by name. A file may say how many blocks have to
// fit on a multiprocessor, where the assembler would rather spill registers than do with fewer: of all its kernels, or of
// those that copy (`remember_*` and `write_*`).
#ifdef TPGM_BLOCKS
#define TPGM_KERNEL extern "C" __global__ void __launch_bounds__(TPGM_THREADS, TPGM_BLOCKS)
#else
#define TPGM_KERNEL extern "C" __global__ void __launch_bounds__(TPGM_THREADS)
#endif
#ifdef TPGM_COPY_BLOCKS
#define TPGM_COPY_KERNEL extern "C" __global__ void __launch_bounds__(TPGM_THREADS, TPGM_COPY_BLOCKS)
#else
#define TPGM_COPY_KERNEL TPGM_KERNEL
#endif
#define TPGM_REGISTER(name)
#define TPGM_NOINLINE __noinline__
#else
#include "emulator/emulator.h"
#define TPGM_COPY_KERNEL TPGM_KERNEL
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

// Orders this thread's accesses to global memory, and those of its block that a barrier has ordered before, with those of
// other blocks: before an atomic that says that something is written, and after one that has found it said. A barrier then
// carries it to the block.
__device__ inline void fence() {
#ifdef __CUDACC__
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#else
    __threadfence();
#endif
}

// Waits a little in a loop that polls memory.
__device__ inline void pause_polling() {
#ifdef __CUDACC__
    __nanosleep(100);
#else
    emulator_yield();
#endif
}

// The built-ins of CUDA that the kernels use, for a host C++ compiler. `platform.cuh` includes this in place of them.
//
// What the hardware would leave undefined (a divergent barrier, a shuffle from a lane that takes no part) is an error of
// the launch here. The rest of the emulator is behind the few functions of `emulator_*`: see `block.h`.
#pragma once

#include <math.h> // libstdc++'s and libc++'s wrapper: the overloads for float in the global namespace, as in CUDA

#include <cstdint>
#include <cstring>

#include "half.h"

#ifndef TPGM_THREADS
#define TPGM_THREADS 64
#endif

// ---- Functions and variables

#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ // a hint only; empty, because headers of libstdc++ use the word inside `__attribute__`

// The address sanitizer puts red zones around plain globals only; it runs one block at a time (see `launch.cpp`).
#ifdef TPGM_EMULATOR_ASAN
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define TPGM_KERNEL extern "C" void

// Makes a kernel known by name. It takes a pointer to a table of any type.
#define TPGM_REGISTER(name)                                                                                            \
    [[maybe_unused]] static const bool emulator_registered_##name =                                                    \
        emulator_register(#name, EmulatorKernel<decltype(&name), &name>::call);

bool emulator_register(const char* name, void (*kernel)(const void*));

template <class Pointer, Pointer kernel> struct EmulatorKernel;
template <class Table, void (*kernel)(const Table*)> struct EmulatorKernel<void (*)(const Table*), kernel> {
    static void call(const void* table) { kernel(static_cast<const Table*>(table)); }
};

// ---- Where a thread is

struct EmulatorIndex {
    unsigned x, y, z;
};

struct EmulatorThread {
    EmulatorIndex thread, block, block_size, grid_size;
};

// The thread that runs now. `__thread` rather than `thread_local`: no call to initialize it at every use.
#define EMULATOR_FAST_TLS __thread
extern EMULATOR_FAST_TLS const EmulatorThread* emulator_current;

#define threadIdx (emulator_current->thread)
#define blockIdx (emulator_current->block)
#define blockDim (emulator_current->block_size)
#define gridDim (emulator_current->grid_size)

// ---- Vectors, with CUDA's alignment

#define EMULATOR_VECTOR2(name, T)                                                                                      \
    struct alignas(2 * sizeof(T)) name {                                                                               \
        T x, y;                                                                                                        \
    };                                                                                                                 \
    inline name make_##name(T x, T y) { return {x, y}; }
#define EMULATOR_VECTOR4(name, T)                                                                                      \
    struct alignas(4 * sizeof(T)) name {                                                                               \
        T x, y, z, w;                                                                                                  \
    };                                                                                                                 \
    inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTOR2(float2, float)
EMULATOR_VECTOR4(float4, float)
EMULATOR_VECTOR2(double2, double)
EMULATOR_VECTOR2(uint2, unsigned)
EMULATOR_VECTOR4(uint4, unsigned)
EMULATOR_VECTOR4(ushort4, unsigned short)
#undef EMULATOR_VECTOR2
#undef EMULATOR_VECTOR4

// ---- The same bits as another type

inline unsigned __float_as_uint(float value) { return emulator_bits<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return emulator_bits<float>(value); }
inline long long __double_as_longlong(double value) { return emulator_bits<long long>(value); }
inline double __longlong_as_double(long long value) { return emulator_bits<double>(value); }

// ---- Streaming loads and stores: hints for caches

template <class T> inline T __ldcs(const T* from) { return *from; }
template <class T> inline void __stcs(T* to, T value) { *to = value; }

// ---- Barriers of a block

enum class EmulatorBarrier { Plain, Or, And };
int emulator_barrier(EmulatorBarrier kind, int predicate);

inline void __syncthreads() { emulator_barrier(EmulatorBarrier::Plain, 0); }
inline int __syncthreads_or(int predicate) { return emulator_barrier(EmulatorBarrier::Or, predicate); }
inline int __syncthreads_and(int predicate) { return emulator_barrier(EmulatorBarrier::And, predicate); }

// ---- Operations of a warp

enum class EmulatorWarp { Sync, Shuffle, Ballot };
uint64_t emulator_warp(EmulatorWarp kind, unsigned mask, uint64_t value, unsigned source_lane);

template <class T> inline T emulator_shuffle(unsigned mask, T value, unsigned source_lane) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "CUDA shuffles at most 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = emulator_warp(EmulatorWarp::Shuffle, mask, bits, source_lane);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T> inline T __shfl_sync(unsigned mask, T value, int lane) {
    return emulator_shuffle(mask, value, unsigned(lane) % 32);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return emulator_shuffle(mask, value, (threadIdx.x ^ unsigned(lanes)) % 32);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return unsigned(emulator_warp(EmulatorWarp::Ballot, mask, predicate != 0, 0));
}
inline void __syncwarp(unsigned mask = ~0u) { emulator_warp(EmulatorWarp::Sync, mask, 0, 0); }

// ---- Atomics and order between blocks

// CUDA's atomics order nothing by themselves; `__threadfence()` does. So they are relaxed, and the thread sanitizer is told
// by hand (`sanitizers.h`) what fences publish: it would believe an order of x86 that GPUs do not have. It does not see the
// atomics themselves, since it cannot tell an atomic that another thread has observed, whose order is certain, from what its
// thread did before it without a fence. So it says nothing of counters that are put back by plain stores.
#ifdef TPGM_EMULATOR_TSAN
#define EMULATOR_UNSEEN __attribute__((no_sanitize_thread, noinline))
void emulator_before_atomic(void* at);
void emulator_after_atomic(void* at);
#else
#define EMULATOR_UNSEEN
inline void emulator_before_atomic(void*) {}
inline void emulator_after_atomic(void*) {}
#endif
void __threadfence();

template <class T, class Next> EMULATOR_UNSEEN inline T emulator_atomic(T* at, Next next) {
    emulator_before_atomic(at);
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(at, &old, next(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    emulator_after_atomic(at);
    return old;
}

// `unsigned long` is `uint64_t` on most hosts, while CUDA has one 64-bit type, `unsigned long long`.
#define EMULATOR_ATOMICS(T)                                                                                            \
    inline T atomicAdd(T* at, T value) {                                                                               \
        return emulator_atomic(at, [value](T old) { return old + value; });                                            \
    }                                                                                                                  \
    inline T atomicExch(T* at, T value) {                                                                              \
        return emulator_atomic(at, [value](T) { return value; });                                                      \
    }                                                                                                                  \
    inline T atomicMin(T* at, T value) {                                                                               \
        return emulator_atomic(at, [value](T old) { return old < value ? old : value; });                              \
    }                                                                                                                  \
    inline T atomicMax(T* at, T value) {                                                                               \
        return emulator_atomic(at, [value](T old) { return old > value ? old : value; });                              \
    }
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long)
EMULATOR_ATOMICS(unsigned long long)
#undef EMULATOR_ATOMICS
#undef EMULATOR_UNSEEN

// ---- Polling

// Lets the other threads of the block run, and other blocks. A launch that still polls after `TPGM_EMULATOR_TIMEOUT` seconds
// (default 60) is an error.
void emulator_yield();

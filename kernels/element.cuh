// Element types: conversion, and loads and stores of four elements at a time.
#pragma once

#include "tables.cuh"

// Element types in memory, as bits where the arithmetic is in f32.
struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };

__device__ inline float half_to_float(uint16_t bits) {
#ifdef __CUDACC__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    return emulator_half_to_float(bits);
#endif
}

__device__ inline uint16_t float_to_half(float x) {
#ifdef __CUDACC__
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    return emulator_float_to_half(x);
#endif
}

// To nearest, ties to even. Not by the instruction that hardware has from 8.0 on: that one makes every NaN the same, while on
// the CPU a NaN keeps its upper bits.
__device__ inline uint16_t float_to_bfloat(float x) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Half x) { return half_to_float(x.bits); }
__device__ inline float widen(Bfloat x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

template <class S, class C> __device__ inline S narrow(C x) { return static_cast<S>(x); }
template <> __device__ inline Half narrow<Half, float>(float x) { return Half{float_to_half(x)}; }
template <> __device__ inline Bfloat narrow<Bfloat, float>(float x) { return Bfloat{float_to_bfloat(x)}; }
template <> __device__ inline Half narrow<Half, double>(double x) { return narrow<Half>(static_cast<float>(x)); }
template <> __device__ inline Bfloat narrow<Bfloat, double>(double x) { return narrow<Bfloat>(static_cast<float>(x)); }

// Four elements as they are in memory.
template <class S> struct Quad { S x[4]; };

// Aligned access to a quad: 16 bytes of f32, twice 16 of f64, 8 of the halves. `ONCE` asks the caches not to keep what
// nobody reads again in this launch.
template <bool ONCE> __device__ inline Quad<float> read_quad(const float* p) {
    const float4* q = reinterpret_cast<const float4*>(p);
    float4 v = ONCE ? __ldcs(q) : *q;
    return {{v.x, v.y, v.z, v.w}};
}

template <bool ONCE> __device__ inline Quad<double> read_quad(const double* p) {
    const double2* q = reinterpret_cast<const double2*>(p);
    double2 v = ONCE ? __ldcs(q) : *q, w = ONCE ? __ldcs(q + 1) : q[1];
    return {{v.x, v.y, w.x, w.y}};
}

__device__ inline uint16_t low(uint32_t x) { return static_cast<uint16_t>(x); }
__device__ inline uint16_t high(uint32_t x) { return static_cast<uint16_t>(x >> 16); }

template <bool ONCE, class S> __device__ inline Quad<S> read_quad(const S* p) {
    const uint2* q = reinterpret_cast<const uint2*>(p);
    uint2 v = ONCE ? __ldcs(q) : *q;
    return {{{low(v.x)}, {high(v.x)}, {low(v.y)}, {high(v.y)}}};
}

template <bool ONCE> __device__ inline void write_quad(float* p, Quad<float> v) {
    float4 q{v.x[0], v.x[1], v.x[2], v.x[3]};
    if (ONCE) __stcs(reinterpret_cast<float4*>(p), q);
    else *reinterpret_cast<float4*>(p) = q;
}

template <bool ONCE> __device__ inline void write_quad(double* p, Quad<double> v) {
    double2 q{v.x[0], v.x[1]}, r{v.x[2], v.x[3]};
    double2* to = reinterpret_cast<double2*>(p);
    if (ONCE) {
        __stcs(to, q);
        __stcs(to + 1, r);
    } else {
        to[0] = q;
        to[1] = r;
    }
}

template <bool ONCE, class S> __device__ inline void write_quad(S* p, Quad<S> v) {
    uint2 q{v.x[0].bits | static_cast<uint32_t>(v.x[1].bits) << 16, v.x[2].bits | static_cast<uint32_t>(v.x[3].bits) << 16};
    if (ONCE) __stcs(reinterpret_cast<uint2*>(p), q);
    else *reinterpret_cast<uint2*>(p) = q;
}

// What a type is computed in.
template <class S> struct ComputeOf { using Type = float; };
template <> struct ComputeOf<double> { using Type = double; };

// True if quads may be read at `p`.
template <class S> __device__ inline bool aligned(const S* p) {
    constexpr uint64_t BYTES = sizeof(S) * 4 > 16 ? 16 : sizeof(S) * 4;
    return reinterpret_cast<uint64_t>(p) % BYTES == 0;
}

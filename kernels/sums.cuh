// Sums: over the elements that a thread holds, then over the threads of a group, in a fixed order.
//
// They are in f64. Where the hardware has few units for it (`TPGM_COMPENSATED`, which `cargo xtask ptx` sets by compute
// capability), a thread adds up its elements in pairs of f32 instead, and goes on in f64 with the two: an f64 addition costs
// such a GPU as much as 32 or 64 of f32. f64 tensors are summed in f64 anywhere.
#pragma once

#include "tile.cuh"

// `sum x y` in f64 of what `get(j, i, x, y)` gives. Products of two f32 are exact in it, so that fusing the multiplication
// into the addition changes no bit.
template <class C, class Get> __device__ inline double products_in_f64(Get get) {
    double sum = 0;
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) {
            C x, y;
            get(j, i, x, y);
            sum = fma(static_cast<double>(x), static_cast<double>(y), sum);
        }
    }
    return sum;
}

// `sum |x|` in f64.
template <class C, class Get> __device__ inline double magnitudes_in_f64(Get get) {
    double sum = 0;
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) sum += fabs(static_cast<double>(get(j, i)));
    }
    return sum;
}

#ifdef TPGM_COMPENSATED
// A sum of f32 as two of them: the rounded one, and what rounding has lost.
struct PairSum {
    float high = 0, low = 0;

    // TwoSum (Knuth): `high + x` and its rounding error, which is an f32. `lost` is added to the errors.
    __device__ void add(float x, float lost) {
        float sum = high + x;
        float of_x = sum - high;
        low += ((high - (sum - of_x)) + (x - of_x)) + lost;
        high = sum;
    }

    __device__ double value() const { return static_cast<double>(high) + static_cast<double>(low); }
};

// True if neither the sum nor what led to it can have overflowed.
__device__ inline bool fits(float magnitude) { return magnitude <= 0x1p120f; }

// True if products that sum up to this have lost at most 2^-55 of it to underflow: 2^-150 each, twice.
__device__ inline bool counts(float magnitude) { return magnitude >= 0x1p-90f; }

// True if all `x` or all `y` are zeros.
template <class Get> __device__ inline bool all_zero(Get get) {
    float most_x = 0, most_y = 0;
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) {
            float x, y;
            get(j, i, x, y);
            most_x = fmax(most_x, fabs(x));
            most_y = fmax(most_y, fabs(y));
        }
    }
    return most_x == 0.0f || most_y == 0.0f;
}

// Dot2 of Ogita, Rump and Oishi (Accurate sum and dot product, 2005) but for its last rounding: wrong by at most 2^-40 of
// `sum |x y|`, the square of 16 roundings of f32; random sums by at most 2^-44. What does not fit into f32 is summed in
// f64, so that nothing is finite, infinite or zero here that is not so there.
template <class Get> __device__ inline double compensated_products(Get get) {
    PairSum sum;
    float magnitude = 0;
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) {
            float x, y;
            get(j, i, x, y);
            float product = x * y;
            sum.add(product, fma(x, y, -product));
            magnitude += fabs(product);
        }
    }
    if (counts(magnitude) && fits(magnitude)) return sum.value();
    // Gradients that are zero are common: rows of embeddings, and what is beyond a row's end.
    if (magnitude == 0.0f && all_zero(get)) return 0.0;
    return products_in_f64<float>(get);
}

// Additions do not underflow, so here the sum itself says whether it fits.
template <class Get> __device__ inline double compensated_magnitudes(Get get) {
    PairSum sum;
    #pragma unroll
    for (int j = 0; j < QUADS; j++) {
        #pragma unroll
        for (int i = 0; i < QUAD; i++) sum.add(fabs(get(j, i)), 0.0f);
    }
    if (fits(sum.high)) return sum.value();
    return magnitudes_in_f64<float>(get);
}
#endif

template <class C, class Get> __device__ inline double products(Get get) {
#ifdef TPGM_COMPENSATED
    if constexpr (sizeof(C) == sizeof(float)) return compensated_products(get);
#endif
    return products_in_f64<C>(get);
}

template <class C, class Get> __device__ inline double magnitudes(Get get) {
#ifdef TPGM_COMPENSATED
    if constexpr (sizeof(C) == sizeof(float)) return compensated_magnitudes(get);
#endif
    return magnitudes_in_f64<C>(get);
}

template <class C> __device__ inline double sum_of_products(const Tile<C>& x, const Tile<C>& y) {
    return products<C>([&](int j, int i, C& a, C& b) {
        a = x.x[j][i];
        b = y.x[j][i];
    });
}

// Squares (L2) or magnitudes (MARS) of `w - a`. `IN_F64` where so much memory is moved per element that f64 additions hide
// behind it on any GPU: pairs would take registers for nothing.
template <bool IN_F64, class C>
__device__ inline double sum_of_norm(const Tile<C>& w, const Tile<C>& a, uint32_t norm) {
    auto magnitude = [&](int j, int i) { return w.x[j][i] - a.x[j][i]; };
    auto square = [&](int j, int i, C& x, C& y) { x = y = w.x[j][i] - a.x[j][i]; };
    if constexpr (IN_F64) return norm == L2 ? products_in_f64<C>(square) : magnitudes_in_f64<C>(magnitude);
    else return norm == L2 ? products<C>(square) : magnitudes<C>(magnitude);
}

// Adds up in a fixed order over the threads of a group; every thread gets the sum. The whole block has to call it.
__device__ inline double sum_of_group(double x, uint32_t width) {
    __shared__ double warps[WARPS];
    for (uint32_t offset = (width < WARP ? width : WARP) / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, offset);
    }
    if (width > WARP) {
        __syncthreads();  // the sums of the previous call have been read
        if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = x;
        __syncthreads();
        uint32_t first = threadIdx.x / width * (width / WARP);
        x = warps[first];
        for (uint32_t w = 1; w < width / WARP; w++) x += warps[first + w];
    }
    return x;
}

__device__ inline double sum_of_block(double x) { return sum_of_group(x, THREADS); }

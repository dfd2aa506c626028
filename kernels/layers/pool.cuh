// Maximum over windows of image planes.
#pragma once

#include "layers/layer.cuh"

struct PoolTable {
    uint64_t x, grad, out;  // planes without gaps; grad: backward alone
    uint64_t units;         // elements of out; fewer than 2^32, as those of x
    uint32_t height, width, out_height, out_width;
    uint32_t kernel_height, kernel_width, stride_height, stride_width, pad_height, pad_width;
};
static_assert(sizeof(PoolTable) == 72, "");

// The part of window number `at` that lies inside: from `first` to before `end`.
__device__ inline void span(uint32_t at, uint32_t kernel, uint32_t stride, uint32_t pad, uint32_t size, uint32_t& first, uint32_t& end) {
    const uint32_t start = at * stride;
    first = start > pad ? start - pad : 0;
    end = start + kernel - pad < size ? start + kernel - pad : size;
}

// The largest element of a window, and where it is in its plane: the first of equal ones. A NaN wins.
template <class S>
__device__ inline float largest_of(const PoolTable& table, const S* plane, uint32_t row, uint32_t column, uint32_t& where) {
    uint32_t top, bottom, left, right;
    span(row, table.kernel_height, table.stride_height, table.pad_height, table.height, top, bottom);
    span(column, table.kernel_width, table.stride_width, table.pad_width, table.width, left, right);
    float best = -infinity();
    where = top * table.width + left; // also if all are minus infinity
    for (uint32_t y = top; y < bottom; y++) {
        for (uint32_t x = left; x < right; x++) {
            const uint32_t here = y * table.width + x;
            const float value = widen(plane[here]);
            if (value > best || value != value) {
                best = value;
                where = here;
            }
        }
    }
    return best;
}

// Calls `f(plane, row, column, element)` for this thread's elements of planes of `rows` and `columns`.
template <class F> __device__ inline void each_element(uint64_t units, uint32_t rows, uint32_t columns, F f) {
    for (uint64_t unit = uint64_t(blockIdx.x) * THREADS + threadIdx.x; unit < units; unit += uint64_t(gridDim.x) * THREADS) {
        const uint32_t element = static_cast<uint32_t>(unit), line = element / columns, plane = line / rows;
        f(plane, line - plane * rows, element - line * columns, element);
    }
}

// Bytes: x once, since windows that overlap find it in a cache, and y: 4 per element of each in f32.
template <class S> __device__ inline void pool_forward(const PoolTable& table) {
    const uint32_t area = table.height * table.width;
    each_element(table.units, table.out_height, table.out_width, [&](uint32_t plane, uint32_t row, uint32_t column, uint32_t element) {
        uint32_t where;
        const float best = largest_of(table, at<S>(table.x) + uint64_t(plane) * area, row, column, where);
        at<S>(table.out)[element] = narrow<S>(best);
    });
}

// An element gets the gradients of those windows whose maximum it is: they are looked for anew, so that forward keeps nothing and no
// two threads add to one element. Bytes: x, grad and dx once.
template <class S> __device__ inline void pool_backward(const PoolTable& table) {
    const uint32_t area = table.height * table.width, out_area = table.out_height * table.out_width;
    each_element(table.units, table.height, table.width, [&](uint32_t plane, uint32_t y, uint32_t x, uint32_t element) {
        // The windows that have the element, from the first to the last.
        auto windows = [](uint32_t place, uint32_t kernel, uint32_t stride, uint32_t pad, uint32_t count, uint32_t& first, uint32_t& end) {
            const uint32_t reached = place + pad;
            first = reached < kernel ? 0 : (reached - kernel) / stride + 1;
            end = reached / stride + 1 < count ? reached / stride + 1 : count;
        };
        uint32_t top, bottom, left, right;
        windows(y, table.kernel_height, table.stride_height, table.pad_height, table.out_height, top, bottom);
        windows(x, table.kernel_width, table.stride_width, table.pad_width, table.out_width, left, right);
        float sum = 0;
        for (uint32_t row = top; row < bottom; row++) {
            for (uint32_t column = left; column < right; column++) {
                uint32_t where;
                largest_of(table, at<S>(table.x) + uint64_t(plane) * area, row, column, where);
                if (where != y * table.width + x) continue;
                sum += widen(at<S>(table.grad)[uint64_t(plane) * out_area + row * table.out_width + column]);
            }
        }
        at<S>(table.out)[element] = narrow<S>(sum);
    });
}

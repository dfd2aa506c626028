// Sums over columns, for gradients of weights and biases: the rows of a launch are cut into groups, by their number alone, so
// that the order of additions is that of any number of blocks. A group's sums go to a row of a scratch table, and a second
// launch adds these up.
#pragma once

#include "layers/layer.cuh"

struct ColumnSumsTable {
    uint64_t partial;     // f32: groups x (outputs * width)
    uint64_t output[2];
    uint32_t groups, width, outputs, pad;
};
static_assert(sizeof(ColumnSumsTable) == 40, "");

// A warp takes every `WARPS`-th group of 32 columns, and the block adds its warps up. Reads the scratch table once:
// `4 groups / rows` bytes per element of the layer.
template <class S> __device__ inline void add_columns(const ColumnSumsTable& table) {
    __shared__ float of_warps[WARPS][WARP];
    const uint32_t columns = table.outputs * table.width;
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const float* partial = at<float>(table.partial);
    for (uint32_t first = blockIdx.x * WARP; first < columns; first += gridDim.x * WARP) {
        const uint32_t column = first + lane;
        float sum = 0;
        if (column < columns) {
            #pragma unroll 8
            for (uint32_t group = warp; group < table.groups; group += WARPS) {
                sum += partial[uint64_t(group) * columns + column];
            }
        }
        __syncthreads(); // the sums of the round before have been read
        of_warps[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && column < columns) {
            for (int w = 1; w < WARPS; w++) sum += of_warps[w][lane];
            const uint32_t output = column / table.width;
            at<S>(table.output[output])[column - output * table.width] = narrow<S>(sum);
        }
    }
}

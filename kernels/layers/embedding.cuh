// The gradient of an embedding: sums of the gradients of all places that took a row of the table. Places are sorted by their row
// first, so that no float needs an atomic and sums have a fixed order.
#pragma once

#include "layers/labels.cuh"

struct EmbeddingSortTable {
    uint64_t ids;
    uint64_t starts;        // uint32_t: rows + 1
    uint64_t order;         // uint32_t: as many as ids
    uint32_t count, id_type, rows, rows_per_block;
};
static_assert(sizeof(EmbeddingSortTable) == 40, "");

// How many bits are set.
__device__ inline uint32_t ones(uint32_t x) {
    x -= (x >> 1) & 0x55555555u;
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
    return (((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24;
}

// `order` gets the places of each row of the table, in order, from `starts[row]` on. An id that is no row has no place there.
//
// A block sorts the places of its rows by itself: it reads all ids, counts those of rows before its own, and so knows where its part
// begins. Twice 4 or 8 bytes per id and block, from a cache: with 512 blocks less than the gradients of a place have.
template <class S> __device__ inline void embedding_sort(const EmbeddingSortTable& table) {
    __shared__ uint32_t counts[THREADS], places[THREADS], found[THREADS], of_warps[WARPS];
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    auto row_at = [&](uint32_t i) {
        const int64_t id = label_at(table.ids, table.id_type, i);
        return id >= 0 && id < static_cast<int64_t>(table.rows) ? static_cast<uint32_t>(id) : 0xffffffffu;
    };
    for (uint32_t first = blockIdx.x * table.rows_per_block; first < table.rows;
         first += gridDim.x * table.rows_per_block) {
        const uint32_t end = table.rows - first < table.rows_per_block ? table.rows : first + table.rows_per_block;
        counts[threadIdx.x] = 0;
        __syncthreads();
        uint32_t before = 0;
        for (uint32_t i = threadIdx.x; i < table.count; i += THREADS) {
            const uint32_t row = row_at(i);
            if (row < first) before++;
            else if (row < end) atomicAdd(&counts[row - first], 1u);
        }
        #pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) before += __shfl_xor_sync(ALL_LANES, before, offset);
        if (lane == 0) of_warps[warp] = before;
        __syncthreads();
        // A thread has a row: where its next place goes.
        uint32_t next = 0;
        for (int w = 0; w < WARPS; w++) next += of_warps[w];
        for (uint32_t row = 0; row < threadIdx.x; row++) next += counts[row];
        const uint32_t own = first + threadIdx.x;
        if (own < end) {
            at<uint32_t>(table.starts)[own] = next;
            if (own + 1 == table.rows) at<uint32_t>(table.starts)[table.rows] = next + counts[threadIdx.x];
        }
        __syncthreads(); // sums of warps have been read

        for (uint32_t tile = 0; tile < table.count; tile += THREADS) {
            const uint32_t i = tile + threadIdx.x;
            const uint32_t row = i < table.count ? row_at(i) : 0xffffffffu;
            const bool here = row >= first && row < end;
            const uint32_t lanes = __ballot_sync(ALL_LANES, here);
            if (lane == 0) of_warps[warp] = ones(lanes);
            if (!__syncthreads_or(here)) continue;
            uint32_t at_place = ones(lanes & ((1u << lane) - 1)), all = 0;
            for (uint32_t w = 0; w < WARPS; w++) {
                if (w < warp) at_place += of_warps[w];
                all += of_warps[w];
            }
            if (here) {
                places[at_place] = i;
                found[at_place] = row - first;
            }
            __syncthreads();
            for (uint32_t k = 0; k < all; k++) {
                if (found[k] == threadIdx.x) at<uint32_t>(table.order)[next++] = places[k];
            }
            __syncthreads(); // the tile has been read
        }
    }
}

struct EmbeddingGradientTable {
    Rows grad, out;
    uint64_t starts, order;
    uint32_t rows, width, vector, pad;
};
static_assert(sizeof(EmbeddingGradientTable) == 64, "");

// Places that a warp adds up alone; with more a block shares them out.
constexpr uint32_t FEW_PLACES = 64;
// Places whose gradients are read before the first is added.
constexpr int PLACES_AHEAD = 4;

// `out[row]` is the sum of `grad[place]` over the places of a row, 0 without. Bytes: a gradient of each place and the gradient of
// the table once, of each element 4 in f32.
struct EmbeddingBackward {
    template <class S, bool VECTOR> __device__ static void run(const EmbeddingGradientTable& table) {
        __shared__ Quad<float> of_warps[WARPS][WARP];
        const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        const uint32_t* starts = at<uint32_t>(table.starts);
        const uint32_t* order = at<uint32_t>(table.order);
        // A unit is a row for each warp, and a tile of columns.
        const uint32_t tiles = (table.width + FOUR * WARP - 1) / (FOUR * WARP);
        const uint64_t units = uint64_t((table.rows + WARPS - 1) / WARPS) * tiles;
        for (uint64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
            const uint32_t first = static_cast<uint32_t>(unit / tiles) * WARPS;
            const uint32_t column = FOUR * (static_cast<uint32_t>(unit % tiles) * WARP + lane);
            const bool inside = column < table.width;
            auto add = [&](uint32_t begin, uint32_t end, uint32_t step) {
                Quad<float> sum = {{0, 0, 0, 0}};
                for (uint32_t k = begin; inside && k < end; k += PLACES_AHEAD * step) {
                    Quad<S> grad[PLACES_AHEAD];
                    #pragma unroll
                    for (int j = 0; j < PLACES_AHEAD; j++) {
                        if (k + j * step >= end) break;
                        grad[j] = stored_four(row_of<S>(table.grad, order[k + j * step]), column, table.width, VECTOR);
                    }
                    #pragma unroll
                    for (int j = 0; j < PLACES_AHEAD; j++) {
                        if (k + j * step >= end) break;
                        const Quad<float> x = widen_four(grad[j]);
                        for (int i = 0; i < FOUR; i++) sum.x[i] += x.x[i];
                    }
                }
                return sum;
            };
            auto write = [&](uint32_t row, const Quad<float>& sum) {
                if (inside) write_four(row_of<S>(table.out, row), column, table.width, VECTOR, sum);
            };
            const uint32_t own = first + warp;
            if (own < table.rows && starts[own + 1] - starts[own] <= FEW_PLACES) {
                write(own, add(starts[own], starts[own + 1], 1));
            }
            for (uint32_t row = first; row < first + WARPS && row < table.rows; row++) {
                const uint32_t begin = starts[row], end = starts[row + 1];
                if (end - begin <= FEW_PLACES) continue;
                Quad<float> sum = add(begin + warp, end, WARPS);
                of_warps[warp][lane] = sum;
                __syncthreads();
                if (warp == 0) {
                    for (int w = 1; w < WARPS; w++) {
                        for (int i = 0; i < FOUR; i++) sum.x[i] += of_warps[w][lane].x[i];
                    }
                    write(row, sum);
                }
                __syncthreads(); // the sums have been read
            }
        }
    }
};

template <class S> __device__ inline void embedding_backward(const EmbeddingGradientTable& table) {
    if (table.vector) EmbeddingBackward::run<S, true>(table);
    else EmbeddingBackward::run<S, false>(table);
}

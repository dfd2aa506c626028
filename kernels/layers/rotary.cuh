// Rotary position embedding.
#pragma once

#include "layers/layer.cuh"

// Rows are (batch, head, step), of two elements for each pair. `x` has elements from one batch, head or step to the next; `y` has no
// gaps. `cos` and `sin` have a row of `pairs` for each step, and `angles_batch` elements from those of a batch to the next.
struct RotaryTable {
    uint64_t x, x_batch, x_head, x_step;
    uint64_t y;
    uint64_t cos, sin, angles_batch;
    uint64_t units;         // four pairs of a row each; fewer than 2^32
    uint32_t heads, steps, pairs, quads;
    uint32_t vector, interleaved;
    float direction;        // 1, or -1 to turn back
    uint32_t pad;
};
static_assert(sizeof(RotaryTable) == 104, "");

// `(a cos - b sin, a sin + b cos)` of each pair (a, b): elements i and i + pairs of a row, or 2i and 2i + 1. Bytes per element: x and
// y, 8 in f32; angles are the same for all heads, so they come from a cache.
struct Rotate {
    template <class S, bool INTERLEAVED, bool VECTOR> __device__ static void run(const RotaryTable& table) {
        const uint32_t pairs = table.pairs, width = 2 * pairs;
        for (uint64_t unit = uint64_t(blockIdx.x) * THREADS + threadIdx.x; unit < table.units;
             unit += uint64_t(gridDim.x) * THREADS) {
            const uint32_t row = static_cast<uint32_t>(unit) / table.quads;
            const uint32_t pair = FOUR * (static_cast<uint32_t>(unit) - row * table.quads);
            const uint32_t outer = row / table.steps, step = row - outer * table.steps;
            const uint32_t batch = outer / table.heads, head = outer - batch * table.heads;
            const S* x = at<S>(table.x) + batch * table.x_batch + head * table.x_head + step * table.x_step;
            const uint64_t angles = batch * table.angles_batch + uint64_t(step) * pairs;
            const Quad<float> cos = read_four(at<S>(table.cos) + angles, pair, pairs, VECTOR);
            const Quad<float> sin = read_four(at<S>(table.sin) + angles, pair, pairs, VECTOR);
            S* y = at<S>(table.y) + uint64_t(row) * width;
            // What is read and written at once: four of the first elements and four of the second, or four pairs.
            const uint32_t column = INTERLEAVED ? 2 * pair : pair, end = INTERLEAVED ? width : pairs;
            const uint32_t next = INTERLEAVED ? FOUR : pairs;
            Quad<float> low = read_four(x, column, end, VECTOR), high;
            if (INTERLEAVED) high = read_four(x, column + next, end, VECTOR);
            else high = read_four(x + next, column, end, VECTOR);
            Quad<float> y_low, y_high;
            #pragma unroll
            for (int i = 0; i < FOUR; i++) {
                const float s = table.direction * sin.x[i];
                if (INTERLEAVED) {
                    const Quad<float>& from = i < 2 ? low : high;
                    Quad<float>& to = i < 2 ? y_low : y_high;
                    const int j = 2 * (i % 2);
                    to.x[j] = from.x[j] * cos.x[i] - from.x[j + 1] * s;
                    to.x[j + 1] = from.x[j] * s + from.x[j + 1] * cos.x[i];
                } else {
                    y_low.x[i] = low.x[i] * cos.x[i] - high.x[i] * s;
                    y_high.x[i] = low.x[i] * s + high.x[i] * cos.x[i];
                }
            }
            write_four(y, column, end, VECTOR, y_low);
            if (INTERLEAVED) write_four(y, column + next, end, VECTOR, y_high);
            else write_four(y + next, column, end, VECTOR, y_high);
        }
    }
};

template <class S> __device__ inline void rotary(const RotaryTable& table) {
    if (table.interleaved) {
        if (table.vector) Rotate::run<S, true, true>(table);
        else Rotate::run<S, true, false>(table);
    } else {
        if (table.vector) Rotate::run<S, false, true>(table);
        else Rotate::run<S, false, false>(table);
    }
}

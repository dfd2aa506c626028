// Layer norm and RMS norm, with a residual addition in front if one is wanted.
#pragma once

#include "layers/layer.cuh"

struct NormTable {
    Rows x, residual, sum, y;
    uint64_t weight, bias;
    uint64_t rows;
    uint32_t width, vector, remove_mean;
    float eps;
};
static_assert(sizeof(NormTable) == 104, "");

// Mean (0 without `remove_mean`) and one over the root of the variance of the row that `value(j, column)` reads. Two passes,
// because a variance from sums of squares cancels.
template <class Share, class Value>
__device__ inline void statistics(uint32_t width, uint32_t remove_mean, float eps, Value value, float& mean, float& scale) {
    mean = 0;
    if (remove_mean) {
        float sum[1] = {0};
        Share::each(width, [&](int j, uint32_t column) {
            Quad<float> x = value(j, column);
            for (int i = 0; i < FOUR; i++) sum[0] += x.x[i];
        });
        Share::sum(sum);
        mean = sum[0] / static_cast<float>(width);
    }
    float square[1] = {0};
    Share::each(width, [&](int j, uint32_t column) {
        Quad<float> x = value(j, column);
        for (int i = 0; i < FOUR; i++) {
            float d = column + i < width ? x.x[i] - mean : 0.0f;
            square[0] = fma(d, d, square[0]);
        }
    });
    Share::sum(square);
    scale = 1.0f / sqrt(square[0] / static_cast<float>(width) + eps);
}

// `y = (s - mean) / sqrt(variance + eps) * weight + bias` with `s = x + residual`, which goes to `sum`, rounded, and is
// normalized as it is there. Bytes per element: x and y, with a residual also residual and sum: 8 and 16 in f32.
struct Normalize {
    template <class S, class Share> __device__ static void run(const NormTable& table) {
        const S* weight = at<S>(table.weight);
        const S* bias = at<S>(table.bias);
        const uint32_t width = table.width;
        constexpr bool vector = Share::VECTOR;
        each_row<Share>(table.rows, [&](uint64_t row) {
            const S* from = row_of<S>(table.residual.address ? table.sum : table.x, row);
            Quad<S> held[Share::SLOTS];
            if (table.residual.address) {
                const S* x = row_of<S>(table.x, row);
                const S* residual = row_of<S>(table.residual, row);
                S* sum = row_of<S>(table.sum, row);
                Share::each(width, [&](int j, uint32_t column) {
                    Quad<float> a = read_four(x, column, width, vector), b = read_four(residual, column, width, vector);
                    for (int i = 0; i < FOUR; i++) held[j].x[i] = narrow<S>(a.x[i] + b.x[i]);
                    write_stored(sum, column, width, vector, held[j]);
                });
            } else if (Share::QUADS > 0) {
                Share::each(width, [&](int j, uint32_t column) { held[j] = stored_four(from, column, width, vector); });
            }
            auto value = [&](int j, uint32_t column) {
                return Share::QUADS > 0 ? widen_four(held[j]) : read_four(from, column, width, vector);
            };
            float mean, scale;
            statistics<Share>(width, table.remove_mean, table.eps, value, mean, scale);
            S* y = row_of<S>(table.y, row);
            Share::each(width, [&](int j, uint32_t column) {
                Quad<float> x = value(j, column), w = read_four(weight, column, width, vector), b = {{0, 0, 0, 0}};
                if (bias) b = read_four(bias, column, width, vector);
                for (int i = 0; i < FOUR; i++) x.x[i] = (x.x[i] - mean) * scale * w.x[i] + b.x[i];
                write_four(y, column, width, vector, x);
            });
        });
    }
};

template <class S> __device__ inline void norm_forward(const NormTable& table) {
    by_width<Normalize, S, 8>(table.width, table);
}

struct NormGradientTable {
    Rows x, grad, carried, dx;
    uint64_t weight;
    uint64_t partial;      // f32: groups x (weight, bias if wanted)
    uint64_t rows, rows_per_group;
    uint32_t width, vector, remove_mean, outputs, groups;
    float eps;
};
static_assert(sizeof(NormGradientTable) == 120, "");

// Gradients, with `n = (x - mean) scale` and `h = grad weight`: `dx = scale (h - mean(h) - n mean(h n)) + carried`, where
// `carried` is what comes to x from elsewhere, as over a residual; RMS norm has no `mean(h)`. Statistics are taken from x
// again, so that forward keeps nothing.
//
// `partial` gets the sums over a group's rows of `grad n` and `grad`: after every few rows by those threads that own the
// columns, which read the rows again from a cache.
//
// Bytes per element: x, grad, dx (and carried): 12 (16) in f32.
struct NormBackward {
    // Of one row. Gives back its statistics.
    template <class S, class Share>
    __device__ static void row(const NormGradientTable& table, uint64_t row, float& mean, float& scale) {
        const uint32_t width = table.width;
        constexpr bool vector = Share::VECTOR;
        const S* x = row_of<S>(table.x, row);
        const S* grad = row_of<S>(table.grad, row);
        const S* weight = at<S>(table.weight);
        Quad<S> held[Share::SLOTS];
        Quad<float> held_h[Share::SLOTS];
        auto weighted = [&](uint32_t column) {
            Quad<float> h = read_four(grad, column, width, vector), w = read_four(weight, column, width, vector);
            for (int i = 0; i < FOUR; i++) h.x[i] *= w.x[i];
            return h;
        };
        if (Share::QUADS > 0) {
            Share::each(width, [&](int j, uint32_t column) {
                held[j] = stored_four(x, column, width, vector);
                held_h[j] = weighted(column);
            });
        }
        auto value = [&](int j, uint32_t column) {
            return Share::QUADS > 0 ? widen_four(held[j]) : read_four(x, column, width, vector);
        };
        statistics<Share>(width, table.remove_mean, table.eps, value, mean, scale);
        if (!table.dx.address) return;
        auto slope = [&](int j, uint32_t column) { return Share::QUADS > 0 ? held_h[j] : weighted(column); };
        float sums[2] = {0, 0};
        Share::each(width, [&](int j, uint32_t column) {
            Quad<float> v = value(j, column), h = slope(j, column);
            for (int i = 0; i < FOUR; i++) { // h is 0 behind the end
                sums[0] += h.x[i];
                sums[1] = fma(h.x[i], (v.x[i] - mean) * scale, sums[1]);
            }
        });
        Share::sum(sums);
        const float mean_h = table.remove_mean ? sums[0] / static_cast<float>(width) : 0.0f;
        const float mean_hn = sums[1] / static_cast<float>(width);
        const S* carried = row_of<S>(table.carried, row);
        S* dx = row_of<S>(table.dx, row);
        Share::each(width, [&](int j, uint32_t column) {
            Quad<float> v = value(j, column), h = slope(j, column), c = {{0, 0, 0, 0}};
            if (table.carried.address) c = read_four(carried, column, width, vector);
            for (int i = 0; i < FOUR; i++) {
                float n = (v.x[i] - mean) * scale;
                v.x[i] = scale * (h.x[i] - mean_h - n * mean_hn) + c.x[i];
            }
            write_four(dx, column, width, vector, v);
        });
    }

    // Adds some rows, the statistics of which are in shared memory, to a group's sums.
    template <class S, class Share>
    __device__ static void columns(const NormGradientTable& table, float* sums, uint64_t first, uint32_t rows, bool fresh,
                                   const float* means, const float* scales) {
        const uint32_t width = table.width;
        constexpr bool vector = Share::VECTOR;
        for (uint32_t column = FOUR * threadIdx.x; column < width; column += FOUR * THREADS) {
            float of_weight[FOUR] = {0, 0, 0, 0}, of_bias[FOUR] = {0, 0, 0, 0};
            for (uint32_t r = 0; r < rows; r++) {
                Quad<float> x = read_four(row_of<S>(table.x, first + r), column, width, vector);
                Quad<float> g = read_four(row_of<S>(table.grad, first + r), column, width, vector);
                for (int i = 0; i < FOUR; i++) {
                    of_weight[i] = fma(g.x[i], (x.x[i] - means[r]) * scales[r], of_weight[i]);
                    of_bias[i] += g.x[i];
                }
            }
            for (int i = 0; i < FOUR && column + i < width; i++) {
                float* weight = sums + column + i;
                *weight = fresh ? of_weight[i] : *weight + of_weight[i];
                if (table.outputs == 2) {
                    float* bias = weight + width;
                    *bias = fresh ? of_bias[i] : *bias + of_bias[i];
                }
            }
        }
    }

    template <class S, class Share> __device__ static void run(const NormGradientTable& table) {
        // Rows between two visits of the columns: few enough to be in a cache still.
        constexpr uint32_t ROUND = Share::BLOCK ? 4 : WARPS;
        __shared__ float means[ROUND], scales[ROUND];
        for (uint64_t group = blockIdx.x; group < table.groups; group += gridDim.x) {
            const uint64_t start = group * table.rows_per_group;
            const uint64_t end = start + table.rows_per_group < table.rows ? start + table.rows_per_group : table.rows;
            float* sums = at<float>(table.partial) + group * table.outputs * table.width;
            for (uint64_t first = start; first < end; first += ROUND) {
                const uint32_t rows = first + ROUND < end ? ROUND : static_cast<uint32_t>(end - first);
                for (uint32_t r = Share::row(); r < rows; r += Share::ROWS) {
                    float mean, scale;
                    row<S, Share>(table, first + r, mean, scale);
                    if (threadIdx.x % (Share::BLOCK ? THREADS : WARP) == 0) {
                        means[r] = mean;
                        scales[r] = scale;
                    }
                }
                if (table.outputs == 0) continue;
                __syncthreads();
                columns<S, Share>(table, sums, first, rows, first == start, means, scales);
                __syncthreads(); // the statistics have been read
            }
        }
    }
};

template <class S> __device__ inline void norm_backward(const NormGradientTable& table) {
    // Two rows are held: with more of each there is no room for two blocks on a multiprocessor.
    by_width<NormBackward, S, sizeof(S) == sizeof(float) ? 3 : 4>(table.width, table);
}

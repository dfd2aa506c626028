// Softmax and its logarithm over rows of attention scores or logits, with scale and masks inside.
#pragma once

#include "layers/layer.cuh"

// Rows are (batch, head, query), a row's columns are keys. `mask` is added to the scaled scores: strides are elements from one
// batch, head or query to the next, 0 where the mask is the same. A causal row sees the keys up to `query + past`.
struct SoftmaxTable {
    Rows x, y;
    uint64_t mask, mask_batch, mask_head, mask_query;
    uint64_t rows;
    uint32_t heads, queries;
    uint32_t width, vector, causal, logarithm;
    int32_t past;
    float scale;
};
static_assert(sizeof(SoftmaxTable) == 104, "");

// `y = softmax(s)`, or its logarithm, of `s = scale x + mask`. Bytes per element: x and y, 8 in f32, and the mask, which is most
// often in a cache. Without a key that is not masked a row is NaN.
struct Softmax {
    template <class S, class Share> __device__ static void run(const SoftmaxTable& table) {
        const uint32_t width = table.width;
        constexpr bool vector = Share::VECTOR;
        each_row<Share>(table.rows, [&](uint64_t row) {
            const S* x = row_of<S>(table.x, row);
            const uint64_t query = row % table.queries, outer = row / table.queries;
            const S* mask = nullptr;
            if (table.mask) {
                mask = at<S>(table.mask) + outer / table.heads * table.mask_batch + outer % table.heads * table.mask_head +
                       query * table.mask_query;
            }
            // The first key that the row does not see.
            int64_t end = width;
            if (table.causal && static_cast<int64_t>(query) + table.past + 1 < end) {
                end = static_cast<int64_t>(query) + table.past + 1;
            }
            auto scores = [&](uint32_t column) {
                Quad<float> s = read_four(x, column, width, vector);
                for (int i = 0; i < FOUR; i++) s.x[i] *= table.scale;
                if (mask) {
                    Quad<float> m = read_four(mask, column, width, vector);
                    for (int i = 0; i < FOUR; i++) s.x[i] += m.x[i];
                }
                for (int i = 0; i < FOUR; i++) {
                    if (column + i >= end) s.x[i] = -infinity();
                }
                return s;
            };
            Quad<float> held[Share::SLOTS];
            if (Share::QUADS > 0) Share::each(width, [&](int j, uint32_t column) { held[j] = scores(column); });
            auto value = [&](int j, uint32_t column) { return Share::QUADS > 0 ? held[j] : scores(column); };

            float most = -infinity();
            Share::each(width, [&](int j, uint32_t column) {
                Quad<float> s = value(j, column);
                for (int i = 0; i < FOUR; i++) most = larger(most, s.x[i]);
            });
            most = Share::largest(most);
            float total[1] = {0};
            Share::each(width, [&](int j, uint32_t column) {
                Quad<float> s = value(j, column);
                for (int i = 0; i < FOUR; i++) {
                    // Behind the row's end there is -inf, also where all of the row is.
                    float e = column + i < width ? exp(s.x[i] - most) : 0.0f;
                    total[0] += e;
                    s.x[i] = e;
                }
                if (Share::QUADS > 0 && !table.logarithm) held[j] = s;
            });
            Share::sum(total);
            const float log_total = table.logarithm ? log(total[0]) : 0.0f, factor = 1.0f / total[0];
            S* y = row_of<S>(table.y, row);
            Share::each(width, [&](int j, uint32_t column) {
                Quad<float> s = value(j, column);
                for (int i = 0; i < FOUR; i++) {
                    if (table.logarithm) s.x[i] = s.x[i] - most - log_total;
                    else s.x[i] = (Share::QUADS > 0 ? s.x[i] : exp(s.x[i] - most)) * factor;
                }
                write_four(y, column, width, vector, s);
            });
        });
    }
};

template <class S> __device__ inline void softmax_forward(const SoftmaxTable& table) {
    by_width<Softmax, S, 8>(table.width, table);
}

struct SoftmaxGradientTable {
    Rows y, grad, dx;
    uint64_t rows;
    uint32_t width, vector, logarithm;
    float scale;
};
static_assert(sizeof(SoftmaxGradientTable) == 72, "");

// From the output: `dx = scale y (grad - sum(y grad))`, or with `y` a logarithm `scale (grad - e^y sum(grad))`, and 0 for what a
// mask has made -inf. Bytes per element: y, grad, dx: 12 in f32. The gradient of an additive mask is `dx / scale`.
struct SoftmaxBackward {
    template <class S, class Share> __device__ static void run(const SoftmaxGradientTable& table) {
        const uint32_t width = table.width;
        constexpr bool vector = Share::VECTOR;
        each_row<Share>(table.rows, [&](uint64_t row) {
            const S* y = row_of<S>(table.y, row);
            const S* grad = row_of<S>(table.grad, row);
            Quad<S> held[Share::SLOTS], held_grad[Share::SLOTS];
            if (Share::QUADS > 0) {
                Share::each(width, [&](int j, uint32_t column) {
                    held[j] = stored_four(y, column, width, vector);
                    held_grad[j] = stored_four(grad, column, width, vector);
                });
            }
            auto value = [&](int j, uint32_t column) {
                return widen_four(Share::QUADS > 0 ? held[j] : stored_four(y, column, width, vector));
            };
            auto slope = [&](int j, uint32_t column) {
                return widen_four(Share::QUADS > 0 ? held_grad[j] : stored_four(grad, column, width, vector));
            };
            float sum[1] = {0};
            Share::each(width, [&](int j, uint32_t column) {
                Quad<float> v = value(j, column), g = slope(j, column);
                for (int i = 0; i < FOUR; i++) { // both are 0 behind the end
                    if (!table.logarithm) sum[0] = fma(v.x[i], g.x[i], sum[0]);
                    else if (v.x[i] != -infinity()) sum[0] += g.x[i];
                }
            });
            Share::sum(sum);
            S* dx = row_of<S>(table.dx, row);
            Share::each(width, [&](int j, uint32_t column) {
                Quad<float> v = value(j, column), g = slope(j, column);
                for (int i = 0; i < FOUR; i++) {
                    if (!table.logarithm) v.x[i] = table.scale * v.x[i] * (g.x[i] - sum[0]);
                    else v.x[i] = v.x[i] == -infinity() ? 0.0f : table.scale * (g.x[i] - exp(v.x[i]) * sum[0]);
                }
                write_four(dx, column, width, vector, v);
            });
        });
    }
};

template <class S> __device__ inline void softmax_backward(const SoftmaxGradientTable& table) {
    by_width<SoftmaxBackward, S, 6>(table.width, table);
}

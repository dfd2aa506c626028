// Cross-entropy of labels or of soft targets: softmax and its loss in one, without probabilities in memory.
#pragma once

#include "layers/labels.cuh"

// What a row needs in the backward pass.
struct RowLoss {
    float log_total;  // ln(sum(e^x))
    float mass;       // the sum of its target; 0 if it is ignored
};

struct CrossEntropyTable {
    Rows logits, targets;      // targets: where labels are none
    uint64_t labels;
    uint64_t losses;           // f32 per row
    uint64_t rows_losses;      // `RowLoss` per row
    uint64_t summary;          // f32: sum of the losses, rows that count, mean
    uint64_t grad;             // backward: f32 gradient of the mean
    Rows d_logits;
    int64_t ignored;
    uint64_t rows;
    uint32_t width, vector, label_type, has_ignored;
    float smoothing;
    uint32_t pad;
};
static_assert(sizeof(CrossEntropyTable) == 128, "");

// The label of a row; -1 if it is not a class, -2 if the row is ignored.
__device__ inline int64_t label_of(const CrossEntropyTable& table, uint64_t row) {
    const int64_t label = label_at(table.labels, table.label_type, row);
    if (table.has_ignored && label == table.ignored) return -2;
    return label >= 0 && label < static_cast<int64_t>(table.width) ? label : -1;
}

// The largest of some numbers, and the sum of `e^(x - largest)`.
struct Total {
    float most, sum;

    __device__ void join(float other_most, float other_sum) {
        const float joined = larger(most, other_most);
        // Where both are -inf the sums are 0, or NaN; a difference of infinities would be NaN.
        if (joined == -infinity()) sum += other_sum;
        else sum = sum * exp(most - joined) + other_sum * exp(other_most - joined);
        most = joined;
    }
};

// Per row: `loss = mass ln(sum(e^x)) - sum(target x)` with `target = (1 - smoothing) t + smoothing / classes`. One pass over
// the logits, and over soft targets: 4 bytes per element of each in f32. A label that is not a class makes its row's loss NaN.
struct CrossEntropy {
    template <class S, class Share> __device__ static void run(const CrossEntropyTable& table) {
        const uint32_t width = table.width;
        constexpr bool vector = Share::VECTOR;
        const bool soft = table.label_type == NO_LABELS;
        each_row<Share>(table.rows, [&](uint64_t row) {
            const S* x = row_of<S>(table.logits, row);
            const S* targets = row_of<S>(table.targets, row);
            Total total = {-infinity(), 0};
            float sums[3] = {0, 0, 0};  // of x, of targets, of their products
            Share::each(width, [&](int, uint32_t column) {
                Quad<float> v = read_four(x, column, width, vector);
                Quad<float> t = {{0, 0, 0, 0}};
                if (soft) t = read_four(targets, column, width, vector);
                float most = -infinity();
                for (int i = 0; i < FOUR; i++) {
                    if (column + i >= width) continue;
                    most = larger(most, v.x[i]);
                    sums[0] += v.x[i];
                    sums[1] += t.x[i];
                    if (t.x[i] != 0.0f) sums[2] = fma(t.x[i], v.x[i], sums[2]);
                }
                float sum = 0;
                for (int i = 0; i < FOUR; i++) {
                    if (column + i < width && v.x[i] != -infinity()) sum += exp(v.x[i] - most);
                }
                total.join(most, sum);
            });
            const float most = Share::largest(total.most);
            // A thread that has seen -inf alone has a sum of 0, or NaN.
            float all[1] = {total.most == most ? total.sum : total.sum * exp(total.most - most)};
            Share::sum(all);
            Share::sum(sums);
            if (threadIdx.x % (Share::BLOCK ? THREADS : WARP) != 0) return;

            const float log_total = most + log(all[0]), keep = 1.0f - table.smoothing;
            float mass = 1, product;
            if (soft) {
                mass = keep * sums[1] + table.smoothing;
                product = keep * sums[2];
            } else {
                const int64_t label = label_of(table, row);
                // NaN in the backward pass too.
                if (label < 0) mass = label == -2 ? 0.0f : __uint_as_float(0x7fc00000u);
                product = label >= 0 ? keep * widen(x[label]) : 0.0f;
            }
            if (table.smoothing != 0.0f) product += table.smoothing / static_cast<float>(width) * sums[0];
            const bool counts = soft || mass != 0.0f;
            at<float>(table.losses)[row] = counts ? mass * log_total - product : 0.0f;
            at<RowLoss>(table.rows_losses)[row] = {log_total, counts ? mass : 0.0f};
        });
    }
};

template <class S> __device__ inline void cross_entropy_forward(const CrossEntropyTable& table) {
    by_width_once<CrossEntropy, S>(table.width, table);
}

// Sum and mean over the rows that count, by one block in a fixed order.
template <class S> __device__ inline void cross_entropy_mean(const CrossEntropyTable& table) {
    float sums[2] = {0, 0};
    const bool soft = table.label_type == NO_LABELS;
    const float* losses = at<float>(table.losses);
    uint32_t counted = 0;
    for (uint64_t row = threadIdx.x; row < table.rows; row += THREADS) {
        sums[0] += losses[row];
        counted += soft || label_of(table, row) != -2;
    }
    sums[1] = static_cast<float>(counted);
    Sharing<0, true, false>::sum(sums);
    if (threadIdx.x != 0) return;
    float* summary = at<float>(table.summary);
    summary[0] = sums[0];
    summary[1] = sums[1];
    summary[2] = sums[0] / sums[1];
}

// `d_logits = grad / count (mass e^(x - log_total) - target)`, where `count` comes from the forward pass: the host waits for
// nothing. Bytes per element: logits and their gradient, 8 in f32, and 4 of soft targets.
struct CrossEntropyBackward {
    template <class S, class Share> __device__ static void run(const CrossEntropyTable& table) {
        const uint32_t width = table.width;
        constexpr bool vector = Share::VECTOR;
        const bool soft = table.label_type == NO_LABELS;
        const float factor = at<float>(table.grad)[0] / at<float>(table.summary)[1];
        const float keep = 1.0f - table.smoothing, uniform = table.smoothing / static_cast<float>(width);
        each_row<Share>(table.rows, [&](uint64_t row) {
            const S* x = row_of<S>(table.logits, row);
            const S* targets = row_of<S>(table.targets, row);
            S* dx = row_of<S>(table.d_logits, row);
            const RowLoss loss = at<RowLoss>(table.rows_losses)[row];
            const int64_t label = soft ? -1 : label_of(table, row);
            Share::each(width, [&](int, uint32_t column) {
                Quad<float> v = {{0, 0, 0, 0}}, t = {{0, 0, 0, 0}};
                if (label != -2) {
                    v = read_four(x, column, width, vector);
                    if (soft) t = read_four(targets, column, width, vector);
                    for (int i = 0; i < FOUR; i++) {
                        float target = soft ? t.x[i] : (column + i == label ? 1.0f : 0.0f);
                        v.x[i] = factor * (loss.mass * exp(v.x[i] - loss.log_total) - (keep * target + uniform));
                    }
                }
                write_four(dx, column, width, vector, v);
            });
        });
    }
};

template <class S> __device__ inline void cross_entropy_backward(const CrossEntropyTable& table) {
    by_width_once<CrossEntropyBackward, S>(table.width, table);
}

// Batch normalization: sums over the channels of images, statistics from them, and what they are applied to.
#pragma once

#include "layers/layer.cuh"

// Images are (batch, channels, size), without gaps: a plane is what one has in one channel. A unit of the sums is a channel and a
// group of images, cut by the shape alone.
struct BatchNormTable {
    uint64_t x, grad, out;      // out: y, or dx
    uint64_t weight, bias;
    uint64_t state;             // f32: of each channel the mean, then of each one over the standard deviation
    uint64_t partial;           // f32: of each channel and group two numbers
    uint64_t d_weight, d_bias;  // 0 where they are not wanted
    uint64_t running;           // f32: means, then variances; 0 if they do not matter
    uint64_t moved;             // f32: where they go
    uint64_t means;             // backward, f32: of each channel the mean of the gradient, then of its product with what is normalized
    uint32_t batch, channels, size, quads, groups, images;
    uint32_t vector, backward, given;
    float eps, momentum, most;  // most: the largest running number that can be kept
};
static_assert(sizeof(BatchNormTable) == 144, "");

// Calls `f(plane, column)` for this thread's quads of images `first` to `end` of a channel: the plane's first element, a column.
template <class S, class F>
__device__ inline void each_quad(const BatchNormTable& table, uint32_t channel, uint32_t first, uint32_t end, F f) {
    const uint32_t quads = (end - first) * table.quads;
    for (uint32_t quad = threadIdx.x; quad < quads; quad += THREADS) {
        const uint32_t image = quad / table.quads;
        f((uint64_t(first + image) * table.channels + channel) * table.size, FOUR * (quad - image * table.quads));
    }
}

// Forward, of each unit: the mean, and the sum of squares around it. Elements are taken less the mean of the first few of them, so
// that nothing cancels, however large the mean. Backward: sums of the gradient, and of its product with what is normalized. Bytes
// per element: x, and backward grad: 4 and 8 in f32.
template <class S> __device__ inline void batch_norm_sums(const BatchNormTable& table) {
    using Share = Sharing<0, true, false>;
    const uint32_t size = table.size;
    for (uint32_t unit = blockIdx.x; unit < table.channels * table.groups; unit += gridDim.x) {
        const uint32_t channel = unit / table.groups, first = (unit - channel * table.groups) * table.images;
        const uint32_t end = table.batch - first < table.images ? table.batch : first + table.images;
        float* partial = at<float>(table.partial) + 2 * unit;
        float sums[2] = {0, 0};
        if (table.backward) {
            const float mean = at<float>(table.state)[channel], scale = at<float>(table.state)[table.channels + channel];
            each_quad<S>(table, channel, first, end, [&](uint64_t plane, uint32_t column) {
                const Quad<float> x = read_four(at<S>(table.x) + plane, column, size, table.vector);
                const Quad<float> g = read_four(at<S>(table.grad) + plane, column, size, table.vector);
                for (int i = 0; i < FOUR; i++) { // g is 0 behind the end
                    sums[0] += g.x[i];
                    sums[1] = fma(g.x[i], (x.x[i] - mean) * scale, sums[1]);
                }
            });
            Share::sum(sums);
            if (threadIdx.x == 0) {
                partial[0] = sums[0];
                partial[1] = sums[1];
            }
            continue;
        }
        const S* plane = at<S>(table.x) + (uint64_t(first) * table.channels + channel) * size;
        const uint32_t few = size < THREADS ? size : THREADS;
        float about[1] = {threadIdx.x < few ? widen(plane[threadIdx.x]) : 0.0f};
        Share::sum(about);
        const float center = about[0] / static_cast<float>(few);
        each_quad<S>(table, channel, first, end, [&](uint64_t start, uint32_t column) {
            const Quad<float> x = read_four(at<S>(table.x) + start, column, size, table.vector);
            for (int i = 0; i < FOUR; i++) {
                const float d = column + i < size ? x.x[i] - center : 0.0f;
                sums[0] += d;
                sums[1] = fma(d, d, sums[1]);
            }
        });
        Share::sum(sums);
        if (threadIdx.x == 0) {
            const float count = static_cast<float>(uint64_t(end - first) * size), rest = sums[0] / count;
            partial[0] = center + rest;
            partial[1] = larger(sums[1] - sums[0] * rest, 0.0f);
        }
    }
}

// One block: from the sums of groups, in order, the statistics of channels and the running ones, which stay as they are unless all
// of them are finite; backward the gradients of weight and bias. f64, but for the results.
template <class S> __device__ inline void batch_norm_combine(const BatchNormTable& table) {
    const uint32_t channels = table.channels;
    const float* partial = at<float>(table.partial);
    float* state = at<float>(table.state);
    float* moved = at<float>(table.moved);
    const float* running = at<float>(table.running);
    const double all = static_cast<double>(table.batch) * table.size;
    bool kept = true;
    for (uint32_t channel = threadIdx.x; channel < channels; channel += THREADS) {
        if (table.backward) {
            double of_gradients = 0, of_products = 0;
            for (uint32_t group = 0; group < table.groups; group++) {
                of_gradients += partial[2 * (channel * table.groups + group)];
                of_products += partial[2 * (channel * table.groups + group) + 1];
            }
            if (table.d_bias) at<S>(table.d_bias)[channel] = narrow<S>(static_cast<float>(of_gradients));
            if (table.d_weight) at<S>(table.d_weight)[channel] = narrow<S>(static_cast<float>(of_products));
            at<float>(table.means)[channel] = static_cast<float>(of_gradients / all);
            at<float>(table.means)[channels + channel] = static_cast<float>(of_products / all);
            continue;
        }
        double mean = 0, squares = 0, count = 0;
        if (table.given) {
            mean = running[channel];
            squares = running[channels + channel] * all;
        } else {
            // Chan, Golub and LeVeque (1979): means and squares around them of two sets give those of both.
            for (uint32_t group = 0; group < table.groups; group++) {
                const uint32_t first = group * table.images;
                const uint32_t images = table.batch - first < table.images ? table.batch - first : table.images;
                const double n = static_cast<double>(images) * table.size, total = count + n;
                const double difference = partial[2 * (channel * table.groups + group)] - mean;
                mean += difference * n / total;
                squares += partial[2 * (channel * table.groups + group) + 1] + difference * difference * count * n / total;
                count = total;
            }
        }
        state[channel] = static_cast<float>(mean);
        state[channels + channel] = static_cast<float>(1.0 / sqrt(squares / all + table.eps));
        if (!moved) continue;
        const double variance = squares / (all - 1.0), momentum = table.momentum;
        const float next_mean = static_cast<float>(running[channel] + momentum * (mean - running[channel]));
        const float old = running[channels + channel];
        const float next_variance = static_cast<float>(old + momentum * (variance - old));
        moved[channel] = next_mean;
        moved[channels + channel] = next_variance;
        // A NaN is not below.
        kept = kept && fabs(next_mean) <= table.most && fabs(next_variance) <= table.most;
    }
    if (__syncthreads_and(kept) || !moved) return;
    for (uint32_t i = threadIdx.x; i < 2 * channels; i += THREADS) moved[i] = running[i];
}

// `y = (x - mean) scale weight + bias`; backward `dx = weight scale (grad - mean(grad) - n mean(grad n))` with `n = (x - mean) scale`,
// or `weight scale grad` where the statistics were given. Bytes per element: x and y, 8 in f32; x, grad and dx, 12, or 8.
template <class S> __device__ inline void batch_norm_apply(const BatchNormTable& table) {
    const uint32_t channels = table.channels;
    const float* state = at<float>(table.state);
    const uint64_t units = uint64_t(table.batch) * channels * table.quads;
    for (uint64_t unit = uint64_t(blockIdx.x) * THREADS + threadIdx.x; unit < units; unit += uint64_t(gridDim.x) * THREADS) {
        const uint32_t plane = static_cast<uint32_t>(unit) / table.quads, channel = plane % channels;
        const uint32_t column = FOUR * (static_cast<uint32_t>(unit) - plane * table.quads);
        const uint64_t start = uint64_t(plane) * table.size;
        const float mean = state[channel], scale = state[channels + channel];
        const float factor = scale * widen(at<S>(table.weight)[channel]);
        Quad<float> x = {{0, 0, 0, 0}};
        if (!table.backward || !table.given) x = read_four(at<S>(table.x) + start, column, table.size, table.vector);
        if (table.backward) {
            const Quad<float> g = read_four(at<S>(table.grad) + start, column, table.size, table.vector);
            const float of_gradient = table.given ? 0.0f : at<float>(table.means)[channel];
            const float of_product = table.given ? 0.0f : at<float>(table.means)[channels + channel];
            for (int i = 0; i < FOUR; i++) x.x[i] = factor * (g.x[i] - of_gradient - (x.x[i] - mean) * scale * of_product);
        } else {
            const float bias = widen(at<S>(table.bias)[channel]);
            for (int i = 0; i < FOUR; i++) x.x[i] = (x.x[i] - mean) * factor + bias;
        }
        write_four(at<S>(table.out) + start, column, table.size, table.vector, x);
    }
}

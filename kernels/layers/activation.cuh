// Activations, with a bias in front or a gate behind, and the gradients of biases.
#pragma once

#include "layers/layer.cuh"

enum ActivationKind : uint32_t { IDENTITY, RELU, GELU, GELU_TANH, QUICK_GELU, SILU };

// One over `1 + e^-v`, and its slope.
__device__ inline float sigmoid(float v, float& slope) {
    const float s = 1.0f / (1.0f + exp(-v));
    slope = s * (1.0f - s);
    return s;
}

// Each has `at(x, slope)`: the value at x, and the slope there.
struct Identity {
    __device__ static float at(float x, float& slope) {
        slope = 1.0f;
        return x;
    }
};

// The slope at 0 is 0. NaN stays NaN.
struct Relu {
    __device__ static float at(float x, float& slope) {
        slope = x > 0.0f ? 1.0f : 0.0f;
        return x < 0.0f ? 0.0f : x;
    }
};

// `x Phi(x)`: by the complementary function, which does not cancel for negative x.
struct Gelu {
    __device__ static float at(float x, float& slope) {
        const float cdf = 0.5f * erfc(-0.70710678118654752f * x);
        slope = fma(x, 0.39894228040143268f * exp(-0.5f * x * x), cdf);
        return x * cdf;
    }
};

// `x / 2 (1 + tanh(u))`, where `1 + tanh(u)` is twice the sigmoid of `2u`, which does not cancel for negative u.
struct GeluTanh {
    __device__ static float at(float x, float& slope) {
        constexpr float FACTOR = 1.5957691216057308f, CUBIC = 0.044715f;
        const float square = x * x;
        float s_slope;
        const float s = sigmoid(FACTOR * x * (1.0f + CUBIC * square), s_slope);
        slope = s + x * s_slope * (FACTOR * (1.0f + 3.0f * CUBIC * square));
        return x * s;
    }
};

struct QuickGelu {
    __device__ static float at(float x, float& slope) {
        float s_slope;
        const float v = 1.702f * x, s = sigmoid(v, s_slope);
        slope = s + v * s_slope;
        return x * s;
    }
};

struct Silu {
    __device__ static float at(float x, float& slope) {
        float s_slope;
        const float s = sigmoid(x, s_slope);
        slope = s + x * s_slope;
        return x * s;
    }
};

// Calls `F::run<S, Activation>(table)`.
template <class F, class S, class Table> __device__ inline void by_kind(uint32_t kind, const Table& table) {
    switch (kind) {
    case RELU: return F::template run<S, Relu>(table);
    case GELU: return F::template run<S, Gelu>(table);
    case GELU_TANH: return F::template run<S, GeluTanh>(table);
    case QUICK_GELU: return F::template run<S, QuickGelu>(table);
    case SILU: return F::template run<S, Silu>(table);
    default: return F::template run<S, Identity>(table);
    }
}

// How work is cut: a unit is a group of rows and a tile of columns, four for each thread of a block.
struct Units {
    uint64_t rows, rows_per_group;
    uint32_t width, vector, tiles, pad;
    uint64_t units;
};
static_assert(sizeof(Units) == 40, "");

// Calls `f(group, column, first row, behind the last)` for this thread's part of each of its block's units.
template <class F> __device__ inline void each_unit(const Units& cut, F f) {
    for (uint64_t unit = blockIdx.x; unit < cut.units; unit += gridDim.x) {
        const uint64_t group = unit / cut.tiles;
        const uint32_t column = FOUR * (static_cast<uint32_t>(unit % cut.tiles) * THREADS + threadIdx.x);
        const uint64_t first = group * cut.rows_per_group;
        const uint64_t end = first + cut.rows_per_group < cut.rows ? first + cut.rows_per_group : cut.rows;
        if (column < cut.width) f(group, column, first, end);
    }
}

// Rows that a thread reads before it uses the first.
constexpr int AHEAD = 4;

// The same four columns of `AHEAD` rows from `row` on; those from `end` on are left alone.
template <class S>
__device__ inline void read_ahead(const Rows& rows, const Units& cut, uint64_t row, uint64_t end, uint32_t column, Quad<S> (&x)[AHEAD]) {
    #pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        if (row + k < end) x[k] = stored_four(row_of<S>(rows, row + k), column, cut.width, cut.vector);
    }
}

struct ActivationTable {
    Rows x, grad, out;     // grad: backward alone
    uint64_t bias;
    uint64_t partial;      // backward, f32: groups x width; 0 if the bias has no gradient
    Units cut;
    uint32_t kind, pad;
};
static_assert(sizeof(ActivationTable) == 112, "");

// `y = f(x + bias)`. Bytes per element: x, y: 8 in f32.
struct Activate {
    template <class S, class Activation> __device__ static void run(const ActivationTable& table) {
        const Units& cut = table.cut;
        const S* bias = at<S>(table.bias);
        each_unit(cut, [&](uint64_t, uint32_t column, uint64_t first, uint64_t end) {
            Quad<float> b = {{0, 0, 0, 0}};
            if (bias) b = read_four(bias, column, cut.width, cut.vector);
            for (uint64_t row = first; row < end; row += AHEAD) {
                Quad<S> x[AHEAD];
                read_ahead(table.x, cut, row, end, column, x);
                #pragma unroll
                for (int k = 0; k < AHEAD; k++) {
                    if (row + k >= end) break;
                    Quad<float> y = widen_four(x[k]);
                    float slope;
                    for (int i = 0; i < FOUR; i++) y.x[i] = Activation::at(y.x[i] + b.x[i], slope);
                    write_four(row_of<S>(table.out, row + k), column, cut.width, cut.vector, y);
                }
            }
        });
    }
};

template <class S> __device__ inline void activation_forward(const ActivationTable& table) {
    by_kind<Activate, S>(table.kind, table);
}

// `dx = grad f'(x + bias)`, and its sums over the rows of a group. Bytes per element: x, grad, dx: 12 in f32. Identity reads no x, and
// without `out` writes nothing: the gradient of a bias alone, 4 bytes.
struct ActivateBackward {
    template <class S, class Activation> __device__ static void run(const ActivationTable& table) {
        const Units& cut = table.cut;
        const S* bias = at<S>(table.bias);
        each_unit(cut, [&](uint64_t group, uint32_t column, uint64_t first, uint64_t end) {
            Quad<float> b = {{0, 0, 0, 0}}, sum = {{0, 0, 0, 0}};
            if (bias) b = read_four(bias, column, cut.width, cut.vector);
            for (uint64_t row = first; row < end; row += AHEAD) {
                Quad<S> x[AHEAD], grad[AHEAD];
                if (table.x.address) read_ahead(table.x, cut, row, end, column, x);
                read_ahead(table.grad, cut, row, end, column, grad);
                #pragma unroll
                for (int k = 0; k < AHEAD; k++) {
                    if (row + k >= end) break;
                    Quad<float> dx = widen_four(grad[k]);
                    if (table.x.address) {
                        Quad<float> v = widen_four(x[k]);
                        for (int i = 0; i < FOUR; i++) {
                            float slope;
                            Activation::at(v.x[i] + b.x[i], slope);
                            dx.x[i] *= slope;
                        }
                    }
                    for (int i = 0; i < FOUR; i++) sum.x[i] += dx.x[i];
                    if (table.out.address) write_four(row_of<S>(table.out, row + k), column, cut.width, cut.vector, dx);
                }
            }
            if (!table.partial) return;
            float* sums = at<float>(table.partial) + group * cut.width + column;
            for (int i = 0; i < FOUR && column + i < cut.width; i++) sums[i] = sum.x[i];
        });
    }
};

template <class S> __device__ inline void activation_backward(const ActivationTable& table) {
    by_kind<ActivateBackward, S>(table.kind, table);
}

struct GatedTable {
    Rows gate, up, grad, out, d_up;  // forward: out is y; backward: d_gate
    Units cut;
    uint32_t kind, pad;
};
static_assert(sizeof(GatedTable) == 128, "");

// `y = f(gate) up`. Bytes per element of y: 12 in f32.
struct Gate {
    template <class S, class Activation> __device__ static void run(const GatedTable& table) {
        const Units& cut = table.cut;
        each_unit(cut, [&](uint64_t, uint32_t column, uint64_t first, uint64_t end) {
            for (uint64_t row = first; row < end; row += AHEAD) {
                Quad<S> gate[AHEAD], up[AHEAD];
                read_ahead(table.gate, cut, row, end, column, gate);
                read_ahead(table.up, cut, row, end, column, up);
                #pragma unroll
                for (int k = 0; k < AHEAD; k++) {
                    if (row + k >= end) break;
                    Quad<float> y = widen_four(gate[k]), u = widen_four(up[k]);
                    float slope;
                    for (int i = 0; i < FOUR; i++) y.x[i] = Activation::at(y.x[i], slope) * u.x[i];
                    write_four(row_of<S>(table.out, row + k), column, cut.width, cut.vector, y);
                }
            }
        });
    }
};

template <class S> __device__ inline void gated_forward(const GatedTable& table) { by_kind<Gate, S>(table.kind, table); }

// `d_gate = grad up f'(gate)`, `d_up = grad f(gate)`. Bytes per element of y: 20 in f32.
struct GateBackward {
    template <class S, class Activation> __device__ static void run(const GatedTable& table) {
        const Units& cut = table.cut;
        each_unit(cut, [&](uint64_t, uint32_t column, uint64_t first, uint64_t end) {
            for (uint64_t row = first; row < end; row += AHEAD) {
                Quad<S> gate[AHEAD], up[AHEAD], grad[AHEAD];
                read_ahead(table.gate, cut, row, end, column, gate);
                read_ahead(table.up, cut, row, end, column, up);
                read_ahead(table.grad, cut, row, end, column, grad);
                #pragma unroll
                for (int k = 0; k < AHEAD; k++) {
                    if (row + k >= end) break;
                    Quad<float> v = widen_four(gate[k]), u = widen_four(up[k]), g = widen_four(grad[k]);
                    for (int i = 0; i < FOUR; i++) {
                        float slope;
                        const float value = Activation::at(v.x[i], slope);
                        v.x[i] = g.x[i] * u.x[i] * slope;
                        u.x[i] = g.x[i] * value;
                    }
                    write_four(row_of<S>(table.out, row + k), column, cut.width, cut.vector, v);
                    write_four(row_of<S>(table.d_up, row + k), column, cut.width, cut.vector, u);
                }
            }
        });
    }
};

template <class S> __device__ inline void gated_backward(const GatedTable& table) {
    by_kind<GateBackward, S>(table.kind, table);
}

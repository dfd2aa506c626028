// What the kernels of layers share: how they are declared, rows of operands, who holds what of a row, sums in a fixed order.
//
// A kernel takes one table by value, so that a launch copies nothing ahead of it and can be captured in a graph as it is.
// Elements are f32, bf16 or f16, all operands of a launch of one type; arithmetic and sums are in f32, and a result is
// rounded once.
#pragma once

#include "element.cuh"

// `TPGM_LAYER(kernel, Table, function)` defines `kernel_f32`, `kernel_bf16` and `kernel_f16`, which call `function<S>(table)`;
// with `TPGM_ELEMENT` the one of that element type. A `.cu` file has one of them, and the name of the kernel. A kernel that touches
// no elements says `TPGM_LAYER_f32`, and is there once.
// `TPGM_BLOCKS`: how many blocks have to fit on a multiprocessor. ptxas takes that many registers then; left alone it rather spills
// some for one block more.
#ifdef __CUDACC__
#define TPGM_TABLE_KERNEL(name, Table, function)                                                                       \
    extern "C" __global__ void __launch_bounds__(TPGM_THREADS, TPGM_BLOCKS) name(const __grid_constant__ Table table) { \
        function(table);                                                                                               \
    }
#else
// Makes a kernel known that takes `bytes` bytes by value: see `emulator/launch.cpp`.
bool emulator_register_table(const char* name, void (*kernel)(const void*), unsigned bytes);
#define TPGM_TABLE_KERNEL(name, Table, function)                                                                       \
    TPGM_KERNEL name(const Table* table) { function(*table); }                                                         \
    [[maybe_unused]] static const bool emulator_registered_##name =                                                    \
        emulator_register_table(#name, EmulatorKernel<decltype(&name), &name>::call, sizeof(Table));
#endif

#define TPGM_LAYER_f32(kernel, Table, function) TPGM_TABLE_KERNEL(kernel##_f32, Table, function<float>)
#define TPGM_LAYER_bf16(kernel, Table, function) TPGM_TABLE_KERNEL(kernel##_bf16, Table, function<Bfloat>)
#define TPGM_LAYER_f16(kernel, Table, function) TPGM_TABLE_KERNEL(kernel##_f16, Table, function<Half>)
#ifdef TPGM_ELEMENT
#define TPGM_LAYER_PASTE(a, b) a##b
#define TPGM_LAYER_NAMED(element) TPGM_LAYER_PASTE(TPGM_LAYER_, element)
#define TPGM_LAYER(kernel, Table, function) TPGM_LAYER_NAMED(TPGM_ELEMENT)(kernel, Table, function)
#else
#define TPGM_LAYER(kernel, Table, function)                                                                            \
    TPGM_LAYER_f32(kernel, Table, function)                                                                            \
    TPGM_LAYER_bf16(kernel, Table, function)                                                                           \
    TPGM_LAYER_f16(kernel, Table, function)
#endif

// Rows of an operand: where the first one starts (0: there is none), and elements from one to the next.
struct Rows {
    uint64_t address, stride;
};
static_assert(sizeof(Rows) == 16, "");

template <class S> __device__ inline S* row_of(const Rows& rows, uint64_t row) {
    return at<S>(rows.address) + row * rows.stride;
}

constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr int FOUR = 4; // elements of an access

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }

__device__ inline float larger(float a, float b) { return fmax(a, b); }

// Four elements of a row from `column` on, a multiple of four, as they are stored; what is behind the row's end is 0. `vector`
// says that every row can be read four at a time.
template <class S>
__device__ inline Quad<S> stored_four(const S* row, uint32_t column, uint32_t width, bool vector) {
    if (vector) return read_quad<false>(row + column);
    Quad<S> x;
    #pragma unroll
    for (int i = 0; i < FOUR; i++) x.x[i] = column + i < width ? row[column + i] : narrow<S>(0.0f);
    return x;
}

template <class S> __device__ inline Quad<float> widen_four(const Quad<S>& stored) {
    return {{widen(stored.x[0]), widen(stored.x[1]), widen(stored.x[2]), widen(stored.x[3])}};
}

template <class S>
__device__ inline Quad<float> read_four(const S* row, uint32_t column, uint32_t width, bool vector) {
    return widen_four(stored_four(row, column, width, vector));
}

template <class S>
__device__ inline void write_stored(S* row, uint32_t column, uint32_t width, bool vector, const Quad<S>& x) {
    if (vector) {
        write_quad<false>(row + column, x);
        return;
    }
    #pragma unroll
    for (int i = 0; i < FOUR; i++) {
        if (column + i < width) row[column + i] = x.x[i];
    }
}

template <class S>
__device__ inline void write_four(S* row, uint32_t column, uint32_t width, bool vector, const Quad<float>& x) {
    Quad<S> stored;
    #pragma unroll
    for (int i = 0; i < FOUR; i++) stored.x[i] = narrow<S>(x.x[i]);
    write_stored(row, column, width, vector, stored);
}

// How rows are shared out: `QUADS` held by each thread (0: none, the row is read again), by a warp or by a block, and read four
// elements at a time or one.
template <int QUADS_, bool BLOCK_, bool VECTOR_> struct Sharing {
    static constexpr int QUADS = QUADS_;
    static constexpr bool BLOCK = BLOCK_, VECTOR = VECTOR_;
    static constexpr int SLOTS = QUADS_ > 0 ? QUADS_ : 1;
    // Rows that a block has in work.
    static constexpr uint32_t ROWS = BLOCK_ ? 1 : WARPS;

    // The first of them that this thread works on.
    __device__ static uint32_t row() { return BLOCK ? 0 : threadIdx.x / WARP; }

    // Calls `f(j, column)` for this thread's quads of a row: slot and first column.
    template <class F> __device__ static void each(uint32_t width, F f) {
        const uint32_t lane = BLOCK ? threadIdx.x : threadIdx.x % WARP;
        const uint32_t threads = BLOCK ? THREADS : WARP;
        if constexpr (QUADS > 0) {
            #pragma unroll
            for (int j = 0; j < QUADS; j++) {
                uint32_t column = FOUR * (lane + j * threads);
                if (column < width) f(j, column);
            }
        } else {
            for (uint32_t column = FOUR * lane; column < width; column += FOUR * threads) f(0, column);
        }
    }

    // The largest over the threads of a row; all of them get it.
    __device__ static float largest(float x) {
        #pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, offset));
        if constexpr (BLOCK) {
            __shared__ float of_warps[WARPS];
            __syncthreads(); // that of the call before has been read
            if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
            __syncthreads();
            for (int w = 0; w < WARPS; w++) x = larger(x, of_warps[w]);
        }
        return x;
    }

    // Sums over the threads of a row, in a fixed order; all of them get the sums.
    template <int N> __device__ static void sum(float (&x)[N]) {
        #pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            #pragma unroll
            for (int n = 0; n < N; n++) x[n] += __shfl_xor_sync(ALL_LANES, x[n], offset);
        }
        if constexpr (BLOCK) {
            __shared__ float of_warps[N][WARPS];
            __syncthreads(); // the sums of the call before have been read
            if (threadIdx.x % WARP == 0) {
                for (int n = 0; n < N; n++) of_warps[n][threadIdx.x / WARP] = x[n];
            }
            __syncthreads();
            for (int n = 0; n < N; n++) {
                x[n] = of_warps[n][0];
                for (int w = 1; w < WARPS; w++) x[n] += of_warps[n][w];
            }
        }
    }
};

// Calls `F::run<S, Sharing>(table)` for rows of `width` elements. A row that a warp can hold, `QUADS` of each thread, belongs to
// a warp, which needs no barriers; one that a block can hold to a block; a longer one is read again for every pass, from a
// cache, and so is a long one that is read element by element.
template <class F, class S, int QUADS, class Table> __device__ inline void by_width(uint32_t width, const Table& table) {
    const bool warp = width <= QUADS * FOUR * WARP, block = width <= QUADS * FOUR * THREADS;
    if (table.vector) {
        if (warp) F::template run<S, Sharing<QUADS, false, true>>(table);
        else if (block) F::template run<S, Sharing<QUADS, true, true>>(table);
        else F::template run<S, Sharing<0, true, true>>(table);
    } else {
        if (warp) F::template run<S, Sharing<QUADS, false, false>>(table);
        else F::template run<S, Sharing<0, true, false>>(table);
    }
}

// The same for functions that hold nothing, since they read a row once.
template <class F, class S, class Table> __device__ inline void by_width_once(uint32_t width, const Table& table) {
    if (width <= 8 * FOUR * WARP) {
        if (table.vector) F::template run<S, Sharing<0, false, true>>(table);
        else F::template run<S, Sharing<0, false, false>>(table);
    } else {
        if (table.vector) F::template run<S, Sharing<0, true, true>>(table);
        else F::template run<S, Sharing<0, true, false>>(table);
    }
}

// Calls `f(row)` for this thread's rows of a launch, until there is none left for its warp or block.
template <class Share, class F> __device__ inline void each_row(uint64_t rows, F f) {
    for (uint64_t row = uint64_t(blockIdx.x) * Share::ROWS + Share::row(); row < rows;
         row += uint64_t(gridDim.x) * Share::ROWS) {
        f(row);
    }
}

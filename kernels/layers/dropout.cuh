// Dropout by a generator that counts: what an element's random bits are depends on its index alone, so that no mask is in memory.
#pragma once

#include "layers/layer.cuh"

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four numbers of 32 bits for a counter of 128
// and a key of 64.
struct Philox {
    uint32_t x[4];

    __device__ static Philox at(uint64_t low, uint64_t high, uint64_t key) {
        Philox p{{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
                  static_cast<uint32_t>(high >> 32)}};
        uint32_t first = static_cast<uint32_t>(key), second = static_cast<uint32_t>(key >> 32);
        #pragma unroll
        for (int round = 0; round < 10; round++) {
            const uint64_t a = uint64_t(0xd2511f53u) * p.x[0], b = uint64_t(0xcd9e8d57u) * p.x[2];
            p = {{static_cast<uint32_t>(b >> 32) ^ p.x[1] ^ first, static_cast<uint32_t>(b),
                  static_cast<uint32_t>(a >> 32) ^ p.x[3] ^ second, static_cast<uint32_t>(a)}};
            first += 0x9e3779b9u;
            second += 0xbb67ae85u;
        }
        return p;
    }
};

struct DropoutTable {
    uint64_t x, y, count;
    uint64_t seed, draw;    // the key, and the upper half of the counter
    uint32_t threshold, vector;
    float scale;
    uint32_t pad;
};
static_assert(sizeof(DropoutTable) == 56, "");

// `y = 0` where an element's random bits are below the threshold, else `scale x`: element i has number i % 4 of counter i / 4. The
// gradient is the same function of the gradient. Bytes per element: x and y, 8 in f32.
struct Drop {
    template <class S> __device__ static void run(const DropoutTable& table) {
        const uint64_t quads = (table.count + FOUR - 1) / FOUR;
        for (uint64_t quad = uint64_t(blockIdx.x) * THREADS + threadIdx.x; quad < quads;
             quad += uint64_t(gridDim.x) * THREADS) {
            const uint64_t left = table.count - FOUR * quad;
            const uint32_t width = left < FOUR ? static_cast<uint32_t>(left) : FOUR;
            const bool vector = table.vector && width == FOUR;
            Quad<float> x = read_four(at<S>(table.x) + FOUR * quad, 0, width, vector);
            const Philox bits = Philox::at(quad, table.draw, table.seed);
            for (int i = 0; i < FOUR; i++) x.x[i] = bits.x[i] < table.threshold ? 0.0f : x.x[i] * table.scale;
            write_four(at<S>(table.y) + FOUR * quad, 0, width, vector, x);
        }
    }
};

template <class S> __device__ inline void dropout(const DropoutTable& table) { Drop::run<S>(table); }

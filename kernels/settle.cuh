// Between moving and pulling back: norms complete, radii clipped, ratios known, telemetry written. A block calls these for
// one tensor. `tpgm_core::cpu::settle` is the same in Rust.
#pragma once

#include "pull.cuh"
#include "sums.cuh"

// What a set of norms comes to. Minimum, maximum and counts do not depend on the order, so atomics give the same bits.
struct NormStats {
    unsigned long long smallest, largest, ratio, pulled;
};

// Bits that order as the numbers do; NaN is the largest.
__device__ inline unsigned long long bits_of(double x) {
    return x != x ? 0x7ff8000000000000ull : static_cast<unsigned long long>(__double_as_longlong(x));
}

__device__ inline double from_bits(unsigned long long bits) { return __longlong_as_double(static_cast<long long>(bits)); }

__device__ inline unsigned long long smaller(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
__device__ inline unsigned long long larger(unsigned long long a, unsigned long long b) { return a > b ? a : b; }

__device__ inline void reset(NormStats& stats) { stats = {BITS_OF_INFINITY, 0, BITS_OF_ONE, 0}; }

__device__ inline void add(NormStats& stats, double norm, double ratio) {
    atomicMin(&stats.smallest, bits_of(norm));
    atomicMax(&stats.largest, bits_of(norm));
    if (ratio < 1.0) {
        atomicMin(&stats.ratio, bits_of(ratio));
        atomicAdd(&stats.pulled, 1ull);
    }
}

// Adds the stats of a piece to those of its tensor. One thread calls this.
__device__ inline void push(Progress& to, const NormStats& stats) {
    auto word = [](uint64_t& x) { return reinterpret_cast<unsigned long long*>(&x); };
    atomicMin(word(to.smallest), stats.smallest);
    atomicMax(word(to.largest), stats.largest);
    atomicMin(word(to.ratio), stats.ratio);
    if (stats.pulled) atomicAdd(word(to.pulled), stats.pulled);
}

// Adds up the parts of units that were cut, in table order, and writes their norms.
__device__ inline void finish_norms(const Job& job, const Tensor& tensor, uint32_t norm) {
    double* norms = job.norms + tensor.first_unit;
    const double* parts = job.parts + tensor.first_part;
    if (tensor.units == 1) {
        double sum = 0;
        for (uint64_t p = threadIdx.x; p < tensor.parts; p += THREADS) sum += parts[p];
        sum = sum_of_block(sum);
        if (threadIdx.x == 0) norms[0] = finished(norm, sum);
    } else {
        for (uint64_t u = threadIdx.x; u < tensor.units; u += THREADS) {
            double sum = 0;
            for (uint64_t p = 0; p < tensor.parts; p++) sum += parts[u * tensor.parts + p];
            norms[u] = finished(norm, sum);
        }
    }
    __syncthreads();
}

// What all norms of a tensor come to under `pull`.
__device__ inline void survey(const Job& job, const Tensor& tensor, const Pull& pull, NormStats& stats) {
    __syncthreads();
    if (threadIdx.x == 0) reset(stats);
    __syncthreads();
    // In registers first: on 64 bits of shared memory, minima and maxima are loops.
    NormStats mine;
    reset(mine);
    for (uint64_t u = threadIdx.x; u < tensor.units; u += THREADS) {
        double norm = job.norms[tensor.first_unit + u];
        double ratio = ratio_in(tensor, pull, norm);
        mine.smallest = smaller(mine.smallest, bits_of(norm));
        mine.largest = larger(mine.largest, bits_of(norm));
        if (ratio < 1.0) {
            mine.ratio = smaller(mine.ratio, bits_of(ratio));
            mine.pulled++;
        }
    }
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        mine.smallest = smaller(mine.smallest, __shfl_xor_sync(0xffffffffu, mine.smallest, offset));
        mine.largest = larger(mine.largest, __shfl_xor_sync(0xffffffffu, mine.largest, offset));
        mine.ratio = smaller(mine.ratio, __shfl_xor_sync(0xffffffffu, mine.ratio, offset));
        mine.pulled += __shfl_xor_sync(0xffffffffu, mine.pulled, offset);
    }
    if (threadIdx.x % WARP == 0) {
        atomicMin(&stats.smallest, mine.smallest);
        atomicMax(&stats.largest, mine.largest);
        atomicMin(&stats.ratio, mine.ratio);
        atomicAdd(&stats.pulled, mine.pulled);
    }
    __syncthreads();
}

__device__ inline void write_telemetry(const Tensor& tensor, const NormStats& stats, Scalars& scalars) {
    scalars.norm = from_bits(stats.largest);
    scalars.ratio = from_bits(stats.ratio);
    scalars.fire_rate = static_cast<double>(stats.pulled) / static_cast<double>(tensor.units);
}

// Settles a tensor that has been advanced, and says in its move how its second pass goes. Not inlined, here and below: only
// the last piece of a tensor comes here, and every piece would pay for the registers.
__device__ TPGM_NOINLINE inline void settle_move(const Job& job, uint32_t t) {
    __shared__ NormStats stats;
    const Tensor& tensor = job.tensors[t];
    Move& move = job.moves[t];
    Scalars& scalars = job.scalars[t];
    Progress& progress = job.progress[t];
    const bool cut = tensor.parts > 1;
    if (threadIdx.x == 0) stats = {progress.smallest, progress.largest, progress.ratio, progress.pulled};
    __syncthreads();
    if (threadIdx.x == 0) {
        if (move.scale_radius > 0.0) {
            scalars.fire_rate = static_cast<double>(stats.pulled) / static_cast<double>(tensor.numel);
        }
        progress.smallest = BITS_OF_INFINITY;
        progress.largest = 0;
        progress.ratio = BITS_OF_ONE;
        progress.pulled = 0;
    }
    if (move.norm == NO_NORM) return;
    if (cut) {
        finish_norms(job, tensor, move.norm);
        survey(job, tensor, move.pull, stats);
    }
    // All threads read the radius before the first one writes it.
    Pull pull = move.pull;
    bool deferred = move.deferred;
    if (tensor.settings.constraint == TPGM) {
        double radius = scalars.radius, initialized = scalars.initialized;
        __syncthreads();
        clip_tpgm(radius, initialized, tensor, from_bits(stats.smallest), from_bits(stats.largest));
        pull.radius = radius;
        if (threadIdx.x == 0) {
            scalars.radius = radius;
            scalars.initialized = initialized;
        }
        // Shorter rows are inside the radius, but not always by the 1e-8 of the ratio; and the longest row is not once the
        // radius has been clipped to it. In f32 that happens only to norms below 0.25.
        if (!deferred) {
            bool waits = false;
            for (uint64_t u = threadIdx.x; u < tensor.units; u += THREADS) {
                double norm = job.norms[tensor.first_unit + u];
                waits |= norm < move.pulls_from && ratio_in(tensor, pull, norm) < 1.0;
            }
            deferred = __syncthreads_or(waits);
            if (deferred && threadIdx.x == 0) move.waited_below = move.pulls_from;
        }
    } else if (tensor.settings.constraint == FTP) {
        double radius = fmin(scalars.radius, fmax(from_bits(stats.largest) + RADIUS_FLOOR, ftp_floor(tensor.settings)));
        radius = rounded(tensor, radius);
        __syncthreads();
        pull.radius = radius;
        if (threadIdx.x == 0) scalars.radius = radius;
        if (cut) {
            double* row_scale = at<double>(job.operands[t].slots[ROW_SCALE]);
            for (uint64_t u = threadIdx.x; u < tensor.units; u += THREADS) {
                row_scale[u] = row_scale_of(move.row_scale, pull, job.norms[tensor.first_unit + u]);
            }
        }
    }
    if (deferred) survey(job, tensor, pull, stats);
    __syncthreads(); // all have read `move`
    if (threadIdx.x == 0) {
        move.pull = pull;
        move.deferred = deferred;
        write_telemetry(tensor, stats, scalars);
    }
}

// Clips the radius of a tensor whose norms are known and notes what its projection will do.
__device__ TPGM_NOINLINE inline void settle_radius(const Job& job, uint32_t t) {
    __shared__ NormStats stats;
    const Tensor& tensor = job.tensors[t];
    Scalars& scalars = job.scalars[t];
    double radius = scalars.radius, initialized = scalars.initialized;
    survey(job, tensor, Pull{}, stats);
    clip_tpgm(radius, initialized, tensor, from_bits(stats.smallest), from_bits(stats.largest));
    survey(job, tensor, Pull{radius, 0, LEARNED, 0}, stats);
    if (threadIdx.x == 0) {
        scalars.radius = radius;
        scalars.initialized = initialized;
        write_telemetry(tensor, stats, scalars);
    }
}

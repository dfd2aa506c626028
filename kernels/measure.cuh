// The phase that only reads: is every gradient finite, and what do the constraints need to know of it. A block takes a span
// of pieces of one tensor; whoever finishes a tensor's last span adds its spans up in table order, and whoever finishes the
// last span of all decides.
#pragma once

#include "pull.cuh"
#include "sums.cuh"

// Which sums are taken beside the check for finite gradients. `tpgm_core::cpu::measure` has the same list.
enum Wanted : uint32_t {
    CHECK,
    DISPLACEMENT_SUMS,   // <g, W - W0> and |W - W0|^2
    AND_PREVIOUS,        // the same, and <g, slot>
    SCALED_PREVIOUS,     // <g, slot> of each row times its row scale
    SCALED_DISPLACEMENT, // <g, W - W0> of each row times its row scale
    RADIUS_GRADIENT      // TPGM: <g, W - W0> / (norm + 1e-8) of the rows that the radius limits
};

__device__ inline uint32_t sums_wanted(const Settings& set, const Scalars& scalars) {
    switch (set.constraint) {
        case SPD: return DISPLACEMENT_SUMS;
        case DIGRAP: return AND_PREVIOUS;
        case FTP:
            if (scalars.step == 0.0) return CHECK;
            return set.variant == LOW ? SCALED_DISPLACEMENT : SCALED_PREVIOUS;
        default: return CHECK;
    }
}

__device__ inline void add(Sums& to, const Sums& x) {
    to.square += x.square;
    to.dot += x.dot;
    to.displacement += x.displacement;
    to.previous += x.previous;
    to.bad += x.bad;
}

__device__ inline Sums sum_of_block(const Sums& x) {
    return {sum_of_block(x.square), sum_of_block(x.dot), sum_of_block(x.displacement), sum_of_block(x.previous),
            sum_of_block(x.bad)};
}


// What this thread finds in one piece. Bytes read per f32 parameter: 4; with DISPLACEMENT_SUMS 12, AND_PREVIOUS 16,
// SCALED_PREVIOUS 8, SCALED_DISPLACEMENT 12, RADIUS_GRADIENT 12 in rows that the radius limits.
template <class Storage, class C>
__device__ inline void measure_piece(const Job& job, const Tensor& tensor, const Operands& io, const Scalars& scalars,
                                     const Piece& piece, uint32_t wanted, Sums& sums) {
    Rounds rounds(tensor, piece);
    for (uint32_t round = 0; round < rounds.count(); round++) {
        Place place = rounds.place(round);
        Tile<C> g;
        load<Storage, false>(g, io.grad, io.grad_type, place);
        bool bad = false;
        double square = 0;
        #pragma unroll
        for (int j = 0; j < QUADS; j++) {
            #pragma unroll
            for (int i = 0; i < QUAD; i++) bad |= !isfinite(g.x[j][i]);
        }
        if (job.max_grad_norm > 0.0 || job.importance || wanted == AND_PREVIOUS) square = sum_of_products(g, g);
        double dot = 0, previous = 0, norm = 0, scale = 1;
        if (wanted == RADIUS_GRADIENT && place.len > 0) {
            double n = job.norms[tensor.first_unit + place.unit];
            C x = share<C>(scalars.radius, n);
            // Zero gradient at both ends of the clamp, ends included (hard-tanh in the published code).
            scale = x > C(0) && x < C(1) ? 1.0 / (n + RADIUS_FLOOR) : 0.0;
            if (scale == 0.0) place.len = 0;  // nothing more to read
        }
        if ((wanted == SCALED_PREVIOUS || wanted == SCALED_DISPLACEMENT) && place.len > 0) {
            scale = at<double>(io.slots[ROW_SCALE])[place.unit];
        }
        if (wanted == SCALED_PREVIOUS || wanted == AND_PREVIOUS) {
            Tile<C> before;
            load_as<true>(before, at<C>(io.slots[DISPLACEMENT]) + place.start, place);
            previous = sum_of_products(g, before);
        }
        if (wanted != CHECK && wanted != SCALED_PREVIOUS) {
            Tile<C> w, a;
            bool radii = wanted == RADIUS_GRADIENT;
            uint64_t master = radii || scalars.master_filled != 0.0 ? io.slots[MASTER] : 0;
            load_source<Storage>(w, master, radii ? io.slots[REMEMBERED] : io.weight, tensor.type, place);
            load_anchor<Storage>(a, io.anchor, io.anchor_type, place);
            Tile<C> d = displacement(w, a);
            dot = sum_of_products(g, d);
            if (wanted == DISPLACEMENT_SUMS || wanted == AND_PREVIOUS) norm = sum_of_products(d, d);
        }
        bool scaled_previous = wanted == SCALED_PREVIOUS;
        add(sums, {square, (scaled_previous ? previous : dot) * scale, norm, scaled_previous ? 0.0 : previous,
                   bad ? 1.0 : 0.0});
    }
}

// One launch over all spans. `Phase` says which sums are wanted of a tensor (and whether any: a tensor that is not measured
// costs nothing), and decides when all of them are known.
template <class Storage, class Phase>
__device__ inline void measure(const Job& job) {
    __shared__ bool last_of_tensor, last_of_all;
    for (uint32_t s = blockIdx.x; s < job.span_count; s += gridDim.x) {
        const Span& span = job.spans[s];
        const Tensor& tensor = job.tensors[span.tensor];
        const Operands& io = job.operands[span.tensor];
        const Scalars& scalars = job.scalars[span.tensor];
        Sums sums = {};
        if (Phase::measures(job, span.tensor)) {
            uint32_t wanted = Phase::wanted(tensor.settings, scalars);
            for (uint32_t p = 0; p < span.pieces; p++) {
                const Piece& piece = job.pieces[span.first_piece + p];
                TPGM_IN_COMPUTE_TYPE(Storage, tensor, C, (measure_piece<Storage, C>(job, tensor, io, scalars, piece, wanted, sums)));
            }
        }
        sums = sum_of_block(sums);
        if (threadIdx.x == 0) {
            job.span_sums[s] = sums;
            fence();
            last_of_tensor = atomicAdd(&job.progress[span.tensor].measured, 1u) == tensor.spans - 1;
            if (last_of_tensor) fence();
        }
        __syncthreads();
        if (last_of_tensor) {
            Sums total = {};
            for (uint32_t i = threadIdx.x; i < tensor.spans; i += THREADS) add(total, job.span_sums[tensor.first_span + i]);
            total = sum_of_block(total);
            if (threadIdx.x == 0) {
                job.tensor_sums[span.tensor] = total;
                job.progress[span.tensor].measured = 0;
            }
        }
        if (threadIdx.x == 0) {
            fence();
            last_of_all = atomicAdd(&job.counters->measured, 1u) == job.span_count - 1;
            if (last_of_all) fence();
        }
        __syncthreads();
        if (last_of_all) {
            Phase::decide(job);
            if (threadIdx.x == 0) job.counters->measured = 0;
        }
    }
    // Nothing to measure: one block decides.
    if (job.span_count == 0 && blockIdx.x == 0) Phase::decide(job);
}

// Looks at the sums of all tensors: counts those that something is wrong with and finds the first. Every thread of the block
// gets the same answer.
__device__ inline Status examine(const Job& job) {
    __shared__ uint32_t first[2], count[2];
    if (threadIdx.x < 2) {
        first[threadIdx.x] = 0xffffffffu;
        count[threadIdx.x] = 0;
    }
    __syncthreads();
    double square = 0;
    for (uint32_t t = threadIdx.x; t < job.tensor_count; t += THREADS) {
        // Tensors without spans have no sums.
        Sums sums = job.tensors[t].spans > 0 && job.span_count > 0 ? job.tensor_sums[t] : Sums{};
        bool product = !(isfinite(sums.dot) && isfinite(sums.displacement) && isfinite(sums.previous) &&
                         (isfinite(sums.square) || !job.importance));
        if (sums.bad > 0) {
            atomicMin(&first[0], t);
            atomicAdd(&count[0], 1u);
        } else if (product) {
            atomicMin(&first[1], t);
            atomicAdd(&count[1], 1u);
        }
        square += sums.square;
    }
    square = sum_of_block(square);
    __syncthreads();
    Status status = {};
    status.grad_norm = sqrt(square) * job.grad_scale;
    status.refused = count[0] > 0 ? BAD_GRADIENT : count[1] > 0 ? BAD_PRODUCT : ACCEPTED;
    int which = count[0] > 0 ? 0 : 1;
    status.first = first[which];
    status.count = count[which];
    return status;
}

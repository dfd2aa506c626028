// TPGM's projection update, three launches: remembering the weights, writing them, and the gradient of the radii. And
// blending, for moving averages and interpolation.
#pragma once

#include "decide.cuh"
#include "queue.cuh"
#include "settle.cuh"

// Copies the weights, unless a master remembers them, and measures their displacement. Reads 8 and writes 4 bytes per f32
// parameter.
template <class Storage, class C>
__device__ inline void remember_piece(const Job& job, uint32_t t, const Piece& piece) {
    const Tensor& tensor = job.tensors[t];
    const Operands& io = job.operands[t];
    bool fresh = job.scalars[t].master_filled == 0.0;
    Rounds rounds(tensor, piece);
    for (uint32_t round = 0; round < rounds.count(); round++) {
        Place place = rounds.place(round);
        Tile<C> w, a;
        load_source<Storage>(w, fresh ? 0 : io.slots[MASTER], io.weight, tensor.type, place);
        load_anchor<Storage>(a, io.anchor, io.anchor_type, place);
        if (io.slots[REMEMBERED]) store<Storage, false>(w, io.slots[REMEMBERED], tensor.type, place);
        else if (Storage::HALF && fresh) store_as<false>(at<float>(io.slots[MASTER]) + place.start, w, place);
        double sum = sum_of_group(sum_of_norm<!Storage::HALF>(w, a, tensor.settings.norm), place.width);
        if (place.len == 0 || place.lane != 0) continue;
        if (tensor.parts > 1) {
            job.parts[piece.part] = sum;
        } else {
            double norm = finished(tensor.settings.norm, sum);
            job.norms[tensor.first_unit + place.unit] = norm;
            if (!isfinite(norm)) atomicAdd(&job.progress[t].bad, 1u);
        }
    }
}

// The weights of every tensor are known: says whether a displacement is not finite. One block calls this.
__device__ inline void conclude_remember(const Job& job) {
    __shared__ uint32_t first, count;
    if (threadIdx.x == 0) {
        first = 0xffffffffu;
        count = 0;
    }
    __syncthreads();
    for (uint32_t t = threadIdx.x; t < job.tensor_count; t += THREADS) {
        if (job.progress[t].bad) {
            atomicMin(&first, t);
            atomicAdd(&count, 1u);
        }
        job.progress[t].bad = 0;
        job.progress[t].arrived = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        Status status = {};
        status.refused = count > 0 ? BAD_DISPLACEMENT : ACCEPTED;
        status.first = first;
        status.count = count;
        *job.status = status;
        job.counters->arrived = 0;
    }
    for (uint32_t t = threadIdx.x; t < job.tensor_count && count == 0; t += THREADS) {
        if (job.tensors[t].settings.constraint == TPGM) job.scalars[t].master_filled = 1.0;
    }
}

template <class Storage> __device__ inline void remember(const Job& job) {
    __shared__ bool last_of_tensor, last_of_all;
    for (uint32_t p = blockIdx.x; p < job.piece_count; p += gridDim.x) {
        const Piece& piece = job.pieces[p];
        const Tensor& tensor = job.tensors[piece.tensor];
        bool learned = tensor.settings.constraint == TPGM;
        if (learned) {
            TPGM_IN_COMPUTE_TYPE(Storage, tensor, C, (remember_piece<Storage, C>(job, piece.tensor, piece)));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            fence();
            last_of_tensor = atomicAdd(&job.progress[piece.tensor].arrived, 1u) == tensor.pieces - 1;
            if (last_of_tensor) fence();
        }
        __syncthreads();
        if (last_of_tensor && learned && tensor.parts > 1) {
            finish_norms(job, tensor, tensor.settings.norm);
            for (uint64_t u = threadIdx.x; u < tensor.units; u += THREADS) {
                if (!isfinite(job.norms[tensor.first_unit + u])) atomicAdd(&job.progress[piece.tensor].bad, 1u);
            }
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            fence();
            last_of_all = atomicAdd(&job.counters->arrived, 1u) == job.piece_count - 1;
            if (last_of_all) fence();
        }
        __syncthreads();
        if (last_of_all) {
            conclude_remember(job);
        }
        __syncthreads();
    }
    if (job.piece_count == 0 && blockIdx.x == 0) conclude_remember(job);
}

// Writes projected or remembered weights. Reads 8 and writes 4 bytes per f32 parameter.
template <class Storage, class C>
__device__ inline void write_piece(const Job& job, uint32_t t, const Piece& piece) {
    const Tensor& tensor = job.tensors[t];
    const Operands& io = job.operands[t];
    const Pull pull = {job.scalars[t].radius, 0, LEARNED, 0};
    uint64_t master = io.slots[MASTER];
    Rounds rounds(tensor, piece);
    for (uint32_t round = 0; round < rounds.count(); round++) {
        Place place = rounds.place(round);
        if (place.len == 0) continue;
        C ratio = C(1);
        if (job.write != REMEMBERED_WEIGHTS) ratio = ratio_of<C>(pull, job.norms[tensor.first_unit + place.unit]);
        Tile<C> w;
        load_source<Storage>(w, master, io.slots[REMEMBERED], tensor.type, place);
        if (ratio != C(1)) {
            Tile<C> a;
            load_anchor<Storage>(a, io.anchor, io.anchor_type, place);
            pull_back(w, a, ratio);
            if (Storage::HALF && master && job.write == PROJECTION) store_as<false>(at<float>(master) + place.start, w, place);
        }
        store<Storage, false>(w, io.weight, tensor.type, place);
    }
}

// Radii are clipped first, one item a tensor; its pieces wait for that.
template <class Storage> struct WriteWork {
    __device__ static void advance(const Job&, const Item&) {}

    __device__ static void settle(const Job& job, uint32_t t) {
        if (job.write != REMEMBERED_WEIGHTS) settle_radius(job, t);
    }

    __device__ static void pull(const Job& job, const Item& item) {
        for (uint32_t p = 0; p < item.pieces; p++) {
            const Piece& piece = job.pieces[item.first_piece + p];
            TPGM_IN_COMPUTE_TYPE(Storage, job.tensors[item.tensor], C, (write_piece<Storage, C>(job, item.tensor, piece)));
        }
    }
};

// `target = keep * target + take * source`; the targets are in the column of weights and stored as anchors are, the sources in
// that of gradients. Reads 8 and writes 4 bytes per f32 parameter. With nothing to keep, targets may hold anything, also NaN.
template <class Storage, class C>
__device__ inline void blend_piece(const Job& job, const Piece& piece) {
    using Targets = typename Storage::Anchors;
    const Tensor& tensor = job.tensors[piece.tensor];
    const Operands& io = job.operands[piece.tensor];
    C keep = static_cast<C>(job.keep), take = static_cast<C>(job.take);
    Rounds rounds(tensor, piece);
    for (uint32_t round = 0; round < rounds.count(); round++) {
        Place place = rounds.place(round);
        Tile<C> target, source;
        load<Targets, true>(target, io.weight, tensor.type, place);
        load<Storage, true>(source, io.grad, io.grad_type, place);
        #pragma unroll
        for (int j = 0; j < QUADS; j++) {
            #pragma unroll
            for (int i = 0; i < QUAD; i++) {
                C kept = keep == 0 ? C(0) : keep * target.x[j][i];
                target.x[j][i] = kept + take * source.x[j][i];
            }
        }
        store<Targets, true>(target, io.weight, tensor.type, place);
    }
}

template <class Storage> __device__ inline void blend(const Job& job) {
    for (uint32_t p = blockIdx.x; p < job.piece_count; p += gridDim.x) {
        const Piece& piece = job.pieces[p];
        TPGM_IN_COMPUTE_TYPE(Storage, job.tensors[piece.tensor], C, (blend_piece<Storage, C>(job, piece)));
    }
}

// The importance of a pull from a gradient: `f = keep * f + take * F` with `F = scale * g^2`, or a gate that opens where `F` reaches
// its threshold. In f64, where no square is lost. Reads 8 and writes 4 bytes per f32 parameter.
template <class Storage, class C>
__device__ inline void weigh_piece(const Job& job, const Move& move, const Piece& piece) {
    const Tensor& tensor = job.tensors[piece.tensor];
    const Operands& io = job.operands[piece.tensor];
    Rounds rounds(tensor, piece);
    for (uint32_t round = 0; round < rounds.count(); round++) {
        Place place = rounds.place(round);
        // Unrolled, f64 would take more registers than ptxas grants a kernel this small.
        #pragma unroll 1
        for (int j = 0; j < QUADS; j++) {
            C f[QUAD], g[QUAD];
            load_state(f, io.slots[IMPORTANCE], j, place);
            Storage::load_quad(g, io.grad, io.grad_type, j, place);
            #pragma unroll
            for (int i = 0; i < QUAD; i++) {
                double x = static_cast<double>(g[i]);
                double fisher = x * x * move.k[0];
                if (!move.flag) f[i] = static_cast<C>(move.k[2] * static_cast<double>(f[i]) + move.k[3] * fisher);
                else if (fisher >= move.k[1]) f[i] = C(1);
            }
            store_state(f, io.slots[IMPORTANCE], j, place);
        }
    }
}

template <class Storage> __device__ inline void weigh(const Job& job) {
    for (uint32_t p = blockIdx.x; p < job.piece_count; p += gridDim.x) {
        const Piece& piece = job.pieces[p];
        const Move& move = job.moves[piece.tensor];
        if (move.skip) continue;
        TPGM_IN_COMPUTE_TYPE(Storage, job.tensors[piece.tensor], C, (weigh_piece<Storage, C>(job, move, piece)));
    }
}

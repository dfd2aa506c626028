// The phase that writes: the rule, norms of what came out, and pulling back. What a constraint does is a few numbers in
// `Move`, the same for all elements of a tensor; branches on them are taken by whole blocks, so there is one kernel per rule
// and compute type, and tensors under different constraints share a launch.
#pragma once

#include "decide.cuh"
#include "queue.cuh"
#include "rules.cuh"
#include "settle.cuh"

// 0 for 0.
template <class C> __device__ inline C sign(C x) { return x > C(0) ? C(1) : x < C(0) ? C(-1) : C(0); }

// The per-element rule for normalization scales: limits `w / s - a / s0` to `[-radius, radius]`, `s = sqrt(var + 1e-6)`.
// Without variances `s = s0 = 1`. Returns how many elements were limited.
template <class Storage, class C>
__device__ inline uint32_t limit_scale(const Operands& io, int j, const Place& place, C radius, C (&w)[QUAD],
                                       const C (&a)[QUAD]) {
    C now[QUAD] = {}, before[QUAD] = {};
    if (io.variance) {
        Storage::load_quad(now, io.variance, io.variance_type, j, place);
        Storage::Anchors::load_quad(before, io.anchor_variance, io.anchor_variance_type, j, place);
    }
    uint32_t limited = 0;
    for (int i = 0; i < QUAD; i++) {
        C s = io.variance ? sqrt(now[i] + static_cast<C>(1e-6)) : C(1);
        C s0 = io.variance ? sqrt(before[i] + static_cast<C>(1e-6)) : C(1);
        C home = a[i] / s0, t = w[i] / s - home;
        if (fabs(t) > radius) {
            w[i] = ((t > C(0) ? radius : -radius) + home) * s;
            limited++;
        }
    }
    return limited;
}

// A pull with absolute values or an importance, before the rule. Coupled, it joins the scaled gradient; decoupled, it takes the place
// of the anchor, which nobody asks for any more, until the rule is through: registers are few here. An importance is 4 more bytes
// read per f32 parameter.
template <class C>
__device__ inline void pull_quad(const Move& move, const Operands& io, int j, const Place& place, const C (&w)[QUAD], C (&g)[QUAD],
                                 C (&a)[QUAD]) {
    C f[QUAD];
    #pragma unroll
    for (int i = 0; i < QUAD; i++) f[i] = C(1);
    if (io.slots[IMPORTANCE]) load_state(f, io.slots[IMPORTANCE], j, place);
    #pragma unroll
    for (int i = 0; i < QUAD; i++) {
        C d = w[i] - a[i];
        C to_anchor = static_cast<C>(move.anchor_l2) * d + static_cast<C>(move.anchor_l1) * sign(d);
        C to_zero = static_cast<C>(move.zero_l2) * w[i] + static_cast<C>(move.zero_l1) * sign(w[i]);
        C pulled = f[i] * (to_anchor + to_zero);
        if (move.terms == 1 + COUPLED) g[i] = static_cast<C>(move.term_scale) * g[i] + pulled;
        else a[i] = pulled;
    }
}

// Writes new weights: to the master, if there is one, and rounded to the weights.
template <class Storage, class C>
__device__ inline void store_weights(const Tensor& tensor, const Operands& io, const Place& place, const Tile<C>& w) {
    if (Storage::HALF && io.slots[MASTER]) store_as<false>(at<float>(io.slots[MASTER]) + place.start, w, place);
    store<Storage, false>(w, io.weight, tensor.type, place);
}

// Bytes per f32 parameter: AdamW 16 read and 12 written, SGD with momentum 12 and 8; an anchor 4 more read; a displacement
// that is kept 4 more written. Holding reads 8, and writes 4 where it pulls back. Rows that are whole stay in registers from
// the rule to the store.
template <class Storage, class C, class Rule>
__device__ inline void advance_piece(const Job& job, uint32_t t, const Move& move, const Piece& piece) {
    __shared__ NormStats stats;
    __shared__ uint32_t limited;
    const Tensor& tensor = job.tensors[t];
    const Operands& io = job.operands[t];
    bool ruled = Rule::MOVES && move.rule != HOLD;
    bool anchored = move.norm != NO_NORM || move.keep_before || move.pull_grad != 0.0 || move.lr_pull != 0.0 ||
                    move.scale_radius > 0.0 || move.anchor_l2 != 0.0 || move.anchor_l1 != 0.0;
    bool fills = Storage::HALF && io.slots[MASTER] != 0 && move.fresh_master;
    Rule rule(move, io);
    Rounds rounds(tensor, piece);
    if (threadIdx.x == 0) {
        reset(stats);
        limited = 0;
    }
    __syncthreads();
    for (uint32_t round = 0; round < rounds.count(); round++) {
        Place place = rounds.place(round);
        Tile<C> w, a;
        load_source<Storage>(w, fills ? 0 : io.slots[MASTER], io.weight, tensor.type, place);
        load_anchor<Storage>(a, anchored ? io.anchor : 0, io.anchor_type, place);
        if (ruled) {
            #pragma unroll
            for (int j = 0; j < QUADS; j++) {
                C g[QUAD];
                Storage::load_quad(g, io.grad, io.grad_type, j, place);
                if (move.keep_before) {
                    C d[QUAD];
                    #pragma unroll
                    for (int i = 0; i < QUAD; i++) d[i] = w.x[j][i] - a.x[j][i];
                    store_state(d, io.slots[DISPLACEMENT], j, place);
                }
                if (move.terms) pull_quad(move, io, j, place, w.x[j], g, a.x[j]);
                rule.step(j, place, w.x[j], g, a.x[j]);
                if (move.terms == 1 + DECOUPLED) {
                    #pragma unroll
                    for (int i = 0; i < QUAD; i++) w.x[j][i] = w.x[j][i] - static_cast<C>(move.term_scale) * a.x[j][i];
                }
                // With an epsilon of 0 the rule makes NaN of the zeros beyond the row.
                #pragma unroll
                for (int i = 0; i < QUAD; i++) {
                    if (place.quad(j) + i >= place.len) w.x[j][i] = C(0);
                }
            }
        }
        if (move.scale_radius > 0.0) {
            uint32_t n = 0;
            #pragma unroll
            for (int j = 0; j < QUADS; j++) {
                n += limit_scale<Storage>(io, j, place, static_cast<C>(move.scale_radius), w.x[j], a.x[j]);
            }
            if (n) atomicAdd(&limited, n);
        }
        if (move.keep_after) {
            Tile<C> d = displacement(w, a);
            store_as<true>(at<C>(io.slots[DISPLACEMENT]) + place.start, d, place);
        }
        C ratio = C(1);
        if (move.norm != NO_NORM) {
            double sum = sum_of_group(sum_of_norm<Rule::MOVES || !Storage::HALF>(w, a, move.norm), place.width);
            if (place.len > 0 && tensor.parts > 1) {
                if (place.lane == 0) job.parts[piece.part] = sum;
            } else if (place.len > 0) {
                double norm = finished(move.norm, sum);
                if (!move.deferred && norm >= move.pulls_from) ratio = ratio_of<C>(move.pull, norm);
                if (ratio != C(1)) pull_back(w, a, ratio);
                if (place.lane == 0) {
                    job.norms[tensor.first_unit + place.unit] = norm;
                    if (move.row_scale) {
                        at<double>(io.slots[ROW_SCALE])[place.unit] = row_scale_of(move.row_scale, move.pull, norm);
                    }
                    add(stats, norm, static_cast<double>(ratio));
                }
            }
        }
        if (ruled || fills || move.scale_radius > 0.0 || ratio != C(1)) store_weights<Storage>(tensor, io, place, w);
    }
    __syncthreads();
    if (threadIdx.x == 0 && move.norm != NO_NORM && tensor.parts == 1) push(job.progress[t], stats);
    if (threadIdx.x == 0 && limited) {
        atomicAdd(reinterpret_cast<unsigned long long*>(&job.progress[t].pulled), static_cast<unsigned long long>(limited));
    }
}

// The second pass of units that had to wait. Reads 8 and writes 4 bytes per f32 parameter where it pulls back.
template <class Storage, class C>
__device__ inline void pull_piece(const Job& job, uint32_t t, const Move& move, const Piece& piece) {
    const Tensor& tensor = job.tensors[t];
    const Operands& io = job.operands[t];
    Rounds rounds(tensor, piece);
    for (uint32_t round = 0; round < rounds.count(); round++) {
        Place place = rounds.place(round);
        if (place.len == 0) continue;
        double norm = job.norms[tensor.first_unit + place.unit];
        C ratio = ratio_of<C>(move.pull, norm);
        if (ratio == C(1) || !(norm < move.waited_below)) continue;
        Tile<C> w, a;
        load_source<Storage>(w, io.slots[MASTER], io.weight, tensor.type, place);
        load_anchor<Storage>(a, io.anchor, io.anchor_type, place);
        pull_back(w, a, ratio);
        store_weights<Storage>(tensor, io, place, w);
    }
}

// Items of the queue of a step (`Rule` moves) or of a projection (`Rule` is `Hold`).
template <class Storage, template <class> class Rule> struct MoveWork {
    static constexpr bool PROJECTS = !Rule<float>::MOVES;

    // Copies what the tensor does to shared memory, where it costs no registers. A projection on its own has no deciding
    // phase: what it does follows from the scalars, which nobody writes before the tensor is settled.
    __device__ static void look_up(const Job& job, uint32_t t, Move& move) {
        if (PROJECTS) {
            if (threadIdx.x == 0) move = projection_of(job.tensors[t], job.scalars[t]);
        } else {
            const uint32_t* from = reinterpret_cast<const uint32_t*>(&job.moves[t]);
            uint32_t* to = reinterpret_cast<uint32_t*>(&move);
            for (uint32_t i = threadIdx.x; i < sizeof(Move) / sizeof(uint32_t); i += THREADS) to[i] = from[i];
        }
        __syncthreads();
    }

    __device__ static void advance(const Job& job, const Item& item) {
        __shared__ Move move;
        look_up(job, item.tensor, move);
        if (move.skip) return;
        const Piece& piece = job.pieces[item.first_piece];
        TPGM_IN_COMPUTE_TYPE(Storage, job.tensors[item.tensor], C, (advance_piece<Storage, C, Rule<C>>(job, item.tensor, move, piece)));
    }

    __device__ static void settle(const Job& job, uint32_t t) {
        if (PROJECTS && threadIdx.x == 0) {
            job.moves[t] = projection_of(job.tensors[t], job.scalars[t]);
            if (!job.moves[t].skip) job.scalars[t].master_filled = 1.0;
        }
        __syncthreads();
        if (!job.moves[t].skip) settle_move(job, t);
    }

    __device__ static void pull(const Job& job, const Item& item) {
        const Move& move = job.moves[item.tensor];
        if (move.skip || !move.deferred) return;
        for (uint32_t p = 0; p < item.pieces; p++) {
            const Piece& piece = job.pieces[item.first_piece + p];
            TPGM_IN_COMPUTE_TYPE(Storage, job.tensors[item.tensor], C, (pull_piece<Storage, C>(job, item.tensor, move, piece)));
        }
    }
};

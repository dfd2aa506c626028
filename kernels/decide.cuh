// From sums to a few numbers per tensor: how it will move. One thread per tensor. `tpgm_core::cpu::decide` is the same in
// Rust.
#pragma once

#include "measure.cuh"

__device__ inline void decide_rule(const Job& job, const Settings& set, double clip, double t, Move& move) {
    double lr = job.lr * set.lr_scale;
    move.rule = job.rule;
    move.clip = clip;
    if (job.coupled) move.decay = set.weight_decay;
    else move.lr_decay = lr * set.weight_decay;
    if (job.rule == ADAMW) {
        move.flag = job.flag;
        move.k[0] = job.beta1;
        move.k[1] = 1.0 - job.beta1;
        move.k[2] = job.beta2;
        move.k[3] = 1.0 - job.beta2;
        move.k[4] = lr / (1.0 - pow(job.beta1, t));
        move.k[5] = 1.0 / sqrt(1.0 - pow(job.beta2, t));
        move.k[6] = job.eps;
    } else {
        bool momentum = job.momentum > 0.0, nesterov = job.flag != 0;
        move.flag = momentum;
        move.k[0] = t == 1.0 ? 0.0 : job.momentum;
        move.k[1] = t == 1.0 ? 1.0 : 1.0 - job.dampening;
        move.k[2] = !momentum || nesterov ? lr : 0.0;
        move.k[3] = !momentum ? 0.0 : nesterov ? lr * job.momentum : lr;
    }
}

// What TPGM's projection does, in a step or on its own. Leaves the scalars alone: settling writes them.
__device__ inline void decide_projection(const Tensor& tensor, const Scalars& scalars, Move& move) {
    double radius = rounded(tensor, fmax(scalars.radius, RADIUS_FLOOR));
    move.norm = tensor.settings.norm;
    move.pull = {radius, 0, LEARNED, 0};
    move.deferred = tensor.parts > 1 || scalars.initialized == 0.0;
    // Rows as long as the radius do not depend on where it will be clipped; see `settle.cuh`.
    move.pulls_from = radius;
}

__device__ inline Move standing(const Scalars& scalars) {
    Move move = {};
    move.waited_below = __longlong_as_double(BITS_OF_INFINITY);
    move.fresh_master = scalars.master_filled == 0.0;
    return move;
}

// The move of a tensor in a projection on its own.
__device__ inline Move projection_of(const Tensor& tensor, const Scalars& scalars) {
    Move move = standing(scalars);
    if (tensor.settings.constraint == TPGM) decide_projection(tensor, scalars, move);
    else move.skip = 1;
    return move;
}

// Squares alone, all elements alike, are weight decay and what L2-SP does.
__device__ inline void decide_pull(const Job& job, const Settings& set, Move& move) {
    double lr = job.lr * set.lr_scale;
    bool coupled = set.variant == COUPLED;
    if (set.importance != ALIKE || set.anchor_l1 > 0.0 || set.zero_l1 > 0.0) {
        move.anchor_l2 = set.anchor_l2;
        move.anchor_l1 = set.anchor_l1;
        move.zero_l2 = set.zero_l2;
        move.zero_l1 = set.zero_l1;
        move.terms = 1 + set.variant;
        move.term_scale = coupled ? move.clip : lr;
        // The pull joins a gradient that is scaled already.
        if (coupled) move.clip = 1.0;
    } else if (coupled) {
        move.pull_grad = set.anchor_l2;
        move.decay += set.zero_l2;
    } else {
        move.lr_pull = lr * set.anchor_l2;
        move.lr_decay += lr * set.zero_l2;
    }
}

// How the importance of a pull is taken from a gradient: `k` holds the factor on its square, the threshold of a gate, and the
// shares of old and new.
__device__ inline Move decide_importance(const Tensor& tensor, Scalars& scalars, const Sums& sums, bool has_grad) {
    const Settings& set = tensor.settings;
    Move move = standing(scalars);
    if (set.importance == ALIKE || !has_grad || tensor.units == 0) {
        move.skip = 1;
        return move;
    }
    // A gradient that is all zero says that nothing is important.
    move.k[0] = sums.square == 0.0 ? 0.0 : static_cast<double>(tensor.numel) / sums.square;
    move.k[1] = set.importance_rate;
    bool averages = set.importance == RUNNING && scalars.initialized != 0.0;
    move.k[2] = averages ? set.importance_rate : 0.0;
    move.k[3] = averages ? 1.0 - set.importance_rate : 1.0;
    move.flag = set.importance == GATE;
    scalars.initialized = 1.0;
    return move;
}

__device__ inline Move decide_move(const Job& job, const Tensor& tensor, Scalars& scalars, const Sums& sums, double clip,
                                   bool has_grad) {
    const Settings& set = tensor.settings;
    Move move = standing(scalars);
    if (tensor.units == 0 || !(has_grad || set.constraint == TPGM)) {
        move.skip = 1;
        return move;
    }
    // Whatever moves a tensor runs over its whole master.
    scalars.master_filled = 1.0;
    if (has_grad) {
        scalars.step += 1.0;
        decide_rule(job, set, clip, scalars.step, move);
    }
    bool cut = tensor.parts > 1;
    switch (set.constraint) {
        case FIXED_RADIUS:
            move.norm = set.norm;
            move.pull = {set.strength, 0, FIXED, 0};
            move.deferred = cut;
            break;
        case FIXED_SCALE: move.scale_radius = set.strength; break;
        case L2_SP:
            if (set.variant == COUPLED) move.pull_grad = set.strength;
            else move.lr_pull = job.lr * set.lr_scale * set.strength;
            break;
        case PULL_TERMS: decide_pull(job, set, move); break;
        case TPGM:
            if (!job.defer) {
                decide_projection(tensor, scalars, move);
                scalars.radius = move.pull.radius;
            }
            break;
        case FTP: {
            double lowest = ftp_floor(set);
            if (scalars.step == 1.0) {
                scalars.radius = lowest;
            } else {
                scalars.radius_grad_raw = clip * sums.dot;
                double k = scalars.radius_grad_raw > 0.0 ? set.strength : 1.0;
                adam(scalars, set, k * scalars.radius_grad_raw, scalars.step);
                scalars.radius = fmax(scalars.radius, lowest);
            }
            scalars.radius = rounded(tensor, scalars.radius);
            move.norm = MARS;
            move.pull = {scalars.radius, 0, LEARNED, 0};
            move.keep_after = set.variant == EXACT;
            move.row_scale = 1 + set.variant;
            move.deferred = cut;
            break;
        }
        case SPD:
            scalars.alignment = -clip * sums.dot;
            if (scalars.alignment < 0.0) {
                move.norm = L2;
                move.pull = {set.strength, sqrt(sums.displacement), SELECTIVE, 0};
                move.deferred = cut;
            } else {
                scalars.norm = 0.0;
                scalars.ratio = 1.0;
                scalars.fire_rate = 0.0;
            }
            break;
        case DIGRAP: {
            double grad_norm = clip * sqrt(sums.square);
            if (scalars.step > 1.0) {
                double dot = clip * sums.previous * scalars.previous_coefficient;
                double previous = fabs(scalars.previous_coefficient) * scalars.previous_norm;
                scalars.radius_grad_raw = dot / (grad_norm * previous + 1e-8);
                adam(scalars, set, scalars.radius_grad_raw, scalars.step);
                scalars.radius = fmin(fmax(scalars.radius, 0.0), 1.0);
            }
            double dot = clip * sums.dot;
            double coefficient = sums.displacement < 1e-30 ? 0.0 : dot / sums.displacement;
            bool projects = set.variant == CONFLICT ? dot <= 0.0 : dot > 0.0;
            if (projects) move.pull_grad = -scalars.radius * coefficient;
            scalars.previous_coefficient = coefficient;
            scalars.previous_norm = sqrt(sums.displacement);
            scalars.norm = scalars.previous_norm;
            scalars.alignment = -dot;
            move.keep_before = 1;
            break;
        }
        default: break;
    }
    return move;
}

// The measuring phase of a step.
struct StepPhase {
    __device__ static uint32_t wanted(const Settings& set, const Scalars& scalars) { return sums_wanted(set, scalars); }

    __device__ static bool measures(const Job& job, uint32_t t) {
        if (job.operands[t].grad == 0) return false;
        if (job.importance) return job.tensors[t].settings.importance != ALIKE;
        bool trusted = job.trusted && job.max_grad_norm == 0.0;
        return !trusted || wanted(job.tensors[t].settings, job.scalars[t]) != CHECK;
    }

    // Nothing is changed, and the moving phase does not start, if a gradient is not finite.
    __device__ TPGM_NOINLINE static void decide(const Job& job) {
        Status status = examine(job);
        if (threadIdx.x == 0) *job.status = status;
        if (status.refused) return;
        double clip = job.grad_scale;
        if (job.max_grad_norm > 0.0) clip *= fmin(job.max_grad_norm / (status.grad_norm + 1e-6), 1.0);
        for (uint32_t t = threadIdx.x; t < job.tensor_count; t += THREADS) {
            const Tensor& tensor = job.tensors[t];
            bool measured = tensor.spans > 0 && job.span_count > 0;
            Sums sums = measured ? job.tensor_sums[t] : Sums{};
            bool has_grad = job.operands[t].grad != 0;
            job.moves[t] = job.importance ? decide_importance(tensor, job.scalars[t], sums, has_grad)
                                          : decide_move(job, tensor, job.scalars[t], sums, clip, has_grad);
        }
    }
};

// The gradient of every TPGM radius, and Adam on all of them.
struct RadiusPhase {
    __device__ static uint32_t wanted(const Settings&, const Scalars&) { return RADIUS_GRADIENT; }

    __device__ static bool measures(const Job& job, uint32_t t) {
        return job.tensors[t].settings.constraint == TPGM && job.operands[t].grad != 0;
    }

    __device__ TPGM_NOINLINE static void decide(const Job& job) {
        Status status = examine(job);
        if (threadIdx.x == 0) *job.status = status;
        if (status.refused) return;
        for (uint32_t t = threadIdx.x; t < job.tensor_count; t += THREADS) {
            const Tensor& tensor = job.tensors[t];
            if (tensor.settings.constraint != TPGM) continue;
            Scalars& scalars = job.scalars[t];
            double grad = tensor.spans > 0 ? job.tensor_sums[t].dot : 0.0;
            scalars.radius_grad_raw = rounded(tensor, grad);
            scalars.radius_step += 1.0;
            adam(scalars, tensor.settings, scalars.radius_grad_raw, scalars.radius_step);
        }
    }
};

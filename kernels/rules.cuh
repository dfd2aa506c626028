// Rules: the base optimizer, on a quad of elements. A rule is a template argument of the moving phase, which knows nothing
// of it but these members.
#pragma once

#include "tile.cuh"

// How gradient, decay and anchor enter a step, in compute type.
template <class C> struct Mix {
    C clip, decay, pull_grad, lr_decay, lr_pull;
    // In shared memory: the terms of a pull are rare, and cost no registers there.
    const Move& move;

    __device__ explicit Mix(const Move& move)
        : clip(static_cast<C>(move.clip)), decay(static_cast<C>(move.decay)), pull_grad(static_cast<C>(move.pull_grad)),
          lr_decay(static_cast<C>(move.lr_decay)), lr_pull(static_cast<C>(move.lr_pull)), move(move) {}

    // The gradient as the rule sees it; `f` is the importance.
    __device__ C grad(C w, C g, C a, C f) const {
        C x = clip * g + decay * w + pull_grad * (w - a);
        return move.to_grad != 0.0 ? x + static_cast<C>(move.to_grad) * terms(w, a, f) : x;
    }
    // What is subtracted from the weight beside the rule's update.
    __device__ C aside(C w, C a, C f) const {
        C x = lr_decay * w + lr_pull * (w - a);
        return move.to_aside != 0.0 ? x + static_cast<C>(move.to_aside) * terms(w, a, f) : x;
    }

  private:
    __device__ static C sign(C x) { return x > C(0) ? C(1) : x < C(0) ? C(-1) : C(0); }

    __device__ C terms(C w, C a, C f) const {
        C d = w - a;
        C to_anchor = static_cast<C>(move.anchor_l2) * d + static_cast<C>(move.anchor_l1) * sign(d);
        C to_zero = static_cast<C>(move.zero_l2) * w + static_cast<C>(move.zero_l1) * sign(w);
        return f * (to_anchor + to_zero);
    }
};

// A quad of the importance of a pull: 4 more bytes read per f32 parameter where there is one.
template <class C> __device__ inline void load_importance(C (&f)[QUAD], uint64_t importance, int j, const Place& place) {
    #pragma unroll
    for (int i = 0; i < QUAD; i++) f[i] = C(1);
    if (importance) load_state(f, importance, j, place);
}

// No rule: the weights are only projected.
template <class C> struct Hold {
    static constexpr bool MOVES = false;
    __device__ Hold(const Move&, const Operands&) {}
    __device__ void step(int, const Place&, C (&)[QUAD], const C (&)[QUAD], const C (&)[QUAD]) const {}
};

// Reads 8 and writes 8 bytes of state per parameter; 4 more each with AMSGrad (f32).
template <class C> struct AdamW {
    static constexpr bool MOVES = true;
    Mix<C> mix;
    C beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, root_scale, eps;
    uint64_t m, v, v_max, importance;

    __device__ AdamW(const Move& move, const Operands& io)
        : mix(move), beta1(static_cast<C>(move.k[0])), one_minus_beta1(static_cast<C>(move.k[1])),
          beta2(static_cast<C>(move.k[2])), one_minus_beta2(static_cast<C>(move.k[3])),
          step_size(static_cast<C>(move.k[4])), root_scale(static_cast<C>(move.k[5])), eps(static_cast<C>(move.k[6])),
          m(io.slots[EXP_AVG]), v(io.slots[EXP_AVG_SQ]), v_max(move.flag ? io.slots[MAX_EXP_AVG_SQ] : 0),
          importance(io.slots[IMPORTANCE]) {}

    __device__ void step(int j, const Place& place, C (&w)[QUAD], const C (&g)[QUAD], const C (&a)[QUAD]) const {
        C first[QUAD], second[QUAD], largest[QUAD] = {}, f[QUAD];
        load_importance(f, importance, j, place);
        load_state(first, m, j, place);
        load_state(second, v, j, place);
        if (v_max) load_state(largest, v_max, j, place);
        #pragma unroll
        for (int i = 0; i < QUAD; i++) {
            C grad = mix.grad(w[i], g[i], a[i], f[i]);
            first[i] = beta1 * first[i] + one_minus_beta1 * grad;
            second[i] = beta2 * second[i] + one_minus_beta2 * grad * grad;
            // Without AMSGrad the largest so far is 0.
            largest[i] = largest[i] > second[i] ? largest[i] : second[i];
            w[i] = w[i] - (step_size * first[i] / (sqrt(largest[i]) * root_scale + eps) + mix.aside(w[i], a[i], f[i]));
        }
        store_state(first, m, j, place);
        store_state(second, v, j, place);
        if (v_max) store_state(largest, v_max, j, place);
    }
};

// Reads 4 and writes 4 bytes of state per parameter with momentum (f32).
template <class C> struct Sgd {
    static constexpr bool MOVES = true;
    Mix<C> mix;
    C keep, take, lr_grad, lr_buf;
    uint64_t buffer, importance;

    __device__ Sgd(const Move& move, const Operands& io)
        : mix(move), keep(static_cast<C>(move.k[0])), take(static_cast<C>(move.k[1])),
          lr_grad(static_cast<C>(move.k[2])), lr_buf(static_cast<C>(move.k[3])),
          buffer(move.flag ? io.slots[MOMENTUM_BUFFER] : 0), importance(io.slots[IMPORTANCE]) {}

    __device__ void step(int j, const Place& place, C (&w)[QUAD], const C (&g)[QUAD], const C (&a)[QUAD]) const {
        C buf[QUAD], f[QUAD];
        load_importance(f, importance, j, place);
        if (buffer) load_state(buf, buffer, j, place);
        #pragma unroll
        for (int i = 0; i < QUAD; i++) {
            C grad = mix.grad(w[i], g[i], a[i], f[i]);
            C update = lr_grad * grad + mix.aside(w[i], a[i], f[i]);
            if (buffer) {
                buf[i] = keep * buf[i] + take * grad;
                update += lr_buf * buf[i];
            }
            w[i] = w[i] - update;
        }
        if (buffer) store_state(buf, buffer, j, place);
    }
};

// Rules: the base optimizer, on a quad of elements. A rule is a template argument of the moving phase, which knows nothing
// of it but these members.
#pragma once

#include "tile.cuh"

// How gradient, decay and anchor enter a step, in compute type.
template <class C> struct Mix {
    C clip, decay, pull_grad, lr_decay, lr_pull;

    __device__ explicit Mix(const Move& move)
        : clip(static_cast<C>(move.clip)), decay(static_cast<C>(move.decay)), pull_grad(static_cast<C>(move.pull_grad)),
          lr_decay(static_cast<C>(move.lr_decay)), lr_pull(static_cast<C>(move.lr_pull)) {}

    // The gradient as the rule sees it.
    __device__ C grad(C w, C g, C a) const { return clip * g + decay * w + pull_grad * (w - a); }
    // What is subtracted from the weight beside the rule's update.
    __device__ C aside(C w, C a) const { return lr_decay * w + lr_pull * (w - a); }
};

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
    uint64_t m, v, v_max;

    __device__ AdamW(const Move& move, const Operands& io)
        : mix(move), beta1(static_cast<C>(move.k[0])), one_minus_beta1(static_cast<C>(move.k[1])),
          beta2(static_cast<C>(move.k[2])), one_minus_beta2(static_cast<C>(move.k[3])),
          step_size(static_cast<C>(move.k[4])), root_scale(static_cast<C>(move.k[5])), eps(static_cast<C>(move.k[6])),
          m(io.slots[EXP_AVG]), v(io.slots[EXP_AVG_SQ]), v_max(move.flag ? io.slots[MAX_EXP_AVG_SQ] : 0) {}

    __device__ void step(int j, const Place& place, C (&w)[QUAD], const C (&g)[QUAD], const C (&a)[QUAD]) const {
        C first[QUAD], second[QUAD], largest[QUAD] = {};
        load_state(first, m, j, place);
        load_state(second, v, j, place);
        if (v_max) load_state(largest, v_max, j, place);
        #pragma unroll
        for (int i = 0; i < QUAD; i++) {
            C grad = mix.grad(w[i], g[i], a[i]);
            first[i] = beta1 * first[i] + one_minus_beta1 * grad;
            second[i] = beta2 * second[i] + one_minus_beta2 * grad * grad;
            // Without AMSGrad the largest so far is 0.
            largest[i] = largest[i] > second[i] ? largest[i] : second[i];
            w[i] = w[i] - (step_size * first[i] / (sqrt(largest[i]) * root_scale + eps) + mix.aside(w[i], a[i]));
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
    uint64_t buffer;

    __device__ Sgd(const Move& move, const Operands& io)
        : mix(move), keep(static_cast<C>(move.k[0])), take(static_cast<C>(move.k[1])),
          lr_grad(static_cast<C>(move.k[2])), lr_buf(static_cast<C>(move.k[3])),
          buffer(move.flag ? io.slots[MOMENTUM_BUFFER] : 0) {}

    __device__ void step(int j, const Place& place, C (&w)[QUAD], const C (&g)[QUAD], const C (&a)[QUAD]) const {
        C buf[QUAD];
        if (buffer) load_state(buf, buffer, j, place);
        #pragma unroll
        for (int i = 0; i < QUAD; i++) {
            C grad = mix.grad(w[i], g[i], a[i]);
            C update = lr_grad * grad + mix.aside(w[i], a[i]);
            if (buffer) {
                buf[i] = keep * buf[i] + take * grad;
                update += lr_buf * buf[i];
            }
            w[i] = w[i] - update;
        }
        if (buffer) store_state(buf, buffer, j, place);
    }
};

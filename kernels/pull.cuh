// How far a displacement is pulled back, given its norm; and the scalars that decide it. In f64, rounded to the compute type
// where the published code computes in it. `tpgm_core::cpu::pull` is the same in Rust.
#pragma once

#include "tile.cuh"

constexpr double RADIUS_FLOOR = 1e-8;

// A value of the tensor's compute type.
__device__ inline double rounded(const Tensor& tensor, double x) {
    return is_double(tensor) ? x : static_cast<double>(static_cast<float>(x));
}

// `radius / (norm + 1e-8)` in compute type: in f32 a norm of 0.25 or more swallows the 1e-8.
template <class C> __device__ inline C share(double radius, double norm) {
    return static_cast<C>(radius) / (static_cast<C>(norm) + static_cast<C>(RADIUS_FLOOR));
}

template <class C> __device__ inline C ratio_of(const Pull& pull, double norm) {
    switch (pull.kind) {
        case FIXED: return norm <= pull.radius ? C(1) : static_cast<C>(pull.radius / norm);
        case LEARNED: {
            // Spelled out, because a NaN has to become 0 as in Rust's `max`.
            C x = share<C>(pull.radius, norm);
            x = x > C(0) ? x : C(0);
            return x < C(1) ? x : C(1);
        }
        case SELECTIVE:
            return norm <= pull.before
                       ? C(1)
                       : static_cast<C>(1.0 - pull.radius * fmin((norm - pull.before) / norm, 1.0));
        default: return C(1);
    }
}

__device__ inline double ratio_in(const Tensor& tensor, const Pull& pull, double norm) {
    return is_double(tensor) ? ratio_of<double>(pull, norm) : static_cast<double>(ratio_of<float>(pull, norm));
}

// One Adam step on the learned scalar, with `t` in the bias correction. Not clipped.
__device__ inline void adam(Scalars& s, const Settings& set, double grad, double t) {
    s.radius_grad = grad;
    s.radius_m = set.adam_beta1 * s.radius_m + (1.0 - set.adam_beta1) * grad;
    s.radius_v = set.adam_beta2 * s.radius_v + (1.0 - set.adam_beta2) * grad * grad;
    double m = s.radius_m / (1.0 - pow(set.adam_beta1, t));
    double v = s.radius_v / (1.0 - pow(set.adam_beta2, t));
    s.radius_unclipped = s.radius - set.adam_lr * m / (sqrt(v) + set.adam_eps);
    s.radius = s.radius_unclipped;
}

// TPGM: the radius starts at half of the smallest norm, and is clipped to `[1e-8, largest norm]`, the upper bound last.
__device__ inline void clip_tpgm(double& radius, double& initialized, const Tensor& tensor, double smallest,
                                 double largest) {
    if (initialized == 0.0) {
        radius = rounded(tensor, smallest) / 2.0;
        initialized = 1.0;
    }
    radius = rounded(tensor, fmin(fmax(radius, RADIUS_FLOOR), rounded(tensor, largest)));
}

// The lowest radius of FTP.
__device__ inline double ftp_floor(const Settings& set) {
    return set.variant == LOW ? set.adam_lr : RADIUS_FLOOR;
}

// FTP: what a row remembers of its norm. `row_scale` is that of `Move`.
__device__ inline double row_scale_of(uint32_t row_scale, const Pull& pull, double norm) {
    norm += RADIUS_FLOOR;
    return 1.0 / (row_scale == 1 + LOW && pull.kind == LEARNED ? fmin(norm, pull.radius) : norm);
}

__device__ inline double finished(uint32_t norm, double sum) { return norm == L2 ? sqrt(sum) : sum; }

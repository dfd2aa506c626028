// The kernels themselves. A step of the optimizer is two launches: `measure_*` reads the gradients and decides, `adamw_*` or
// `sgd_*` moves the weights. `project_*` is TPGM's projection on its own; `remember_*`, `write_*` and `radii_*` are its
// update; `blend_*` serves moving averages and interpolation; `weigh_*` takes the importance of pulls from gradients that
// `measure_*` has looked at.
//
// A kernel file says `TPGM_KERNELS(suffix, Storage)` for all kernels of one storage of the operands. `cargo xtask ptx`
// compiles it once per kernel, with `TPGM_ONLY` set to the kernel's name without suffix: a module holds one kernel, so that a
// call loads those that it launches and no others.
#pragma once

#include "advance.cuh"
#include "radii.cuh"

#define TPGM_KERNEL_measure(suffix, Storage)                                                        \
    TPGM_KERNEL measure_##suffix(const Job* job) { measure<Storage, StepPhase>(*job); }             \
    TPGM_REGISTER(measure_##suffix)

#define TPGM_KERNEL_adamw(suffix, Storage)                                                          \
    TPGM_KERNEL adamw_##suffix(const Job* job) {                                                    \
        if (!job->status->refused) run_queue<MoveWork<Storage, AdamW>>(*job);                       \
    }                                                                                               \
    TPGM_REGISTER(adamw_##suffix)

#define TPGM_KERNEL_sgd(suffix, Storage)                                                            \
    TPGM_KERNEL sgd_##suffix(const Job* job) {                                                      \
        if (!job->status->refused) run_queue<MoveWork<Storage, Sgd>>(*job);                         \
    }                                                                                               \
    TPGM_REGISTER(sgd_##suffix)

#define TPGM_KERNEL_project(suffix, Storage)                                                        \
    TPGM_KERNEL project_##suffix(const Job* job) { run_queue<MoveWork<Storage, Hold>>(*job); }      \
    TPGM_REGISTER(project_##suffix)

#define TPGM_KERNEL_remember(suffix, Storage)                                                       \
    TPGM_COPY_KERNEL remember_##suffix(const Job* job) { remember<Storage>(*job); }                 \
    TPGM_REGISTER(remember_##suffix)

#define TPGM_KERNEL_write(suffix, Storage)                                                          \
    TPGM_COPY_KERNEL write_##suffix(const Job* job) { run_queue<WriteWork<Storage>>(*job); }        \
    TPGM_REGISTER(write_##suffix)

#define TPGM_KERNEL_radii(suffix, Storage)                                                          \
    TPGM_KERNEL radii_##suffix(const Job* job) { measure<Storage, RadiusPhase>(*job); }             \
    TPGM_REGISTER(radii_##suffix)

#define TPGM_KERNEL_blend(suffix, Storage)                                                          \
    TPGM_KERNEL blend_##suffix(const Job* job) { blend<Storage>(*job); }                            \
    TPGM_REGISTER(blend_##suffix)

#define TPGM_KERNEL_weigh(suffix, Storage)                                                          \
    TPGM_KERNEL weigh_##suffix(const Job* job) {                                                    \
        if (!job->status->refused) weigh<Storage>(*job);                                            \
    }                                                                                               \
    TPGM_REGISTER(weigh_##suffix)

#ifdef TPGM_ONLY
#define TPGM_PASTE(a, b) a##b
#define TPGM_NAMED(name) TPGM_PASTE(TPGM_KERNEL_, name)
#define TPGM_KERNELS(suffix, Storage) TPGM_NAMED(TPGM_ONLY)(suffix, Storage)
#else
#define TPGM_KERNELS(suffix, Storage)                                                               \
    TPGM_KERNEL_measure(suffix, Storage)                                                            \
    TPGM_KERNEL_adamw(suffix, Storage)                                                              \
    TPGM_KERNEL_sgd(suffix, Storage)                                                                \
    TPGM_KERNEL_project(suffix, Storage)                                                            \
    TPGM_KERNEL_remember(suffix, Storage)                                                           \
    TPGM_KERNEL_write(suffix, Storage)                                                              \
    TPGM_KERNEL_radii(suffix, Storage)                                                              \
    TPGM_KERNEL_blend(suffix, Storage)                                                              \
    TPGM_KERNEL_weigh(suffix, Storage)
#endif

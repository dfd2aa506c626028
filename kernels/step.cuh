// A step of the optimizer in two launches: `measure_*` reads the gradients and decides, `adamw_*` and `sgd_*` move the
// weights. `project_*` is TPGM's projection on its own, in one launch.
#pragma once

#include "advance.cuh"

#define TPGM_STEP_KERNELS(suffix, Storage)                                                          \
    TPGM_KERNEL measure_##suffix(const Job* job) { measure<Storage, StepPhase>(*job); }             \
    TPGM_REGISTER(measure_##suffix)                                                                 \
    TPGM_KERNEL adamw_##suffix(const Job* job) {                                                    \
        if (!job->status->refused) run_queue<MoveWork<Storage, AdamW>>(*job);                       \
    }                                                                                               \
    TPGM_REGISTER(adamw_##suffix)                                                                   \
    TPGM_KERNEL sgd_##suffix(const Job* job) {                                                      \
        if (!job->status->refused) run_queue<MoveWork<Storage, Sgd>>(*job);                         \
    }                                                                                               \
    TPGM_REGISTER(sgd_##suffix)                                                                     \
    TPGM_KERNEL project_##suffix(const Job* job) { run_queue<MoveWork<Storage, Hold>>(*job); }      \
    TPGM_REGISTER(project_##suffix)

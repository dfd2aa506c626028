// All kernels, for sets whose weights, gradients and anchors are all bf16.
#include "radii.cuh"
#include "step.cuh"

TPGM_STEP_KERNELS(bf16, Same<Bfloat>)
TPGM_RADIUS_KERNELS(bf16, Same<Bfloat>)

// All kernels, for sets whose weights, gradients and anchors are all f16.
#include "radii.cuh"
#include "step.cuh"

TPGM_STEP_KERNELS(f16, Same<Half>)
TPGM_RADIUS_KERNELS(f16, Same<Half>)

// All kernels, for sets whose weights, gradients and anchors are all f32.
#include "radii.cuh"
#include "step.cuh"

TPGM_STEP_KERNELS(f32, Same<float>)
TPGM_RADIUS_KERNELS(f32, Same<float>)

// All kernels, for sets whose weights, gradients and anchors are of any types, mixed or f64.
#define TPGM_ONE_BLOCK
#include "radii.cuh"
#include "step.cuh"

TPGM_STEP_KERNELS(any, Any)
TPGM_RADIUS_KERNELS(any, Any)

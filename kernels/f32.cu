// For sets whose weights, gradients and anchors are all f32.
#include "kernels.cuh"

TPGM_KERNELS(f32, Stored<float>)

// For sets whose weights, gradients and anchors are all f16.
#include "kernels.cuh"

TPGM_KERNELS(f16, Stored<Half>)

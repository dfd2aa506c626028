// For sets whose weights, gradients and anchors are of any types, mixed in other ways or f64.
#define TPGM_BLOCKS 1
#include "kernels.cuh"

TPGM_KERNELS(any, Any)

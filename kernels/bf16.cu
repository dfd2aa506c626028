// For sets whose weights, gradients and anchors are all bf16.
#define TPGM_BLOCKS 2
#include "kernels.cuh"

TPGM_KERNELS(bf16, Stored<Bfloat>)

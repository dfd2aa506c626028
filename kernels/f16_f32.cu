// For sets whose weights and gradients are f16 and whose anchors are f32, as after loading from an f32 checkpoint; and for
// f32 averages of f16 weights.
#define TPGM_COPY_BLOCKS 2
#include "kernels.cuh"

using HalfFromFloat = Stored<Half, float>;
TPGM_KERNELS(f16_f32, HalfFromFloat)

// For sets whose weights and gradients are bf16 and whose anchors are f32, as after loading from an f32 checkpoint; and for
// f32 averages of bf16 weights.
#define TPGM_COPY_BLOCKS 2
#include "kernels.cuh"

using BfloatFromFloat = Stored<Bfloat, float>;
TPGM_KERNELS(bf16_f32, BfloatFromFloat)

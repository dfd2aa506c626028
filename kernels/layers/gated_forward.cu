// Products with an activated gate: SwiGLU and its like.
#define TPGM_BLOCKS 4
#include "layers/activation.cuh"

TPGM_LAYER(gated_forward, GatedTable, gated_forward)

// The gradient of products with an activated gate.
#define TPGM_BLOCKS 2
#include "layers/activation.cuh"

TPGM_LAYER(gated_backward, GatedTable, gated_backward)

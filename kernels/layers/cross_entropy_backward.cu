// The gradient of cross-entropy.
#define TPGM_BLOCKS 3
#include "layers/cross_entropy.cuh"

TPGM_LAYER(cross_entropy_backward, CrossEntropyTable, cross_entropy_backward)

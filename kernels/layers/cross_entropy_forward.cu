// Cross-entropy: a loss per row; `cross_entropy_mean` comes after it.
#define TPGM_BLOCKS 3
#include "layers/cross_entropy.cuh"

TPGM_LAYER(cross_entropy_forward, CrossEntropyTable, cross_entropy_forward)

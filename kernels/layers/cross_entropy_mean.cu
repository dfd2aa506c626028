// The sum and the mean of the losses of cross-entropy, which are f32 whatever the logits are: one module for all.
#define TPGM_BLOCKS 4
#include "layers/cross_entropy.cuh"

TPGM_LAYER_f32(cross_entropy_mean, CrossEntropyTable, cross_entropy_mean)

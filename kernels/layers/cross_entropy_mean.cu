// The sum and the mean of the losses of cross-entropy.
#define TPGM_BLOCKS 4
#include "layers/cross_entropy.cuh"

TPGM_LAYER(cross_entropy_mean, CrossEntropyTable, cross_entropy_mean)

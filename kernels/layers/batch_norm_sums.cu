// The sums over channels of batch normalization, forward and backward.
#define TPGM_BLOCKS 4
#include "layers/batch_norm.cuh"

TPGM_LAYER(batch_norm_sums, BatchNormTable, batch_norm_sums)

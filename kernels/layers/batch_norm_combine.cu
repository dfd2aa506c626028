// What follows from the sums of batch normalization; `batch_norm_sums` comes before it.
#define TPGM_BLOCKS 4
#include "layers/batch_norm.cuh"

TPGM_LAYER(batch_norm_combine, BatchNormTable, batch_norm_combine)

// Batch normalization of images, and the gradient of images; `batch_norm_combine` comes before it.
#define TPGM_BLOCKS 4
#include "layers/batch_norm.cuh"

TPGM_LAYER(batch_norm_apply, BatchNormTable, batch_norm_apply)

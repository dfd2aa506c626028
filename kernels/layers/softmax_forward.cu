// Softmax and its logarithm.
#define TPGM_BLOCKS 3
#include "layers/softmax.cuh"

TPGM_LAYER(softmax_forward, SoftmaxTable, softmax_forward)

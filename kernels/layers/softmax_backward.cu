// The gradient of softmax and its logarithm.
#define TPGM_BLOCKS 2
#include "layers/softmax.cuh"

TPGM_LAYER(softmax_backward, SoftmaxGradientTable, softmax_backward)

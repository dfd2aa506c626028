// The gradient of layer norm and RMS norm; `column_sums` comes after it.
#define TPGM_BLOCKS 2
#include "layers/norm.cuh"

TPGM_LAYER(norm_backward, NormGradientTable, norm_backward)

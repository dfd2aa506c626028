// The gradient of activations and of a bias; `column_sums` comes after it.
#define TPGM_BLOCKS 3
#include "layers/activation.cuh"

TPGM_LAYER(activation_backward, ActivationTable, activation_backward)

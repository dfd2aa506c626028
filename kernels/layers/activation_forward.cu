// Activations, with a bias in front.
#define TPGM_BLOCKS 4
#include "layers/activation.cuh"

TPGM_LAYER(activation_forward, ActivationTable, activation_forward)

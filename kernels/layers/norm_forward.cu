// Layer norm and RMS norm.
#define TPGM_BLOCKS 3
#include "layers/norm.cuh"

TPGM_LAYER(norm_forward, NormTable, norm_forward)

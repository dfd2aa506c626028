// Dropout, and its gradient.
#define TPGM_BLOCKS 4
#include "layers/dropout.cuh"

TPGM_LAYER(dropout, DropoutTable, dropout)

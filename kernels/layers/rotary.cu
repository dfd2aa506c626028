// Rotary position embedding, and back.
#define TPGM_BLOCKS 4
#include "layers/rotary.cuh"

TPGM_LAYER(rotary, RotaryTable, rotary)

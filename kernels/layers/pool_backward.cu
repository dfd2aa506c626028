// The gradient of the maximum over windows.
#define TPGM_BLOCKS 4
#include "layers/pool.cuh"

TPGM_LAYER(pool_backward, PoolTable, pool_backward)

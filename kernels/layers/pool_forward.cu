// Maximum over windows.
#define TPGM_BLOCKS 4
#include "layers/pool.cuh"

TPGM_LAYER(pool_forward, PoolTable, pool_forward)

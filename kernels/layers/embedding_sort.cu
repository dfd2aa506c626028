// Places sorted by the row of an embedding that they took: no elements, one module for all.
#define TPGM_BLOCKS 4
#include "layers/embedding.cuh"

TPGM_LAYER_f32(embedding_sort, EmbeddingSortTable, embedding_sort)

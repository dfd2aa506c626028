// The gradient of an embedding; `embedding_sort` comes before it.
#define TPGM_BLOCKS 3
#include "layers/embedding.cuh"

TPGM_LAYER(embedding_backward, EmbeddingGradientTable, embedding_backward)

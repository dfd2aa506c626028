// The second launch of every gradient of a weight or bias: adds the sums of groups of rows up.
#define TPGM_BLOCKS 4
#include "layers/columns.cuh"

TPGM_LAYER(column_sums, ColumnSumsTable, add_columns)

// Whole numbers for each row, of any of candle's integer types: classes of rows, and rows of an embedding.
#pragma once

#include "layers/layer.cuh"

enum LabelType : uint32_t { NO_LABELS = 0, LABELS_U8 = 1, LABELS_U32 = 2, LABELS_I64 = 3 };

__device__ inline int64_t label_at(uint64_t labels, uint32_t type, uint64_t row) {
    if (type == LABELS_U8) return at<uint8_t>(labels)[row];
    if (type == LABELS_U32) return at<uint32_t>(labels)[row];
    return at<int64_t>(labels)[row];
}

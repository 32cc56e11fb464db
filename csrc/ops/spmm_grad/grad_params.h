// What the kernels of spmm_grad get, and the memory they and the host agree on.
#pragma once

#include <cstdint>

#include "ops/spmm_grad/spmm_grad_cuda.h"

namespace tamis {

// Of a warp that unpacks or gathers 32 words: their bits and where values begin, then the values.
inline constexpr int32_t kUnpackWarps = 4, kUnpackWords = 32;
inline constexpr int32_t kUnpackValuesAt = 16 * kUnpackWords;
inline constexpr int32_t kUnpackWarpBytes = kUnpackValuesAt + 2 * 64 * kUnpackWords + 16;
inline constexpr int32_t kUnpackShared = kUnpackWarps * kUnpackWarpBytes;

// w, or its gradient, beside a dense one.
struct DenseParams {
  const uint64_t* mask;        // [rows, words]
  const int64_t* row_offsets;  // [rows + 1], or null: every row has row_values
  int64_t row_values;
  uint16_t* values;  // [nnz]
  int64_t nnz;
  uint16_t* dense;  // [rows, k]
  int32_t rows, k;
  int32_t words, parts;  // of a row; kUnpackWords words a part
};

// Of a call that was checked.
DenseParams dense_params(const MatrixView& w, void* values, void* dense);
Status check_dense(const char* op, const MatrixView& w, const void* dense);

}  // namespace tamis

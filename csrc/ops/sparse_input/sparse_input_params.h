// What the sparse_input kernels get; where a block's list lies in shared memory.
#pragma once

#include "ops/sparse_input/row_sum_params.h"

namespace tamis {

struct SparseInputParams {
  RowSumParams sum;
  const uint16_t* x;
  int64_t x_stride;
  const float* threshold;
  int32_t k;
  int32_t groups;  // of inputs, that a block lists
  uint32_t starts_at, ids_at, factors_at;
};

// Groups of 32 inputs that a block lists: every splits-th, so that no stretch of small inputs
// leaves one block without work.
constexpr int32_t input_groups(int64_t k, int64_t splits) {
  return static_cast<int32_t>(ceil_div(ceil_div(k, 32), splits));
}

// Shared memory: the list's length, for each group a word of what counts and its first place in the
// list, then ids of inputs and pairs of factors [pair, m].
inline constexpr uint32_t kInputCountAt = 0, kInputWordsAt = 16;
constexpr uint32_t input_starts_at(int32_t groups) {
  return kInputWordsAt + 4 * static_cast<uint32_t>(groups);
}
constexpr uint32_t input_ids_at(int32_t groups) {
  return (input_starts_at(groups) + 4 * static_cast<uint32_t>(groups) + 15) / 16 * 16;
}
constexpr uint32_t input_factors_at(int32_t groups) {
  return input_ids_at(groups) + 4 * 32 * static_cast<uint32_t>(groups);
}
constexpr int32_t input_shared(int32_t groups, int32_t m) {
  const auto list = static_cast<int32_t>(input_factors_at(groups)) + 64 * groups * m;
  return std::max(list, row_sum_shared(m));
}

inline constexpr int32_t kInputShared = 100 << 10;  // two blocks of an SM have it

// How many blocks share a tile of columns.
inline int32_t input_splits(const SparseInputArgs& a, int32_t m, const CudaDevice& device) {
  const int32_t most = std::min(kInputShared, device.shared_per_block);
  int32_t least = 1;
  while (input_shared(input_groups(a.k, least), m) > most) ++least;
  return row_splits(a.n, a.k, least, device);
}

// Params of tokens [first, first + m) of a call.
SparseInputParams sparse_input_params(const SparseInputArgs& args, int64_t first, void* workspace,
                                      const CudaDevice& device);

}  // namespace tamis

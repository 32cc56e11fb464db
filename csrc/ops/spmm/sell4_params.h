// What the sell4 kernel gets, and the shared memory that it and the plan agree on.
#pragma once

#include <cstdint>

#include "format/sell4.h"
#include "ops/spmm/product_params.h"

namespace tamis {

inline constexpr int32_t kSell4Tokens = 8;  // most of a call

// Tokens whose sums a lane of the kernel holds: m, rounded up.
constexpr int32_t sell4_tokens(int64_t m) {
  return m <= 1 ? 1 : m <= 2 ? 2 : m <= 4 ? 4 : 8;
}

// Warps of a block at most: 64 registers a thread for two tokens, 96 for more.
constexpr int32_t sell4_most_warps(int32_t tokens) {
  return tokens <= 2 ? 32 : 20;
}

// Shared memory of a block: for each token what the warps found largest in x [32], then x, as f16:
// of every eight units the first halves [tokens, 8, 8 columns], then the second ones. The sums of
// the warps [parts, warps, tokens, 32] lie over x, or behind it where other blocks send some,
// before the barrier of those.
constexpr int32_t sell4_x_at(int32_t tokens) {
  return 128 * tokens;
}
constexpr int64_t sell4_x_bytes(int64_t cols, int32_t tokens) {
  return 256 * tokens * ceil_div(cols, sell4::kBanks * sell4::kUnitColumns);
}

struct SpmmSell4Params : ProductParams {
  const uint32_t* row_of = nullptr;  // [slices, 32]
  int32_t row_lanes = 1;             // that share a row, a power of two
  int32_t warps = 0;                 // of a block
  int32_t parts = 0;                 // blocks of a slice, a cluster
  int32_t sums_at = 0;               // sums of the cluster's warps
  bool prefetch = false;             // into the L2 cache all records that a warp takes later
};

// The plan with that many warps a block.
SpmmCudaPlan lay_out_spmm_sell4(const PackedView& w, int64_t m, int32_t warps, int32_t parts = 1);

SpmmSell4Params spmm_sell4_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);

struct ExpandSell4Params {
  const uint8_t* records;
  const uint32_t* offsets;
  const uint32_t* row_of;
  uint16_t* out;  // zeros
  int64_t out_stride;
  DType dtype;       // of out: bf16 or f16
  bool out_aligned;  // rows of out start at multiples of 16 bytes
};

ExpandSell4Params expand_sell4_params(const PackedView& w, void* out, int64_t out_stride);

}  // namespace tamis

// Plan of the d24 product: row pairs of a block and warps of a pair.
#include <algorithm>

#include "ops/spmm/d24_params.h"

namespace tamis {

SpmmT16Plan lay_out_spmm_d24(const T16View& w, int64_t m, int32_t block_pairs, int32_t warps) {
  const int64_t pairs = d24::row_pairs(w.rows), cols = p24::panel_cols(w.cols, w.parts);
  SpmmT16Plan p{.token_tiles = d24_token_tiles(m),
                .warps_n = block_pairs,
                .warps_k = warps,
                .block_warps = kD24Warps,
                .blocks_n = static_cast<int32_t>(ceil_div(pairs, block_pairs)),
                .splits = w.parts};
  p.tokens = 8 * p.token_tiles;
  const int64_t sums = int64_t{1024} * p.token_tiles;  // bytes of a warp's
  const int64_t x = cols * p24::kColumnBytes * p.token_tiles;
  p.shared_bytes = kP24XAt + std::max(x, warps > 1 ? sums * block_pairs * warps : 0);
  if (w.parts > 1) p.workspace_bytes = kWorkspaceTicketBytes + sums * w.parts * pairs;
  return p;
}

// A block an SM, as each copies its panel of x: as many row pairs as leave every panel's blocks
// room beside each other.
Status plan_spmm_d24(const T16View& w, int64_t m, const CudaDevice& device, SpmmT16Plan* plan) {
  if (m < 1 || m > kMaxD24Tokens) {
    return error(Code::invalid_argument, "spmm: m: got %lld, wanted 1 to %lld for d24 weights",
                 static_cast<long long>(m), static_cast<long long>(kMaxD24Tokens));
  }
  const int64_t pairs = d24::row_pairs(w.rows);
  const int64_t blocks = std::max<int64_t>(1, device.sms / w.parts);  // of a panel
  const auto of_block =
      static_cast<int32_t>(std::clamp<int64_t>(ceil_div(pairs, blocks), 1, kD24Warps));
  *plan = lay_out_spmm_d24(w, m, of_block, std::min(kD24Warps / of_block, kMostD24WarpsOfPair));
  if (plan->shared_bytes > device.shared_per_block) {
    return error(
        Code::no_kernel,
        "spmm: w: got panels of %lld columns, of which %d tokens do not fit in %d bytes of "
        "shared memory",
        static_cast<long long>(p24::panel_cols(w.cols, w.parts)), plan->tokens,
        device.shared_per_block);
  }
  if (w.parts > 1 && pairs > kWorkspaceTickets) {
    return error(Code::no_kernel, "spmm: w: got %lld rows, wanted at most %lld for d24 weights",
                 static_cast<long long>(w.rows),
                 static_cast<long long>(kWorkspaceTickets * d24::kPairRows));
  }
  return {};
}

SpmmP24Params spmm_d24_params(const SpmmCudaArgs& a, const SpmmT16Plan& plan) {
  SpmmP24Params p{product_params(a)};
  p.row_tiles = static_cast<int32_t>(d24::row_pairs(a.w.rows));
  p.panel_cols = static_cast<int32_t>(p24::panel_cols(a.w.cols, a.w.parts));
  p.part_cols = p.panel_cols;
  p.parts = plan.splits;
  p.block_tiles = plan.warps_n;
  p.warps = plan.warps_k;
  p.block_warps = plan.block_warps;
  return p;
}

ExpandP24Params expand_d24_params(const T16View& w, void* out, int64_t out_stride) {
  ExpandP24Params p = expand_p24_params(w, out, out_stride);
  p.halves = 1;
  return p;
}

}  // namespace tamis

// Plan of the gap product: warps and blocks of a slice, and the shared memory they need.
#include <algorithm>
#include <bit>

#include "ops/spmm/gap_params.h"

namespace tamis {
SpmmCudaPlan lay_out_spmm_gap(const PackedView& w, int64_t m, int32_t warps) {
  SpmmCudaPlan p{.tokens = m <= 1   ? 1
                           : m <= 2 ? 2
                                    : static_cast<int32_t>(kMaxGapTokens),
                 .warps_k = warps,
                 .blocks_n = static_cast<int32_t>(gap::slices(w.rows)),
                 .splits = w.parts / warps};
  p.shared_bytes =
      gap_x_at(warps, p.tokens) + ceil_div(w.cols, 8) * 8 * 2 * static_cast<int64_t>(p.tokens);
  if (p.splits > 1) {
    p.workspace_bytes =
        kWorkspaceTicketBytes + int64_t{128} * p.tokens * p.splits * gap::slices(w.rows);
  }
  return p;
}

Status plan_spmm_gap(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan) {
  if (m < 1 || m > kMaxGapTokens) {
    return error(Code::invalid_argument, "spmm: m: got %lld, wanted 1 to %lld for gap weights",
                 static_cast<long long>(m), static_cast<long long>(kMaxGapTokens));
  }
  *plan = lay_out_spmm_gap(w, m, std::min(w.parts, kMaxGapWarps));
  if (plan->shared_bytes > device.shared_per_block) {
    return columns_do_not_fit(w, plan->tokens, device);
  }
  return {};
}

SpmmGapParams spmm_gap_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  SpmmGapParams p{product_params(a)};
  p.slices = plan.blocks_n;
  p.parts_log2 = std::countr_zero(static_cast<uint32_t>(a.w.parts));
  p.warps = plan.warps_k;
  p.splits = plan.splits;
  p.header_units = static_cast<uint32_t>(gap::header_bytes(a.w.parts) / gap::kUnit);
  p.x_at = static_cast<uint32_t>(gap_x_at(plan.warps_k, plan.tokens));
  return p;
}

ExpandGapParams expand_gap_params(const PackedView& w, void* out, int64_t out_stride) {
  return {.records = static_cast<const uint8_t*>(w.records),
          .offsets = w.offsets,
          .out = static_cast<uint16_t*>(out),
          .out_stride = out_stride,
          .slices = static_cast<int32_t>(gap::slices(w.rows)),
          .parts = w.parts,
          .header_units = static_cast<uint32_t>(gap::header_bytes(w.parts) / gap::kUnit),
          .out_aligned = rows_aligned(out, w.rows, out_stride)};
}

}  // namespace tamis

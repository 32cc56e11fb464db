// Plan of the sell4 product: warps of a block.
#include <algorithm>

#include "ops/spmm/sell4_params.h"

namespace tamis {
namespace {

constexpr int32_t kSmWarps = 32;
constexpr int32_t kFewRowsWarps = 16;  // of a block

}  // namespace

SpmmCudaPlan lay_out_spmm_sell4(const PackedView& w, int64_t m, int32_t warps, int32_t parts) {
  SpmmCudaPlan p{.tokens = sell4_tokens(m),
                 .warps_n = 1,
                 .warps_k = warps,
                 .blocks_n = static_cast<int32_t>(sell4::slices(w.rows)),
                 .splits = parts};
  // With the barrier of those that come from other blocks.
  const int64_t sums = int64_t{128} * p.tokens * warps * parts + (parts > 1 ? 16 : 0);
  const int64_t x = sell4_x_bytes(w.cols, p.tokens);
  p.stage_bytes = parts > 1 ? static_cast<int32_t>(x) : 0;
  p.shared_bytes = sell4_x_at(p.tokens) + std::max(sums + p.stage_bytes, x);
  return p;
}

Status plan_spmm_sell4(const PackedView& w, int64_t m, const CudaDevice& device,
                       SpmmCudaPlan* plan) {
  if (m < 1 || m > kSell4Tokens) {
    return error(Code::invalid_argument, "spmm: m: got %lld, wanted 1 to %d for sell4 weights",
                 static_cast<long long>(m), kSell4Tokens);
  }
  // As many warps as the device holds at 64 registers, each with two records or more, or with one
  // up to two tokens and where two blocks share a slice: of the layouts timed on an H200
  // (bench/results/gpu.md) the best or within 6 % of it.
  const int64_t slices = sell4::slices(w.rows), records = w.record_bytes / sell4::kRecordBytes;
  const auto plan_parts = [&](int32_t parts) {
    const int64_t blocks = slices * parts, least = m <= 2 || parts > 1 ? 1 : 2;
    const int32_t most = sell4_most_warps(sell4_tokens(m));
    int32_t warps = 4;
    // Where lanes share rows, a slice is short; more warps than it has records copy x.
    if (sell4::lanes_of_row(w.rows) > 1 && parts == 1) {
      return lay_out_spmm_sell4(w, m, kFewRowsWarps, parts);
    }
    while (2 * warps <= most && blocks * 2 * warps <= int64_t{device.sms} * kSmWarps &&
           blocks * 2 * warps * least <= records) {
      warps *= 2;
    }
    // One or two tokens: or as few as take a slice's records in as many turns, and a fifth more, as
    // slices differ.
    if (parts == 1 && m <= 2 && records > 0) {
      const int64_t of_slice = ceil_div(records, slices), turns = ceil_div(of_slice, warps);
      warps = std::min(warps, static_cast<int32_t>(ceil_div(6 * of_slice, 5 * turns)));
    }
    return lay_out_spmm_sell4(w, m, warps, parts);
  };
  // Where slices would leave half of the device idle, two blocks share one.
  const bool few = device.capability >= 90 && 2 * slices <= device.sms;
  *plan = plan_parts(few ? 2 : 1);
  if (few && plan->shared_bytes > device.shared_per_block) *plan = plan_parts(1);
  if (plan->shared_bytes <= device.shared_per_block) return {};
  return columns_do_not_fit(w, plan->tokens, device);
}

SpmmSell4Params spmm_sell4_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  const int64_t records = a.w.record_bytes / sell4::kRecordBytes;
  const int64_t warps = int64_t{plan.blocks_n} * plan.splits * plan.warps_k;
  SpmmSell4Params p{product_params(a)};
  p.row_of = a.w.offsets + plan.blocks_n + 1;
  p.row_lanes = static_cast<int32_t>(sell4::lanes_of_row(a.w.rows));
  p.warps = plan.warps_k;
  p.parts = plan.splits;
  p.sums_at = sell4_x_at(plan.tokens) + plan.stage_bytes;
  p.prefetch = plan.tokens <= 2 && 2 * records <= 5 * warps;
  return p;
}

ExpandSell4Params expand_sell4_params(const PackedView& w, void* out, int64_t out_stride) {
  return {.records = static_cast<const uint8_t*>(w.records),
          .offsets = w.offsets,
          .row_of = w.offsets + sell4::slices(w.rows) + 1,
          .out = static_cast<uint16_t*>(out),
          .out_stride = out_stride,
          .dtype = w.dtype,
          .out_aligned = rows_aligned(out, w.rows, out_stride)};
}

}  // namespace tamis

// Plan of the r24 product: rows of an output tile, and parts of k.
#include <algorithm>

#include "ops/spmm/r24_params.h"

namespace tamis {
namespace {

int64_t output_tiles(const PackedView& w, const R24Layout& l) {
  return ceil_div(t16::row_tiles(w.rows), l.row_tiles);
}

// Us that a layout is expected to take beyond what all take, fitted to an H200's times of four
// shapes (bench/results/gpu.md): each wave of blocks, stages of a block, and sums that meet.
double cost(const PackedView& w, const R24Layout& l, int32_t parts, bool cluster,
            const CudaDevice& device) {
  const double stage = l.groups == 1 ? 0.1 + 0.041 * l.row_tiles : 0.11 + 0.06 * l.row_tiles;
  const double sums = 0.3 + 0.125 * l.row_tiles * l.groups * parts;
  const auto waves = static_cast<double>(ceil_div(output_tiles(w, l) * parts, device.sms));
  const auto stages = static_cast<double>(ceil_div(t16::col_tiles(w.cols), parts));
  const double meeting = parts == 1 ? 0 : cluster ? 0.7 * l.groups : sums;
  return waves * (2.5 + stages * stage) + meeting;
}

// Whether all clusters of so many blocks find room at once, which they need side by side among the
// 18 multiprocessors that may share one, some of which are missing.
bool finds_room(int64_t clusters, int32_t parts, const CudaDevice& device) {
  const int64_t room = parts == 2 ? device.sms : cluster_room(device.sms);
  return parts <= kMaxCluster && clusters * parts <= room &&
         (parts == 2 || clusters <= device.sms / 18 * (18 / parts));
}

}  // namespace

SpmmCudaPlan lay_out_spmm_r24(const PackedView& w, int32_t layout, int32_t parts, bool cluster) {
  const R24Layout& l = kR24Layouts[layout];
  const int64_t tiles = output_tiles(w, l);
  SpmmCudaPlan p{.layout = layout,
                 .tokens = l.tokens(),
                 .token_tiles = l.tokens() / 8,
                 .warps_n = l.row_tiles,
                 .warps_k = 1,
                 .block_warps = l.threads() / 32,
                 .blocks_n = static_cast<int32_t>(tiles),
                 .splits = parts,
                 .cluster = cluster && parts > 1 && parts <= kMaxCluster,
                 .shared_bytes = l.shared_bytes()};
  if (parts > 1 && !p.cluster) {
    p.workspace_bytes = kWorkspaceTicketBytes + tiles * parts * l.rows() * l.tokens() * 4;
  }
  return p;
}

Status plan_spmm_r24(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan) {
  if (m < 1 || m > kMaxR24Tokens || device.capability != 90) {
    return error(Code::invalid_argument,
                 "spmm: m: got %lld on sm_%d, wanted 1 to %lld on sm_90 for r24 weights",
                 static_cast<long long>(m), device.capability,
                 static_cast<long long>(kMaxR24Tokens));
  }
  const int32_t groups = m <= 64 ? 1 : 2;
  const auto most =
      static_cast<int32_t>(std::clamp<int64_t>(t16::col_tiles(w.cols), 1, kMostR24Parts));
  double best = 0;
  *plan = {};
  for (int32_t layout = 0; layout < static_cast<int32_t>(std::size(kR24Layouts)); ++layout) {
    const R24Layout& l = kR24Layouts[layout];
    if (l.groups != groups) continue;
    const int64_t tiles = output_tiles(w, l);
    for (int32_t parts = 1; parts <= most; ++parts) {
      const bool cluster = parts > 1 && finds_room(tiles, parts, device);
      if (parts > 1 && !cluster && tiles > kWorkspaceTickets) continue;
      const double time = cost(w, l, parts, cluster, device);
      if (plan->splits > 0 && time >= best) continue;
      best = time;
      *plan = lay_out_spmm_r24(w, layout, parts, cluster);
    }
  }
  return {};
}

SpmmR24Params spmm_r24_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  SpmmR24Params p{product_params(a)};
  p.row_tiles = static_cast<int32_t>(t16::row_tiles(a.w.rows));
  p.col_tiles = static_cast<int32_t>(t16::col_tiles(a.w.cols));
  p.parts = plan.splits;
  p.panels = p.col_tiles / p.parts;
  p.longer = p.col_tiles % p.parts;
  p.cluster = plan.cluster;
  p.y_paired = reinterpret_cast<uintptr_t>(a.y) % 4 == 0 && (a.m == 1 || a.y_stride % 2 == 0);
  return p;
}

MatrixBoxes spmm_r24_x(const SpmmCudaArgs& a) {
  // One row has no stride, which a map wants all the same.
  const int64_t stride = a.m == 1 ? ceil_div(a.w.cols, 8) * 8 : a.x_stride;
  return {.data = a.x, .rows = a.m, .cols = a.w.cols, .stride = stride, .box_rows = 64};
}

ExpandR24Params expand_r24_params(const PackedView& w, void* out, int64_t out_stride) {
  const int64_t across = t16::col_tiles(w.cols);
  return {.records = static_cast<const uint8_t*>(w.records),
          .offsets = w.offsets,
          .out = static_cast<uint16_t*>(out),
          .out_stride = out_stride,
          .rows = static_cast<int32_t>(w.rows),
          .cols = static_cast<int32_t>(w.cols),
          .col_tiles = static_cast<int32_t>(across),
          .tiles = t16::row_tiles(w.rows) * across,
          .out_aligned = rows_aligned(out, w.rows, out_stride)};
}

}  // namespace tamis

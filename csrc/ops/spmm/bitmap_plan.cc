// Plan of the bitmap product for warpgroups: which layout, and how many blocks share the work.
#include <algorithm>

#include "ops/spmm/bitmap_wgmma_params.h"
#include "ops/spmm/panel_shares.h"

namespace tamis {
namespace {

int64_t words(const PackedView& w) {
  return ceil_div(w.cols, 64);
}
PanelGrid panel_grid(const PackedView& w, int64_t m, const BitmapLayout& l) {
  return {.tiles = output_tiles(w, m, l), .col_panels = words(w)};
}

}  // namespace

SpmmCudaPlan lay_out_bitmap(const PackedView& w, int64_t m, int32_t layout, int64_t blocks,
                            bool clusters) {
  const BitmapLayout& l = kBitmapLayouts[layout];
  return share_panels(panel_grid(w, m, l), m, l, layout, blocks, clusters);
}

BitmapGroupParams bitmap_group_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  const BitmapLayout& l = kBitmapLayouts[plan.layout];
  BitmapGroupParams p{panel_params(panel_grid(a.w, a.m, l), a, plan, l)};
  p.mask = a.w.mask;
  p.values = static_cast<const uint16_t*>(a.w.records);
  p.row_offsets = a.w.row_offsets;
  p.row_values = a.w.row_values;
  p.nnz = static_cast<uint32_t>(a.w.record_bytes / 2);
  p.words = static_cast<int32_t>(words(a.w));
  return p;
}

Status plan_spmm_bitmap(const PackedView& w, int64_t m, const CudaDevice& device,
                        SpmmCudaPlan* plan) {
  if (m < 1 || m > kMaxBitmapTokens || device.capability != 90) {
    return error(Code::invalid_argument,
                 "spmm: m: got %lld on sm_%d, wanted 1 to %lld on sm_90 for bitmap weights",
                 static_cast<long long>(m), device.capability,
                 static_cast<long long>(kMaxBitmapTokens));
  }
  const auto count = static_cast<int32_t>(std::size(kBitmapLayouts));
  int32_t layout = 0;
  while (layout + 1 < count && kBitmapLayouts[layout].tokens < m) ++layout;
  const BitmapLayout& l = kBitmapLayouts[layout];
  const int64_t tiles = output_tiles(w, m, l), slots = int64_t{device.sms} * l.blocks;
  // Parts of an output tile as a cluster, of all tiles as many as find room side by side, with
  // eight words each at least; where that leaves a fifth of the device idle for long, and where
  // there are more tiles than room, shares that end anywhere. Timed on an H200
  // (bench/results/gpu.md).
  const int64_t most = std::max<int64_t>(words(w) / 8, 1);
  const int64_t parts = std::min({cluster_room(slots) / tiles, most, int64_t{kMaxCluster}});
  const bool idle = parts * tiles * 5 < slots * 4 && tiles * words(w) > 32 * slots;
  if (parts > 1 && !idle) {
    *plan = lay_out_bitmap(w, m, layout, parts * tiles, true);
    return {};
  }
  const bool whole = tiles > kWorkspaceTickets || (tiles <= slots && tiles * 5 >= slots * 4);
  *plan = lay_out_bitmap(w, m, layout, whole ? tiles : slots, false);
  return {};
}

}  // namespace tamis

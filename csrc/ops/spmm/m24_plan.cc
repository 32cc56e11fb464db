// Plan of the m24 product for warpgroups: which layout, and how many blocks share the work.
#include <algorithm>

#include "ops/spmm/m24_wgmma_params.h"
#include "ops/spmm/panel_shares.h"

namespace tamis {
namespace {

int64_t col_panels(const PackedView& w, const M24Layout& l) {
  return ceil_div(t16::col_tiles(w.cols), l.depth);
}
PanelGrid panel_grid(const PackedView& w, int64_t m, const M24Layout& l) {
  return {.tiles = output_tiles(w, m, l), .col_panels = col_panels(w, l)};
}

}  // namespace

SpmmCudaPlan lay_out_m24_group(const PackedView& w, int64_t m, int32_t layout, int64_t blocks,
                               bool clusters) {
  const M24Layout& l = kM24Layouts[layout];
  return share_panels(panel_grid(w, m, l), m, l, layout, blocks, clusters);
}

M24GroupParams m24_group_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  const M24Layout& l = kM24Layouts[plan.layout];
  M24GroupParams p = panel_params(panel_grid(a.w, a.m, l), a, plan, l);
  p.row_tiles = static_cast<int32_t>(t16::row_tiles(a.w.rows));
  p.col_tiles = static_cast<int32_t>(t16::col_tiles(a.w.cols));
  return p;
}

namespace {

constexpr int64_t kShortPart = 8;  // panels

// The plan of a layout, or of the one after it.
Status plan_layout(const PackedView& w, int64_t m, const CudaDevice& device, int32_t layout,
                   SpmmCudaPlan* plan) {
  const M24Layout& l = kM24Layouts[layout];
  const int64_t tiles = output_tiles(w, m, l);
  const int64_t most = std::max<int64_t>(col_panels(w, l) / 2, 1);  // two panels a part at least
  // Parts of an output tile as a cluster, of all tiles as many as find room at once. Timed on an
  // H200 (bench/results/gpu.md). Two blocks of 16 tokens find it anywhere.
  const int64_t all = int64_t{device.sms} * l.blocks, room = cluster_room(all);
  const bool two = l.tokens == 16 && room / tiles == 1 && all / tiles == 2;
  const int64_t parts =
      two ? std::min<int64_t>(2, most) : std::min({room / tiles, most, int64_t{kMaxCluster}});
  // Where clusters for 16 tokens would leave more of it and each part is long, the layout after
  // this one, of more rows, fills it (down: 20.5 us for 23.5).
  const bool idle = l.tokens == 16 && parts > 1 && room / tiles < kMaxCluster &&
                    parts * tiles * 5 < int64_t{device.sms} * l.blocks * 4;
  if (idle && col_panels(w, l) > kShortPart * parts) {
    return plan_layout(w, m, device, layout + 1, plan);
  }
  if (parts > 1 && l.tokens >= m) {
    *plan = lay_out_m24_group(w, m, layout, parts * tiles, true);
    return {};
  }
  // From 64 tokens on one block keeps an SM busy, and a second finds no room while it runs.
  const int64_t slots = int64_t{device.sms} * (l.tokens < 64 ? l.blocks : 1);
  // As many shares of every output tile as fill the device, so that all are alike and x is read by
  // few at a time. Where that leaves half of the device idle, shares that end anywhere.
  const int64_t whole = std::min(slots / tiles, most) * tiles;
  const bool few = slots / tiles > most;  // more blocks would only meet more often
  int64_t blocks = few || 2 * whole >= slots ? whole : slots;
  if (tiles > kWorkspaceTickets) blocks = tiles;
  *plan = lay_out_m24_group(w, m, layout, blocks, false);
  return {};
}

}  // namespace

Status plan_m24_group(const PackedView& w, int64_t m, const CudaDevice& device,
                      SpmmCudaPlan* plan) {
  const auto count = static_cast<int32_t>(std::size(kM24Layouts));
  int32_t layout = 0;
  while (layout + 1 < count && kM24Layouts[layout].tokens < m) ++layout;
  // Of two for as many tokens the second has fewer rows: for weights that are small even in parts.
  if (layout + 1 < count && kM24Layouts[layout + 1].tokens == kM24Layouts[layout].tokens &&
      output_tiles(w, m, kM24Layouts[layout]) * kMaxCluster < device.sms) {
    ++layout;
  }
  return plan_layout(w, m, device, layout, plan);
}

}  // namespace tamis

// Plans of the kernels for warpgroups whose blocks share the panels of all output tiles: m24,
// bitmap.
#pragma once

#include <algorithm>

#include "ops/spmm/m24_wgmma_params.h"
#include "ops/spmm/t16_params.h"

namespace tamis {

// The output tiles of a call, and the panels along k of each.
struct PanelGrid {
  int64_t tiles, col_panels;

  int64_t panels() const { return tiles * col_panels; }
};

template <class Layout>
int64_t output_tiles(const PackedView& w, int64_t m, const Layout& l) {
  return ceil_div(w.rows, l.rows()) * ceil_div(m, l.tokens);
}

// The plan for m tokens of layout l, which is kLayouts[layout], with up to that many blocks, at
// least 1. clusters: of them where they are up to kMaxCluster for each output tile.
template <class Layout>
SpmmCudaPlan share_panels(const PanelGrid& grid, int64_t m, const Layout& l, int32_t layout,
                          int64_t blocks, bool clusters) {
  SpmmCudaPlan p{.layout = layout,
                 .tokens = static_cast<int32_t>(m),
                 .token_tiles = l.tokens / 8,
                 .warps_n = 4 * l.groups,
                 .warps_k = 1,
                 .blocks_n = static_cast<int32_t>(std::min(blocks, grid.panels())),
                 .splits = 1,
                 .shared_bytes = l.shared_bytes()};
  const int64_t parts = p.blocks_n / grid.tiles;
  if (clusters && parts >= 1 && p.blocks_n % grid.tiles == 0 && parts <= kMaxCluster) {
    p.blocks_n = static_cast<int32_t>(grid.tiles);
    p.splits = static_cast<int32_t>(parts);
  } else if (grid.tiles % p.blocks_n != 0) {  // some blocks begin or end inside an output tile
    p.workspace_bytes = kWorkspaceTicketBytes + int64_t{2} * p.blocks_n * l.rows() * l.tokens * 4;
  }
  return p;
}

template <class Layout>
M24GroupParams panel_params(const PanelGrid& grid, const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                            const Layout& l) {
  M24GroupParams p{product_params(a)};
  p.col_panels = static_cast<int32_t>(grid.col_panels);
  p.token_tiles = static_cast<int32_t>(ceil_div(a.m, l.tokens));
  p.panels = static_cast<int32_t>(grid.panels());
  p.blocks = plan.blocks_n * plan.splits;
  p.parts = plan.splits;
  return p;
}

}  // namespace tamis

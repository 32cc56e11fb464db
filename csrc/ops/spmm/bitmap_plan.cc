// Plan of the bitmap product for warpgroups: which layout, and how many blocks share the work.
#include <algorithm>

#include "ops/spmm/bitmap_wgmma_params.h"
#include "ops/spmm/t16_params.h"

namespace tamis {
namespace {

int64_t output_tiles(const T16View& w, int64_t m, const BitmapLayout& l) {
  return ceil_div(w.rows, l.rows()) * ceil_div(m, l.tokens);
}
int64_t words(const T16View& w) {
  return ceil_div(w.cols, 64);
}

}  // namespace

SpmmT16Plan lay_out_bitmap(const T16View& w, int64_t m, int32_t layout, int64_t blocks,
                           bool clusters) {
  const BitmapLayout& l = kBitmapLayouts[layout];
  const int64_t tiles = output_tiles(w, m, l), panels = tiles * words(w);
  SpmmT16Plan p{.layout = layout,
                .tokens = static_cast<int32_t>(m),
                .token_tiles = l.tokens / 8,
                .warps_n = 4 * l.groups,
                .warps_k = 1,
                .blocks_n = static_cast<int32_t>(std::min(blocks, panels)),
                .splits = 1,
                .shared_bytes = l.shared_bytes()};
  const int64_t parts = p.blocks_n / tiles;
  if (clusters && parts >= 1 && p.blocks_n % tiles == 0 && parts <= kMostParts) {
    p.blocks_n = static_cast<int32_t>(tiles);
    p.splits = static_cast<int32_t>(parts);
  } else if (tiles % p.blocks_n != 0) {  // some blocks begin or end inside an output tile
    p.workspace_bytes = kTicketBytes + int64_t{2} * p.blocks_n * l.rows() * l.tokens * 4;
  }
  return p;
}

BitmapGroupParams bitmap_group_params(const SpmmCudaArgs& a, const SpmmT16Plan& plan) {
  const BitmapLayout& l = kBitmapLayouts[plan.layout];
  BitmapGroupParams p{{product_params(a)}};
  p.col_panels = static_cast<int32_t>(words(a.w));
  p.token_tiles = static_cast<int32_t>(ceil_div(a.m, l.tokens));
  p.panels = static_cast<int32_t>(output_tiles(a.w, a.m, l) * words(a.w));
  p.blocks = plan.blocks_n * plan.splits;
  p.parts = plan.splits;
  p.mask = a.w.mask;
  p.values = static_cast<const uint16_t*>(a.w.records);
  p.row_offsets = a.w.row_offsets;
  p.row_values = a.w.row_values;
  p.nnz = static_cast<uint32_t>(a.w.record_bytes / 2);
  p.words = static_cast<int32_t>(words(a.w));
  return p;
}

Status plan_spmm_bitmap(const T16View& w, int64_t m, const CudaDevice& device, SpmmT16Plan* plan) {
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
  const int64_t parts = std::min({slots * 17 / 20 / tiles, most, int64_t{kMostParts}});
  const bool idle = parts * tiles * 5 < slots * 4 && tiles * words(w) > 32 * slots;
  if (parts > 1 && !idle) {
    *plan = lay_out_bitmap(w, m, layout, parts * tiles, true);
    return {};
  }
  const bool whole = tiles > kMaxTickets || (tiles <= slots && tiles * 5 >= slots * 4);
  *plan = lay_out_bitmap(w, m, layout, whole ? tiles : slots, false);
  return {};
}

}  // namespace tamis

// Plan of the m24 product for many tokens: which layout, and which blocks are a cluster.
#include "ops/spmm/m24_many_params.h"
#include "ops/spmm/t16_params.h"

namespace tamis {
namespace {

// Of one direction: how often a cluster takes so many tiles.
int64_t areas_along(int64_t size, int32_t tile, int32_t blocks) {
  return ceil_div(size, int64_t{tile} * blocks);
}

}  // namespace

SpmmT16Plan lay_out_m24_many(const T16View& w, int64_t m, int32_t layout, const M24Cluster& cluster,
                             const CudaDevice& device) {
  const M24ManyLayout& l = kM24ManyLayouts[layout];
  const int64_t areas = areas_along(w.rows, l.rows(), cluster.row_blocks) *
                        areas_along(m, l.tokens, cluster.token_blocks);
  // Clusters of more than two blocks need room side by side, so a seventh of the device is left, as
  // in m24_plan.cc. As many as end together.
  const int64_t blocks = int64_t{device.sms} * l.blocks;
  const int64_t room =
      std::max<int64_t>((cluster.blocks() > 2 ? blocks * 17 / 20 : blocks) / cluster.blocks(), 1);
  const int64_t clusters = cluster.parts > 1 ? areas : ceil_div(areas, ceil_div(areas, room));
  const int32_t tiles = cluster.row_blocks * cluster.token_blocks;
  return {.many_layout = layout,
          .row_blocks = cluster.row_blocks,
          .token_blocks = cluster.token_blocks,
          .tokens = static_cast<int32_t>(m),
          .token_tiles = l.tokens / 8,
          .warps_n = 4 * l.groups,
          .warps_k = 1,
          .blocks_n = static_cast<int32_t>(clusters * tiles),
          .splits = cluster.parts,
          .shared_bytes = l.shared_bytes()};
}

M24ManyParams m24_many_params(const SpmmCudaArgs& a, const SpmmT16Plan& plan) {
  const M24ManyLayout& l = kM24ManyLayouts[plan.many_layout];
  M24ManyParams p{product_params(a)};
  p.col_tiles = static_cast<int32_t>(t16::col_tiles(a.w.cols));
  p.row_blocks = p.x_aligned ? plan.row_blocks : 1;
  p.token_blocks = p.x_aligned ? plan.token_blocks : 1;
  p.parts = plan.splits;
  p.token_areas = static_cast<int32_t>(areas_along(a.m, l.tokens, p.token_blocks));
  p.areas = static_cast<int32_t>(areas_along(a.w.rows, l.rows(), p.row_blocks) * p.token_areas);
  p.clusters = plan.blocks_n / (p.row_blocks * p.token_blocks);
  p.y_aligned = rows_aligned(a.y, a.m, a.y_stride);
  return p;
}

MatrixBoxes m24_many_x(const SpmmCudaArgs& a, const SpmmT16Plan& plan) {
  return {.data = a.x,
          .rows = a.m,
          .cols = a.w.cols,
          .stride = a.m > 1 ? a.x_stride : t16::col_tiles(a.w.cols) * kBoxCols,
          .box_rows = kM24ManyLayouts[plan.many_layout].tokens / plan.row_blocks};
}

RecordBoxes m24_many_records(const SpmmCudaArgs& a, const SpmmT16Plan& plan) {
  const int32_t sharing = m24_many_params(a, plan).token_blocks;
  return {.data = a.w.records,
          .rows = t16::row_tiles(a.w.rows),
          .cols = t16::col_tiles(a.w.cols),
          .record_bytes = static_cast<int32_t>(m24::kRecordBytes),
          .box_rows = 4 * kM24ManyLayouts[plan.many_layout].groups / sharing};
}

}  // namespace tamis

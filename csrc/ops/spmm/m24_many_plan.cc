// Plan of the m24 product for many tokens: which layout, and which blocks are a cluster.
#include <cmath>

#include "ops/spmm/m24_many_params.h"
#include "ops/spmm/t16_params.h"

namespace tamis {
namespace {

// Of one direction: how often a cluster takes so many tiles.
int64_t areas_along(int64_t size, int32_t tile, int32_t blocks) {
  return ceil_div(size, int64_t{tile} * blocks);
}

// Clusters that run at once. Those of more than two blocks need room side by side, so a seventh of
// the device is left, as in m24_plan.cc.
int64_t room_of(const M24ManyLayout& l, const M24Cluster& cluster, const CudaDevice& device) {
  const int64_t blocks = int64_t{device.sms} * l.blocks;
  return std::max<int64_t>((cluster.blocks() > 2 ? blocks * 17 / 20 : blocks) / cluster.blocks(),
                           1);
}

// Expected ns of a call: a stage takes what shared memory needs to read x for every warpgroup and
// to write it once, and records; or what L2 sends the blocks that run; all stages as long as DRAM
// needs for the weights. Fitted to times of an H200 (bench/RESULTS.md).
double expected_ns(const T16View& w, int64_t m, const SpmmT16Plan& p, const CudaDevice& device) {
  constexpr double kProduct = 0.27, kToken = 0.3, kRecords = 20, kL2 = 5500, kDram = 4300,
                   kStart = 4000, kTileEnd = 1500, kMeet = 1500;
  const M24ManyLayout& l = kM24ManyLayouts[p.many_layout];
  const M24Cluster cluster{p.row_blocks, p.token_blocks, p.splits};
  const double areas = static_cast<double>(areas_along(w.rows, l.rows(), p.row_blocks) *
                                           areas_along(m, l.tokens, p.token_blocks));
  const auto room = static_cast<double>(room_of(l, cluster, device));
  const double rounds = std::ceil(areas / room);
  const double blocks = std::min(areas / rounds, room) * cluster.blocks();
  const double panels = static_cast<double>(ceil_div(t16::col_tiles(w.cols), p.splits));
  const double on_sm = std::max(1.0, blocks / device.sms);
  const double shared =
      on_sm * (kProduct * l.groups * l.tokens + kToken * l.tokens + kRecords * l.groups);
  const double l2 =
      blocks / kL2 *
      (128.0 * l.tokens / p.row_blocks + 4.0 * m24::kRecordBytes * l.groups / p.token_blocks);
  const double stages = rounds * panels * std::max(shared, l2);
  const double outputs = l.tokens * l.groups / 512.0;
  return kStart + std::max(stages, static_cast<double>(w.record_bytes) / kDram) +
         rounds * outputs * kTileEnd + (p.splits > 1 ? outputs * kMeet : 0);
}

}  // namespace

SpmmT16Plan lay_out_m24_many(const T16View& w, int64_t m, int32_t layout, const M24Cluster& cluster,
                             const CudaDevice& device) {
  const M24ManyLayout& l = kM24ManyLayouts[layout];
  const int64_t areas = areas_along(w.rows, l.rows(), cluster.row_blocks) *
                        areas_along(m, l.tokens, cluster.token_blocks);
  const int64_t room = room_of(l, cluster, device);
  // As many as end together.
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

Status plan_m24_many(const T16View& w, int64_t m, const CudaDevice& device, SpmmT16Plan* plan) {
  constexpr M24Cluster kClusters[] = {{1, 1, 1}, {2, 1, 1}, {1, 2, 1}, {4, 1, 1}, {2, 2, 1},
                                      {1, 1, 2}, {1, 1, 3}, {1, 1, 4}, {1, 1, 5}, {1, 1, 6},
                                      {1, 1, 7}, {1, 1, 8}, {2, 1, 2}, {2, 1, 3}, {2, 1, 4}};
  double best = 0;
  *plan = {};
  for (int32_t layout = 0; layout < static_cast<int32_t>(std::size(kM24ManyLayouts)); ++layout) {
    const M24ManyLayout& l = kM24ManyLayouts[layout];
    for (const M24Cluster& cluster : kClusters) {
      const SpmmT16Plan p = lay_out_m24_many(w, m, layout, cluster, device);
      // Parts meet in one tile of every cluster, so all of them run at once.
      const int64_t tiles = int64_t{cluster.row_blocks} * cluster.token_blocks;
      if (cluster.parts > 1 && (p.blocks_n / tiles > room_of(l, cluster, device) ||
                                cluster.parts > t16::col_tiles(w.cols))) {
        continue;
      }
      const double time = expected_ns(w, m, p, device);
      if (plan->many_layout >= 0 && time >= best) continue;
      best = time;
      *plan = p;
    }
  }
  return {};
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

// Plan of the m24 product for many tokens: which layout, and how many blocks share a tile.
#include <cmath>

#include "ops/spmm/m24_many_params.h"
#include "ops/spmm/t16_params.h"

namespace tamis {
namespace {

int64_t token_tiles(const M24ManyLayout& l, int64_t m) {
  return ceil_div(m, l.tokens);
}
int64_t output_tiles(const PackedView& w, int64_t m, const M24ManyLayout& l) {
  return ceil_div(w.rows, l.rows()) * token_tiles(l, m);
}

// Clusters that run at once.
int64_t room_of(const M24ManyLayout& l, int32_t parts, const CudaDevice& device) {
  const int64_t blocks = int64_t{device.sms} * l.blocks;
  return std::max<int64_t>((parts > 2 ? cluster_room(blocks) : blocks) / parts, 1);
}

// Expected ns of a call: rounds of tiles, whose stages take what shared memory needs to read x for
// every warpgroup, to write it once, and for records; or the bytes of the weights, as fast as so
// many blocks ask for them. By 20 products of four shapes on an H200 (bench/results/gpu.md); what
// is chosen takes 1 % more than the best on average.
double expected_ns(const PackedView& w, int64_t m, const SpmmCudaPlan& p,
                   const CudaDevice& device) {
  constexpr double kProduct = 0.243, kToken = 0.538, kRecords = 50, kStage = 95;
  constexpr double kDram = 3800, kDramOfBlock = 29;  // bytes a ns
  constexpr double kStart = 3000, kTileEnd = 1560, kMeet = 375, kPart = 300;
  const M24ManyLayout& l = kM24ManyLayouts[p.many_layout];
  const auto tiles = static_cast<double>(output_tiles(w, m, l));
  const auto room = static_cast<double>(room_of(l, p.splits, device));
  const double rounds = std::ceil(tiles / room);
  const double blocks = std::min(std::ceil(tiles / rounds), room) * p.splits;
  const double on_sm = std::max(1.0, blocks / device.sms);
  const auto panels = static_cast<double>(ceil_div(t16::col_tiles(w.cols), p.splits));
  const double stage =
      on_sm * (kProduct * l.groups * l.tokens + kToken * l.tokens + kRecords * l.groups + kStage);
  const double read = static_cast<double>(w.record_bytes) / std::min(kDram, blocks * kDramOfBlock);
  const double outputs = l.tokens * l.groups / 512.0;
  const double meet = kMeet * outputs + kPart * outputs * p.splits / l.blocks;
  return kStart + std::max(rounds * panels * stage, read) + rounds * outputs * kTileEnd * on_sm +
         (p.splits > 1 ? meet : 0);
}

}  // namespace

SpmmCudaPlan lay_out_m24_many(const PackedView& w, int64_t m, int32_t layout, int32_t parts,
                              const CudaDevice& device) {
  const M24ManyLayout& l = kM24ManyLayouts[layout];
  const int64_t tiles = output_tiles(w, m, l), room = room_of(l, parts, device);
  // As many as end together; parts meet in one tile.
  const int64_t clusters = parts > 1 ? tiles : ceil_div(tiles, ceil_div(tiles, room));
  return {.many_layout = layout,
          .tokens = static_cast<int32_t>(m),
          .token_tiles = l.tokens / 8,
          .warps_n = 4 * l.groups,
          .warps_k = 1,
          .blocks_n = static_cast<int32_t>(clusters),
          .splits = parts,
          .shared_bytes = l.shared_bytes()};
}

Status plan_m24_many(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan) {
  double best = 0;
  *plan = {};
  for (int32_t layout = 0; layout < static_cast<int32_t>(std::size(kM24ManyLayouts)); ++layout) {
    const M24ManyLayout& l = kM24ManyLayouts[layout];
    if (l.tokens < std::min<int64_t>(m, 128)) continue;
    // Of seven or eight blocks that fill an SM each only 15 find room side by side.
    const bool fits = l.blocks > 1 || output_tiles(w, m, l) <= 14;
    const int64_t most = std::min<int64_t>(fits ? kMaxCluster : 6, t16::col_tiles(w.cols));
    for (int32_t parts = 1; parts <= most; ++parts) {
      if (parts > 1 && output_tiles(w, m, l) > room_of(l, parts, device)) break;
      const SpmmCudaPlan p = lay_out_m24_many(w, m, layout, parts, device);
      const double time = expected_ns(w, m, p, device);
      if (plan->many_layout >= 0 && time >= best) continue;
      best = time;
      *plan = p;
    }
  }
  return {};
}

M24ManyParams m24_many_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  const M24ManyLayout& l = kM24ManyLayouts[plan.many_layout];
  M24ManyParams p{product_params(a)};
  p.col_tiles = static_cast<int32_t>(t16::col_tiles(a.w.cols));
  p.tiles = static_cast<int32_t>(output_tiles(a.w, a.m, l));
  p.token_tiles = static_cast<int32_t>(token_tiles(l, a.m));
  p.clusters = plan.blocks_n;
  p.parts = plan.splits;
  p.y_aligned = rows_aligned(a.y, a.m, a.y_stride);
  return p;
}

MatrixBoxes m24_many_x(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  return {.data = a.x,
          .rows = a.m,
          .cols = a.w.cols,
          .stride = a.m > 1 ? a.x_stride : t16::col_tiles(a.w.cols) * kBoxCols,
          .box_rows = kM24ManyLayouts[plan.many_layout].tokens};
}

MatrixBoxes m24_many_y(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  const int32_t tokens = kM24ManyLayouts[plan.many_layout].y_tokens();
  if (tokens == 0 || plan.splits > 1 || !rows_aligned(a.y, a.m, a.y_stride)) return {};
  return {.data = a.y,
          .rows = a.m,
          .cols = a.w.rows,
          .stride = a.m > 1 ? a.y_stride : ceil_div(a.w.rows, 8) * 8,
          .box_rows = tokens};
}

RecordBoxes m24_many_records(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  return {.data = a.w.records,
          .rows = t16::row_tiles(a.w.rows),
          .cols = t16::col_tiles(a.w.cols),
          .record_bytes = static_cast<int32_t>(m24::kRecordBytes),
          .box_rows = 4 * kM24ManyLayouts[plan.many_layout].groups};
}

}  // namespace tamis

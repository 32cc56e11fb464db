// Plan of the t16 product: warps, blocks and parts of k for a shape and a device.
#include <algorithm>
#include <cmath>

#include "ops/spmm/t16_params.h"

namespace tamis {
namespace {

// In SM clocks: fitted to 1150 times on an H100 (four shapes of Llama-3-8B, three densities, 1 and
// 16 tokens, every layout; bench/RESULTS.md). They only have to rank layouts: in that data what is
// chosen takes 3 % more than the best layout on average, and 12 % more at worst.
constexpr double kTileClocks = 79;         // decoding and multiplying one record of t16, 8 tokens
constexpr double kCodeTileClocks = 40;     // one of g4: issue; not fitted
constexpr double kSparseTileClocks = 25;   // one of m24: 13 of shared memory and issue; not fitted
constexpr double kTokenTileClocks = 6.6;   // each further 8 tokens: their loads from shared memory
constexpr double kTileLatency = 740;       // of one record through one warp
constexpr double kDramBytesPerClock = 11;  // of one SM
constexpr double kL2BytesPerClock = 20;    // likewise
constexpr double kCallClocks = 6500;       // what no layout changes
constexpr double kBlockClocks = 400;       // of each block of an SM
constexpr double kRoundClocks = 4400;      // blocks that start when others have ended
constexpr double kMeetingClocks = 1100;    // ticket, fence and first read of the last block
constexpr double kPartialRead = 0.3;       // of partial sums, the others are in time
constexpr double kUneven = 0.2;            // of a block's time, for which others wait
constexpr int32_t kSmWarps = 32;           // at most 64 registers per thread
constexpr int32_t kSparseSmWarps = 24;     // m24, g4: records in registers, at most 80

double tile_clocks(PackedFormat format) {
  return format == PackedFormat::t16   ? kTileClocks
         : format == PackedFormat::m24 ? kSparseTileClocks
                                       : kCodeTileClocks;
}

// Expected SM clocks of a call among others: the next one begins where SMs are free, so a last
// round that fills half of them costs half as much again as one whose blocks were shared out.
double clocks(const T16View& w, int64_t m, const SpmmT16Plan& p, const CudaDevice& device) {
  const int64_t col_tiles = t16::col_tiles(w.cols);
  const double tile_bytes =
      static_cast<double>(w.record_bytes) / static_cast<double>(t16::row_tiles(w.rows) * col_tiles);
  const int64_t blocks = int64_t{p.blocks_n} * p.splits;
  const auto most = static_cast<double>(ceil_div(blocks, device.sms));
  const double per_sm = (most + static_cast<double>(blocks) / device.sms) / 2;
  const int64_t fit =
      std::min<int64_t>(device.shared_per_sm / (p.shared_bytes + 1024),
                        (w.format == PackedFormat::t16 ? kSmWarps : kSparseSmWarps) / kBlockWarps);
  const double rounds = per_sm / std::min(per_sm, static_cast<double>(fit));
  const double share = static_cast<double>(col_tiles) / (p.splits * p.warps_k);
  const double tiles = most > 1 ? share : std::ceil(share);  // long and short shares mix
  const double per_tile = std::max(tile_clocks(w.format) + kTokenTileClocks * (p.token_tiles - 1),
                                   tile_bytes / kDramBytesPerClock);
  const double decode =
      std::max(per_sm * kBlockWarps * tiles * per_tile, rounds * tiles * kTileLatency);
  const double x_bytes = 2.0 * static_cast<double>(m) * 64 * tiles * p.warps_k;
  double all = kCallClocks + decode + kUneven * decode / per_sm + kBlockClocks * per_sm +
               (rounds - 1) * kRoundClocks + per_sm * x_bytes / kL2BytesPerClock;
  if (p.splits > 1) {
    const double partial = 4.0 * 16 * 8 * p.token_tiles * p.warps_n;
    all += kMeetingClocks + (per_sm + p.splits) * partial / kL2BytesPerClock * kPartialRead;
  }
  return all;
}

}  // namespace

SpmmT16Plan lay_out_spmm_t16(const T16View& w, int64_t m, int32_t warps_k, int32_t splits) {
  const int64_t row_tiles = t16::row_tiles(w.rows);
  SpmmT16Plan p{
      .token_tiles = m <= 8    ? 1
                     : m <= 16 ? 2
                     : m <= 32 ? 4
                               : 8,
      .warps_n = kBlockWarps / warps_k,
      .warps_k = warps_k,
      .splits = splits,
      .stage_bytes = w.format == PackedFormat::t16 ? static_cast<int32_t>(w.max_record_bytes) : 0};
  p.tokens = 8 * p.token_tiles;
  p.blocks_n = static_cast<int32_t>(ceil_div(row_tiles, p.warps_n));
  // 16 bytes more than a multiple of 128: neighbouring token rows start four banks apart, so the 16
  // byte loads of a quarter warp (two tokens, four lanes each) meet in no bank.
  p.x_pitch_bytes = static_cast<int32_t>(128 * ceil_div(t16::col_tiles(w.cols), splits) + 16);
  const int64_t ring = int64_t{kBlockWarps} * kStages * p.stage_bytes;
  const int64_t accumulators = int64_t{4} * p.token_tiles * 32 * 4;  // bytes of a warp's
  const int64_t sums = accumulators * p.warps_n * (warps_k - 1);
  p.shared_bytes = kXAt + std::max(m * p.x_pitch_bytes + ring, sums);
  if (splits > 1) p.workspace_bytes = kTicketBytes + accumulators * splits * row_tiles;
  return p;
}

Status plan_spmm_cuda(const T16View& w, int64_t m, const CudaDevice& device, SpmmT16Plan* plan) {
  return w.format == PackedFormat::gap     ? plan_spmm_gap(w, m, device, plan)
         : w.format == PackedFormat::sell4 ? plan_spmm_sell4(w, m, device, plan)
                                           : plan_spmm_t16(w, m, device, plan);
}

Status plan_spmm_t16(const T16View& w, int64_t m, const CudaDevice& device, SpmmT16Plan* plan) {
  if (m < 1 || m > kMaxTokens) {
    return error(Code::invalid_argument, "spmm: m: got %lld, wanted 1 to %lld on CUDA",
                 static_cast<long long>(m), static_cast<long long>(kMaxTokens));
  }
  const int64_t col_tiles = t16::col_tiles(w.cols);
  double best = 0;
  *plan = {};
  for (const int32_t warps_k : {1, 2, 4, 8}) {
    // 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, ...: those of the data, and more for wider x.
    for (int32_t splits = 1, step = 1; splits <= col_tiles; splits += step) {
      if (splits >= 6 && splits == 4 * step + 2 * step) step *= 2;
      const SpmmT16Plan candidate = lay_out_spmm_t16(w, m, warps_k, splits);
      if (candidate.shared_bytes > device.shared_per_block) continue;
      if (splits > 1 && candidate.blocks_n > kMaxTickets) continue;
      const double time = clocks(w, m, candidate, device);
      if (plan->splits == 0 || time < best) {
        *plan = candidate;
        best = time;
      }
    }
  }
  if (plan->splits > 0) return {};
  return error(Code::no_kernel,
               "spmm: w: got %lld columns, which fit no layout in %d bytes of "
               "shared memory",
               static_cast<long long>(w.cols), device.shared_per_block);
}

SpmmT16Params spmm_t16_params(const SpmmCudaArgs& a, const SpmmT16Plan& plan) {
  const bool aligned =
      reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && (a.m == 1 || a.x_stride % 8 == 0);
  auto* workspace = static_cast<uint8_t*>(a.workspace);
  return {.records = static_cast<const uint8_t*>(a.w.records),
          .offsets = a.w.offsets,
          .x = static_cast<const uint16_t*>(a.x),
          .bias = static_cast<const uint16_t*>(a.bias),
          .y = static_cast<uint16_t*>(a.y),
          .tickets = reinterpret_cast<uint32_t*>(workspace),
          .partial = reinterpret_cast<float*>(workspace + kTicketBytes),
          .x_stride = a.x_stride,
          .y_stride = a.y_stride,
          .rows = static_cast<int32_t>(a.w.rows),
          .cols = static_cast<int32_t>(a.w.cols),
          .m = static_cast<int32_t>(a.m),
          .row_tiles = static_cast<int32_t>(t16::row_tiles(a.w.rows)),
          .col_tiles = static_cast<int32_t>(t16::col_tiles(a.w.cols)),
          .warps_k = plan.warps_k,
          .splits = plan.splits,
          .x_pitch_bytes = plan.x_pitch_bytes,
          .stage_bytes = plan.stage_bytes,
          .x_aligned = aligned};
}

ExpandT16Params expand_t16_params(const T16View& w, void* out, int64_t out_stride) {
  return {.records = static_cast<const uint8_t*>(w.records),
          .offsets = w.offsets,
          .out = static_cast<uint16_t*>(out),
          .out_stride = out_stride,
          .dtype = w.dtype,
          .rows = static_cast<int32_t>(w.rows),
          .cols = static_cast<int32_t>(w.cols),
          .row_tiles = static_cast<int32_t>(t16::row_tiles(w.rows)),
          .col_tiles = static_cast<int32_t>(t16::col_tiles(w.cols)),
          .stage_bytes = static_cast<int32_t>(w.max_record_bytes),
          .out_aligned = reinterpret_cast<uintptr_t>(out) % 16 == 0 && out_stride % 8 == 0};
}

}  // namespace tamis

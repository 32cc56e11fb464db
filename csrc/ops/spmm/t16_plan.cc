// Plans of products on CUDA: for the t16 kernel warps, blocks and parts of k for a shape and a
// device.
#include <algorithm>
#include <cmath>

#include "ops/spmm/bitmap_f32_params.h"
#include "ops/spmm/bitmap_wgmma_params.h"
#include "ops/spmm/gap_params.h"
#include "ops/spmm/m24_many_params.h"
#include "ops/spmm/m24_wgmma_params.h"
#include "ops/spmm/p24_params.h"
#include "ops/spmm/r24_params.h"
#include "ops/spmm/sell4_params.h"
#include "ops/spmm/t16_params.h"

namespace tamis {
namespace {

// In SM clocks, of one SM. They only have to rank layouts.
struct Costs {
  double tile;                // decoding and multiplying one record, 8 tokens
  double token_tile = 6.6;    // each further 8 tokens: their loads from shared memory
  double latency = 740;       // of one record through one warp
  double dram_bytes = 11;     // a clock
  double l2_bytes = 20;       // likewise
  double block = 400;         // of each block of an SM
  double round = 4400;        // blocks that start when others have ended
  double meeting = 1100;      // ticket, fence and first read of the last block
  double partial_read = 0.3;  // of partial sums, the others are in time
  double uneven = 0.2;        // of a block's time, for which others wait
  double codes = 0;           // of a warp: a chunk of a token to codes
};
constexpr double kCallClocks = 6500;  // what no layout changes

// Tokens up to which warpgroups take it: machine code for that capability alone. On an H200 warps
// take 4.7 us for 1024 x 4096 and 8 tokens, groups 4.3, 7.4 and 5.2 for 32; fewer rows than that
// were not timed.
int64_t most_group_tokens(const PackedView& w, const CudaDevice& device) {
  constexpr int64_t kFewRecords = 4096, kMost = 1 << 16;
  const int64_t records = t16::row_tiles(w.rows) * t16::col_tiles(w.cols);
  const bool takes = w.format == PackedFormat::m24 && device.capability == 90;
  return takes && records >= kFewRecords ? kMost : 0;
}

// t16: fitted to 1150 times on an H100 (four shapes of Llama-3-8B, three densities, 1 and 16
// tokens, every layout; bench/results/gpu.md): what is chosen takes 3 % more than the best layout
// on average, and 12 % more at worst. m24 and g4 with it, but for what a record takes. m24i8 and
// t16i8: each to 800 times on an H200 (the same shapes, 1, 8, 16 and 32 tokens), 1 and 2 % more on
// average, 5 and 15 at worst; not what the parts really take. m24i8's codes: with 178, as fitted
// there, 4 tokens got blocks of all columns, which took 1.1 to 1.4 times as long as the best.
Costs costs_of(PackedFormat format) {
  constexpr Costs kBytes{.tile = 9.3,
                         .token_tile = 6.2,
                         .latency = 302,
                         .dram_bytes = 8.7,
                         .l2_bytes = 31,
                         .block = 1021,
                         .round = 9680,
                         .meeting = 3930,
                         .partial_read = 0.2,
                         .uneven = 0.24,
                         .codes = 350};
  switch (format) {
    case PackedFormat::t16:
      return {.tile = 79};
    case PackedFormat::m24:
      return {.tile = 25};
    case PackedFormat::g4:
      return {.tile = 40};
    case PackedFormat::gap:  // have plans of their own
    case PackedFormat::p24:
    case PackedFormat::r24:
    case PackedFormat::sell4:
    case PackedFormat::bitmap:
      break;
    case PackedFormat::m24i8:
    case PackedFormat::m24i4:
      return kBytes;
    case PackedFormat::t16i8:
      return {.tile = 20,
              .token_tile = 4.1,
              .latency = 734,
              .dram_bytes = 5,
              .l2_bytes = 37,
              .block = 1162,
              .round = 12954,
              .meeting = 868,
              .partial_read = 0.62,
              .uneven = 0.14,
              .codes = 91};
  }
  return {.tile = 79};
}
// Formats whose records pass through the ring in shared memory.
bool has_ring(PackedFormat format) {
  return format == PackedFormat::t16 || format == PackedFormat::t16i8;
}
// Tiles that parts of k keep together, and bytes of x that a product reads a column.
int64_t unit_tiles(PackedFormat format) {
  return has_byte_codes(format) ? kChunkTiles : 1;
}
int64_t x_bytes_of(PackedFormat format) {
  return has_byte_codes(format) ? 1 : 2;
}

// Warps of an SM, by registers of a thread.
int64_t sm_warps(PackedFormat format, int32_t token_tiles) {
  const bool few = !has_byte_codes(format) || token_tiles == 1;
  return !few ? 16 : has_byte_codes(format) || has_ring(format) ? 32 : 24;
}

// Expected SM clocks of a call among others: the next one begins where SMs are free, so a last
// round that fills half of them costs half as much again as one whose blocks were shared out.
double clocks(const PackedView& w, int64_t m, const SpmmCudaPlan& p, const CudaDevice& device) {
  const Costs cost = costs_of(w.format);
  const int64_t col_tiles = t16::col_tiles(w.cols);
  // m24i4 takes the layouts of m24i8: those that its own bytes would rank first took up to 1.4
  // times as long as the best, these up to 1.08 times.
  const double tile_bytes = w.format == PackedFormat::m24i4
                                ? static_cast<double>(m24i8::kRecordBytes)
                                : static_cast<double>(w.record_bytes) /
                                      static_cast<double>(t16::row_tiles(w.rows) * col_tiles);
  const int64_t blocks = int64_t{p.blocks_n} * p.splits;
  const auto most = static_cast<double>(ceil_div(blocks, device.sms));
  const double per_sm = (most + static_cast<double>(blocks) / device.sms) / 2;
  const int64_t fit = std::min<int64_t>(device.shared_per_sm / (p.shared_bytes + 1024),
                                        sm_warps(w.format, p.token_tiles) / kBlockWarps);
  const double rounds = per_sm / std::min(per_sm, static_cast<double>(fit));
  const auto unit = static_cast<double>(unit_tiles(w.format));
  const double share = static_cast<double>(col_tiles) / (p.splits * p.warps_k);
  // Long and short shares mix.
  const double tiles = most > 1 ? share : unit * std::ceil(share / unit);
  const double per_tile =
      std::max(cost.tile + cost.token_tile * (p.token_tiles - 1), tile_bytes / cost.dram_bytes);
  const double decode =
      std::max(per_sm * kBlockWarps * tiles * per_tile, rounds * tiles * cost.latency);
  const double x_bytes = static_cast<double>(x_bytes_of(w.format) * m) * 64 * tiles * p.warps_k;
  double all = kCallClocks + decode + cost.uneven * decode / per_sm + cost.block * per_sm +
               (rounds - 1) * cost.round + per_sm * x_bytes / cost.l2_bytes;
  if (m <= kCodesHere) {
    all += per_sm * static_cast<double>(m) * tiles * p.warps_k / unit * cost.codes / 4;
  }
  if (p.splits > 1) {
    const double partial = 4.0 * 16 * 8 * p.token_tiles * p.warps_n;
    all += cost.meeting + (per_sm + p.splits) * partial / cost.l2_bytes * cost.partial_read;
  }
  return all;
}

// Where the steps of x lie in a block's shared memory, and codes of x in the workspace.
int64_t step_bytes_at(const SpmmCudaPlan& p, int64_t m) {
  return kXAt + m * p.x_pitch_bytes + int64_t{kBlockWarps} * kStages * p.stage_bytes;
}
int64_t codes_at(const SpmmCudaPlan& p, int64_t row_tiles) {
  const int64_t partial = int64_t{512} * p.token_tiles * p.splits * row_tiles;
  return kWorkspaceTicketBytes + (p.splits > 1 ? partial : 0);
}

}  // namespace

SpmmCudaPlan lay_out_spmm_t16(const PackedView& w, int64_t m, int32_t warps_k, int32_t splits) {
  const int64_t row_tiles = t16::row_tiles(w.rows);
  SpmmCudaPlan p{.token_tiles = m <= 8    ? 1
                                : m <= 16 ? 2
                                : m <= 32 ? 4
                                          : 8,
                 .warps_n = kBlockWarps / warps_k,
                 .warps_k = warps_k,
                 .splits = splits,
                 .stage_bytes = has_ring(w.format) ? static_cast<int32_t>(w.max_record_bytes) : 0};
  if (w.format == PackedFormat::t16i8) p.stage_bytes *= 2;  // two stages of four records
  p.tokens = 8 * p.token_tiles;
  p.blocks_n = static_cast<int32_t>(ceil_div(row_tiles, p.warps_n));
  // 16 bytes more than a multiple of 128: neighbouring token rows start four banks apart, so the 16
  // byte loads of a quarter warp (two tokens, four lanes each) meet in no bank.
  const int64_t unit = unit_tiles(w.format), units = ceil_div(t16::col_tiles(w.cols), unit);
  const int64_t of_block = ceil_div(units, splits);
  p.x_pitch_bytes = static_cast<int32_t>(64 * x_bytes_of(w.format) * unit * of_block + 16);
  const int64_t ring = int64_t{kBlockWarps} * kStages * p.stage_bytes;
  const int64_t accumulators = int64_t{4} * p.token_tiles * 32 * 4;  // bytes of a warp's
  const int64_t sums = accumulators * p.warps_n * (warps_k - 1);
  p.shared_bytes = kXAt + std::max(m * p.x_pitch_bytes + ring, sums);
  if (splits > 1) p.workspace_bytes = kWorkspaceTicketBytes + accumulators * splits * row_tiles;
  if (has_byte_codes(w.format)) {
    p.shared_bytes = std::max(kXAt + sums, step_bytes_at(p, m) + of_block * 32 * p.token_tiles);
    if (m > kCodesHere) {
      p.workspace_bytes = codes_at(p, row_tiles) + units * (m * kStepColumns + 4 * kMaxTokens);
    }
  }
  return p;
}

int64_t most_tokens_cuda(const PackedView& w, const CudaDevice& device) {
  return w.format == PackedFormat::gap      ? kMaxGapTokens
         : w.format == PackedFormat::p24    ? kMaxP24Tokens
         : w.format == PackedFormat::r24    ? kMaxR24Tokens
         : w.format == PackedFormat::sell4  ? kSell4Tokens
         : w.format != PackedFormat::bitmap ? std::max(most_group_tokens(w, device), kMaxTokens)
         : w.dtype == DType::f32            ? kMaxBitmapF32Tokens
                                            : kMaxBitmapTokens;
}

Status columns_do_not_fit(const PackedView& w, int32_t tokens, const CudaDevice& device) {
  return error(Code::no_kernel,
               "spmm: w: got %lld columns, of which %d tokens do not fit in %d bytes of shared "
               "memory",
               static_cast<long long>(w.cols), tokens, device.shared_per_block);
}

Status plan_spmm_cuda(const PackedView& w, int64_t m, const CudaDevice& device,
                      SpmmCudaPlan* plan) {
  if (w.format == PackedFormat::gap) return plan_spmm_gap(w, m, device, plan);
  if (w.format == PackedFormat::p24) return plan_spmm_p24(w, m, device, plan);
  if (w.format == PackedFormat::r24) return plan_spmm_r24(w, m, device, plan);
  if (w.format == PackedFormat::sell4) return plan_spmm_sell4(w, m, device, plan);
  if (w.format == PackedFormat::bitmap && w.dtype == DType::f32) {
    return plan_spmm_bitmap_f32(w, m, device, plan);
  }
  if (w.format == PackedFormat::bitmap) return plan_spmm_bitmap(w, m, device, plan);
  const int64_t most = most_group_tokens(w, device);
  if (most == 0) return plan_spmm_t16(w, m, device, plan);
  if (m < 1 || m > most) {
    return error(Code::invalid_argument, "spmm: m: got %lld, wanted 1 to %lld on CUDA",
                 static_cast<long long>(m), static_cast<long long>(most));
  }
  // Of a small weight, 1024 x 4096, 64 tokens were not timed.
  const bool some = w.record_bytes >= 8192 * m24::kRecordBytes;
  return m > (some ? 32 : 64) ? plan_m24_many(w, m, device, plan)
                              : plan_m24_group(w, m, device, plan);
}

Status plan_spmm_t16(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan) {
  if (m < 1 || m > kMaxTokens) {
    return error(Code::invalid_argument, "spmm: m: got %lld, wanted 1 to %lld on CUDA",
                 static_cast<long long>(m), static_cast<long long>(kMaxTokens));
  }
  const int64_t most_splits = ceil_div(t16::col_tiles(w.cols), unit_tiles(w.format));
  double best = 0;
  *plan = {};
  for (const int32_t warps_k : {1, 2, 4, 8}) {
    // 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, ...: those of the data, and more for wider x.
    for (int32_t splits = 1, step = 1; splits <= most_splits; splits += step) {
      if (splits >= 6 && splits == 4 * step + 2 * step) step *= 2;
      const SpmmCudaPlan candidate = lay_out_spmm_t16(w, m, warps_k, splits);
      if (candidate.shared_bytes > device.shared_per_block) continue;
      if (splits > 1 && candidate.blocks_n > kWorkspaceTickets) continue;
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

SpmmT16Params spmm_t16_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  SpmmT16Params p{product_params(a)};
  p.row_tiles = static_cast<int32_t>(t16::row_tiles(a.w.rows));
  p.col_tiles = static_cast<int32_t>(t16::col_tiles(a.w.cols));
  p.warps_k = plan.warps_k;
  p.splits = plan.splits;
  p.x_pitch_bytes = plan.x_pitch_bytes;
  p.stage_bytes = plan.stage_bytes;
  return p;
}

SpmmI8Params spmm_i8_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  SpmmI8Params p{.base = spmm_t16_params(a, plan),
                 .scales = a.w.scales,
                 .groups = static_cast<int32_t>(scale_groups(a.w.cols, a.w.group_size)),
                 .group_tiles = static_cast<int32_t>(a.w.group_size / t16::kTileCols),
                 .codes = nullptr,
                 .steps = nullptr,
                 .steps_at = static_cast<int32_t>(step_bytes_at(plan, a.m))};
  if (a.m > kCodesHere) {
    const QuantizeXParams made = quantize_x_params(a, plan);
    p.codes = made.codes;
    p.steps = made.steps;
  }
  return p;
}

QuantizeXParams quantize_x_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  const SpmmT16Params base = spmm_t16_params(a, plan);
  const int64_t chunks = ceil_div(a.w.cols, kStepColumns);
  auto* codes = static_cast<int8_t*>(a.workspace) + codes_at(plan, base.row_tiles);
  return {.x = base.x,
          .x_stride = a.x_stride,
          .m = base.m,
          .cols = base.cols,
          .chunks = static_cast<int32_t>(chunks),
          .x_aligned = base.x_aligned,
          .codes = codes,
          .steps = reinterpret_cast<float*>(codes + a.m * chunks * kStepColumns)};
}

ExpandT16Params expand_t16_params(const PackedView& w, void* out, int64_t out_stride) {
  return {.records = static_cast<const uint8_t*>(w.records),
          .offsets = w.offsets,
          .out = static_cast<uint16_t*>(out),
          .out_stride = out_stride,
          .scales = w.scales,
          .groups = static_cast<int32_t>(scale_groups(w.cols, w.group_size)),
          .group_size = static_cast<int32_t>(group_columns(w.cols, w.group_size)),
          .dtype = w.dtype,
          .rows = static_cast<int32_t>(w.rows),
          .cols = static_cast<int32_t>(w.cols),
          .row_tiles = static_cast<int32_t>(t16::row_tiles(w.rows)),
          .col_tiles = static_cast<int32_t>(t16::col_tiles(w.cols)),
          .stage_bytes = static_cast<int32_t>(w.max_record_bytes),
          .out_aligned = rows_aligned(out, w.rows, out_stride)};
}

}  // namespace tamis

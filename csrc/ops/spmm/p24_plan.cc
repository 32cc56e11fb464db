// Plan of the p24 product: row tiles of a block and warps of a row tile.
#include <algorithm>

#include "ops/spmm/p24_params.h"

namespace tamis {
namespace {

// Shared memory for what a block of a cluster adds up, from byte `at` on.
void add_sums_of_cluster(int64_t at, SpmmCudaPlan* p) {
  const int64_t sums = ceil_div(p->warps_n * p->token_tiles, p->splits);
  p->stage_bytes = static_cast<int32_t>(at);  // where they lie
  p->shared_bytes = std::max(p->shared_bytes, at + 512 * p->splits * sums);
}

// Columns of x of a share of a panel.
int64_t part_cols(const PackedView& w, int32_t shares) {
  const int64_t cols = p24::panel_cols(w.cols, w.parts);
  return shares > 1 ? p24::half_end(cols) : cols;
}

}  // namespace

SpmmCudaPlan lay_out_spmm_p24(const PackedView& w, int64_t m, int32_t block_tiles, int32_t warps,
                              bool cluster, int32_t most_warps, int32_t first_cols, int32_t shares,
                              int64_t room) {
  const int64_t row_tiles = t16::row_tiles(w.rows);
  SpmmCudaPlan p{.token_tiles = p24_token_tiles(m),
                 .warps_n = block_tiles,
                 .warps_k = warps,
                 .blocks_n = static_cast<int32_t>(ceil_div(row_tiles, block_tiles)),
                 .splits = w.parts * shares};
  p.tokens = 8 * p.token_tiles;
  const int64_t sums = int64_t{512} * p.token_tiles;  // bytes of a warp's
  const int64_t x = part_cols(w, shares) * p24::kColumnBytes * p.token_tiles;
  const int64_t warp_sums = sums * block_tiles * warps;
  p.warp_sums_at = kP24XAt;
  const int64_t sums_end = kP24XAt + warp_sums;
  p.shared_bytes = std::max(kP24XAt + x, sums_end);
  p.cluster = cluster;
  if (p.splits > 1 && !cluster) {
    p.workspace_bytes = kWorkspaceTicketBytes + sums * p.splits * row_tiles;
  }
  if (cluster) add_sums_of_cluster(shares > 1 ? sums_end : p.shared_bytes, &p);
  if (const int64_t end = ceil_div(p.shared_bytes, 16) * 16;
      end + warp_sums <= room && shares == 1) {
    p.warp_sums_at = static_cast<int32_t>(end);
    p.shared_bytes = end + warp_sums;
  }
  p.first_cols = first_cols;
  if (first_cols > 0) {
    p.block_warps = most_warps;
    return p;
  }
  // A round of copying x takes as long with few warps as with all: as few rounds as can be.
  const int64_t chunks = ceil_div(part_cols(w, shares), kP24ChunkCols) * p.token_tiles;
  const int64_t rounds = ceil_div(chunks, 32 * std::max(most_warps, block_tiles * warps));
  p.block_warps =
      std::max(block_tiles * warps, static_cast<int32_t>(ceil_div(chunks, 32 * rounds)));
  return p;
}

namespace {

constexpr int32_t kMostOfTile = 10;        // warps; more are no better
constexpr int32_t kMostInTurns = 8;        // the same where they take records in turns
constexpr int32_t kMostOfPairs = 10;       // and these are of two of four, without clusters
constexpr int32_t kMostOfMany = 3;         // the same of halves, or of more than 32 tokens
constexpr int32_t kMostOfManyTriples = 2;  // of halves, one of three, more than 32 tokens
// Warps of a block that multiply one of three, 17 to 32 tokens: more of them only wait for shared
// memory, where loads of x meet.
constexpr int32_t kMultiplyingTriples = 16;
constexpr int32_t kClusterWarps = 12;  // of a block, two of which find room on an SM
constexpr int32_t kLongTiles = 4;      // row tiles of a block
constexpr int64_t kLongCols = 2048;    // of a panel
// At least, of columns that follow; more where a block has less to multiply meanwhile.
constexpr int32_t kCopyingWarps = 3, kCopyingOfFew = 6;

// Whether columns may follow while records are multiplied: timed to gain with 9 to 16 tokens.
constexpr bool may_follow(int64_t m) {
  return m > 8 && m <= 16;
}
constexpr bool takes_turns(int64_t m) {
  return may_follow(m) || m > 32;
}

// Warps of a row tile whose panels are a cluster, timed with panels of 1024 and two of 2048
// columns.
constexpr int32_t most_in_cluster(int32_t panels, int64_t m, bool pairs) {
  if (m > 32) return 4;
  if (panels == 2) return pairs ? 6 : 4;
  return m <= (pairs ? 24 : 16) ? 3 : 4;
}

Status no_room(const PackedView& w, int32_t tokens, const CudaDevice& device) {
  return error(Code::no_kernel,
               "spmm: w: got panels of %lld columns, of which %d tokens do not fit in %d bytes of "
               "shared memory",
               static_cast<long long>(p24::panel_cols(w.cols, w.parts)), tokens,
               device.shared_per_block);
}

}  // namespace

Status plan_spmm_p24(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan) {
  if (m < 1 || m > kMaxP24Tokens) {
    return error(Code::invalid_argument, "spmm: m: got %lld, wanted 1 to %lld for p24 weights",
                 static_cast<long long>(m), static_cast<long long>(kMaxP24Tokens));
  }
  const int64_t cols = p24::panel_cols(w.cols, w.parts);
  const int32_t token_tiles = p24_token_tiles(m);
  const int32_t most_warps = most_p24_warps(token_tiles);
  // Where x of a panel does not fit, blocks have half of a wide one each.
  const bool fits = kP24XAt + cols * p24::kColumnBytes * token_tiles <= device.shared_per_block;
  const bool halves = device.capability >= 90 && takes_p24_halves(token_tiles) && !fits;
  const int32_t shares = halves ? p24::halves_of(cols) : 1;
  const int64_t units = t16::row_tiles(w.rows) * w.parts * shares;
  const bool pairs = w.max_record_bytes == p24::kPairBytes;
  const auto lay_out = [&](int64_t blocks, int32_t most, bool cluster, int64_t room) {
    const auto tiles = static_cast<int32_t>(std::clamp<int64_t>(ceil_div(units, blocks), 1, most));
    const bool many = m > 32;
    const int32_t of_tile = shares > 1       ? (many && !pairs ? kMostOfManyTriples : kMostOfMany)
                            : cluster        ? most_in_cluster(w.parts, m, pairs)
                            : many           ? kMostOfMany
                            : takes_turns(m) ? (pairs ? kMostOfPairs : kMostInTurns)
                                             : kMostOfTile;
    const bool fewer = !pairs && !cluster && shares == 1 && m > 16 && !many;
    const int32_t multiplying = fewer ? std::min(most, kMultiplyingTriples) : most;
    return lay_out_spmm_p24(w, m, tiles, std::clamp(multiplying / tiles, 1, of_tile), cluster, most,
                            0, shares, room);
  };
  // Where panels only share out few row tiles, they are clusters of blocks of which two find room
  // on an SM, one of the next call's; blocks of a cluster of more than two need room side by side,
  // so a seventh of the SMs is left. Timed on an H200 (bench/results/gpu.md).
  if (device.capability >= 90 && w.parts > 1 && w.parts <= kMaxCluster && shares == 1 &&
      units <= 2 * int64_t{device.sms}) {
    const bool many = m > 32;  // of which one block, by registers
    const int64_t blocks = w.parts > 2 ? cluster_room(device.sms) : device.sms;
    const int64_t room = many ? device.shared_per_block : device.shared_per_sm / 2 - 1024;
    *plan = lay_out(std::max<int64_t>(1, blocks), many ? most_warps : kClusterWarps, true, room);
    if (plan->shared_bytes <= room) return {};
  }
  // One block an SM, as each copies its panel of x; the halves of the only one are a cluster. Where
  // it has long work, of two of four already with two row tiles, what all warps copy in one round
  // goes before, half of the columns at most, and the others follow while it multiplies.
  *plan = lay_out(device.sms, most_warps, w.parts == 1 && shares > 1, device.shared_per_block);
  if (device.capability >= 90 && may_follow(m) && plan->warps_n >= (pairs ? 2 : kLongTiles) &&
      cols >= kLongCols) {
    const int32_t copying = plan->warps_n < kLongTiles ? kCopyingOfFew : kCopyingWarps;
    const int32_t tiles = std::min(plan->warps_n, kMaxP24Warps - copying);
    constexpr int64_t kRoundCols = 32 * kMaxP24Warps * kP24ChunkCols / p24_token_tiles(16);
    static_assert(kRoundCols % p24::kChunkCols == 0, "whole chunks");
    const int64_t half = ceil_div(cols, 2 * p24::kChunkCols) * p24::kChunkCols;
    *plan = lay_out_spmm_p24(w, m, tiles, std::min((kMaxP24Warps - copying) / tiles, kMostInTurns),
                             false, kMaxP24Warps, static_cast<int32_t>(std::min(half, kRoundCols)),
                             1, device.shared_per_block);
  }
  return plan->shared_bytes > device.shared_per_block ? no_room(w, plan->tokens, device) : Status{};
}

SpmmP24Params spmm_p24_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  SpmmP24Params p{product_params(a)};
  p.row_tiles = static_cast<int32_t>(t16::row_tiles(a.w.rows));
  p.panel_cols = static_cast<int32_t>(p24::panel_cols(a.w.cols, a.w.parts));
  p.parts = plan.splits;
  p.shares = plan.splits / a.w.parts;
  p.part_halves = p24::halves_of(p.panel_cols) / p.shares;
  p.part_cols = static_cast<int32_t>(part_cols(a.w, p.shares));
  p.half_begin = static_cast<int32_t>(p24::half_begin(p.panel_cols));
  p.block_tiles = plan.warps_n;
  p.warps = plan.warps_k;
  p.block_warps = plan.block_warps;
  p.turns = plan.cluster || plan.first_cols > 0 || takes_turns(a.m);
  p.first_cols = plan.first_cols > 0 ? plan.first_cols : p.part_cols;
  p.cluster = plan.cluster;
  p.warp_sums_at = plan.warp_sums_at;
  p.sums_at = plan.stage_bytes;
  p.sums_over_x = plan.cluster && p.shares > 1;
  return p;
}

ExpandP24Params expand_p24_params(const PackedView& w, void* out, int64_t out_stride) {
  const int64_t width = p24::panel_cols(w.cols, w.parts);
  return {.records = static_cast<const uint8_t*>(w.records),
          .offsets = w.offsets,
          .out = static_cast<uint16_t*>(out),
          .out_stride = out_stride,
          .rows = static_cast<int32_t>(w.rows),
          .cols = static_cast<int32_t>(w.cols),
          .panels = w.parts,
          .panel_cols = static_cast<int32_t>(width),
          .halves = p24::halves_of(width),
          .row_bytes = static_cast<uint32_t>(p24_expand_bytes(width) / 8),
          .out_aligned = rows_aligned(out, w.rows, out_stride)};
}

}  // namespace tamis

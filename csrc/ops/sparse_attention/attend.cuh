// out[r] = sum_t p[r,t] v[t] / sum_t p[r,t], p = exp(f(scale q[r] . k[t]) + bias[t]), over the
// tokens of one segment, 8 query rows of a KV head at a time, on tensor cores with f32 sums. Tile:
// a warp takes a unit of 16 or 32 tokens as the 16-row operand (scores) and its transposed values
// as another (output), so up to 8 query rows cost one pass and their weights cross from one product
// to the next by transposing 8 x 8 blocks in registers. Warps stream their own units through rings
// in shared memory; nothing waits for another warp before the end. Reduction: online softmax a
// warp, then warps, then blocks in the workspace, added by the block that arrives last, or of two
// through the shared memory of a cluster; always in the same order, so results repeat bit for bit.
// Needs: tickets zero before the first call; every call leaves them zero. Tail: the last unit of
// rows repeats its last token, which does not count. After: Dao 2023 (flash-decoding), Liu et al.
// 2024 (KIVI).
#pragma once

#include "ops/sparse_attention/attend_end.cuh"
#include "ops/sparse_attention/attend_tail.cuh"

namespace tamis {

// Grid [splits, heads * row_tiles] of 32 * Config::kWarps. kTail: with a tail, for which pages
// alone would be 2 % slower.
template <class Config, bool kBulk, bool kTail = false>
TAMIS_DEVICE void attend(const AttentionCudaParams& p) {
  // The first launch of a call waits for those before, so that what begins after it need not: it
  // runs beside it. What is known without lists comes before that.
  const bool waits = p.first_split == 0;
  if (waits && (p.count != nullptr || p.index != nullptr)) dev::wait_for_previous();
  AttentionPlace at(p);
  at.first = Config::hidden(p, at);
  at.units -= at.first;
  const auto split = static_cast<int32_t>(dev::block_index_x());
  const int32_t tiles = Config::tiles_of(at.units);
  // Blocks take turns, so that those of a head read from one place of memory at a time.
  const int32_t first = split * Config::kWarps + static_cast<int32_t>(at.warp);
  const int32_t step = p.splits * Config::kWarps;
  typename Config::template Ring<kBulk> ring(p, at, first, tiles, step);
  if (waits) dev::wait_for_previous();
  dev::allow_next();
  ring.start();
  if (kBulk && p.cluster) expect_part<Config>(p, at);
  if constexpr (kTail) Tail<Config>(p, at).add(p, at);
  typename Config::Query query(p, at);
  WarpSums<Config::kHeldTiles> held;
  for (int32_t tile = first; tile < tiles; tile += step) {
    Config::add_tile(p, at, query, ring.wait(), tile, held);
    ring.release();
  }
  WarpSums<Config::kTiles> sums;
  Config::join(at, held, sums);
  if constexpr (kTail) Tail<Config>::join(p, at, sums);
  finish<Config, kBulk>(p, at, sums);
}

}  // namespace tamis

// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for up to 64 tokens.  w: m24, bf16 or f16; x, bias,
// y: the same dtype; accumulates f32 on the sparse tensor cores of sm_90a, which take 64 rows at a
// time. Tile: a warpgroup multiplies four records, one under another (64 rows x 64 columns), which
// lie in memory as its lanes feed them, with up to 64 tokens, which lie in shared memory once for
// all warpgroups of a block. x comes in panels of kDepth records along k, some ahead; records come
// with it, or go straight to registers, a panel ahead. Work: the panels of all output tiles (kRows
// rows, kTokens tokens) in one line, cut into equal shares, one a block, so that blocks end
// together whatever the shape. Reduction: where shares are equal parts of output tiles, a tile's
// blocks are a cluster and each adds up its part of their f32 sums through shared memory; else a
// share that begins or ends inside an output tile leaves them in the workspace, and the last of the
// tile's blocks to arrive adds them. Both add in the order of k, so results repeat bit for bit.
// Needs: tickets zero before the first call; every call leaves them zero. Launched so that it may
// begin before the kernel before it ends, it needs weights which that kernel did not write. Tail:
// records beyond the last column are two zeros of every four, x there is zero; rows and tokens
// beyond the end are not written. Tried: a fence of products for each record behind branches, where
// it waits for all loads (bench/results/gpu.md, H200). After: Osama et al. 2023 (Stream-K).
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "base/cuda/ticket.h"
#include "ops/spmm/m24_wgmma_params.h"
#include "ops/spmm/t16.cuh"

namespace tamis {

template <DType kTypeOf, int kTokensOf, int kGroupsOf, int kDepthOf, int kPanelsOf, int kBlocksOf,
          bool kDirectOf>
struct M24GroupConfig {
  static constexpr M24Layout kLayout = {kTokensOf, kGroupsOf, kDepthOf,
                                        kPanelsOf, kBlocksOf, kDirectOf};
  static constexpr DType kType = kTypeOf;       // of w, x, bias and y
  static constexpr int kTokens = kTokensOf;     // of an output tile: 8, 16, 32 or 64
  static constexpr int kRows = kLayout.rows();  // likewise; 64 of each warpgroup of a block
  static constexpr int kThreads = kLayout.threads();
  static constexpr int kDepth = kDepthOf;       // records along k of a panel
  static constexpr int kPanels = kPanelsOf;     // on their way through shared memory, and in use
  static constexpr int kMinBlocks = kBlocksOf;  // of an SM that registers must leave room for
  static constexpr bool kDirect =
      kDirectOf != 0;  // records go straight to registers, a panel ahead
  static constexpr int kTiles = kTokens / 8;
  static constexpr int kTileBytes = kTokens * 128;  // 64 columns of x
  static constexpr int kWarpBytes = kDepth * static_cast<int>(m24::kRecordBytes);
  // A panel: x, then each warp's records.
  static constexpr int kRecordsAt = kDepth * kTileBytes;
  static constexpr int kPanelBytes = kLayout.panel_bytes();
  static constexpr int kFlag = kPanels * kPanelBytes;
};

// The first panel of a block; the panels of a block end where those of the next begin.
TAMIS_DEVICE int32_t first_panel(const M24GroupParams& p, int32_t block) {
  return static_cast<int32_t>(int64_t{block} * p.panels / p.blocks);
}
// The block that has a panel.
TAMIS_DEVICE int32_t block_of_panel(const M24GroupParams& p, int32_t panel) {
  return static_cast<int32_t>((int64_t{panel + 1} * p.blocks - 1) / p.panels);
}

// Where a panel lies. Panels of k come first, then output tiles over tokens, then over rows.
struct PanelPlace {
  int32_t col, tokens, rows;  // in panels and output tiles

  TAMIS_DEVICE PanelPlace(const M24GroupParams& p, int32_t panel)
      : col(panel % p.col_panels),
        tokens(panel / p.col_panels % p.token_tiles),
        rows(panel / p.col_panels / p.token_tiles) {}
  TAMIS_DEVICE void advance(const M24GroupParams& p) {
    if (++col < p.col_panels) return;
    col = 0;
    if (++tokens < p.token_tiles) return;
    tokens = 0;
    ++rows;
  }
};

// Copies a panel of x: zeros beyond the last column, nothing beyond the last token.
template <class Config>
TAMIS_DEVICE void load_panel(const M24GroupParams& p, const PanelPlace& at_panel, uint32_t to,
                             uint32_t thread) {
  constexpr uint32_t kChunks = 8 * Config::kDepth;  // of 8 columns
  const int32_t first_token = at_panel.tokens * Config::kTokens;
  const int32_t left = p.m - first_token;
  const uint32_t tokens = left < Config::kTokens ? left : Config::kTokens;
  const int32_t first_col = at_panel.col * (64 * Config::kDepth);
  for (uint32_t i = thread; i < kChunks * tokens; i += Config::kThreads) {
    const uint32_t token = i / kChunks, chunk = i % kChunks;
    const int32_t col = first_col + 8 * static_cast<int32_t>(chunk);
    const int32_t valid = p.cols - col < 0 ? 0 : p.cols - col > 8 ? 8 : p.cols - col;
    const uint16_t* from = p.x + (first_token + token) * p.x_stride + (valid > 0 ? col : 0);
    const uint32_t at =
        to + chunk / 8 * Config::kTileBytes + token * 128 + 16 * ((chunk % 8) ^ (token % 8));
    if (p.x_aligned) {
      dev::copy_async16(at, from, 2 * valid);
    } else {
      for (int32_t j = 0; j < 8; ++j) {
        dev::store_shared<uint16_t>(at + 2 * j, j < valid ? dev::load_global(from + j) : 0);
      }
    }
  }
}

// Leaves this block's sums of an output tile of which it has only some panels; the block that
// arrives last adds up those of all and writes them. first_tile: no panel of the block comes
// before.
template <class Config>
TAMIS_DEVICE void meet_blocks(const M24GroupParams& p, const PanelPlace& at, bool first_tile,
                              uint32_t thread, const float (&c)[Config::kTiles][4]) {
  const int32_t tile = at.rows * p.token_tiles + at.tokens, tile_begin = tile * p.col_panels;
  // A block has at most two such tiles: the one it begins in and the one it ends in.
  const auto sums = [&](int32_t of, bool first) {
    return reinterpret_cast<dev::Word4*>(p.partial) +
           (int64_t{2} * of + (first ? 0 : 1)) * (Config::kTiles * Config::kThreads) + thread;
  };
  dev::Word4* mine = sums(static_cast<int32_t>(dev::block_index_x()), first_tile);
#pragma unroll
  for (int i = 0; i < Config::kTiles; ++i) {
    dev::store_volatile(mine + i * Config::kThreads,
                        dev::Word4{dev::bits_of(c[i][0]), dev::bits_of(c[i][1]),
                                   dev::bits_of(c[i][2]), dev::bits_of(c[i][3])});
  }
  const int32_t from = block_of_panel(p, tile_begin);
  const int32_t to = block_of_panel(p, tile_begin + p.col_panels - 1);
  if (!arrives_last(p.tickets + tile, static_cast<uint32_t>(to - from) + 1, Config::kFlag)) return;
  constexpr int kAtOnce = Config::kTiles < 4 ? Config::kTiles : 4;
  [[maybe_unused]] constexpr int kBlocksAtOnce =
      8 / kAtOnce;  // loads that do not wait for each other
#pragma unroll 1
  for (int i = 0; i < Config::kTiles; i += kAtOnce) {
    float sum[kAtOnce][4] = {};
#pragma unroll kBlocksAtOnce
    for (int32_t of = from; of <= to; ++of) {
      const dev::Word4* theirs = sums(of, of > from || first_panel(p, of) == tile_begin);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const dev::Word4 v = dev::load_volatile(theirs + (i + j) * Config::kThreads);
        sum[j][0] += dev::float_of(v.x);
        sum[j][1] += dev::float_of(v.y);
        sum[j][2] += dev::float_of(v.z);
        sum[j][3] += dev::float_of(v.w);
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      write_sums<Config>(p, at.rows * Config::kRows + static_cast<int32_t>(thread / 32 * 16),
                         at.tokens * Config::kTokens + 8 * (i + j), thread % 32, sum[j]);
    }
  }
}

// Adds up and writes the sums of an output tile whose blocks are a cluster: each a part of them.
template <class Config>
TAMIS_DEVICE void meet_cluster(const M24GroupParams& p, const PanelPlace& at, uint32_t thread,
                               const float (&c)[Config::kTiles][4]) {
  constexpr uint32_t kWarps = Config::kThreads / 32;
  const auto parts = static_cast<uint32_t>(p.parts);
  dev::sync_block();  // nobody reads panels any more
#pragma unroll
  for (int i = 0; i < Config::kTiles; ++i) {
    dev::store_shared<dev::Word4>(16 * (i * Config::kThreads + thread),
                                  {dev::bits_of(c[i][0]), dev::bits_of(c[i][1]),
                                   dev::bits_of(c[i][2]), dev::bits_of(c[i][3])});
  }
  dev::sync_block();
  dev::sync_cluster_unordered();
  // A warp of the cluster after another takes the sums of 8 tokens and 16 rows.
  for (uint32_t i = dev::block_index_x() % parts * kWarps + thread / 32;
       i < Config::kTiles * kWarps; i += parts * kWarps) {
    float sum[4] = {};
#pragma unroll 4
    for (uint32_t of = 0; of < parts; ++of) {
      const dev::Word4 v = dev::load_cluster4(of, 16 * (32 * i + thread % 32));
      sum[0] += dev::float_of(v.x);
      sum[1] += dev::float_of(v.y);
      sum[2] += dev::float_of(v.z);
      sum[3] += dev::float_of(v.w);
    }
    write_sums<Config>(p, at.rows * Config::kRows + static_cast<int32_t>(i % kWarps * 16),
                       at.tokens * Config::kTokens + static_cast<int32_t>(i / kWarps * 8),
                       thread % 32, sum);
  }
  dev::sync_cluster_unordered();  // until then others read this block's sums
}

// Grid [blocks] of kThreads, every `parts` of them a cluster.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(Config::kThreads, Config::kMinBlocks)
    spmm_m24_group(const M24GroupParams p) {
  constexpr int kDepth = Config::kDepth, kPanels = Config::kPanels;
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const int32_t begin = first_panel(p, block), end = first_panel(p, block + 1);

  uint32_t places[kDepth] = {};
  dev::Word4 first[kDepth] = {}, second[kDepth] = {};
  PanelPlace ahead(p, begin);  // the panel to be requested
  const uint8_t* record = nullptr;
  int32_t left = end - begin;  // panels to be requested
  const auto row_tile = [&](const PanelPlace& at) {
    return at.rows * (Config::kRows / 16) + static_cast<int32_t>(warp);
  };
  const auto find_row = [&](const PanelPlace& at) {
    record = p.records +
             (int64_t{row_tile(at)} * p.col_tiles + at.col * kDepth) * int64_t{m24::kRecordBytes};
  };
  const auto records = [&](const PanelPlace& at) {  // of this warp, or more
    return row_tile(at) < p.row_tiles ? p.col_tiles - at.col * kDepth : 0;
  };
  find_row(ahead);

  PanelPlace now = ahead, next = ahead;
  // Straight to registers, into those that a record's products leave.
  const auto request = [&](int slot, int32_t count) {
    const uint8_t* at = record + slot * m24::kRecordBytes;
    const uint8_t* values = at + m24::kPlaceBytes + 16 * lane;
    const bool wanted = slot < count;  // the same in every lane
    dev::load_stream_if(wanted, reinterpret_cast<const uint32_t*>(at + 4 * lane), places[slot]);
    dev::load_stream_if(wanted, reinterpret_cast<const dev::Word4*>(values), first[slot]);
    dev::load_stream_if(wanted, reinterpret_cast<const dev::Word4*>(values + m24::kStepBytes),
                        second[slot]);
  };
  if constexpr (Config::kDirect) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) request(slot, records(now));
  }

  uint32_t loaded = 0, used = 0;  // where the next panel begins in shared memory
  const auto step = [](uint32_t at) {
    return at + Config::kPanelBytes == Config::kFlag ? 0 : at + Config::kPanelBytes;
  };
  const auto load_records = [&] {
    if (left > 0) {
      const int32_t count = records(ahead) < kDepth ? records(ahead) : kDepth;
      const uint32_t to = loaded + Config::kRecordsAt + warp * Config::kWarpBytes;
      for (uint32_t i = 16 * lane; i < count * uint32_t{m24::kRecordBytes}; i += 16 * 32) {
        dev::copy_async16(to + i, record + i, 16);
      }
    }
  };
  const auto load_x = [&] {
    if (left > 0) {
      load_panel<Config>(p, ahead, loaded, thread);
      loaded = step(loaded);
      ahead.advance(p);
      if constexpr (!Config::kDirect) {
        record += kDepth * m24::kRecordBytes;
        if (ahead.col == 0) find_row(ahead);
      }
      --left;
    }
    dev::commit_async();
  };
  // Weights do not depend on the kernel before: the first ones are on their way while it ends.
  if constexpr (!Config::kDirect) load_records();
  dev::wait_for_previous();
  load_x();
#pragma unroll 1
  for (int i = 1; i < kPanels - 1; ++i) {
    if constexpr (!Config::kDirect) load_records();
    load_x();
  }

  for (int32_t panel = begin; panel < end;) {  // output tiles
    float c[Config::kTiles][4] = {};
    const int32_t first_panel = panel, tile_begin = panel - now.col;
    const int32_t tile_end = tile_begin + p.col_panels < end ? tile_begin + p.col_panels : end;
#pragma unroll 1
    for (; panel < tile_end; ++panel) {
      dev::wait_async<kPanels - 2>();
      dev::fence_shared_products();
      dev::sync_block();  // the panel is there, the one before it is done with
      if (panel == begin) dev::allow_next();
      if constexpr (!Config::kDirect) load_records();
      load_x();
      if constexpr (!Config::kDirect) {
        const uint32_t from = used + Config::kRecordsAt + warp * Config::kWarpBytes;
#pragma unroll
        for (int slot = 0; slot < kDepth; ++slot) {
          const uint32_t at = from + slot * static_cast<uint32_t>(m24::kRecordBytes);
          const uint32_t values = at + static_cast<uint32_t>(m24::kPlaceBytes) + 16 * lane;
          places[slot] = dev::load_shared<uint32_t>(at + 4 * lane);
          first[slot] = dev::load_shared<dev::Word4>(values);
          second[slot] =
              dev::load_shared<dev::Word4>(values + static_cast<uint32_t>(m24::kStepBytes));
        }
      }
      const int32_t here = p.col_tiles - next.col * kDepth;
      next.advance(p);
      int32_t after = 0;
      if constexpr (Config::kDirect) {
        record += kDepth * m24::kRecordBytes;
        if (next.col == 0) find_row(next);
        after = panel + 1 < end ? records(next) : 0;
      }
      // Beyond the last column: two zeros of every four.
      const auto clear = [&](int slot) {
        if (slot > 0 && slot >= here) {
          places[slot] = 0x44444444u;
          first[slot] = second[slot] = {};
        }
      };
      if constexpr (!Config::kDirect) {
#pragma unroll
        for (int slot = 1; slot < kDepth; ++slot) clear(slot);
        dev::fence_products();
      }
#pragma unroll
      for (int slot = 0; slot < kDepth; ++slot) {
        const uint64_t x = dev::matrix_at(used + slot * Config::kTileBytes);
        const uint64_t right = dev::matrix_at(used + slot * Config::kTileBytes + 64);
        if constexpr (Config::kDirect) {
          clear(slot);
          dev::fence_products();
        }
        multiply_group_sparse<Config::kType, 0>(c, first[slot], x, places[slot]);
        multiply_group_sparse<Config::kType, 1>(c, second[slot], right, places[slot]);
        if constexpr (Config::kDirect) {
          dev::commit_products();
          dev::wait_products<0>(c);
          request(slot, after);
        }
      }
      if constexpr (!Config::kDirect) {
        dev::commit_products();
        dev::wait_products<0>(c);
      }
      used = step(used);
    }
    if (tile_end - tile_begin == p.col_panels && first_panel == tile_begin) {
#pragma unroll
      for (int i = 0; i < Config::kTiles; ++i) {
        write_sums<Config>(p, 16 * row_tile(now), now.tokens * Config::kTokens + 8 * i, lane, c[i]);
      }
    } else if (p.parts > 1) {
      meet_cluster<Config>(p, now, thread, c);
    } else {
      meet_blocks<Config>(p, now, first_panel == begin, thread, c);
    }
    now.col = p.col_panels - 1;
    now.advance(p);
  }
}

}  // namespace tamis

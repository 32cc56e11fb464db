// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for many tokens.  w: m24, bf16 or f16; x, bias, y: the
// same dtype; accumulates f32 on the sparse tensor cores of sm_90a. Tile: a warpgroup multiplies 64
// rows with kTokens tokens; the warpgroups of a block have other rows and share x. A warp of one
// more warpgroup asks for stages, of 64 columns: a box of x and one of all warps' records. A
// barrier says that a stage is there, another one that nobody reads it any more. Products of a
// stage run while the next one's records come to registers. Blocks take output tiles in turns,
// tokens first, so weights are read from DRAM once and what is asked for stays ahead. Reduction:
// where parts of k are the blocks of a cluster, they have one tile and add up through shared
// memory, in the order of k. Launched so that it may begin before the kernel before it ends, it
// needs weights which that kernel did not write. Tail: columns of x beyond the last are zero,
// records there too, and rows beyond the last tile, which are not written. Tried: blocks of a
// cluster that send each other x or records, 4 to 50 % slower; no loading warps, so that 192 rows
// have registers; tiles that blocks share through memory (bench/results/gpu.md).
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/spmm/m24_many_params.h"

namespace tamis {

template <DType kTypeOf, int kTokensOf, int kGroupsOf, int kSlotsOf, int kBlocksOf>
struct M24ManyConfig {
  static constexpr M24ManyLayout kLayout = {kTokensOf, kGroupsOf, kSlotsOf, kBlocksOf};
  static constexpr DType kType = kTypeOf;       // of w, x, bias and y
  static constexpr int kTokens = kTokensOf;     // of an output tile: 64, 128, 192 or 256
  static constexpr int kRows = kLayout.rows();  // likewise
  static constexpr int kTiles = kTokens / 8;
  static constexpr int kWarps = 4 * kGroupsOf;  // that multiply
  static constexpr int kConsumers = kLayout.consumers();
  static constexpr int kThreads = kLayout.threads();
  static constexpr int kMinBlocks = kBlocksOf;  // of an SM
  static constexpr int kSlots = kSlotsOf;       // stages whose records a warp has in registers
  static constexpr int kTaken = kLayout.taken_registers();  // of a thread that multiplies
  static constexpr int kKept = kLayout.kept_registers();    // of another
  static constexpr int kStages = kLayout.stages();
  static constexpr uint32_t kStageBytes = kLayout.stage_bytes();
  static constexpr uint32_t kXBytes = kTokens * 2 * kBoxCols;
  static constexpr uint32_t kRecordBytes = static_cast<uint32_t>(m24::kRecordBytes);
  static constexpr uint32_t kFilledBytes = kXBytes + kWarps * kRecordBytes;  // of a stage
  static constexpr int kYTokens = kLayout.y_tokens();
  // Shared memory: stages, y of each warp or warpgroup, the barriers of stages that are there and
  // that are free.
  static constexpr uint32_t kYAt = kStages * kStageBytes;
  static constexpr uint32_t kThereAt = kYAt + static_cast<uint32_t>(kLayout.y_bytes());
  static constexpr uint32_t kFreeAt = kThereAt + 8 * kStages;
  static_assert(kStages >= 3, "two stages are read while a third one comes");
  static_assert(kTokens * kRows * 4 <= kStages * kLayout.stage_bytes(), "sums fit in stages");
};

// The panels of a block, of 64 columns, one after another.
template <class Config>
struct PanelCursor {
  const M24ManyParams& p;
  uint32_t part;
  int32_t begin, end;              // of every tile, over columns
  int32_t tile, col;               // in panels
  int32_t first_row, first_token;  // of the tile

  TAMIS_DEVICE explicit PanelCursor(const M24ManyParams& params)
      : p(params),
        part(dev::block_index_x() % static_cast<uint32_t>(params.parts)),
        begin(static_cast<int32_t>(part) * params.col_tiles / params.parts),
        end(static_cast<int32_t>(part + 1) * params.col_tiles / params.parts),
        tile(static_cast<int32_t>(dev::block_index_x()) / params.parts),
        col(begin) {
    find();
  }
  TAMIS_DEVICE bool more() const { return tile < p.tiles; }
  TAMIS_DEVICE bool reads() const { return more() && begin < end; }  // a part may have no panel
  TAMIS_DEVICE void find() {
    first_row = tile / p.token_tiles * Config::kRows;
    first_token = tile % p.token_tiles * Config::kTokens;
  }
  TAMIS_DEVICE void next_tile() {
    tile += p.clusters;
    find();
  }
  TAMIS_DEVICE void advance() {
    if (++col < end) return;
    col = begin;
    next_tile();
  }
};

// A stage of the ring, and how often it was used.
template <class Config>
struct StageCursor {
  uint32_t stage = 0, parity = 0;

  TAMIS_DEVICE uint32_t used() const { return parity * Config::kStages + stage; }  // for two rounds
  TAMIS_DEVICE uint32_t at() const { return stage * Config::kStageBytes; }
  TAMIS_DEVICE uint32_t there() const { return Config::kThereAt + 8 * stage; }
  TAMIS_DEVICE uint32_t free() const { return Config::kFreeAt + 8 * stage; }
  TAMIS_DEVICE void advance() {
    if (++stage < Config::kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// A stage's records.
template <class Config>
TAMIS_DEVICE void request_records(const PanelCursor<Config>& panel,
                                  const StageCursor<Config>& stage, uint32_t lane) {
  if (lane != 0) return;
  const M24ManyParams& p = panel.p;
  if (p.x_aligned) dev::barrier_expect(stage.there(), Config::kFilledBytes);
  dev::copy_records(stage.at() + Config::kXBytes, p.record_boxes, panel.col, panel.first_row / 16,
                    stage.there());
}

// Its x; where rows are not aligned the warp copies it, value by value.
template <class Config>
TAMIS_DEVICE void request_x(const PanelCursor<Config>& panel, const StageCursor<Config>& stage,
                            uint32_t lane) {
  const M24ManyParams& p = panel.p;
  const int32_t first_col = panel.col * kBoxCols;
  if (p.x_aligned) {
    if (lane == 0) {
      dev::copy_box(stage.at(), p.x_boxes, first_col, panel.first_token, stage.there());
    }
    return;
  }
  for (uint32_t i = lane; i < Config::kTokens * kBoxCols; i += 32) {
    const auto token = panel.first_token + static_cast<int32_t>(i / kBoxCols);
    const auto col = first_col + static_cast<int32_t>(i % kBoxCols);
    const bool inside = token < p.m && col < p.cols;
    const uint16_t x = inside ? dev::load_global(p.x + token * p.x_stride + col) : 0;
    const uint32_t at = 2 * i;
    dev::store_shared<uint16_t>(stage.at() + (at ^ (at >> 7 & 7) << 4), x);
  }
  dev::fence_shared_products();
  dev::sync_warp();
  if (lane == 0) {
    dev::barrier_expect(stage.there(), Config::kFilledBytes - Config::kXBytes);
  }
}

// The warp that asks for all stages. Weights do not depend on the kernel before: those of some are
// on their way while it ends. Where several blocks read the same, of two stages, for x of the first
// would wait for more.
template <class Config>
TAMIS_DEVICE void request_stages(const M24ManyParams& p, uint32_t lane) {
  const uint32_t early = p.token_tiles > 1 ? 2 : Config::kStages;
  StageCursor<Config> ahead, stage;
  for (PanelCursor<Config> panel(p); ahead.used() < early && panel.reads(); panel.advance()) {
    request_records(panel, ahead, lane);
    ahead.advance();
  }
  dev::wait_for_previous();
  PanelCursor<Config> panel(p);
  for (; stage.used() < Config::kStages && panel.reads(); panel.advance()) {
    if (stage.used() >= early) request_records(panel, stage, lane);
    request_x(panel, stage, lane);
    stage.advance();
  }
  for (; panel.reads(); panel.advance()) {
    dev::barrier_wait(stage.free(), stage.parity ^ 1);
    request_records(panel, stage, lane);
    request_x(panel, stage, lane);
    stage.advance();
  }
}

// What a lane adds to sums of its two rows of a warp's 16.
template <class Config>
struct Bias {
  float of[2] = {};

  TAMIS_DEVICE Bias(const M24ManyParams& p, int32_t first_row, uint32_t lane) {
    if (p.bias == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = first_row + static_cast<int32_t>(lane / 4) + 8 * half;
      if (row < p.rows) of[half] = widen<Config::kType>(dev::load_global(p.bias + row));
    }
  }
  // Matrices for store_matrices_transposed: two tiles of 8 tokens, the rows of each in two halves.
  TAMIS_DEVICE dev::Word4 rounded(const float (&a)[4], const float (&b)[4]) const {
    return {pack<Config::kType>(a[0] + of[0], a[1] + of[0]),
            pack<Config::kType>(a[2] + of[1], a[3] + of[1]),
            pack<Config::kType>(b[0] + of[0], b[1] + of[0]),
            pack<Config::kType>(b[2] + of[1], b[3] + of[1])};
  }
};

// Rounds and writes up to 32 tokens of a warp's 16 rows. at: 1024 bytes of the warp's.
template <class Config>
TAMIS_DEVICE void write_tokens(const M24ManyParams& p, int32_t first_row, int32_t first_token,
                               int32_t end_token, uint32_t at, uint32_t lane,
                               const float (&c)[4][4]) {
  if (end_token > p.m) end_token = p.m;
  if (first_row >= p.rows || first_token >= end_token) return;  // the same in every lane
  const Bias<Config> bias(p, first_row, lane);
  // A token's 16 rows are two pieces of 16 bytes, which change places every four tokens: eight
  // tokens of one matrix then meet in no bank.
  const auto piece_at = [at](uint32_t token, uint32_t half) {
    return at + 32 * token + 16 * (half ^ (token / 4 & 1));
  };
  dev::sync_warp();  // what was there has been read
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t token = 8 * (i + lane / 16) + lane % 8;
    dev::store_matrices_transposed(piece_at(token, lane / 8 % 2), bias.rounded(c[i], c[i + 1]));
  }
  dev::sync_warp();
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) {
    const uint32_t token = 16 * i + lane / 2, half = lane % 2;
    const auto rows = dev::load_shared<dev::Word4>(piece_at(token, half));
    const int32_t row = first_row + 8 * static_cast<int32_t>(half);
    const int32_t of_y = first_token + static_cast<int32_t>(token);
    if (of_y >= end_token || row >= p.rows) continue;
    uint16_t* y = p.y + of_y * p.y_stride + row;
    if (p.y_aligned && row + 8 <= p.rows) {
      *reinterpret_cast<dev::Word4*>(y) = rows;
    } else {
      const uint32_t pairs[4] = {rows.x, rows.y, rows.z, rows.w};
#pragma unroll
      for (int32_t j = 0; j < 8; ++j) {
        if (row + j < p.rows) y[j] = static_cast<uint16_t>(pairs[j / 2] >> (16 * (j % 2)));
      }
    }
  }
}

// Rounds and writes a tile, in boxes of a warpgroup's 64 rows.
template <class Config>
TAMIS_DEVICE void write_boxes(const M24ManyParams& p, int32_t first_row, int32_t first_token,
                              uint32_t thread, const float (&c)[Config::kTiles][4]) {
  const uint32_t group = thread / 128, warp = thread / 32 % 4, lane = thread % 32;
  const uint32_t at = Config::kYAt + group * (Config::kYTokens * 128);
  first_row += 64 * static_cast<int32_t>(group);
  const Bias<Config> bias(p, first_row + 16 * static_cast<int32_t>(warp), lane);
#pragma unroll
  for (int first = 0; first < Config::kTokens; first += Config::kYTokens) {
    if (thread % 128 == 0) dev::wait_boxes_read();  // what was there
    dev::sync_warps<128>(2 + group);
#pragma unroll
    for (int i = 0; i < Config::kYTokens / 8; i += 2) {
      const uint32_t token = 8 * (i + lane / 16) + lane % 8, half = lane / 8 % 2;
      dev::store_matrices_transposed(at + 128 * token + 16 * ((2 * warp + half) ^ token % 8),
                                     bias.rounded(c[first / 8 + i], c[first / 8 + i + 1]));
    }
    dev::fence_shared_products();
    dev::sync_warps<128>(2 + group);
    if (thread % 128 == 0) dev::store_box(p.y_boxes, first_row, first_token + first, at);
  }
}

// Writes the sums of a tile that the block has alone.
template <class Config>
TAMIS_DEVICE void write_tile(const M24ManyParams& p, const PanelCursor<Config>& tile,
                             uint32_t thread, const float (&c)[Config::kTiles][4]) {
  if constexpr (Config::kYTokens > 0) {
    if (p.y_aligned) {
      write_boxes<Config>(p, tile.first_row, tile.first_token, thread, c);
      return;
    }
  }
  const uint32_t lane = thread % 32, warp = thread / 32;
#pragma unroll
  for (int i = 0; i < Config::kTiles; i += 4) {
    const float (&sums)[4][4] = *reinterpret_cast<const float (*)[4][4]>(&c[i]);
    write_tokens<Config>(p, tile.first_row + 16 * static_cast<int32_t>(warp),
                         tile.first_token + 8 * i, p.m, Config::kYAt + 1024 * warp, lane, sums);
  }
}

// Adds up and writes the sums of a tile whose columns blocks of the cluster share: each a part of
// the tokens. Of all warps that multiply.
template <class Config>
TAMIS_DEVICE void add_parts(const M24ManyParams& p, const PanelCursor<Config>& tile,
                            uint32_t thread, const float (&c)[Config::kTiles][4]) {
  constexpr uint32_t kAtOnce = 4;  // parts, and tiles of 8 tokens, that are asked for together
  const uint32_t lane = thread % 32, warp = thread / 32;
  const auto place_of = [thread](uint32_t i) { return 16 * (i * Config::kConsumers + thread); };
  dev::sync_warps<1, Config::kConsumers>();  // nobody reads stages any more
#pragma unroll
  for (int i = 0; i < Config::kTiles; ++i) {
    dev::store_shared<dev::Word4>(place_of(i), {dev::bits_of(c[i][0]), dev::bits_of(c[i][1]),
                                                dev::bits_of(c[i][2]), dev::bits_of(c[i][3])});
  }
  dev::sync_warps<1, Config::kConsumers>();
  dev::sync_cluster_unordered();
  const auto parts = static_cast<uint32_t>(p.parts);
  const uint32_t end = (tile.part + 1) * Config::kTiles / parts;
#pragma unroll 1
  for (uint32_t first = tile.part * Config::kTiles / parts; first < end; first += kAtOnce) {
    float sum[kAtOnce][4] = {};
#pragma unroll 1
    for (uint32_t part = 0; part < parts; part += kAtOnce) {
      dev::Word4 v[kAtOnce][kAtOnce] = {};
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (uint32_t j = 0; j < kAtOnce; ++j) {
          const bool is_part = part + i < parts;
          dev::load_cluster4_if(is_part && first + j < end, is_part ? part + i : part,
                                place_of(first + j), v[i][j]);
        }
      }
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (uint32_t j = 0; j < kAtOnce; ++j) {
          sum[j][0] += dev::float_of(v[i][j].x);
          sum[j][1] += dev::float_of(v[i][j].y);
          sum[j][2] += dev::float_of(v[i][j].z);
          sum[j][3] += dev::float_of(v[i][j].w);
        }
      }
    }
    write_tokens<Config>(p, tile.first_row + 16 * static_cast<int32_t>(warp),
                         tile.first_token + 8 * static_cast<int32_t>(first),
                         tile.first_token + 8 * static_cast<int32_t>(end),
                         Config::kYAt + 1024 * warp, lane, sum);
  }
}

// The warps that multiply.
template <class Config>
struct Multiplier {
  StageCursor<Config> stage;  // the one to be multiplied
  uint32_t warp, lane;
  bool running = false;  // products of the stage before, with two slots
  uint32_t before = 0;
  uint32_t places[Config::kSlots];
  dev::Word4 first[Config::kSlots], second[Config::kSlots];
  float c[Config::kTiles][4];

  TAMIS_DEVICE explicit Multiplier(uint32_t thread) : warp(thread / 32), lane(thread % 32) {}

  TAMIS_DEVICE void release(uint32_t used) const {
    if (lane == 0) dev::barrier_arrive(Config::kFreeAt + 8 * used);
  }

  // Multiplies a stage by fragments in registers of that slot.
  template <int kSlot>
  TAMIS_DEVICE void multiply() {
    dev::barrier_wait(stage.there(), stage.parity);
    const uint32_t record = stage.at() + Config::kXBytes + warp * Config::kRecordBytes;
    const uint32_t values = record + static_cast<uint32_t>(m24::kPlaceBytes) + 16 * lane;
    places[kSlot] = dev::load_shared<uint32_t>(record + 4 * lane);
    first[kSlot] = dev::load_shared<dev::Word4>(values);
    second[kSlot] = dev::load_shared<dev::Word4>(values + static_cast<uint32_t>(m24::kStepBytes));
    const uint64_t x = dev::matrix_at(stage.at()), right = dev::matrix_at(stage.at() + 64);
    dev::fence_products();
    multiply_group_sparse<Config::kType, 0>(c, first[kSlot], x, places[kSlot]);
    multiply_group_sparse<Config::kType, 1>(c, second[kSlot], right, places[kSlot]);
    dev::commit_products();
    dev::wait_products<Config::kSlots - 1>(c);
    if constexpr (Config::kSlots == 1) {
      release(stage.stage);
    } else {
      if (running) release(before);
      running = true;
      before = stage.stage;
    }
    stage.advance();
  }

  // c: all panels of a tile.
  TAMIS_DEVICE void multiply_tile(int32_t panels) {
#pragma unroll
    for (auto& tile : c) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    running = false;
#pragma unroll 1
    for (; panels > 1; panels -= 2) {
      multiply<0>();
      multiply<Config::kSlots - 1>();
    }
    if (panels > 0) multiply<0>();
    if constexpr (Config::kSlots > 1) {
      dev::wait_products<0>(c);
      if (running) release(before);
    }
  }
};

// Grid [clusters * parts] of kThreads, every `parts` of them a cluster.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(Config::kThreads, Config::kMinBlocks)
    spmm_m24_many(const TAMIS_GRID_CONSTANT M24ManyParams p) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  if (thread == 0) {
    for (uint32_t i = 0; i < Config::kStages; ++i) {
      dev::barrier_init(Config::kThereAt + 8 * i);
      dev::barrier_init(Config::kFreeAt + 8 * i, Config::kWarps);
    }
    dev::fence_barrier_init();
    dev::prefetch_map(p.record_boxes);
    dev::prefetch_map(p.x_boxes);
  }
  dev::sync_block();
  dev::allow_next();
  if (warp >= Config::kWarps) {
    dev::keep_registers<Config::kKept>();
    if (warp == Config::kWarps) request_stages<Config>(p, lane);
    dev::sync_warp();
    if (p.parts > 1) dev::sync_cluster_unordered();  // add_parts'
  } else {
    dev::take_registers<Config::kTaken>();
    PanelCursor<Config> tile(p);
    Multiplier<Config> products(thread);
    for (; tile.more(); tile.next_tile()) {
      products.multiply_tile(tile.end - tile.begin);
      if (p.parts > 1) {
        add_parts<Config>(p, tile, thread, products.c);
        break;
      }
      write_tile<Config>(p, tile, thread, products.c);
    }
    if (Config::kYTokens > 0 && thread % 128 == 0) dev::wait_boxes_read();
  }
  if (p.parts > 1) dev::sync_cluster_unordered();  // until then others read this block's sums
}

}  // namespace tamis

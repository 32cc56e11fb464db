// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for up to 128 tokens. w: r24, bf16 or f16; x, bias, y:
// the same dtype; accumulates f32 on the tensor cores of sm_90a, densely. Tile: of 16 * kRowTiles
// rows and 64 columns at a time, a stage, warps of their own write each record as a dense tile of
// shared memory; x comes beside them as a box, 64 tokens for each warpgroup that multiplies. Those
// have x as the first operand and the weights as the second, so that what a product reads most is
// read once for 64 tokens, and rows of an output tile are any multiple of 16. Records come to slots
// of the warp that expands them by bulk copies, a few ahead. Reduction: parts of k are the blocks
// of a cluster, which send their f32 sums to the one that adds those rows up; or they leave
// them in the workspace, and the last block to arrive adds them, all its warps. Both add in the
// order of k, so results repeat bit for bit. Needs: tickets zero before the first call; every call
// leaves them zero. Launched so that it may begin before the kernel before it ends, it needs
// weights which that kernel did not write. Tail: the last row tile stands in for those beyond it, x
// beyond k and m is zero; rows and tokens beyond the end are not written. Bound by shared memory,
// 870 wavefronts a stage of 128 rows and 128 tokens, and by DRAM with 64. Tried: records straight
// to registers, where a warp waits for all that are on their way; fences of the expanding warps
// (bench/results/gpu.md, H200).
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "base/cuda/ticket.h"
#include "ops/spmm/r24_expand.cuh"

namespace tamis {

template <DType kTypeOf, int kRowTilesOf, int kGroupsOf, int kExpandersOf, int kStagesOf,
          int kSlotsOf>
struct R24Config {
  static constexpr R24Layout kLayout = {kRowTilesOf, kGroupsOf, kExpandersOf, kStagesOf, kSlotsOf};
  static constexpr DType kType = kTypeOf;               // of w, x, bias and y
  static constexpr uint32_t kRowTiles = kRowTilesOf;    // of an output tile, 16 rows each
  static constexpr uint32_t kGroups = kGroupsOf;        // that multiply, 64 tokens each
  static constexpr uint32_t kExpanders = kExpandersOf;  // warps
  static constexpr uint32_t kStages = kStagesOf;        // between them
  static constexpr uint32_t kSlots = kSlotsOf;          // records of a warp, on their way
  static constexpr int kRows = kLayout.rows();
  static constexpr int kTiles = kRows / 8;  // of a warpgroup's sums
  static constexpr int kThreads = kLayout.threads(), kConsumers = kLayout.consumers();
  static constexpr uint32_t kStageBytes = kLayout.stage_bytes(), kXAt = kLayout.weight_bytes();
  static constexpr uint32_t kXBytes = 64 * 2 * kBoxCols;  // of a warpgroup
  static constexpr uint32_t kSlotsAt = kLayout.slots_at(), kSlotBytes = kLayout.slot_bytes();
  static constexpr uint32_t kSlotEntries = kLayout.slot_entries();
  static constexpr uint32_t kBarriersAt = kLayout.barriers_at(), kFlagAt = kLayout.flag_at();
  static constexpr uint32_t kBarriers = kLayout.barriers(), kSumsThere = kLayout.sums_there();
  static_assert(kSlotEntries % 32 == 0, "a lane has as many as its neighbours");
  static_assert(kExpanders / kRowTiles < kStages, "a warp's next record may be as far ahead");
  static_assert((kTiles + kMaxCluster - 1) * 16 * kConsumers <= kLayout.slots_at(), "sums fit");

  // Barriers of stages and slots: whether they are there, or may be written.
  static TAMIS_DEVICE uint32_t stage_there(uint32_t stage) { return kBarriersAt + 16 * stage; }
  static TAMIS_DEVICE uint32_t stage_free(uint32_t stage) { return kBarriersAt + 16 * stage + 8; }
  static TAMIS_DEVICE uint32_t slot_there(uint32_t slot) {
    return kBarriersAt + 16 * kStages + 8 * slot;
  }
};

// A block's part of an output tile.
struct R24Part {
  int32_t tile, part;
  int32_t begin, end;  // column tiles

  TAMIS_DEVICE explicit R24Part(const SpmmR24Params& p) {
    part = static_cast<int32_t>(dev::block_index_x());
    tile = static_cast<int32_t>(dev::block_index_y());
    begin = part * p.panels + (part < p.longer ? part : p.longer);
    end = begin + p.panels + (part < p.longer ? 1 : 0);
  }
};

// A place in the ring of stages.
template <uint32_t kStages>
struct R24Ring {
  uint32_t stage = 0, parity = 0;

  TAMIS_DEVICE void advance(uint32_t by) {  // fewer than all
    stage += by;
    if (stage >= kStages) {
      stage -= kStages;
      parity ^= 1;
    }
  }
};

// Asks for x of a panel. One arrival either way; rows of x that begin anywhere those who multiply
// copy themselves.
template <class Config>
TAMIS_DEVICE void request_r24_x(const SpmmR24Params& p, const R24Part& at, uint32_t panel,
                                uint32_t stage) {
  const uint32_t there = Config::stage_there(stage);
  dev::barrier_expect(there, p.x_aligned ? Config::kGroups * Config::kXBytes : 0);
  if (!p.x_aligned) return;
  const uint32_t x = stage * Config::kStageBytes + Config::kXAt;
  const int32_t col = 64 * (at.begin + static_cast<int32_t>(panel));
#pragma unroll
  for (uint32_t g = 0; g < Config::kGroups; ++g) {
    dev::copy_box(x + g * Config::kXBytes, p.x_boxes, col, static_cast<int32_t>(64 * g), there);
  }
}

// A warp that expands. Records of a block go by row tile, then by column tile; a warp has every
// kExpanders-th.
template <class Config>
struct R24Expander {
  static constexpr uint32_t kRowTiles = Config::kRowTiles, kStep = Config::kExpanders;
  static constexpr uint32_t kSlots = Config::kSlots, kBatch = 32;  // of offsets, one a lane
  const SpmmR24Params& p;
  R24Part at;
  uint32_t warp, lane;
  uint32_t count, asked = 0;                        // records, and how many were requested
  uint32_t from[2] = {}, to[2] = {};                // offsets: of this batch and the next
  uint32_t begins[kSlots] = {}, ends[kSlots] = {};  // of records in slots

  // Of a thread that expands; another one's has no records.
  TAMIS_DEVICE R24Expander(const SpmmR24Params& params, const R24Part& part, uint32_t thread)
      : p(params), at(part), warp((thread - Config::kConsumers) / 32), lane(thread % 32) {
    const uint32_t all = kRowTiles * static_cast<uint32_t>(at.end - at.begin);
    count = warp < all ? (all - warp + kStep - 1) / kStep : 0;
    find(0, 0);
    find(kBatch, 1);
  }

  TAMIS_DEVICE void find(uint32_t first, int batch) {
    if (first + lane >= count) return;
    const uint32_t record = warp + kStep * (first + lane), tile = record % kRowTiles;
    int32_t row_tile = at.tile * static_cast<int32_t>(kRowTiles) + static_cast<int32_t>(tile);
    if (row_tile >= p.row_tiles) row_tile = p.row_tiles - 1;
    const uint32_t* offset =
        p.offsets + (int64_t{row_tile} * p.col_tiles + at.begin + record / kRowTiles);
    from[batch] = dev::load_global(offset);
    to[batch] = dev::load_global(offset + 1);
  }
  TAMIS_DEVICE const uint8_t* record_of(uint32_t slot) const {
    return p.records + int64_t{begins[slot]} * t16::kUnit;
  }
  TAMIS_DEVICE uint32_t slot_at(uint32_t slot) const {
    return Config::kSlotsAt + (warp * kSlots + slot) * Config::kSlotBytes;
  }
  TAMIS_DEVICE uint32_t slot_there(uint32_t slot) const {
    return Config::slot_there(warp * kSlots + slot);
  }
  TAMIS_DEVICE void request(uint32_t slot) {
    if (asked >= count) return;  // the same in every lane
    const auto owner = static_cast<int>(asked % kBatch);
    begins[slot] = static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(from[0]), owner));
    ends[slot] = static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(to[0]), owner));
    if (lane == 0) {
      const uint32_t all = 16 * (ends[slot] - begins[slot]);
      const uint32_t bytes = all < Config::kSlotBytes ? all : Config::kSlotBytes;
      dev::barrier_expect(slot_there(slot), bytes);
      dev::bulk_copy(slot_at(slot), record_of(slot), bytes, slot_there(slot));
    }
    if (++asked % kBatch != 0) return;
    from[0] = from[1];
    to[0] = to[1];
    find(asked + kBatch, 1);
  }
  TAMIS_DEVICE void start() {
#pragma unroll
    for (uint32_t slot = 0; slot < kSlots; ++slot) request(slot);
  }

  TAMIS_DEVICE void run() {
    uint32_t tile = warp % kRowTiles, panel = warp / kRowTiles, parity = 0;
    R24Ring<Config::kStages> ring;
    ring.advance(panel);
    for (uint32_t i = 0; i < count;) {
#pragma unroll
      for (uint32_t slot = 0; slot < kSlots; ++slot) {
        if (i++ >= count) break;  // the same in every lane
        expand(slot, parity, ring, tile, panel);
        uint32_t by = kStep / kRowTiles;
        tile += kStep % kRowTiles;
        if (kStep % kRowTiles != 0 && tile >= kRowTiles) {
          tile -= kRowTiles;
          ++by;
        }
        panel += by;
        ring.advance(by);
      }
      parity ^= 1;
    }
  }
  // Whoever has a stage's first row tile asks for x, too, but for the first stages'.
  TAMIS_DEVICE void expand(uint32_t slot, uint32_t parity, const R24Ring<Config::kStages>& ring,
                           uint32_t tile, uint32_t panel) {
    constexpr auto kCodeBytes = static_cast<uint32_t>(r24::kCodeBytes);
    constexpr auto kHeaderBytes = static_cast<uint32_t>(r24::kHeaderBytes);
    dev::barrier_wait(slot_there(slot), parity);
    const uint32_t record = slot_at(slot), entries = r24_entries(16 * (ends[slot] - begins[slot]));
    const uint8_t* where = record_of(slot);
    const uint32_t values = record + kCodeBytes + 16 * lane;
    const R24Lane of{
        dev::load_shared<uint32_t>(record + 4 * lane),
        {dev::load_shared<dev::Word4>(values), dev::load_shared<dev::Word4>(values + 512)}};
    uint32_t residual[Config::kSlotEntries / 32];
#pragma unroll
    for (uint32_t j = 0; j < Config::kSlotEntries / 32; ++j) {
      residual[j] = 0;
      if (lane + 32 * j < entries) {
        residual[j] = dev::load_shared<uint32_t>(record + kHeaderBytes + 128 * j + 4 * lane);
      }
    }
    dev::sync_warp();
    request(slot);
    const R24Columns columns(of);
    const uint32_t stage = ring.stage * Config::kStageBytes;
    const uint32_t to_tile = stage + tile * static_cast<uint32_t>(r24::kTileBytes);
    const uint32_t there = Config::stage_there(ring.stage);
    dev::barrier_wait(Config::stage_free(ring.stage), ring.parity ^ 1);
    if (tile == 0 && panel >= Config::kStages && lane == 0) {
      request_r24_x<Config>(p, at, panel, ring.stage);
    }
    columns.write(to_tile, lane);
    dev::sync_warp();
#pragma unroll
    for (uint32_t j = 0; j < Config::kSlotEntries / 32; ++j) {
      if (lane + 32 * j < entries) write_r24_entry(residual[j], to_tile);
    }
    if (entries > Config::kSlotEntries) {
      write_r24_residual(where, Config::kSlotEntries + lane, entries, to_tile);
    }
    dev::sync_warp();
    if (lane == 0) dev::barrier_arrive(there);
  }
};

// Two neighbouring rows of a token.
template <class Config>
TAMIS_DEVICE void write_r24(const SpmmR24Params& p, int32_t token, int32_t row, float first,
                            float second) {
  if (token >= p.m || row >= p.rows) return;
  const bool both = row + 1 < p.rows;
  if (p.bias != nullptr) {
    first += widen<Config::kType>(dev::load_global(p.bias + row));
    if (both) second += widen<Config::kType>(dev::load_global(p.bias + row + 1));
  }
  uint16_t* y = p.y + token * p.y_stride + row;
  if (p.y_paired && both) {
    *reinterpret_cast<uint32_t*>(y) = pack<Config::kType>(first, second);
  } else {
    y[0] = narrow<Config::kType>(first);
    if (both) y[1] = narrow<Config::kType>(second);
  }
}

// Sums of 8 rows, from `row` on, that thread `of` of those that multiply has.
template <class Config>
TAMIS_DEVICE void write_r24_sums(const SpmmR24Params& p, int32_t row, uint32_t of,
                                 const float (&sum)[4]) {
  const auto token = static_cast<int32_t>(of / 32 * 16 + of % 32 / 4);
  row += static_cast<int32_t>(2 * (of % 4));
  write_r24<Config>(p, token, row, sum[0], sum[1]);
  write_r24<Config>(p, token + 8, row, sum[2], sum[3]);
}

// A warpgroup copies its tokens of x as boxes lie.
template <class Config>
TAMIS_DEVICE void copy_r24_x(const SpmmR24Params& p, uint32_t group, uint32_t thread, int32_t col,
                             uint32_t to) {
#pragma unroll 4
  for (uint32_t i = thread % 128; i < 64 * 64; i += 128) {
    const uint32_t row = i / 64, c = i % 64;
    const auto token = static_cast<int32_t>(64 * group + row);
    const bool inside = token < p.m && col + static_cast<int32_t>(c) < p.cols;
    const uint16_t* x = p.x + token * p.x_stride + col + c;
    dev::store_shared<uint16_t>(to + r24_byte(row, c), inside ? dev::load_global(x) : uint16_t{0});
  }
  dev::sync_warps<128>(1 + group);
}

// A thread of a warpgroup that multiplies. Between products there is as little as can be: where
// the descriptors were put together from scratch, 64 tokens took 2 us more.
template <class Config, bool kBoxes>
TAMIS_DEVICE void multiply_r24(const SpmmR24Params& p, const R24Part& at, uint32_t thread,
                               float (&c)[Config::kTiles][4]) {
  const uint32_t group = dev::in_register(thread / 128), lane = thread % 32;
  const uint32_t x_at = Config::kXAt + Config::kXBytes * group;
  const uint64_t first_x = dev::matrix_at(x_at), first_w = dev::matrix_at(0);
  R24Ring<Config::kStages> ring;
  uint32_t before = 0;
  const int32_t panels = at.end - at.begin;
#pragma unroll 1
  for (int32_t i = 0; i < panels; ++i) {
    dev::barrier_wait(Config::stage_there(ring.stage), ring.parity);
    const uint32_t stage = ring.stage * Config::kStageBytes;
    if constexpr (!kBoxes) copy_r24_x<Config>(p, group, thread, 64 * (at.begin + i), stage + x_at);
    dev::fence_shared_products();  // here, where no loads are on their way that it would wait for
    const uint64_t x = dev::further(first_x, stage), w = dev::further(first_w, stage);
    dev::fence_products();
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      multiply_group_shared<Config::kType, true>(c, dev::further(x, 32 * s),
                                                 dev::further(w, 32 * s));
    }
    dev::commit_products();
    dev::wait_products<1>(c);
    if (i > 0 && lane == 0) dev::barrier_arrive(Config::stage_free(before));
    before = ring.stage;
    ring.advance(1);
  }
  dev::wait_products<0>(c);
}

TAMIS_DEVICE dev::Word4 r24_words(const float (&sum)[4]) {
  return {dev::bits_of(sum[0]), dev::bits_of(sum[1]), dev::bits_of(sum[2]), dev::bits_of(sum[3])};
}
TAMIS_DEVICE void add_r24(const dev::Word4& v, float (&sum)[4]) {
  sum[0] += dev::float_of(v.x);
  sum[1] += dev::float_of(v.y);
  sum[2] += dev::float_of(v.z);
  sum[3] += dev::float_of(v.w);
}

// Where a block of a cluster gets the sums of 8 rows that it adds up from part `of`: those of
// `share`, of every `parts` after another. They lie over stages that nobody reads any more.
template <class Config>
TAMIS_DEVICE uint32_t r24_sums_at(const SpmmR24Params& p, uint32_t share, uint32_t of) {
  return 16 * Config::kConsumers * (share * static_cast<uint32_t>(p.parts) + of);
}

// Sums of 8 rows that a block of a cluster adds up.
template <class Config>
TAMIS_DEVICE uint32_t r24_shares(const SpmmR24Params& p, const R24Part& at) {
  const auto parts = static_cast<uint32_t>(p.parts);
  return (Config::kTiles + parts - 1 - static_cast<uint32_t>(at.part)) / parts;
}

// Sends a thread's sums to those who add them up.
template <class Config>
TAMIS_DEVICE void send_r24(const SpmmR24Params& p, const R24Part& at, uint32_t thread,
                           const float (&c)[Config::kTiles][4]) {
  const auto part = static_cast<uint32_t>(at.part);
  uint32_t owner = 0, share = 0;
#pragma unroll
  for (uint32_t i = 0; i < Config::kTiles; ++i) {
    dev::send_cluster(owner, r24_sums_at<Config>(p, share, part) + 16 * thread, r24_words(c[i]),
                      Config::kSumsThere);
    if (++owner == static_cast<uint32_t>(p.parts)) owner = 0, ++share;
  }
}

// Adds up and writes a block's share of an output tile whose blocks are a cluster.
template <class Config>
TAMIS_DEVICE void meet_r24_cluster(const SpmmR24Params& p, const R24Part& at, uint32_t thread) {
  constexpr uint32_t kOf8 = Config::kConsumers / 32, kWarps = Config::kThreads / 32;
  const auto parts = static_cast<uint32_t>(p.parts), part = static_cast<uint32_t>(at.part);
  dev::barrier_wait(Config::kSumsThere, 0);
#pragma unroll 1
  for (uint32_t i = thread / 32; i < r24_shares<Config>(p, at) * kOf8; i += kWarps) {
    const uint32_t share = i / kOf8, of = 32 * (i % kOf8) + thread % 32;
    float sum[4] = {};
#pragma unroll 4
    for (uint32_t from = 0; from < parts; ++from) {
      add_r24(dev::load_shared<dev::Word4>(r24_sums_at<Config>(p, share, from) + 16 * of), sum);
    }
    write_r24_sums<Config>(
        p, at.tile * Config::kRows + static_cast<int32_t>(8 * (share * parts + part)), of, sum);
  }
}

// Where a part of an output tile leaves its sums for the others.
template <class Config>
TAMIS_DEVICE dev::Word4* r24_sums(const SpmmR24Params& p, int32_t tile, int32_t part) {
  return reinterpret_cast<dev::Word4*>(p.partial) +
         (int64_t{tile} * p.parts + part) * (Config::kTiles * Config::kConsumers);
}

// Of the block that is the last of its output tile to arrive, all threads add up and write.
template <class Config>
TAMIS_DEVICE void meet_r24_blocks(const SpmmR24Params& p, const R24Part& at, uint32_t thread) {
  if (!arrives_last(p.tickets + at.tile, static_cast<uint32_t>(p.parts), Config::kFlagAt)) return;
  const dev::Word4* sums = r24_sums<Config>(p, at.tile, 0);
  const int32_t row = at.tile * Config::kRows;
#pragma unroll 2
  for (uint32_t i = thread; i < Config::kTiles * Config::kConsumers; i += Config::kThreads) {
    float sum[4] = {};
#pragma unroll 4
    for (int32_t part = 0; part < p.parts; ++part) {
      add_r24(
          dev::load_volatile(sums + (int64_t{part} * (Config::kTiles * Config::kConsumers) + i)),
          sum);
    }
    write_r24_sums<Config>(p, row + static_cast<int32_t>(8 * (i / Config::kConsumers)),
                           i % Config::kConsumers, sum);
  }
}

// Writes a thread's sums, or leaves them where all of the output tile's blocks meet.
template <class Config>
TAMIS_DEVICE void leave_r24(const SpmmR24Params& p, const R24Part& at, uint32_t thread,
                            const float (&c)[Config::kTiles][4]) {
  if (p.cluster) {
    dev::sync_cluster_unordered();  // nobody reads stages any more
    send_r24<Config>(p, at, thread, c);
  } else if (p.parts > 1) {
    dev::Word4* mine = r24_sums<Config>(p, at.tile, at.part) + thread;
#pragma unroll
    for (uint32_t i = 0; i < Config::kTiles; ++i) {
      dev::store_volatile(mine + i * Config::kConsumers, r24_words(c[i]));
    }
  } else {
#pragma unroll
    for (uint32_t i = 0; i < Config::kTiles; ++i) {
      write_r24_sums<Config>(p, at.tile * Config::kRows + static_cast<int32_t>(8 * i), thread,
                             c[i]);
    }
  }
}

// Makes the barriers of a block, each warp some of them: one after another they take some 80 clocks
// each, 1.8 us of a call in all.
template <class Config>
TAMIS_DEVICE void begin_r24(const SpmmR24Params& p, const R24Part& at, uint32_t thread) {
  constexpr uint32_t kWarps = Config::kThreads / 32, kLast = Config::kBarriers - 1;
  static_assert(Config::kSumsThere == Config::kBarriersAt + 8 * kLast);
  if (thread % 32 != 0) return;
  for (uint32_t i = thread / 32; i < Config::kBarriers; i += kWarps) {
    const uint32_t of_stage = i % 2 == 0 ? Config::kRowTiles + 1 : 4 * Config::kGroups;
    dev::barrier_init(Config::kBarriersAt + 8 * i, i < 2 * Config::kStages ? of_stage : 1);
  }
  dev::fence_barrier_init();
  if (thread / 32 == kLast % kWarps && p.cluster) {
    dev::barrier_expect(Config::kSumsThere, 16 * Config::kConsumers * r24_shares<Config>(p, at) *
                                                static_cast<uint32_t>(p.parts));
  }
  // By a warp that does not ask for x: it waits for that.
  if (thread == 32 && p.x_aligned) dev::prefetch_map(p.x_boxes);
}

// Grid [parts, output tiles] of kThreads, the parts of an output tile a cluster or not.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(Config::kThreads, 1)
    spmm_r24(const TAMIS_GRID_CONSTANT SpmmR24Params p) {
  const uint32_t thread = dev::thread_index();
  const R24Part at(p);
  begin_r24<Config>(p, at, thread);  // before loads are on their way, which its fence waits for
  dev::sync_warp();
  R24Expander<Config> expander(p, at, thread);
  dev::sync_block();
  if (thread >= Config::kConsumers) {
    // Weights do not depend on the kernel before: stages fill while it ends.
    expander.start();
    expander.run();
    if (p.cluster) dev::sync_cluster_unordered();
  } else {
    dev::wait_for_previous();
    dev::allow_next();
    if (thread == 0) {
      const auto panels = static_cast<uint32_t>(at.end - at.begin);
      for (uint32_t i = 0; i < Config::kStages && i < panels; ++i) {
        request_r24_x<Config>(p, at, i, i);
      }
    }
    dev::sync_warp();
    float c[Config::kTiles][4] = {};
    if (p.x_aligned) {
      multiply_r24<Config, true>(p, at, thread, c);
    } else {
      multiply_r24<Config, false>(p, at, thread, c);
    }
    leave_r24<Config>(p, at, thread, c);
  }
  if (p.parts == 1) return;
  if (p.cluster) {
    meet_r24_cluster<Config>(p, at, thread);
  } else {
    meet_r24_blocks<Config>(p, at, thread);
  }
}

}  // namespace tamis

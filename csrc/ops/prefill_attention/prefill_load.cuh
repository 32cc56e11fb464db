// What brings queries, keys and values to the warpgroups of prefill_wgmma.cuh.
#pragma once

#include "base/cuda/dev.h"
#include "ops/prefill_attention/prefill_stage.cuh"
#include "ops/prefill_attention/prefill_work.cuh"

namespace tamis {

// The warpgroup that copies: each warp 32 rows of a tile, whole rows at a time.
template <class Config>
struct PrefillLoader {
  static constexpr uint32_t kPass = 32 / Config::kChunks;  // rows
  const PrefillGroupParams& g;
  uint32_t warp, lane;
  PrefillStage<Config> ring;
  uint32_t parity = 0;  // of the queries' barrier
  uint32_t turn = 0;

  TAMIS_DEVICE PrefillLoader(const PrefillGroupParams& params, uint32_t thread)
      : g(params), warp(thread / 32 % 4), lane(thread % 32) {}

  // mine: row 32 * warp + lane of the tile is that one; below 0: none.
  template <uint32_t kPartBytes>
  TAMIS_DEVICE void copy_rows(uint32_t to, const uint8_t* from, int64_t step, int32_t mine) const {
    const uint32_t chunk = lane % Config::kChunks, of_pass = lane / Config::kChunks;
    const uint32_t at = to + chunk / 8 * kPartBytes + 128 * (32 * warp + of_pass);
    from += 16 * chunk;
#pragma unroll(Config::kBoxes ? 2 : 32 / kPass)
    for (uint32_t i = 0; i < 32 / kPass; ++i) {
      const int32_t row = dev::shuffle(mine, static_cast<int>(kPass * i + of_pass));
      const uint32_t place = 16 * ((chunk ^ of_pass ^ kPass * i) & 7);
      dev::copy_async16(at + 128 * kPass * i + place, from + (row < 0 ? 0 : row) * step,
                        row < 0 ? 0 : 16);
    }
  }
  // The same of neighbouring tokens from the first of each box on.
  TAMIS_DEVICE void copy_boxes(uint32_t to, const TensorMap& boxes, int32_t token, int32_t kv_head,
                               int32_t batch, uint32_t barrier) const {
    const uint32_t row = 32 * warp + lane;
    if (row % kPrefillBoxTokens != 0) return;
    copy_box<Config::kPartBytes>(to + 128 * row, boxes, token, kv_head, batch, barrier);
  }
  template <uint32_t kPartBytes>
  static TAMIS_DEVICE void copy_box(uint32_t to, const TensorMap& boxes, int32_t token,
                                    int32_t head, int32_t batch, uint32_t barrier) {
    dev::barrier_expect_more(barrier, kPrefillBoxTokens * 2 * Config::kDim);
#pragma unroll
    for (uint32_t part = 0; part < Config::kDim / 64; ++part) {
      dev::copy_head_box(to + part * kPartBytes, boxes, static_cast<int32_t>(64 * part), token,
                         head, batch, barrier);
    }
  }

  // All tiles of a work; the next one. The first tile waits for the queries of the work before to
  // be multiplied.
  TAMIS_DEVICE int32_t load(int32_t number) {
    const PrefillParams& p = g.p;
    const PrefillWork work(g, number);
    if (!work.any()) return next(number, take());
    int32_t taken = 0;
    const auto row = static_cast<int32_t>(32 * warp + lane);
    load_queries(work);
    PrefillEntries<!Config::kBoxes> entries(g, work);
    bool more = entries.count > 0 && entries.find(row);
    const bool none = !more;
    const int32_t kv_head = quotient(work.head, g.by_group);
    const uint8_t* keys = p.keys + work.batch * p.key_batch + kv_head * p.key_head;
    const uint8_t* values = p.values + work.batch * p.value_batch + kv_head * p.value_head;
    do {
      const bool exists = entries.first + row < entries.end;
      const int32_t own = entries.own, box = g.packed ? entries.first + row : own;
      uint32_t flags = entries.cut() ? uint32_t{kPrefillCut} : 0;
      if (none) flags = kPrefillNone;
      dev::barrier_wait(ring.keys_free(), ring.parity ^ 1);
      if (!none && (Config::kBoxes || g.boxes)) {
        copy_boxes(ring.keys(), g.key_boxes, box, kv_head, work.batch, ring.keys_there());
      } else if (!none) {
        copy_rows<Config::kPartBytes>(ring.keys(), keys, p.key_token, own);
      }
      dev::barrier_arrive_copied(ring.keys_there());
      entries.first += Config::kKeys;
      more = more && entries.find(row);
      if (!more) {
        flags |= kPrefillLast;
        taken = take();
      }
      dev::store_shared<int32_t>(ring.list_at() + 4 * static_cast<uint32_t>(row),
                                 exists ? own : -1);
      if (row == 0) {
        dev::store_shared<dev::Word4>(ring.info_at(), {flags, static_cast<uint32_t>(entries.base),
                                                       static_cast<uint32_t>(entries.sink),
                                                       static_cast<uint32_t>(entries.window)});
      }
      dev::barrier_arrive(ring.keys_there());  // what is stored
      dev::barrier_wait(ring.values_free(), ring.parity ^ 1);
      if (!none && (Config::kBoxes || g.boxes)) {
        copy_boxes(ring.values(), g.value_boxes, box, kv_head, work.batch, ring.values_there());
      } else if (!none) {
        copy_rows<Config::kPartBytes>(ring.values(), values, p.value_token, own);
      }
      dev::barrier_arrive_copied(ring.values_there());
      ring.advance();
    } while (more);
    return next(number, taken);
  }
  // A work that no block has taken, for the first thread to know: as late as the wait for it still
  // hides behind tiles on their way, so that blocks end together.
  TAMIS_DEVICE int32_t take() const {
    if (g.ticket == nullptr || warp != 0 || lane != 0) return 0;
    const uint32_t taken = dev::atomic_add(g.ticket, 1);
    // Every work takes one, so this is the last of all blocks'.
    if (taken == static_cast<uint32_t>(g.works) - 1) dev::store_volatile<uint32_t>(g.ticket, 0);
    return g.blocks + static_cast<int32_t>(taken);
  }
  TAMIS_DEVICE int32_t next(int32_t number, int32_t taken) {
    if (g.ticket == nullptr) return number + g.blocks;
    const uint32_t at = Config::kNextAt + 4 * turn;  // the other is still read
    turn ^= 1;
    if (warp == 0 && lane == 0) dev::store_shared<int32_t>(at, taken);
    dev::sync_warps<Config::kGroups + 1, 128>();  // others take turns at those before
    return dev::load_shared<int32_t>(at);
  }
  TAMIS_DEVICE void load_queries(const PrefillWork& work) {
    dev::barrier_wait(PrefillStage<Config>::queries_free(), parity ^ 1);
    parity ^= 1;
    if (warp == 0 && lane == 0) {
      dev::store_shared<int32_t>(Config::kHeadAt, work.batch * g.p.heads + work.head);
    }
#pragma unroll 1
    for (uint32_t part = 0; part < Config::kQueries; part += 128) {
      const uint32_t warp_row = part + 32 * warp, row = warp_row + lane;
      if (warp_row >= Config::kQueries) break;
      const int32_t mine = work.query_of_row(g, static_cast<int32_t>(row));
      const int32_t head = work.head_of_row(g, static_cast<int32_t>(warp_row));
      if (!g.query_boxed) {
        const uint8_t* from = g.p.q + work.batch * g.p.q_batch + head * g.p.q_head;
        copy_rows<Config::kQueryPartBytes>(Config::kQueriesAt + 128 * part, from, g.p.q_token,
                                           mine);
      } else if (row % kPrefillBoxTokens == 0) {
        const int32_t first = g.heads_of_block == 1 ? static_cast<int32_t>(row) : 0;
        copy_box<Config::kQueryPartBytes>(Config::kQueriesAt + 128 * row, g.query_boxes,
                                          work.first + first, head, work.batch, ring.keys_there());
      }
      dev::store_shared<int32_t>(Config::kTokensAt + 4 * row, mine < 0 ? -1 : g.p.first + mine);
    }
  }
  // Nothing follows.
  TAMIS_DEVICE void end() const {
    dev::barrier_wait(ring.keys_free(), ring.parity ^ 1);
    if (warp == 0 && lane == 0) {
      dev::store_shared<dev::Word4>(ring.info_at(), {kPrefillEnd, 0, 0, 0});
    }
    dev::barrier_arrive_copied(ring.keys_there());
    dev::barrier_arrive(ring.keys_there());
  }
};

}  // namespace tamis

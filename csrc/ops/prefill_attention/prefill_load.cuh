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

  TAMIS_DEVICE PrefillLoader(const PrefillGroupParams& params, uint32_t thread)
      : g(params), warp(thread / 32 % 4), lane(thread % 32) {}

  // mine: row 32 * warp + lane of the tile is that one; below 0: none.
  TAMIS_DEVICE void copy_rows(uint32_t to, const uint8_t* from, int64_t step, int32_t mine) const {
    const uint32_t chunk = lane % Config::kChunks, of_pass = lane / Config::kChunks;
    const uint32_t at = to + chunk / 8 * Config::kPartBytes + 128 * (32 * warp + of_pass);
    from += 16 * chunk;
#pragma unroll
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
    dev::barrier_expect_more(barrier, kPrefillBoxTokens * 2 * Config::kDim);
#pragma unroll
    for (uint32_t part = 0; part < Config::kDim / 64; ++part) {
      dev::copy_head_box(to + part * Config::kPartBytes + 128 * row, boxes,
                         static_cast<int32_t>(64 * part), token, kv_head, batch, barrier);
    }
  }

  // All tiles of a work. The first waits for the queries of the work before to be multiplied.
  TAMIS_DEVICE void load(int32_t number) {
    const PrefillParams& p = g.p;
    const PrefillWork work(g, number);
    if (!work.any()) return;
    const auto row = static_cast<int32_t>(32 * warp + lane);
    PrefillEntries entries(p, work);
    bool more = entries.count > 0 && entries.find(row), first = true;
    const bool none = !more;
    const int32_t query = work.query_of_row(g, row), kv_head = work.head / p.group;
    const uint8_t* keys = p.keys + work.batch * p.key_batch + kv_head * p.key_head;
    const uint8_t* values = p.values + work.batch * p.value_batch + kv_head * p.value_head;
    do {
      const bool exists = entries.first + row < entries.end;
      const int32_t own = entries.own, box = g.packed ? entries.first + row : own;
      uint32_t flags = entries.cut() ? uint32_t{kPrefillCut} : 0;
      if (none) flags = kPrefillNone;
      dev::barrier_wait(ring.keys_free(), ring.parity ^ 1);
      if (!none && g.boxes) {
        copy_boxes(ring.keys(), g.key_boxes, box, kv_head, work.batch, ring.keys_there());
      } else if (!none) {
        copy_rows(ring.keys(), keys, p.key_token, own);
      }
      if (first) load_queries(work, query);
      first = false;
      dev::barrier_arrive_copied(ring.keys_there());
      entries.first += Config::kKeys;
      more = more && entries.find(row);
      if (!more) flags |= kPrefillLast;
      dev::store_shared<int32_t>(ring.list_at() + 4 * static_cast<uint32_t>(row),
                                 exists ? own : -1);
      if (row == 0) {
        flags |= static_cast<uint32_t>(number) * kPrefillWorkUnit;
        dev::store_shared<dev::Word4>(ring.info_at(), {flags, static_cast<uint32_t>(entries.base),
                                                       static_cast<uint32_t>(entries.sink),
                                                       static_cast<uint32_t>(entries.window)});
      }
      dev::barrier_arrive(ring.keys_there());  // what is stored
      dev::barrier_wait(ring.values_free(), ring.parity ^ 1);
      if (!none && g.boxes) {
        copy_boxes(ring.values(), g.value_boxes, box, kv_head, work.batch, ring.values_there());
      } else if (!none) {
        copy_rows(ring.values(), values, p.value_token, own);
      }
      dev::barrier_arrive_copied(ring.values_there());
      ring.advance();
    } while (more);
  }
  TAMIS_DEVICE void load_queries(const PrefillWork& work, int32_t mine) {
    dev::barrier_wait(PrefillStage<Config>::queries_free(), parity ^ 1);
    parity ^= 1;
    const int32_t head = work.head_of_row(g, static_cast<int32_t>(32 * warp));
    copy_rows(Config::kQueriesAt, g.p.q + work.batch * g.p.q_batch + head * g.p.q_head, g.p.q_token,
              mine);
    dev::store_shared<int32_t>(Config::kTokensAt + 4 * (32 * warp + lane),
                               mine < 0 ? -1 : g.p.first + mine);
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

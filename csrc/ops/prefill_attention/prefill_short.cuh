// prefill_attention of short whole prompts by warpgroups of sm_90a, f32 sums. Tile: 64 queries of a
// head, whose keys two warpgroups take in turns, 64 tokens at a time; then each adds up half of the
// channels of both. Blocks of two tiles take one from each end of the prompt, so that all are as
// long. There are no lists and no warps that load: all keys and values of a block, of more than 256
// tokens of 128 channels the first of them, are on their way as soon as its barriers are made,
// which is what a short call waits for. Latency bounds it: of boxes, of scores, of their weights,
// of products, one after the other. Needs: no lists, blocks or spans, boxes, no softcap, 512 tokens
// at most. Tail: tokens that do not exist are zeros whose scores do not count; such queries are not
// written.
// After: Shah et al. 2024 (FlashAttention-3).
#pragma once

#include "base/cuda/dev.h"
#include "ops/prefill_attention/prefill_params.h"
#include "ops/prefill_attention/prefill_rows.cuh"

namespace tamis {

template <DType kTypeOf, int kDimOf, int kTilesOf>
struct PrefillShortConfig {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;
  static constexpr int kTiles = kTilesOf;  // of queries
  static constexpr int kThreads = 256 * kTiles;
  static constexpr int kKeys = kPrefillShortKeys;
  static constexpr int32_t kMostKeyTiles = kPrefillShortTiles;
  static constexpr int32_t kMostHeld = prefill_short_held(kDim);
  // Shared memory: parts of 64 channels one after another, each as rows of 128 bytes.
  static constexpr uint32_t kPartBytes = 128 * kKeys, kQueryPartBytes = kPartBytes;
  static constexpr uint32_t kTileBytes = kPartBytes * (kDim / 64);
  static constexpr uint32_t kToldAt = kPrefillShortTold;
  static constexpr uint32_t kToldBytes = 128 * (16 + kDim);  // of a warpgroup
  static constexpr uint32_t kQueriesAt = prefill_short_queries_at(kDim, kTiles);
  static constexpr uint32_t kKeysAt = kQueriesAt + kTiles * kTileBytes;  // and values, of each half
  static_assert(kQueriesAt % 1024 == 0, "where boxes may begin");
  static_assert(kToldAt >= 8 * (kTiles + 2 * kMostKeyTiles), "barriers lie before it");
  static_assert(kType == DType::bf16 || kType == DType::f16, "tensor cores take 16-bit floats");
  static_assert(kDim == 64 || kDim == 128, "parts of 64 channels");

  static TAMIS_DEVICE uint32_t queries_there(uint32_t tile) { return 8 * tile; }
  static TAMIS_DEVICE uint32_t keys_there(int32_t key_tile) {
    return 8 * static_cast<uint32_t>(kTiles + key_tile);
  }
  static TAMIS_DEVICE uint32_t values_there(int32_t key_tile) {
    return keys_there(kMostKeyTiles + key_tile);
  }
};

// A warpgroup: every second tile of keys of 64 queries.
template <class Config>
struct PrefillShort : PrefillRows<Config> {
  using Rows = PrefillRows<Config>;
  using Rows::c, Rows::head, Rows::kDimTiles, Rows::kKeyTiles, Rows::kNever, Rows::lane, Rows::most,
      Rows::out, Rows::own, Rows::sum;
  const PrefillShortParams& g;
  uint32_t thread, slot, half;  // of the warpgroup; which of the block's tiles, which of two
  int32_t batch, tile;          // of queries; below 0: none
  int32_t base = 0;             // first token that counts
  int32_t first = 0;            // the half's tiles of keys: every second from here on,
  int32_t key_tiles;            // before that one

  TAMIS_DEVICE PrefillShort(const PrefillShortParams& params, uint32_t index)
      : Rows(index),
        g(params),
        thread(index % 128),
        slot(Config::kTiles == 1 ? 0 : index / 256),
        half(index / 128 % 2) {
    const PrefillParams& p = g.p;
    const auto from_end = static_cast<int32_t>(dev::block_index_y());
    head = static_cast<int32_t>(dev::block_index_x());
    batch = quotient(head, g.by_heads);
    tile = slot == 0 ? g.tiles - 1 - from_end : from_end;
    if (slot != 0 && 2 * from_end == g.tiles - 1) tile = -1;  // the other's
    const int32_t last = 64 * tile + 63 < p.queries ? 64 * tile + 63 : p.queries - 1;
    const int32_t end = p.causal ? (p.first + last) / Config::kKeys + 1 : g.key_tiles;
    key_tiles = end < g.key_tiles ? end : g.key_tiles;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const auto row = static_cast<int32_t>(thread / 32 * 16 + lane / 4 + 8 * r);
      const int32_t query = 64 * tile + row;
      own[r] = query < p.queries ? p.first + query : -1;
    }
  }

  // What a kernel before may have written.
  TAMIS_DEVICE void read_begin() {
    base = g.p.begin ? dev::load_global(g.p.begin + batch) : 0;
    first = (base > 0 ? base / Config::kKeys : 0) + static_cast<int32_t>(half);
  }
  // Asks for the queries, and for as many of this half's keys and values as there is room for, if
  // the tile is the block's longest.
  TAMIS_DEVICE void request() const {
    const int32_t of_batch = head - batch * g.p.heads;
    if (half == 0) {
      copy(Config::kQueriesAt + slot * Config::kTileBytes, g.query_boxes, 64 * tile, of_batch,
           Config::queries_there(slot));
    }
    if (slot != 0) return;
#pragma unroll 1
    for (int32_t i = 0; i < g.held; i += 2) request(i);
#pragma unroll 1
    for (int32_t i = 1; i < g.held; i += 2) request(i);
  }
  // The i-th of this half's pieces, keys and values in turns, if there is one.
  TAMIS_DEVICE void request(int32_t i) const {
    const int32_t j = first + i / 2 * 2;
    if (j >= key_tiles) return;
    const int32_t kv_head = quotient(head - batch * g.p.heads, g.by_group);
    if (i % 2 == 0) {
      copy(keys(j), g.key_boxes, Config::kKeys * j, kv_head, Config::keys_there(j));
    } else {
      copy(values(j), g.value_boxes, Config::kKeys * j, kv_head, Config::values_there(j));
    }
  }
  // Asks for `count` pieces from the i-th on, in the place of those that all of the half have read.
  TAMIS_DEVICE void request_further(int32_t i, int32_t count) const {
    if constexpr (2 * ((Config::kMostKeyTiles + 1) / 2) > Config::kMostHeld) {
      if (first + i / 2 * 2 >= key_tiles) return;
      dev::sync_warps<128>(3 + half);
      if (thread != 0) return;
      for (int32_t more = 0; more < count; ++more) request(i + more);
    }
  }
  TAMIS_DEVICE void copy(uint32_t to, const TensorMap& boxes, int32_t row, int32_t of_head,
                         uint32_t barrier) const {
    dev::barrier_expect(barrier, Config::kTileBytes);
#pragma unroll
    for (uint32_t part = 0; part < Config::kDim / 64; ++part) {
      dev::copy_head_box(to + part * Config::kPartBytes, boxes, static_cast<int32_t>(64 * part),
                         row, of_head, batch, barrier);
    }
  }
  TAMIS_DEVICE uint32_t keys(int32_t j) const { return piece(j - first); }
  TAMIS_DEVICE uint32_t values(int32_t j) const { return piece(j - first + 1); }
  TAMIS_DEVICE uint32_t piece(int32_t i) const {
    const int32_t place = static_cast<int32_t>(half) * g.held + i % Config::kMostHeld;
    return Config::kKeysAt + static_cast<uint32_t>(place) * Config::kTileBytes;
  }

  // Leaves out scores of tokens of a tile of keys that a query does not see.
  TAMIS_DEVICE void mask(int32_t j) {
    const PrefillParams& p = g.p;
    const int32_t from = Config::kKeys * j, end = from + Config::kKeys;
    const int32_t low = p.first + 64 * tile;
    if (end <= p.tokens && from >= base && (!p.causal || end - 1 <= low)) return;
    const int32_t bottom = base > 0 ? base : 0;
    uint32_t seen[2];  // tokens from `bottom` on
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const int32_t top = p.causal && own[r] < p.tokens ? own[r] : p.tokens - 1;
      seen[r] = top < bottom ? 0 : static_cast<uint32_t>(top - bottom) + 1;
    }
    const auto above = static_cast<uint32_t>(from + 2 * static_cast<int32_t>(lane % 4) - bottom);
#pragma unroll
    for (uint32_t n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        if (above + 8 * n + i % 2 >= seen[i / 2]) c[n][i] = kNever;
      }
    }
  }

  TAMIS_DEVICE void attend() {
    this->clear();
    if (first < key_tiles) {
      multiply();
    } else {  // a block must not end while its queries are on their way
      dev::barrier_wait(Config::queries_there(slot), 0);
    }
    meet();
  }
  TAMIS_DEVICE void multiply() {
    const uint32_t queries = Config::kQueriesAt + Config::kTileBytes * dev::in_register(slot);
    float shrink[2];
    int32_t j = first;
    dev::barrier_wait(Config::queries_there(slot), 0);
    dev::barrier_wait(Config::keys_there(j), 0);
    this->score(queries, keys(j));
    dev::wait_older_products<0>(c);
    mask(j);
    this->soften(g.factor, shrink);
    this->pack();
    request_further(Config::kMostHeld, 1);
#pragma unroll 1
    for (j += 2; j < key_tiles; j += 2) {
      dev::barrier_wait(Config::keys_there(j), 0);
      dev::barrier_wait(Config::values_there(j - 2), 0);
      this->score(queries, keys(j));
      this->add_values(values(j - 2));
      dev::wait_older_products<1>(c);
      mask(j);
      const bool anew = this->soften(g.factor, shrink);
      dev::wait_older_products<0>(out);
      if (anew) this->scale_sums(shrink);
      this->pack();
      request_further(j - first - 1 + Config::kMostHeld, 2);
    }
    dev::barrier_wait(Config::values_there(j - 2), 0);
    this->add_values(values(j - 2));
    dev::wait_older_products<0>(out);
  }

  // Both halves tell each other their sums of the channels that the other adds up and writes.
  TAMIS_DEVICE void meet() {
    constexpr int kHalf = kDimTiles / 2;
    const uint32_t mine = told(half), others = told(1 - half);
    float kept[kHalf][4];
#pragma unroll
    for (int n = 0; n < kHalf; ++n) {
      float sent[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sent[i] = half == 0 ? out[n + kHalf][i] : out[n][i];
        kept[n][i] = half == 0 ? out[n][i] : out[n + kHalf][i];
      }
      store(mine + 2048 * (n + 1), sent);
    }
    const float all[4] = {most[0], most[1], sum[0], sum[1]};
    store(mine, all);
    dev::sync_warps<256>(1 + slot);
    float other[4], by[2], others_by[2];
    load(others, other);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float largest = dev::max(most[r], other[r]);
      by[r] = most[r] == kNever ? 0.0f : dev::exp2(most[r] - largest);
      others_by[r] = other[r] == kNever ? 0.0f : dev::exp2(other[r] - largest);
      most[r] = largest;
      sum[r] = sum[r] * by[r] + other[2 + r] * others_by[r];
    }
#pragma unroll
    for (int n = 0; n < kHalf; ++n) {
      float got[4];
      load(others + 2048 * (n + 1), got);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        kept[n][i] = kept[n][i] * by[i / 2] + got[i] * others_by[i / 2];
      }
    }
    this->write(g.p, g.by_heads, kept, Config::kDim / 2 * half);
  }
  TAMIS_DEVICE uint32_t told(uint32_t of) const {
    return Config::kToldAt + (2 * slot + of) * Config::kToldBytes + 16 * thread;
  }
  static TAMIS_DEVICE void store(uint32_t at, const float (&x)[4]) {
    dev::store_shared<dev::Word4>(
        at, {dev::bits_of(x[0]), dev::bits_of(x[1]), dev::bits_of(x[2]), dev::bits_of(x[3])});
  }
  static TAMIS_DEVICE void load(uint32_t at, float (&x)[4]) {
    const auto words = dev::load_shared<dev::Word4>(at);
    x[0] = dev::float_of(words.x);
    x[1] = dev::float_of(words.y);
    x[2] = dev::float_of(words.z);
    x[3] = dev::float_of(words.w);
  }
};

// Grid [batches times heads, tiles of a head / kTiles, rounded up] of Config::kThreads.
template <class Config>
TAMIS_DEVICE void prefill_short(const PrefillShortParams& g) {
  const uint32_t index = dev::thread_index();
  if (index == 0) {
    for (uint32_t i = 0; i < Config::kTiles + 2 * Config::kMostKeyTiles; ++i) {
      dev::barrier_init(8 * i);
    }
    dev::fence_barrier_init();
  }
  dev::sync_block();
  PrefillShort<Config> mine(g, index);
  dev::wait_for_previous();
  dev::allow_next();
  if (mine.tile < 0) return;
  mine.read_begin();
  if (mine.thread == 0) mine.request();
  mine.attend();
}

}  // namespace tamis

// kv_merge, first two of three passes: lengths of the listed keys and values, and the kept token
// most like each dropped one, on tensor cores: a block keeps 64 dropped tokens and lets tiles of
// all kept ones pass by, keys and then values, so that similarities never reach memory and a
// token's best is found by four lanes, in the order of kept tokens. After: Li et al. 2024, EMS,
// sec. 3.3.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_edit/kv_edit_params.h"
#include "ops/kv_select/row_tiles.cuh"

namespace tamis {

// Keys or values of one head and its lists.
struct MergeHead {
  const MergeParams& p;
  int64_t head;
  int32_t kept, dropped;  // how many

  TAMIS_DEVICE explicit MergeHead(const MergeParams& params)
      : p(params),
        head(dev::block_index_y()),
        kept(count_of(params.kept)),
        dropped(count_of(params.dropped)) {}

  TAMIS_DEVICE int32_t count_of(const KvTokens& list) const {
    const auto most = static_cast<int32_t>(list.stride);
    if (list.count == nullptr) return most;
    const int32_t count = dev::load_volatile(list.count + head);
    return count < 0 ? 0 : count < most ? count : most;
  }
  TAMIS_DEVICE int32_t token(const KvTokens& list, int32_t i) const {
    const int32_t found = dev::load_volatile(list.index + head * list.stride + i);
    return found < 0 ? 0 : found < p.tokens ? found : p.tokens - 1;
  }
  TAMIS_DEVICE const uint8_t* rows(int kind) const {
    return kind == 0 ? p.keys + head * p.key_head : p.values + head * p.value_head;
  }
  TAMIS_DEVICE int64_t step(int kind) const { return kind == 0 ? p.key_token : p.value_token; }
  // Where lengths of kept token i lie, or of dropped token i - kept.stride.
  TAMIS_DEVICE float* scale(int64_t i) const {
    return p.scales + 2 * (head * (p.kept.stride + p.dropped.stride) + i);
  }
};

// ---- lengths

// Grid [listed tokens / kMergeWarps, heads] of kMergeThreads: a warp a token.
TAMIS_DEVICE void merge_scales(const MergeParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const MergeHead h(p);
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const int64_t place = int64_t{dev::block_index_x()} * kMergeWarps + warp;
  const bool keeps = place < p.kept.stride;
  const KvTokens& list = keeps ? p.kept : p.dropped;
  const int64_t i = keeps ? place : place - p.kept.stride;
  if (i >= (keeps ? h.kept : h.dropped)) return;
  const int32_t token = h.token(list, static_cast<int32_t>(i));
  for (int kind = 0; kind < p.kinds; ++kind) {
    const uint8_t* row = h.rows(kind) + token * h.step(kind);
    float sum = 0;
    for (auto c = 4 * static_cast<int32_t>(lane); c < p.dim; c += 128) {
      float x[4];
      load_four(p.dtype, row, c, x);
      for (const float v : x) sum = dev::fma(v, v, sum);
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) sum += dev::shuffle_xor(sum, mask);
    if (lane == 0) h.scale(place)[kind] = sum > 0 ? dev::divide(1.0f, dev::sqrt(sum)) : 0.0f;
  }
}

// ---- who is nearest

template <DType kTypeOf>
using MergeConfig = TileConfig<kTypeOf, 1>;

template <class Config>
struct MergeBlock : RowTiles<Config> {
  using Tiles = RowTiles<Config>;
  const MergeHead& h;

  TAMIS_DEVICE explicit MergeBlock(const MergeHead& head)
      : Tiles(head.p.dim, head.p.row_bytes), h(head) {}

  TAMIS_DEVICE uint32_t rows_at(uint32_t kind) const {
    return kMergeRowsAt + kind * Config::kKept * static_cast<uint32_t>(h.p.row_bytes);
  }
  TAMIS_DEVICE uint32_t stage_at(uint32_t stage) const {
    return rows_at(static_cast<uint32_t>(h.p.kinds)) +
           stage * kTileStream * static_cast<uint32_t>(h.p.row_bytes);
  }
  static TAMIS_DEVICE uint32_t token_at(int32_t tile, uint32_t row) {
    return 4 * (static_cast<uint32_t>(tile % kMergeSlots) * kTileStream + row);
  }
  static TAMIS_DEVICE uint32_t lengths_at(int32_t tile, uint32_t row) {
    return kMergeLengthsAt + 2 * token_at(tile, row);
  }
  // What is to be known of a tile of kept tokens two tiles before it is met, so that nobody waits
  // for it: thread i has that of token i.
  struct Note {
    int32_t token = -1;
    dev::Word2 lengths = {0, 0};
  };
  TAMIS_DEVICE Note look(int32_t tile) const {
    Note note;
    const int32_t i = kTileStream * tile + static_cast<int32_t>(Tiles::thread);
    if (Tiles::thread < kTileStream && i < h.kept) {
      note.token = h.token(h.p.kept, i);
      note.lengths = dev::load_volatile(reinterpret_cast<const dev::Word2*>(h.scale(i)));
    }
    return note;
  }
  TAMIS_DEVICE void keep(int32_t tile, const Note& note) const {
    if (Tiles::thread >= kTileStream) return;
    dev::store_shared<int32_t>(token_at(tile, Tiles::thread), note.token);
    dev::store_shared<dev::Word2>(lengths_at(tile, Tiles::thread), note.lengths);
  }
  // The rows of a tile whose tokens are known; zeros for none.
  TAMIS_DEVICE void request(int32_t tile, int kind, uint32_t to) const {
    Tiles::load(h.p.dtype, h.rows(kind), h.step(kind), kTileStream, to, [&](int32_t row) {
      return dev::load_shared<int32_t>(token_at(tile, static_cast<uint32_t>(row)));
    });
  }
};

// The best of the kept tokens that two rows of a lane have met.
struct MergeBest {
  float similarity[2] = {-__builtin_inff(), -__builtin_inff()};  // times the dropped row's length
  int32_t place[2] = {-1, -1};

  // c, v: products of keys and of values with a tile, from `tile` on of `kept` tokens.
  template <bool kValues, class Config>
  TAMIS_DEVICE void meet(int32_t tile, int32_t kept, uint32_t t,
                         const float (&c)[1][Config::kTiles][4],
                         const float (&v)[1][Config::kTiles][4]) {
    const int32_t left = kept - kTileStream * tile;
#pragma unroll
    for (uint32_t n = 0; n < Config::kTiles; ++n) {
      if (8 * static_cast<int32_t>(n) >= left) break;  // the same in every thread
      const auto lengths =
          dev::load_shared<dev::Word4>(MergeBlock<Config>::lengths_at(tile, 8 * n + 2 * t));
      const float of_key[2] = {dev::float_of(lengths.x), dev::float_of(lengths.z)};
      const float of_value[2] = {dev::float_of(lengths.y), dev::float_of(lengths.w)};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int32_t column = static_cast<int32_t>(8 * n + 2 * t) + i;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float s = c[0][n][2 * r + i] * of_key[i];
          if constexpr (kValues) {
            const float with = v[0][n][2 * r + i] * of_value[i];
            s = s > 0 && with > 0 ? s * with : 0.0f;
          }
          if (s > similarity[r] && column < left) {
            similarity[r] = s;
            place[r] = kTileStream * tile + column;
          }
        }
      }
    }
  }

  // That of the four lanes of a row; the first of equals.
  TAMIS_DEVICE void unite(uint32_t lane) {
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float s = dev::shuffle_xor(similarity[r], mask);
        const int32_t other = dev::shuffle(place[r], static_cast<int>(lane) ^ mask);
        if (s > similarity[r] || (s == similarity[r] && other < place[r])) {
          similarity[r] = s;
          place[r] = other;
        }
      }
    }
  }
};

// Grid [dropped tokens / 64, heads] of kTileThreads.
template <class Config>
TAMIS_DEVICE void merge_nearest(const MergeParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const MergeHead h(p);
  const MergeBlock<Config> b(h);
  const auto from = static_cast<int32_t>(dev::block_index_x()) * Config::kKept;
  if (from >= h.dropped) return;
  const int32_t tiles = (h.kept + kTileStream - 1) / kTileStream;
  const auto mine = from + static_cast<int32_t>(16 * b.warp + b.lane / 4);
  const bool busy = mine - static_cast<int32_t>(b.lane / 4) < h.dropped;
  MergeBest best;
  if (tiles > 0) {
    b.keep(0, b.look(0));
    b.keep(1, b.look(1));
    if (b.thread < kTileStream) {  // where the third tile's will lie
      const int32_t i = from + static_cast<int32_t>(b.thread);
      dev::store_shared<int32_t>(b.token_at(2, b.thread),
                                 i < h.dropped ? h.token(p.dropped, i) : -1);
    }
    dev::sync_block();
    for (int kind = 0; kind < p.kinds; ++kind) {
      b.request(2, kind, b.rows_at(static_cast<uint32_t>(kind)));
    }
    b.request(0, 0, b.stage_at(0));
  }
  dev::commit_async();
  dev::wait_async<0>();
  dev::sync_block();
  uint32_t stage = 0;
  for (int32_t tile = 0; tile < tiles; ++tile) {
    float c[1][Config::kTiles][4] = {}, v[1][Config::kTiles][4] = {};
    const auto note = b.look(tile + 2);
    const auto next_tile = [&] {
      if (tile + 1 < tiles) b.request(tile + 1, 0, b.stage_at(1 - stage));
      dev::commit_async();
    };
    const auto turn = [&] {
      dev::wait_async<0>();
      dev::sync_block();
      stage = 1 - stage;
    };
    if (p.kinds == 2) {
      b.request(tile, 1, b.stage_at(1 - stage));
      dev::commit_async();
      if (busy) b.score(b.rows_at(0), b.stage_at(stage), kTileStream, c);
      turn();
      next_tile();
      if (busy) {
        b.score(b.rows_at(1), b.stage_at(stage), kTileStream, v);
        best.meet<true, Config>(tile, h.kept, b.lane % 4, c, v);
      }
    } else {
      next_tile();
      if (busy) {
        b.score(b.rows_at(0), b.stage_at(stage), kTileStream, c);
        best.meet<false, Config>(tile, h.kept, b.lane % 4, c, v);
      }
    }
    b.keep(tile + 2, note);
    turn();
  }
  best.unite(b.lane);
  if (b.lane % 4 != 0) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int32_t i = mine + 8 * r;
    if (i >= h.dropped) continue;
    const float* own = h.scale(p.kept.stride + i);
    float s = best.similarity[r] * dev::load_volatile(own);
    if (p.kinds == 2) s *= dev::load_volatile(own + 1);
    p.joined[h.head * p.dropped.stride + i] = s > p.tau ? best.place[r] : -1;
  }
}

}  // namespace tamis

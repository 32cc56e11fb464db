// Attention over dense keys and values [tokens, d] of bf16 or f16, all tokens or those of a list.
// Tile: 16 tokens. Rows of 2 d bytes are copied in 16 bytes; a lane reads 8 channels of a key at a
// time as four operand pairs. Values are read by rows, too, and paired over tokens by byte
// permutes, one an operand register. Shared memory: chunk c of a key row lies at c ^ 4 (row & 1),
// of a value row at c ^ 2 (row / 2 & 3), so a quarter warp's 16-byte loads (keys: two tokens, four
// chunks; values: four tokens, two chunks) meet in no bank.
#pragma once

#include "base/cuda/halves.h"
#include "ops/sparse_attention/attend_sums.cuh"

namespace tamis {

template <DType kTypeOf, int kDimOf>
struct RowConfig {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;
  static constexpr int kTokens = 16;
  static constexpr int kTiles = kDim / 16;
  static constexpr int kHeldTiles = kTiles;
  static constexpr int kSteps = kDim / 16;
  static constexpr int kStages = kRowStages;
  static constexpr int kBlocks = kRowBlocks;
  static constexpr int kWarps = kRowWarps;
  static constexpr int kBound = 32 * kWarps;
  static constexpr bool kTail = false;
  static constexpr uint32_t kRow = 2 * kDim;  // bytes
  static constexpr uint32_t kChunks = kRow / 16;
  static constexpr uint32_t kBytes = 2 * kTokens * kRow;  // keys, then values
  static constexpr int32_t kSharedBytes =
      kAttentionRingAt + static_cast<int32_t>(kWarps * kStages * kBytes);
  static_assert(kType == DType::bf16 || kType == DType::f16, "tensor cores take 16-bit floats");
  static_assert(kDim % 64 == 0 && kChunks <= 32, "eight lanes share 64 channels of a value row");

  static TAMIS_DEVICE int32_t tiles_of(int32_t units) { return (units + kTokens - 1) / kTokens; }
  static TAMIS_DEVICE int32_t channel(int tile, uint32_t group, int half) {
    return 64 * (tile / 4) + 8 * static_cast<int32_t>(group) + 2 * (tile % 4) + half;
  }
  static TAMIS_DEVICE uint32_t key_chunk(uint32_t row, uint32_t chunk) {
    return row * kRow + 16 * (chunk ^ (row & 1) << 2);
  }
  static TAMIS_DEVICE uint32_t value_chunk(uint32_t row, uint32_t chunk) {
    return (kTokens + row) * kRow + 16 * (chunk ^ (row >> 1 & 3) << 1);
  }

  // Entries at the start of the head's list that do not count. Tiles begin after them, so a list
  // that names padding and one that does not add up alike.
  static TAMIS_DEVICE int32_t hidden(const AttentionCudaParams& p, const AttentionPlace& at) {
    if (p.index == nullptr || p.begin == nullptr) return 0;
    const int32_t begin = dev::load_global(p.begin + at.head);
    const int32_t* list = p.index + int64_t{at.head} * p.index_stride;
    int32_t first = 0;
    uint32_t before = ~0u;  // of 32 entries, those that do not count
    while (first < at.units && before == ~0u) {
      const int32_t entry = first + static_cast<int32_t>(at.lane);
      before = dev::ballot(entry < at.units && dev::load_global(list + entry) < begin);
      first += dev::popcount(before & ~(before + 1));
    }
    return first;
  }

  // Which token entry i of those that count is; past the last: the last one.
  static TAMIS_DEVICE int32_t token_of(const AttentionCudaParams& p, const AttentionPlace& at,
                                       int32_t entry) {
    entry = entry < at.units ? entry : at.units - 1;
    if (p.index == nullptr) return entry;
    const int64_t place = int64_t{at.head} * p.index_stride + at.first + entry;
    const int32_t id = dev::load_global(p.index + place);
    return id < 0 ? 0 : id < p.units ? id : p.units - 1;
  }

  template <bool kBulk>  // rows are too short for it
  struct Ring {
    const AttentionCudaParams& p;
    const AttentionPlace& at;
    const uint8_t *keys, *values;
    int32_t next, end, step, token;  // token: of entry lane % 16 of the next tile
    uint32_t ring, stage = 0;

    TAMIS_DEVICE Ring(const AttentionCudaParams& params, const AttentionPlace& place, int32_t first,
                      int32_t last, int32_t by)
        : p(params),
          at(place),
          keys(p.keys + at.batch * p.key_batch + at.kv_head * p.key_head),
          values(p.values + at.batch * p.value_batch + at.kv_head * p.value_head),
          next(first),
          end(last),
          step(by),
          token(first < last ? entry(first) : 0),
          ring(kAttentionRingAt + at.warp * kStages * kBytes) {}

    TAMIS_DEVICE int32_t entry(int32_t tile) const {
      return token_of(p, at, kTokens * tile + static_cast<int32_t>(at.lane % kTokens));
    }
    TAMIS_DEVICE void request(uint32_t s) {
      if (next < end) {  // the same in every lane
        constexpr uint32_t kRowsAtOnce = 32 / kChunks;
        const uint32_t to = ring + s * kBytes, chunk = at.lane % kChunks;
#pragma unroll
        for (uint32_t i = 0; i < kTokens / kRowsAtOnce; ++i) {
          const uint32_t row = i * kRowsAtOnce + at.lane / kChunks;
          const int64_t id = dev::shuffle(token, static_cast<int>(row));
          dev::copy_async16(to + key_chunk(row, chunk), keys + id * p.key_token + 16 * chunk, 16);
          dev::copy_async16(to + value_chunk(row, chunk), values + id * p.value_token + 16 * chunk,
                            16);
        }
        next += step;
        if (next < end) token = entry(next);
      }
      dev::commit_async();
    }
    TAMIS_DEVICE void start() {
      for (uint32_t s = 0; s < kStages; ++s) request(s);
    }
    TAMIS_DEVICE uint32_t wait() {
      dev::wait_async<kStages - 1>();
      dev::sync_warp();
      return ring + stage * kBytes;
    }
    TAMIS_DEVICE void release() {
      dev::sync_warp();
      request(stage);
      if (++stage == kStages) stage = 0;
    }
  };

  // The lane's channels of query row `group`: 8 of every 32.
  struct Query {
    uint32_t q[kSteps][2];
    float factor[2];

    TAMIS_DEVICE Query(const AttentionCudaParams& p, const AttentionPlace& at)
        : factor{p.scale, p.scale} {
      const int32_t row = kRowsPerTile * at.row_tile + static_cast<int32_t>(at.group);
      const int64_t from = (int64_t{at.head} * p.rows + row) * kDim;
      float x[kSteps][4];
      const auto place = [&](int step) { return 32 * (step / 2) + 8 * at.t + 4 * (step % 2); };
      q_fours(p, from, row < p.rows, place, x);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        q[step][0] = pack<kType>(x[step][0], x[step][1]);
        q[step][1] = pack<kType>(x[step][2], x[step][3]);
      }
    }
  };

  // c[j] += q . k of token group + 8 (j / 2) and row 2t + j % 2.
  static TAMIS_DEVICE void score(const Query& query, uint32_t stage, const AttentionPlace& at,
                                 float (&c)[4]) {
#pragma unroll
    for (uint32_t j = 0; j < kSteps / 2; ++j) {
      const uint32_t chunk = 4 * j + at.t;
      const auto low = dev::load_shared<dev::Word4>(stage + key_chunk(at.group, chunk));
      const auto high = dev::load_shared<dev::Word4>(stage + key_chunk(at.group + 8, chunk));
      const uint32_t first[4] = {low.x, high.x, low.y, high.y};
      multiply<kType>(c, first, query.q[2 * j][0], query.q[2 * j][1]);
      const uint32_t second[4] = {low.z, high.z, low.w, high.w};
      multiply<kType>(c, second, query.q[2 * j + 1][0], query.q[2 * j + 1][1]);
    }
  }

  static TAMIS_DEVICE void add_tile(const AttentionCudaParams& p, const AttentionPlace& at,
                                    const Query& query, uint32_t stage, int32_t tile,
                                    WarpSums<kHeldTiles>& s) {
    float c[1][4] = {};
    score(query, stage, at, c[0]);
    const int32_t first = kTokens * tile;
    const bool masked =
        p.begin != nullptr || p.end != nullptr || p.bias != nullptr || first + kTokens > at.units;
    const auto id = [&](int, int half) {
      const int32_t entry = first + static_cast<int32_t>(at.group) + 8 * half;
      return entry < at.units ? token_of(p, at, entry) : -1;
    };
    soften(p, at, query.factor, masked, id, c, s);
    weigh(stage, at, c[0], s);
  }

  // s += weights c times values.
  static TAMIS_DEVICE void weigh(uint32_t stage, const AttentionPlace& at, const float (&c)[4],
                                 WarpSums<kHeldTiles>& s) {
    const uint32_t weight[2] = {dev::transpose(pack<kType>(c[0], c[1])),
                                dev::transpose(pack<kType>(c[2], c[3]))};
#pragma unroll
    for (uint32_t part = 0; part < kDim / 64; ++part) {
      uint32_t word[4][4];  // tokens 2t, 2t + 1, 2t + 8, 2t + 9; eight channels in pairs
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = 2 * at.t + i % 2 + 8 * (i / 2);
        const auto v = dev::load_shared<dev::Word4>(stage + value_chunk(row, 8 * part + at.group));
        word[i][0] = v.x;
        word[i][1] = v.y;
        word[i][2] = v.z;
        word[i][3] = v.w;
      }
#pragma unroll
      for (uint32_t n = 0; n < 4; ++n) {
        const uint32_t a[4] = {dev::byte_permute(word[0][n], word[1][n], 0x5410),
                               dev::byte_permute(word[0][n], word[1][n], 0x7632),
                               dev::byte_permute(word[2][n], word[3][n], 0x5410),
                               dev::byte_permute(word[2][n], word[3][n], 0x7632)};
        multiply<kType>(s.weighted[4 * part + n], a, weight[0], weight[1]);
      }
    }
  }

  static TAMIS_DEVICE void join(const AttentionPlace&, const WarpSums<kHeldTiles>& held,
                                WarpSums<kTiles>& sums) {
    sums = held;
  }
};

}  // namespace tamis

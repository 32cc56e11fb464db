// Tiles of attention over chosen tokens: half of a block's warps, or more, bring 16 listed tokens at a time.
// Keys and values of a tile lie in the memory of scores, rows of 2 d bytes whose chunk c of 16
// bytes lies at c ^ (row & 7), so that eight rows of a matrix meet in no bank. Sums: online softmax
// a warp, then warps, then blocks, which send each other the parts that each writes, in order, so
// that results repeat bit for bit.
#pragma once

#include "base/cuda/dev.h"
#include "ops/sparse_attention/attend.cuh"
#include "ops/sparse_attention/chosen_params.h"

namespace tamis {

template <DType kTypeOf, int kDimOf, bool kWholeOf>
struct ChosenConfig {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;
  static constexpr bool kWhole = kWholeOf;  // scores
  static constexpr int kWarps = chosen_warps(kWhole);
  static constexpr int kTiles = kDim / 16;  // of the output, and products of a score
  static constexpr uint32_t kRow = 2 * kDim;
  static constexpr uint32_t kChunks = kRow / 16, kRowsAtOnce = 32 / kChunks;
  static constexpr uint32_t kPart = kChosenTokens * kRow;  // keys or values of a tile
  static constexpr auto kPitch = static_cast<uint32_t>(chosen_query_pitch(kDim));
  static_assert(kType == DType::bf16 || kType == DType::f16, "tensor cores take 16-bit floats");
  static_assert(kChunks >= 8 && kChunks <= 32 && kChosenTokens == 16, "eight chunks change places");

  static TAMIS_DEVICE uint32_t pack(float low, float high) {
    return kType == DType::bf16 ? dev::pack_bf16(low, high) : dev::pack_f16(low, high);
  }
  static TAMIS_DEVICE void multiply(float (&c)[4], const dev::Word4& a, uint32_t b0, uint32_t b1) {
    const uint32_t all[4] = {a.x, a.y, a.z, a.w};
    if constexpr (kType == DType::bf16) {
      dev::mma_bf16(c, all, b0, b1);
    } else {
      dev::mma_f16(c, all, b0, b1);
    }
  }
};

// The tiles of the block's list, from the first of each warp on.
template <class Config>
class ChosenTiles {
  static constexpr int kWarps = Config::kWarps;
  static_assert(kChooseRows * Config::kDim <= 32 * kWarps, "a thread an output");

 public:
  TAMIS_DEVICE ChosenTiles(const ChosenParams& params, const EstimatePlace& at)
      : p_(params.attention), all_(params), at_(here(at.head), here(at.batch), here(at.kv_head)) {
    at_.warp = dev::in_register(dev::thread_index()) / 32;  // see ChosenReader::warp
  }

  // Adds the warp's tiles from that one on; so many units are listed by now.
  TAMIS_DEVICE void add(int32_t first, int32_t listed) {
    constexpr int32_t kStep = kWarps;
    listed_ = listed;
    auto tile = static_cast<int32_t>(at_.warp);
    if (tile < first) tile += (first - tile + kStep - 1) / kStep * kStep;
    request<false>(tile);
    request<true>(tile);
    const float factor[2] = {p_.scale, p_.scale};
#pragma unroll 1
    for (; kChosenTokens * tile < listed_; tile += kStep) {
      float c[1][4] = {};
      dev::wait_async<1>();
      dev::sync_warp();
      score(c[0]);
      dev::sync_warp();
      request<false>(tile + kStep);
      const int32_t left = listed_ - kChosenTokens * tile;
      const auto id = [&](int, int half) {
        return static_cast<int32_t>(at_.group) + 8 * half < left ? 0 : -1;
      };
      soften(p_, at_, factor, left < kChosenTokens, id, c, sums_);
      const uint32_t weight[2] = {dev::transpose(Config::pack(c[0][0], c[0][1])),
                                  dev::transpose(Config::pack(c[0][2], c[0][3]))};
      dev::wait_async<1>();
      dev::sync_warp();
      weigh(weight, sums_);
      dev::sync_warp();
      request<true>(tile + kStep);
    }
    dev::wait_async<0>();
  }
  // The block's warps, then its cluster's blocks, each a part of the outputs: nobody meets, a block
  // goes on once the others' numbers are there.
  TAMIS_DEVICE void finish() {
    const uint32_t thread = dev::thread_index();
    const auto blocks = static_cast<uint32_t>(all_.choose.estimate.blocks);
    const auto outputs = static_cast<uint32_t>(p_.rows) * Config::kDim;
    const uint32_t each = (outputs + blocks - 1) / blocks, block = dev::block_index_x();
    const uint32_t first = block * each, left = first < outputs ? outputs - first : 0;
    const uint32_t own = left < each ? left : each;
    const bool alone = blocks == 1;  // no cluster, where nothing can be sent
    if (thread == 0 && !alone) {
      dev::barrier_expect(parts_at(), blocks * (4 * own + kPartStats));
    }
    const float sum = merge(sums_);
    const auto send = [&](uint32_t other, uint32_t to, uint32_t value) {
      if (alone) {
        dev::store_shared<uint32_t>(to, value);
      } else {
        dev::send_cluster(other, to, value, parts_at());
      }
    };
    if (thread < outputs) {
      send(thread / each, value_at(block * each + thread % each), dev::bits_of(sum));
    }
    if (thread < 8 * blocks) {
      send(thread / 8, stats_at(block) + 4 * (thread % 8),
           dev::load_shared<uint32_t>(kStatsAt + 4 * (thread % 8)));
    }
    if (alone) {
      sync();
    } else {
      dev::barrier_wait(parts_at(), 0);
    }
    if (thread < own) write(blocks, each, first + thread);
  }

 private:
  // Addresses are made of it in this place of the program: from before, they would wait in local
  // memory.
  TAMIS_DEVICE static int32_t here(int32_t x) {
    return static_cast<int32_t>(dev::in_register(static_cast<uint32_t>(x)));
  }

  // Where candidates were ranked: largest scores and sums [warps][4], then those of the block. Over
  // the tiles: weighted values [warps][4][d].
  static constexpr uint32_t kMostAt = kChooseRankedAt, kSumAt = kMostAt + 16 * kWarps;
  static constexpr uint32_t kStatsAt = kSumAt + 16 * kWarps, kPartStats = 8 * kChooseRows;
  static_assert(kStatsAt + kPartStats <= kChooseScoresAt, "in place of the candidates");
  static constexpr uint32_t kRowBytes = 4 * Config::kDim, kBlockBytes = kChooseRows * kRowBytes;
  static constexpr uint32_t kWeightedAt = kChooseScoresAt;
  static_assert(kWarps * kBlockBytes <= static_cast<uint32_t>(chosen_ring(Config::kWhole, Config::kDim)),
                "over the tiles");
  static_assert(Config::kDim * kChooseRows + kChooseBlocks <= kChosenOutputs, "room for the parts");

  // What the blocks send: a barrier, largest scores and sums [blocks][2][4], values [blocks] of the
  // outputs that this block writes.
  TAMIS_DEVICE uint32_t parts_at() const { return static_cast<uint32_t>(all_.parts_at); }
  TAMIS_DEVICE uint32_t stats_at(uint32_t block) const {
    return parts_at() + 16 + kPartStats * block;
  }
  TAMIS_DEVICE uint32_t value_at(uint32_t i) const { return stats_at(kChooseBlocks) + 4 * i; }

  TAMIS_DEVICE uint32_t query_at() const { return static_cast<uint32_t>(all_.query_at); }
  TAMIS_DEVICE uint32_t keys_at() const { return kChooseScoresAt + 2 * Config::kPart * at_.warp; }
  TAMIS_DEVICE uint32_t values_at() const { return keys_at() + Config::kPart; }

  // Rows of a tile; past the last token the last one again. A group of copies, whether empty or
  // not.
  template <bool kValues>
  TAMIS_DEVICE void request(int32_t tile) {
    const int32_t first = kChosenTokens * tile;
    if (first < listed_) {  // the same in every lane
      int32_t entry = first + static_cast<int32_t>(at_.lane % kChosenTokens);
      entry = entry < listed_ ? entry : listed_ - 1;
      const int32_t token =
          static_cast<int32_t>(dev::block_index_x()) * all_.choose.estimate.span +
          dev::load_shared<uint16_t>(static_cast<uint32_t>(all_.list_at + 2 * entry));
      const uint32_t chunk = at_.lane % Config::kChunks, in_turn = at_.lane / Config::kChunks;
      const uint8_t* from =
          kValues ? p_.values + at_.batch * p_.value_batch + at_.kv_head * p_.value_head
                  : p_.keys + at_.batch * p_.key_batch + at_.kv_head * p_.key_head;
      const int64_t stride = kValues ? p_.value_token : p_.key_token;
      const uint32_t to =
          dev::in_register((kValues ? values_at() : keys_at()) + in_turn * Config::kRow);
      const uint32_t turned = dev::in_register(16 * (chunk ^ in_turn));
#pragma unroll
      for (uint32_t i = 0; i < kChosenTokens / Config::kRowsAtOnce; ++i) {
        const uint32_t row = i * Config::kRowsAtOnce;
        const int64_t id = dev::shuffle(token, static_cast<int>(row + in_turn));
        dev::copy_async16(to + row * Config::kRow + (turned ^ 16 * (row % 8)),
                          from + id * stride + 16 * chunk, 16);
      }
    }
    dev::commit_async();
  }

  // c[j] = q . k of token group + 8 (j / 2) of the tile and row 2 t + j % 2.
  TAMIS_DEVICE void score(float (&c)[4]) const {
    const uint32_t row = at_.lane % 8, from = at_.lane / 8 % 2;
    const uint32_t at = dev::in_register(keys_at() + (row + 8 * from) * Config::kRow);
    const uint32_t turned = dev::in_register(16 * (at_.lane / 16 ^ row));
    const uint32_t query = dev::in_register(query_at() + at_.group * Config::kPitch + 4 * at_.t);
#pragma unroll
    for (uint32_t step = 0; step < Config::kTiles; ++step) {
      const auto keys = dev::load_matrices(at + 128 * (step / 4) + (turned ^ 32 * (step % 4)));
      Config::multiply(c, keys, dev::load_shared<uint32_t>(query + 32 * step),
                       dev::load_shared<uint32_t>(query + 32 * step + 16));
    }
  }
  // sums += those weights times values; channels 16 i + group and 8 more in tile i.
  TAMIS_DEVICE void weigh(const uint32_t (&weight)[2], WarpSums<Config::kTiles>& s) const {
    const uint32_t row = at_.lane % 8, from = at_.lane / 16;
    const uint32_t at = dev::in_register(values_at() + (row + 8 * from) * Config::kRow);
    const uint32_t turned = dev::in_register(16 * (at_.lane / 8 % 2 ^ row));
#pragma unroll
    for (uint32_t tile = 0; tile < Config::kTiles; ++tile) {
      const auto values =
          dev::load_matrices_transposed(at + 128 * (tile / 4) + (turned ^ 32 * (tile % 4)));
      Config::multiply(s.weighted[tile], values, weight[0], weight[1]);
    }
  }

  // What warps have to the block's numbers, relative to its largest score; a thread an output.
  TAMIS_DEVICE float merge(WarpSums<Config::kTiles>& s) {
    const bool has = at_.t < kChooseRows / 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) s.sum[r] += dev::shuffle_xor(s.sum[r], mask);
    }
    if (has && at_.group == 0) {
      const uint32_t to = 16 * at_.warp + 8 * at_.t;
      dev::store_shared<dev::Word2>(kMostAt + to,
                                    {dev::bits_of(s.most[0]), dev::bits_of(s.most[1])});
      dev::store_shared<dev::Word2>(kSumAt + to, {dev::bits_of(s.sum[0]), dev::bits_of(s.sum[1])});
    }
    sync();  // and nobody reads its tile any more
    // A lane a warp, the last one again where there are more lanes.
    const bool warp_of_lane = at_.lane < kWarps;
    const uint32_t of_lane = warp_of_lane ? at_.lane : kWarps - 1;
    float theirs[kChooseRows], most[kChooseRows];
    words(of_lane, kMostAt, theirs);
#pragma unroll
    for (int r = 0; r < kChooseRows; ++r) {
      most[r] = theirs[r];
#pragma unroll
      for (int mask = 1; mask < 32; mask *= 2) {
        most[r] = dev::max(most[r], dev::shuffle_xor(most[r], mask));
      }
    }
    if (at_.warp == 0) {
      float sum[kChooseRows];
      words(of_lane, kSumAt, sum);
#pragma unroll
      for (int r = 0; r < kChooseRows; ++r) {
        sum[r] = warp_of_lane ? sum[r] * share_of(theirs[r], most[r]) : 0.0f;
#pragma unroll
        for (int mask = 1; mask < 32; mask *= 2) {
          sum[r] += dev::shuffle_xor(sum[r], mask);
        }
        const uint32_t to = kStatsAt + 4 * static_cast<uint32_t>(r);
        if (at_.lane == 0) {
          dev::store_shared<float>(to, most[r]);
          dev::store_shared<float>(to + 16, sum[r]);
        }
      }
    }
    if (has) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float mine = share_of(s.most[r], at_.t == 0 ? most[r] : most[2 + r]);
        const uint32_t to = kWeightedAt + kBlockBytes * at_.warp +
                            kRowBytes * (2 * at_.t + static_cast<uint32_t>(r)) + 4 * at_.group;
#pragma unroll
        for (uint32_t i = 0; i < Config::kTiles; ++i) {
          dev::store_shared<float>(to + 64 * i, s.weighted[i][r] * mine);
          dev::store_shared<float>(to + 64 * i + 32, s.weighted[i][2 + r] * mine);
        }
      }
    }
    sync();
    const uint32_t thread = dev::thread_index();
    float sum = 0;
    if (thread < kChooseRows * Config::kDim) {
#pragma unroll
      for (uint32_t w = 0; w < kWarps; ++w) {
        sum += dev::load_shared<float>(kWeightedAt + kBlockBytes * w + 4 * thread);
      }
    }
    return sum;
  }
  TAMIS_DEVICE static void sync() {
    dev::sync_warp();
    dev::sync_warps<1, 32 * kWarps>();
  }
  // Four numbers of warp w.
  TAMIS_DEVICE static void words(uint32_t w, uint32_t from, float (&x)[kChooseRows]) {
    const auto v = dev::load_shared<dev::Word4>(from + 16 * w);
    x[0] = dev::float_of(v.x);
    x[1] = dev::float_of(v.y);
    x[2] = dev::float_of(v.z);
    x[3] = dev::float_of(v.w);
  }

  // The blocks' numbers to that output.
  TAMIS_DEVICE void write(uint32_t blocks, uint32_t each, uint32_t output) const {
    const uint32_t row = output / Config::kDim, place = output - dev::block_index_x() * each;
    float most = kNever, sum = 0, weighted = 0;
#pragma unroll 2
    for (uint32_t b = 0; b < blocks; ++b) {
      most = dev::max(most, dev::load_shared<float>(stats_at(b) + 4 * row));
    }
#pragma unroll 2
    for (uint32_t b = 0; b < blocks; ++b) {
      const float share = share_of(dev::load_shared<float>(stats_at(b) + 4 * row), most);
      sum += share * dev::load_shared<float>(stats_at(b) + 16 + 4 * row);
      weighted += share * dev::load_shared<float>(value_at(b * each + place));
    }
    const float value = sum > 0 ? weighted / sum : 0.0f;
    const int64_t to = int64_t{at_.head} * p_.rows * Config::kDim + output;
    static_cast<uint16_t*>(p_.out)[to] =
        Config::kType == DType::bf16 ? dev::f32_to_bf16(value) : dev::f32_to_f16(value);
    if (output % Config::kDim == 0) {
      write_lse(p_, at_, static_cast<int32_t>(row), most, sum);
    }
  }

  const AttentionCudaParams& p_;
  const ChosenParams& all_;
  AttentionPlace at_;
  int32_t listed_ = 0;
  WarpSums<Config::kTiles> sums_;
};

}  // namespace tamis

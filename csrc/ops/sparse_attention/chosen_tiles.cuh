// Tiles of attention over chosen tokens: half of a block's warps, or more, bring 16 listed tokens
// at a time. Keys and values of a tile lie in the memory of scores, rows of 2 d bytes whose chunk c
// of 16 bytes lies at c ^ (row & 7), so that eight rows of a matrix meet in no bank. Sums: online
// softmax a warp, then warps, then blocks, which send each other the parts that each writes, in
// order, so that results repeat bit for bit.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/sparse_attention/attend.cuh"
#include "ops/sparse_attention/chosen_params.h"

namespace tamis {

template <DType kTypeOf, int kDimOf, bool kWholeOf, int kRowsOf>
struct ChosenConfig {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;
  static constexpr bool kWhole = kWholeOf;  // scores
  static constexpr int kRows = kRowsOf;     // whose scores are kept
  static constexpr int kWarps = chosen_warps(kWhole);
  static constexpr int kTiles = kDim / 16;  // of the output, and products of a score
  static constexpr uint32_t kRow = 2 * kDim;
  static constexpr uint32_t kChunks = kRow / 16, kRowsAtOnce = 32 / kChunks;
  static constexpr uint32_t kPart = kChosenTokens * kRow;  // keys or values of a tile
  static constexpr auto kPitch = static_cast<uint32_t>(chosen_query_pitch(kDim));
  static_assert(kType == DType::bf16 || kType == DType::f16, "tensor cores take 16-bit floats");
  static_assert(kChunks >= 8 && kChunks <= 32 && kChosenTokens == 16, "eight chunks change places");
};

// The tiles of the block's list, from the first of each warp on.
template <class Config>
class ChosenTiles {
  static constexpr int kWarps = Config::kWarps, kRows = Config::kRows;
  static constexpr uint32_t kRowWarps = Config::kDim / 32;  // a thread an output, or two
  static constexpr bool kTwice = kRows * kRowWarps > kWarps;
  static_assert(kRows * kRowWarps <= 2 * kWarps, "twice at most");

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
      const uint32_t weight[2] = {dev::transpose(pack<Config::kType>(c[0][0], c[0][1])),
                                  dev::transpose(pack<Config::kType>(c[0][2], c[0][3]))};
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
    leave(sums_);
    sync();
    const auto send = [&](uint32_t other, uint32_t to, uint32_t value) {
      if (alone) {
        dev::store_shared<uint32_t>(to, value);
      } else {
        dev::send_cluster(other, to, value, parts_at());
      }
    };
    const auto put = [&](uint32_t warp) {
      if (warp >= kRows * kRowWarps) return;  // the same in every lane
      const Merged all = merge(warp);
      if (all.row < static_cast<uint32_t>(p_.rows)) {
        const uint32_t output = all.row * Config::kDim + all.channel;
        send(output / each, value_at(block * each + output % each), dev::bits_of(all.value));
      }
      if (warp % kRowWarps == 0 && at_.lane < blocks) {
        const uint32_t to = stats_at(block) + 4 * all.row;
        send(at_.lane, to, dev::bits_of(all.most));
        send(at_.lane, to + 4 * kRows, dev::bits_of(all.sum));
      }
    };
    put(at_.warp);
    if constexpr (kTwice) put(at_.warp + kWarps);
    if (alone) {
      sync();
    } else {
      dev::barrier_wait(parts_at(), 0);
    }
    if (thread < own) write(blocks, each, first + thread);
    if constexpr (kTwice) {
      if (thread + 32 * kWarps < own) write(blocks, each, first + thread + 32 * kWarps);
    }
  }

 private:
  // Addresses are made of it in this place of the program: from before, they would wait in local
  // memory.
  TAMIS_DEVICE static int32_t here(int32_t x) {
    return static_cast<int32_t>(dev::in_register(static_cast<uint32_t>(x)));
  }

  // Where candidates were ranked: largest scores and sums [4][32] by row and warp.
  static TAMIS_DEVICE uint32_t stats_of(uint32_t row, uint32_t warp) {
    return kChooseRankedAt + 8 * (32 * row + warp);
  }
  static constexpr uint32_t kPartStats = 8 * kRows;
  static_assert(8 * 32 * kRows <= 4 * kChooseCandidates, "in place of the candidates");

  // What the blocks send: a barrier, largest scores and sums [blocks][2][kRows], values [blocks] of
  // the outputs that this block writes.
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
          (kValues ? p_.values + at_.batch * p_.value_batch + at_.kv_head * p_.value_head
                   : p_.keys + at_.batch * p_.key_batch + at_.kv_head * p_.key_head) +
          16 * chunk;
      const auto stride = static_cast<uint32_t>(kValues ? p_.value_token : p_.key_token);
      const uint32_t to =
          dev::in_register((kValues ? values_at() : keys_at()) + in_turn * Config::kRow);
      const uint32_t turned = dev::in_register(16 * (chunk ^ in_turn));
#pragma unroll
      for (uint32_t i = 0; i < kChosenTokens / Config::kRowsAtOnce; ++i) {
        const uint32_t row = i * Config::kRowsAtOnce;
        const auto id = static_cast<uint32_t>(dev::shuffle(token, static_cast<int>(row + in_turn)));
        dev::copy_async16(to + row * Config::kRow + (turned ^ 16 * (row % 8)),
                          from + uint64_t{id} * stride, 16);
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
      multiply<Config::kType>(c, keys, dev::load_shared<uint32_t>(query + 32 * step),
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
      multiply<Config::kType>(s.weighted[tile], values, weight[0], weight[1]);
    }
  }

  // What the warp has, over its own tile: of two rows sixteen lanes' values (of eight rows all
  // lanes'), four neighbours of a lane at a time, at a pitch that spreads eight lanes' over all
  // banks; largest scores and sums.
  TAMIS_DEVICE void leave(WarpSums<Config::kTiles>& s) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) s.sum[r] += dev::shuffle_xor(s.sum[r], mask);
    }
    if (at_.t >= kRows / 2) return;
    const uint32_t stats = dev::in_register(stats_of(2 * at_.t, at_.warp));
    const uint32_t to = dev::in_register(keys_at() + value_of(0, 8 * at_.t + at_.group, 0));
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      if (at_.group == 0) {
        dev::store_shared<dev::Word2>(stats + stats_of(r, 0) - stats_of(0, 0),
                                      {dev::bits_of(s.most[r]), dev::bits_of(s.sum[r])});
      }
#pragma unroll
      for (uint32_t i = 0; i < Config::kTiles; i += 2) {
        dev::store_shared<dev::Word4>(
            to + value_of(r, 0, 2 * i),
            {dev::bits_of(s.weighted[i][r]), dev::bits_of(s.weighted[i][2 + r]),
             dev::bits_of(s.weighted[i + 1][r]), dev::bits_of(s.weighted[i + 1][2 + r])});
      }
    }
  }
  // A row and a channel of all warps together, relative to the row's largest score; a thread an
  // output, of kRowWarps warps a row.
  struct Merged {
    uint32_t row, channel;
    float most, sum, value;
  };
  TAMIS_DEVICE Merged merge(uint32_t warp) const {
    Merged all{};
    all.row = warp / kRowWarps;
    const uint32_t place = 4 * (warp % kRowWarps) + at_.lane % 4, group = at_.lane / 4;
    all.channel = 8 * place + group;
    dev::Word2 theirs{dev::bits_of(kNever), 0};
    if (at_.lane < kWarps) theirs = dev::load_shared<dev::Word2>(stats_of(all.row, at_.lane));
    const float largest = dev::float_of(theirs.x);
    all.most = from_ordered(dev::warp_max(ordered_bits(largest)));
    const float share = share_of(largest, all.most);
    all.sum = share * dev::float_of(theirs.y);
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) all.sum += dev::shuffle_xor(all.sum, mask);
    const uint32_t from = kChooseScoresAt + value_of(all.row % 2, 8 * (all.row / 2) + group, place);
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      const float of_warp = dev::float_of(static_cast<uint32_t>(
          dev::shuffle(static_cast<int32_t>(dev::bits_of(share)), static_cast<int>(w))));
      all.value += of_warp * dev::load_shared<float>(from + 2 * Config::kPart * w);
    }
    return all;
  }
  // Of row r of a lane's two: its value `place`, of channels place / 2 tiles of 16 on, the upper
  // eight of each behind the lower.
  static TAMIS_DEVICE uint32_t value_of(uint32_t r, uint32_t slot, uint32_t place) {
    constexpr uint32_t kPitchOf = 4 * (2 * Config::kTiles + 4);
    constexpr uint32_t kSlots = 4 * kRows;
    static_assert(2 * kSlots * kPitchOf <= 2 * Config::kPart, "over its own tile");
    return kPitchOf * (kSlots * r + slot) + 4 * place;
  }
  TAMIS_DEVICE static void sync() {
    dev::sync_warp();
    dev::sync_warps<1, 32 * kWarps>();
  }
  // The blocks' numbers to that output.
  TAMIS_DEVICE void write(uint32_t blocks, uint32_t each, uint32_t output) const {
    const uint32_t row = output / Config::kDim, place = output - dev::block_index_x() * each;
    float most = kNever, sum = 0, weighted = 0;
#pragma unroll
    for (uint32_t b = 0; b < kChooseBlocks; ++b) {
      if (b >= blocks) break;
      most = dev::max(most, dev::load_shared<float>(stats_at(b) + 4 * row));
    }
#pragma unroll
    for (uint32_t b = 0; b < kChooseBlocks; ++b) {
      if (b >= blocks) break;
      const float share = share_of(dev::load_shared<float>(stats_at(b) + 4 * row), most);
      sum += share * dev::load_shared<float>(stats_at(b) + 4 * kRows + 4 * row);
      weighted += share * dev::load_shared<float>(value_at(b * each + place));
    }
    const float value = sum > 0 ? weighted / sum : 0.0f;
    const int64_t to = int64_t{at_.head} * p_.rows * Config::kDim + output;
    static_cast<uint16_t*>(p_.out)[to] = narrow<Config::kType>(value);
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

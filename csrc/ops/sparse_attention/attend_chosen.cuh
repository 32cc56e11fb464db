// Attention over the tokens that a cluster of blocks chooses, in the same launch: a block reads
// those of its own share of the tokens as soon as it knows them, half of its warps 16 tokens at a
// time. First tiles of tokens that are certain are on their way while the cluster settles which of
// the candidates belong to the k best. Keys and values of a tile lie in the memory of scores, rows
// of 2 d bytes whose chunk c of 16 bytes lies at c ^ (row & 7), so that eight rows of a matrix meet
// in no bank. Sums: online softmax a warp, then warps, then blocks through shared memory of the
// cluster, in order, so that results repeat bit for bit.
#pragma once

#include "ops/kv_select/choose.cuh"
#include "ops/sparse_attention/attend.cuh"
#include "ops/sparse_attention/chosen_params.h"

namespace tamis {

template <DType kTypeOf, int kDimOf>
struct ChosenConfig {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;
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

// Bits [first, last) of a word, as far as it has them.
TAMIS_DEVICE uint32_t bits_between(int32_t first, int32_t last) {
  const int32_t low = first < 0 ? 0 : first, high = last < 32 ? last : 32;
  return low >= high ? 0u : ~0u << low & ~0u >> (32 - high);
}

// The tiles of the block's list, from the first of each warp on.
template <class Config>
class ChosenTiles {
  static_assert(kChooseRows * Config::kDim <= 32 * kChosenWarps, "a thread an output");

 public:
  TAMIS_DEVICE ChosenTiles(const ChosenParams& params, const EstimatePlace& at, int32_t listed)
      : p_(params.attention), all_(params), at_(at.head, at.batch, at.kv_head), listed_(listed) {
    at_.warp = dev::in_register(dev::thread_index()) / 32;  // see ChosenReader::warp
  }

  // The warp's first one, in few registers.
  TAMIS_DEVICE void start() {
    request<false, 1>(static_cast<int32_t>(at_.warp));
    request<true, 1>(static_cast<int32_t>(at_.warp));
  }
  // Warps that read take the registers of those that do not.
  TAMIS_DEVICE void read(bool started) {
    dev::sync_warp();  // what follows counts whole warps
    const bool alone = all_.choose.estimate.blocks == 1;
    if (at_.warp < kChosenWarps) {
      dev::take_registers<kChosenRegisters>();
      WarpSums<Config::kTiles> sums;
      if (!started) start();
      add(sums);
      merge(sums);
      dev::sync_warp();
      if (alone) {
        sync();
      } else {
        dev::sync_cluster();
      }
      write();
    } else {
      dev::keep_registers<kIdleRegisters>();
      if (!alone) dev::sync_cluster();
    }
    // Nobody reads from a block that has ended.
    if (!alone) dev::sync_cluster_unordered();
  }

 private:
  // Over the tiles: what the block's rows come to, largest and sum, for the cluster; its weighted
  // values [4][d]; largest scores and sums [warps][4]; weighted values [warps][4][d].
  static constexpr uint32_t kStatsAt = kChooseScoresAt, kBlockAt = kStatsAt + 32;
  static constexpr uint32_t kRowBytes = 4 * Config::kDim, kBlockBytes = kChooseRows * kRowBytes;
  static constexpr uint32_t kMostAt = kBlockAt + kBlockBytes, kSumAt = kMostAt + 16 * kChosenWarps;
  static constexpr uint32_t kWeightedAt = kSumAt + 16 * kChosenWarps;
  static_assert(kWeightedAt + kChosenWarps * kBlockBytes <=
                    kChooseScoresAt + static_cast<uint32_t>(chosen_ring(Config::kDim)),
                "over the tiles");

  TAMIS_DEVICE uint32_t query_at() const { return static_cast<uint32_t>(all_.query_at); }
  TAMIS_DEVICE uint32_t keys_at() const { return kChooseScoresAt + 2 * Config::kPart * at_.warp; }
  TAMIS_DEVICE uint32_t values_at() const { return keys_at() + Config::kPart; }

  // Rows of a tile; past the last token the last one again. A group of copies, whether empty or
  // not.
  template <bool kValues, int kAtOnce = kChosenTokens>
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
#pragma unroll kAtOnce
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

  TAMIS_DEVICE void add(WarpSums<Config::kTiles>& s) {
    constexpr int32_t kStep = kChosenWarps;
    const float factor[2] = {p_.scale, p_.scale};
#pragma unroll 1
    for (auto tile = static_cast<int32_t>(at_.warp); kChosenTokens * tile < listed_;
         tile += kStep) {
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
      soften(p_, at_, factor, left < kChosenTokens, id, c, s);
      const uint32_t weight[2] = {dev::transpose(Config::pack(c[0][0], c[0][1])),
                                  dev::transpose(Config::pack(c[0][2], c[0][3]))};
      dev::wait_async<1>();
      dev::sync_warp();
      weigh(weight, s);
      dev::sync_warp();
      request<true>(tile + kStep);
    }
    dev::wait_async<0>();
  }

  // What warps have to the block's numbers, relative to its largest score.
  TAMIS_DEVICE void merge(WarpSums<Config::kTiles>& s) {
    const bool has = at_.t < kChooseRows / 2;
    sync();  // nobody reads its tile any more
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
    sync();
    // A lane a warp.
    float theirs[kChooseRows], most[kChooseRows];
    words(at_.lane % kChosenWarps, kMostAt, theirs);
#pragma unroll
    for (int r = 0; r < kChooseRows; ++r) {
      most[r] = theirs[r];
#pragma unroll
      for (int mask = 1; mask < kChosenWarps; mask *= 2) {
        most[r] = dev::max(most[r], dev::shuffle_xor(most[r], mask));
      }
    }
    if (at_.warp == 0) {
      float sum[kChooseRows];
      words(at_.lane % kChosenWarps, kSumAt, sum);
#pragma unroll
      for (int r = 0; r < kChooseRows; ++r) {
        sum[r] *= share_of(theirs[r], most[r]);
#pragma unroll
        for (int mask = 1; mask < kChosenWarps; mask *= 2) {
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
    if (thread >= kChooseRows * Config::kDim) return;
    float sum = 0;
#pragma unroll
    for (uint32_t w = 0; w < kChosenWarps; ++w) {
      sum += dev::load_shared<float>(kWeightedAt + kBlockBytes * w + 4 * thread);
    }
    dev::store_shared<float>(kBlockAt + 4 * thread, sum);
  }
  TAMIS_DEVICE static void sync() {
    dev::sync_warp();
    dev::sync_warps<1, 32 * kChosenWarps>();
  }
  // Four numbers of warp w.
  TAMIS_DEVICE static void words(uint32_t w, uint32_t from, float (&x)[kChooseRows]) {
    const auto v = dev::load_shared<dev::Word4>(from + 16 * w);
    x[0] = dev::float_of(v.x);
    x[1] = dev::float_of(v.y);
    x[2] = dev::float_of(v.z);
    x[3] = dev::float_of(v.w);
  }

  // The blocks' numbers to the answer, each block its part of the channels.
  TAMIS_DEVICE void write() const {
    const auto blocks = static_cast<uint32_t>(all_.choose.estimate.blocks);
    const auto outputs = static_cast<uint32_t>(p_.rows) * Config::kDim;
    const uint32_t each = (outputs + blocks - 1) / blocks;
    const uint32_t output = dev::block_index_x() * each + dev::thread_index();
    if (dev::thread_index() >= each || output >= outputs) return;
    const uint32_t row = output / Config::kDim;
    float most = kNever, sum = 0, weighted = 0;
    float mosts[kChooseBlocks], sums[kChooseBlocks], values[kChooseBlocks];  // all on their way
#pragma unroll
    for (uint32_t b = 0; b < kChooseBlocks; ++b) {
      const uint32_t from = b < blocks ? b : 0;
      mosts[b] = dev::float_of(dev::load_cluster(from, kStatsAt + 4 * row));
      sums[b] = dev::float_of(dev::load_cluster(from, kStatsAt + 16 + 4 * row));
      values[b] = dev::float_of(dev::load_cluster(from, kBlockAt + 4 * output));
    }
#pragma unroll
    for (uint32_t b = 0; b < kChooseBlocks; ++b) {
      if (b < blocks) most = dev::max(most, mosts[b]);
    }
#pragma unroll
    for (uint32_t b = 0; b < kChooseBlocks; ++b) {
      const float share = b < blocks ? share_of(mosts[b], most) : 0.0f;
      sum += share * sums[b];
      weighted += share * values[b];
    }
    const float value = sum > 0 ? weighted / sum : 0.0f;
    const int64_t to = int64_t{at_.head} * outputs + output;
    static_cast<uint16_t*>(p_.out)[to] =
        Config::kType == DType::bf16 ? dev::f32_to_bf16(value) : dev::f32_to_f16(value);
    if (output % Config::kDim == 0) {
      write_lse(p_, at_, static_cast<int32_t>(row), most, sum);
    }
  }

  const AttentionCudaParams& p_;
  const ChosenParams& all_;
  AttentionPlace at_;
  const int32_t listed_;
};

template <class Config>
class ChosenReader {
 public:
  static constexpr bool kLists = false;

  TAMIS_DEVICE explicit ChosenReader(const ChosenParams& params) : all_(params) {}

  TAMIS_DEVICE void ask_query() {
    const AttentionCudaParams& p = all_.attention;
    const uint32_t row = dev::thread_index() / Config::kChunks;
    const uint32_t chunk = dev::thread_index() % Config::kChunks;
    if (row >= kRowsPerTile) return;
    const bool exists = static_cast<int32_t>(row) < p.rows;
    const int64_t from =
        (int64_t{dev::block_index_y()} * p.rows + (exists ? row : 0)) * Config::kRow;
    dev::copy_async16(static_cast<uint32_t>(all_.query_at) + row * Config::kPitch + 16 * chunk,
                      static_cast<const uint8_t*>(p.q) + from + 16 * chunk, exists ? 16 : 0);
    dev::commit_async();
  }
  TAMIS_DEVICE void query_there() { dev::wait_async<0>(); }

  TAMIS_DEVICE void list_sure(uint32_t bits, uint32_t before) {
    if (static_cast<int32_t>(lane()) < all_.choose.turns) {
      dev::store_shared<uint32_t>(sure_at() + 4 * static_cast<uint32_t>(word()), bits);
    }
    const int32_t known = list(bits, before, kChooseWarpsAt, 0);
    if (dev::thread_index() == 0) dev::store_shared<int32_t>(known_at(), known);
  }
  TAMIS_DEVICE void start(const EstimatePlace& at) {
    const auto known = dev::load_shared<int32_t>(known_at());
    if (started(known)) ChosenTiles<Config>(all_, at, known).start();
  }
  TAMIS_DEVICE void forget() {
    dev::wait_async<0>();
    const uint32_t thread = dev::thread_index();
    if (thread == 0) dev::store_shared<int32_t>(known_at(), 0);
    if (thread < kChooseUnits / 32) {
      dev::store_shared<uint32_t>(sure_at() + 4 * thread, 0);
      dev::store_shared<uint32_t>(kChooseListedAt + 4 * thread, 0);
    }
    dev::sync_block();
  }
  TAMIS_DEVICE void list_unit(int32_t place) {
    const auto of = static_cast<uint32_t>(place);
    dev::add_shared(kChooseListedAt + 4 * (of / 32), 1u << of % 32);
  }
  TAMIS_DEVICE void read(const EstimatePlace& block, const SelectTask& task, uint32_t bits_at) {
    if (bits_at == kChooseNowhere) dev::wait_async<0>();  // for q
    dev::sync_block();
    const int32_t known = bits_at == kChooseNowhere ? 0 : dev::load_shared<int32_t>(known_at());
    const int32_t listed = list_rest(block, task, bits_at, known);
    ChosenTiles<Config>(all_, block, listed).read(started(known));
  }

 private:
  // Whether the first tile of this warp consists of certain tokens.
  TAMIS_DEVICE static bool started(int32_t known) {
    const auto first = static_cast<int32_t>(warp());
    return first < kChosenWarps && kChosenTokens * (first + 1) <= known;
  }
  TAMIS_DEVICE uint32_t sure_at() const { return static_cast<uint32_t>(all_.sure_at); }
  // How many entries of the block's list are certain.
  TAMIS_DEVICE uint32_t known_at() const { return sure_at() + kChooseUnits / 8; }
  TAMIS_DEVICE int32_t word() const {
    return all_.choose.turns * static_cast<int32_t>(warp()) + static_cast<int32_t>(lane());
  }

  // Lists the units of `bits`, of which the lanes below have `before` and warps what lies there,
  // from entry `from` on; how many the block has.
  TAMIS_DEVICE int32_t list(uint32_t bits, uint32_t before, uint32_t warps_at, int32_t from) {
    auto warps = dev::load_shared<uint32_t>(warps_at + 4 * lane());
    for (int distance = 1; distance < 32; distance *= 2) warps = dev::prefix_step(warps, distance);
    const int32_t earlier =
        dev::shuffle(static_cast<int32_t>(warps), static_cast<int>((warp() + 31) % 32));
    const int32_t count = dev::shuffle(static_cast<int32_t>(warps), 31);
    const int32_t first = from + (warp() == 0 ? 0 : earlier) + static_cast<int32_t>(before);
    uint32_t to = static_cast<uint32_t>(all_.list_at + 2 * first);
    const int32_t unit = 32 * word();
    for (; bits != 0; bits &= bits - 1, to += 2) {
      const int32_t lowest = dev::popcount((bits & (0u - bits)) - 1);
      dev::store_shared<uint16_t>(to, static_cast<uint16_t>(unit + lowest));
    }
    return count;
  }

  // Lists what was not certain, and what is forced, behind what was; how many there are.
  TAMIS_DEVICE int32_t list_rest(const EstimatePlace& block, const SelectTask& task,
                                 uint32_t bits_at, int32_t known) {
    uint32_t bits = 0;
    if (static_cast<int32_t>(lane()) < all_.choose.turns) {
      const int32_t first = block.first + 32 * word();
      if (bits_at != kChooseNowhere) {
        const uint32_t of = 4 * static_cast<uint32_t>(word());
        bits =
            dev::load_shared<uint32_t>(bits_at + of) & ~dev::load_shared<uint32_t>(sure_at() + of);
      }
      const auto between = [&](int32_t from, int32_t count) {
        return bits_between(from - first, from + count - first);
      };
      uint32_t forced =
          between(task.begin, task.sink) | between(task.begin + task.sink + task.n, task.recent);
      if (bits_at == kChooseNowhere) forced |= between(task.begin + task.sink, task.k);
      bits |= forced & bits_between(0, block.last - first);
    }
    const auto mine = static_cast<uint32_t>(dev::popcount(bits));
    uint32_t through = mine;
    for (int distance = 1; distance < 32; distance *= 2) {
      through = dev::prefix_step(through, distance);
    }
    const auto warps_at = static_cast<uint32_t>(all_.warps_at);
    if (lane() == 31) dev::store_shared<uint32_t>(warps_at + 4 * warp(), through);
    dev::sync_block();
    const int32_t count = list(bits, through - mine, warps_at, known);
    dev::sync_block();
    return known + count;
  }

  // From the thread again: held from before, the warp's number would wait in local memory.
  TAMIS_DEVICE static uint32_t warp() { return dev::in_register(dev::thread_index()) / 32; }
  TAMIS_DEVICE static uint32_t lane() { return dev::thread_index() % 32; }

  const ChosenParams& all_;
};

// Grid [blocks, heads] of kChooseThreads, the blocks of a head a cluster.
template <class Config>
TAMIS_DEVICE void attend_chosen(const ChosenParams& p) {
  ChosenReader<Config> reader(p);
  choose_units(p.choose, reader);
}

}  // namespace tamis

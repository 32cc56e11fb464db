// Attention over the tokens that a cluster of blocks chooses, in the same launch: a block reads
// those of its own share of the tokens. Where scores are whole, which those are is soon settled,
// and then more than half of the warps read. Else half of them read those that are certain, while
// the others settle with the rest of the cluster which candidates belong to the k best; those are
// read at the end.
#pragma once

#include "ops/kv_select/choose.cuh"
#include "ops/sparse_attention/chosen_params.h"
#include "ops/sparse_attention/chosen_tiles.cuh"

namespace tamis {

// Bits [first, last) of a word, as far as it has them.
TAMIS_DEVICE uint32_t bits_between(int32_t first, int32_t last) {
  const int32_t low = first < 0 ? 0 : first, high = last < 32 ? last : 32;
  return low >= high ? 0u : ~0u << low & ~0u >> (32 - high);
}

template <class Config>
class ChosenReader {
  static constexpr int kWarps = Config::kWarps;

 public:
  static constexpr bool kLists = false;
  static constexpr int kChannels = Config::kDim / 4;  // double_sparsity's
  using Settlers = ChooseGroup<kWarps, kChooseThreads / 32 - kWarps, 2>;

  TAMIS_DEVICE explicit ChosenReader(const ChosenParams& params) : all_(params) {}

  TAMIS_DEVICE void begin() {
    dev::barrier_init(kChooseSettledAt, Settlers::kThreads);
    dev::barrier_init(static_cast<uint32_t>(all_.parts_at));
    dev::store_shared<int32_t>(known_at(), 0);
  }
  TAMIS_DEVICE void ask_query() {
    const AttentionCudaParams& p = all_.attention;
    // Not the first warps, which look at q for choosing.
    const uint32_t thread = (dev::thread_index() + kChooseThreads / 2) % kChooseThreads;
    const uint32_t row = thread / Config::kChunks, chunk = thread % Config::kChunks;
    if (row >= kRowsPerTile) return;
    const bool exists = static_cast<int32_t>(row) < p.rows;
    const int64_t from =
        (int64_t{dev::block_index_y()} * p.rows + (exists ? row : 0)) * Config::kRow;
    dev::copy_async16(static_cast<uint32_t>(all_.query_at) + row * Config::kPitch + 16 * chunk,
                      static_cast<const uint8_t*>(p.q) + from + 16 * chunk, exists ? 16 : 0);
    dev::commit_async();
  }
  // The last token's label, where it has none yet: by a warp that has nothing to do with q. Where
  // scores have 16 bits, registers are few.
  TAMIS_DEVICE void write_label(const EstimatePlace& block) {
    if constexpr (Config::kWhole) {
      const EstimateParams& e = all_.choose.estimate;
      const KvUnits& units = e.args.units;
      if (all_.choose.new_label == nullptr || block.warp != kLabelWarp ||
          block.last != units.units || block.first >= block.last) {
        return;
      }
      const AttentionCudaParams& p = all_.attention;
      const int32_t token = block.last - 1;
      const uint8_t* key =
          p.keys + block.batch * p.key_batch + block.kv_head * p.key_head + token * p.key_token;
      auto* record = static_cast<uint8_t*>(all_.choose.new_label) +
                     block.batch * units.batch_stride + block.kv_head * units.head_stride +
                     token / kLabelTokens * e.label_bytes;
      tamis::write_label(e, Config::kType, Config::kDim == 128, key, block.kv_head, token, record);
    }
  }
  TAMIS_DEVICE void query_there() { dev::wait_async<0>(); }

  TAMIS_DEVICE uint32_t note(const EstimatePlace& block, const SelectTask& task, uint32_t word,
                             uint32_t bits) {
    bits |= forced(block, task, word, false);
    dev::store_shared<uint32_t>(sure_at() + 4 * word, bits);
    return static_cast<uint32_t>(dev::popcount(bits));
  }
  TAMIS_DEVICE void count(uint32_t listed) { dev::add_shared(known_at(), listed); }
  TAMIS_DEVICE void forget() {
    const uint32_t thread = dev::thread_index();
    if (thread < kChooseUnits / 32) {
      dev::store_shared<uint32_t>(kChooseListedAt + 4 * thread, 0);
    }
    dev::sync_block();
  }
  TAMIS_DEVICE void list_unit(int32_t place) {
    const auto of = static_cast<uint32_t>(place);
    dev::add_shared(kChooseListedAt + 4 * (of / 32), 1u << of % 32);
  }

  // Of whole scores. Bits of the word with those that are taken whatever they score; all words are
  // listed, one a lane, behind which others are put; the number of all.
  TAMIS_DEVICE uint32_t with_forced(const EstimatePlace& block, const SelectTask& task,
                                    uint32_t word, uint32_t bits) const {
    return bits | forced(block, task, word, false);
  }
  TAMIS_DEVICE uint32_t count_bits(uint32_t bits) { return count<Everybody>(bits, warps_at()); }
  TAMIS_DEVICE uint32_t list_bits(uint32_t word, uint32_t bits, uint32_t through) {
    return static_cast<uint32_t>(list<Everybody>(word, bits, through, 0, warps_at()));
  }
  TAMIS_DEVICE void put(uint32_t entry, int32_t place) {
    dev::store_shared<uint16_t>(static_cast<uint32_t>(all_.list_at) + 2 * entry,
                                static_cast<uint16_t>(place));
  }
  TAMIS_DEVICE void listed(int32_t count) { listed_ = count; }

  // Some of the warps read, with the others' registers; meanwhile those settle what is not certain.
  template <class Settle>
  TAMIS_DEVICE bool read(const EstimatePlace& block, const SelectTask& task, Chosen from,
                         const Settle& settle) {
    if (from == Chosen::all) dev::wait_async<0>();                         // for q
    if (from == Chosen::listed || from == Chosen::all) dev::sync_block();  // behind one anyway
    bool settled = true;
    if (warp() < kWarps) {
      dev::take_registers<kChosenRegisters>();
      settled = read_listed(block, task, from);
      if constexpr (!Config::kWhole) {
        if (!settled) {
          dev::keep_registers<kChooseRegisters>();
          all_give_back();
        }
      }
    } else {
      dev::keep_registers<kOtherRegisters<Config::kWhole>>();
      if constexpr (!Config::kWhole) {
        if (from == Chosen::certain) settled = settle_rest(settle);
        if (!settled) {
          all_give_back();
          dev::take_registers<kChooseRegisters>();
        }
      }
    }
    return settled;
  }

 private:
  // The readers have taken theirs and given them back: others that took some before a slow one did
  // would leave too few.
  TAMIS_DEVICE static void all_give_back() { dev::sync_warps<3, kChooseThreads>(); }

  using Readers = ChooseGroup<0, kWarps, 1>;
  using Everybody = ChooseGroup<0, kChooseThreads / 32, 0>;
  // Behind those that look at q for choosing, and not among those that bring it for attention.
  static constexpr uint32_t kLabelWarp = 12;
  static_assert(kLabelWarp >= kChooseRows && kLabelWarp < kChooseThreads / 64, "none of those");
  static_assert(Readers::kThreads >= kChooseUnits / 32, "a thread a word of units");
  static_assert(Config::kWhole || Settlers::kThreads >= kChooseUnits / 32,
                "a thread a word of units");

  TAMIS_DEVICE bool read_listed(const EstimatePlace& block, const SelectTask& task, Chosen from) {
    const uint32_t word = dev::in_register(Readers::thread());
    int32_t known = listed_;
    if (from != Chosen::settled) {
      uint32_t bits = 0;
      if (has(word)) {
        if (from == Chosen::certain) {
          bits = dev::load_shared<uint32_t>(sure_at() + 4 * word);
        } else {
          bits = forced(block, task, word, from == Chosen::all);
          if (from == Chosen::listed) {
            bits |= dev::load_shared<uint32_t>(kChooseListedAt + 4 * word);
          }
        }
      }
      known = list<Readers>(word, bits, count<Readers>(bits, warps_at()), 0, warps_at());
      Readers::sync();
    }
    ChosenTiles<Config> tiles(all_, block);
    // Whole tiles of what is certain; then what is settled, behind it.
    int32_t first = 0, listed = from == Chosen::certain ? known - known % kChosenTokens : known;
#pragma unroll 1
    while (true) {
      tiles.add(first, listed);
      if (from != Chosen::certain) break;
      dev::barrier_wait(kChooseSettledAt, 0);
      from = Chosen::listed;
      first = listed / kChosenTokens;
      listed = dev::load_shared<int32_t>(listed_at());
      if (listed < 0) return false;
    }
    tiles.finish();
    return true;
  }

  template <class Settle>
  TAMIS_DEVICE bool settle_rest(const Settle& settle) {
    const bool settled = settle();
    int32_t listed = -1;
    if (settled) {
      const uint32_t word = Settlers::thread();
      uint32_t bits = 0;
      if (has(word)) {
        bits = dev::load_shared<uint32_t>(kChooseTakenAt + 4 * word) &
               ~dev::load_shared<uint32_t>(sure_at() + 4 * word);
      }
      const auto known = dev::load_shared<int32_t>(known_at());
      const uint32_t sums_at = warps_at() + 4 * kWarps;
      listed = known + list<Settlers>(word, bits, count<Settlers>(bits, sums_at), known, sums_at);
      Settlers::sync();
    }
    if (Settlers::thread() == 0) dev::store_shared<int32_t>(listed_at(), listed);
    dev::barrier_arrive(kChooseSettledAt);
    return settled;
  }

  TAMIS_DEVICE uint32_t warps_at() const { return static_cast<uint32_t>(all_.warps_at); }
  TAMIS_DEVICE uint32_t sure_at() const { return static_cast<uint32_t>(all_.sure_at); }
  // How many entries of the block's list are certain, and how many there are; below 0 where that
  // is not known.
  TAMIS_DEVICE uint32_t known_at() const { return sure_at() + kChooseUnits / 8; }
  TAMIS_DEVICE uint32_t listed_at() const { return known_at() + 4; }
  // Whether the block has that word of units.
  TAMIS_DEVICE bool has(uint32_t word) const {
    return static_cast<int32_t>(word) < kChooseThreads / 32 * all_.choose.turns;
  }

  // Units of a word that are taken whatever they score; all that there are to take.
  TAMIS_DEVICE static uint32_t forced(const EstimatePlace& block, const SelectTask& task,
                                      uint32_t word, bool all) {
    const int32_t first = block.first + 32 * static_cast<int32_t>(word);
    const int32_t others = task.begin + task.sink;
    if (!all && first >= others && first + 32 <= others + task.n) return 0;  // nearly all words
    const auto between = [&](int32_t from, int32_t count) {
      return bits_between(from - first, from + count - first);
    };
    uint32_t bits =
        between(task.begin, task.sink) | between(task.begin + task.sink + task.n, task.recent);
    if (all) bits |= between(task.begin + task.sink, task.k);
    return bits & bits_between(0, block.last - first);
  }

  // How many bits lanes up to this one have, behind a barrier all of the warp's.
  template <class Group>
  TAMIS_DEVICE static uint32_t count(uint32_t bits, uint32_t sums_at) {
    const uint32_t thread = Group::thread();
    auto through = static_cast<uint32_t>(dev::popcount(bits));
    for (int distance = 1; distance < 32; distance *= 2) {
      through = dev::prefix_step(through, distance);
    }
    if (thread % 32 == 31) dev::store_shared<uint32_t>(sums_at + 4 * (thread / 32), through);
    return through;
  }
  // Lists the units of each thread's word from entry `from` on, words ascending with threads; how
  // many there are. The list is whole behind another barrier.
  template <class Group>
  TAMIS_DEVICE int32_t list(uint32_t word, uint32_t bits, uint32_t through, int32_t from,
                            uint32_t sums_at) {
    constexpr uint32_t kGroupWarps = Group::kThreads / 32;
    static_assert(kGroupWarps <= 32, "a lane a warp");
    const uint32_t thread = Group::thread(), lane = thread % 32;
    const auto mine = static_cast<uint32_t>(dev::popcount(bits));
    Group::sync();
    const uint32_t theirs = lane < kGroupWarps ? dev::load_shared<uint32_t>(sums_at + 4 * lane) : 0;
    const auto earlier = static_cast<int32_t>(dev::warp_sum(lane < thread / 32 ? theirs : 0));
    const auto count = static_cast<int32_t>(dev::warp_sum(theirs));
    const int32_t first = from + earlier + static_cast<int32_t>(through - mine);
    auto to = static_cast<uint32_t>(all_.list_at + 2 * first);
    const int32_t unit = 32 * static_cast<int32_t>(word);
    for (; bits != 0; bits &= bits - 1, to += 2) {
      const int32_t lowest = dev::popcount((bits & (0u - bits)) - 1);
      dev::store_shared<uint16_t>(to, static_cast<uint16_t>(unit + lowest));
    }
    return count;
  }

  // From the thread again: held from before, the warp's number would wait in local memory.
  TAMIS_DEVICE static uint32_t warp() { return dev::in_register(dev::thread_index()) / 32; }

  const ChosenParams& all_;
  int32_t listed_ = 0;  // of whole scores
};

// Grid [blocks, heads] of kChooseThreads, the blocks of a head a cluster.
template <class Config>
TAMIS_DEVICE void attend_chosen(const ChosenParams& p) {
  ChosenReader<Config> reader(p);
  choose_units<Config::kWhole, Config::kRows>(p.choose, reader);
}

}  // namespace tamis

// A tail of dense tokens that the blocks of a page segment read: a warp's tile of it is asked for
// beside its first pages, is done before them, and what it comes to waits in its own memory until
// the pages are read. A launch of its own, its blocks and their parts to add up are not.
#pragma once

#include "ops/sparse_attention/attend_end.cuh"
#include "ops/sparse_attention/attend_rows.cuh"

namespace tamis {

// Of a warp's memory for its tile, once that is done: weighted values [channel][kPitch], as
// leave_sums has them, then largest scores and sums of each lane.
template <int kDim>
struct TailMemory {
  static constexpr uint32_t kBytes = 2 * 16 * 2 * kDim;  // the tile's keys and values
  static constexpr uint32_t kStatsAt = kDim * kPitch;
  static_assert(kStatsAt + 16 * 32 <= kBytes, "over the tile");
};

template <class Config>
class Tail {
  using Memory = TailMemory<Config::kDim>;

 public:
  // Asks for the warp's tile.
  TAMIS_DEVICE Tail(const AttentionCudaParams& p, const AttentionPlace& at)
      : memory_(memory_of(p)), first_(first_of(p)) {
    if (first_ >= p.tail.tokens) return;
    // Lanes take 16 bytes of a row each, of its key and of its value.
    constexpr uint32_t kChunks = 2 * Config::kDim / 16, kRowsAtOnce = 32 / kChunks;
    const uint32_t chunk = at.lane % kChunks;
    const AttentionTail& t = p.tail;
    const uint8_t* keys = t.keys + at.batch * t.key_batch + at.kv_head * t.key_head;
    const uint8_t* values = t.values + at.batch * t.value_batch + at.kv_head * t.value_head;
#pragma unroll 1
    for (uint32_t row = at.lane / kChunks; row < kTokens; row += kRowsAtOnce) {
      const int32_t token = first_ + static_cast<int32_t>(row);
      const int64_t id = token < t.tokens ? token : t.tokens - 1;
      dev::copy_async16(memory_ + Rows<DType::bf16>::key_chunk(row, chunk),
                        keys + id * t.key_token + 16 * chunk, 16);
      dev::copy_async16(memory_ + Rows<DType::bf16>::value_chunk(row, chunk),
                        values + id * t.value_token + 16 * chunk, 16);
    }
    dev::commit_async();
  }

  TAMIS_DEVICE void add(const AttentionCudaParams& p, const AttentionPlace& at) const {
    if (first_ >= p.tail.tokens) return;
    if (p.q_dtype == DType::bf16) {
      add_rows<DType::bf16>(p, at);
    } else {
      add_rows<DType::f16>(p, at);
    }
  }

  // Joins what the warp has of its pages.
  static TAMIS_DEVICE void join(const AttentionCudaParams& p, const AttentionPlace& at,
                                WarpSums<Config::kTiles>& s) {
    if (first_of(p) >= p.tail.tokens) return;
    const uint32_t memory = memory_of(p);
    const auto stats = dev::load_shared<dev::Word4>(memory + Memory::kStatsAt + 16 * at.lane);
    const float most[2] = {dev::float_of(stats.x), dev::float_of(stats.y)};
    const float sum[2] = {dev::float_of(stats.z), dev::float_of(stats.w)};
    float mine[2], other[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float larger = dev::max(s.most[r], most[r]);
      mine[r] = share_of(s.most[r], larger);
      other[r] = share_of(most[r], larger);
      s.most[r] = larger;
      s.sum[r] = s.sum[r] * mine[r] + sum[r] * other[r];
    }
#pragma unroll
    for (int i = 0; i < Config::kTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto channel = static_cast<uint32_t>(Config::channel(i, at.group, half));
        const auto v = dev::load_shared<dev::Word2>(memory + channel * kPitch + 8 * at.t);
        float& first = s.weighted[i][2 * half];
        float& second = s.weighted[i][2 * half + 1];
        first = first * mine[0] + dev::float_of(v.x) * other[0];
        second = second * mine[1] + dev::float_of(v.y) * other[1];
      }
    }
  }

 private:
  template <DType kType>
  using Rows = RowConfig<kType, Config::kDim>;
  static constexpr int32_t kTokens = 16;

  // Made anew where they are needed: pages are read with as many registers as there are. Tiles go
  // to blocks in turns.
  static TAMIS_DEVICE uint32_t warp() { return dev::in_register(dev::thread_index()) / 32; }
  static TAMIS_DEVICE uint32_t memory_of(const AttentionCudaParams& p) {
    return static_cast<uint32_t>(p.tail.shared_at) + warp() * Memory::kBytes;
  }
  static TAMIS_DEVICE int32_t first_of(const AttentionCudaParams& p) {
    return kTokens *
           (static_cast<int32_t>(warp()) * p.splits + static_cast<int32_t>(dev::block_index_x()));
  }

  template <DType kType>
  TAMIS_DEVICE void add_rows(const AttentionCudaParams& p, const AttentionPlace& at) const {
    using R = Rows<kType>;
    const AttentionTail& t = p.tail;
    const typename R::Query query(p, at);
    WarpSums<R::kTiles> s;
    dev::wait_async<0>();
    dev::sync_warp();
    float c[1][4] = {};
    R::score(query, memory_, at, c[0]);
    const AttentionMask mask{.begin = t.begin, .end = t.end, .bias = nullptr, .tokens = t.tokens};
    const bool masked = t.begin != nullptr || t.end != nullptr || first_ + kTokens > t.tokens;
    const auto id = [&](int, int half) {
      const int32_t token = first_ + static_cast<int32_t>(at.group) + 8 * half;
      return token < t.tokens ? token : -1;
    };
    soften(p, mask, at, query.factor, masked, id, c, s);
    R::weigh(memory_, at, c[0], s);
    dev::sync_warp();  // nobody reads the tile any more
#pragma unroll
    for (int i = 0; i < R::kTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto channel = static_cast<uint32_t>(R::channel(i, at.group, half));
        dev::store_shared<dev::Word2>(
            memory_ + channel * kPitch + 8 * at.t,
            {dev::bits_of(s.weighted[i][2 * half]), dev::bits_of(s.weighted[i][2 * half + 1])});
      }
    }
    dev::store_shared<dev::Word4>(memory_ + Memory::kStatsAt + 16 * at.lane,
                                  {dev::bits_of(s.most[0]), dev::bits_of(s.most[1]),
                                   dev::bits_of(s.sum[0]), dev::bits_of(s.sum[1])});
    dev::sync_warp();
  }

  uint32_t memory_;
  int32_t first_;  // token of the warp's tile
};

}  // namespace tamis

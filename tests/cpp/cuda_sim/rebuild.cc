// Every row of kv_rebuild/kernels_cuda.def on the simulator against the double reference: ranks
// that fill no step, channels that do not turn, lists that name tokens there are not, guard pages
// round every array; then bugs put in on purpose.
#include "ops/kv_rebuild/rebuild.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "cuda_sim/data.h"
#include "format/matrix.h"
#include "guarded.h"

namespace tamis::test {
namespace {

struct Problem {
  int64_t batch = 1, kv_heads = 2, tokens = 90, listed = 70, rank = 40, pairs = 16;
};

std::string label(const Problem& p) {
  return "b " + std::to_string(p.batch) + ", g " + std::to_string(p.kv_heads) + ", s " +
         std::to_string(p.tokens) + ", listed " + std::to_string(p.listed) + ", rank " +
         std::to_string(p.rank) + ", pairs " + std::to_string(p.pairs);
}

// What is wrong with the answer; empty if nothing.
template <class Config>
std::string attempt(const Problem& p, uint64_t seed, const sim::Faults& faults = {}) {
  constexpr bool kF16 = Config::kType == DType::f16;
  constexpr int64_t kDim = Config::kDim;
  std::mt19937_64 random(seed);
  const auto filled = [&](int64_t count) {
    return normal_numbers(count, Config::kType, 1, &random);
  };
  const int64_t heads = p.batch * p.kv_heads, step = p.rank + 8, value_step = kDim + 16;
  const auto coordinates = filled(p.batch * p.tokens * step);
  const auto basis = filled(heads * p.rank * kDim);
  const auto values = filled(heads * p.tokens * value_step);
  Guarded<Chunk> turns(static_cast<size_t>(
      std::max<int64_t>(1, (kTurnFine + ceil_div(p.tokens, kTurnFine)) * p.pairs / 2)));
  for (int64_t row = 0; row < kTurnFine + ceil_div(p.tokens, kTurnFine); ++row) {
    const auto place = static_cast<double>(row < kTurnFine ? row : (row - kTurnFine) * kTurnFine);
    for (int64_t i = 0; i < p.pairs; ++i) {
      auto* at = reinterpret_cast<float*>(turns.data()) + 2 * row * p.pairs + i;
      const double angle = place / std::pow(100.0, static_cast<double>(i) / 16.0);
      at[0] = static_cast<float>(std::cos(angle));
      at[p.pairs] = static_cast<float>(std::sin(angle));
    }
  }
  std::vector<int32_t> index;
  for (int64_t i = 0; i < heads * p.listed; ++i) {
    index.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(p.tokens)));
  }
  index[0] = -3;
  index.back() = 1 << 30;
  const auto size = static_cast<size_t>(heads * p.listed * kDim);
  Guarded<Chunk> out_keys(size / 8), out_values(size / 8);
  const KvRebuildArgs args{
      .batch = p.batch,
      .kv_heads = p.kv_heads,
      .head_dim = kDim,
      .segment = {.storage = kF16 ? KvStorage::lowrank_f16 : KvStorage::lowrank_bf16,
                  .tokens = p.tokens,
                  .keys = coordinates->data(),
                  .values = values->data(),
                  .key_batch_stride = p.tokens * step,
                  .key_token_stride = step,
                  .value_batch_stride = p.kv_heads * p.tokens * value_step,
                  .value_head_stride = p.tokens * value_step,
                  .value_token_stride = value_step,
                  .low_rank = {.rank = p.rank,
                               .basis = basis->data(),
                               .pairs = p.pairs,
                               .turns = reinterpret_cast<float*>(turns.data())},
                  .index = index.data(),
                  .index_stride = p.listed},
      .keys = out_keys.data(),
      .values = out_values.data()};
  if (const Status status = check_rebuild_cuda(args); !status.ok()) return status.text;
  const RebuildParams params = rebuild_params(args);
  const std::string wrong =
      sim::launch({.grid = {static_cast<uint32_t>(ceil_div(p.listed, kRebuildTokens)),
                            static_cast<uint32_t>(heads)},
                   .block = {kRebuildThreads},
                   .shared_bytes = static_cast<size_t>(Config::kSharedBytes),
                   .seed = seed,
                   .faults = faults},
                  [&] { rebuild<Config>(params); });
  if (!wrong.empty()) return wrong;
  std::vector<double> keys(size), copies(size);
  if (const Status status = kv_rebuild_reference(args, keys.data(), copies.data()); !status.ok()) {
    return status.text;
  }
  const double unit = kF16 ? 0x1p-11 : 0x1p-8;
  const double sums = 0x1p-20 * std::sqrt(static_cast<double>(p.rank)) * 4;
  for (size_t i = 0; i < size; ++i) {
    const auto read = [&](const Guarded<Chunk>& x) {
      const uint16_t bits = reinterpret_cast<const uint16_t*>(x.data())[i];
      return double{kF16 ? f32_from_f16(bits) : f32_from_bf16(bits)};
    };
    if (!(std::fabs(read(out_keys) - keys[i]) <= unit * std::fabs(keys[i]) + sums)) {
      return "key " + std::to_string(i) + " is " + std::to_string(read(out_keys)) + ", wanted " +
             std::to_string(keys[i]);
    }
    if (read(out_values) != copies[i]) return "value " + std::to_string(i);
  }
  return {};
}

template <class Config>
void expect_all() {
  uint64_t seed = std::random_device{}() % 100000;
  for (const Problem& p : {
           Problem{},
           Problem{.kv_heads = 1, .tokens = 1, .listed = 1, .rank = 8, .pairs = 0},
           Problem{.batch = 2, .kv_heads = 3, .listed = 64, .rank = 64, .pairs = Config::kDim / 2},
           Problem{.kv_heads = 1, .tokens = 700, .listed = 130, .rank = 176, .pairs = 4},
       }) {
    EXPECT_EQ(attempt<Config>(p, ++seed), "") << label(p) << ", seed " << seed;
  }
}

#define TAMIS_KV_REBUILD_CUDA(dtype, d)           \
  TEST(KvRebuild, dtype##_d##d) {                 \
    expect_all<RebuildConfig<DType::dtype, d>>(); \
  }
#include "ops/kv_rebuild/kernels_cuda.def"
#undef TAMIS_KV_REBUILD_CUDA

TEST(KvRebuild, NoticesMissingBarriersAndWaits) {
  using Config = RebuildConfig<DType::bf16, 64>;
  const Problem p{.kv_heads = 1, .rank = 256};
  ASSERT_EQ(attempt<Config>(p, 1), "");
  const auto noticed = [&](const sim::Faults& faults) {
    int count = 0;
    for (uint64_t seed = 1; seed <= 6; ++seed) count += !attempt<Config>(p, seed, faults).empty();
    return count;
  };
  for (int i = 0; i < 4; ++i) {
    EXPECT_GT(noticed({.wait = i}), 0) << "wait " << i;
    EXPECT_GT(noticed({.copy = 100 * i}), 0) << "copy " << 100 * i;
  }
  // After copies, between the steps; before products lie over them; before they are read.
  for (const int i : {0, 1, 4, 5}) EXPECT_GT(noticed({.barrier = i}), 0) << "barrier " << i;
}

TEST(KvRebuild, RefusesWhatHasNoKernel) {
  alignas(16) float x[64] = {};
  const int32_t index[1] = {};
  KvRebuildArgs args{.batch = 1,
                     .kv_heads = 1,
                     .head_dim = 64,
                     .segment = {.storage = KvStorage::lowrank_bf16,
                                 .tokens = 1,
                                 .keys = x,
                                 .values = x,
                                 .key_token_stride = 8,
                                 .value_token_stride = 64,
                                 .low_rank = {.rank = 8, .basis = x, .pairs = 4, .turns = x},
                                 .index = index,
                                 .index_stride = 1},
                     .keys = x,
                     .values = x};
  EXPECT_TRUE(check_rebuild_cuda(args).ok());
  const auto code = [&](auto change) {
    KvRebuildArgs a = args;
    change(a);
    return check_rebuild_cuda(a).code;
  };
  EXPECT_EQ(code([](KvRebuildArgs& a) { a.head_dim = 80; }), Code::no_kernel);
  EXPECT_EQ(code([](KvRebuildArgs& a) { a.segment.storage = KvStorage::lowrank_f32; }),
            Code::no_kernel);
  EXPECT_EQ(code([](KvRebuildArgs& a) { a.segment.low_rank.rank = 12; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvRebuildArgs& a) { a.segment.low_rank.pairs = 6; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvRebuildArgs& a) { a.segment.key_token_stride = 9; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvRebuildArgs& a) { a.segment.index = nullptr; }), Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test

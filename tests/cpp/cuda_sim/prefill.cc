// Every row of prefill_attention/kernels_cuda.def on the simulator against the double reference:
// causality, padding, spans, blocks, listed rows and columns, grouped heads, strides, guard pages
// round every array; then bugs put in on purpose.
#include "ops/prefill_attention/prefill.cuh"

#include <gtest/gtest.h>

#include <string>

#include "cuda_sim/prefill_problem.h"

namespace tamis::test {
namespace {

template <class Config>
std::string attempt(const PrefillProblem& p, uint64_t seed, const sim::Faults& faults = {}) {
  return attempt(p, seed, Config::kType, Config::kDim, [&](const PrefillArgs& args) {
    const int32_t tiles = prefill_tiles(args, Config::kQueries);
    const PrefillParams params = prefill_params(args, Config::kQueries);
    return sim::launch(
        {.grid = {static_cast<uint32_t>(tiles), static_cast<uint32_t>(p.batch * p.heads)},
         .block = {kPrefillThreads},
         .shared_bytes = static_cast<size_t>(Config::kSharedBytes),
         .seed = seed,
         .faults = faults},
        [&] { prefill<Config>(params, tiles); });
  });
}

template <class Config>
void expect_all(uint64_t seed) {
  constexpr int64_t kQueries = Config::kQueries;
  for (const PrefillProblem& p : {
           PrefillProblem{},
           PrefillProblem{.heads = 1, .queries = 1, .tokens = 1},
           PrefillProblem{.heads = 1, .queries = 3, .tokens = 70, .causal = false, .softcap = 3},
           PrefillProblem{.batch = 2, .queries = kQueries + 9, .tokens = kQueries + 9, .begin = 40},
           PrefillProblem{
               .queries = 70, .tokens = 200, .spans = true, .softcap = 2, .amplitude = 3},
           PrefillProblem{.batch = 2,
                          .heads = 4,
                          .kv_heads = 2,
                          .queries = 90,
                          .tokens = 90,
                          .rows = true,
                          .columns = true},
           PrefillProblem{
               .queries = 150, .tokens = 150, .begin = 40, .spans = true, .columns = true},
           PrefillProblem{.queries = 130, .tokens = 130, .causal = false, .rows = true},
           PrefillProblem{.heads = 2,
                          .kv_heads = 2,
                          .queries = 150,
                          .tokens = 230,
                          .block = 32,
                          .pattern_heads = 2},
           PrefillProblem{.queries = 200, .tokens = 330, .spans = true, .block = 100},
           PrefillProblem{.queries = 290, .tokens = 290, .block = kQueries},
           // Padding on the left that leaves tiles, and whole batches, nothing.
           PrefillProblem{.batch = 4, .queries = 200, .tokens = 200, .begin = 240},
       }) {
    EXPECT_EQ(attempt<Config>(p, ++seed), "") << label(p);
  }
}

#define TAMIS_PREFILL_CUDA(dtype, d, row_tiles)                           \
  TEST(Prefill, dtype##_d##d##_t##row_tiles) {                            \
    expect_all<PrefillConfig<DType::dtype, d, row_tiles>>(d + row_tiles); \
  }
#define TAMIS_PREFILL_GROUP(dtype, d, groups)  // prefill_wgmma.cc
#define TAMIS_PREFILL_SHORT(dtype, d)          // prefill_short.cc
#include "ops/prefill_attention/kernels_cuda.def"
#undef TAMIS_PREFILL_SHORT
#undef TAMIS_PREFILL_GROUP
#undef TAMIS_PREFILL_CUDA

TEST(Prefill, NoticesMissingBarriersAndWaits) {
  using Config = PrefillConfig<DType::bf16, 64, 1>;
  const PrefillProblem p{.heads = 1, .queries = 64, .tokens = 300};
  ASSERT_EQ(attempt<Config>(p, 1), "");
  const auto noticed = [&](const sim::Faults& faults) {
    int count = 0;
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      count += !attempt<Config>(p, seed, faults).empty();
    }
    return count;
  };
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(noticed({.wait = i}), 6) << "wait " << i;
    EXPECT_GT(noticed({.barrier = i}), 0) << "barrier " << i;
    EXPECT_EQ(noticed({.copy = 100 * i}), 6) << "copy " << 100 * i;
  }
}

TEST(Prefill, RefusesWhatHasNoKernel) {
  PrefillArgs args{
      .q_dtype = DType::bf16, .kv_dtype = DType::bf16, .heads = 2, .kv_heads = 1, .head_dim = 64};
  EXPECT_TRUE(check_prefill_cuda(args).ok());
  const auto code = [&](auto change) {
    PrefillArgs a = args;
    change(a);
    return check_prefill_cuda(a).code;
  };
  EXPECT_EQ(code([](PrefillArgs& a) { a.head_dim = 80; }), Code::no_kernel);
  EXPECT_EQ(code([](PrefillArgs& a) { a.q_dtype = DType::f32; }), Code::no_kernel);
  EXPECT_EQ(code([](PrefillArgs& a) { a.q.token_stride = 4; }), Code::no_kernel);
  EXPECT_EQ(code([](PrefillArgs& a) { a.scale = 0; }), Code::no_kernel);
  EXPECT_EQ(code([](PrefillArgs& a) { a.kv_heads = 3; }), Code::invalid_argument);
  EXPECT_EQ(code([](PrefillArgs& a) { a.batch = a.queries = 1; }), Code::invalid_argument);
  const int32_t offsets[2] = {};
  args.tokens = 8;
  args.blocks = {8, offsets, offsets, 1};
  EXPECT_TRUE(check_prefill_cuda(args).ok());
  EXPECT_EQ(code([&](PrefillArgs& a) { a.rows.data = offsets; }), Code::no_kernel);
}

}  // namespace
}  // namespace tamis::test

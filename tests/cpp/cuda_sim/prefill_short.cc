// Short prompts of warpgroups on the simulator against the double reference, blocks of one and two
// tiles; then bugs put in on purpose.
#include "ops/prefill_attention/prefill_short.cuh"

#include <gtest/gtest.h>

#include <string>

#include "cuda_sim/prefill_problem.h"

namespace tamis::test {
namespace {

template <class Config>
std::string attempt(const PrefillProblem& p, uint64_t seed, const sim::Faults& faults = {}) {
  const auto run = [&](const PrefillArgs& args) -> std::string {
    PrefillShortParams params = prefill_short_params(args);
    params.key_boxes = dev::tensor_map(prefill_boxes(args, args.keys, args.kv_heads, args.tokens));
    params.value_boxes =
        dev::tensor_map(prefill_boxes(args, args.values, args.kv_heads, args.tokens));
    params.query_boxes = dev::tensor_map(prefill_boxes(args, args.q, args.heads, args.queries));
    const int32_t bytes = prefill_short_shared(Config::kDim, Config::kTiles, params.held);
    return sim::launch({.grid = {static_cast<uint32_t>(args.batch * args.heads),
                                 static_cast<uint32_t>(ceil_div(params.tiles, Config::kTiles))},
                        .block = {Config::kThreads},
                        .shared_bytes = static_cast<size_t>(bytes),
                        .seed = seed,
                        .faults = faults},
                       [&] { prefill_short<Config>(params); });
  };
  return attempt(p, seed, Config::kType, Config::kDim, run);
}

template <class Config>
void expect_all(uint64_t seed) {
  for (const PrefillProblem& p : {
           PrefillProblem{},
           PrefillProblem{.heads = 1, .queries = 1, .tokens = 1},
           PrefillProblem{.heads = 1, .queries = 3, .tokens = 70, .causal = false},
           PrefillProblem{.heads = 4, .kv_heads = 2, .queries = 256, .tokens = 256},
           PrefillProblem{.batch = 2, .queries = 137, .tokens = 137, .begin = 40},
           PrefillProblem{.queries = 70, .tokens = 200, .begin = 40, .amplitude = 3},
           PrefillProblem{.batch = 3, .heads = 3, .kv_heads = 3, .queries = 192, .tokens = 193},
           PrefillProblem{.queries = 130, .tokens = 130, .causal = false},
           PrefillProblem{.heads = 1, .queries = 512, .tokens = 512},
           PrefillProblem{.heads = 1, .queries = 150, .tokens = 430},
           // Padding on the left that leaves tiles, and whole batches, nothing.
           PrefillProblem{.batch = 8, .heads = 1, .queries = 200, .tokens = 200, .begin = 240},
       }) {
    EXPECT_EQ(attempt<Config>(p, ++seed), "") << label(p);
  }
}

#define TAMIS_PREFILL_CUDA(dtype, d, row_tiles)  // prefill.cc
#define TAMIS_PREFILL_GROUP(dtype, d, groups)    // prefill_wgmma.cc
#define TAMIS_PREFILL_SHORT(dtype, d)                         \
  TEST(PrefillShort, dtype##_d##d) {                          \
    expect_all<PrefillShortConfig<DType::dtype, d, 1>>(d);    \
    if (d == 64) {                                            \
      expect_all<PrefillShortConfig<DType::dtype, 64, 2>>(d); \
    }                                                         \
  }
#include "ops/prefill_attention/kernels_cuda.def"
#undef TAMIS_PREFILL_SHORT
#undef TAMIS_PREFILL_GROUP
#undef TAMIS_PREFILL_CUDA

// waits, barriers: of a thread of the half that has the first tile.
template <class Config>
void expect_notice(int64_t tokens, int waits, int barriers) {
  const PrefillProblem p{.heads = 1, .queries = tokens, .tokens = tokens};
  ASSERT_EQ(attempt<Config>(p, 1), "");
  const auto expect = [&](const char* what, int i, const sim::Faults& faults) {
    int noticed = 0;
    for (uint64_t seed = 1; seed <= 2; ++seed) noticed += !attempt<Config>(p, seed, faults).empty();
    EXPECT_GT(noticed, 0) << what << " " << i << ", d " << Config::kDim << ", tiles "
                          << Config::kTiles;
  };
  for (int i = 0; i < waits; ++i) expect("wait", i, {.wait = i});
  for (int i = 0; i < 4; ++i) expect("wait for products", i, {.product = i});
  for (int i = 0; i < 4; ++i) expect("copy", 400 * i, {.copy = 400 * i});
  for (int i = 0; i < barriers; ++i) expect("barrier", i, {.barrier = i});
}

TEST(PrefillShort, NoticesWhatIsMissing) {
  expect_notice<PrefillShortConfig<DType::bf16, 64, 1>>(250, 5, 2);
  expect_notice<PrefillShortConfig<DType::bf16, 64, 2>>(250, 5, 2);
  expect_notice<PrefillShortConfig<DType::bf16, 128, 1>>(500, 9, 4);  // pieces in others' places
}

TEST(PrefillShort, TakesWhatIsShort) {
  const PrefillArgs args{.q_dtype = DType::bf16, .kv_dtype = DType::bf16, .batch = 1, .heads = 32};
  const CudaDevice device{.capability = 90, .sms = 132};
  const auto takes = [&](int64_t d, int64_t tokens, int64_t heads, auto change) {
    PrefillArgs a = args;
    a.head_dim = d;
    a.queries = a.tokens = tokens;
    a.heads = a.kv_heads = heads;
    change(a);
    const PrefillCudaRow* row = choose_prefill_cuda(a, device);
    const bool is = std::string(row->name).ends_with("_q64_sm90");
    return is ? prefill_short_tiles_of_block(a, device) : 0;
  };
  const auto whole = [](PrefillArgs&) {};
  EXPECT_EQ(takes(128, 256, 56, whole), 1);  // 224 blocks
  EXPECT_EQ(takes(128, 256, 57, whole), 0);
  EXPECT_EQ(takes(128, 512, 28, whole), 1);
  EXPECT_EQ(takes(128, 512, 29, whole), 0);
  EXPECT_EQ(takes(128, 513, 1, whole), 0);
  EXPECT_EQ(takes(64, 256, 198, whole), 1);
  EXPECT_EQ(takes(64, 256, 199, whole), 0);
  EXPECT_EQ(takes(64, 512, 16, whole), 1);
  EXPECT_EQ(takes(64, 512, 17, whole), 2);
  EXPECT_EQ(takes(64, 512, 33, whole), 2);  // 132 blocks
  EXPECT_EQ(takes(64, 512, 34, whole), 0);
  EXPECT_EQ(takes(64, 513, 1, whole), 0);
  EXPECT_EQ(takes(64, 100, 1, [](PrefillArgs& a) { a.softcap = 1; }), 0);
  const int32_t one = 0;
  EXPECT_EQ(takes(64, 100, 1, [&](PrefillArgs& a) { a.begin = &one; }), 1);
  EXPECT_EQ(takes(64, 100, 1, [&](PrefillArgs& a) { a.sink = a.window = &one; }), 0);
  EXPECT_EQ(takes(64, 100, 1, [&](PrefillArgs& a) { a.rows = {&one, 1, nullptr}; }), 0);
  EXPECT_EQ(takes(64, 100, 1, [&](PrefillArgs& a) { a.columns = {&one, 1, nullptr}; }), 0);
  EXPECT_EQ(takes(64, 100, 1, [](PrefillArgs& a) { a.blocks.size = 128; }), 0);
}

}  // namespace
}  // namespace tamis::test

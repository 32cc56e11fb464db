// The prompts of warpgroups on the simulator against the double reference, every limit, blocks that
// take several works, heads alone and in pairs; then bugs put in on purpose.
#include "ops/prefill_attention/prefill_wgmma.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda_sim/prefill_problem.h"
#include "ops/prefill_attention/prefill_pack.cuh"

namespace tamis::test {
namespace {

// A device of few multiprocessors, whose blocks take several works.
constexpr CudaDevice kSmall{
    .capability = 90, .sms = 3, .shared_per_sm = 233472, .shared_per_block = 232448};

template <class Config>
std::string attempt(const PrefillProblem& p, uint64_t seed, const sim::Faults& faults = {},
                    bool in_turns = false) {
  const auto run = [&](PrefillArgs args) -> std::string {
    const PrefillCudaRow* row = choose_prefill_cuda(args, kSmall);
    if (row == nullptr || row->capability != 90) return "not for warpgroups";
    std::vector<Eight> workspace(static_cast<size_t>(prefill_workspace_cuda(args, kSmall)) /
                                 sizeof(Eight));
    for (Eight& each : workspace) std::fill_n(each.x, 8, uint16_t{0xffff});  // no numbers
    args.workspace = p.packs && !workspace.empty() ? workspace.data() : nullptr;
    uint32_t ticket = 0;
    args.tickets = in_turns ? nullptr : &ticket;
    PrefillGroupParams params = prefill_group_params(args, kSmall, Config::kGroups);
    PrefillArray keys = args.keys, values = args.values;
    int64_t tokens = args.tokens;
    if (params.packed) {
      const PrefillPackParams pack = prefill_pack_params(args);
      const auto grid_x = static_cast<uint32_t>(ceil_div(args.columns.stride, kPrefillPackRows));
      const std::string wrong =
          sim::launch({.grid = {grid_x, static_cast<uint32_t>(args.batch * args.kv_heads)},
                       .block = {kPrefillPackThreads},
                       .shared_bytes = 0,
                       .seed = seed},
                      [&] { prefill_pack(pack); });
      if (!wrong.empty()) return wrong;
      keys = prefill_packed(args, pack.keys);
      values = prefill_packed(args, pack.values);
      tokens = args.columns.stride;
    }
    params.key_boxes = dev::tensor_map(prefill_boxes(args, keys, args.kv_heads, tokens));
    params.value_boxes = dev::tensor_map(prefill_boxes(args, values, args.kv_heads, tokens));
    params.query_boxes = dev::tensor_map(prefill_boxes(args, args.q, args.heads, args.queries));
    const std::string wrong =
        sim::launch({.grid = {static_cast<uint32_t>(params.blocks)},
                     .block = {Config::kThreads},
                     .shared_bytes = static_cast<size_t>(Config::kSharedBytes),
                     .seed = seed,
                     .faults = faults},
                    [&] { prefill_group<Config>(params); });
    if (!wrong.empty() || ticket == 0) return wrong;
    return "ticket: got " + std::to_string(ticket) + ", wanted 0";
  };
  return attempt(p, seed, Config::kType, Config::kDim, run);
}

template <class Config>
void expect_all(uint64_t seed) {
  for (const PrefillProblem& p : {
           PrefillProblem{},
           PrefillProblem{.heads = 1, .queries = 1, .tokens = 1},
           PrefillProblem{.heads = 1, .queries = 3, .tokens = 70, .causal = false},
           PrefillProblem{.heads = 1, .queries = 300, .tokens = 300},
           PrefillProblem{.batch = 2, .queries = 137, .tokens = 137, .begin = 40},
           PrefillProblem{.queries = 70, .tokens = 600, .spans = true, .amplitude = 3},
           PrefillProblem{.batch = 2,
                          .heads = 4,
                          .kv_heads = 2,
                          .queries = 90,
                          .tokens = 900,
                          .rows = true,
                          .columns = true},
           PrefillProblem{.heads = 3,
                          .kv_heads = 3,
                          .queries = 150,
                          .tokens = 350,
                          .begin = 40,
                          .spans = true,
                          .columns = true},
           PrefillProblem{.queries = 130, .tokens = 130, .causal = false, .rows = true},
           PrefillProblem{.batch = 2,
                          .heads = 8,
                          .kv_heads = 2,
                          .queries = 300,
                          .tokens = 560,
                          .rows = true,
                          .columns = true,
                          .packs = true},
           PrefillProblem{.queries = 600, .tokens = 600, .columns = true, .packs = true},
           PrefillProblem{.heads = 4,
                          .kv_heads = 2,
                          .queries = 150,
                          .tokens = 430,
                          .block = 32,
                          .pattern_heads = 2},
           PrefillProblem{.queries = 200, .tokens = 330, .spans = true, .block = 100},
           PrefillProblem{.heads = 1, .queries = 290, .tokens = 290, .block = 128},
           PrefillProblem{.queries = 290, .tokens = 290, .block = 64},
           // Padding on the left that leaves tiles, and whole batches, nothing.
           PrefillProblem{.batch = 4, .queries = 200, .tokens = 200, .begin = 240},
           PrefillProblem{.batch = 8, .queries = 200, .tokens = 200, .begin = 1 << 20},
       }) {
    const bool boxes = p.block == 0 && (!p.columns || p.packs);
    if (Config::kBoxes && !boxes) continue;
    EXPECT_EQ(attempt<Config>(p, ++seed), "") << label(p);
  }
}

#define TAMIS_PREFILL_CUDA(dtype, d, row_tiles)  // prefill.cc
#define TAMIS_PREFILL_GROUP(dtype, d, groups)                   \
  TEST(PrefillGroup, dtype##_d##d##_groups##groups) {           \
    expect_all<PrefillGroupConfig<DType::dtype, d, groups>>(d); \
  }
#define TAMIS_PREFILL_SHORT(dtype, d)  // prefill_short.cc
#include "ops/prefill_attention/kernels_cuda.def"
#undef TAMIS_PREFILL_SHORT
#undef TAMIS_PREFILL_GROUP
#undef TAMIS_PREFILL_CUDA

// Boxes of neighbouring tokens, and copies of listed ones: 6 tiles over 3 stages.
template <class Config>
void expect_notice() {
  for (const bool listed : {false, true}) {
    if (Config::kBoxes && listed) continue;
    const int64_t tokens = listed ? 1400 : 700;
    const PrefillProblem p{.heads = 1, .queries = 140, .tokens = tokens, .columns = listed};
    ASSERT_EQ(attempt<Config>(p, 1), "");
    const auto noticed = [&](const sim::Faults& faults) {
      int count = 0;
      for (uint64_t seed = 1; seed <= 2; ++seed) {
        count += !attempt<Config>(p, seed, faults).empty();
      }
      return count;
    };
    const auto expect = [&](const char* what, int i, const sim::Faults& faults) {
      EXPECT_GT(noticed(faults), 0) << what << " " << i << ", listed " << listed;
    };
    for (int i = 0; i < 12; ++i) expect("wait", i, {.wait = i});
    for (int i = 0; i < 6; ++i) expect("wait for products", i, {.product = i});
    for (int i = 0; i < 6; ++i) expect("arrival", i, {.arrival = i});
    for (int i = 0; i < 4; ++i) expect("copy", 400 * i, {.copy = 400 * i});
    for (int i = 0; i < 4; ++i) expect("barrier", i, {.barrier = i});
  }
}

TEST(PrefillGroup, NoticesWhatIsMissing) {
  expect_notice<PrefillGroupConfig<DType::bf16, 64, 2>>();
  expect_notice<PrefillGroupConfig<DType::bf16, 64, 3>>();
}

// Works by their numbers, without a ticket.
TEST(PrefillGroup, TakesTurns) {
  using Config = PrefillGroupConfig<DType::bf16, 64, 2>;
  const PrefillProblem p{.heads = 4, .queries = 300, .tokens = 300};
  EXPECT_EQ(attempt<Config>(p, 1, {}, true), "");
}

TEST(PrefillGroup, Divides) {
  for (const int64_t d : {1, 2, 3, 5, 7, 32, 100, 132, 1023, 1024, 65535, (1 << 28) - 1, 1 << 28}) {
    const Divisor by = divisor_of(d);
    for (const int64_t n :
         {int64_t{0}, d - 1, d, d + 1, 7 * d - 1, 7 * d, int64_t{0x7fffffff} / d * d - 1,
          int64_t{0x7fffffff} / d * d, int64_t{0x7fffffff}}) {
      if (n < 0 || n > 0x7fffffff) continue;
      EXPECT_EQ(quotient(static_cast<int32_t>(n), by), n / d) << n << " / " << d;
    }
  }
}

TEST(PrefillGroup, TakesWhatItCan) {
  PrefillArgs args{.q_dtype = DType::bf16,
                   .kv_dtype = DType::bf16,
                   .batch = 1,
                   .heads = 8,
                   .kv_heads = 2,
                   .queries = 600,
                   .tokens = 600,
                   .head_dim = 128};
  const auto name = [&](auto change, int32_t capability = 90) {
    PrefillArgs a = args;
    change(a);
    const PrefillCudaRow* row = choose_prefill_cuda(a, {.capability = capability, .sms = 132});
    return std::string(row == nullptr ? "none" : row->name);
  };
  const std::string group = "prefill_attention_bf16_d128_q128_sm90";
  EXPECT_EQ(name([](PrefillArgs&) {}), group);
  EXPECT_EQ(name([](PrefillArgs&) {}, 80), "prefill_attention_bf16_d128_q128_sm80up");
  EXPECT_EQ(name([](PrefillArgs&) {}, 100), "prefill_attention_bf16_d128_q128_sm80up");
  EXPECT_EQ(name([](PrefillArgs& a) { a.softcap = 2; }), "prefill_attention_bf16_d128_q128_sm80up");
  EXPECT_EQ(name([](PrefillArgs& a) { a.head_dim = 80; }), "none");
  // Three warpgroups for many tiles of 192 queries of 64 channels.
  const auto wide = [&](int64_t queries, auto change) {
    return name([&](PrefillArgs& a) {
      a.head_dim = 64;
      a.queries = a.tokens = queries;
      change(a);
    });
  };
  const std::string three = "prefill_attention_bf16_d64_q192_sm90";
  const std::string two = "prefill_attention_bf16_d64_q128_sm90";
  EXPECT_EQ(wide(33 * 192, [](PrefillArgs&) {}), three);
  EXPECT_EQ(wide(32 * 192, [](PrefillArgs&) {}), two);
  EXPECT_EQ(wide(20 * 192, [](PrefillArgs& a) { a.batch = 2; }), three);
  EXPECT_EQ(wide(19 * 192, [](PrefillArgs& a) { a.batch = 2; }), two);
  EXPECT_EQ(wide(66 * 192, [](PrefillArgs& a) { a.blocks.size = 128; }), two);
  const int32_t column = 0;
  EXPECT_EQ(wide(66 * 192, [&](PrefillArgs& a) { a.columns = {&column, 256, nullptr}; }), three);
  EXPECT_EQ(wide(66 * 192, [&](PrefillArgs& a) { a.columns = {&column, 255, nullptr}; }), two);
  EXPECT_EQ(name([](PrefillArgs& a) { a.blocks.size = 64; }), group);
  const auto packs = [&](bool listed, int64_t width, int32_t capability) {
    PrefillArgs a = args;
    const int32_t columns = 0;
    if (listed) a.columns = {&columns, width, nullptr};
    return prefill_workspace_cuda(a, {.capability = capability});
  };
  EXPECT_EQ(packs(true, 256, 90), 2 * 2 * 2 * 256 * 128);
  EXPECT_EQ(packs(true, 255, 90), 0);
  EXPECT_EQ(packs(true, 256, 80), 0);
  EXPECT_EQ(packs(false, 0, 90), 0);
  const auto apart = [](int64_t size) {
    return [size](PrefillArgs& a) {
      a.blocks.size = size;
      a.pattern_heads = 8;
    };
  };
  EXPECT_EQ(name(apart(64)), "prefill_attention_bf16_d128_q64_sm80up");
  EXPECT_EQ(name(apart(128)), group);
  // Heads in pairs; as many at a time as keys and values of 32 MB have.
  args.tokens = args.queries = 32768;
  args.heads = 32;
  args.kv_heads = 8;
  const CudaDevice device{.capability = 90, .sms = 132};
  PrefillGroupParams g = prefill_group_params(args, device, 2);
  EXPECT_EQ(g.heads_of_block, 2);
  EXPECT_EQ(g.tiles, 512);
  EXPECT_EQ(g.together, 4);
  EXPECT_EQ(g.works, 512 * 16);
  EXPECT_EQ(g.blocks, 132);
  args.pattern_heads = 32;
  g = prefill_group_params(args, device, 2);
  EXPECT_EQ(g.heads_of_block, 1);
  EXPECT_EQ(g.tiles, 256);
  EXPECT_EQ(g.together, 8);
  args.rows = {&column, 0, nullptr};
  EXPECT_EQ(prefill_group_params(args, device, 2).works, 0);
  args.rows = {};
  args.tokens = args.queries = 20;
  args.batch = 3;
  g = prefill_group_params(args, device, 2);
  EXPECT_EQ(g.together, 96);
  EXPECT_EQ(g.blocks, 96);
}

}  // namespace
}  // namespace tamis::test

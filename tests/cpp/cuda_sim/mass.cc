// Every row of kv_select/kernels_cuda.def on the simulator against the double reference: causality,
// listed queries, padding, grouped heads, few queries over many tokens, strides, guard pages round
// every array; then bugs put in on purpose.
#include "ops/kv_select/mass.cuh"

#include <gtest/gtest.h>

#include <algorithm>
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
  int64_t batch = 1, kv_heads = 2, heads = 2, queries = 70, tokens = 70, dim = 64;
  bool positions = false, begin = false;
  float amplitude = 1;
  int32_t sms = 1;
  DType q_dtype = DType::f32, key_dtype = DType::f32;  // of the row for any dtype
};

std::string label(const Problem& p) {
  return "b " + std::to_string(p.batch) + ", h " + std::to_string(p.heads) + ", n " +
         std::to_string(p.queries) + ", s " + std::to_string(p.tokens) + ", d " +
         std::to_string(p.dim) + ", positions " + std::to_string(p.positions) + ", begin " +
         std::to_string(p.begin) + ", sms " + std::to_string(p.sms);
}

template <class Config>
std::string pass(const MassParams& p, bool columns, uint64_t seed, const sim::Faults& faults) {
  const int32_t all = columns ? p.tokens : p.rows;
  const int64_t blocks = ceil_div(all, Config::kKept) * (columns ? 1 : p.splits);
  return sim::launch({.grid = {static_cast<uint32_t>(blocks), static_cast<uint32_t>(p.heads)},
                      .block = {kTileThreads},
                      .shared_bytes = static_cast<size_t>(mass_shared(Config::kKept, p.row_bytes)),
                      .seed = seed,
                      .faults = faults},
                     [&] { columns ? mass_columns<Config>(p) : mass_rows<Config>(p); });
}

// What is wrong with the answer; empty if nothing.
template <class Config>
std::string attempt(const Problem& p, uint64_t seed, const sim::Faults& faults = {}) {
  const bool any = Config::kType == DType::f32;
  const DType q_dtype = any ? p.q_dtype : Config::kType;
  const DType key_dtype = any ? p.key_dtype : Config::kType;
  std::mt19937_64 random(seed);
  const int64_t all = p.batch * p.kv_heads, step = p.dim + 8;
  const auto q = normal_numbers(all * p.heads * p.queries * p.dim, q_dtype, p.amplitude, &random);
  const auto k = normal_numbers(all * p.tokens * step, key_dtype, p.amplitude, &random);
  std::vector<int32_t> positions, begin;
  for (int64_t i = 0; i < p.queries; ++i) {
    positions.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(p.tokens)));
  }
  std::sort(positions.begin(), positions.end());
  for (int64_t h = 0; h < all; ++h) begin.push_back(static_cast<int32_t>(random() % 50));
  Guarded<float> out(static_cast<size_t>(all * p.tokens));
  for (float& x : out.span()) x = 2.0f;
  const KvMassArgs args{.q_dtype = q_dtype,
                        .batch = p.batch,
                        .kv_heads = p.kv_heads,
                        .heads = p.heads,
                        .queries = p.queries,
                        .head_dim = p.dim,
                        .q = q->data(),
                        .scale = 0.125f,
                        .keys = {.dtype = key_dtype,
                                 .units = p.tokens,
                                 .data = k->data(),
                                 .batch_stride = p.kv_heads * p.tokens * step,
                                 .head_stride = p.tokens * step,
                                 .unit_stride = step},
                        .positions = p.positions ? positions.data() : nullptr,
                        .begin = p.begin ? begin.data() : nullptr,
                        .out = out.data()};
  if (const Status status = check_mass_cuda(args); !status.ok()) return status.text;
  const CudaDevice device{.sms = p.sms};
  std::vector<float> workspace(static_cast<size_t>(mass_workspace(args, device) / 4),
                               std::nanf(""));
  const MassParams params = mass_params(args, workspace.data(), device);
  std::string wrong = pass<Config>(params, false, seed, faults);
  if (wrong.empty() && params.splits > 1) {
    const int64_t rows = int64_t{params.heads} * params.rows;
    wrong = sim::launch({.grid = {static_cast<uint32_t>(ceil_div(rows, kMassMergeThreads))},
                         .block = {kMassMergeThreads},
                         .shared_bytes = 0,
                         .seed = seed},
                        [&] { mass_merge(params); });
  }
  if (wrong.empty()) wrong = pass<Config>(params, true, seed, faults);
  if (!wrong.empty()) return wrong;
  std::vector<double> wanted(out.size());
  if (const Status status = kv_mass_reference(args, wanted.data()); !status.ok()) {
    return status.text;
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    // A weight errs as its score does: by 2^-15 of |q| |k| where operands are split.
    const double score = p.amplitude * p.amplitude * static_cast<double>(p.dim) * 0.125;
    const double unit = (any ? 0x1p-15 : 0x1p-20) * (1 + score);
    if (!(std::fabs(out[i] - 2.0 - wanted[i]) <= unit * (wanted[i] + 1e-3) + 1e-6)) {
      return "token " + std::to_string(i) + ": got " + std::to_string(out[i] - 2) + ", wanted " +
             std::to_string(wanted[i]);
    }
  }
  return {};
}

template <class Config>
void expect_all(uint64_t seed) {
  for (const Problem& p : {
           Problem{},
           Problem{.kv_heads = 1, .heads = 1, .queries = 1, .tokens = 1, .dim = 16},
           Problem{.batch = 2, .heads = 3, .queries = 30, .tokens = 300, .begin = true},
           Problem{.kv_heads = 1, .heads = 4, .queries = 1, .tokens = 700, .dim = 128, .sms = 3},
           Problem{
               .kv_heads = 1, .heads = 2, .queries = 20, .tokens = 900, .begin = true, .sms = 5},
           Problem{.kv_heads = 1, .queries = 150, .tokens = 150, .dim = 80, .amplitude = 2},
           // The first tile of tokens ends one behind what its first query sees.
           Problem{.kv_heads = 1, .heads = 1, .queries = 100, .tokens = 162},
           Problem{.queries = 40, .tokens = 200, .positions = true, .begin = true},
           Problem{.kv_heads = 1,
                   .heads = 1,
                   .queries = 130,
                   .tokens = 400,
                   .dim = 96,
                   .positions = true,
                   .sms = 2},
           Problem{.kv_heads = 1,
                   .queries = 33,
                   .tokens = 129,
                   .q_dtype = DType::bf16,
                   .key_dtype = DType::f16},
       }) {
    EXPECT_EQ(attempt<Config>(p, ++seed), "") << label(p);
  }
}

#define TAMIS_KV_MASS_CUDA(dtype, row_tiles)                    \
  TEST(KvMass, dtype##_r##row_tiles) {                          \
    expect_all<MassConfig<DType::dtype, row_tiles>>(row_tiles); \
  }
#include "ops/kv_select/kernels_cuda.def"
#undef TAMIS_KV_MASS_CUDA

TEST(KvMass, TakesWideRowsInSixteenBits) {
  const Problem p{.kv_heads = 1, .queries = 40, .tokens = 90, .dim = 256};
  EXPECT_EQ((attempt<MassConfig<DType::f16, 1>>(p, 1)), "");
}

TEST(KvMass, NoticesMissingBarriersAndWaits) {
  using Config = MassConfig<DType::bf16, 1>;
  const Problem p{.kv_heads = 1, .heads = 1, .queries = 200, .tokens = 200};
  ASSERT_EQ(attempt<Config>(p, 1), "");
  for (int i = 0; i < 3; ++i) {
    EXPECT_NE(attempt<Config>(p, 1, {.wait = i}), "") << "wait " << i;
    EXPECT_NE(attempt<Config>(p, 1, {.copy = 100 * i}), "") << "copy " << 100 * i;
    int noticed = 0;
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      noticed += !attempt<Config>(p, seed, {.barrier = i}).empty();
    }
    EXPECT_GT(noticed, 0) << "barrier " << i;
  }
}

TEST(KvMass, RefusesWhatHasNoKernel) {
  alignas(16) const float x[4] = {};
  float out[4] = {};
  KvMassArgs args{.batch = 1,
                  .kv_heads = 1,
                  .heads = 1,
                  .queries = 1,
                  .head_dim = 64,
                  .q = x,
                  .keys = {.units = 1, .data = x, .unit_stride = 64},
                  .out = out};
  EXPECT_TRUE(check_mass_cuda(args).ok());
  const auto code = [&](auto change) {
    KvMassArgs a = args;
    change(a);
    return check_mass_cuda(a).code;
  };
  EXPECT_EQ(code([](KvMassArgs& a) { a.scale = 0; }), Code::no_kernel);
  EXPECT_EQ(code([](KvMassArgs& a) { a.head_dim = 144; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvMassArgs& a) { a.queries = 2; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvMassArgs& a) { a.keys.unit_stride = 66; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvMassArgs& a) { a.keys.kind = KvSummary::bounds; }), Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test

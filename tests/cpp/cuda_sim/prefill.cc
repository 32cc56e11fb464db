// Every row of prefill_attention/kernels_cuda.def on the simulator against the double reference:
// causality, padding, spans, blocks, listed rows and columns, grouped heads, strides, guard pages
// round every array; then bugs put in on purpose.
#include "ops/prefill_attention/prefill.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "guarded.h"

namespace tamis::test {
namespace {

uint16_t narrowed(float x, DType dtype) {
  return dtype == DType::bf16 ? bf16_from_f32(x) : f16_from_f32(x);
}
float widened(uint16_t x, DType dtype) {
  return dtype == DType::bf16 ? f32_from_bf16(x) : f32_from_f16(x);
}

struct alignas(16) Eight {
  uint16_t x[8];
};

struct Problem {
  int64_t batch = 1, heads = 2, kv_heads = 1, queries = 100, tokens = 100;
  bool causal = true, begin = false, spans = false, rows = false, columns = false;
  int64_t block = 0, pattern_heads = 1;
  float softcap = 0, amplitude = 1;
};

std::string label(const Problem& p) {
  return "b " + std::to_string(p.batch) + ", h " + std::to_string(p.heads) + ", n " +
         std::to_string(p.queries) + ", s " + std::to_string(p.tokens) + ", causal " +
         std::to_string(p.causal) + ", begin " + std::to_string(p.begin) + ", spans " +
         std::to_string(p.spans) + ", rows " + std::to_string(p.rows) + ", columns " +
         std::to_string(p.columns) + ", block " + std::to_string(p.block);
}

std::vector<int32_t> some_of(int64_t all, int64_t width, std::mt19937_64* random) {
  std::vector<int32_t> ids(static_cast<size_t>(all));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::shuffle(ids.begin(), ids.end(), *random);
  ids.resize(static_cast<size_t>(width));
  std::sort(ids.begin(), ids.end());
  return ids;
}

// What is wrong with the answer; empty if nothing.
template <class Config>
std::string attempt(const Problem& p, uint64_t seed, const sim::Faults& faults = {}) {
  constexpr DType kType = Config::kType;
  constexpr int64_t kDim = Config::kDim;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, p.amplitude);
  const auto filled = [&](int64_t count) {
    auto made = std::make_unique<Guarded<Eight>>(static_cast<size_t>(count / 8));
    auto* x = reinterpret_cast<uint16_t*>(made->data());
    for (int64_t i = 0; i < count; ++i) x[i] = narrowed(normal(random), kType);
    return made;
  };
  const int64_t step = kDim + 8;  // between tokens
  const auto q = filled(p.batch * p.heads * p.queries * step);
  const auto k = filled(p.batch * p.kv_heads * p.tokens * step);
  const auto v = filled(p.batch * p.kv_heads * p.tokens * step);
  const int64_t all = p.batch * p.heads * p.queries;
  Guarded<uint32_t> out(static_cast<size_t>(all * kDim / 2));
  Guarded<float> lse(static_cast<size_t>(all));
  std::fill(out.span().begin(), out.span().end(), 0);
  std::fill(lse.span().begin(), lse.span().end(), -std::numeric_limits<float>::infinity());
  std::vector<int32_t> begin, sink, window, rows, row_count, columns, column_count, offsets, ids;
  for (int64_t b = 0; b < p.batch; ++b) begin.push_back(static_cast<int32_t>(random() % 40));
  for (int64_t h = 0; h < p.pattern_heads; ++h) {
    sink.push_back(static_cast<int32_t>(random() % 20));
    window.push_back(static_cast<int32_t>(1 + random() % 60));
  }
  const int64_t row_width = p.queries / 2 + 1, column_width = p.tokens / 2 + 1;
  for (int64_t b = 0; b < p.batch; ++b) {
    const auto r = some_of(p.queries, row_width, &random);
    const auto c = some_of(p.tokens, column_width, &random);
    rows.insert(rows.end(), r.begin(), r.end());
    columns.insert(columns.end(), c.begin(), c.end());
    row_count.push_back(static_cast<int32_t>(row_width - b % 2));
    column_count.push_back(static_cast<int32_t>(column_width - b % 2 * 3));
  }
  int64_t width = 0;
  if (p.block > 0) {
    const int64_t blocks = ceil_div(p.tokens, p.block);
    width = blocks * blocks;
    ids.assign(static_cast<size_t>(p.pattern_heads * width), 0);
    for (int64_t h = 0; h < p.pattern_heads; ++h) {
      int32_t count = 0;
      offsets.push_back(0);
      for (int64_t row = 0; row < blocks; ++row) {
        for (int64_t c = 0; c < blocks; ++c) {
          if (random() % 3 == 0)
            ids[static_cast<size_t>(h * width + count++)] = static_cast<int32_t>(c);
        }
        offsets.push_back(count);
      }
    }
  }
  const auto view = [&](const std::unique_ptr<Guarded<Eight>>& x, int64_t heads, int64_t tokens) {
    return PrefillArray{x->data(), heads * tokens * step, tokens * step, step};
  };
  PrefillArgs args{.q_dtype = kType,
                   .kv_dtype = kType,
                   .batch = p.batch,
                   .heads = p.heads,
                   .kv_heads = p.kv_heads,
                   .queries = p.queries,
                   .tokens = p.tokens,
                   .head_dim = kDim,
                   .q = view(q, p.heads, p.queries),
                   .keys = view(k, p.kv_heads, p.tokens),
                   .values = view(v, p.kv_heads, p.tokens),
                   .out = out.data(),
                   .out_batch_stride = p.heads * p.queries * kDim,
                   .out_head_stride = p.queries * kDim,
                   .out_token_stride = kDim,
                   .lse = lse.data(),
                   .scale = 0.125f,
                   .softcap = p.softcap,
                   .causal = p.causal,
                   .first = p.tokens - p.queries,
                   .begin = p.begin ? begin.data() : nullptr,
                   .pattern_heads = p.pattern_heads,
                   .sink = p.spans ? sink.data() : nullptr,
                   .window = p.spans ? window.data() : nullptr};
  if (p.block > 0) args.blocks = {p.block, offsets.data(), ids.data(), width};
  if (p.rows) args.rows = {rows.data(), row_width, row_count.data()};
  if (p.columns) args.columns = {columns.data(), column_width, column_count.data()};
  if (const Status status = check_prefill_cuda(args); !status.ok()) return status.text;
  const int32_t tiles = prefill_tiles(args, Config::kQueries);
  const PrefillParams params = prefill_params(args, Config::kQueries);
  const std::string wrong =
      sim::launch({.grid = {static_cast<uint32_t>(tiles), static_cast<uint32_t>(p.batch * p.heads)},
                   .block = {kPrefillThreads},
                   .shared_bytes = static_cast<size_t>(Config::kSharedBytes),
                   .seed = seed,
                   .faults = faults},
                  [&] { prefill<Config>(params, tiles); });
  if (!wrong.empty()) return wrong;
  std::vector<double> wanted(static_cast<size_t>(all * kDim)), wanted_lse(static_cast<size_t>(all));
  const Status status = prefill_attention_reference(args, wanted.data(), wanted_lse.data());
  if (!status.ok()) return status.text;
  // Weights round to 16 bits, their sum does not; values are at most some amplitudes.
  const double unit = kType == DType::bf16 ? 0x1p-8 : 0x1p-11;
  const auto* got = reinterpret_cast<const uint16_t*>(out.data());
  for (int64_t i = 0; i < all; ++i) {
    const double l = lse[static_cast<size_t>(i)], w = wanted_lse[static_cast<size_t>(i)];
    if (l != w && !(std::fabs(l - w) <= 1e-4 * (1 + std::fabs(w)))) {
      return "lse " + std::to_string(i) + ": got " + std::to_string(l) + ", wanted " +
             std::to_string(w);
    }
    for (int64_t c = 0; c < kDim; ++c) {
      const double want = wanted[static_cast<size_t>(i * kDim + c)];
      const double value = widened(got[i * kDim + c], kType);
      if (!(std::fabs(value - want) <= unit * (std::fabs(want) + 4 * p.amplitude))) {
        return "row " + std::to_string(i) + ", channel " + std::to_string(c) + ": got " +
               std::to_string(value) + ", wanted " + std::to_string(want);
      }
    }
  }
  return {};
}

template <class Config>
void expect_all(uint64_t seed) {
  constexpr int64_t kQueries = Config::kQueries;
  for (const Problem& p : {
           Problem{},
           Problem{.heads = 1, .queries = 1, .tokens = 1},
           Problem{.heads = 1, .queries = 3, .tokens = 70, .causal = false, .softcap = 3},
           Problem{.batch = 2, .queries = kQueries + 9, .tokens = kQueries + 9, .begin = true},
           Problem{.queries = 70, .tokens = 200, .spans = true, .softcap = 2, .amplitude = 3},
           Problem{.batch = 2,
                   .heads = 4,
                   .kv_heads = 2,
                   .queries = 90,
                   .tokens = 90,
                   .rows = true,
                   .columns = true},
           Problem{.queries = 150, .tokens = 150, .begin = true, .spans = true, .columns = true},
           Problem{.queries = 130, .tokens = 130, .causal = false, .rows = true},
           Problem{.heads = 2,
                   .kv_heads = 2,
                   .queries = 150,
                   .tokens = 230,
                   .block = 32,
                   .pattern_heads = 2},
           Problem{.queries = 200, .tokens = 330, .spans = true, .block = 100},
           Problem{.queries = 290, .tokens = 290, .block = kQueries},
       }) {
    EXPECT_EQ(attempt<Config>(p, ++seed), "") << label(p);
  }
}

#define TAMIS_PREFILL_CUDA(dtype, d, row_tiles)                           \
  TEST(Prefill, dtype##_d##d##_t##row_tiles) {                            \
    expect_all<PrefillConfig<DType::dtype, d, row_tiles>>(d + row_tiles); \
  }
#include "ops/prefill_attention/kernels_cuda.def"
#undef TAMIS_PREFILL_CUDA

TEST(Prefill, NoticesMissingBarriersAndWaits) {
  using Config = PrefillConfig<DType::bf16, 64, 1>;
  const Problem p{.heads = 1, .queries = 64, .tokens = 300};
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

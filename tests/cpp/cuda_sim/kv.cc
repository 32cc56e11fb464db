// kv_quantize and kv_select on the simulator: records, labels and lists bit for bit those of the
// CPU, scores within rounding of the double reference; guard pages round every array.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "format/matrix.h"
#include "guarded.h"
#include "ops/kv_quantize/kv_page.cuh"
#include "ops/kv_select/choose.cuh"
#include "ops/kv_select/estimate.cuh"
#include "ops/kv_select/labels.cuh"
#include "ops/kv_select/select.cuh"
#include "ops/kv_select/share.cuh"
#include "ops/kv_select/unite.cuh"

namespace tamis::test {
namespace {

struct alignas(16) Chunk {
  uint8_t bytes[16];
};

std::unique_ptr<Guarded<Chunk>> memory(int64_t bytes) {
  return std::make_unique<Guarded<Chunk>>(static_cast<size_t>(ceil_div(bytes, 16)));
}

void put(DType dtype, void* to, int64_t i, float x) {
  if (dtype == DType::f32) {
    static_cast<float*>(to)[i] = x;
  } else {
    static_cast<uint16_t*>(to)[i] = dtype == DType::bf16 ? bf16_from_f32(x) : f16_from_f32(x);
  }
}

// Numbers of all sizes, with runs of equal ones and what f16 cannot hold.
float awkward(std::mt19937_64& random, int64_t i) {
  const float x = std::normal_distribution<float>()(random);
  switch (i / 97 % 7) {
    case 0:
      return 0.25f;
    case 1:
      return x * 1e-6f;
    case 2:
      return x * 3e4f;
    case 3:
      return i % 31 == 0 ? 1e30f : -x;
    default:
      return x;
  }
}

TEST(KvQuantize, MakesTheRecordsOfTheCpu) {
  uint64_t seed = 10;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const KvPageLayout layout :
         {KvPageLayout{128, 32, 4, 4, 32}, KvPageLayout{64, 32, 2, 8, 32},
          KvPageLayout{48, 16, 8, 2, 16}, KvPageLayout{64, 64, 2, 4, 64}}) {
      std::mt19937_64 random(++seed);
      const int64_t heads = 2, pages = 2, d = layout.head_dim, stride = d + 3;
      const int64_t count = heads * pages * layout.tokens * stride;
      Guarded<float> keys(static_cast<size_t>(count)), values(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) {
        put(dtype, keys.data(), i, awkward(random, i));
        put(dtype, values.data(), i, awkward(random, i + 50));
      }
      auto got = memory(heads * pages * layout.bytes());
      auto wanted = memory(heads * pages * layout.bytes());
      std::memset(got->data(), 0xff, got->size() * 16);
      std::memset(wanted->data(), 0xff, wanted->size() * 16);
      KvQuantizeArgs args{.layout = layout,
                          .dtype = dtype,
                          .heads = heads,
                          .pages = pages,
                          .keys = keys.data(),
                          .values = values.data(),
                          .key_head_stride = pages * layout.tokens * stride,
                          .key_token_stride = stride,
                          .value_head_stride = pages * layout.tokens * stride,
                          .value_token_stride = stride,
                          .out = wanted->data(),
                          .out_stride_bytes = pages * layout.bytes()};
      ASSERT_TRUE(kv_quantize_reference(args).ok());
      args.out = got->data();
      const KvQuantizeParams params = kv_quantize_params(args);
      ASSERT_EQ(sim::launch({.grid = {static_cast<uint32_t>(pages), static_cast<uint32_t>(heads)},
                             .block = {kQuantizeThreads},
                             .shared_bytes = static_cast<size_t>(quantize_shared(layout)),
                             .seed = seed},
                            [&] { kv_quantize_page(params); }),
                "");
      ASSERT_EQ(std::memcmp(got->data(), wanted->data(), got->size() * 16), 0)
          << "d " << d << ", bits " << layout.key_bits << ", " << name_of(dtype);
    }
  }
}

TEST(KvAppendLabels, MakesTheRecordsOfTheCpu) {
  uint64_t seed = 30;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int32_t r : {8, 32, 72, 128}) {
      std::mt19937_64 random(++seed);
      const KvLabelLayout layout{.channels = r};
      const int64_t heads = 3, d = 128, tokens = 300, records = ceil_div(tokens, kLabelTokens);
      Guarded<float> keys(static_cast<size_t>(heads * tokens * d));
      for (int64_t i = 0; i < heads * tokens * d; ++i)
        put(dtype, keys.data(), i, awkward(random, i));
      std::vector<int32_t> channels;
      for (int64_t i = 0; i < heads * r; ++i) {
        channels.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(d)));
      }
      auto got = memory(heads * records * layout.bytes());
      auto wanted = memory(heads * records * layout.bytes());
      std::memset(got->data(), 0xff, got->size() * 16);
      // In three calls, the middle one of one token.
      for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 21}, {21, 1}, {22, 278}}) {
        KvAppendLabelsArgs args{.labels = layout,
                                .keys_dtype = dtype,
                                .batch = 1,
                                .kv_heads = heads,
                                .head_dim = d,
                                .keys = reinterpret_cast<const uint8_t*>(keys.data()) +
                                        first * d * (dtype == DType::f32 ? 4 : 2),
                                .key_batch_stride = 0,
                                .key_head_stride = tokens * d,
                                .key_token_stride = d,
                                .channels = channels.data(),
                                .first = first,
                                .count = count,
                                .records = wanted->data(),
                                .head_stride_bytes = records * layout.bytes()};
        ASSERT_TRUE(kv_append_labels(args).ok());
        args.records = got->data();
        const LabelParams params = label_params(args);
        ASSERT_EQ(
            sim::launch(
                {.grid = {static_cast<uint32_t>(label_blocks(args)), static_cast<uint32_t>(heads)},
                 .block = {kEstimateThreads},
                 .seed = seed},
                [&] { r <= 32 ? append_labels<4>(params) : append_labels<16>(params); }),
            "");
      }
      ASSERT_EQ(std::memcmp(got->data(), wanted->data(), got->size() * 16), 0) << r;
    }
  }
}

struct Estimate {
  KvSummary kind;
  DType dtype, q_dtype;
  KvReduce reduce;
  int64_t rows, units, d = 64;
  bool begin = false;
  int levels = 0;  // that many different keys; 0: all differ
};

void expect_near(std::span<const float> got, std::span<const double> wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::isinf(wanted[i])) {
      ASSERT_EQ(got[i], static_cast<float>(wanted[i])) << i;
    } else {
      ASSERT_NEAR(got[i], wanted[i], 2e-5 * (1 + std::fabs(wanted[i]))) << i;
    }
  }
}

// In one launch, with scores and without: scores of the reference, lists of those scores.
void expect_chosen(const KvEstimateArgs& e, std::span<const double> scores, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  const int64_t heads = e.batch * e.kv_heads, units = e.units.units, page = seed % 3 == 0 ? 4 : 1;
  const int64_t k = 1 + below(units), sink = below(std::min<int64_t>(k, 3)), recent = k / 5;
  const int64_t width = std::min(units, std::max(k, sink + recent)) * page;
  std::vector<int32_t> budget;
  for (int64_t h = 0; h < heads; ++h) budget.push_back(static_cast<int32_t>(h == 0 ? k : k / h));
  Guarded<float> out(static_cast<size_t>(heads * units));
  Guarded<int32_t> got(static_cast<size_t>(heads * width)),
      wanted(static_cast<size_t>(heads * width));
  std::vector<int32_t> counts(static_cast<size_t>(heads)), expected(static_cast<size_t>(heads));
  KvSelectArgs args{.heads = heads,
                    .units = units,
                    .budget = seed % 2 ? budget.data() : nullptr,
                    .k = k,
                    .sink = sink,
                    .recent = recent,
                    .page = page,
                    .begin = e.begin,
                    .index = got.data(),
                    .index_stride = width,
                    .count = counts.data()};
  const CudaDevice device{.capability = 90, .sms = static_cast<int32_t>(1 + seed % 40)};
  ASSERT_TRUE(kv_choose_fits({.estimate = e}, device));
  for (const bool keeps : {true, false}) {
    KvEstimateArgs estimate = e;
    estimate.out = keeps ? out.data() : nullptr;
    std::fill(got.span().begin(), got.span().end(), -1);
    std::fill(wanted.span().begin(), wanted.span().end(), -1);
    std::fill(counts.begin(), counts.end(), -1);
    ASSERT_TRUE(check_choose_cuda({.estimate = estimate, .select = args}).ok());
    ChooseFit fit;
    for (int32_t i = 0; i < kChooseBlocks; ++i) fit[static_cast<size_t>(i)] = device.sms / (i + 1);
    const bool whole = seed % 5 != 0;
    const ChooseParams p =
        choose_params(estimate, args, device, fit, whole ? kChooseWholeTurns : 0);
    const sim::Launch launch{
        .grid = {static_cast<uint32_t>(p.estimate.blocks), static_cast<uint32_t>(heads)},
        .block = {kChooseThreads},
        .shared_bytes = static_cast<size_t>(choose_shared(p)),
        .seed = seed,
        .cluster = static_cast<uint32_t>(p.estimate.blocks)};
    ASSERT_EQ(sim::launch(launch,
                          [&] {
                            NoReader none;
                            p.whole ? choose_units<true>(p, none) : choose_units<false>(p, none);
                          }),
              "");
    if (keeps) expect_near(out.span(), scores);
    KvSelectArgs reference = args;
    reference.scores = out.data();
    reference.index = wanted.data();
    reference.count = expected.data();
    ASSERT_TRUE(kv_select_reference(reference).ok());
    ASSERT_EQ(counts, expected) << "units " << units << ", seed " << seed;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < counts[static_cast<size_t>(h)]; ++i) {
        ASSERT_EQ(got[h * width + i], wanted[h * width + i])
            << "units " << units << ", k " << k << ", blocks " << p.estimate.blocks << ", seed "
            << seed << ", head " << h << ", " << i;
      }
    }
  }
}

// By row: the scores of every row, and the union of the lists of those scores. q of one row of
// every head at a time: `row_of`.
template <class RowOf>
void expect_united(const KvEstimateArgs& e, const RowOf& row_of, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  const int64_t heads = e.batch * e.kv_heads, units = e.units.units;
  const int64_t page = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 16 : 6;
  const int64_t k = seed % 7 == 0 ? units : below(units) / (1 + below(6));
  const int64_t sink = below(3), recent = below(4);
  const int64_t most = std::max(k, sink + recent);
  std::vector<int32_t> budget;
  for (int64_t h = 0; h < heads; ++h) budget.push_back(static_cast<int32_t>(k / (h + 1)));
  const bool budgets = seed % 4 == 1;
  const int64_t width = (budgets ? units : std::min(units, e.rows * most)) * page;
  Guarded<int32_t> got(static_cast<size_t>(heads * width)), list(static_cast<size_t>(units));
  std::vector<int32_t> counts(static_cast<size_t>(heads), -1);
  std::fill(got.span().begin(), got.span().end(), -1);
  const KvSelectArgs args{.heads = heads,
                          .units = units,
                          .budget = budgets ? budget.data() : nullptr,
                          .k = k,
                          .sink = sink,
                          .recent = recent,
                          .page = page,
                          .begin = e.begin,
                          .index = got.data(),
                          .index_stride = width,
                          .count = counts.data()};
  const KvChooseArgs all{.estimate = e, .select = args, .by_row = true};
  ASSERT_TRUE(check_choose_cuda(all).ok());
  auto workspace = memory(choose_workspace(all));
  std::memset(workspace->data(), 0xff, workspace->size() * 16);
  std::memset(workspace->data(), 0, kWorkspaceTicketBytes);
  const EstimateParams estimate =
      rows_params(e, workspace->data(), {.sms = static_cast<int32_t>(1 + seed % 3)});
  const sim::Launch first{
      .grid = {static_cast<uint32_t>(estimate.blocks), static_cast<uint32_t>(heads)},
      .block = {kEstimateThreads},
      .shared_bytes =
          static_cast<size_t>(estimate_shared(static_cast<int32_t>(e.rows), estimate.width)),
      .seed = seed};
  with_estimate_rows(e.rows, [&](auto tag) {
    ASSERT_EQ(sim::launch(first, [&] { score_units<decltype(tag)::kRows, false>(estimate); }), "");
  });
  const UniteParams unite = unite_params(e, args, workspace->data());
  const bool few = seed % 3 != 0;
  ASSERT_EQ(sim::launch({.grid = {static_cast<uint32_t>(e.rows), static_cast<uint32_t>(heads)},
                         .block = {static_cast<uint32_t>(few ? kUniteFewThreads : kSelectThreads)},
                         .shared_bytes = kSelectShared,
                         .seed = seed},
                        [&] {
                          few        ? select_rows<true, kUniteFewThreads>(unite)
                          : seed % 2 ? select_rows<true, kSelectThreads>(unite)
                                     : select_rows<false, kSelectThreads>(unite);
                        }),
            "");
  std::vector<std::vector<bool>> chosen(static_cast<size_t>(heads),
                                        std::vector<bool>(static_cast<size_t>(units)));
  for (int64_t r = 0; r < e.rows; ++r) {
    const KvEstimateArgs alone = row_of(r);
    std::vector<double> wanted(static_cast<size_t>(heads * units));
    ASSERT_TRUE(kv_estimate_reference(alone, wanted.data()).ok());
    for (int64_t h = 0; h < heads; ++h) {
      const float* scores = unite.select.scores + (h * e.rows + r) * units;
      expect_near({scores, static_cast<size_t>(units)}, std::span(wanted)
                                                            .subspan(static_cast<size_t>(h * units))
                                                            .first(static_cast<size_t>(units)));
      KvSelectArgs one = args;
      int32_t count = 0;
      one.heads = 1;
      one.scores = scores;
      one.k = budgets ? budget[static_cast<size_t>(h)] : k;
      one.budget = nullptr;
      one.page = 1;
      one.begin = e.begin ? e.begin + h : nullptr;
      one.index = list.data();
      one.index_stride = units;
      one.count = &count;
      ASSERT_TRUE(kv_select_reference(one).ok());
      for (int32_t i = 0; i < count; ++i) {
        chosen[static_cast<size_t>(h)][static_cast<size_t>(list[i])] = true;
      }
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    std::vector<int32_t> tokens;
    for (int64_t u = 0; u < units; ++u) {
      for (int64_t t = 0; t < page && chosen[static_cast<size_t>(h)][static_cast<size_t>(u)]; ++t) {
        tokens.push_back(static_cast<int32_t>(u * page + t));
      }
    }
    const int32_t* mine = got.data() + h * width;
    ASSERT_EQ(counts[static_cast<size_t>(h)], static_cast<int32_t>(tokens.size()))
        << "units " << units << ", k " << k << ", seed " << seed << ", head " << h;
    ASSERT_EQ(std::vector<int32_t>(mine, mine + tokens.size()), tokens)
        << "units " << units << ", k " << k << ", seed " << seed << ", head " << h;
    ASSERT_EQ(unite.tickets[h], 0u);
  }
}

void expect_estimate(const Estimate& e, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  const int64_t batch = 2, kv_heads = 2, heads = batch * kv_heads;
  Guarded<float> q(static_cast<size_t>(heads * e.rows * e.d));
  for (int64_t i = 0; i < heads * e.rows * e.d; ++i) put(e.q_dtype, q.data(), i, normal(random));
  const KvLabelLayout labels{.channels = seed % 3 == 0 ? 32 : seed % 3 == 1 ? 16 : 8};
  std::vector<int32_t> channels;
  for (int64_t i = 0; i < kv_heads * labels.channels; ++i) {
    channels.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(e.d)));
  }
  const bool bounds = e.kind == KvSummary::bounds;
  const int64_t width = bounds ? 2 * e.d : e.d;
  std::vector<float> keys(static_cast<size_t>(heads * e.units * width));
  for (float& x : keys) x = normal(random);
  for (size_t i = 0; e.levels > 0 && i < keys.size(); ++i) {  // units are equal to others
    keys[i] = keys[i % static_cast<size_t>(width * e.levels)];
  }
  for (size_t i = 0; bounds && i < keys.size(); ++i) {
    const auto d = static_cast<size_t>(e.d);
    if (i / d % 2 == 0 && keys[i] > keys[i + d]) std::swap(keys[i], keys[i + d]);
  }
  std::unique_ptr<Guarded<Chunk>> data;
  KvUnits units{.kind = e.kind, .dtype = e.dtype, .units = e.units};
  if (e.kind == KvSummary::labels) {
    const int64_t bytes = ceil_div(e.units, kLabelTokens) * labels.bytes();
    data = memory(heads * bytes);
    for (int64_t h = 0; h < heads; ++h) {
      pack_kv_labels(labels, DType::f32, keys.data() + h * e.units * e.d, e.d,
                     channels.data() + h % kv_heads * labels.channels, 0, e.units,
                     reinterpret_cast<uint8_t*>(data->data()) + h * bytes);
    }
    units.labels = labels;
    units.channels = channels.data();
    units.head_stride = bytes;
  } else {
    data = memory(heads * e.units * width * (e.dtype == DType::f32 ? 4 : 2));
    for (size_t i = 0; i < keys.size(); ++i) {
      put(e.dtype, data->data(), static_cast<int64_t>(i), keys[i]);
    }
    units.head_stride = e.units * width;
    units.unit_stride = width;
  }
  units.batch_stride = kv_heads * units.head_stride;
  units.data = data->data();
  std::vector<int32_t> begin;
  for (int64_t h = 0; h < heads; ++h) begin.push_back(static_cast<int32_t>(5 * h));
  Guarded<float> out(static_cast<size_t>(heads * e.units));
  std::fill(out.span().begin(), out.span().end(), std::nanf(""));
  const KvEstimateArgs args{.q_dtype = e.q_dtype,
                            .batch = batch,
                            .kv_heads = kv_heads,
                            .rows = e.rows,
                            .head_dim = e.d,
                            .q = q.data(),
                            .scale = 0.125f,
                            .units = units,
                            .reduce = e.reduce,
                            .begin = e.begin ? begin.data() : nullptr,
                            .out = out.data()};
  ASSERT_TRUE(check_estimate_cuda(args).ok());
  std::vector<float> workspace(static_cast<size_t>(estimate_workspace(args) / 4), std::nanf(""));
  const EstimateParams p =
      estimate_params(args, workspace.data(), {.sms = static_cast<int32_t>(1 + seed % 3)});
  const sim::Launch launch{
      .grid = {static_cast<uint32_t>(p.blocks), static_cast<uint32_t>(heads)},
      .block = {kEstimateThreads},
      .shared_bytes = static_cast<size_t>(estimate_shared(static_cast<int32_t>(e.rows), p.width)),
      .seed = seed};
  with_estimate_rows(e.rows, [&](auto tag) {
    constexpr int kRows = decltype(tag)::kRows;
    if (p.weighted) {
      ASSERT_EQ(sim::launch(launch, [&] { score_units<kRows, true>(p); }), "");
    }
    ASSERT_EQ(sim::launch(launch, [&] { score_units<kRows, false>(p); }), "");
  });
  std::vector<double> wanted(out.size());
  ASSERT_TRUE(kv_estimate_reference(args, wanted.data()).ok());
  expect_near(out.span(), wanted);
  if (e.kind == KvSummary::labels && e.rows <= kChooseRows) {
    expect_chosen(args, wanted, seed);
  }
  Guarded<float> one(static_cast<size_t>(heads * e.d));
  const int64_t row_bytes = e.d * (e.q_dtype == DType::f32 ? 4 : 2);
  const auto row_of = [&](int64_t r) {
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(reinterpret_cast<uint8_t*>(one.data()) + h * row_bytes,
                  reinterpret_cast<const uint8_t*>(q.data()) + (h * e.rows + r) * row_bytes,
                  static_cast<size_t>(row_bytes));
    }
    KvEstimateArgs alone = args;
    alone.q = one.data();
    alone.rows = 1;
    alone.reduce = KvReduce::score;
    return alone;
  };
  expect_united(args, row_of, seed);
}

TEST(KvEstimate, ScoresEverySummary) {
  uint64_t seed = 50;
  for (const KvReduce reduce : {KvReduce::score, KvReduce::log_weight}) {
    for (const KvSummary kind : {KvSummary::labels, KvSummary::bounds, KvSummary::rows}) {
      expect_estimate({kind, DType::bf16, DType::bf16, reduce, 4, 70, 64, true}, ++seed);
      expect_estimate({kind, DType::f32, DType::f16, reduce, 1, 1, 128}, ++seed);
      expect_estimate({kind, DType::f16, DType::f32, reduce, 8, 40, 48}, ++seed);
    }
    for (const KvSummary kind : {KvSummary::bounds, KvSummary::rows}) {  // by products
      expect_estimate({kind, DType::f16, DType::f16, reduce, 8, 333, 96, true}, ++seed);
      expect_estimate({kind, DType::bf16, DType::bf16, reduce, 1, 17, 32}, ++seed);
      expect_estimate({kind, DType::bf16, DType::bf16, reduce, 5, 700, 128, false, 9}, ++seed);
    }
    expect_estimate({KvSummary::labels, DType::bf16, DType::bf16, reduce, 3, 2100}, ++seed);
    for (const int levels : {1, 2, 9}) {
      expect_estimate(
          {KvSummary::labels, DType::bf16, DType::bf16, reduce, 2, 1300, 64, true, levels}, ++seed);
    }
    expect_estimate({KvSummary::labels, DType::bf16, DType::bf16, reduce, 4, 4500}, ++seed);
    expect_estimate(  // more equal ones than a block keeps
        {KvSummary::labels, DType::bf16, DType::bf16, reduce, 2, 4500, 64, false, 2}, ++seed);
  }
}

struct Choice {
  int64_t units, k, sink = 0, recent = 0, page = 1;
  bool begin = false, budget = false;
  int levels = 0;  // that many different scores; 0: all differ
  int64_t heads = 3;
  bool chunks = false;  // as more units than registers hold
  double top_p = 0;
};

void expect_choice(const Choice& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int64_t heads = c.heads;
  Guarded<float> scores(static_cast<size_t>(heads * c.units));
  for (float& s : scores.span()) {
    s = std::normal_distribution<float>()(random);
    if (c.levels > 0) s = static_cast<float>(static_cast<int>(random() % c.levels) - c.levels / 2);
    if (c.levels > 0 && s == 0 && random() % 2) s = -0.0f;
    if (random() % 50 == 0) s = std::nanf("");
    if (random() % 50 == 0) s = -std::numeric_limits<float>::infinity();
  }
  std::vector<int32_t> begin, budget;
  for (int64_t h = 0; h < heads; ++h) {
    begin.push_back(static_cast<int32_t>(h * c.units / 4));
    budget.push_back(static_cast<int32_t>(h == 0 ? 0 : c.k / h));
  }
  if (c.top_p > 0 && seed % 2 == 0) {  // as attention is: over many exponents
    for (float& s : scores.span()) s = std::exp(4 * s);
  }
  const int64_t most = c.top_p > 0 ? c.units : std::max(c.k, c.sink + c.recent);
  const int64_t width = std::min(c.units, most) * c.page;
  Guarded<int32_t> got(static_cast<size_t>(heads * width)),
      wanted(static_cast<size_t>(heads * width));
  std::fill(got.span().begin(), got.span().end(), -1);
  std::fill(wanted.span().begin(), wanted.span().end(), -1);
  int32_t counts[2][3] = {};
  KvSelectArgs args{.heads = heads,
                    .units = c.units,
                    .scores = scores.data(),
                    .budget = c.budget ? budget.data() : nullptr,
                    .k = c.k,
                    .top_p = c.top_p,
                    .sink = c.sink,
                    .recent = c.recent,
                    .page = c.page,
                    .begin = c.begin ? begin.data() : nullptr,
                    .index = wanted.data(),
                    .index_stride = width,
                    .count = counts[0]};
  ASSERT_TRUE((c.top_p > 0 ? kv_select(args) : kv_select_reference(args)).ok());
  args.index = got.data();
  args.count = counts[1];
  ASSERT_TRUE(check_select_cuda(args).ok());
  const SelectParams params{args};
  ASSERT_EQ(sim::launch({.grid = {static_cast<uint32_t>(heads)},
                         .block = {kSelectThreads},
                         .shared_bytes = c.top_p > 0 ? kShareShared : kSelectShared,
                         .seed = seed},
                        [&] {
                          if (c.top_p > 0) {
                            c.chunks ? select_share<false>(share_params(args))
                                     : select_share<true>(share_params(args));
                            return;
                          }
                          c.units <= kSelectAtOnce && !c.chunks ? select_units<true>(params)
                                                                : select_units<false>(params);
                        }),
            "");
  const std::string what = "units " + std::to_string(c.units) + ", k " + std::to_string(c.k) +
                           ", levels " + std::to_string(c.levels) + ", seed " +
                           std::to_string(seed);
  for (int64_t h = 0; h < heads; ++h) {
    ASSERT_EQ(counts[1][h], counts[0][h]) << what;
    for (int64_t i = 0; i < counts[0][h]; ++i) {
      ASSERT_EQ(got[h * width + i], wanted[h * width + i]) << what << ", head " << h << ", " << i;
    }
  }
}

TEST(KvSelect, ChoosesAsTheCpuDoes) {
  uint64_t seed = 70;
  for (const int levels : {0, 1, 2, 9}) {
    expect_choice({.units = 3000, .k = 170, .levels = levels}, ++seed);
    expect_choice({.units = 5000, .k = 4700, .levels = levels}, ++seed);
    expect_choice({.units = 3000, .k = 170, .levels = levels, .chunks = true}, ++seed);
    expect_choice({.units = 1, .k = 1, .levels = levels}, ++seed);
    expect_choice({.units = 40, .k = 0, .levels = levels}, ++seed);
    expect_choice({.units = 40, .k = 90, .levels = levels}, ++seed);
    expect_choice(
        {.units = 700, .k = 130, .sink = 4, .recent = 50, .begin = true, .levels = levels}, ++seed);
    expect_choice({.units = 200, .k = 12, .recent = 30, .levels = levels}, ++seed);
    expect_choice(
        {.units = 300, .k = 60, .page = 16, .begin = true, .budget = true, .levels = levels},
        ++seed);
  }
  expect_choice({.units = kSelectAtOnce + 777, .k = 1500, .heads = 1}, ++seed);
}

TEST(KvSelect, TakesTheShareThatTheCpuDoes) {
  uint64_t seed = 170;
  for (const int levels : {0, 1, 9}) {
    for (const double p : {1e-3, 0.3, 0.975, 1.0}) {
      expect_choice({.units = 3000, .levels = levels, .top_p = p}, ++seed);
      expect_choice({.units = 2500, .levels = levels, .chunks = true, .top_p = p}, ++seed);
      expect_choice({.units = 1, .levels = levels, .top_p = p}, ++seed);
      expect_choice(
          {.units = 700, .sink = 4, .recent = 50, .begin = true, .levels = levels, .top_p = p},
          ++seed);
      expect_choice({.units = 200, .recent = 30, .page = 16, .levels = levels, .top_p = p}, ++seed);
    }
  }
  expect_choice({.units = 33000, .heads = 1, .chunks = true, .top_p = 0.9}, ++seed);
}

}  // namespace
}  // namespace tamis::test

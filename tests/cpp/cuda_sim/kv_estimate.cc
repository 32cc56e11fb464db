// kv_estimate on the simulator: scores within rounding of the double reference, lists of those
// scores; guard pages round every array.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "cuda_sim/data.h"
#include "format/matrix.h"
#include "guarded.h"
#include "ops/kv_select/choose.cuh"
#include "ops/kv_select/estimate.cuh"
#include "ops/kv_select/labels.cuh"
#include "ops/kv_select/select.cuh"
#include "ops/kv_select/unite.cuh"

namespace tamis::test {
namespace {

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

template <int kRows>
void choose_units(const ChooseParams& p) {
  NoReader none;
  p.whole ? tamis::choose_units<true, kRows>(p, none) : tamis::choose_units<false, kRows>(p, none);
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
    const ChooseParams p = choose_params(estimate, args, device, fit, whole);
    const sim::Launch launch{
        .grid = {static_cast<uint32_t>(p.estimate.blocks), static_cast<uint32_t>(heads)},
        .block = {kChooseThreads},
        .shared_bytes = static_cast<size_t>(choose_shared(p)),
        .seed = seed,
        .cluster = static_cast<uint32_t>(p.estimate.blocks)};
    ASSERT_EQ(sim::launch(launch,
                          [&] {
                            e.rows <= kChooseFewRows ? choose_units<kChooseFewRows>(p)
                                                     : choose_units<kChooseRows>(p);
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
  Chunks data;
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
  if (e.kind == KvSummary::labels) expect_chosen(args, wanted, seed);
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
    expect_estimate({KvSummary::labels, DType::bf16, DType::bf16, reduce, 7, 2100}, ++seed);
    expect_estimate({KvSummary::labels, DType::f16, DType::f16, reduce, 8, 5300, 128, true},
                    ++seed);
    for (const int levels : {1, 2, 9}) {
      expect_estimate(
          {KvSummary::labels, DType::bf16, DType::bf16, reduce, 2, 1300, 64, true, levels}, ++seed);
    }
    expect_estimate({KvSummary::labels, DType::bf16, DType::bf16, reduce, 4, 4500}, ++seed);
    expect_estimate(  // more equal ones than a block keeps
        {KvSummary::labels, DType::bf16, DType::bf16, reduce, 2, 4500, 64, false, 2}, ++seed);
  }
}

}  // namespace
}  // namespace tamis::test

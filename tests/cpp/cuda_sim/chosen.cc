// Attention over chosen tokens in the launch that chooses them, on the simulator: the lists of
// kv_choose, and the double reference's attention to them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "cuda_sim/data.h"
#include "format/matrix.h"
#include "guarded.h"
#include "ops/sparse_attention/attend_chosen.cuh"

namespace tamis::test {
namespace {

struct Case {
  int64_t units, k, rows = 4, sink = 0, recent = 0, d = 128;
  DType dtype = DType::bf16;
  int32_t sms = 132;  // fewer: fewer blocks a cluster
  int64_t batch = 2, kv_heads = 2;
  bool begin = false, budget = false;
  int32_t channels = 32;
  int levels = 0;  // that many different keys; 0: all differ
  float softcap = 0, amplitude = 1;
  bool whole = true;                   // scores in f32
  bool new_label = false;              // the last token's is to be written
  std::vector<sim::Faults> bugs = {};  // that must be noticed
};

template <DType kType, int dim, int kRows>
void attend(const ChosenParams& p) {
  if (p.choose.whole) {
    attend_chosen<ChosenConfig<kType, dim, true, kRows>>(p);
  } else {
    attend_chosen<ChosenConfig<kType, dim, false, kRows>>(p);
  }
}
template <DType kType>
void attend(const ChosenParams& p, int64_t d) {
  const bool few = p.attention.rows <= kChooseFewRows;
  if (d == 64) {
    few ? attend<kType, 64, kChooseFewRows>(p) : attend<kType, 64, kChooseRows>(p);
  } else {
    few ? attend<kType, 128, kChooseFewRows>(p) : attend<kType, 128, kChooseRows>(p);
  }
}

std::string run(const sim::Launch& launch, const Case& c, const ChosenParams& p) {
  return sim::launch(launch, [&] {
    c.dtype == DType::bf16 ? attend<DType::bf16>(p, c.d) : attend<DType::f16>(p, c.d);
  });
}

template <int kRows>
void choose(const ChooseParams& p) {
  NoReader none;
  p.whole ? choose_units<true, kRows>(p, none) : choose_units<false, kRows>(p, none);
}

void expect_attended(const Case& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  const int64_t batch = c.batch, kv_heads = c.kv_heads, heads = batch * kv_heads;
  const int64_t d = c.d, stride = d + 8;
  const int64_t length = heads * c.units * stride;
  Guarded<Chunk> keys(static_cast<size_t>(length / 8)), values(static_cast<size_t>(length / 8));
  auto* k = reinterpret_cast<uint16_t*>(keys.data());
  auto* v = reinterpret_cast<uint16_t*>(values.data());
  std::fill_n(k, length, uint16_t{0x7fff});
  std::fill_n(v, length, uint16_t{0x7fff});
  float largest = 0;
  for (int64_t t = 0; t < heads * c.units; ++t) {
    for (int64_t i = 0; i < d; ++i) {
      const float x = c.amplitude * normal(random), y = normal(random);
      k[t * stride + i] =
          c.levels > 0 && t >= c.levels ? k[t % c.levels * stride + i] : narrowed(x, c.dtype);
      v[t * stride + i] = narrowed(y, c.dtype);
      largest = std::max(largest, std::fabs(y));
    }
  }
  Guarded<Chunk> q(static_cast<size_t>(heads * c.rows * d / 8));
  for (int64_t i = 0; i < heads * c.rows * d; ++i) {
    reinterpret_cast<uint16_t*>(q.data())[i] = narrowed(normal(random), c.dtype);
  }
  const KvLabelLayout labels{.channels = c.channels};
  std::vector<int32_t> channels;
  for (int64_t i = 0; i < kv_heads * labels.channels; ++i) {
    channels.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(d)));
  }
  const int64_t bytes = ceil_div(c.units, kLabelTokens) * labels.bytes();
  Guarded<Chunk> records(static_cast<size_t>(heads * bytes / 16));
  for (int64_t h = 0; h < heads; ++h) {
    pack_kv_labels(labels, c.dtype, k + h * c.units * stride, stride,
                   channels.data() + h % kv_heads * labels.channels, 0, c.units,
                   reinterpret_cast<uint8_t*>(records.data()) + h * bytes);
  }
  std::vector<int32_t> begin, budget;
  for (int64_t h = 0; h < heads; ++h) {
    begin.push_back(static_cast<int32_t>(h == 3 ? c.units : 7 * h));
    budget.push_back(static_cast<int32_t>(h == 0 ? c.k : h == 1 ? 0 : c.k / h));
  }
  const int64_t width = std::min(c.units, std::max(c.k, c.sink + c.recent));
  Guarded<int32_t> wanted(static_cast<size_t>(heads * width));
  std::vector<int32_t> expected(static_cast<size_t>(heads), -1);
  Guarded<uint16_t> out(static_cast<size_t>(heads * c.rows * d));
  Guarded<float> lse(static_cast<size_t>(heads * c.rows));
  std::fill(out.span().begin(), out.span().end(), uint16_t{0x7fff});
  std::fill(lse.span().begin(), lse.span().end(), std::nanf(""));
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  KvSegment segment{.storage = c.dtype == DType::bf16 ? KvStorage::bf16 : KvStorage::f16,
                    .tokens = c.units,
                    .keys = k,
                    .values = v,
                    .key_batch_stride = kv_heads * c.units * stride,
                    .key_head_stride = c.units * stride,
                    .key_token_stride = stride,
                    .value_batch_stride = kv_heads * c.units * stride,
                    .value_head_stride = c.units * stride,
                    .value_token_stride = stride};
  KvUnits units{.kind = KvSummary::labels};
  units.data = records.data();
  units.units = c.units;
  units.batch_stride = kv_heads * bytes;
  units.head_stride = bytes;
  units.labels = labels;
  units.channels = channels.data();
  ChosenAttentionArgs args{.choose = {.estimate = {.q_dtype = c.dtype,
                                                   .batch = batch,
                                                   .kv_heads = kv_heads,
                                                   .rows = c.rows,
                                                   .head_dim = d,
                                                   .q = q.data(),
                                                   .scale = scale,
                                                   .units = units,
                                                   .reduce = KvReduce::log_weight,
                                                   .begin = c.begin ? begin.data() : nullptr},
                                      .select = {.heads = heads,
                                                 .units = c.units,
                                                 .budget = c.budget ? budget.data() : nullptr,
                                                 .k = c.k,
                                                 .sink = c.sink,
                                                 .recent = c.recent,
                                                 .begin = c.begin ? begin.data() : nullptr,
                                                 .index_stride = width}},
                           .attention = {.q_dtype = c.dtype,
                                         .batch = batch,
                                         .kv_heads = kv_heads,
                                         .rows = c.rows,
                                         .head_dim = d,
                                         .q = q.data(),
                                         .out = out.data(),
                                         .lse = lse.data(),
                                         .scale = scale,
                                         .softcap = c.softcap,
                                         .segments = {&segment, 1}}};
  args.new_label = c.new_label;
  const std::vector<Chunk> labelled(records.data(), records.data() + records.size());
  // NaN in place of the last token's label and of what follows it.
  const auto forget_label = [&] {
    if (!c.new_label) return;
    const int64_t slot = (c.units - 1) % kLabelTokens;
    for (int64_t h = 0; h < heads; ++h) {
      auto* record =
          reinterpret_cast<uint16_t*>(records.data()) + (h + 1) * bytes / 2 - labels.bytes() / 2;
      for (int64_t w = 0; w < labels.channels / 8; ++w) {
        std::fill_n(record + 2 * (w * kLabelTokens + slot), 2 * (kLabelTokens - slot), 0xffffu);
      }
      for (const int64_t at : {labels.scale(), labels.min()}) {
        std::fill_n(record + at / 2 + slot, kLabelTokens - slot, 0x7fffu);
      }
    }
  };
  const CudaDevice device{.capability = 90, .sms = c.sms};
  ASSERT_TRUE(chosen_attention_fits(args, device));
  ChooseFit fit;
  for (int32_t i = 0; i < kChooseBlocks; ++i) fit[static_cast<size_t>(i)] = c.sms / (i + 1);
  ChooseParams choose =
      choose_params(args.choose.estimate, args.choose.select, device, fit, c.whole);
  ASSERT_EQ(choose.whole, c.whole);
  choose.new_label = c.new_label ? records.data() : nullptr;
  const ChosenParams p =
      chosen_params(choose, attention_params({.attention = args.attention}, {.splits = 1}, 1),
                    static_cast<int32_t>(d));
  sim::Launch launch{
      .grid = {static_cast<uint32_t>(choose.estimate.blocks), static_cast<uint32_t>(heads)},
      .block = {kChooseThreads},
      .shared_bytes = static_cast<size_t>(p.shared_bytes),
      .seed = seed,
      .cluster = static_cast<uint32_t>(choose.estimate.blocks)};
  ASSERT_LE(launch.shared_bytes, 232448u);
  forget_label();
  ASSERT_EQ(run(launch, c, p), "");
  ASSERT_EQ(std::memcmp(labelled.data(), records.data(), labelled.size() * sizeof(Chunk)), 0);
  choose.select.index = wanted.data();
  choose.select.count = expected.data();
  launch.shared_bytes = static_cast<size_t>(choose_shared(choose));
  ASSERT_EQ(sim::launch(launch,
                        [&] {
                          c.rows <= kChooseFewRows ? test::choose<kChooseFewRows>(choose)
                                                   : test::choose<kChooseRows>(choose);
                        }),
            "");
  segment.index = wanted.data();
  segment.index_stride = width;
  segment.count = expected.data();
  std::vector<double> answer(out.size()), sums(lse.size());
  ASSERT_TRUE(sparse_attention_reference(args.attention, answer.data(), sums.data()).ok());
  // As attention.cc has it.
  const double eps = c.dtype == DType::bf16 ? 0x1p-7 : 0x1p-8;
  const double rounding = c.dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_NEAR(widened(out.data()[i], c.dtype), answer[i],
                eps * std::max(1.0f, c.amplitude) * largest + rounding * std::fabs(answer[i]))
        << "seed " << seed << ", " << i;
  }
  for (size_t i = 0; i < lse.size(); ++i) {
    if (std::isinf(sums[i])) {
      ASSERT_EQ(lse.data()[i], static_cast<float>(sums[i])) << "seed " << seed << ", " << i;
    } else {
      ASSERT_NEAR(lse.data()[i], sums[i], 1e-3 * (1 + std::fabs(sums[i])))
          << "seed " << seed << ", " << i;
    }
  }
  std::vector<uint16_t> first(out.data(), out.data() + out.size());
  launch.shared_bytes = static_cast<size_t>(p.shared_bytes);
  launch.seed = seed + 1000;
  forget_label();
  ASSERT_EQ(run(launch, c, p), "");
  ASSERT_EQ(std::memcmp(labelled.data(), records.data(), labelled.size() * sizeof(Chunk)), 0);
  ASSERT_EQ(first, std::vector<uint16_t>(out.data(), out.data() + out.size())) << "seed " << seed;
  for (size_t bug = 0; bug < c.bugs.size(); ++bug) {
    int noticed = 0;
    for (int i = 0; i < 4; ++i) {
      launch.seed = seed + 2000 + static_cast<uint64_t>(i);
      launch.faults = c.bugs[bug];
      const bool fails = !run(launch, c, p).empty();
      noticed +=
          fails || first != std::vector<uint16_t>(out.data(), out.data() + out.size()) ? 1 : 0;
    }
    EXPECT_GT(noticed, 0) << "bug " << bug;
  }
}

TEST(ChosenAttention, AttendsToWhatItChooses) {
  uint64_t seed = 900;
  for (const bool whole : {true, false}) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      expect_attended({.units = 1500, .k = 700, .dtype = dtype, .whole = whole}, ++seed);
      expect_attended({.units = 2100,
                       .k = 300,
                       .rows = 3,
                       .sink = 4,
                       .recent = 70,
                       .dtype = dtype,
                       .sms = 8,
                       .begin = true,
                       .budget = true,
                       .whole = whole},
                      ++seed);
    }
    expect_attended({.units = 17, .k = 5, .rows = 1, .whole = whole}, ++seed);
    // Forced ones alone; all of them.
    expect_attended({.units = 1000, .k = 90, .sink = 100, .recent = 33, .whole = whole}, ++seed);
    expect_attended({.units = 1300, .k = 1300, .begin = true, .whole = whole}, ++seed);
    expect_attended(
        {.units = 5000, .k = 2500, .sms = 4, .softcap = 5, .amplitude = 3, .whole = whole}, ++seed);
  }
}

// The record of the last token is read by the warp that scores it, or by those that settle.
TEST(ChosenAttention, WritesTheLastLabel) {
  uint64_t seed = 1100;
  for (const int64_t units : {1, 16, 17, 33, 1040, 1535, 2049}) {
    expect_attended({.units = units,
                     .k = std::max<int64_t>(1, units / 3),
                     .rows = units % 2 == 0 ? 4 : 8,
                     .recent = units % 3,
                     .d = units % 5 == 0 ? 64 : 128,
                     .dtype = units % 4 == 0 ? DType::f16 : DType::bf16,
                     .sms = 16,
                     .kv_heads = 1,
                     .begin = units == 1040,
                     .channels = units % 5 == 0 ? 16 : 32,
                     .new_label = true},
                    ++seed);
  }
  // Everything is read, nothing scored; scores that are all made anew.
  expect_attended({.units = 700, .k = 700, .kv_heads = 1, .new_label = true}, ++seed);
  expect_attended({.units = 1300, .k = 400, .kv_heads = 1, .levels = 1, .new_label = true}, ++seed);
}

TEST(ChosenAttention, TakesEightRowsAndHeadsOf64) {
  uint64_t seed = 1000;
  for (const bool whole : {true, false}) {
    for (const auto& [rows, d] : {std::pair{3, 64}, {5, 64}, {8, 128}}) {
      expect_attended({.units = 1200,
                       .k = 300,
                       .rows = rows,
                       .sink = 4,
                       .recent = 70,
                       .d = d,
                       .dtype = rows == 5 ? DType::bf16 : DType::f16,
                       .sms = 8,
                       .begin = true,
                       .budget = true,
                       .channels = rows == 3 ? 16 : 32,
                       .whole = whole},
                      ++seed);
    }
    expect_attended({.units = 2300,
                     .k = 700,
                     .rows = 7,
                     .sms = 2,
                     .batch = 1,
                     .softcap = 5,
                     .amplitude = 60,
                     .whole = whole},
                    ++seed);
    expect_attended({.units = 17, .k = 5, .rows = 8, .batch = 1, .whole = whole}, ++seed);
    expect_attended({.units = 600, .k = 600, .rows = 8, .batch = 1, .whole = whole}, ++seed);
    expect_attended({.units = 1300, .k = 400, .rows = 8, .batch = 1, .levels = 9, .whole = whole},
                    ++seed);
  }
  // As many units a block as find room, whole and not.
  expect_attended({.units = 5120, .k = 400, .rows = 8, .sms = 1, .batch = 1, .kv_heads = 1}, 1050);
  expect_attended(
      {.units = 10240, .k = 400, .rows = 8, .sms = 1, .batch = 1, .kv_heads = 1, .whole = false},
      1051);
}

// Exponentials of scores beyond 69 are added up once more, relative to the largest.
TEST(ChosenAttention, AddsUpLargeScores) {
  for (const bool whole : {true, false}) {
    expect_attended({.units = 1400, .k = 200, .amplitude = 60, .whole = whole}, 940);
    expect_attended({.units = 2200, .k = 90, .sms = 4, .amplitude = 90, .whole = whole}, 941);
  }
}

TEST(ChosenAttention, BeginsAnewWhereScoresAreEqual) {
  uint64_t seed = 950;
  for (const bool whole : {true, false}) {
    for (const int levels : {1, 2, 9}) {
      expect_attended(
          {.units = 1300, .k = 400, .recent = 5, .begin = true, .levels = levels, .whole = whole},
          ++seed);
    }
    expect_attended({.units = 4500, .k = 3000, .sms = 4, .levels = 2, .whole = whole}, ++seed);
  }
}

// More than 65535 units of a head may lie in one step, or have the same digit.
TEST(ChosenAttention, TakesAsManyAsAClusterHolds) {
  expect_attended({.units = 66000, .k = 400, .batch = 1, .kv_heads = 1}, 957);
  expect_attended({.units = 70000, .k = 66500, .batch = 1, .kv_heads = 1, .levels = 1}, 958);
}

// Blocks tell how much they take while a slow one still looks for the step of the k-th.
TEST(ChosenAttention, SlowBlocksHearWhatOthersTell) {
  for (uint64_t seed = 980; seed < 982; ++seed) {
    expect_attended({.units = 1100, .k = 400, .rows = 1, .sms = 8, .whole = false}, seed);
  }
}

TEST(ChosenAttention, SeededBugsAreNoticed) {
  expect_attended({.units = 3000,
                   .k = 900,
                   .sms = 8,
                   .bugs = {{.cluster = 0},  // before what rows come to is sent
                            {.cluster = 1},  // before counts of other blocks are added up
                            {.send = 0},     // what a row comes to, a candidate or a part
                            {.send = 1},     // a candidate or a part
                            {.wait = 0},     // for what rows come to, candidates or parts
                            {.wait = 1},     // for candidates, or for parts
                            {.copy = 0}}},   // of a row
                  960);
  expect_attended({.units = 3000,
                   .k = 900,
                   .sms = 8,
                   .whole = false,
                   .bugs = {{.cluster = 0},  // before bounds
                            {.cluster = 1},  // before counts of other blocks are added up
                            {.send = 0},     // what a block tells, a candidate or a part
                            {.wait = 0},     // for what blocks tell, or for what is settled
                            {.wait = 1},     // for candidates, or for parts
                            {.arrival = 0},  // of those that settle
                            {.copy = 0}}},   // of a row
                  970);
}

}  // namespace
}  // namespace tamis::test

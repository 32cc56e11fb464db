// kv_select and kv_choose on every ISA level of this host against the references: choices with
// ties, infinities and NaN, bit for bit; guard pages after each array.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "fewer.h"
#include "guarded.h"
#include "ops/kv_select/kv_select.h"
#include "select_problem.h"

namespace tamis::test {
namespace {

void expect_selection(KvSelectArgs a, const std::string& what) {
  static uint64_t number = 0;
  if (!keeps_case(number++)) return;
  const int64_t most = a.units * a.page;
  const auto size = static_cast<size_t>(a.heads * most);
  std::vector<int32_t> wanted(size), counts(static_cast<size_t>(a.heads));
  Guarded<int32_t> index(size), count(static_cast<size_t>(a.heads));
  a.index_stride = most;
  a.index = wanted.data();
  a.count = counts.data();
  ASSERT_TRUE(kv_select_reference(a).ok());
  a.index = index.data();
  a.count = count.data();
  for (const IsaBits isa : kLevels) {
    if ((isa & host_isa()) != isa) continue;
    const Status status = kv_select_on(isa, a);
    ASSERT_TRUE(status.ok()) << status.text;
    for (size_t h = 0; h < counts.size(); ++h) {
      ASSERT_EQ(count[h], counts[h]) << what << " head " << h << " " << isa_name(isa);
      for (int32_t i = 0; i < counts[h]; ++i) {
        const size_t at = h * static_cast<size_t>(most) + static_cast<size_t>(i);
        ASSERT_EQ(index[at], wanted[at]) << what << " head " << h << " " << isa_name(isa);
      }
    }
  }
}

std::vector<float> sample(const std::string& kind, size_t n) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) {
    x[i] = kind == "plateau"  ? static_cast<float>(random() % 5)
           : kind == "equal"  ? 1.0f
           : kind == "rising" ? static_cast<float>(i)
           : kind == "spikes" ? (i % 97 == 0 ? 5.0f + normal(random) : 0.0f)
                              : normal(random);
    if (kind == "nan" && i % 3 != 0) x[i] = NAN;
    if (kind == "infinite" && i % 5 == 0) x[i] = i % 2 ? INFINITY : -INFINITY;
  }
  return x;
}

TEST(KvSelect, IsExactOnEveryLevel) {
  const std::vector<int32_t> begins{0, 7, 100000};
  for (const char* kind : {"normal", "plateau", "equal", "rising", "spikes", "nan", "infinite"}) {
    for (const int64_t n : {1, 5, 33, 600, 2048, 5003}) {
      const std::vector<float> scores = sample(kind, static_cast<size_t>(3 * n));
      for (const int64_t k : {int64_t{0}, int64_t{1}, n / 16, n / 2, n - 1, n, 2 * n}) {
        for (const int64_t sink : {0, 4}) {
          KvSelectArgs a{.heads = 3, .units = n, .scores = scores.data(), .k = k, .sink = sink};
          const std::string what =
              std::string(kind) + " n " + std::to_string(n) + " k " + std::to_string(k);
          expect_selection(a, what);
          a.begin = begins.data();
          a.recent = 3;
          expect_selection(a, what + " begin");
          a.page = 16;
          expect_selection(a, what + " pages");
          const std::vector<int32_t> budget{static_cast<int32_t>(k), 0,
                                            static_cast<int32_t>(k / 2)};
          a.budget = budget.data();
          expect_selection(a, what + " budgets");
        }
      }
    }
  }
}

// Head and row alone, by the two calls: what a row of kv_choose takes.
std::vector<int32_t> choice_of_row(const Case& c, const Memory& m, const KvChooseArgs& a,
                                   IsaBits isa, int64_t head, int64_t row) {
  KvEstimateArgs e = a.estimate;
  e.batch = e.kv_heads = e.rows = 1;
  e.q = m.q->data() + (head * c.rows + row) * c.head_dim * size_of(c.q_dtype);
  const int64_t size = c.kind == KvSummary::labels ? 1 : size_of(c.dtype);
  e.units.data = static_cast<const uint8_t*>(m.units.data) + head * m.units.head_stride * size;
  if (c.kind == KvSummary::labels) e.units.channels += head % c.kv_heads * c.channels;
  if (e.begin) e.begin += head;
  std::vector<float> scores(static_cast<size_t>(c.units));
  e.out = scores.data();
  EXPECT_TRUE(kv_estimate_on(isa, e).ok());
  std::vector<int32_t> index(static_cast<size_t>(c.units)), count(1);
  KvSelectArgs s = a.select;
  s.heads = s.page = 1;
  s.units = c.units;
  s.scores = scores.data();
  s.budget = s.budget ? s.budget + head : nullptr;
  s.begin = e.begin;
  s.index = index.data();
  s.index_stride = c.units;
  s.count = count.data();
  EXPECT_TRUE(kv_select_on(isa, s).ok());
  index.resize(static_cast<size_t>(count[0]));
  return index;
}

// kv_choose against its two calls, or the union of them for every row alone.
void expect_choice(const Case& c, bool by_row, int64_t k, int64_t page, int threads) {
  const Memory m(c);
  const int64_t heads = c.batch * c.kv_heads;
  const std::vector<int32_t> budget = {3, 0, 70, 9};
  KvChooseArgs a{.estimate = {.q_dtype = c.q_dtype,
                              .batch = c.batch,
                              .kv_heads = c.kv_heads,
                              .rows = c.rows,
                              .head_dim = c.head_dim,
                              .q = m.q->data(),
                              .scale = 0.125f,
                              .units = m.units,
                              .reduce = c.reduce,
                              .begin = c.begin ? m.begins.data() : nullptr},
                 .select = {.budget = k < 0 ? budget.data() : nullptr,
                            .k = std::max<int64_t>(k, 0),
                            .sink = 1,
                            .recent = 2,
                            .page = page},
                 .by_row = by_row};
  for (const IsaBits isa : kLevels) {
    if ((isa & host_isa()) != isa) continue;
    Guarded<int32_t> index(static_cast<size_t>(heads * c.units * page)), count(heads);
    a.select.index = index.data();
    a.select.index_stride = c.units * page;
    a.select.count = count.data();
    set_num_threads(threads);
    const Status status = kv_choose_on(isa, a);
    set_num_threads(0);
    ASSERT_TRUE(status.ok()) << status.text;
    std::vector<float> scores(static_cast<size_t>(heads * c.units));
    std::vector<int32_t> wanted(index.size()), counts(static_cast<size_t>(heads));
    if (!by_row) {
      KvEstimateArgs e = a.estimate;
      e.out = scores.data();
      ASSERT_TRUE(kv_estimate_on(isa, e).ok());
      KvSelectArgs s = a.select;
      s.heads = heads;
      s.units = c.units;
      s.scores = scores.data();
      s.begin = e.begin;
      s.index = wanted.data();
      s.count = counts.data();
      ASSERT_TRUE(kv_select_on(isa, s).ok());
    }
    for (int64_t h = 0; h < heads; ++h) {
      const auto from = static_cast<size_t>(h * c.units * page);
      if (by_row) {
        std::vector<bool> taken(static_cast<size_t>(c.units));
        for (int64_t r = 0; r < c.rows; ++r) {
          for (const int32_t unit : choice_of_row(c, m, a, isa, h, r)) taken[unit] = true;
        }
        for (int64_t u = 0; u < c.units; ++u) {
          for (int64_t t = 0; taken[static_cast<size_t>(u)] && t < page; ++t) {
            wanted[from + static_cast<size_t>(counts[h]++)] = static_cast<int32_t>(u * page + t);
          }
        }
      }
      ASSERT_EQ(count.data()[h], counts[h]) << c.text() << " " << isa_name(isa) << " k " << k;
      for (int32_t i = 0; i < counts[h]; ++i) {
        ASSERT_EQ(index.data()[from + i], wanted[from + i]) << c.text() << " " << isa_name(isa);
      }
    }
  }
}

TEST(KvChoose, IsItsTwoCallsAndTheUnionOfRows) {
  uint64_t number = 0;
  for (Case c : kinds()) {
    for (const bool by_row : {false, true}) {
      for (const int64_t units : {1, 70, 1100}) {
        for (const int64_t k : {-1, 0, 7, 60}) {
          if ((units == 1100 && k < 7) || !keeps_case(number++)) continue;
          c.units = units;
          c.rows = 1 + k % 4;
          c.rows = std::max<int64_t>(c.rows, 2);
          c.begin = k == 7;
          c.reduce = k == 60 ? KvReduce::score : KvReduce::log_weight;
          expect_choice(c, by_row, k, k == 7 ? 16 : 1, units == 1100 ? 3 : 1);
          c.batch = c.kv_heads = 1;  // fewer heads than threads
          if (units == 1100) expect_choice(c, by_row, k, 1, 3);
          c.batch = c.kv_heads = 2;
        }
      }
    }
  }
}

TEST(KvChoose, RefusesAListWithoutRoomForEveryRow) {
  std::vector<float> memory(64);
  std::vector<int32_t> index(64), count(1);
  KvChooseArgs a{
      .estimate =
          {.batch = 1,
           .kv_heads = 1,
           .rows = 2,
           .head_dim = 16,
           .q = memory.data(),
           .units = {.dtype = DType::f32, .units = 4, .data = memory.data(), .unit_stride = 16}},
      .select = {.k = 1, .index = index.data(), .index_stride = 1, .count = count.data()}};
  EXPECT_TRUE(kv_choose(a).ok());
  a.by_row = true;
  EXPECT_STREQ(kv_choose(a).text, "kv_select: index_stride: got 1, wanted room for every row");
  a.estimate.q = nullptr;
  EXPECT_STREQ(kv_choose(a).text, "kv_select: q, out: got null");
}

TEST(KvSelect, TopP) {
  for (const char* kind : {"plateau", "equal", "rising", "spikes"}) {
    for (const int64_t n : {1, 33, 5003}) {
      const std::vector<float> scores = sample(kind, static_cast<size_t>(2 * n));
      for (const double p : {0.1, 0.5, 0.975, 1.0}) {
        KvSelectArgs a{.heads = 2, .units = n, .scores = scores.data(), .top_p = p};
        expect_selection(a, std::string(kind) + " p " + std::to_string(p));
        a.sink = 2;
        a.recent = 5;
        expect_selection(a, std::string(kind) + " forced, p " + std::to_string(p));
      }
    }
  }
}

TEST(KvSelect, RefusesWhatItCannotDo) {
  std::vector<float> memory(64);
  std::vector<int32_t> index(64), count(1);
  KvSelectArgs a{.heads = 1,
                 .units = 8,
                 .scores = memory.data(),
                 .k = 9,
                 .index = index.data(),
                 .index_stride = 4,
                 .count = count.data()};
  EXPECT_STREQ(kv_select(a).text, "kv_select: index_stride: got 4, wanted room for the budget");
  a.k = -1;
  EXPECT_EQ(kv_select(a).code, Code::invalid_argument);
  KvEstimateArgs e{.batch = 1,
                   .kv_heads = 1,
                   .rows = 1,
                   .head_dim = 16,
                   .q = memory.data(),
                   .units = {.kind = KvSummary::labels, .units = 1, .data = memory.data()},
                   .out = memory.data()};
  EXPECT_STREQ(kv_estimate(e).text,
               "kv_label: channels: got 0, wanted a multiple of 8 from 8 to 128");
  std::vector<int32_t> channels(8, 16);
  e.units.labels.channels = 8;
  e.units.channels = channels.data();
  EXPECT_STREQ(kv_estimate(e).text, "kv_select: channels: got 16, wanted below d");
}

TEST(KvSelect, ChoosesTheBestKernel) {
  const auto name = [](KvSummary kind, DType dtype, DType q, IsaBits isa) {
    return std::string(choose_kv_score(kind, dtype, q, isa)->name);
  };
#if defined(__x86_64__)
  EXPECT_EQ(name(KvSummary::rows, DType::bf16, DType::bf16, isa::avx512bf16),
            "kv_select_rows_bf16_bf16_avx512bf16");
  EXPECT_EQ(name(KvSummary::rows, DType::bf16, DType::bf16, isa::avx512fp16),
            "kv_select_rows_bf16_f32_avx512");
  EXPECT_EQ(name(KvSummary::rows, DType::bf16, DType::f32, isa::avx512bf16),
            "kv_select_rows_bf16_f32_avx512");
  EXPECT_EQ(name(KvSummary::labels, DType::f32, DType::bf16, isa::avx512),
            "kv_select_labels_f32_f32_avx2");
#elif defined(__aarch64__)
  EXPECT_EQ(name(KvSummary::rows, DType::bf16, DType::bf16, isa::neon_bf16),
            "kv_select_rows_bf16_bf16_neon_bf16");
  EXPECT_EQ(name(KvSummary::rows, DType::bf16, DType::bf16, isa::neon_fhm),
            "kv_select_rows_bf16_f32_neon");
#endif
  EXPECT_EQ(name(KvSummary::rows, DType::f16, DType::f16, isa::kScalar),
            "kv_select_rows_f16_f32_scalar");
}

}  // namespace
}  // namespace tamis::test

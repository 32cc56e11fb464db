// kv_estimate and kv_mass on every ISA level of this host against the references: every kind of
// summary and dtype, head sizes, rows, lengths around a tile and a chunk, padding; guard pages
// after each array.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/parallel.h"
#include "fewer.h"
#include "guarded.h"
#include "ops/kv_select/kv_select.h"
#include "select_problem.h"

namespace tamis::test {
namespace {

// Scores of size sqrt(d) before the scale of 1/sqrt(d): sums of d products in f32, and a logarithm.
constexpr double kTolerance = 2e-5;

void expect_estimate(const Case& c, int threads = 1) {
  static uint64_t number = 0;
  if (!keeps_case(number++)) return;
  const Memory m(c);
  const auto count = static_cast<size_t>(c.batch * c.kv_heads * c.units);
  Guarded<float> out(count);
  const KvEstimateArgs args{.q_dtype = c.q_dtype,
                            .batch = c.batch,
                            .kv_heads = c.kv_heads,
                            .rows = c.rows,
                            .head_dim = c.head_dim,
                            .q = m.q->data(),
                            .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
                            .units = m.units,
                            .reduce = c.reduce,
                            .begin = c.begin ? m.begins.data() : nullptr,
                            .out = out.data()};
  std::vector<double> wanted(count);
  ASSERT_TRUE(kv_estimate_reference(args, wanted.data()).ok());
  set_num_threads(threads);
  for (const IsaBits isa : kLevels) {
    if ((isa & host_isa()) != isa) continue;
    std::fill_n(out.data(), count, 7.0f);
    const Status status = kv_estimate_on(isa, args);
    ASSERT_TRUE(status.ok()) << status.text;
    for (size_t i = 0; i < count; ++i) {
      if (std::isinf(wanted[i])) {
        ASSERT_EQ(out[i], wanted[i]) << c.text() << " " << isa_name(isa) << " at " << i;
      } else {
        ASSERT_NEAR(out[i], wanted[i], kTolerance) << c.text() << " " << isa_name(isa) << " " << i;
      }
    }
  }
  set_num_threads(0);
}

TEST(KvEstimate, RowsReductionsAndPadding) {
  for (Case c : kinds()) {
    for (const int64_t rows : {1, 2, 3, 4, 9}) {
      for (const bool begin : {false, true}) {
        c.rows = rows;
        c.begin = begin;
        c.reduce = rows % 2 ? KvReduce::log_weight : KvReduce::score;
        expect_estimate(c);
      }
    }
  }
}

TEST(KvEstimate, HeadSizes) {
  for (Case c : kinds()) {
    for (const int d : {16, 48, 64, 80, 96, 128, 256}) {
      c.head_dim = d;
      c.channels = std::min(d / 2 / 8 * 8, 128);
      expect_estimate(c);
    }
  }
}

TEST(KvEstimate, LengthsAroundTilesAndChunks) {
  for (Case c : kinds()) {
    for (const int64_t n : {0, 1, 3, 15, 16, 17, 1023, 1024, 1025, 2100}) {
      c.batch = c.kv_heads = 1;
      c.units = n;
      expect_estimate(c);
      c.rows = 4;
      c.units = 16 * n;
      if (n > 1000) expect_estimate(c, 3);
      c.rows = 3;
    }
  }
}

TEST(KvEstimate, BoundsAreAboveEveryKeyOfThePage) {
  Case c{.kind = KvSummary::bounds, .rows = 1, .reduce = KvReduce::score};
  const Memory m(c);
  const auto* x = reinterpret_cast<const float*>(m.data->data());
  std::vector<float> out(static_cast<size_t>(4 * c.units));
  const KvEstimateArgs args{.batch = 2,
                            .kv_heads = 2,
                            .rows = 1,
                            .head_dim = c.head_dim,
                            .q = m.q->data(),
                            .units = m.units,
                            .reduce = c.reduce,
                            .out = out.data()};
  ASSERT_TRUE(kv_estimate(args).ok());
  const auto* q = reinterpret_cast<const float*>(m.q->data());
  for (int64_t u = 0; u < 4 * c.units; ++u) {
    float middle = 0;
    for (int64_t i = 0; i < c.head_dim; ++i) {
      middle += q[u / c.units * c.head_dim + i] * 0.5f *
                (x[2 * u * c.head_dim + i] + x[(2 * u + 1) * c.head_dim + i]);
    }
    EXPECT_GE(out[static_cast<size_t>(u)], middle - 1e-3f);
  }
}

TEST(KvMass, AgainstTheReference) {
  uint64_t number = 0;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType q : {DType::f32, DType::bf16}) {
      for (const int64_t n : {1, 16, 50, 1100}) {
        for (const int64_t queries : {1, 3, 16, 17, 40}) {
          if (queries > n || !keeps_case(number++)) continue;
          const auto spread = [&](int64_t i) { return static_cast<int32_t>(i * n / queries); };
          std::vector<int32_t> positions;
          for (int64_t i = 0; i < queries; ++i) positions.push_back(spread(i));
          Case c{.dtype = dtype, .q_dtype = q, .rows = 2 * queries, .units = n};
          c.begin = queries % 2 == 1;
          const Memory m(c);
          const auto count = static_cast<size_t>(4 * n);
          Guarded<float> out(count);
          KvMassArgs args{.q_dtype = q,
                          .batch = 2,
                          .kv_heads = 2,
                          .heads = 2,
                          .queries = queries,
                          .head_dim = c.head_dim,
                          .q = m.q->data(),
                          .scale = 0.125f,
                          .keys = m.units,
                          .begin = c.begin ? m.begins.data() : nullptr,
                          .out = out.data()};
          std::vector<double> wanted(count);
          for (const int threads : {1, 5}) {
            args.positions = threads == 1 ? nullptr : positions.data();
            ASSERT_TRUE(kv_mass_reference(args, wanted.data()).ok());
            set_num_threads(threads);
            for (const IsaBits isa : kLevels) {
              if ((isa & host_isa()) != isa) continue;
              std::fill_n(out.data(), count, 0.5f);
              ASSERT_TRUE(kv_mass_on(isa, args).ok());
              for (size_t i = 0; i < count; ++i) {
                ASSERT_NEAR(out[i], wanted[i] + 0.5, 1e-5 + 1e-6 * static_cast<double>(queries))
                    << c.text() << " queries " << queries << " " << isa_name(isa);
              }
            }
          }
          set_num_threads(0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis::test

// Every row of kernels.def against a float64 product of the unpacked weights: around its tile, at
// every kind of column tail, with guard pages after (or before) each array.
//
// TAMIS_EXPECT_SKIPS=N in the environment fails the run unless exactly N kernels cannot run on this
// host, so that CI notices a skip.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "fewer.h"
#include "ops/spmm/spmm.h"
#include "packing.h"
#include "spmm_problem.h"

namespace tamis {

// Second copies of kernels, where the build has them: tests/cpp/CMakeLists.txt.
#define TAMIS_SPMM(...)
#define TAMIS_SPMM_FORM(form, format, w, x, level, ...)                                        \
  [[gnu::weak]] extern const SpmmXForm spmm_##form##_##x##_##level##_simulated;                \
  [[gnu::weak]] void spmm_##format##_##w##_##x##_##level##_##form##_simulated(const SpmmArgs&, \
                                                                              int64_t, int64_t);
#include "ops/spmm/kernels.def"
#undef TAMIS_SPMM
#undef TAMIS_SPMM_FORM

namespace test {
namespace {

// Every row, and those for AMX again with their tiles simulated.
std::vector<SpmmRow> rows() {
  std::vector<SpmmRow> all(spmm_kernels().begin(), spmm_kernels().end());
  const auto add = [&](const char* name, const SpmmXForm* form, SpmmKernel run) {
    if (!run) return;
    SpmmRow row = *std::find_if(spmm_kernels().begin(), spmm_kernels().end(), [&](const auto& r) {
      return std::string(r.name) + "_simulated" == name;
    });
    row.name = name;
    row.x_form = form;
    row.run = run;
    all.push_back(row);
  };
#define TAMIS_SPMM(...)
#define TAMIS_SPMM_FORM(form, format, w, x, level, ...)                \
  add("spmm_" #format "_" #w "_" #x "_" #level "_" #form "_simulated", \
      &spmm_##form##_##x##_##level##_simulated,                        \
      &spmm_##format##_##w##_##x##_##level##_##form##_simulated);
#include "ops/spmm/kernels.def"
#undef TAMIS_SPMM
#undef TAMIS_SPMM_FORM
  return all;
}

bool simulated(const SpmmRow& row) {
  return std::string(row.name).ends_with("_simulated");
}

bool runs_here(const SpmmRow& row) {
  const IsaBits needs = simulated(row) ? isa::avx512vbmi2 : row.isa;
  return (needs & host_isa()) == needs;
}

void run(const Case& c) {
  Problem p(c);
  const int64_t padding = c.seed % 2 ? 3 : 0;
  Rows x(c.row.x_dtype, c.m, c.k, padding, c.front);
  Rows bias(c.row.x_dtype, 1, c.n, 0, c.front);
  Rows y(c.row.x_dtype, c.m, c.n, padding, c.front);
  fill(x, p.random, c.integers, quantizes(c.row));
  fill(bias, p.random, c.integers);
  const bool biased = c.seed % 4 < 2;
  const SpmmArgs args{.w = p.packed.view,
                      .x_dtype = c.row.x_dtype,
                      .m = c.m,
                      .x = x.bytes.data(),
                      .x_stride = x.stride,
                      .bias = biased ? bias.bytes.data() : nullptr,
                      .y = y.bytes.data(),
                      .y_stride = y.stride};
  std::vector<uint8_t> prepared;
  SpmmArgs with_x = args;
  if (c.row.x_form) {  // in two parts, as threads would
    prepared.resize(static_cast<size_t>(c.row.x_form->bytes(args)) + 64, 0xff);
    uint8_t* line = prepared.data() + (64 - reinterpret_cast<uintptr_t>(prepared.data()) % 64);
    for (int part : {1, 0}) c.row.x_form->prepare(args, line, part, 2);
    with_x.prepared = line;
  }
  // In two calls where the rows allow it, as threads would.
  const int64_t step = row_step(c.row, p.packed.view);
  const int64_t middle = c.seed % 2 && c.n > step ? step : 0;
  if (middle) c.row.run(with_x, 0, middle);
  c.row.run(with_x, middle, c.n);
  compare(c, p, x, biased ? &bias : nullptr, y);
}

std::vector<int64_t> columns_for(const SpmmRow& row) {
  if (row.format == Format::groupq) return {16, 32, 64, 272, 576, 1056};
  return {1, 31, 63, 64, 65, 130, 576};
}

std::vector<int64_t> around(int64_t tile) {
  return {1, tile, tile + 1, 2 * tile + 3};
}

std::vector<Case> cases_of(const SpmmRow& row) {
  std::vector<Case> all;
  uint64_t seed = 0;
  for (const int64_t m : around(std::min(row.tile_m, 64))) {
    for (const int64_t n : around(row.tile_n)) {
      for (const int64_t k : columns_for(row)) {
        for (const double sparsity : {0.0, 0.5, 0.9, 1.0}) {
          ++seed;
          if (!keeps_case(seed) || (simulated(row) && seed % 7 != 0)) continue;  // those are slow
          all.push_back({row, m, n, k, sparsity, false, seed % 5 == 0, seed});
          all.push_back({row, m, n, k, sparsity, true, seed % 5 == 1, seed});
        }
      }
    }
  }
  return all;
}

class Kernel : public testing::TestWithParam<SpmmRow> {};

TEST_P(Kernel, MatchesReference) {
  const SpmmRow& row = GetParam();
  if (!runs_here(row)) {
    std::printf("SKIP %s\n", row.name);
    GTEST_SKIP();
  }
  for (const Case& c : cases_of(row)) {
    run(c);
    if (HasFatalFailure()) return;
  }
}

// The largest partial mask word and the largest turn over many tokens.
TEST_P(Kernel, ManyTokens) {
  const SpmmRow& row = GetParam();
  if (!runs_here(row)) GTEST_SKIP();
  const bool groups = row.format == Format::groupq;
  run({row, 37, 50, groups ? 192 : 191, 0.5, true, false, 3});
  run({row, 8, 50, groups ? 192 : 191, 0.5, true, false, 3});  // a panel of eight, all of it
  if (groups) run({row, 7, 9, 576, 0.9, true, false, 3});      // so few that offsets go one by one
  if (groups) run({row, 5, 3, 16 * 1100, 0.3, true, false, 5});  // more than are decoded at once
  run({row, 16, 12, 2048, 0.7, true, false, 4});
  // Blocks of 15 rows: passes of 256 begin within one.
  if (row.format == Format::block) run({row, 150, 1050, 96, 0.5, true, false, 3});
  // Two blocks of tokens over more columns than they take at a time, then one.
  if (groups && row.tile_m == 32) run({row, 37, 19, 4096 + 64, 0.5, true, false, 6});
  // More tokens than share an expansion, and more of x than is held at once.
  const int64_t k = groups ? 1312 : 1300;
  if (row.tile_m > 64) run({row, row.tile_m + 18, 70, k, 0.5, true, false, 5});
  // Tiles of tokens of every size, where those are as even as can be.
  const bool dozens = std::string(row.name).ends_with("dozens");
  const bool even = dozens || (row.tile_m > 64 && quantizes(row) && !simulated(row));
  for (int64_t m = 2; m < 12 && even; ++m) {
    run({row, m, 35, 321, 0.5, m % 2 == 0, false, static_cast<uint64_t>(m)});
    if (dozens) run({row, m, 19, 321, 0.5, m % 2 == 0, true, static_cast<uint64_t>(m)});
  }
  // Columns whose sums are stored in between, those of several blocks of tokens too.
  if (dozens) run({row, 290, 70, 2048 + 70, 0.5, true, false, 6});
  if (dozens) run({row, 25, 35, 2 * 4096 + 70, 0.2, false, false, 7});
  // Two blocks of rows that take turns over x, then rows of a block of their own, an odd number.
  if (row.tile_m == 128 && row.tile_n == 4) run({row, 140, 603, 130, 0.6, true, false, 3});
  // So much of x that more rows take turns over it.
  if (row.tile_m == 512 && row.format == Format::bitmap && row.w_dtype == DType::f32) {
    run({row, 530, 204, 4100, 0.5, false, false, 5});
  }
  // Three groups of rows that take turns over blocks of x.
  if (std::string(row.name).ends_with("lists")) run({row, 19, 401, 1300, 0.9, true, true, 5});
  if (row.tile_m == 16) run({row, 16 * 17 + 3, 70, groups ? 4096 + 64 : 1300, 0.5, true, true, 5});
}

// y is the bias, or zero, whatever takes so many tokens.
TEST_P(Kernel, NoColumns) {
  const SpmmRow& row = GetParam();
  if (!runs_here(row)) GTEST_SKIP();
  uint64_t seed = 0;
  for (const int64_t m : {1, 3, 16, 33, 70}) {
    const Case c{row, m, 37, 0, 0.5, true, false, ++seed};
    Problem p(c);
    Rows x(row.x_dtype, m, 0, 0, false), bias(row.x_dtype, 1, c.n, 0, false);
    Rows y(row.x_dtype, m, c.n, 3, false);
    fill(bias, p.random, true);
    const bool biased = seed % 2 != 0;
    const SpmmArgs args{.w = p.packed.view,
                        .x_dtype = row.x_dtype,
                        .m = m,
                        .x = x.bytes.data(),
                        .x_stride = x.stride,
                        .bias = biased ? bias.bytes.data() : nullptr,
                        .y = y.bytes.data(),
                        .y_stride = y.stride};
    const Status status = spmm_with(row, args);
    ASSERT_TRUE(status.ok()) << status.text;
    compare(c, p, x, biased ? &bias : nullptr, y);
  }
}

INSTANTIATE_TEST_SUITE_P(Spmm, Kernel, testing::ValuesIn(rows()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Conformance, SkipsAreExpected) {
  int skips = 0;
  for (const SpmmRow& row : spmm_kernels()) skips += (row.isa & host_isa()) != row.isa;
  if (const char* expected = std::getenv("TAMIS_EXPECT_SKIPS")) {
    EXPECT_EQ(skips, std::atoi(expected));
  }
}

// One nonzero a row: each output is one column of x in its steps, and a column that is not finite
// takes with it the outputs of its own token, through every row, and of no other.
TEST(Quantized, RoundsToTheNearestStepAndKeepsNaN) {
  for (const SpmmRow& row : spmm_kernels()) {
    if (!quantizes(row) || row.format != Format::bitmap) continue;
    if ((row.isa & host_isa()) != row.isa) continue;
    const int64_t k = 600;
    std::vector<float> w(static_cast<size_t>(k * k)), scales(static_cast<size_t>(k), 1.0f);
    for (int64_t i = 0; i < k; ++i) w[static_cast<size_t>(i * k + i)] = 127.0f;
    const DenseView view{.data = w.data(), .rows = k, .cols = k, .stride = k};
    Packed packed;
    ASSERT_TRUE(pack_guarded(view, {.format = row.format, .dtype = DType::i8}, &packed).ok());
    packed.view.group_size = k;
    const Case c{row, 4, k, k, 0, false, false, 1};
    Rows x(row.x_dtype, c.m, k, 0, false), y(row.x_dtype, c.m, k, 0, false);
    std::mt19937_64 random(5);
    fill(x, random, false);
    for (int64_t i = 0; i < k; ++i) x.set(1, i, i < 300 ? 0.0f : 1e-30f);  // a step without range
    x.set(2, 7, std::numeric_limits<float>::infinity());
    x.set(3, k - 1, std::numeric_limits<float>::quiet_NaN());
    const Status s = spmm_with(row, {.w = packed.view,
                                     .x_dtype = row.x_dtype,
                                     .m = c.m,
                                     .x = x.bytes.data(),
                                     .x_stride = x.stride,
                                     .y = y.bytes.data(),
                                     .y_stride = y.stride});
    ASSERT_TRUE(s.ok()) << s.text;
    for (int64_t t = 0; t < 2; ++t) {
      const std::vector<double> steps = steps_of(c, x, t);
      for (int64_t i = 0; i < k; ++i) {
        const double wanted = 127 * x.at(t, i), step = 127 * steps[static_cast<size_t>(i)];
        ASSERT_LE(std::abs(y.at(t, i) - wanted),
                  kHalfStep * step + tolerance(std::abs(wanted)) + half_unit(y.type, wanted + step))
            << row.name << " token " << t << " column " << i;
      }
    }
    for (int64_t t = 2; t < c.m; ++t) {
      for (int64_t i = 0; i < k; ++i) ASSERT_TRUE(std::isnan(y.at(t, i))) << row.name;
    }
  }
}

// Rows of unequal length share turns in some kernels: one's scales must not reach another.
TEST(Groups, NaNScaleSpoilsItsRowOnly) {
  for (const SpmmRow& row : spmm_kernels()) {
    if (row.format != Format::groupq || (row.isa & host_isa()) != row.isa) continue;
    for (const int64_t m : {1, 5, 20}) {
      constexpr int64_t n = 32, spoiled = 9;
      const Case c{row, m, n, 576, 0.5, false, false, 1};
      Problem p(c);
      const int64_t* offsets = p.packed.view.row_offsets;
      ASSERT_LT(offsets[spoiled], offsets[spoiled + 1]);
      (*p.packed.group_scales)[static_cast<size_t>(2 * offsets[spoiled])] = 0x7e00;
      const std::vector<float> x(static_cast<size_t>(m * c.k * 2), 0.0f);
      std::vector<float> y(static_cast<size_t>(m * n));
      const SpmmArgs a{.w = p.packed.view,
                       .x_dtype = row.x_dtype,
                       .m = m,
                       .x = x.data(),
                       .x_stride = c.k,
                       .y = y.data(),
                       .y_stride = n};
      ASSERT_TRUE(spmm_with(row, a).ok());
      for (int64_t t = 0; t < m; ++t) {
        for (int64_t i = 0; i < n; ++i) {
          EXPECT_EQ(std::isnan(get(y.data(), row.x_dtype, t * n + i)), i == spoiled)
              << row.name << " m=" << m << " row " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace tamis

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
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "base/parallel.h"
#include "fewer.h"
#include "format/format.h"
#include "guarded.h"
#include "ops/spmm/spmm.h"
#include "packing.h"

namespace tamis::test {
namespace {

// |y - y64| <= c * eps * sum |w||x|, plus half a unit in the last place of y's dtype. A sum of k
// products in L chains errs by about sqrt(k / L) * eps; k <= 576 here, so 8 leaves a factor of two
// over one chain. vdpbf16ps adds pairs first and flushes denormals: the sum of two products may
// lose all bits below 2^-126, which no eps times these sums reaches.
double tolerance(double magnitude) {
  return 8 * 0x1p-24 * magnitude;
}

// A form that quantizes x stores code = round(x / step), step = largest |x| of kStepColumns / 127.
// So x errs by at most half a step, and a sum by half a step times sum |w|; the quotient is rounded
// to f32 before it is rounded to a code, which moves the middle by 127 * 2^-23 of a step at most.
// Integers up to 127 with a 127 among every kStepColumns have step 1: no error at all.
constexpr double kHalfStep = 0.5 + 127 * 0x1p-23;

double half_unit(DType type, double y) {
  const double a = std::abs(y);
  switch (type) {
    case DType::f32:
      return a * 0x1p-24;
    case DType::f16:
      return std::max(a * 0x1p-11, 0x1p-25);
    default:
      return a * 0x1p-8;
  }
}

void put(void* data, DType type, int64_t i, float v) {
  switch (type) {
    case DType::f32:
      static_cast<float*>(data)[i] = v;
      break;
    case DType::f16:
      static_cast<uint16_t*>(data)[i] = f16_from_f32(v);
      break;
    default:
      static_cast<uint16_t*>(data)[i] = bf16_from_f32(v);
  }
}

double get(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::f32:
      return static_cast<const float*>(data)[i];
    case DType::f16:
      return f32_from_f16(static_cast<const uint16_t*>(data)[i]);
    default:
      return f32_from_bf16(static_cast<const uint16_t*>(data)[i]);
  }
}

// Rows of `width` elements, `stride` apart, in memory that ends with the last element (or starts
// with the first). What lies between rows is NaN.
struct Rows {
  Rows(DType type, int64_t count, int64_t width, int64_t padding, bool front)
      : type(type),
        count(count),
        width(width),
        stride(width + padding),
        bytes(static_cast<size_t>(count ? ((count - 1) * stride + width) * size_of(type) : 0),
              front) {
    std::memset(bytes.data(), 0xff, bytes.size());
  }
  void set(int64_t row, int64_t i, float v) { put(bytes.data(), type, row * stride + i, v); }
  double at(int64_t row, int64_t i) const { return get(bytes.data(), type, row * stride + i); }
  bool padding_untouched() const {
    const int64_t size = size_of(type);
    for (int64_t row = 0; row + 1 < count; ++row) {
      for (int64_t b = (row * stride + width) * size; b < (row + 1) * stride * size; ++b) {
        if (bytes[static_cast<size_t>(b)] != 0xff) return false;
      }
    }
    return true;
  }

  DType type;
  int64_t count, width, stride;
  Guarded<uint8_t> bytes;
};

struct Case {
  const SpmmRow& row;
  int64_t m, n, k;
  double sparsity;
  bool integers;  // small integers: every order of summation gives the same bits
  bool front;
  uint64_t seed;

  std::string text() const {
    char s[200];
    std::snprintf(s, sizeof s, "%s m=%lld n=%lld k=%lld sparsity=%g %s %s seed=%llu", row.name,
                  static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k),
                  sparsity, integers ? "integers" : "reals", front ? "front" : "back",
                  static_cast<unsigned long long>(seed));
    return s;
  }
};

int largest_divisor(int64_t k, int limit) {
  for (int d = limit; d > 1; --d) {
    if (k % d == 0) return d;
  }
  return 1;
}

PackSpec spec_for(const Case& c) {
  PackSpec spec{.format = c.row.format, .dtype = c.row.w_dtype};
  if (c.row.format == Format::groupq) spec.group_size = c.k % 32 || c.seed % 2 ? 16 : 32;
  if (c.row.format == Format::nm) {
    spec.of = largest_divisor(c.k, c.seed % 2 ? 4 : 32);
    spec.keep = static_cast<int32_t>(std::lround((1 - c.sparsity) * spec.of));
    spec.keep = std::max(spec.keep, 1);
  }
  if (c.row.format == Format::block) {
    spec.block_rows = largest_divisor(c.n, c.seed % 2 ? 16 : 3);
    spec.block_cols = largest_divisor(c.k, c.seed % 3 ? 32 : 3);
  }
  if (spec.dtype == DType::i8) {
    constexpr int64_t kGroups[] = {0, 32, 7, 128, 512};
    spec.group_size = kGroups[c.seed % 5];
  }
  return spec;
}

struct Problem {
  explicit Problem(const Case& c) : random(c.seed) {
    const PackSpec spec = spec_for(c);
    std::vector<float> w(static_cast<size_t>(c.n * c.k));
    std::vector<uint8_t> keep(w.size());
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < w.size(); ++i) {
      w[i] = c.integers ? static_cast<float>(static_cast<int>(random() % 9) - 4) : normal(random);
      keep[i] = static_cast<double>(random() % 1000) >= c.sparsity * 1000;
    }
    if (spec.format == Format::groupq) {
      const auto size = static_cast<size_t>(spec.group_size);
      for (size_t i = 0; i < keep.size(); ++i) keep[i] = keep[i / size * size];
    }
    if (spec.format == Format::nm) {
      for (size_t g = 0; g < keep.size(); g += static_cast<size_t>(spec.of)) {
        for (int i = 0; i < spec.of; ++i) keep[g + static_cast<size_t>(i)] = i < spec.keep;
        std::shuffle(&keep[g], &keep[g] + spec.of, random);
      }
    }
    // Sources in the dtype that the values will have, codes from f32.
    const DType source = is_float(spec.dtype) ? spec.dtype : DType::f32;
    std::vector<uint8_t> stored(w.size() * static_cast<size_t>(size_of(source)));
    for (size_t i = 0; i < w.size(); ++i) {
      put(stored.data(), source, static_cast<int64_t>(i), w[i]);
    }
    const DenseView view{.data = stored.data(),
                         .dtype = source,
                         .rows = c.n,
                         .cols = c.k,
                         .stride = c.k,
                         .keep = keep.data()};
    const Status s = pack_guarded(view, spec, &packed);
    EXPECT_TRUE(s.ok()) << s.text;
    packed.view.group_size = spec.group_size ? spec.group_size : c.k;
    if (c.integers) {  // powers of two instead of max / 127, so that i8 products are exact too
      for (float& scale : packed.scales->span()) scale = random() % 2 ? 0.5f : 2.0f;
      for (size_t i = 0; i < packed.group_scales->size(); i += 2) {
        (*packed.group_scales)[i] = f16_from_f32(random() % 2 ? 0.5f : 2.0f);
      }
    }
    dense.resize(w.size() * static_cast<size_t>(size_of(source)));
    const Status u = unpack(packed.view, dense.data(), c.k);
    EXPECT_TRUE(u.ok()) << u.text;
    dense_type = source;
  }

  std::mt19937_64 random;
  Packed packed;
  std::vector<uint8_t> dense;
  DType dense_type = DType::f32;
};

bool quantizes(const SpmmRow& row) {
  return row.x_form && row.x_form->quantizes;
}

// Weights of groups are rounded to bf16 where vdpbf16ps multiplies them.
double lost_of_weight(const SpmmRow& row) {
  const bool rounds = row.format == Format::groupq && row.isa == isa::avx512bf16;
  return rounds ? 0x1p-8 : 0;
}

// `steps`: what a form that quantizes x keeps exactly, in place of the integers from -4 to 4.
void fill(Rows& rows, std::mt19937_64& random, bool integers, bool steps = false) {
  std::normal_distribution<float> normal;
  const int limit = steps ? 127 : 4;
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t i = 0; i < rows.width; ++i) {
      rows.set(r, i,
               integers ? static_cast<float>(static_cast<int>(random() % (2 * limit + 1)) - limit)
                        : normal(random));
    }
    for (int64_t i = 0; integers && steps && i < rows.width; i += kStepColumns) {
      const int64_t n = std::min(kStepColumns, rows.width - i);
      rows.set(r, i + static_cast<int64_t>(random() % static_cast<uint64_t>(n)),
               random() % 2 ? 127.0f : -127.0f);
    }
  }
}

// The step of each column of a token, 0 where x is not quantized.
std::vector<double> steps_of(const Case& c, const Rows& x, int64_t token) {
  std::vector<double> steps(static_cast<size_t>(c.k));
  for (int64_t i = 0; quantizes(c.row) && i < c.k; i += kStepColumns) {
    const int64_t end = std::min(c.k, i + kStepColumns);
    double largest = 0;
    for (int64_t k = i; k < end; ++k) largest = std::max(largest, std::abs(x.at(token, k)));
    std::fill(steps.begin() + i, steps.begin() + end, largest / 127);
  }
  return steps;
}

void compare(const Case& c, const Problem& p, const Rows& x, const Rows* bias, const Rows& y) {
  for (int64_t t = 0; t < c.m; ++t) {
    const std::vector<double> steps = steps_of(c, x, t);
    for (int64_t n = 0; n < c.n; ++n) {
      double sum = bias ? bias->at(0, n) : 0, magnitude = std::abs(sum), lost = 0;
      for (int64_t k = 0; k < c.k; ++k) {
        const double w = get(p.dense.data(), p.dense_type, n * c.k + k);
        sum += w * x.at(t, k);
        magnitude += std::abs(w * x.at(t, k));
        lost += kHalfStep * std::abs(w) * steps[static_cast<size_t>(k)] +
                lost_of_weight(c.row) * std::abs(w * x.at(t, k));
      }
      const double got = y.at(t, n);
      if (c.integers) {
        uint32_t rounded = 0;
        put(&rounded, y.type, 0, static_cast<float>(sum));
        ASSERT_EQ(got, get(&rounded, y.type, 0)) << c.text() << " token " << t << " row " << n;
      } else {
        ASSERT_LE(std::abs(got - sum),
                  tolerance(magnitude + lost) + lost + half_unit(y.type, std::abs(sum) + lost))
            << c.text() << " token " << t << " row " << n << " got " << got << " wanted " << sum;
      }
    }
  }
  ASSERT_TRUE(y.padding_untouched()) << c.text();
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
          if (!keeps_case(seed)) continue;
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
  if ((row.isa & host_isa()) != row.isa) {
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
  if ((row.isa & host_isa()) != row.isa) GTEST_SKIP();
  const bool groups = row.format == Format::groupq;
  run({row, 37, 50, groups ? 192 : 191, 0.5, true, false, 3});
  run({row, 8, 50, groups ? 192 : 191, 0.5, true, false, 3});  // a panel of eight, all of it
  if (groups) run({row, 7, 9, 576, 0.9, true, false, 3});      // so few that offsets go one by one
  if (groups) run({row, 5, 3, 16 * 1100, 0.3, true, false, 5});  // more than are decoded at once
  run({row, 16, 12, 2048, 0.7, true, false, 4});
  // Blocks of 15 rows: passes of 256 begin within one.
  if (row.format == Format::block) run({row, 150, 1050, 96, 0.5, true, false, 3});
  // More tokens than share an expansion, and more of x than is held at once.
  const int64_t k = groups ? 1312 : 1300;
  if (row.tile_m > 64) run({row, row.tile_m + 18, 70, k, 0.5, true, false, 5});
  // So much of x that more rows take turns over it.
  if (row.tile_m == 512 && row.format == Format::bitmap && row.w_dtype == DType::f32) {
    run({row, 530, 204, 4100, 0.5, false, false, 5});
  }
  if (row.tile_m == 16) run({row, 16 * 17 + 3, 70, groups ? 4096 + 64 : 1300, 0.5, true, true, 5});
}

INSTANTIATE_TEST_SUITE_P(Spmm, Kernel,
                         testing::ValuesIn(spmm_kernels().begin(), spmm_kernels().end()),
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

// spmm as callers see it: chosen kernel, all threads, bit-identical at every thread count.
TEST(Spmm, SameBitsAtEveryThreadCount) {
  const IsaBits isa = active_isa();
  for (const Format format :
       {Format::bitmap, Format::csr, Format::nm, Format::block, Format::csr8, Format::groupq}) {
    const SpmmDesc desc{.format = format,
                        .w_dtype = format == Format::groupq ? DType::u4 : DType::bf16,
                        .x_dtype = DType::bf16,
                        .m = 3,
                        .n = 1201,
                        .k = 576,
                        .nnz = 1};
    const SpmmRow* row = choose_spmm(desc, isa);
    ASSERT_NE(row, nullptr);
    const Case c{*row, 3, 1216, 576, 0.5, false, false, 7};
    Problem p(c);
    Rows x(DType::bf16, c.m, c.k, 0, false);
    fill(x, p.random, false);
    std::vector<std::vector<uint8_t>> results;
    for (const int threads : {1, 2, 3}) {
      set_num_threads(threads);
      Rows y(DType::bf16, c.m, c.n, 0, false);
      const SpmmArgs args{.w = p.packed.view,
                          .x_dtype = DType::bf16,
                          .m = c.m,
                          .x = x.bytes.data(),
                          .x_stride = x.stride,
                          .y = y.bytes.data(),
                          .y_stride = y.stride};
      const Status s = spmm(args);
      ASSERT_TRUE(s.ok()) << s.text;
      // What ran says how exact it is; the choice depends on how many values are stored.
      const Case ran{*choose_spmm(describe(args), isa), 3, 1216, 576, 0.5, false, false, 7};
      compare(ran, p, x, nullptr, y);
      results.emplace_back(y.bytes.data(), y.bytes.data() + y.bytes.size());
    }
    set_num_threads(0);
    EXPECT_EQ(results[0], results[1]) << name_of(format);
    EXPECT_EQ(results[0], results[2]) << name_of(format);
  }
}

TEST(Spmm, ReferenceMatchesDefinition) {
  for (const SpmmRow& row : spmm_kernels()) {
    if (row.isa != isa::scalar) continue;
    const Case c{row, 5, 12, row.format == Format::groupq ? 128 : 130, 0.5, false, false, 11};
    Problem p(c);
    Rows x(row.x_dtype, c.m, c.k, 2, false);
    fill(x, p.random, false);
    std::vector<double> y(static_cast<size_t>(c.m * c.n));
    const Status s = spmm_reference({.w = p.packed.view,
                                     .x_dtype = row.x_dtype,
                                     .m = c.m,
                                     .x = x.bytes.data(),
                                     .x_stride = x.stride,
                                     .y = y.data(),
                                     .y_stride = c.n},
                                    y.data());
    ASSERT_TRUE(s.ok()) << s.text;
    for (int64_t t = 0; t < c.m; ++t) {
      for (int64_t n = 0; n < c.n; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < c.k; ++k) {
          sum += get(p.dense.data(), p.dense_type, n * c.k + k) * x.at(t, k);
        }
        ASSERT_NEAR(y[static_cast<size_t>(t * c.n + n)], sum, 1e-4) << c.text();
      }
    }
  }
}

TEST(Spmm, EmptyShapes) {
  const Case c{*choose_spmm({.format = Format::bitmap,
                             .w_dtype = DType::f32,
                             .x_dtype = DType::f32,
                             .m = 1,
                             .n = 4,
                             .k = 64,
                             .nnz = 1},
                            active_isa()),
               1,
               4,
               64,
               0.5,
               false,
               false,
               4};
  Problem p(c);
  float y[4] = {7, 7, 7, 7};
  SpmmArgs a{.w = p.packed.view, .m = 0};
  EXPECT_TRUE(spmm(a).ok());

  // k == 0: y is the bias.
  const int64_t offsets[5] = {};
  const float bias[4] = {1, 2, 3, 4};
  a = {.w = {.rows = 4, .cols = 0, .row_offsets = offsets},
       .m = 1,
       .bias = bias,
       .y = y,
       .y_stride = 4};
  EXPECT_TRUE(spmm(a).ok());
  EXPECT_EQ(std::vector<float>(y, y + 4), std::vector<float>(bias, bias + 4));
}

TEST(Spmm, BadArgumentsNameWhatIsWrong) {
  const Case c{*choose_spmm({.format = Format::bitmap,
                             .w_dtype = DType::f32,
                             .x_dtype = DType::f32,
                             .m = 2,
                             .n = 4,
                             .k = 64,
                             .nnz = 1},
                            active_isa()),
               2,
               4,
               64,
               0.5,
               false,
               false,
               4};
  Problem p(c);
  std::vector<float> x(128), y(8);
  const SpmmArgs good{
      .w = p.packed.view, .m = 2, .x = x.data(), .x_stride = 64, .y = y.data(), .y_stride = 4};
  ASSERT_TRUE(spmm(good).ok());
  const auto expect = [&](auto change, Code code, const char* text) {
    SpmmArgs a = good;
    change(a);
    const Status s = spmm(a);
    EXPECT_EQ(s.code, code) << s.text;
    EXPECT_NE(std::string(s.text).find(text), std::string::npos) << s.text;
  };
  using A = SpmmArgs&;
  const Code bad = Code::invalid_argument;
  expect([](A a) { a.x_stride = 63; }, bad, "spmm: x_stride: got 63, wanted at least 64");
  expect([](A a) { a.y_stride = 3; }, bad, "spmm: y_stride: got 3, wanted at least 4");
  expect([](A a) { a.m = -1; }, bad, "spmm: m: got -1");
  expect([](A a) { a.x = nullptr; }, bad, "spmm: x: got null");
  expect([](A a) { a.y = nullptr; }, bad, "spmm: y: got null");
  expect([](A a) { a.w.mask = nullptr; }, bad, "spmm: w.mask: got null");
  expect([](A a) { a.w.format = Format::nm; }, bad, "spmm: w: got 0 of 0");
  expect(
      [](A a) {
        a.w.dtype = DType::i8;
        a.w.scales = nullptr;
      },
      bad, "spmm: w.scales");
  expect([](A a) { a.x_dtype = DType::i8; }, Code::unsupported_dtype, "spmm: x: got i8");
}

}  // namespace
}  // namespace tamis::test

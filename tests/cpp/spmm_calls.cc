// spmm as callers see it: the chosen kernel on all threads, the reference, empty shapes and bad
// arguments.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/parallel.h"
#include "ops/spmm/spmm.h"
#include "spmm_problem.h"

namespace tamis::test {
namespace {

// A bitmap of 4 x 64 f32 weights, half of them kept.
Case small_case(int64_t m) {
  const SpmmDesc desc{.format = Format::bitmap,
                      .w_dtype = DType::f32,
                      .x_dtype = DType::f32,
                      .m = m,
                      .n = 4,
                      .k = 64,
                      .nnz = 1};
  return {*choose_spmm(desc, active_isa()), m, 4, 64, 0.5, false, false, 4};
}

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

// Kernels whose threads may share tokens, or prepare x each for itself: what a token gives does not
// depend on who computes it. 288 tokens do not come in even shares of whole tiles.
void same_bits(const SpmmRow& row, int64_t m) {
  const bool blocks = row.format == Format::block;
  const int64_t n = 80, k = blocks ? 320 : 321;
  const Case c{row, m, n, k, 0.5, false, false, 7};
  Problem p(c);
  Rows x(row.x_dtype, m, k, 3, false), bias(row.x_dtype, 1, n, 0, false);
  Rows factors(row.x_dtype, m, n, 2, false);
  fill(x, p.random, false, true);
  fill(bias, p.random, false);
  fill(factors, p.random, false);
  std::vector<std::vector<uint8_t>> results;
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    Rows y(row.x_dtype, m, n, 1, false);
    const Status s = spmm_with(row, {.w = p.packed.view,
                                     .x_dtype = row.x_dtype,
                                     .m = m,
                                     .x = x.bytes.data(),
                                     .x_stride = x.stride,
                                     .bias = bias.bytes.data(),
                                     .y = y.bytes.data(),
                                     .y_stride = y.stride,
                                     .activation = Activation::relu,
                                     .multiplier = factors.bytes.data(),
                                     .multiplier_stride = factors.stride});
    ASSERT_TRUE(s.ok()) << s.text;
    results.emplace_back(y.bytes.data(), y.bytes.data() + y.bytes.size());
  }
  set_num_threads(0);
  EXPECT_EQ(results[0], results[1]) << row.name << " " << m;
  EXPECT_EQ(results[0], results[2]) << row.name << " " << m;
}

TEST(Spmm, SameBitsHoweverThreadsShare) {
  int seen = 0;
  for (const SpmmRow& row : spmm_kernels()) {
    const bool shares = row.x_form && (row.x_form->own || row.x_form->tokens_each > 0);
    if (!shares || (row.isa & host_isa()) != row.isa) continue;
    for (const int64_t m : {288, 500, 512}) same_bits(row, m);
    ++seen;
  }
  const bool some = (host_isa() & isa::avx512vbmi2) == isa::avx512vbmi2;
  EXPECT_EQ(seen > 0, some);
}

// 192 rows of which the last has a value more: two threads share them evenly wherever 96 is a
// multiple of the kernel's tile, as one more tile would be up to a third more work.
TEST(Spmm, TwoThreadsTakeHalfOfTheRowsEach) {
  const int64_t rows = 192, each = 32;
  std::vector<int64_t> offsets(rows + 1);
  for (int64_t r = 0; r <= rows; ++r) offsets[static_cast<size_t>(r)] = r * each;
  ++offsets.back();
  int seen = 0;
  for (const SpmmRow& row : spmm_kernels()) {
    if (row.format != Format::bitmap || rows / 2 % row.tile_n != 0) continue;
    const MatrixView w{.rows = rows,
                       .cols = 64,
                       .dtype = row.w_dtype,
                       .nnz = offsets.back(),
                       .row_offsets = offsets.data()};
    const SpmmRows first = spmm_rows(row, w, 0, 2), second = spmm_rows(row, w, 1, 2);
    EXPECT_EQ(first.begin, 0) << row.name;
    EXPECT_EQ(first.end, rows / 2) << row.name;
    EXPECT_EQ(second.begin, rows / 2) << row.name;
    EXPECT_EQ(second.end, rows) << row.name;
    ++seen;
  }
  EXPECT_GT(seen, 3);
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
  Problem p(small_case(1));
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
  Problem p(small_case(2));
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

// Both halves of a decoder layer against the formula in double: dtypes, groups of heads, sequences
// at one position or their own, biases, caches with room behind their tokens, guard pages after
// each array.
#include "ops/decoder/decoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "ops/sparse_input/elements.h"
#include "packing.h"

namespace tamis::test {
namespace {

using Doubles = std::vector<double>;

struct DecoderCase {
  DType dtype;
  int64_t m, positions, hidden, heads, kv_heads, d, inner, tokens;
  bool biases;
};

// Numbers in guarded memory, and the same as double.
struct Numbers {
  DType dtype;
  Guarded<uint8_t> memory;
  Doubles exact;

  Numbers(DType type, int64_t count)
      : dtype(type), memory(static_cast<size_t>(count * size_of(type))), exact(count) {}

  Doubles read() const {
    Doubles out(exact.size());
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = load_element(dtype, memory.data(), static_cast<int64_t>(i));
    }
    return out;
  }
};
using NumbersPtr = std::unique_ptr<Numbers>;

class DecoderProblem {
 public:
  explicit DecoderProblem(const DecoderCase& c) : c_(c) {}

  NumbersPtr random(int64_t count, double mean = 0.0, double deviation = 1.0) {
    auto out = std::make_unique<Numbers>(c_.dtype, count);
    std::normal_distribution<float> normal(static_cast<float>(mean), static_cast<float>(deviation));
    for (int64_t i = 0; i < count; ++i)
      store_element(c_.dtype, normal(random_), out->memory.data(), i);
    out->exact = out->read();
    return out;
  }
  NumbersPtr result(int64_t count) { return random(count); }

  // A weight [rows, cols] of which half is kept.
  struct Linear {
    Packed packed;
    Doubles w, bias;
    NumbersPtr bias_memory;
    DecoderLinear view() const {
      return {.w = packed.view, .bias = bias_memory ? bias_memory->memory.data() : nullptr};
    }
  };
  Linear linear(int64_t rows, int64_t cols) {
    Linear out;
    const NumbersPtr all = random(rows * cols, 0.0, 1.5 / std::sqrt(static_cast<double>(cols)));
    std::vector<uint8_t> keep(all->exact.size());
    for (size_t i = 0; i < keep.size(); ++i) {
      keep[i] = random_() % 2 == 0;
      out.w.push_back(keep[i] ? all->exact[i] : 0.0);
    }
    const DenseView w{.data = all->memory.data(),
                      .dtype = c_.dtype,
                      .rows = rows,
                      .cols = cols,
                      .stride = cols,
                      .keep = keep.data()};
    EXPECT_TRUE(pack_guarded(w, {.format = Format::bitmap, .dtype = c_.dtype}, &out.packed).ok());
    if (c_.biases) {
      out.bias_memory = random(rows);
      out.bias = out.bias_memory->exact;
    }
    return out;
  }

  Doubles times(const Linear& linear, const Doubles& x, int64_t rows) const {
    const auto n = static_cast<size_t>(rows), k = linear.w.size() / n;
    Doubles y(static_cast<size_t>(c_.m) * n);
    for (size_t t = 0; t < static_cast<size_t>(c_.m); ++t) {
      for (size_t i = 0; i < n; ++i) {
        double sum = linear.bias.empty() ? 0.0 : linear.bias[i];
        for (size_t j = 0; j < k; ++j) sum += linear.w[i * k + j] * x[t * k + j];
        y[t * n + i] = sum;
      }
    }
    return y;
  }
  Doubles norm(const Doubles& x, const Doubles& weight, double eps) const {
    const size_t n = weight.size();
    Doubles y(x.size());
    for (size_t t = 0; t < x.size() / n; ++t) {
      double sum = 0;
      for (size_t i = 0; i < n; ++i) sum += x[t * n + i] * x[t * n + i];
      for (size_t i = 0; i < n; ++i) {
        y[t * n + i] = x[t * n + i] / std::sqrt(sum / static_cast<double>(n) + eps) * weight[i];
      }
    }
    return y;
  }
  Doubles turn(const Doubles& x, int64_t heads, const Doubles& cos, const Doubles& sin) const {
    const auto d = static_cast<size_t>(c_.d), half = d / 2, h = static_cast<size_t>(heads);
    Doubles y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t c = i % d, position = c_.positions == 1 ? 0 : i / d / h;
      const double other = c < half ? -x[i + half] : x[i - half];
      y[i] = x[i] * cos[position * d + c] + other * sin[position * d + c];
    }
    return y;
  }

  void expect_near(const Numbers& got, const Doubles& wanted, const char* what) const {
    const double most = c_.dtype == DType::f32 ? 2e-6 : c_.dtype == DType::f16 ? 3e-3 : 2e-2;
    const Doubles values = got.read();
    double error = 0, size = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      error += (values[i] - wanted[i]) * (values[i] - wanted[i]);
      size += wanted[i] * wanted[i];
    }
    EXPECT_LE(std::sqrt(error / size), most) << what << " in " << name_of(c_.dtype);
  }

 private:
  DecoderCase c_;
  std::mt19937_64 random_{7};
};

class Decoder : public testing::TestWithParam<DecoderCase> {};

TEST_P(Decoder, FirstHalfIsItsFormula) {
  const DecoderCase c = GetParam();
  DecoderProblem p(c);
  const int64_t queries = c.heads * c.d, keys = c.kv_heads * c.d;
  const auto x = p.random(c.m * c.hidden), weight = p.random(c.hidden, 1.0, 0.2);
  const auto cos = p.random(c.positions * c.d), sin = p.random(c.positions * c.d);
  const auto wq = p.linear(queries, c.hidden), wk = p.linear(keys, c.hidden),
             wv = p.linear(keys, c.hidden);
  const auto q = p.result(c.m * queries), k = p.result(c.m * keys), v = p.result(c.m * keys),
             workspace = p.result(c.m * c.hidden);
  const Status status = decoder_inputs({.dtype = c.dtype,
                                        .m = c.m,
                                        .head_dim = c.d,
                                        .x = x->memory.data(),
                                        .norm = {.weight = weight->memory.data(), .eps = 1e-5f},
                                        .q = wq.view(),
                                        .k = wk.view(),
                                        .v = wv.view(),
                                        .cos = cos->memory.data(),
                                        .sin = sin->memory.data(),
                                        .positions = c.positions,
                                        .queries = q->memory.data(),
                                        .keys = k->memory.data(),
                                        .values = v->memory.data(),
                                        .workspace = workspace->memory.data()});
  ASSERT_TRUE(status.ok()) << status.text;
  const Doubles n = p.norm(x->exact, weight->exact, 1e-5);
  p.expect_near(*q, p.turn(p.times(wq, n, queries), c.heads, cos->exact, sin->exact), "queries");
  p.expect_near(*k, p.turn(p.times(wk, n, keys), c.kv_heads, cos->exact, sin->exact), "keys");
  p.expect_near(*v, p.times(wv, n, keys), "values");
}

TEST_P(Decoder, SecondHalfIsItsFormula) {
  const DecoderCase c = GetParam();
  DecoderProblem p(c);
  const int64_t width = c.heads * c.d, room = c.tokens + 5;  // rows of a cache that may grow
  const auto x = p.random(c.m * c.hidden), weight = p.random(c.hidden, 1.0, 0.2),
             q = p.random(c.m * width), k = p.random(c.m * c.kv_heads * room * c.d),
             v = p.random(c.m * c.kv_heads * room * c.d);
  const auto wo = p.linear(c.hidden, width), wg = p.linear(c.inner, c.hidden),
             wu = p.linear(c.inner, c.hidden), wd = p.linear(c.hidden, c.inner);
  const auto y = p.result(c.m * c.hidden);
  DecoderOutputs args{.dtype = c.dtype,
                      .m = c.m,
                      .head_dim = c.d,
                      .heads = c.heads,
                      .kv_heads = c.kv_heads,
                      .tokens = c.tokens,
                      .x = x->memory.data(),
                      .queries = q->memory.data(),
                      .keys = k->memory.data(),
                      .values = v->memory.data(),
                      .key_strides = {c.kv_heads * room * c.d, room * c.d, c.d},
                      .value_strides = {c.kv_heads * room * c.d, room * c.d, c.d},
                      .scale = 0.3f,
                      .o = wo.view(),
                      .norm = {.weight = weight->memory.data(), .eps = 1e-5f},
                      .gate = wg.view(),
                      .up = wu.view(),
                      .down = wd.view(),
                      .y = y->memory.data()};
  const auto workspace = p.result(decoder_workspace(args));
  args.workspace = workspace->memory.data();
  const Status status = decoder_outputs(args);
  ASSERT_TRUE(status.ok()) << status.text;

  Doubles attended(static_cast<size_t>(c.m * width));
  for (int64_t row = 0; row < c.m * c.heads; ++row) {  // of a sequence and a query head
    const int64_t kv = row / c.heads * c.kv_heads + row % c.heads / (c.heads / c.kv_heads);
    Doubles score(static_cast<size_t>(c.tokens));
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t i = 0; i < c.d; ++i) {
        score[t] += 0.3 * q->exact[row * c.d + i] * k->exact[(kv * room + t) * c.d + i];
      }
      largest = std::max(largest, score[t]);
    }
    for (double& s : score) sum += s = std::exp(s - largest);
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t i = 0; i < c.d; ++i) {
        attended[row * c.d + i] += score[t] / sum * v->exact[(kv * room + t) * c.d + i];
      }
    }
  }
  Doubles h = p.times(wo, attended, c.hidden);
  for (size_t i = 0; i < h.size(); ++i) h[i] += x->exact[i];
  const Doubles n = p.norm(h, weight->exact, 1e-5), up = p.times(wu, n, c.inner);
  Doubles gated = p.times(wg, n, c.inner);
  for (size_t i = 0; i < gated.size(); ++i) gated[i] *= up[i] / (1 + std::exp(-gated[i]));
  Doubles wanted = p.times(wd, gated, c.hidden);
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] += h[i];
  p.expect_near(*y, wanted, "y");
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Decoder,
    testing::Values(DecoderCase{DType::f32, 1, 1, 64, 4, 2, 16, 144, 9, false},
                    DecoderCase{DType::f32, 3, 3, 71, 3, 1, 32, 50, 70, true},
                    DecoderCase{DType::f32, 2, 1, 96, 2, 2, 48, 130, 1, true},
                    DecoderCase{DType::f16, 3, 3, 64, 4, 2, 16, 144, 9, true},
                    DecoderCase{DType::bf16, 2, 1, 71, 3, 1, 32, 50, 70, false},
                    DecoderCase{DType::bf16, 3, 3, 64, 4, 2, 16, 144, 9, true}));

TEST(DecoderChecks, RefuseWhatDoesNotFit) {
  const auto shape = [](int64_t rows, int64_t cols) {
    return DecoderLinear{.w = {.format = Format::bitmap, .rows = rows, .cols = cols}};
  };
  DecoderInputs in;
  in.m = 3;
  in.head_dim = 16;
  in.q = shape(64, 32);
  in.k = shape(32, 32);
  in.v = shape(32, 31);
  EXPECT_EQ(decoder_inputs(in).code, Code::invalid_argument);  // columns of v
  in.v = shape(32, 32);
  in.positions = 2;
  EXPECT_EQ(decoder_inputs(in).code, Code::invalid_argument);
  in.head_dim = 15;
  EXPECT_EQ(decoder_inputs(in).code, Code::invalid_argument);
  in.dtype = DType::i8;
  EXPECT_EQ(decoder_inputs(in).code, Code::unsupported_dtype);
  DecoderOutputs out;
  out.m = 1;
  out.head_dim = 16;
  out.heads = 4;
  out.kv_heads = 3;
  EXPECT_EQ(decoder_outputs(out).code, Code::invalid_argument);  // heads in groups
  out.kv_heads = 2;
  out.o = shape(32, 48);
  EXPECT_EQ(decoder_outputs(out).code, Code::invalid_argument);  // columns of o
}

}  // namespace
}  // namespace tamis::test

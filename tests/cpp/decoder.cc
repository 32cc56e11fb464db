// Decoder layers against the formula in double: dtypes, groups of heads, sequences at one position
// or their own, biases, short and long caches with room behind their tokens, several threads, guard
// pages after each array.
#include "ops/decoder/decoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "base/elements.h"
#include "base/parallel.h"
#include "packing.h"

namespace tamis::test {
namespace {

using Doubles = std::vector<double>;

struct DecoderCase {
  DType dtype;
  int64_t m, positions, hidden, heads, kv_heads, d, inner, tokens;
  bool biases;
  int layers = 1, threads = 1;
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

class Decoder : public testing::TestWithParam<DecoderCase> {
 protected:
  void TearDown() override { set_num_threads(0); }
};

// A layer's weights, norms and cache, and what it makes of x.
struct LayerProblem {
  DecoderProblem& p;
  DecoderCase c;
  int64_t room = c.tokens + 5;
  NumbersPtr before = p.random(c.hidden, 1.0, 0.2), after = p.random(c.hidden, 1.0, 0.2);
  NumbersPtr keys = p.random(c.m * c.kv_heads * room * c.d);
  NumbersPtr values = p.random(c.m * c.kv_heads * room * c.d);
  DecoderProblem::Linear q = p.linear(c.heads * c.d, c.hidden);
  DecoderProblem::Linear k = p.linear(c.kv_heads * c.d, c.hidden);
  DecoderProblem::Linear v = p.linear(c.kv_heads * c.d, c.hidden);
  DecoderProblem::Linear o = p.linear(c.hidden, c.heads* c.d);
  DecoderProblem::Linear gate = p.linear(c.inner, c.hidden);
  DecoderProblem::Linear up = p.linear(c.inner, c.hidden);
  DecoderProblem::Linear down = p.linear(c.hidden, c.inner);

  DecoderLayer layer() const {
    return {.before = {.weight = before->memory.data(), .eps = 1e-5f},
            .after = {.weight = after->memory.data(), .eps = 1e-4f},
            .q = q.view(),
            .k = k.view(),
            .v = v.view(),
            .o = o.view(),
            .gate = gate.view(),
            .up = up.view(),
            .down = down.view(),
            .scale = 0.3f};
  }
  DecoderCache cache() {
    return {.keys = keys->memory.data(), .values = values->memory.data(), .room = room};
  }
  // Writes a token [m, g, d] into what the cache should hold.
  void append(NumbersPtr& cache, const Doubles& token) const {
    for (int64_t i = 0; i < c.m * c.kv_heads; ++i) {
      for (int64_t j = 0; j < c.d; ++j) {
        cache->exact[(i * room + c.tokens) * c.d + j] = token[i * c.d + j];
      }
    }
  }
  Doubles attend(const Doubles& queries) const {
    const int64_t tokens = c.tokens + 1;
    Doubles out(queries.size());
    for (int64_t row = 0; row < c.m * c.heads; ++row) {  // of a sequence and a query head
      const int64_t kv = row / c.heads * c.kv_heads + row % c.heads / (c.heads / c.kv_heads);
      Doubles score(static_cast<size_t>(tokens));
      double largest = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < c.d; ++i) {
          score[t] += 0.3 * queries[row * c.d + i] * keys->exact[(kv * room + t) * c.d + i];
        }
        largest = std::max(largest, score[t]);
      }
      for (double& s : score) sum += s = std::exp(s - largest);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < c.d; ++i) {
          out[row * c.d + i] += score[t] / sum * values->exact[(kv * room + t) * c.d + i];
        }
      }
    }
    return out;
  }
  // y in double; the cache's exact numbers gain a token.
  Doubles apply(const Doubles& x, const Doubles& cos, const Doubles& sin) {
    Doubles n = p.norm(x, before->exact, 1e-5);
    const Doubles queries = p.turn(p.times(q, n, c.heads * c.d), c.heads, cos, sin);
    append(keys, p.turn(p.times(k, n, c.kv_heads * c.d), c.kv_heads, cos, sin));
    append(values, p.times(v, n, c.kv_heads * c.d));
    Doubles h = p.times(o, attend(queries), c.hidden);
    for (size_t i = 0; i < h.size(); ++i) h[i] += x[i];
    n = p.norm(h, after->exact, 1e-4);
    const Doubles other = p.times(up, n, c.inner);
    Doubles gated = p.times(gate, n, c.inner);
    for (size_t i = 0; i < gated.size(); ++i) gated[i] *= other[i] / (1 + std::exp(-gated[i]));
    Doubles y = p.times(down, gated, c.hidden);
    for (size_t i = 0; i < y.size(); ++i) y[i] += h[i];
    return y;
  }
};

TEST_P(Decoder, LayersAreTheirFormula) {
  const DecoderCase c = GetParam();
  set_num_threads(c.threads);
  DecoderProblem p(c);
  const auto x = p.random(c.m * c.hidden), cos = p.random(c.positions * c.d),
             sin = p.random(c.positions * c.d), last = p.random(c.hidden, 1.0, 0.2),
             y = p.result(c.m * c.hidden);
  std::vector<std::unique_ptr<LayerProblem>> problems;
  std::vector<DecoderLayer> layers;
  std::vector<DecoderCache> caches;
  for (int i = 0; i < c.layers; ++i) {
    problems.push_back(std::unique_ptr<LayerProblem>(new LayerProblem{p, c}));
    layers.push_back(problems.back()->layer());
    caches.push_back(problems.back()->cache());
  }
  DecoderArgs args{.dtype = c.dtype,
                   .m = c.m,
                   .head_dim = c.d,
                   .tokens = c.tokens,
                   .x = x->memory.data(),
                   .cos = cos->memory.data(),
                   .sin = sin->memory.data(),
                   .positions = c.positions,
                   .layers = layers,
                   .caches = caches,
                   .y = y->memory.data()};
  if (c.layers > 1) args.last = {.weight = last->memory.data(), .eps = 1e-5f};
  const auto workspace = p.result(decoder_workspace(args));
  args.workspace = workspace->memory.data();
  const Status status = decoder(args);
  ASSERT_TRUE(status.ok()) << status.text;

  Doubles wanted = x->exact;
  for (const auto& layer : problems) {
    wanted = layer->apply(wanted, cos->exact, sin->exact);
    p.expect_near(*layer->keys, layer->keys->exact, "keys");  // whatever is not new, unchanged
    p.expect_near(*layer->values, layer->values->exact, "values");
  }
  if (args.last.weight) wanted = p.norm(wanted, last->exact, 1e-5);
  p.expect_near(*y, wanted, "y");
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Decoder,
    testing::Values(DecoderCase{DType::f32, 1, 1, 64, 4, 2, 16, 144, 9, false, 3},
                    DecoderCase{DType::f32, 3, 3, 71, 3, 1, 32, 50, 70, true, 2},
                    DecoderCase{DType::f32, 2, 1, 96, 2, 2, 48, 130, 0, true},
                    DecoderCase{DType::f32, 1, 1, 256, 6, 2, 64, 300, 40, true, 2, 2},
                    DecoderCase{DType::f32, 2, 2, 192, 3, 3, 64, 300, 530, false, 2, 3},
                    DecoderCase{DType::f16, 3, 3, 64, 4, 2, 16, 144, 9, true},
                    DecoderCase{DType::bf16, 2, 1, 71, 3, 1, 32, 50, 70, false},
                    DecoderCase{DType::bf16, 3, 3, 256, 4, 2, 16, 320, 9, true, 1, 3}));

TEST(DecoderChecks, RefuseWhatDoesNotFit) {
  const auto shape = [](int64_t rows, int64_t cols) {
    return DecoderLinear{.w = {.format = Format::bitmap, .rows = rows, .cols = cols}};
  };
  DecoderLayer layer{.q = shape(64, 32),
                     .k = shape(32, 32),
                     .v = shape(32, 32),
                     .o = shape(32, 64),
                     .gate = shape(80, 32),
                     .up = shape(80, 32),
                     .down = shape(32, 80)};
  DecoderCache cache{.room = 8};
  const DecoderArgs good{
      .m = 0, .head_dim = 16, .tokens = 7, .layers = {&layer, 1}, .caches = {&cache, 1}};
  EXPECT_TRUE(decoder(good).ok());
  const auto refuses = [&](Code code, const auto& change) {
    const DecoderLayer kept = layer;
    DecoderArgs args = good;
    change(args);
    EXPECT_EQ(decoder(args).code, code);
    layer = kept;
  };
  refuses(Code::unsupported_dtype, [](auto& a) { a.dtype = DType::i8; });
  refuses(Code::invalid_argument, [](auto& a) { a.head_dim = 15; });
  refuses(Code::invalid_argument, [](auto& a) { a.head_dim = 12; });  // of k's 32 rows
  refuses(Code::invalid_argument, [](auto& a) { a.positions = 2; });
  refuses(Code::invalid_argument, [](auto& a) { a.tokens = 8; });  // no room
  refuses(Code::invalid_argument, [](auto& a) { a.caches = {}; });
  refuses(Code::invalid_argument, [&](auto&) { layer.v = shape(32, 31); });
  refuses(Code::invalid_argument, [&](auto&) { layer.k = layer.v = shape(48, 32); });  // of 64
  refuses(Code::invalid_argument, [&](auto&) { layer.o = shape(32, 48); });
  refuses(Code::invalid_argument, [&](auto&) { layer.down = shape(32, 81); });
}

}  // namespace
}  // namespace tamis::test

// Every row of sparse_input/kernels.def and sparse_mlp/kernels.def against the references: dtypes,
// tokens, widths around a vector and a tile, thresholds that keep all, some or none; guard pages
// after each array, NaN between the rows of x.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "base/parallel.h"
#include "fewer.h"
#include "guarded.h"
#include "ops/sparse_input/sparse_input.h"
#include "ops/sparse_mlp/sparse_mlp.h"

namespace tamis::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
enum class Keep { all, some, none };
constexpr Keep kKeeps[] = {Keep::all, Keep::some, Keep::none};

float threshold_of(Keep keep, float middle) {
  return keep == Keep::all    ? 0.0f
         : keep == Keep::some ? middle
                              : std::numeric_limits<float>::infinity();
}

// An array of one dtype that ends at a guard page.
class Array {
 public:
  Array(DType type, int64_t count, float fill = 0.0f)
      : type_(type), bytes_(static_cast<size_t>(count * size_of(type))) {
    for (int64_t i = 0; i < count; ++i) set(i, fill);
  }
  void set(int64_t i, float v) {
    if (type_ == DType::f32) {
      reinterpret_cast<float*>(bytes_.data())[i] = v;
    } else {
      reinterpret_cast<uint16_t*>(bytes_.data())[i] =
          type_ == DType::f16 ? f16_from_f32(v) : bf16_from_f32(v);
    }
  }
  float get(int64_t i) const {
    if (type_ == DType::f32) return reinterpret_cast<const float*>(bytes_.data())[i];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(bytes_.data())[i];
    return type_ == DType::f16 ? f32_from_f16(bits) : f32_from_bf16(bits);
  }
  void randomize(std::mt19937* random, int64_t rows, int64_t width, int64_t stride, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < width; ++c) set(r * stride + c, normal(*random));
    }
  }
  void* data() { return bytes_.data(); }

 private:
  DType type_;
  Guarded<uint8_t> bytes_;
};

double rounding(DType type) {
  return type == DType::f32 ? 0x1p-24 : type == DType::f16 ? 0x1p-11 : 0x1p-8;
}

// ---- sparse_input

void check_input(const SparseInputRow& row, int64_t m, int64_t n, int64_t k, Keep keep, bool bias) {
  const std::string name = std::string(row.name) + " m=" + std::to_string(m) +
                           " n=" + std::to_string(n) + " k=" + std::to_string(k) +
                           " keep=" + std::to_string(static_cast<int>(keep));
  std::mt19937 random(static_cast<unsigned>(m * 7919 + n * 31 + k));
  const int64_t x_stride = k + 3, y_stride = n + 5;
  Array x(row.dtype, (m - 1) * x_stride + k, kNan), w(row.dtype, k * n), b(row.dtype, n);
  Array y(row.dtype, (m - 1) * y_stride + n, 77.0f);
  x.randomize(&random, m, k, x_stride, 1.0f);
  w.randomize(&random, k, n, n, 1.0f);
  b.randomize(&random, 1, n, n, 1.0f);
  Guarded<float> threshold(static_cast<size_t>(k));
  for (int64_t i = 0; i < k; ++i) {
    threshold[static_cast<size_t>(i)] = threshold_of(keep, 0.5f + 0.1f * static_cast<float>(i % 5));
  }
  int64_t kept = -1, wanted_kept = 0;
  const SparseInputArgs args{.dtype = row.dtype,
                             .m = m,
                             .n = n,
                             .k = k,
                             .x = x.data(),
                             .x_stride = x_stride,
                             .w = w.data(),
                             .threshold = threshold.data(),
                             .bias = bias ? b.data() : nullptr,
                             .y = y.data(),
                             .y_stride = y_stride,
                             .kept = &kept};
  std::vector<double> wanted(static_cast<size_t>(m * n));
  ASSERT_TRUE(sparse_input_reference(args, wanted.data()).ok());
  const Status status = sparse_input_with(row, args);
  ASSERT_TRUE(status.ok()) << status.text;
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t i = 0; i < k; ++i) {
      wanted_kept += !(std::fabs(x.get(t * x_stride + i)) < threshold[static_cast<size_t>(i)]);
    }
    for (int64_t c = 0; c < n; ++c) {
      double size = 1;
      for (int64_t i = 0; i < k; ++i) size += std::fabs(x.get(t * x_stride + i) * w.get(i * n + c));
      const double want = wanted[static_cast<size_t>(t * n + c)];
      ASSERT_NEAR(y.get(t * y_stride + c), want,
                  0x1p-22 * size + rounding(row.dtype) * std::fabs(want) + 1e-6)
          << name << " at " << t << ", " << c;
    }
    for (int64_t c = n; t + 1 < m && c < y_stride; ++c) {
      ASSERT_EQ(y.get(t * y_stride + c), 77.0f) << name;
    }
  }
  ASSERT_EQ(kept, wanted_kept) << name;
}

TEST(SparseInput, EveryKernelMatchesTheReference) {
  uint64_t number = 0;
  int ran = 0;
  for (const SparseInputRow& row : sparse_input_kernels()) {
    if ((row.isa & host_isa()) != row.isa) {
      std::printf("SKIP %s\n", row.name);
      continue;
    }
    for (const int64_t m : {1, 2, 3, 4, 5}) {
      for (const int64_t n : {1, 7, 32, 33, 70, 2100}) {
        for (const int64_t k : {1, 9, 37}) {
          for (const Keep keep : kKeeps) {
            if (!keeps_case(number++)) continue;
            check_input(row, m, n, k, keep, n % 2 == 1);
            if (HasFatalFailure()) return;
            ++ran;
          }
        }
      }
    }
  }
  EXPECT_GT(ran, 0);
}

TEST(SparseInput, SameBitsForAnyNumberOfThreads) {
  std::mt19937 random(3);
  const int64_t m = 3, n = 700, k = 90;
  Array x(DType::f32, m * k), w(DType::f32, k * n), one(DType::f32, m * n), more(DType::f32, m * n);
  x.randomize(&random, m, k, k, 1.0f);
  w.randomize(&random, k, n, n, 1.0f);
  const std::vector<float> threshold(static_cast<size_t>(k), 0.7f);
  SparseInputArgs args{.m = m,
                       .n = n,
                       .k = k,
                       .x = x.data(),
                       .x_stride = k,
                       .w = w.data(),
                       .threshold = threshold.data(),
                       .y = one.data(),
                       .y_stride = n};
  set_num_threads(1);
  ASSERT_TRUE(sparse_input(args).ok());
  args.y = more.data();
  for (const int threads : {2, 3, 5}) {
    set_num_threads(threads);
    ASSERT_TRUE(sparse_input(args).ok());
    for (int64_t i = 0; i < m * n; ++i) ASSERT_EQ(one.get(i), more.get(i)) << threads;
  }
  set_num_threads(0);
}

TEST(SparseInput, ANanCounts) {
  float x[] = {1.0f, kNan}, w[] = {1.0f, 2.0f}, threshold[] = {9.0f, 9.0f}, y = 0.0f;
  ASSERT_TRUE(sparse_input({.m = 1,
                            .n = 1,
                            .k = 2,
                            .x = x,
                            .x_stride = 2,
                            .w = w,
                            .threshold = threshold,
                            .y = &y,
                            .y_stride = 1})
                  .ok());
  EXPECT_TRUE(std::isnan(y));
}

TEST(SparseInput, RefusesBadArguments) {
  float v = 0;
  SparseInputArgs good{.m = 2,
                       .n = 1,
                       .k = 1,
                       .x = &v,
                       .x_stride = 1,
                       .w = &v,
                       .threshold = &v,
                       .y = &v,
                       .y_stride = 1};
  for (auto change :
       {+[](SparseInputArgs* a) { a->m = -1; }, +[](SparseInputArgs* a) { a->x_stride = 0; },
        +[](SparseInputArgs* a) { a->x = nullptr; }, +[](SparseInputArgs* a) { a->w = nullptr; },
        +[](SparseInputArgs* a) { a->threshold = nullptr; },
        +[](SparseInputArgs* a) { a->y = nullptr; }}) {
    SparseInputArgs bad = good;
    change(&bad);
    EXPECT_EQ(sparse_input(bad).code, Code::invalid_argument);
  }
  good.dtype = DType::i8;
  EXPECT_EQ(sparse_input(good).code, Code::unsupported_dtype);
  EXPECT_TRUE(sparse_input({}).ok());
}

// ---- sparse_mlp

// x, gate, up and down of small integers, so that activations are exact and no threshold lies near
// one: the kernel and the reference must then choose the same neurons.
struct Mlp {
  Mlp(DType type, int64_t tokens, int64_t in, int64_t neurons, int64_t out, Keep keep)
      : m(tokens),
        k(in),
        n(neurons),
        d(out),
        x(type, (m - 1) * (k + 3) + k, kNan),
        gate(type, n * k),
        up(type, n * k),
        down(type, n * d),
        y(type, (m - 1) * (d + 5) + d, 77.0f),
        threshold(static_cast<size_t>(n)) {
    std::mt19937 random(static_cast<unsigned>(m * 7919 + n * 31 + k + d));
    std::uniform_int_distribution<int> small(-2, 2);
    const auto fill = [&](Array* a, int64_t rows, int64_t width, int64_t stride) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < width; ++c) {
          a->set(r * stride + c, static_cast<float>(small(random)));
        }
      }
    };
    fill(&x, m, k, k + 3);
    fill(&gate, n, k, k);
    fill(&up, n, k, k);
    fill(&down, n, d, d);
    for (int64_t j = 0; j < n; ++j) {
      threshold[static_cast<size_t>(j)] =
          threshold_of(keep, 2.53f + 0.5f * static_cast<float>(j % 3));
    }
    args = {.dtype = type,
            .m = m,
            .k = k,
            .n = n,
            .d = d,
            .x = x.data(),
            .x_stride = k + 3,
            .gate = gate.data(),
            .up = up.data(),
            .down = down.data(),
            .threshold = threshold.data(),
            .y = y.data(),
            .y_stride = d + 5,
            .kept = &kept};
  }
  int64_t m, k, n, d, kept = -1;
  Array x, gate, up, down, y;
  Guarded<float> threshold;
  SparseMlpArgs args;
};

void check_mlp(const SparseMlpRow& row, Mlp* p, Activation activation, Keep keep) {
  const std::string name = std::string(row.name) + " m=" + std::to_string(p->m) +
                           " k=" + std::to_string(p->k) + " n=" + std::to_string(p->n) +
                           " d=" + std::to_string(p->d) +
                           " f=" + std::to_string(static_cast<int>(activation)) +
                           " keep=" + std::to_string(static_cast<int>(keep));
  p->args.activation = activation;
  std::vector<double> wanted(static_cast<size_t>(p->m * p->d));
  std::vector<double> margin(static_cast<size_t>(p->m * p->n));
  ASSERT_TRUE(sparse_mlp_reference(p->args, wanted.data(), margin.data()).ok());
  const Status status = sparse_mlp_with(row, p->args);
  ASSERT_TRUE(status.ok()) << status.text;
  const int64_t kept = std::count_if(margin.begin(), margin.end(), [](double v) { return v >= 0; });
  for (const double v : margin) {
    if (keep == Keep::some) {
      ASSERT_GT(std::fabs(v), 1e-4) << name;
    }
  }
  ASSERT_EQ(p->kept, kept) << name;
  const double size = static_cast<double>(p->n) * 4.0 * static_cast<double>(p->k * p->k) * 2.0;
  for (int64_t t = 0; t < p->m; ++t) {
    for (int64_t c = 0; c < p->d; ++c) {
      const double want = wanted[static_cast<size_t>(t * p->d + c)];
      ASSERT_NEAR(p->y.get(t * (p->d + 5) + c), want,
                  3e-7 * size + rounding(row.dtype) * std::fabs(want))
          << name << " at " << t << ", " << c;
    }
    for (int64_t c = p->d; t + 1 < p->m && c < p->d + 5; ++c) {
      ASSERT_EQ(p->y.get(t * (p->d + 5) + c), 77.0f) << name;
    }
  }
}

TEST(SparseMlp, EveryKernelMatchesTheReference) {
  uint64_t number = 0;
  int ran = 0;
  for (const SparseMlpRow& row : sparse_mlp_kernels()) {
    if ((row.isa & host_isa()) != row.isa) {
      std::printf("SKIP %s\n", row.name);
      continue;
    }
    for (const int64_t m : {1, 2, 3, 4, 5}) {
      for (const int64_t k : {1, 17, 64}) {
        for (const int64_t n : {1, 63, 64, 65, 130, 300}) {
          for (const Keep keep : kKeeps) {
            if (!keeps_case(number++)) continue;
            constexpr Activation kTurns[] = {Activation::silu, Activation::relu,
                                             Activation::gelu_tanh, Activation::gelu};
            Mlp p(row.dtype, m, k, n, k == 64 ? 33 : 70, keep);
            check_mlp(row, &p, kTurns[number % 4], keep);
            if (HasFatalFailure()) return;
            ++ran;
          }
        }
      }
    }
  }
  EXPECT_GT(ran, 0);
}

TEST(SparseMlp, SameBitsForAnyNumberOfThreads) {
  const int64_t n = 9000;  // several chunks a task
  Mlp p(DType::bf16, 2, 16, n, 40, Keep::some);
  set_num_threads(1);
  ASSERT_TRUE(sparse_mlp(p.args).ok());
  std::vector<float> one;
  for (int64_t c = 0; c < p.d; ++c) one.push_back(p.y.get(c));
  const int64_t kept = p.kept;
  for (const int threads : {2, 3, 5}) {
    set_num_threads(threads);
    ASSERT_TRUE(sparse_mlp(p.args).ok());
    for (int64_t c = 0; c < p.d; ++c) ASSERT_EQ(one[static_cast<size_t>(c)], p.y.get(c)) << threads;
    ASSERT_EQ(kept, p.kept);
  }
  set_num_threads(0);
}

TEST(SparseMlp, RefusesBadArguments) {
  Mlp p(DType::f32, 2, 4, 8, 4, Keep::all);
  for (auto change :
       {+[](SparseMlpArgs* a) { a->k = -1; }, +[](SparseMlpArgs* a) { a->y_stride = 3; },
        +[](SparseMlpArgs* a) { a->gate = nullptr; }, +[](SparseMlpArgs* a) { a->up = nullptr; },
        +[](SparseMlpArgs* a) { a->down = nullptr; },
        +[](SparseMlpArgs* a) { a->threshold = nullptr; },
        +[](SparseMlpArgs* a) { a->x = nullptr; }}) {
    SparseMlpArgs bad = p.args;
    change(&bad);
    EXPECT_EQ(sparse_mlp(bad).code, Code::invalid_argument);
  }
  p.args.dtype = DType::i8;
  EXPECT_EQ(sparse_mlp(p.args).code, Code::unsupported_dtype);
  EXPECT_TRUE(sparse_mlp({}).ok());
}

TEST(SparseMlp, ChoosesTheBestKernel) {
#if defined(__x86_64__)
  EXPECT_STREQ(choose_sparse_mlp(DType::bf16, isa::avx512bf16)->name, "sparse_mlp_bf16_avx512");
  EXPECT_STREQ(choose_sparse_input(DType::f16, isa::avx2)->name, "sparse_input_f16_avx2");
#elif defined(__aarch64__)
  EXPECT_STREQ(choose_sparse_mlp(DType::bf16, isa::neon)->name, "sparse_mlp_bf16_neon");
#endif
  EXPECT_STREQ(choose_sparse_input(DType::f32, isa::kScalar)->name, "sparse_input_f32_scalar");
}

}  // namespace
}  // namespace tamis::test

// Every row of sparse_input/kernels_cuda.def and sparse_mlp/kernels_cuda.def on the simulator
// against the double references: dtypes, tokens, tails, thresholds that keep all, some or none,
// strided and misaligned x, guard pages round every array; then bugs put in on purpose.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "cuda_sim/data.h"
#include "cuda_sim/devices.h"
#include "guarded.h"
#include "ops/sparse_input/sparse_input.cuh"
#include "ops/sparse_input/sparse_input_cuda.h"
#include "ops/sparse_mlp/mlp_pass.cuh"
#include "ops/sparse_mlp/sparse_mlp_cuda.h"

namespace tamis::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
double unit(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
}

// Weights on a multiple of 16 bytes whose last byte is followed by a page that cannot be touched.
struct alignas(16) Eight {
  uint16_t x[8];
};
class Weights {
 public:
  Weights(int64_t rows, int64_t cols, DType dtype, std::mt19937_64* random, bool integers)
      : bytes_(static_cast<size_t>(ceil_div(rows * cols, 8))) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float x =
          integers ? static_cast<float>(static_cast<int>((*random)() % 5)) - 2.0f : normal(*random);
      data()[i] = narrowed(x, dtype);
    }
  }
  uint16_t* data() { return reinterpret_cast<uint16_t*>(bytes_.data()); }

 private:
  Guarded<Eight> bytes_;
};

// Tokens [m, k] with NaN between them.
std::unique_ptr<Guarded<uint16_t>> tokens(int64_t m, int64_t k, int64_t stride, DType dtype,
                                          std::mt19937_64* random, bool integers) {
  auto x = std::make_unique<Guarded<uint16_t>>(static_cast<size_t>((m - 1) * stride + k));
  for (uint16_t& v : x->span()) v = narrowed(kNan, dtype);
  std::normal_distribution<float> normal;
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t i = 0; i < k; ++i) {
      const float v =
          integers ? static_cast<float>(static_cast<int>((*random)() % 5)) - 2.0f : normal(*random);
      (*x)[static_cast<size_t>(t * stride + i)] = narrowed(v, dtype);
    }
  }
  return x;
}

// How many of six orders of the warps notice a fault: by a wrong answer, or by ending the process,
// which a wild address does.
template <class Try>
int noticed_by(const Try& attempt) {
  int count = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const auto ended = [&](int status) {
      count += status != 0;
      return true;
    };
    EXPECT_EXIT(std::_Exit(attempt(seed).empty() ? 0 : 1), ended, "");
  }
  return count;
}

// ---- sparse_input

struct InputCase {
  DType dtype;
  int64_t m, n, k;
  float threshold;
  int32_t sms = 132;
  bool bias = false;
};

template <DType kType>
std::string run_input(const SparseInputParams& p, const sim::Launch& launch) {
  return sim::launch(launch, [&] { sparse_input<kType>(p); });
}

// What is wrong with the answer; empty if nothing.
std::string try_input(const InputCase& c, uint64_t seed, const sim::Faults& faults = {}) {
  std::mt19937_64 random(seed * 7919 + static_cast<uint64_t>(c.m * 31 + c.n + c.k));
  const int64_t x_stride = c.k + 3, y_stride = c.n + 5;
  const auto x = tokens(c.m, c.k, x_stride, c.dtype, &random, false);
  Weights w(c.k, c.n, c.dtype, &random, false), bias(1, c.n, c.dtype, &random, false);
  Guarded<float> threshold(static_cast<size_t>(c.k));
  for (float& t : threshold.span())
    t = c.threshold * (0.8f + 0.1f * static_cast<float>(random() % 5));
  const uint16_t kUntouched = narrowed(77.0f, c.dtype);
  Guarded<uint16_t> y(static_cast<size_t>((c.m - 1) * y_stride + c.n));
  std::fill(y.span().begin(), y.span().end(), kUntouched);
  const SparseInputArgs args{.dtype = c.dtype,
                             .m = c.m,
                             .n = c.n,
                             .k = c.k,
                             .x = x->data(),
                             .x_stride = x_stride,
                             .w = w.data(),
                             .threshold = threshold.data(),
                             .bias = c.bias ? bias.data() : nullptr,
                             .y = y.data(),
                             .y_stride = y_stride};
  CudaDevice device = kH100;
  device.sms = c.sms;
  int64_t bytes = 0;
  if (const Status status = sparse_input_workspace(args, device, &bytes); !status.ok()) {
    return status.text;
  }
  std::vector<Eight> workspace(static_cast<size_t>(ceil_div(bytes, 16)));
  auto* floats = reinterpret_cast<float*>(workspace.data());
  std::fill(floats + kWorkspaceTickets, floats + bytes / 4, kNan);
  for (int64_t first = 0; first < c.m; first += kCudaTokens) {
    const SparseInputParams p = sparse_input_params(args, first, workspace.data(), device);
    const sim::Launch launch{.grid = {static_cast<uint32_t>(ceil_div(c.n, kRowSumColumns)),
                                      static_cast<uint32_t>(p.sum.splits)},
                             .block = {kRowSumThreads},
                             .shared_bytes = static_cast<size_t>(input_shared(p.groups, p.sum.m)),
                             .seed = seed,
                             .faults = faults};
    const std::string wrong = c.dtype == DType::bf16 ? run_input<DType::bf16>(p, launch)
                                                     : run_input<DType::f16>(p, launch);
    if (!wrong.empty()) return wrong;
  }
  const auto* tickets = reinterpret_cast<const uint32_t*>(workspace.data());
  if (std::any_of(tickets, tickets + kWorkspaceTickets, [](uint32_t t) { return t != 0; })) {
    return "a ticket is left";
  }
  std::vector<double> wanted(static_cast<size_t>(c.m * c.n));
  if (!sparse_input_reference(args, wanted.data()).ok()) return "no reference";
  for (int64_t t = 0; t < c.m; ++t) {
    for (int64_t i = 0; i < c.n; ++i) {
      double size = 1;
      for (int64_t j = 0; j < c.k; ++j) {
        size += std::fabs(widened((*x)[static_cast<size_t>(t * x_stride + j)], c.dtype) *
                          widened(w.data()[j * c.n + i], c.dtype));
      }
      const double want = wanted[static_cast<size_t>(t * c.n + i)];
      const double got = widened(y[static_cast<size_t>(t * y_stride + i)], c.dtype);
      if (!(std::fabs(got - want) <= 0x1p-22 * size + unit(c.dtype) * std::fabs(want))) {
        return "token " + std::to_string(t) + ", output " + std::to_string(i) + ": got " +
               std::to_string(got) + ", wanted " + std::to_string(want);
      }
    }
    for (int64_t i = c.n; t + 1 < c.m && i < y_stride; ++i) {
      if (y[static_cast<size_t>(t * y_stride + i)] != kUntouched) return "wrote between the rows";
    }
  }
  return {};
}

TEST(SparseInput, AddsUpTheRowsThatCount) {
  uint64_t seed = 300;
  for (const SparseInputCudaRow& row : sparse_input_cuda_kernels()) {
    for (const float threshold : {0.0f, 0.7f, 1.6f, kInfinity}) {
      for (const InputCase& c : {InputCase{row.dtype, 1, 8, 1, threshold, 1},
                                 InputCase{row.dtype, 1, 128, 600, threshold, 132, true},
                                 InputCase{row.dtype, 3, 200, 333, threshold, 2},
                                 InputCase{row.dtype, 8, 264, 500, threshold, 4, true},
                                 InputCase{row.dtype, 11, 72, 64, threshold, 132}}) {
        EXPECT_EQ(try_input(c, ++seed), "")
            << row.name << " m " << c.m << " n " << c.n << " k " << c.k << " t " << threshold;
      }
    }
  }
}

TEST(SparseInput, ListsMoreThanFitsInOneBlock) {
  const InputCase c{DType::bf16, 8, 8, 9000, 2.5f, 1};
  EXPECT_GT(input_splits({.dtype = c.dtype, .m = c.m, .n = c.n, .k = c.k}, 8,
                         {.sms = 1, .shared_per_block = 232448}),
            1);
  EXPECT_EQ(try_input(c, 5), "");
}

TEST(SparseInput, NoticesMissingBarriers) {
  const InputCase c{DType::bf16, 3, 136, 3000, 0.7f, 2};
  ASSERT_EQ(try_input(c, 1), "");
  // After the words, after the places, after the list, before sums overwrite it, before they are
  // read.
  for (int barrier = 0; barrier < 5; ++barrier) {
    const auto attempt = [&](uint64_t seed) { return try_input(c, seed, {.barrier = barrier}); };
    EXPECT_GT(noticed_by(attempt), 0) << barrier;
  }
  EXPECT_NE(try_input(c, 1, {.barrier = 5}), "") << "before the ticket";
  EXPECT_NE(try_input(c, 1, {.fence = 0}), "") << "between parts and ticket";
}

TEST(SparseInput, RefusesWhatHasNoKernel) {
  int64_t bytes = 0;
  SparseInputArgs args{.dtype = DType::bf16, .m = 1, .n = 12, .k = 4};
  EXPECT_EQ(sparse_input_workspace(args, kH100, &bytes).code, Code::no_kernel);
  args.n = 8;
  args.w = reinterpret_cast<const void*>(8);
  EXPECT_EQ(sparse_input_workspace(args, kH100, &bytes).code, Code::no_kernel);
  args.w = nullptr;
  EXPECT_EQ(sparse_input_workspace(args, kH100, &bytes).code, Code::invalid_argument);
  args.dtype = DType::f32;
  EXPECT_EQ(sparse_input_workspace(args, kH100, &bytes).code, Code::unsupported_dtype);
}

// ---- sparse_mlp

struct MlpCase {
  DType dtype;
  int64_t m, k, n, d;
  float threshold;
  Activation activation = Activation::silu;
  int32_t sms = 132;
  bool aligned = false;
};

template <DType kType>
std::string run_mlp(const SparseMlpArgs& args, const MlpPlan& plan, int64_t first, void* workspace,
                    uint64_t seed, const sim::Faults (&faults)[3]) {
  const MlpParams p = mlp_params(args, plan, first, workspace);
  sim::Launch launch{.grid = {static_cast<uint32_t>(plan.blocks)},
                     .block = {kDotThreads},
                     .shared_bytes = static_cast<size_t>(plan.gate_shared),
                     .seed = seed,
                     .faults = faults[0]};
  if (plan.pass) {
    launch.shared_bytes = static_cast<size_t>(plan.up_shared);
    const std::string bad = sim::launch(launch, [&] {
      args.d <= kPassColumns       ? mlp_pass<kType, 1>(p)
      : args.d <= 2 * kPassColumns ? mlp_pass<kType, 2>(p)
                                   : mlp_pass<kType, 4>(p);
    });
    if (!bad.empty()) return bad;
    launch.grid = {static_cast<uint32_t>(ceil_div(args.d, 32))};
    launch.shared_bytes = 128 * kDotWarps;
    launch.faults = faults[1];
    return sim::launch(launch, [&] { mlp_pass_sum<kType>(p); });
  }
  std::string wrong = sim::launch(launch, [&] { mlp_gate<kType>(p); });
  if (!wrong.empty()) return wrong;
  launch.shared_bytes = static_cast<size_t>(plan.up_shared);
  launch.faults = faults[1];
  wrong = sim::launch(launch, [&] { mlp_up<kType>(p); });
  if (!wrong.empty()) return wrong;
  const DownParams down{mlp_down_params(args, plan, first, workspace), p.total, p.listed,
                        p.factors};
  launch.grid = {static_cast<uint32_t>(ceil_div(args.d, kRowSumColumns)),
                 static_cast<uint32_t>(plan.splits)};
  launch.shared_bytes = static_cast<size_t>(plan.down_shared);
  launch.faults = faults[2];
  return sim::launch(launch, [&] { mlp_down<kType>(down); });
}

// Small integers, so that sums are exact and no activation lies near a threshold: kernel and
// reference must choose the same neurons.
std::string try_mlp(const MlpCase& c, uint64_t seed, const sim::Faults& gate = {},
                    const sim::Faults& up = {}, const sim::Faults& down = {}) {
  std::mt19937_64 random(seed * 7919 + static_cast<uint64_t>(c.m * 31 + c.n + c.k));
  const int64_t x_stride = c.aligned ? c.k + 8 : c.k + 3, y_stride = c.d + 5;
  const auto x = tokens(c.m, c.k, x_stride, c.dtype, &random, true);
  Weights w_gate(c.n, c.k, c.dtype, &random, true), w_up(c.n, c.k, c.dtype, &random, true);
  Weights w_down(c.n, c.d, c.dtype, &random, false);
  Guarded<float> threshold(static_cast<size_t>(c.n));
  for (size_t j = 0; j < threshold.size(); ++j) {
    threshold[j] = c.threshold == 0 ? 0 : c.threshold + 0.53f + 0.5f * static_cast<float>(j % 3);
  }
  const uint16_t kUntouched = narrowed(77.0f, c.dtype);
  Guarded<uint16_t> y(static_cast<size_t>((c.m - 1) * y_stride + c.d));
  std::fill(y.span().begin(), y.span().end(), kUntouched);
  const SparseMlpArgs args{.dtype = c.dtype,
                           .m = c.m,
                           .k = c.k,
                           .n = c.n,
                           .d = c.d,
                           .x = x->data(),
                           .x_stride = x_stride,
                           .gate = w_gate.data(),
                           .up = w_up.data(),
                           .down = w_down.data(),
                           .threshold = threshold.data(),
                           .activation = c.activation,
                           .y = y.data(),
                           .y_stride = y_stride};
  CudaDevice device = kH100;
  device.sms = c.sms;
  MlpPlan plan;
  if (const Status status = plan_mlp(args, device, &plan); !status.ok()) return status.text;
  std::vector<Eight> workspace(static_cast<size_t>(ceil_div(plan.workspace_bytes, 16)));
  auto* floats = reinterpret_cast<float*>(workspace.data());
  std::fill(floats + kWorkspaceTickets, floats + plan.workspace_bytes / 4, kNan);
  const sim::Faults faults[3] = {gate, up, down};
  for (int64_t first = 0; first < c.m; first += plan.tokens) {
    const std::string wrong =
        c.dtype == DType::bf16
            ? run_mlp<DType::bf16>(args, plan, first, workspace.data(), seed, faults)
            : run_mlp<DType::f16>(args, plan, first, workspace.data(), seed, faults);
    if (!wrong.empty()) return wrong;
  }
  std::vector<double> wanted(static_cast<size_t>(c.m * c.d)),
      margin(static_cast<size_t>(c.m * c.n));
  if (!sparse_mlp_reference(args, wanted.data(), margin.data()).ok()) return "no reference";
  for (const double v : margin) {
    if (c.threshold > 0 && std::fabs(v) < 1e-4) return "an activation lies near a threshold";
  }
  const double size = static_cast<double>(c.n) * 16.0 * static_cast<double>(c.k * c.k);
  for (int64_t t = 0; t < c.m; ++t) {
    for (int64_t i = 0; i < c.d; ++i) {
      const double want = wanted[static_cast<size_t>(t * c.d + i)];
      const double got = widened(y[static_cast<size_t>(t * y_stride + i)], c.dtype);
      if (!(std::fabs(got - want) <= 3e-7 * size + unit(c.dtype) * std::fabs(want))) {
        return "token " + std::to_string(t) + ", output " + std::to_string(i) + ": got " +
               std::to_string(got) + ", wanted " + std::to_string(want);
      }
    }
    for (int64_t i = c.d; t + 1 < c.m && i < y_stride; ++i) {
      if (y[static_cast<size_t>(t * y_stride + i)] != kUntouched) return "wrote between the rows";
    }
  }
  return {};
}

TEST(SparseMlp, MatchesTheReference) {
  uint64_t seed = 500;
  constexpr Activation kTurns[] = {Activation::silu, Activation::relu, Activation::gelu_tanh,
                                   Activation::gelu, Activation::none};
  for (const SparseMlpCudaRow& row : sparse_mlp_cuda_kernels()) {
    for (const float threshold : {0.0f, 2.0f, 9.0f, kInfinity}) {
      for (const MlpCase& shape : {MlpCase{row.dtype, 1, 8, 1, 8, threshold},
                                   MlpCase{row.dtype, 1, 24, 300, 136, threshold},
                                   MlpCase{row.dtype, 2, 72, 150, 64, threshold},
                                   MlpCase{row.dtype, 8, 40, 90, 256, threshold},
                                   MlpCase{row.dtype, 5, 16, 33, 40, threshold},
                                   MlpCase{row.dtype, 1, 72, 40, 4104, threshold},
                                   MlpCase{row.dtype, 1, 16, 300, 2056, threshold},
                                   MlpCase{row.dtype, 9, 64, 40, 128, threshold}}) {
        MlpCase c = shape;
        c.activation = kTurns[++seed % 5];
        c.sms = static_cast<int32_t>(1 + seed % 4);
        c.aligned = seed % 2 == 0;
        EXPECT_EQ(try_mlp(c, seed), "") << row.name << " m " << c.m << " k " << c.k << " n " << c.n
                                        << " d " << c.d << " t " << threshold;
      }
    }
  }
}

TEST(SparseMlp, TakesMoreInputsThanOneTurnOfTheStages) {
  EXPECT_EQ(try_mlp({DType::bf16, 2, 2600, 50, 8, 9.0f, Activation::relu, 1, true}, 3), "");
  EXPECT_EQ(try_mlp({DType::f16, 3, 520, 70, 16, 5.0f, Activation::relu, 1, false}, 4), "");
}

TEST(SparseMlp, NoticesMissingBarriersAndWaits) {
  const MlpCase c{DType::bf16, 3, 1040, 200, 136, 6.0f, Activation::relu, 1, true};
  ASSERT_EQ(try_mlp(c, 1), "");
  const auto noticed = [&](const sim::Faults& gate, const sim::Faults& up,
                           const sim::Faults& down) {
    return noticed_by([&](uint64_t seed) { return try_mlp(c, seed, gate, up, down); });
  };
  EXPECT_EQ(noticed({.wait = 0}, {}, {}), 6) << "gate: x";
  EXPECT_EQ(noticed({}, {.wait = 0}, {}), 6) << "up: x";
  for (int barrier = 0; barrier < 4; ++barrier) {  // x is there, sums of tiles 0, 1, 2
    EXPECT_GT(noticed({.barrier = barrier}, {}, {}), 0) << "gate " << barrier;
  }
  for (int barrier = 1; barrier < 5; ++barrier) {  // starts, list, x, sums of tile 0
    EXPECT_GT(noticed({}, {.barrier = barrier}, {}), 0) << "up " << barrier;
  }
  const MlpCase blocks{DType::bf16, 1, 8, 1100, 8, 3.0f, Activation::relu, 40, true};
  ASSERT_EQ(try_mlp(blocks, 1), "");
  EXPECT_GT(noticed_by([&](uint64_t seed) { return try_mlp(blocks, seed, {}, {.barrier = 0}); }), 0)
      << "up: counts of other warps";
  EXPECT_GT(noticed({}, {}, {.barrier = 1}), 0) << "down: sums of the warps";
  // One token: a block's 32 neurons in one pass, of which a tile counts.
  const MlpCase one{DType::bf16, 1, 1040, 64, 136, 6.0f, Activation::relu, 1, true};
  ASSERT_EQ(try_mlp(one, 1), "");
  const auto noticed_in_pass = [&](const sim::Faults& pass, const sim::Faults& sum) {
    return noticed_by([&](uint64_t seed) { return try_mlp(one, seed, pass, sum); });
  };
  EXPECT_EQ(noticed_in_pass({.wait = 0}, {}), 6) << "pass: x";
  // x, sums of two tiles, the list; then sums of a tile or two of up, their factors.
  for (const int barrier : {0, 1, 2, 3, 5, 6}) {
    EXPECT_GT(noticed_in_pass({.barrier = barrier}, {}), 0) << "pass " << barrier;
  }
  EXPECT_GT(noticed_in_pass({}, {.barrier = 0}), 0) << "sums of the warps";
}

TEST(SparseMlp, RefusesWhatHasNoKernel) {
  MlpPlan plan;
  SparseMlpArgs args{.dtype = DType::bf16, .m = 0, .k = 12, .n = 4, .d = 8};
  EXPECT_EQ(plan_mlp(args, kH100, &plan).code, Code::no_kernel);
  args.k = 8;
  EXPECT_TRUE(plan_mlp(args, kH100, &plan).ok());
  args.m = 1;
  EXPECT_EQ(plan_mlp(args, kH100, &plan).code, Code::invalid_argument);
  args.up = reinterpret_cast<const void*>(8);
  EXPECT_EQ(plan_mlp(args, kH100, &plan).code, Code::no_kernel);
  args.dtype = DType::f32;
  EXPECT_EQ(plan_mlp(args, kH100, &plan).code, Code::unsupported_dtype);
  EXPECT_EQ(plan_mlp({.dtype = DType::bf16, .k = 1 << 20, .n = 8, .d = 8}, kH100, &plan).code,
            Code::no_kernel);
}

}  // namespace
}  // namespace tamis::test

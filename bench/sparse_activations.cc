// Google Benchmark over every row of sparse_input's and sparse_mlp's kernels.def that runs here.
//
//   bench_sparse_activations --benchmark_filter='sparse_input_bf16_avx512/4096x4096'
//
// Names are <kernel>/<inputs>x<outputs>/<percent left out>, bf16 or f32, one token, one thread;
// `read` is what had to be read a second. Copies of the weights take turns over 600 MB, so none
// comes from a cache.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "ops/sparse_input/sparse_input.h"
#include "ops/sparse_mlp/sparse_mlp.h"

namespace {

using namespace tamis;

constexpr int64_t kCold = 600 << 20;
constexpr int64_t kShapes[][2] = {{4096, 4096}, {4096, 14336}, {14336, 4096}, {576, 1536}};
constexpr int kLeftOut[] = {0, 50, 70, 90};

size_t size(int64_t n) {
  return static_cast<size_t>(n);
}

// Copies of bytes 0x3c, numbers of about 0.01 or 1.
struct Copies {
  int64_t bytes, count;
  std::vector<uint8_t> data;
  int64_t turn = 0;

  explicit Copies(int64_t one)
      : bytes(one), count(std::max<int64_t>(2, kCold / one)), data(size(count * one), 0x3c) {}
  const void* next() { return &data[size(turn++ % count * bytes)]; }
};

// 0 for those of n that count, above everything for `left_out` percent of them.
std::vector<float> thresholds(int64_t n, int left_out) {
  std::vector<float> found(size(n));
  for (int64_t i = 0; i < n; ++i) found[size(i)] = i * 37 % 100 < left_out ? INFINITY : 0.0f;
  return found;
}

void time_input(benchmark::State& state, const SparseInputRow& row, int64_t k, int64_t n,
                int left_out) {
  const int64_t bytes = size_of(row.dtype);
  Copies w(n * k * bytes);
  const std::vector<uint8_t> x(size(k * bytes), 0x3c);
  const std::vector<float> threshold = thresholds(k, left_out);
  std::vector<uint8_t> y(size(n * bytes));
  int64_t kept = 0;
  for (auto _ : state) {
    if (!sparse_input_with(row, {.dtype = row.dtype,
                                 .m = 1,
                                 .n = n,
                                 .k = k,
                                 .x = x.data(),
                                 .x_stride = k,
                                 .w = w.next(),
                                 .threshold = threshold.data(),
                                 .y = y.data(),
                                 .y_stride = n,
                                 .kept = &kept})
             .ok()) {
      std::abort();
    }
    benchmark::DoNotOptimize(y.data());
  }
  state.counters["read"] = benchmark::Counter(static_cast<double>(kept * n * bytes),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

void time_mlp(benchmark::State& state, const SparseMlpRow& row, int64_t k, int64_t n,
              int left_out) {
  const int64_t bytes = size_of(row.dtype), matrix = n * k * bytes;
  Copies w(3 * matrix);
  const std::vector<uint8_t> x(size(k * bytes), 0x3c);
  const std::vector<float> threshold = thresholds(n, left_out);
  std::vector<uint8_t> y(size(k * bytes));
  int64_t kept = 0;
  for (auto _ : state) {
    const auto* gate = static_cast<const uint8_t*>(w.next());
    if (!sparse_mlp_with(row, {.dtype = row.dtype,
                               .m = 1,
                               .k = k,
                               .n = n,
                               .d = k,
                               .x = x.data(),
                               .x_stride = k,
                               .gate = gate,
                               .up = gate + matrix,
                               .down = gate + 2 * matrix,
                               .threshold = threshold.data(),
                               .y = y.data(),
                               .y_stride = k,
                               .kept = &kept})
             .ok()) {
      std::abort();
    }
    benchmark::DoNotOptimize(y.data());
  }
  state.counters["read"] = benchmark::Counter(static_cast<double>((n + 2 * kept) * k * bytes),
                                              benchmark::Counter::kIsIterationInvariantRate);
}

template <class Row>
void add(const Row& row, void (*time)(benchmark::State&, const Row&, int64_t, int64_t, int)) {
  if ((row.isa & host_isa()) != row.isa) return;
  for (const auto& [k, n] : kShapes) {
    for (const int left_out : kLeftOut) {
      const std::string name = std::string(row.name) + "/" + std::to_string(k) + "x" +
                               std::to_string(n) + "/" + std::to_string(left_out);
      benchmark::RegisterBenchmark(name.c_str(), [=, k = k, n = n](benchmark::State& state) {
        time(state, row, k, n, left_out);
      })->UseRealTime();
    }
  }
}

}  // namespace

int main(int count, char** argument) {
  benchmark::Initialize(&count, argument);
  set_num_threads(1);
  for (const SparseInputRow& row : sparse_input_kernels()) add(row, time_input);
  for (const SparseMlpRow& row : sparse_mlp_kernels()) add(row, time_mlp);
  benchmark::RunSpecifiedBenchmarks();
}

// Times every row of kernels.def on this host: GB/s of the stored bytes and their share of what a
// plain read reaches.
//
//   bench_spmm --benchmark_filter='bf16_bf16.*4096x4096.*s50/m1/t1'
//
// Weights are cold: each call takes the next of enough copies to fill kColdBytes, so nothing comes
// from a cache. A short read in four streams on one thread after each call gives the limit in the
// same run, times the threads; both are the 20th percentile, which ignores slices lost to other
// processes.
#include "ops/spmm/spmm.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "base/stream.h"
#include "format/format.h"

namespace tamis {
namespace {

constexpr int64_t kColdBytes = 320 << 20;
constexpr int64_t kStreamBytes = 256 << 20;

struct Shape {
  int64_t n, k;
};
// SmolLM2-135M, then Llama.
constexpr Shape kShapes[] = {{192, 576},   {576, 576},    {1536, 576},   {576, 1536},  {1024, 4096},
                             {4096, 4096}, {11008, 4096}, {14336, 4096}, {4096, 14336}};
constexpr int kSparsities[] = {50, 70, 80, 90};
constexpr int kTokens[] = {1, 2, 4, 8, 16, 64, 256};

// One packed matrix; pointers move with the copy.
struct Matrix {
  std::vector<uint8_t> values;
  std::vector<uint64_t> mask;
  std::vector<int64_t> row_offsets;
  std::vector<int32_t> col_indices;
  std::vector<uint8_t> col_bytes;
  std::vector<float> scales;
  std::vector<uint16_t> group_scales;
  MatrixView view;

  void point() {
    view.values = values.data();
    view.mask = mask.data();
    view.row_offsets = row_offsets.data();
    view.col_indices = col_indices.data();
    view.col_bytes = col_bytes.data();
    view.scales = scales.data();
    view.group_scales = group_scales.data();
  }
  int64_t bytes() const {
    return static_cast<int64_t>(values.size() + mask.size() * 8 + row_offsets.size() * 8 +
                                col_indices.size() * 4 + col_bytes.size() + scales.size() * 4 +
                                group_scales.size() * 2);
  }
};

PackSpec spec_of(const SpmmRow& row, int sparsity) {
  PackSpec spec{.format = row.format, .dtype = row.w_dtype};
  if (row.format == Format::nm)
    spec.keep = sparsity == 50 ? 16 : sparsity == 70 ? 10 : sparsity == 80 ? 6 : 3;
  if (row.format == Format::nm) spec.of = 32;
  if (row.format == Format::block) spec.block_rows = spec.block_cols = 16;
  if (row.format == Format::groupq) spec.group_size = 16;
  return spec;
}

// A random pattern of 512 rows, repeated: drawing all of them would take longer than measuring.
// (Fewer lie a multiple of 4 KB apart, so that equal rows fight for the sets of caches.)
Matrix make_matrix(const SpmmRow& row, Shape shape, int sparsity) {
  const PackSpec spec = spec_of(row, sparsity);
  std::mt19937_64 random(1);
  const auto size = static_cast<size_t>(shape.n * shape.k);
  const int64_t drawn = std::min<int64_t>(shape.n, 512);
  std::vector<uint8_t> keep(size);
  for (int64_t i = 0; i < drawn * shape.k; ++i) {
    keep[static_cast<size_t>(i)] = static_cast<int>(random() % 100) >= sparsity;
  }
  if (spec.format == Format::block) {  // whole blocks
    for (int64_t i = 0; i < drawn * shape.k; ++i) {
      keep[static_cast<size_t>(i)] = keep[static_cast<size_t>(i % shape.k / 16 * 16)];
    }
  }
  if (spec.format == Format::groupq) {
    for (int64_t i = 0; i < drawn * shape.k; ++i) {
      keep[static_cast<size_t>(i)] = keep[static_cast<size_t>(i / 16 * 16)];
    }
  }
  if (spec.format == Format::nm) {
    for (int64_t g = 0; g < drawn * shape.k; g += spec.of) {
      for (int i = 0; i < spec.of; ++i) keep[static_cast<size_t>(g + i)] = i < spec.keep;
      std::shuffle(&keep[static_cast<size_t>(g)], &keep[static_cast<size_t>(g)] + spec.of, random);
    }
  }
  for (int64_t r = drawn; r < shape.n; ++r) {
    std::memcpy(&keep[static_cast<size_t>(r * shape.k)],
                &keep[static_cast<size_t>(r % drawn * shape.k)], static_cast<size_t>(shape.k));
  }
  const DType source = is_float(spec.dtype) ? spec.dtype : DType::f32;
  std::vector<uint8_t> dense(size * static_cast<size_t>(size_of(source)), 0x3c);
  const DenseView view{.data = dense.data(),
                       .dtype = source,
                       .rows = shape.n,
                       .cols = shape.k,
                       .stride = shape.k,
                       .keep = keep.data()};
  PackSizes sizes;
  Matrix m;
  if (!pack_sizes(view, spec, &sizes).ok()) std::abort();
  m.values.resize(static_cast<size_t>(sizes.values * size_of(spec.dtype)));
  m.mask.resize(static_cast<size_t>(sizes.mask));
  m.row_offsets.resize(static_cast<size_t>(sizes.row_offsets));
  m.col_indices.resize(static_cast<size_t>(sizes.col_indices));
  m.col_bytes.resize(static_cast<size_t>(sizes.col_bytes));
  m.scales.resize(static_cast<size_t>(sizes.scales));
  m.group_scales.resize(static_cast<size_t>(sizes.group_scales));
  m.point();
  if (!pack(view, spec,
            {.values = m.values.data(),
             .mask = m.mask.data(),
             .row_offsets = m.row_offsets.data(),
             .col_indices = m.col_indices.data(),
             .col_bytes = m.col_bytes.data(),
             .scales = m.scales.data(),
             .group_scales = m.group_scales.data()})
           .ok()) {
    std::abort();
  }
  m.view = {.format = spec.format,
            .rows = shape.n,
            .cols = shape.k,
            .dtype = spec.dtype,
            .nnz = spec.dtype == DType::u4 ? 2 * sizes.values : sizes.values,
            .keep = spec.keep,
            .of = spec.of,
            .block_rows = spec.block_rows,
            .block_cols = spec.block_cols,
            .group_size = spec.group_size ? spec.group_size : shape.k};
  m.point();
  return m;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double low(std::vector<double>& seconds) {
  const auto at = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 5);
  std::nth_element(seconds.begin(), at, seconds.end());
  return *at;
}

// Seconds per byte of a plain read on one thread, from the next 4 MiB of a large buffer.
double read_some() {
  constexpr int64_t kPart = 4 << 20;
  static const std::vector<uint64_t> buffer(kStreamBytes / 8, 1);
  static int64_t at = 0;
  const uint64_t* p = &buffer[static_cast<size_t>(at / 8)];
  at = (at + kPart) % kStreamBytes;
  return 1 / stream_read_bytes_per_second(p, kPart, 1, 1);
}

void run(benchmark::State& state, const SpmmRow* row, Shape shape, int sparsity, int tokens,
         int threads) {
  std::vector<Matrix> copies;
  copies.push_back(make_matrix(*row, shape, sparsity));
  const int64_t bytes = copies[0].bytes();
  while (static_cast<int64_t>(copies.size()) * bytes < kColdBytes) {
    copies.push_back(copies[0]);
    copies.back().point();
  }
  const std::unique_ptr<void, void (*)(void*)> x(
      std::aligned_alloc(64, static_cast<size_t>(ceil_div(tokens * shape.k * 4, 64) * 64)),
      std::free);
  std::memset(x.get(), 0, static_cast<size_t>(tokens * shape.k * 4));
  std::vector<float> y(static_cast<size_t>(tokens * shape.n));

  set_num_threads(threads);
  std::vector<double> seconds, per_byte;
  size_t next = 0;
  for (auto _ : state) {
    const SpmmArgs args{.w = copies[next].view,
                        .x_dtype = row->x_dtype,
                        .m = tokens,
                        .x = x.get(),
                        .x_stride = shape.k,
                        .y = y.data(),
                        .y_stride = shape.n};
    next = (next + 1) % copies.size();
    const double start = now();
    if (!spmm_with(*row, args).ok()) state.SkipWithError("spmm failed");
    seconds.push_back(now() - start);
    state.SetIterationTime(seconds.back());
    per_byte.push_back(read_some());
  }
  set_num_threads(0);
  const double rate = static_cast<double>(bytes) / low(seconds);
  state.counters["GB/s"] = rate / 1e9;
  state.counters["us"] = low(seconds) * 1e6;
  state.counters["%read"] = 100 * rate * low(per_byte) / threads;
}

void register_all() {
  for (const SpmmRow& row : spmm_kernels()) {
    if ((row.isa & host_isa()) != row.isa) continue;
    for (const Shape& shape : kShapes) {
      for (const int sparsity : kSparsities) {
        for (const int tokens : kTokens) {
          for (const int threads : {1, 2}) {
            const std::string name = std::string(row.name) + "/" + std::to_string(shape.n) + "x" +
                                     std::to_string(shape.k) + "/s" + std::to_string(sparsity) +
                                     "/m" + std::to_string(tokens) + "/t" + std::to_string(threads);
            benchmark::RegisterBenchmark(name.c_str(), run, &row, shape, sparsity, tokens, threads)
                ->UseManualTime()
                ->Unit(benchmark::kMicrosecond);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis

int main(int argc, char** argv) {
  tamis::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

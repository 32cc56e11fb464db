// Times every row of conv2d/kernels.def on this host, on 1x1 and depthwise layers of MobileNet-v1:
// products a second, zeros left out.
//
//   bench_conv2d --benchmark_filter='256x256.*(g1/s90|g8/s0)'
//
// g8/s0, blocks of 8 x 1 with every one stored, is a dense product in the same layout: eight
// outputs times a strip of pixels held in registers. One thread; a layer stays in cache.
#include "ops/conv2d/conv2d.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "format/format.h"

namespace tamis {
namespace {

struct Layer {
  int64_t out, channels, side;
};
constexpr Layer kLayers[] = {
    {128, 64, 56}, {256, 128, 28}, {256, 256, 28}, {512, 512, 14}, {1024, 1024, 7}};
constexpr int kSparsities[] = {0, 30, 50, 70, 80, 90, 95};
constexpr int kHeights[] = {1, 2, 4, 8, 16};

void time_layer(benchmark::State& state, const Conv2dRow& row, const Layer& layer, int height,
                int sparsity) {
  std::mt19937 random(1);
  std::vector<float> dense(static_cast<size_t>(layer.out * layer.channels));
  for (int64_t block = 0; block < layer.out / height; ++block) {
    std::vector<int64_t> columns(static_cast<size_t>(layer.channels));
    for (size_t k = 0; k < columns.size(); ++k) columns[k] = static_cast<int64_t>(k);
    std::shuffle(columns.begin(), columns.end(), random);
    columns.resize(columns.size() * static_cast<size_t>(100 - sparsity) / 100);
    for (const int64_t k : columns) {
      for (int64_t r = 0; r < height; ++r) {
        dense[static_cast<size_t>((block * height + r) * layer.channels + k)] = 0.5f;
      }
    }
  }
  const DenseView view{
      .data = dense.data(), .rows = layer.out, .cols = layer.channels, .stride = layer.channels};
  PackSpec spec{.format = Format::csr};
  if (row.weight == Conv2dWeight::block) {
    spec = {.format = Format::block, .block_rows = height, .block_cols = 1};
  }
  PackSizes sizes;
  if (!pack_sizes(view, spec, &sizes).ok()) std::abort();
  std::vector<float> values(static_cast<size_t>(sizes.values));
  std::vector<int64_t> offsets(static_cast<size_t>(sizes.row_offsets));
  std::vector<int32_t> columns(static_cast<size_t>(sizes.col_indices));
  const PackBuffers buffers{
      .values = values.data(), .row_offsets = offsets.data(), .col_indices = columns.data()};
  if (!pack(view, spec, buffers).ok()) std::abort();

  const int64_t pixels = layer.side * layer.side;
  std::vector<float> x(static_cast<size_t>(layer.channels * pixels), 0.25f);
  std::vector<float> y(static_cast<size_t>(layer.out * pixels));
  const Conv2dArgs args{
      .shape = {.images = 1, .channels = layer.channels, .height = layer.side, .width = layer.side},
      .w = {.format = spec.format,
            .rows = layer.out,
            .cols = layer.channels,
            .values = values.data(),
            .nnz = sizes.values,
            .row_offsets = offsets.data(),
            .col_indices = columns.data(),
            .block_rows = spec.block_rows,
            .block_cols = spec.block_cols},
      .x = x.data(),
      .x_channel_stride = pixels,
      .x_row_stride = layer.side,
      .y = y.data(),
      .low = 0,
      .high = 6};
  set_num_threads(1);
  for (auto _ : state) {
    if (!conv2d_with(row, args).ok()) std::abort();
    benchmark::DoNotOptimize(y.data());
  }
  state.counters["products/s"] = benchmark::Counter(static_cast<double>(sizes.values * pixels),
                                                    benchmark::Counter::kIsIterationInvariantRate);
}

// Depthwise 3x3: channels, side of x, stride.
constexpr int64_t kDepthwise[][3] = {{32, 112, 1}, {64, 112, 2}, {128, 56, 1}, {128, 56, 2},
                                     {256, 28, 1}, {512, 14, 1}, {512, 14, 2}, {1024, 7, 1}};

void time_depthwise(benchmark::State& state, const Conv2dRow& row, int64_t channels, int64_t side,
                    int64_t stride) {
  const int64_t pixels = side * side;
  std::vector<float> taps(static_cast<size_t>(channels * 9), 0.5f);
  std::vector<float> x(static_cast<size_t>(channels * pixels), 0.25f), y(x.size());
  const Conv2dArgs args{.shape = {.images = 1,
                                  .channels = channels,
                                  .height = side,
                                  .width = side,
                                  .kernel_h = 3,
                                  .kernel_w = 3,
                                  .stride_h = stride,
                                  .stride_w = stride,
                                  .pad_h = 1,
                                  .pad_w = 1},
                        .depthwise = taps.data(),
                        .x = x.data(),
                        .x_channel_stride = pixels,
                        .x_row_stride = side,
                        .y = y.data()};
  set_num_threads(1);
  for (auto _ : state) {
    if (!conv2d_with(row, args).ok()) std::abort();
    benchmark::DoNotOptimize(y.data());
  }
  state.counters["products/s"] =
      benchmark::Counter(static_cast<double>(channels * 9 * pixels / stride / stride),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void add_depthwise(const Conv2dRow& row) {
  for (const auto& [channels, side, stride] : kDepthwise) {
    const std::string name = std::string(row.name) + "/" + std::to_string(channels) + "x" +
                             std::to_string(side) + "/stride" + std::to_string(stride);
    benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
      time_depthwise(state, row, channels, side, stride);
    });
  }
}

void add_all() {
  for (const Conv2dRow& row : conv2d_kernels()) {
    if ((row.isa & host_isa()) != row.isa) continue;
    if (row.weight == Conv2dWeight::depthwise) {
      add_depthwise(row);
      continue;
    }
    for (const Layer& layer : kLayers) {
      for (const int height : kHeights) {
        if ((row.weight == Conv2dWeight::csr) != (height == 1)) continue;
        for (const int sparsity : kSparsities) {
          const std::string name = std::string(row.name) + "/" + std::to_string(layer.out) + "x" +
                                   std::to_string(layer.channels) + "x" +
                                   std::to_string(layer.side) + "/g" + std::to_string(height) +
                                   "/s" + std::to_string(sparsity);
          benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
            time_layer(state, row, layer, height, sparsity);
          });
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis

int main(int argc, char** argv) {
  tamis::add_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

// One call of one spmm kernel on a matrix whose kept weights are known, for bench/arm_cost.py,
// which counts the instructions that it runs under qemu.
//
//   arm_count spmm_nm_f32_f32_neon M N K KEEP OF     nm: KEEP of each OF columns
//   arm_count spmm_block_f32_f32_neon_skip M N K KEEP OF   blocks of 4 x 4: KEEP of each OF columns
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "format/format.h"
#include "ops/spmm/spmm.h"

int main(int count, char** argument) {
  using namespace tamis;
  if (count != 7) return 2;
  const SpmmRow* row = nullptr;
  for (const SpmmRow& r : spmm_kernels()) {
    if (std::strcmp(r.name, argument[1]) == 0) row = &r;
  }
  int64_t number[5];
  for (int i = 0; i < 5; ++i) number[i] = std::atoll(argument[2 + i]);
  const auto [m, n, k, keep_of, of] = number;
  if (!row) return 3;

  std::vector<uint8_t> keep(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < n * k; ++i) {
    keep[static_cast<size_t>(i)] = (i % k * 7 + i / k / 4 * 5) % of < keep_of;  // 7: scattered
    if (row->format == Format::block) keep[static_cast<size_t>(i)] = i % k % of < keep_of;
  }
  PackSpec spec{.format = row->format, .dtype = row->w_dtype};
  spec.keep = static_cast<int32_t>(keep_of);
  spec.of = static_cast<int32_t>(of);
  if (row->format == Format::block) spec.block_rows = spec.block_cols = 4;
  const DType source = spec.dtype == DType::i8 ? DType::f32 : spec.dtype;
  const std::vector<uint8_t> dense(static_cast<size_t>(n * k * size_of(source)), 0x3c);
  const DenseView view{.data = dense.data(),
                       .dtype = source,
                       .rows = n,
                       .cols = k,
                       .stride = k,
                       .keep = keep.data()};
  PackSizes sizes;
  if (!pack_sizes(view, spec, &sizes).ok()) return 4;
  std::vector<uint8_t> values(static_cast<size_t>(sizes.values * size_of(spec.dtype)));
  std::vector<uint64_t> mask(static_cast<size_t>(sizes.mask));
  std::vector<int64_t> row_offsets(static_cast<size_t>(sizes.row_offsets));
  std::vector<int32_t> col_indices(static_cast<size_t>(sizes.col_indices));
  std::vector<float> scales(static_cast<size_t>(sizes.scales));
  const PackBuffers out{.values = values.data(),
                        .mask = mask.data(),
                        .row_offsets = row_offsets.data(),
                        .col_indices = col_indices.data(),
                        .scales = scales.data()};
  if (!pack(view, spec, out).ok()) return 5;
  const MatrixView w{.format = spec.format,
                     .rows = n,
                     .cols = k,
                     .dtype = spec.dtype,
                     .values = values.data(),
                     .nnz = sizes.values,
                     .mask = mask.data(),
                     .row_offsets = row_offsets.data(),
                     .col_indices = col_indices.data(),
                     .keep = spec.keep,
                     .of = spec.of,
                     .block_rows = spec.block_rows,
                     .block_cols = spec.block_cols,
                     .scales = scales.data(),
                     .group_size = k};
  const std::vector<float> x(static_cast<size_t>(m * k), 1.0f);
  std::vector<float> y(static_cast<size_t>(m * n));
  return spmm_with(*row, {.w = w,
                          .x_dtype = row->x_dtype,
                          .m = m,
                          .x = x.data(),
                          .x_stride = k,
                          .y = y.data(),
                          .y_stride = n})
                 .ok()
             ? 0
             : 6;
}

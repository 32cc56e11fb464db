// One call of one kernel on data whose kept part is known, for bench/arm_cost.py and
// bench/arm_cost_ops.py, which count the instructions that it runs under qemu.
//
//   arm_count spmm_nm_f32_f32_neon M N K KEEP OF         nm: KEEP of each OF columns
//   arm_count spmm_block_f32_f32_neon_skip M N K KEEP OF   blocks of 4 x 4: KEEP of each OF columns
//   arm_count spmm_groupq_u4_f32_neon_groups M N K KEEP OF   groups of 16: KEEP of each OF
//   arm_count conv2d_csr_f32_neon OUT CHANNELS SIDE KEEP OF    1x1; block: 4 outputs together
//   arm_count sparse_input_bf16_neon N K KEEP OF         KEEP of each OF inputs count
//   arm_count sparse_mlp_bf16_neon K N KEEP OF           KEEP of each OF neurons count
//   arm_count kv_quantize_bf16_neon PAGES D BITS         pages of 32 tokens
//   arm_count kv_select_rows_bf16_f32_neon UNITS D       4 rows of q; labels: D channels
//   arm_count kv_select_reduce_neon UNITS                sums of exponentials
//   arm_count sparse_attention_bf16_f32_neon TOKENS D BITS    4 rows of q; BITS: of pages
//   arm_count prefill_attention_neon QUERIES D           one head, causal
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "format/format.h"
#include "ops/conv2d/conv2d.h"
#include "ops/kv_quantize/kv_quantize.h"
#include "ops/kv_select/kv_select.h"
#include "ops/prefill_attention/prefill_attention.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "ops/sparse_input/sparse_input.h"
#include "ops/sparse_mlp/sparse_mlp.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "arm_count: %s\n", what);
  std::exit(1);
}
void must(const Status& status) {
  if (!status.ok()) fail(status.text);
}

// The row of that name, or null.
template <class Rows>
auto find(const Rows& rows, const char* name) -> decltype(&rows[0]) {
  for (const auto& row : rows) {
    if (std::strcmp(row.name, name) == 0) return &row;
  }
  return nullptr;
}

size_t size(int64_t n) {
  return static_cast<size_t>(n);
}

// A weight packed from a mask, and its arrays.
struct Packed {
  std::vector<uint8_t> values;
  std::vector<uint64_t> mask;
  std::vector<int64_t> row_offsets;
  std::vector<int32_t> col_indices;
  std::vector<float> scales;
  std::vector<uint16_t> group_scales;
  MatrixView view;

  Packed(const PackSpec& spec, int64_t n, int64_t k, const std::vector<uint8_t>& keep) {
    const bool codes = spec.dtype == DType::i8 || spec.format == Format::groupq;
    const DType source = codes ? DType::f32 : spec.dtype;
    const std::vector<uint8_t> dense(size(n * k * size_of(source)), 0x3c);
    const DenseView w{.data = dense.data(),
                      .dtype = source,
                      .rows = n,
                      .cols = k,
                      .stride = k,
                      .keep = keep.data()};
    PackSizes sizes;
    must(pack_sizes(w, spec, &sizes));
    values.resize(size(sizes.values * size_of(spec.dtype)));
    mask.resize(size(sizes.mask));
    row_offsets.resize(size(sizes.row_offsets));
    col_indices.resize(size(sizes.col_indices));
    scales.resize(size(sizes.scales));
    group_scales.resize(size(sizes.group_scales));
    must(pack(w, spec,
              {.values = values.data(),
               .mask = mask.data(),
               .row_offsets = row_offsets.data(),
               .col_indices = col_indices.data(),
               .scales = scales.data(),
               .group_scales = group_scales.data()}));
    view = {.format = spec.format,
            .rows = n,
            .cols = k,
            .dtype = spec.dtype,
            .values = values.data(),
            .nnz = spec.format == Format::groupq ? sizes.group_scales / 2 * spec.group_size
                                                 : sizes.values,
            .mask = mask.data(),
            .row_offsets = row_offsets.data(),
            .col_indices = col_indices.data(),
            .keep = spec.keep,
            .of = spec.of,
            .block_rows = spec.block_rows,
            .block_cols = spec.block_cols,
            .scales = scales.data(),
            .group_scales = group_scales.data(),
            .group_size = spec.group_size ? spec.group_size : k};
  }
};

void run(const SpmmRow& row, const int64_t* number) {
  const int64_t m = number[0], n = number[1], k = number[2], keep_of = number[3], of = number[4];
  const int64_t unit = row.format == Format::groupq ? 16 : 1;
  std::vector<uint8_t> keep(size(n * k));
  for (int64_t i = 0; i < n * k; ++i) {
    const int64_t c = i % k / unit;
    keep[size(i)] = (c * 7 + i / k / 4 * 5) % of < keep_of;  // 7: scattered
    if (row.format == Format::block) keep[size(i)] = c % of < keep_of;
  }
  PackSpec spec{.format = row.format, .dtype = row.w_dtype};
  if (row.format == Format::nm) {
    spec.keep = static_cast<int32_t>(keep_of);
    spec.of = static_cast<int32_t>(of);
  }
  if (row.format == Format::block) spec.block_rows = spec.block_cols = 4;
  if (row.format == Format::groupq) spec.group_size = unit;
  const Packed w(spec, n, k, keep);
  const std::vector<float> x(size(m * k), 1.0f);
  std::vector<float> y(size(m * n));
  must(spmm_with(row, {.w = w.view,
                       .x_dtype = row.x_dtype,
                       .m = m,
                       .x = x.data(),
                       .x_stride = k,
                       .y = y.data(),
                       .y_stride = n}));
}

void run(const Conv2dRow& row, const int64_t* number) {
  const int64_t n = number[0], k = number[1], side = number[2];
  std::vector<uint8_t> keep(size(n * k));
  const bool blocks = row.weight == Conv2dWeight::block;
  for (int64_t i = 0; i < n * k; ++i) {
    keep[size(i)] = (i % k * 7 + i / k / 4 * 5) % number[4] < number[3];
  }
  PackSpec spec{.format = blocks ? Format::block : Format::csr};
  if (blocks) spec.block_rows = 4, spec.block_cols = 1;
  const Packed w(spec, n, k, keep);
  const std::vector<float> x(size(k * side * side), 1.0f);
  std::vector<float> y(size(n * side * side));
  must(conv2d_with(row, {.shape = {.images = 1, .channels = k, .height = side, .width = side},
                         .w = w.view,
                         .x = x.data(),
                         .x_channel_stride = side * side,
                         .x_row_stride = side,
                         .y = y.data()}));
}

void run(const SparseInputRow& row, const int64_t* number) {
  const int64_t n = number[0], k = number[1];
  const std::vector<uint8_t> w(size(n * k * size_of(row.dtype)), 0x3c);
  const std::vector<uint8_t> x(size(k * size_of(row.dtype)), 0x3c);  // all about 0.01 or 1
  std::vector<float> threshold(size(k), INFINITY);
  for (int64_t i = 0; i < k; ++i) {
    if (i * 7 % number[3] < number[2]) threshold[size(i)] = 0;
  }
  std::vector<uint8_t> y(size(n * size_of(row.dtype)));
  must(sparse_input_with(row, {.dtype = row.dtype,
                               .m = 1,
                               .n = n,
                               .k = k,
                               .x = x.data(),
                               .x_stride = k,
                               .w = w.data(),
                               .threshold = threshold.data(),
                               .y = y.data(),
                               .y_stride = n}));
}

void run(const SparseMlpRow& row, const int64_t* number) {
  const int64_t k = number[0], n = number[1], bytes = size_of(row.dtype);
  const std::vector<uint8_t> w(size(n * k * bytes), 0x3c), x(size(k * bytes), 0x3c);
  std::vector<float> threshold(size(n), INFINITY);
  for (int64_t i = 0; i < n; ++i) {
    if (i * 7 % number[3] < number[2]) threshold[size(i)] = 0;
  }
  std::vector<uint8_t> y(size(k * bytes));
  must(sparse_mlp_with(row, {.dtype = row.dtype,
                             .m = 1,
                             .k = k,
                             .n = n,
                             .d = k,
                             .x = x.data(),
                             .x_stride = k,
                             .gate = w.data(),
                             .up = w.data(),
                             .down = w.data(),
                             .threshold = threshold.data(),
                             .y = y.data(),
                             .y_stride = k}));
}

// Numbers that differ, of f32, f16 or bf16.
std::vector<uint8_t> wave(DType dtype, int64_t n) {
  std::vector<uint8_t> out(size(n * size_of(dtype)));
  for (int64_t i = 0; i < n; ++i) {
    const float v = 1.0f + static_cast<float>(i * 37 % 101) / 128.0f;  // [1, 2)
    const auto bits = __builtin_bit_cast(uint32_t, v);
    const auto top =
        static_cast<uint16_t>(dtype == DType::f16 ? 0x3c00u | (bits >> 13 & 0x3ffu) : bits >> 16);
    if (dtype == DType::f32) {
      std::memcpy(&out[size(4 * i)], &v, 4);
    } else {
      std::memcpy(&out[size(2 * i)], &top, 2);
    }
  }
  return out;
}

void run(const KvQuantizeRow& row, const int64_t* number) {
  const int64_t pages = number[0], d = number[1];
  const auto bits = static_cast<int32_t>(number[2]);
  const KvPageLayout layout{
      .head_dim = static_cast<int32_t>(d), .key_bits = bits, .value_bits = bits};
  const std::vector<uint8_t> rows = wave(row.dtype, pages * layout.tokens * d);
  std::vector<uint8_t> out(size(pages * layout.bytes()));
  must(kv_quantize_with(row, {.layout = layout,
                              .dtype = row.dtype,
                              .heads = 1,
                              .pages = pages,
                              .keys = rows.data(),
                              .values = rows.data(),
                              .key_head_stride = pages * layout.tokens * d,
                              .key_token_stride = d,
                              .value_head_stride = pages * layout.tokens * d,
                              .value_token_stride = d,
                              .out = out.data(),
                              .out_stride_bytes = pages * layout.bytes()}));
}

void run(const KvScoreRow& row, const int64_t* number) {
  const int64_t units = number[0], width = number[1];
  const KvLabelLayout labels{.channels =
                                 row.kind == KvSummary::labels ? static_cast<int32_t>(width) : 8};
  const int64_t records = (units + kLabelTokens - 1) / kLabelTokens * labels.bytes();
  const std::vector<uint8_t> x = row.kind == KvSummary::labels
                                     ? std::vector<uint8_t>(size(records), 0x11)
                                     : wave(row.dtype, units * width);
  const std::vector<float> q(size(kSelectRows * width), 0.5f);
  const std::vector<int8_t> q8(size(kSelectRows * width), 1);
  std::vector<float> out(size(kSelectRows * units));
  KvScorePart part = {};
  part.x = x.data();
  part.unit_stride = part.width = width;
  part.q = q.data();
  part.scale = 1;
  part.q8 = q8.data();
  for (float& step : part.step) step = 1;
  part.labels = labels;
  part.rows = kSelectRows;
  part.end = part.out_stride = units;
  part.out = out.data();
  row.run(part);
}

void run(const KvReduceRow& row, const int64_t* number) {
  const std::vector<uint8_t> scores = wave(DType::f32, number[0]);
  float largest = 0, sum = 0;
  row.stats(reinterpret_cast<const float*>(scores.data()), number[0], &largest, &sum);
}

void run(const AttentionRow& row, const int64_t* number) {
  const int64_t tokens = number[0], d = number[1];
  const auto bits = static_cast<int32_t>(number[2]);
  const bool pages = row.storage == KvStorage::pages;
  KvSegment segment{.storage = row.storage, .tokens = tokens};
  std::vector<uint8_t> keys;
  if (pages) {
    segment.layout = {.head_dim = static_cast<int32_t>(d), .key_bits = bits, .value_bits = bits};
    const KvPageLayout& layout = segment.layout;
    keys.resize(size(tokens / layout.tokens * layout.bytes()));
    const std::vector<uint8_t> source = wave(DType::f32, tokens * d);
    must(kv_quantize_reference({.layout = layout,
                                .heads = 1,
                                .pages = tokens / layout.tokens,
                                .keys = source.data(),
                                .values = source.data(),
                                .key_head_stride = tokens * d,
                                .key_token_stride = d,
                                .value_head_stride = tokens * d,
                                .value_token_stride = d,
                                .out = keys.data(),
                                .out_stride_bytes = static_cast<int64_t>(keys.size())}));
  } else {
    keys = wave(row.storage == KvStorage::f32   ? DType::f32
                : row.storage == KvStorage::f16 ? DType::f16
                                                : DType::bf16,
                tokens * d);
    segment.key_token_stride = segment.value_token_stride = d;
  }
  const std::vector<float> q(size(kMaxRows * d), 0.1f);
  AttentionPart part = {};
  part.segment = &segment;
  part.q = q.data();
  part.rows = kMaxRows;
  part.head_dim = d;
  part.scale = 1;
  part.keys = keys.data();
  part.values = pages ? nullptr : keys.data();
  part.end = tokens;
  part.unit_end = pages ? tokens / segment.layout.tokens : tokens;
  AttentionState state;
  row.run(part, &state);
}

void run(const PrefillRow& row, const int64_t* number) {
  const int64_t n = number[0], d = number[1];
  const std::vector<float> x(size(n * d), 0.1f);
  std::vector<float> out(size(n * d));
  const PrefillArray all{.data = x.data(), .token_stride = d};
  must(prefill_attention_by(row, {.batch = 1,
                                  .heads = 1,
                                  .kv_heads = 1,
                                  .queries = n,
                                  .tokens = n,
                                  .head_dim = d,
                                  .q = all,
                                  .keys = all,
                                  .values = all,
                                  .out = out.data(),
                                  .out_token_stride = d}));
}

template <class Rows>
bool run_named(const Rows& rows, const char* name, const int64_t* number) {
  const auto* row = find(rows, name);
  if (row) run(*row, number);
  return row != nullptr;
}

}  // namespace
}  // namespace tamis

int main(int count, char** argument) {
  using namespace tamis;
  if (count < 2 || count > 7) fail("wanted a kernel and its numbers");
  const char* name = argument[1];
  int64_t number[5] = {1, 1, 1, 1, 1};
  for (int i = 2; i < count; ++i) number[i - 2] = std::atoll(argument[i]);
  const bool found =
      run_named(spmm_kernels(), name, number) || run_named(conv2d_kernels(), name, number) ||
      run_named(sparse_input_kernels(), name, number) ||
      run_named(sparse_mlp_kernels(), name, number) ||
      run_named(kv_quantize_kernels(), name, number) ||
      run_named(kv_score_kernels(), name, number) || run_named(kv_reduce_kernels(), name, number) ||
      run_named(sparse_attention_kernels(), name, number) ||
      run_named(prefill_attention_kernels(), name, number);
  if (!found) fail("no kernel of that name");
}

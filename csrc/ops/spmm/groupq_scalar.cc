// Portable spmm over groups of codes: weights of a group once per 4 tokens.
#include "base/simd/scalar.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

constexpr int kTokens = 4;
constexpr int kMostColumns = 32;

void weights_of(const MatrixView& w, int64_t i, float* out) {
  const int64_t size = w.group_size, half = size / 2;
  const float scale = f32_from_f16(w.group_scales[2 * i]);
  const float zero = f32_from_f16(w.group_scales[2 * i + 1]);
  const auto* codes = static_cast<const uint8_t*>(w.values) + i * value_elements(w.dtype, size);
  if (w.dtype == DType::u8) {
    for (int64_t j = 0; j < size; ++j) out[j] = scale * (static_cast<float>(codes[j]) - zero);
    return;
  }
  for (int64_t j = 0; j < half; ++j) {
    out[j] = scale * (static_cast<float>(codes[j] & 15) - zero);
    out[j + half] = scale * (static_cast<float>(codes[j] >> 4) - zero);
  }
}

template <class X>
void groupq_rows(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t size = a.w.group_size, groups = a.w.cols / size, words = mask_words(groups);
  const auto* bias = static_cast<const X*>(a.bias);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float start = bias ? scalar::to_f32(bias[row]) : 0.0f;
    for (int64_t token = 0; token < a.m; token += kTokens) {
      const auto* x = static_cast<const X*>(a.x) + token * a.x_stride;
      auto* y = static_cast<X*>(a.y) + token * a.y_stride + row;
      const int tokens = a.m - token < kTokens ? static_cast<int>(a.m - token) : kTokens;
      float sum[kTokens] = {};
      int64_t i = a.w.row_offsets[row];
      for (int64_t g = 0; g < groups; ++g) {
        if (!(a.w.mask[row * words + g / 64] >> (g % 64) & 1)) continue;
        float w[kMostColumns];
        weights_of(a.w, i++, w);
        for (int t = 0; t < tokens; ++t) {
          const X* at = x + t * a.x_stride + g * size;
          for (int64_t j = 0; j < size; ++j) sum[t] += w[j] * scalar::to_f32(at[j]);
        }
      }
      for (int t = 0; t < tokens; ++t) scalar::store(sum[t] + start, y + t * a.y_stride);
    }
  }
}

}  // namespace

#define TAMIS_GROUPQ_SCALAR(x, X)                                                           \
  void spmm_groupq_u4_##x##_scalar(const SpmmArgs& a, int64_t row_begin, int64_t row_end) { \
    groupq_rows<X>(a, row_begin, row_end);                                                  \
  }                                                                                         \
  void spmm_groupq_u8_##x##_scalar(const SpmmArgs& a, int64_t row_begin, int64_t row_end) { \
    groupq_rows<X>(a, row_begin, row_end);                                                  \
  }

TAMIS_GROUPQ_SCALAR(f32, float)
TAMIS_GROUPQ_SCALAR(f16, F16)
TAMIS_GROUPQ_SCALAR(bf16, BF16)

#undef TAMIS_GROUPQ_SCALAR

}  // namespace tamis

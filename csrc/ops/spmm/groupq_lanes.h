// The x of lanes: 8-bit codes in blocks of tokens, and what both kernels of lanes do with their
// sums.
//
// A vector is T tokens times 64/T columns, so that a broadcast of as many codes of w meets them;
// one step per token and kStepColumns columns (codes.h). Codes of missing tokens are zero.
#pragma once

#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"

namespace tamis {
namespace {

// What lanes of a level make of it: tokens a block, and whether sums of a token lie together, so
// that 16 groups, stored or not, meet their offsets at once: with few groups stored, or many
// tokens, that is more work than one stored group at a time.
struct AnyLanes {
  static TAMIS_INLINE int64_t tokens(int64_t m) { return m <= 4 ? 4 : m <= 8 ? 8 : 16; }
  static TAMIS_INLINE bool by_token(const SpmmArgs& a) {
    return tokens(a.m) <= 8 && a.w.nnz * 4 >= a.w.rows * a.w.cols;
  }
};

// One block of the prepared x.
template <class Kind>
struct XLanes {
  int8_t* codes;  // [groups][group_size * T / 64][T][64 / T]
  float* sums;    // [groups][T], or by_token [T][groups, to the next 16]: step times sum of codes
  float* steps;   // [steps][T][16 / T]
  int64_t bytes;
  bool by_token;
  int64_t group_stride, token_stride;  // of sums

  TAMIS_INLINE XLanes(const SpmmArgs& a, void* prepared, int64_t block) {
    const int64_t tokens = Kind::tokens(a.m), groups = a.w.cols / a.w.group_size;
    const int64_t padded = ceil_div(groups, 16) * 16;
    by_token = Kind::by_token(a);
    group_stride = by_token ? 1 : tokens;
    token_stride = by_token ? padded : 1;
    const int64_t code_bytes = a.w.cols * tokens, sum_bytes = padded * tokens * 4;
    bytes = code_bytes + sum_bytes + step_count(a.w) * 64;
    codes = static_cast<int8_t*>(prepared) + block * bytes;
    sums = reinterpret_cast<float*>(codes + code_bytes);
    steps = reinterpret_cast<float*>(codes + code_bytes + sum_bytes);
  }
};

template <class Kind>
int64_t lanes_bytes(const SpmmArgs& a) {
  return XLanes<Kind>(a, nullptr, 0).bytes * ceil_div(a.m, Kind::tokens(a.m));
}

// Steps [part / parts) of all tokens, those that are missing included.
template <class Kind, class X>
void prepare_lanes(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t tokens = Kind::tokens(a.m), size = a.w.group_size, steps = step_count(a.w);
  const int64_t width = 64 / tokens;  // codes of a token in a vector
  for (int64_t s = steps * part / parts; s < steps * (part + 1) / parts; ++s) {
    const int64_t first = s * kStepColumns;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    for (int64_t token = 0; token < ceil_div(a.m, tokens) * tokens; ++token) {
      const XLanes<Kind> to(a, prepared, token / tokens);
      const int64_t t = token % tokens;
      __m512i codes[kStepWords];
      for (auto& word : codes) word = _mm512_setzero_si512();
      float step = 0;
      if (token < a.m) {
        step = quantize(static_cast<const X*>(a.x) + token * a.x_stride + first, n, codes);
      }
      alignas(64) int8_t bytes[kStepColumns];
      alignas(64) int32_t four[kStepColumns / 4];  // sums of four codes
      for (int w = 0; w < kStepWords; ++w) {
        _mm512_store_si512(bytes + 64 * w, codes[w]);
        _mm512_store_si512(four + 16 * w,
                           _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes_of(1), codes[w]));
      }
      int8_t* out = to.codes + first * tokens + t * width;
      for (int64_t j = 0; j < n; j += width, out += 64) {
        __builtin_memcpy(out, bytes + j, static_cast<size_t>(width));
      }
      for (int64_t g = 0; g < n / size; ++g) {
        int32_t sum = 0;
        for (int64_t j = g * size / 4; j < (g + 1) * size / 4; ++j) sum += four[j];
        to.sums[(first / size + g) * to.group_stride + t * to.token_stride] =
            step * static_cast<float>(sum);
      }
      if (first + n == a.w.cols) {  // groups that complete the last 16
        const int64_t groups = a.w.cols / size;
        for (int64_t g = groups; g < ceil_div(groups, 16) * 16; ++g) {
          to.sums[g * to.group_stride + t * to.token_stride] = 0.0f;
        }
      }
      for (int64_t j = 0; j < 16 / tokens; ++j) to.steps[s * 16 + t * (16 / tokens) + j] = step;
    }
  }
}

// Lane t = the sum of a token's 16 / T lanes, plus rest's.
template <int T>
TAMIS_INLINE __m512 join_lanes(__m512 v, __m512 rest) {
  if constexpr (T == 4) {
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
    v = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12),
                              v);
  } else if constexpr (T == 8) {
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
    v = _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14), v);
  }
  return _mm512_add_ps(v, rest);
}

}  // namespace
}  // namespace tamis

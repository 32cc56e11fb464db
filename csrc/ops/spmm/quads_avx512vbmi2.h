// x as quads: [steps, panels, kStepColumns / 4, 16 tokens, 4 codes], so that one vector meets four
// broadcast weights of a row, and 1 KB is the right-hand tile of a product of AMX.
//
// Error: as in codes-inl.h. Columns past k and missing tokens have codes of zero.
#pragma once

#include "base/simd/avx512.h"
#include "base/simd/transpose16.h"
#include "ops/spmm/codes.h"
#include "ops/spmm/codes_avx512vbmi2.h"

namespace tamis {
namespace {

inline constexpr int kQuadTokens = 16;  // tokens in a panel

// The prepared x; a panel is 16 tokens.
struct XQuads {
  int8_t* codes;    // [steps, panels, kStepColumns / 4, 16, 4]
  int32_t* starts;  // [chunks, panels, 16]
  float* steps;     // [steps, panels, 16]
  int64_t panels, bytes;

  TAMIS_INLINE XQuads(const SpmmArgs& a, void* prepared) : panels(ceil_div(a.m, kQuadTokens)) {
    const int64_t code_bytes = step_count(a.w) * panels * kStepColumns * kQuadTokens;
    const int64_t start_bytes = chunk_limit(a.w) * panels * 64;
    codes = static_cast<int8_t*>(prepared);
    starts = reinterpret_cast<int32_t*>(codes + code_bytes);
    steps = reinterpret_cast<float*>(codes + code_bytes + start_bytes);
    bytes = code_bytes + start_bytes + step_count(a.w) * panels * 64;
  }
  TAMIS_INLINE int8_t* at(int64_t step, int64_t panel) const {
    return codes + (step * panels + panel) * kStepColumns * kQuadTokens;
  }
};

// What sums over words [first, last) of a panel start with.
TAMIS_INLINE __m512i quads_start(const int8_t* codes, int64_t first, int64_t last) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t q = first * 16; q < last * 16; ++q) {
    sum = _mm512_dpbusd_epi32(sum, bytes_of(-128), _mm512_load_si512(codes + q * 64));
  }
  return _mm512_sub_epi32(_mm512_setzero_si512(), sum);
}

// Panels [part / parts) of all steps.
template <class X>
void prepare_quads(const SpmmArgs& a, void* prepared, int part, int parts) {
  const XQuads to(a, prepared);
  const int64_t count = step_count(a.w) * to.panels;
  for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
    const int64_t step = i / to.panels, panel = i % to.panels, first = step * kStepColumns;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    __m512i codes[kQuadTokens][kStepWords];
    for (int64_t t = 0; t < kQuadTokens; ++t) {
      const int64_t token = panel * kQuadTokens + t;
      float of_token = 0;
      if (token < a.m) {
        of_token = quantize(static_cast<const X*>(a.x) + token * a.x_stride + first, n, codes[t]);
      } else {
        for (auto& word : codes[t]) word = _mm512_setzero_si512();
      }
      to.steps[i * kQuadTokens + t] = of_token;
    }
    int8_t* out = to.at(step, panel);
    for (int64_t w = 0; w < kStepWords; ++w) {
      __m512i v[kQuadTokens];
#pragma GCC unroll 16
      for (int t = 0; t < kQuadTokens; ++t) v[t] = codes[t][w];
      transpose(v);
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) _mm512_store_si512(out + (w * 16 + q) * 64, v[q]);
    }
    for (Chunks chunk(a.w, first); chunk.begin < first + n; chunk.next()) {
      _mm512_store_si512(
          to.starts + (chunk.index * to.panels + panel) * kQuadTokens,
          quads_start(out, (chunk.begin - first) / 64, ceil_div(chunk.end - first, 64)));
    }
  }
}

}  // namespace
}  // namespace tamis

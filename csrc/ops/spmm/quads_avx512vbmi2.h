// x as quads: [steps, panels, kStepColumns / 4, 16 tokens, 4 codes], so that one vector meets four
// broadcast weights of a row, and 1 KB is the right-hand tile of a product of AMX. Panels of eight
// tokens: [..., kStepColumns / 8, 8 tokens, 8 codes], two lanes a token.
//
// Error: as in codes-inl.h. Columns past k and missing tokens have codes of zero.
#pragma once

#include "base/simd/avx512.h"
#include "base/simd/transpose16.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"

namespace tamis {
namespace {

inline constexpr int kQuadTokens = 16;  // tokens in a panel

// The prepared x; a panel is `tokens` tokens.
struct XQuads {
  int8_t* codes;    // [steps, panels, kStepColumns * tokens / 64, tokens, 64 / tokens]
  int32_t* starts;  // [chunks, panels, 16], by lanes of a vector
  float* steps;     // [steps, panels, 16], likewise
  int64_t tokens, panels, bytes;

  TAMIS_INLINE XQuads(const SpmmArgs& a, void* prepared, int64_t of_panel = kQuadTokens)
      : tokens(of_panel), panels(ceil_div(a.m, of_panel)) {
    const int64_t code_bytes = step_count(a.w) * panels * kStepColumns * tokens;
    const int64_t start_bytes = chunk_limit(a.w) * panels * 64;
    codes = static_cast<int8_t*>(prepared);
    starts = reinterpret_cast<int32_t*>(codes + code_bytes);
    steps = reinterpret_cast<float*>(codes + code_bytes + start_bytes);
    bytes = code_bytes + start_bytes + step_count(a.w) * panels * 64;
  }
  TAMIS_INLINE int8_t* at(int64_t step, int64_t panel) const {
    return codes + (step * panels + panel) * kStepColumns * tokens;
  }
};

// What sums over `bytes` of a panel start with.
TAMIS_INLINE __m512i quads_start(const int8_t* codes, int64_t bytes) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t at = 0; at < bytes; at += 64) {
    sum = _mm512_dpbusd_epi32(sum, bytes_of(-128), _mm512_load_si512(codes + at));
  }
  return _mm512_sub_epi32(_mm512_setzero_si512(), sum);
}

// A word of every token to the panel at `out`.
TAMIS_INLINE void put_quads(const __m512i (&codes)[kQuadTokens][kStepWords], int64_t word,
                            int64_t tokens, int8_t* out) {
  __m512i v[kQuadTokens];
#pragma GCC unroll 16
  for (int t = 0; t < kQuadTokens; ++t) v[t] = codes[t][word];
  if (tokens == kQuadTokens) {
    transpose(v);
#pragma GCC unroll 16
    for (int q = 0; q < 16; ++q) _mm512_store_si512(out + q * 64, v[q]);
    return;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    alignas(64) int64_t eight[8];
    _mm512_store_si512(eight, v[t]);
    for (int q = 0; q < 8; ++q) __builtin_memcpy(out + q * 64 + t * 8, eight + q, 8);
  }
}

// Panels [part / parts) of all steps.
template <class X>
void prepare_panels(const SpmmArgs& a, const XQuads& to, int part, int parts) {
  const int64_t count = step_count(a.w) * to.panels, lanes = kQuadTokens / to.tokens;
  for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
    const int64_t step = i / to.panels, panel = i % to.panels, first = step * kStepColumns;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    __m512i codes[kQuadTokens][kStepWords];
    for (int64_t t = 0; t < to.tokens; ++t) {
      const int64_t token = panel * to.tokens + t;
      float of_token = 0;
      if (token < a.m) {
        of_token = quantize(static_cast<const X*>(a.x) + token * a.x_stride + first, n, codes[t]);
      } else {
        for (auto& word : codes[t]) word = _mm512_setzero_si512();
      }
      for (int64_t j = 0; j < lanes; ++j) to.steps[i * 16 + t * lanes + j] = of_token;
    }
    int8_t* out = to.at(step, panel);
    const int64_t word_bytes = 64 * to.tokens;
    for (int64_t w = 0; w < kStepWords; ++w) put_quads(codes, w, to.tokens, out + w * word_bytes);
    for (Chunks chunk(a.w, first); chunk.begin < first + n; chunk.next()) {
      const int64_t begin = (chunk.begin - first) / 64, end = ceil_div(chunk.end - first, 64);
      _mm512_store_si512(to.starts + (chunk.index * to.panels + panel) * 16,
                         quads_start(out + begin * word_bytes, (end - begin) * word_bytes));
    }
  }
}

// The words of a chunk of one row, w + 128. Returns where the row's values go on.
template <bool kExact>
TAMIS_INLINE const int8_t* expand_row(const uint64_t* mask, const int8_t* p, const Chunks& chunk,
                                      uint8_t* to) {
  for (int64_t word = chunk.begin / 64; word * 64 < chunk.end; ++word, to += 64) {
    const uint64_t bits = *mask++ & bits_within(word, chunk.begin, chunk.end);
    _mm512_store_si512(to, expand_codes<kExact>(bits, p));
    p += simd::popcount(bits);
  }
  return p;
}

// 64 / T weights, repeated.
template <int T>
TAMIS_INLINE __m512i repeat_quads(const uint8_t* w) {
  if constexpr (T == 8) {
    int64_t eight;
    __builtin_memcpy(&eight, w, 8);
    return _mm512_set1_epi64(eight);
  } else {
    int32_t four;
    __builtin_memcpy(&four, w, 4);
    return _mm512_set1_epi32(four);
  }
}

// y of rows [row, row + n), at most 16, and a panel's tokens from `token` on. total: of 16 rows,
// `stride` vectors apart.
TAMIS_INLINE void store_panel(const SpmmArgs& a, const float (*total)[16], int64_t stride,
                              int64_t row, int n, int64_t token, int64_t tokens, bool scaled) {
  __m512i v[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = _mm512_load_si512(total[i * stride]);
  transpose(v);
  const simd::F32 scale = scaled ? simd::splat(1.0f) : simd::load(a.w.scales + row, n);
  for (int64_t t = 0; t < tokens && token + t < a.m; ++t) {
    const simd::F32 y = tokens == kQuadTokens ? _mm512_castsi512_ps(v[t])
                                              : simd::add(_mm512_castsi512_ps(v[2 * t]),
                                                          _mm512_castsi512_ps(v[2 * t + 1]));
    store_rows(a, simd::mul(y, scale), row, token + t, n);
  }
}

template <class X>
void prepare_quads(const SpmmArgs& a, void* prepared, int part, int parts) {
  prepare_panels<X>(a, XQuads(a, prepared), part, parts);
}

}  // namespace
}  // namespace tamis

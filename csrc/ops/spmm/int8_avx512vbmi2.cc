// bitmap and nm of i8 with VBMI2 and VNNI: vpexpandb and vpdpbusd, 64 columns per step.
//
// Per 64 columns and row: a load with vpxorq, vpexpandb (2), kmovq, popcnt, and one vpdpbusd per
// token; 512-bit loads, one a cycle, are what several tokens compete for.
#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct ExpandBytes {
  using Code = int8_t;
  using Sum = __m512i;
  static constexpr int kReadsPast = 64;
  static constexpr int kMaxTokens = 8;
  static constexpr int rows(int tokens) { return tokens <= 4 ? 4 : 2; }

  static TAMIS_INLINE Sum start(const int32_t* p) {
    Sum sum = _mm512_load_si512(p);
    __asm__("" : "+v"(sum));  // likewise
    return sum;
  }
  // sum[i][t] += 64 columns of row i times token t; at[i] moves on.
  template <bool kExact, int R, int M>
  static TAMIS_INLINE void multiply(Sum (&sum)[R][M], const int8_t* (&at)[R],
                                    const uint64_t (&bits)[R], const Code* x) {
    __m512i weights[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      weights[i] = expand_codes<kExact>(bits[i], at[i]);
      at[i] += simd::popcount(bits[i]);
    }
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      // One load for all rows: of 512 bits one a cycle is all there are, and GCC would repeat it.
      __m512i tokens = _mm512_load_si512(x + t * 64);
      __asm__("" : "+v"(tokens));
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) dot(sum[i][t], weights[i], tokens);
    }
  }
  static TAMIS_INLINE simd::F32 to_f32(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

// Steps [part / parts) of all tokens.
template <class X>
void prepare_codes(const SpmmArgs& a, void* prepared, int part, int parts) {
  const XCodes<int8_t> to(a, prepared);
  const int64_t words = mask_words(a.w.cols), steps = step_count(a.w);
  const bool grouped = a.w.group_size < a.w.cols;
  for (int64_t s = steps * part / parts; s < steps * (part + 1) / parts; ++s) {
    const int64_t first = s * kStepColumns;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    for (int64_t t = 0; t < a.m; ++t) {
      __m512i codes[kStepWords];
      const X* x = static_cast<const X*>(a.x) + t * a.x_stride + first;
      to.steps[s * a.m + t] = quantize(x, n, codes);
      const auto store_start = [&](int64_t index, __m512i sum) __attribute__((always_inline)) {
        _mm512_store_si512(to.starts + (index * a.m + t) * 16,
                           _mm512_sub_epi32(_mm512_setzero_si512(), sum));
      };
      __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int w = 0; w < kStepWords; ++w) {
        if (s * kStepWords + w < words) {
          _mm512_store_si512(to.codes + ((s * kStepWords + w) * a.m + t) * 64, codes[w]);
        }
        sum = _mm512_dpbusd_epi32(sum, bytes_of(-128), codes[w]);
      }
      if (!grouped) {
        store_start(s, sum);
        continue;
      }
      for (Chunks chunk(a.w, first); chunk.begin < first + n; chunk.next()) {
        sum = _mm512_setzero_si512();
        for (int64_t word = chunk.begin / 64; word * 64 < chunk.end; ++word) {
          sum = _mm512_dpbusd_epi32(sum, bytes_of(-128), codes[word - s * kStepWords]);
        }
        store_start(chunk.index, sum);
      }
    }
  }
}

int64_t codes_bytes(const SpmmArgs& a) {
  return XCodes<int8_t>(a, nullptr).bytes;
}

}  // namespace

const SpmmXForm spmm_codes_f32_avx512vbmi2 = {codes_bytes, prepare_codes<float>, true};
const SpmmXForm spmm_codes_f16_avx512vbmi2 = {codes_bytes, prepare_codes<F16>, true};
const SpmmXForm spmm_codes_bf16_avx512vbmi2 = {codes_bytes, prepare_codes<BF16>, true};

TAMIS_CODES_KERNEL(f32, avx512vbmi2, ExpandBytes)
TAMIS_CODES_KERNEL(f16, avx512vbmi2, ExpandBytes)
TAMIS_CODES_KERNEL(bf16, avx512vbmi2, ExpandBytes)

}  // namespace tamis

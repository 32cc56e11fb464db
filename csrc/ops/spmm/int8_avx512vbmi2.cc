// bitmap and nm of i8 with VBMI2 and VNNI: vpexpandb and vpdpbusd, 64 columns per step.
//
// vpdpbusd multiplies unsigned by signed bytes. The weights are the unsigned ones: stored codes
// with the sign bit flipped are w + 128, and expand merges them into 128s, which stand for zero.
// So sums come out too large by 128 * sum(codes of x), which depends on the token alone: it is
// subtracted lane by lane in what a sum starts with. Per 64 columns and row: a load with vpxorq,
// vpexpandb (2), kmovq, popcnt, and one vpdpbusd per token.
#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

TAMIS_INLINE __m512i bytes_of(int8_t v) {
  return _mm512_set1_epi8(v);
}

struct ExpandBytes {
  using Code = int8_t;
  using Weights = __m512i;
  using Sum = __m512i;
  static constexpr int kReadsPast = 64;
  static constexpr int kMaxTokens = 8;
  static constexpr int rows(int tokens) { return tokens <= 4 ? 4 : 2; }

  static TAMIS_INLINE Sum start(const int32_t* p) {
    Sum sum = _mm512_load_si512(p);
    __asm__("" : "+v"(sum));  // likewise
    return sum;
  }
  template <bool kExact>
  static TAMIS_INLINE Weights expand(uint64_t bits, const int8_t* p) {
    const __m512i packed =
        kExact ? _mm512_maskz_loadu_epi8(
                     _bzhi_u64(~uint64_t{0}, static_cast<unsigned>(simd::popcount(bits))), p)
               : _mm512_loadu_si512(p);
    const __m512i sign = bytes_of(-128);
    return _mm512_mask_expand_epi8(sign, bits, _mm512_xor_si512(packed, sign));
  }
  template <int R, int M>
  static TAMIS_INLINE void dot(Sum (&sum)[R][M], int t, const Weights (&w)[R], const Code* x) {
    // One load for all rows: of 512 bits one a cycle is all there are, and GCC would repeat it.
    __m512i tokens = _mm512_load_si512(x);
    __asm__("" : "+v"(tokens));
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) sum[i][t] = _mm512_dpbusd_epi32(sum[i][t], w[i], tokens);
  }
  static TAMIS_INLINE simd::F32 to_f32(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

constexpr float kTiny = 0x1p-100f;  // below it 127 / largest may not be finite

// 16 columns from x on, or those of them that are among the first n.
template <class X>
TAMIS_INLINE simd::F32 columns(const X* x, int64_t at, int64_t n) {
  return at + 16 <= n ? simd::load(x + at)
                      : simd::load(x + (at < n ? at : 0), static_cast<int>(at < n ? n - at : 0));
}

// Bytes of 64 integers: packed within 128-bit lanes, then the lanes put in order.
TAMIS_INLINE __m512i narrow(const __m512i (&v)[4]) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(
      order, _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])));
}

constexpr int kStepWords = kStepColumns / 64;

// Codes of the n <= kStepColumns columns at x, zeros after them; returns their step.
template <class X>
TAMIS_INLINE float quantize(const X* x, int64_t n, __m512i (&codes)[kStepWords]) {
  // Bit patterns of magnitudes order as the magnitudes do, with NaN above Inf.
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i v = _mm512_castps_si512(columns(x, i, n));
    most = _mm512_max_epu32(most, _mm512_and_si512(v, _mm512_set1_epi32(0x7fffffff)));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  const float largest = __builtin_bit_cast(float, bits);
  const bool finite = bits < 0x7f800000u;
  const float grow = largest < kTiny ? 0x1p100f : 1.0f;
  const float factor = finite && bits != 0 ? 127.0f / (largest * grow) : 0.0f;
#pragma GCC unroll 8
  for (int w = 0; w < kStepWords; ++w) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const simd::F32 scaled = simd::mul(columns(x, w * 64 + i * 16, n), simd::splat(grow));
      v[i] = _mm512_cvtps_epi32(simd::mul(scaled, simd::splat(factor)));
    }
    codes[w] = narrow(v);
  }
  return finite ? largest / 127.0f : __builtin_nanf("");
}

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

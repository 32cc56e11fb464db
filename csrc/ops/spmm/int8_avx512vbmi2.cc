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
  static constexpr int rows(int tokens) { return tokens <= 6 ? 4 : 2; }

  static TAMIS_INLINE Sum start(const int32_t* p) { return _mm512_load_si512(p); }
  template <bool kExact>
  static TAMIS_INLINE Weights expand(uint64_t bits, const int8_t* p) {
    const __m512i packed =
        kExact ? _mm512_maskz_loadu_epi8(
                     _bzhi_u64(~uint64_t{0}, static_cast<unsigned>(simd::popcount(bits))), p)
               : _mm512_loadu_si512(p);
    const __m512i sign = bytes_of(-128);
    return _mm512_mask_expand_epi8(sign, bits, _mm512_xor_si512(packed, sign));
  }
  static TAMIS_INLINE Sum dot(Sum sum, Weights w, const Code* x) {
    return _mm512_dpbusd_epi32(sum, w, _mm512_load_si512(x));
  }
  static TAMIS_INLINE simd::F32 to_f32(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

constexpr float kTiny = 0x1p-100f;  // below it 127 / largest may not be finite

// Codes of n columns of x, n <= kStepColumns, zeros up to the next whole word; returns the step.
template <class X>
TAMIS_INLINE float quantize(const X* x, int64_t n, int8_t* codes) {
  const int64_t full = n / 16 * 16;
  const int left = static_cast<int>(n - full);
  // Bit patterns of magnitudes order as the magnitudes do, with NaN above Inf.
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < full; i += 16) {
    most =
        _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(simd::load(x + i)), magnitude));
  }
  if (left > 0) {
    most = _mm512_max_epu32(
        most, _mm512_and_si512(_mm512_castps_si512(simd::load(x + full, left)), magnitude));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  const float largest = __builtin_bit_cast(float, bits);
  const bool finite = bits < 0x7f800000u;
  const float grow = largest < kTiny ? 0x1p100f : 1.0f;
  const float factor = finite && bits != 0 ? 127.0f / (largest * grow) : 0.0f;
  const auto encode = [&](simd::F32 v) __attribute__((always_inline)) {
    // v * 0 is NaN for Inf and NaN, which convert to INT_MIN, whose low byte is the code 0.
    v = _mm512_mul_ps(_mm512_mul_ps(v, simd::splat(grow)), simd::splat(factor));
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
  };
  int64_t i = 0;
  for (; i < full; i += 16) {
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + i), encode(simd::load(x + i)));
  }
  if (left > 0) {
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + i), encode(simd::load(x + i, left)));
    i += 16;
  }
  for (; i % 64 != 0; i += 16) {
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + i), _mm_setzero_si128());
  }
  return finite ? largest / 127.0f : __builtin_nanf("");
}

// Steps [part / parts) of every token.
template <class X>
void prepare_codes(const SpmmArgs& a, void* prepared, int part, int parts) {
  const XCodes<int8_t> to(a.w, prepared, a.m, 1);
  const int64_t steps = step_count(a.w);
  const int64_t begin = steps * part / parts * kStepColumns;
  int64_t end = steps * (part + 1) / parts * kStepColumns;
  if (end > a.w.cols) end = a.w.cols;
  for (int64_t t = 0; t < a.m; ++t) {
    const X* x = static_cast<const X*>(a.x) + t * a.x_stride;
    auto* codes = const_cast<int8_t*>(to.codes + t * to.codes_stride);
    auto* of_step = const_cast<float*>(to.steps + t * to.steps_stride);
    for (int64_t i = begin; i < end; i += kStepColumns) {
      const int64_t n = end - i < kStepColumns ? end - i : kStepColumns;
      of_step[i / kStepColumns] = quantize(x + i, n, codes + i);
    }
    auto* starts = const_cast<int32_t*>(to.starts + t * to.starts_stride);
    for (Chunks chunk(a.w, begin); chunk.begin < end; chunk.next()) {
      __m512i sum = _mm512_setzero_si512();
      for (int64_t word = chunk.begin / 64; word * 64 < chunk.end; ++word) {
        sum = _mm512_dpbusd_epi32(sum, bytes_of(-128), _mm512_load_si512(codes + word * 64));
      }
      _mm512_store_si512(starts + chunk.index * 16, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
    }
  }
}

int64_t codes_bytes(const SpmmArgs& a) {
  return XCodes<int8_t>(a.w, nullptr, a.m, 1).bytes;
}

}  // namespace

const SpmmXForm spmm_codes_f32_avx512vbmi2 = {codes_bytes, prepare_codes<float>, true};
const SpmmXForm spmm_codes_f16_avx512vbmi2 = {codes_bytes, prepare_codes<F16>, true};
const SpmmXForm spmm_codes_bf16_avx512vbmi2 = {codes_bytes, prepare_codes<BF16>, true};

TAMIS_CODES_KERNEL(f32, avx512vbmi2, ExpandBytes)
TAMIS_CODES_KERNEL(f16, avx512vbmi2, ExpandBytes)
TAMIS_CODES_KERNEL(bf16, avx512vbmi2, ExpandBytes)

}  // namespace tamis

// bitmap and nm of i8 on AVX2: bytes expanded by table, vpmaddwd with 12-bit codes of x.
//
// A table indexed by 8 mask bits holds the shuffle that puts each byte into the upper half of its
// 16 bits, so a weight arrives as 256 * w without a widening instruction. Codes of x have 16 bits
// to themselves: |code| <= 2047 is what 16 sums of two products 256 * w * code leave of 32 bits,
// and a chunk of 256 columns makes no more. So x loses 16 times less here than where bytes are
// multiplied; steps are powers of two. Per 64 columns and row: 8 x (load, vpshufb, popcnt, four
// to address) and 4 vinserti128, then 4 x (vpmaddwd, vpaddd) a token.
// Tried: 8-bit codes and vpmaddubsw, whose sums of u8 * s8 saturate, or with vpsignb four
// instructions for 32 products; vpmovsxbw after the shuffle, two more per 16 columns.
#include <cstring>

#include "base/simd/avx2.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

constexpr int kCodeLimit = 2047;
static_assert(int64_t{kStepColumns} / 16 * 2 * 256 * 128 * kCodeLimit <= INT32_MAX,
              "sums of a chunk do not overflow");

// For each byte of mask bits: which packed byte goes into the upper half of each 16 bits.
struct ByteTable {
  alignas(16) uint8_t upper[256][16];

  constexpr ByteTable() : upper() {
    for (int bits = 0; bits < 256; ++bits) {
      int from = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool present = bits >> lane & 1;
        upper[bits][2 * lane] = 0x80;
        upper[bits][2 * lane + 1] = static_cast<uint8_t>(present ? from : 0x80);
        from += present;
      }
    }
  }
};
constexpr ByteTable kBytes;

struct ExpandWide {
  using Code = int16_t;
  using Sum = __m256i;
  static constexpr int kReadsPast = 64;
  static constexpr int kMaxTokens = 4;
  static constexpr int rows(int) { return 2; }

  static TAMIS_INLINE Sum start(const int32_t*) { return _mm256_setzero_si256(); }
  static TAMIS_INLINE __m128i eight(uint64_t bits, const int8_t* p) {
    const auto* order = reinterpret_cast<const __m128i*>(kBytes.upper[bits]);
    return _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)),
                            _mm_load_si128(order));
  }
  // sum[i][t] += 64 columns of row i times token t; at[i] moves on.
  template <bool kExact, int R, int M>
  static TAMIS_INLINE void multiply(Sum (&sum)[R][M], const int8_t* (&at)[R],
                                    const uint64_t (&bits)[R], const Code* x) {
    alignas(16) int8_t copy[R][64];
    const int8_t* p[R];
    uint64_t left[R];
#pragma GCC unroll 2
    for (int i = 0; i < R; ++i) {
      left[i] = bits[i];
      p[i] = at[i];
      if (kExact) {  // every load below takes 8 bytes, wherever it is
        const int count = simd::popcount(bits[i]);
        std::memset(copy[i], 0, sizeof copy[i]);
        std::memcpy(copy[i], at[i], static_cast<size_t>(count));
        p[i] = copy[i];
        at[i] += count;
      }
    }
    // Not unrolled: GCC would address all of it first, on the stack.
#pragma GCC unroll 1
    for (int j = 0; j < 4; ++j, x += 16) {
      __m256i weights[R];
#pragma GCC unroll 2
      for (int i = 0; i < R; ++i) {
        const uint64_t low = left[i] & 0xff, high = left[i] >> 8 & 0xff;
        const int8_t* upper = p[i] + simd::popcount(low);
        weights[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(eight(low, p[i])),
                                             eight(high, upper), 1);
        p[i] = upper + simd::popcount(high);
        left[i] >>= 16;
      }
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) {
        const __m256i tokens = _mm256_load_si256(reinterpret_cast<const __m256i*>(x + t * 64));
#pragma GCC unroll 2
        for (int i = 0; i < R; ++i) {
          sum[i][t] = _mm256_add_epi32(sum[i][t], _mm256_madd_epi16(weights[i], tokens));
        }
      }
    }
#pragma GCC unroll 2
    for (int i = 0; !kExact && i < R; ++i) at[i] = p[i];
  }
  static TAMIS_INLINE simd::F32 to_f32(Sum sum) { return _mm256_cvtepi32_ps(sum); }
};

// The step of a largest magnitude: the smallest power of two, 2^-120 at least, that covers it.
// NaN if that is not finite.
TAMIS_INLINE float step_of(uint32_t bits) {
  if (bits >= 0x7f800000u) return __builtin_nanf("");
  // largest < 2^(exponent + 1) = 2048 * 2^(exponent - 10); one more for what rounds up to 2048.
  const int exponent = static_cast<int>(bits >> 23) - 127 - 10 + ((bits & 0x7ff000u) == 0x7ff000u);
  return __builtin_bit_cast(float, static_cast<uint32_t>((exponent < -120 ? -120 : exponent) + 127)
                                       << 23);
}

// Codes of the n <= kStepColumns columns at x, zeros after them; returns 1/256 of their step, as
// the weights arrive 256 times too large.
template <class X>
TAMIS_INLINE float quantize(const X* x, int64_t n, int16_t* codes) {
  const auto columns = [x, n](int64_t i) __attribute__((always_inline)) {
    return i + 8 <= n ? simd::load(x + i)
                      : simd::load(x + (i < n ? i : 0), static_cast<int>(i < n ? n - i : 0));
  };
  // Bit patterns of magnitudes order as the magnitudes do, with NaN above Inf.
  __m256i most = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256i v = _mm256_castps_si256(columns(i));
    most = _mm256_max_epi32(most, _mm256_and_si256(v, _mm256_set1_epi32(0x7fffffff)));
  }
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  uint32_t bits = 0;
  for (const uint32_t lane : lanes) bits = lane > bits ? lane : bits;
  const float step = step_of(bits);
  const simd::F32 factor = simd::splat(1.0f / step);
  for (int64_t i = 0; i < kStepColumns; i += 16) {
    const __m256i low = _mm256_cvtps_epi32(simd::mul(columns(i), factor));
    const __m256i high = _mm256_cvtps_epi32(simd::mul(columns(i + 8), factor));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + i), packed);
  }
  return step * 0x1p-8f;
}

// Steps [part / parts) of all tokens.
template <class X>
void prepare_codes(const SpmmArgs& a, void* prepared, int part, int parts) {
  const XCodes<int16_t> to(a, prepared);
  const int64_t words = mask_words(a.w.cols), steps = step_count(a.w);
  for (int64_t s = steps * part / parts; s < steps * (part + 1) / parts; ++s) {
    const int64_t first = s * kStepColumns, word = first / 64;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    for (int64_t t = 0; t < a.m; ++t) {
      alignas(32) int16_t codes[kStepColumns];
      const X* x = static_cast<const X*>(a.x) + t * a.x_stride + first;
      to.steps[s * a.m + t] = quantize(x, n, codes);
      for (int64_t w = 0; w < kStepColumns / 64 && word + w < words; ++w) {
        std::memcpy(to.codes + ((word + w) * a.m + t) * 64, codes + w * 64, 64 * sizeof *codes);
      }
    }
  }
}

int64_t codes_bytes(const SpmmArgs& a) {
  return XCodes<int16_t>(a, nullptr).bytes;
}

}  // namespace

const SpmmXForm spmm_codes_f32_avx2 = {codes_bytes, prepare_codes<float>, true};
const SpmmXForm spmm_codes_f16_avx2 = {codes_bytes, prepare_codes<F16>, true};
const SpmmXForm spmm_codes_bf16_avx2 = {codes_bytes, prepare_codes<BF16>, true};

TAMIS_CODES_KERNEL(f32, avx2, ExpandWide)
TAMIS_CODES_KERNEL(f16, avx2, ExpandWide)
TAMIS_CODES_KERNEL(bf16, avx2, ExpandWide)

}  // namespace tamis

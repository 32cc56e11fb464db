// groupq of u4 for few tokens with VNNI: codes of w, spread over all columns, times codes of x.
//
// y[m,n] = sum_k x[m,k] * w[n,k].  x: halves, i.e. 8-bit codes (codes.h), their columns in the
// order in which a row's groups come apart; accumulates f32, 16 lanes of a row in one chain:
//   y += step * sum_g scale_g * (sum(codes of w * codes of x) - zero_g * sum(codes of x))
// over the 16 runs g of 16 columns that share a step.  Error: as in groupq_avx512vbmi2.cc.
//
// Tile: one row times up to kHalvesTokens tokens, kStepColumns columns at a time, stored or not, so
// that no loop end depends on w. Three expansions, which read nothing past the row's groups, put 16
// qwords of codes and 16 pairs of scale and zero point where x has their columns; low and high
// halves of bytes then meet x apart. A qword has two sums: joined after the products of one token,
// or, by lanes of codes, before those of several. Operations for 256 columns and one token: 3
// expansions, 2 masks, 6 to split, 4 vpdpbusd, 2 to join, 6 for scales, 4 in f32: 19 to 20 cycles
// on Zen 4 for the 8 groups of half density, where memory delivers in 13 to 16.
//
// Memory: a row after the other is one stream of codes and one of scales, each fetched ahead.
// Tried on Zen 4, cycles for those 8 groups, weights cold, 20.5 as it is: two rows in turns 37;
// fetching 4 KB ahead or more 28, not at all 20.5 to 23.5 (small pages),
// into L2 only the same, but 3 and 4 tokens 1.2 times as long; codes spread by a table of
// permutations 25 (16 KB) and 20 (2 KB and a widening); vgf2p8affineqb for high halves 20.4.
#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"
#include "ops/spmm/kernels.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

constexpr int kHalvesTokens = 6;
constexpr int kHalvesRows = 8;  // whose outputs are stored together
constexpr int64_t kHalvesAhead = 1536;
constexpr int64_t kHalvesSpanBytes = 24 * 1024;  // of x, which so stays in L1
constexpr int kRecord = kStepColumns + 64;       // of a token and step: codes, then 16 sums

// Sums of x carry this factor, by which f16 bits moved into place in an f32 are too small.
constexpr float kF16ToF32 = 0x1p112f;

// Up to kHalvesTokens tokens of the prepared x.
struct XHalves {
  int64_t tokens;
  int8_t* codes;  // [steps][tokens] records
  float* steps;   // [steps][tokens]

  TAMIS_INLINE XHalves(const SpmmArgs& a, void* prepared, int64_t token) {
    const int64_t first = token / kHalvesTokens * kHalvesTokens, count = step_count(a.w);
    tokens = a.m - first < kHalvesTokens ? a.m - first : kHalvesTokens;
    codes = static_cast<int8_t*>(prepared) + first * count * kRecord;
    steps = reinterpret_cast<float*>(static_cast<char*>(prepared) + a.m * count * kRecord) +
            first * count;
  }
};

int64_t halves_bytes(const SpmmArgs& a) {
  return a.m * step_count(a.w) * (kRecord + 4);
}

TAMIS_INLINE __m512i even_lanes(__m512i a, __m512i b) {
  return _mm512_permutex2var_epi32(
      a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}
TAMIS_INLINE __m512i odd_lanes(__m512i a, __m512i b) {
  return _mm512_permutex2var_epi32(
      a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
}

// The two lanes of each qword added; four qwords of a, four of b and so on in turns of two. Sums
// of 8 codes below 16 times 8-bit ones have 16 bits.
TAMIS_INLINE __m512i join_pairs(__m512i a, __m512i b) {
  return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1));
}

template <class X>
void prepare_halves(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t steps = step_count(a.w);
  // Qwords of low halves and of high halves in the codes of 128 columns.
  const __m512i low = a.w.group_size == 32 ? _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13)
                                           : _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  const __m512i high = _mm512_add_epi64(low, _mm512_set1_epi64(a.w.group_size / 16));
  const __m512i ones = bytes_of(1);
  for (int64_t s = steps * part / parts; s < steps * (part + 1) / parts; ++s) {
    const int64_t first = s * kStepColumns;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    for (int64_t token = 0; token < a.m; ++token) {
      const XHalves to(a, prepared, token);
      const int64_t at = s * to.tokens + token % kHalvesTokens;
      auto* out = to.codes + at * kRecord;
      __m512i codes[kStepWords], v[4];
      to.steps[at] = quantize(static_cast<const X*>(a.x) + token * a.x_stride + first, n, codes);
      for (int i = 0; i < 2; ++i) {
        v[2 * i] = _mm512_permutex2var_epi64(codes[2 * i], low, codes[2 * i + 1]);
        v[2 * i + 1] = _mm512_permutex2var_epi64(codes[2 * i], high, codes[2 * i + 1]);
      }
      if (to.tokens > 1) {
        const __m512i by_qword[4] = {v[0], v[1], v[2], v[3]};
        for (int i = 0; i < 2; ++i) {
          v[i] = even_lanes(by_qword[i], by_qword[2 + i]);
          v[2 + i] = odd_lanes(by_qword[i], by_qword[2 + i]);
        }
      }
      __m512i sums[2];
      for (int i = 0; i < 2; ++i) {
        _mm512_store_si512(out + 128 * i, v[2 * i]);
        _mm512_store_si512(out + 128 * i + 64, v[2 * i + 1]);
        sums[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, v[2 * i]);
        sums[i] = _mm512_dpbusd_epi32(sums[i], ones, v[2 * i + 1]);
      }
      const __m512i sum =
          to.tokens > 1 ? _mm512_add_epi32(sums[0], sums[1]) : join_pairs(sums[0], sums[1]);
      _mm512_store_ps(reinterpret_cast<float*>(out + kStepColumns),
                      _mm512_mul_ps(_mm512_cvtepi32_ps(sum), simd::splat(kF16ToF32)));
    }
  }
}

// Rows of a tile between two spans of columns.
template <int T>
struct HalvesTile {
  alignas(64) simd::F32 sum[T][kHalvesRows];
  int64_t at[kHalvesRows];  // the next stored group
};

// Steps [step, step_end) of row `row`, the tile's r-th.
template <int G, int T>
TAMIS_INLINE void halves_row(const SpmmArgs& a, const XHalves& x, int64_t row, int64_t step,
                             int64_t step_end, int r, HalvesTile<T>& tile) {
  // Which pair each sum meets, of 16, or of 8 groups of 32 columns each twice.
  const __m512i order =
      T == 1 ? _mm512_setr_epi32(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
             : _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i order_of_pairs = G == 16 ? order : _mm512_srli_epi32(order, 1);
  const __m512i low = bytes_of(15);
  const auto* mask =
      reinterpret_cast<const uint8_t*>(a.w.mask + row * mask_words(a.w.cols / G)) + step * 32 / G;
  int64_t at = tile.at[r];
  simd::F32 sum[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) sum[t] = tile.sum[t][r];
  const int8_t* x_codes = x.codes + step * T * kRecord;
  const float* x_steps = x.steps + step * T;
  for (; step < step_end; ++step, mask += 32 / G, x_codes += T * kRecord, x_steps += T) {
    uint32_t bits = mask[0], qwords;
    if constexpr (G == 16) {
      bits |= uint32_t{mask[1]} << 8;
      qwords = bits;
    } else {
      qwords = _pdep_u32(bits, 0x5555) * 3;
    }
    const uint8_t* codes = static_cast<const uint8_t*>(a.w.values) + at * (G / 2);
    const uint16_t* pairs = a.w.group_scales + 2 * at;
    __builtin_prefetch(codes + kHalvesAhead, 0, 3);
    __builtin_prefetch(pairs + kHalvesAhead / 4, 0, 3);
    at += simd::popcount(bits);
    __m512i first =
        _mm512_mask_expandloadu_epi64(simd::opaque_zero(), static_cast<__mmask8>(qwords), codes);
    __m512i second =
        _mm512_mask_expandloadu_epi64(simd::opaque_zero(), static_cast<__mmask8>(qwords >> 8),
                                      codes + 8 * simd::popcount(qwords & 0xff));
    __m512i pair =
        _mm512_mask_expandloadu_epi32(simd::opaque_zero(), static_cast<__mmask16>(bits), pairs);
    if constexpr (T > 1) {
      const __m512i a_qwords = first;
      first = even_lanes(a_qwords, second);
      second = odd_lanes(a_qwords, second);
    }
    if constexpr (T == 1 || G == 32) pair = _mm512_permutexvar_epi32(order_of_pairs, pair);
    const __m512 scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pair));
    const __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(
        _mm512_srai_epi32(pair, 3), _mm512_set1_epi32(static_cast<int>(0x8fffe000))));
    const __m512i first_low = _mm512_and_si512(first, low);
    const __m512i first_high = _mm512_and_si512(_mm512_srli_epi16(first, 4), low);
    const __m512i second_low = _mm512_and_si512(second, low);
    const __m512i second_high = _mm512_and_si512(_mm512_srli_epi16(second, 4), low);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const int8_t* c = x_codes + t * kRecord;
      __m512i dots = _mm512_setzero_si512();
      dots = _mm512_dpbusd_epi32(dots, first_low, _mm512_load_si512(c));
      dots = _mm512_dpbusd_epi32(dots, first_high, _mm512_load_si512(c + 64));
      if constexpr (T == 1) {
        __m512i others = _mm512_setzero_si512();
        others = _mm512_dpbusd_epi32(others, second_low, _mm512_load_si512(c + 128));
        others = _mm512_dpbusd_epi32(others, second_high, _mm512_load_si512(c + 192));
        dots = join_pairs(dots, others);
      } else {
        dots = _mm512_dpbusd_epi32(dots, second_low, _mm512_load_si512(c + 128));
        dots = _mm512_dpbusd_epi32(dots, second_high, _mm512_load_si512(c + 192));
      }
      const __m512 sums = _mm512_load_ps(reinterpret_cast<const float*>(c + kStepColumns));
      const __m512 centred = _mm512_fnmadd_ps(zero, sums, _mm512_cvtepi32_ps(dots));
      sum[t] = simd::fma(_mm512_mul_ps(centred, scale), simd::splat(x_steps[t]), sum[t]);
    }
  }
  tile.at[r] = at;
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) tile.sum[t][r] = sum[t];
}

template <int G, int T>
void halves_pass(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  const XHalves x(a, const_cast<void*>(a.prepared), token);
  const int64_t steps = step_count(a.w);
  constexpr int64_t kSpan = kHalvesSpanBytes / (T * kRecord);
  PageWalks walks(a.w, row, row_end);
  HalvesTile<T> tile;
  for (; row < row_end; row += kHalvesRows) {
    walks.before(row + 2 * kHalvesRows);
    const int rows = static_cast<int>(row_end - row < kHalvesRows ? row_end - row : kHalvesRows);
    for (int r = 0; r < kHalvesRows; ++r) {
      tile.at[r] = a.w.row_offsets[row + (r < rows ? r : 0)];
      for (int t = 0; t < T; ++t) tile.sum[t][r] = simd::zero();
    }
    for (int64_t step = 0; step < steps; step += kSpan) {
      const int64_t step_end = steps - step < kSpan ? steps : step + kSpan;
      for (int r = 0; r < rows; ++r) halves_row<G, T>(a, x, row + r, step, step_end, r, tile);
    }
    for (int t = 0; t < T; ++t) store_rows(a, simd::sums(tile.sum[t]), row, token + t, rows);
  }
}

template <int G>
void spmm_halves(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Pass = void (*)(const SpmmArgs&, int64_t, int64_t, int64_t);
  static constexpr Pass kPass[kHalvesTokens] = {halves_pass<G, 1>, halves_pass<G, 2>,
                                                halves_pass<G, 3>, halves_pass<G, 4>,
                                                halves_pass<G, 5>, halves_pass<G, 6>};
  for (int64_t token = 0; token < a.m; token += kHalvesTokens) {
    const int64_t tokens = a.m - token < kHalvesTokens ? a.m - token : kHalvesTokens;
    kPass[tokens - 1](a, row_begin, row_end, token);
  }
}

}  // namespace

#define TAMIS_HALVES_KERNEL(x, X)                                                               \
  const SpmmXForm spmm_halves_##x##_avx512vbmi2 = {halves_bytes, prepare_halves<X>, true};      \
  void spmm_groupq_u4_##x##_avx512vbmi2_halves(const SpmmArgs& a, int64_t begin, int64_t end) { \
    if (a.w.group_size == 16) return spmm_halves<16>(a, begin, end);                            \
    spmm_halves<32>(a, begin, end);                                                             \
  }

TAMIS_HALVES_KERNEL(f32, float)
TAMIS_HALVES_KERNEL(f16, F16)
TAMIS_HALVES_KERNEL(bf16, BF16)

#undef TAMIS_HALVES_KERNEL

}  // namespace tamis

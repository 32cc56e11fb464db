// groupq for several tokens with VNNI: codes of w times 8-bit codes of x (W4A8, W8A8).
//
// y[m,n] = sum_k x[m,k] * w[n,k].  x: lanes of T = 4, 8 or 16 tokens (groupq_lanes.h). For each
// stored group
//   y += scale * step * sum(codes of w * codes of x) - scale * zero * step * sum(codes of x),
// whose last sums are made once a call.  Error: that of x, at most half a step per element of a
// stored group, plus c * eps * sum |w||x| of the f32 sums.
//
// Tile: one row times a block. Codes of 4 bits are split 64 at a time onto the stack, from where
// broadcasts take load ports alone. Per group of 16 and 4 / 8 / 16 tokens: 1 / 2 / 4 vpdpbusd,
// vcvtdq2ps, vmulps, one or two vfmadd: 5 to 9 operations of ports 0 and 5. What bounded it was the
// number of instructions, 22 a group at 4 tokens, six a cycle: so sums of codes take a vfmadd for
// 16 groups and a token (below), a turn of the loop takes eight groups, and places come scaled.
//
// Needs: codes of missing tokens zero.   Tail: masked loads of a row's last codes.
// A token with NaN or Inf gets NaN where a row stores a group among those kStepColumns columns.
#include "base/simd/avx512.h"
#include "base/simd/transpose16.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"
#include "ops/spmm/groupq_avx512.h"
#include "ops/spmm/groupq_eights.h"
#include "ops/spmm/groupq_lanes.h"
#include "ops/spmm/kernels.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

constexpr int kRowsAtOnce = 16;  // whose outputs are stored together
constexpr int64_t kLanesAhead = 4096;

using Lanes = XLanes<AnyLanes>;

// 64 / T codes, repeated.
template <int T>
TAMIS_INLINE __m512i repeat(const uint8_t* p) {
  if constexpr (T == 4) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else if constexpr (T == 8) {
    int64_t eight;
    __builtin_memcpy(&eight, p, 8);
    return _mm512_set1_epi64(eight);
  } else {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
}

// The codes of groups worth 64 columns to out[64], in order.
template <int G>
TAMIS_INLINE void split_codes(const uint8_t* p, uint8_t* out) {
  _mm512_store_si512(out, split_halves<G>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
// The same of which the first `groups` exist.
template <int G>
TAMIS_INLINE void split_codes(const uint8_t* p, int64_t groups, uint8_t* out) {
  constexpr int kWords = G / 16;  // qwords of a group
  const auto words = static_cast<unsigned>(groups < 0 ? 0 : groups < 4 ? groups * kWords : 4);
  const auto there = static_cast<__mmask8>(_bzhi_u32(0xf, words));
  _mm512_store_si512(out, split_halves<G>(_mm256_maskz_loadu_epi64(there, p)));
}

// T floats, zeros after them.
template <int T>
TAMIS_INLINE __m512 load_tokens(const float* p) {
  if constexpr (T == 4) return _mm512_zextps128_ps512(_mm_loadu_ps(p));
  if constexpr (T == 8) return _mm512_zextps256_ps512(_mm256_loadu_ps(p));
  return _mm512_loadu_ps(p);
}

// The stored groups of up to kMostGroups groups of a row.
struct LaneGroups {
  uint16_t place[kMostGroups + 64];              // of codes in x, in 64 bytes
  alignas(64) float pair[2 * kMostGroups + 64];  // scale, -scale * zero
};

// Lane t: sum over groups [first, ...) of a row, decoded in `stored`, of offset times x's sums.
template <int G, int T>
TAMIS_INLINE __m512 sum_offsets(const SpmmArgs& a, const Lanes& x, int64_t row, int64_t first,
                                const LaneGroups& stored) {
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  const int64_t groups = a.w.cols / G, words = mask_words(groups);
  const int64_t last = first + kMostGroups < groups ? first + kMostGroups : groups;
  const auto* mask = reinterpret_cast<const uint16_t*>(a.w.mask + row * words);
  __m512 rest[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) rest[t] = simd::zero();
  const float* pairs = stored.pair;
  for (int64_t g = first; g < last; g += 16) {
    const __mmask16 there = mask[g / 16];
    const __m512 packed =
        _mm512_permutex2var_ps(_mm512_loadu_ps(pairs), odd, _mm512_loadu_ps(pairs + 16));
    const __m512 offset =
        _mm512_mask_expand_ps(_mm512_castsi512_ps(simd::opaque_zero()), there, packed);
    pairs += 2 * simd::popcount(there);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      rest[t] = simd::fma(offset, _mm512_loadu_ps(x.sums + t * x.token_stride + g), rest[t]);
    }
  }
  return simd::sums(rest);
}

// One row times a block: a sum per token.
template <DType kW, int G, int T, bool kByToken>
TAMIS_INLINE __m512 lanes_row(const SpmmArgs& a, const Lanes& x, int64_t row, LaneGroups& stored) {
  constexpr int kBytes = kW == DType::u4 ? G / 2 : G;
  constexpr int kVectors = G * T / 64;
  // Each with chains of its own, or the latency of vfmadd would be what a group costs.
  constexpr int kBatch = 4, kTurn = 2 * kBatch;
  constexpr unsigned kPlaces = G * T / 64, kStepPlaces = kStepColumns * T / 64;
  static_assert(kPlaces * kMostGroups <= 65536, "places are 16 bits");
  const int64_t groups = a.w.cols / G, words = mask_words(groups);
  __m512 sum[kBatch], rest[kBatch];
#pragma GCC unroll 4
  for (int j = 0; j < kBatch; ++j) sum[j] = rest[j] = simd::zero();
  int64_t at = a.w.row_offsets[row];
  int64_t stored_here;
  for (int64_t first = 0; first < groups; first += kMostGroups, at += stored_here) {
    const int64_t left_words = words - first / 64;
    stored_here = put_places(a.w.mask + row * words + first / 64,
                             left_words < kMostGroups / 64 ? left_words : kMostGroups / 64, kPlaces,
                             0, stored.place);
    put_pairs(a.w.group_scales + 2 * at, stored_here, stored.pair);
    if constexpr (kByToken) {
      rest[0] = _mm512_add_ps(rest[0], sum_offsets<G, T>(a, x, row, first, stored));
    }
    const uint8_t* codes = static_cast<const uint8_t*>(a.w.values) + at * kBytes;
    const int8_t* x_codes = x.codes + first * (G * T);
    const auto* x_steps = reinterpret_cast<const char*>(x.steps + first * G / kStepColumns * 16);
    const auto multiply = [&](int64_t i, const uint8_t* w, int j) __attribute__((always_inline)) {
      const unsigned place = stored.place[i];
      __m512i dots = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        dots = _mm512_dpbusd_epi32(dots, repeat<T>(w + v * (64 / T)),
                                   _mm512_load_si512(x_codes + place * 64 + 64 * v));
      }
      const char* steps = x_steps + (place & ~(kStepPlaces - 1)) * (64 / kStepPlaces);
      const __m512 in_steps = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_load_ps(steps));
      sum[j] = simd::fma(in_steps, simd::splat(stored.pair[2 * i]), sum[j]);
      if constexpr (!kByToken) {
        const float* sums = x.sums + (first + place / kPlaces) * T;
        rest[j] = simd::fma(load_tokens<T>(sums), simd::splat(stored.pair[2 * i + 1]), rest[j]);
      }
    };
    alignas(64) uint8_t split[kTurn * G];
    int64_t i = 0;
    for (; i + kTurn <= stored_here; i += kTurn, codes += kTurn * kBytes) {
      const uint8_t* w = codes;
      if constexpr (kW == DType::u4) {
#pragma GCC unroll 4
        for (int c = 0; c < kTurn * G; c += 64) split_codes<G>(codes + c / 2, split + c);
        w = split;
        // Else GCC broadcasts out of registers, by port 5, where loads cost nothing.
        __asm__("" : "+r"(w) : : "memory");
      }
      __builtin_prefetch(codes + kLanesAhead, 0, kCodesToL2);
#pragma GCC unroll 8
      for (int j = 0; j < kTurn; ++j) multiply(i + j, w + j * G, j % kBatch);
    }
    for (; i < stored_here; i += kBatch, codes += kBatch * kBytes) {
      const int64_t left = stored_here - i;
      const uint8_t* w = codes;
      if constexpr (kW == DType::u4) {
#pragma GCC unroll 2
        for (int c = 0; c < kBatch * G; c += 64) {
          split_codes<G>(codes + c / 2, left - c / G, split + c);
        }
        w = split;
        __asm__("" : "+r"(w) : : "memory");
      }
#pragma GCC unroll 4
      for (int j = 0; j < kBatch; ++j) {
        if (j < left) multiply(i + j, w + j * G, j);
      }
    }
  }
  for (__m512(*chain)[kBatch] : {&sum, &rest}) {
    (*chain)[0] = _mm512_add_ps(_mm512_add_ps((*chain)[0], (*chain)[1]),
                                _mm512_add_ps((*chain)[2], (*chain)[3]));
  }
  return join_lanes<T>(sum[0], rest[0]);
}

template <DType kW, int G, int T, bool kByToken>
void lanes_pass(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  const Lanes x(a, const_cast<void*>(a.prepared), token / T);
  const int64_t tokens = a.m - token < T ? a.m - token : T;
  PageWalks walks(a.w, row, row_end);
  LaneGroups stored;
  alignas(64) float out[T][kRowsAtOnce] = {};
  for (; row < row_end; row += kRowsAtOnce) {
    walks.before(row + 2 * kRowsAtOnce);
    const int rows = static_cast<int>(row_end - row < kRowsAtOnce ? row_end - row : kRowsAtOnce);
    for (int r = 0; r < rows; ++r) {
      alignas(64) float of_row[16];
      _mm512_store_ps(of_row, lanes_row<kW, G, T, kByToken>(a, x, row + r, stored));
      for (int t = 0; t < T; ++t) out[t][r] = of_row[t];
    }
    for (int64_t t = 0; t < tokens; ++t) {
      store_rows(a, _mm512_load_ps(out[t]), row, token + t, rows);
    }
  }
}

// Many tokens. What bounds them, a block at a time and rows whole, is x: four lines a group from
// L2, of which L1 gets a quarter a cycle, where the products are 4 cycles. So rows are decoded
// together, kPiece columns at a time, codes of 4 bits split, and take turns over the x of kSpan
// columns and two blocks, 20 KB. Per group of 16 and 32 tokens: 16 operations of ports 0 and 5, 19
// loads.
constexpr int kManyRows = 32;
constexpr int kManyBlocks = 16;
constexpr int64_t kPieceColumns = 4096, kSpanColumns = 512;

template <int G>
struct ManyRows {
  static constexpr int kPiece = kPieceColumns / G, kSpan = kSpanColumns / G;  // groups
  uint16_t place[kManyRows][kPiece + 64];       // of each stored group's codes in x, in 64 bytes
  uint16_t end[kManyRows][kPiece / kSpan + 1];  // stored groups before each span
  const uint8_t* codes[kManyRows];
  alignas(64) float pair[kManyRows][2 * kPiece + 16];  // scale, -scale * zero
  alignas(64) uint8_t split[kManyRows][kPiece * G + 64];
  alignas(64) float total[kManyBlocks][kManyRows][16];
};

// Groups [first, first + kPiece) of a row, the first stored one being group `at` of all. Returns
// how many are stored.
template <DType kW, int G>
TAMIS_INLINE int64_t decode_row(const MatrixView& w, int64_t row, int64_t first, int64_t at, int r,
                                ManyRows<G>& rows) {
  constexpr int kSpan = ManyRows<G>::kSpan, kPiece = ManyRows<G>::kPiece;
  const int64_t groups = w.cols / G, words = mask_words(groups);
  const uint64_t* mask = w.mask + row * words + first / 64;
  const int64_t left = words - first / 64;
  const int64_t here = left < kPiece / 64 ? left : kPiece / 64;
  const int64_t stored = put_places(mask, here, G / 4, 0, rows.place[r]);
  put_pairs(w.group_scales + 2 * at, stored, rows.pair[r]);
  int64_t end = 0;
  for (int span = 0; span <= kPiece / kSpan; ++span) {
    rows.end[r][span] = static_cast<uint16_t>(end);
    const int64_t bit = int64_t{span} * kSpan;
    if (bit < here * 64) {
      end += simd::popcount(mask[bit / 64] >> (bit % 64) & ~uint64_t{0} >> (64 - kSpan));
    }
  }
  const uint8_t* codes = static_cast<const uint8_t*>(w.values);
  if constexpr (kW == DType::u4) {
    rows.codes[r] = rows.split[r];
    codes += at * (G / 2);
    for (int64_t i = 0; i < stored; i += 64 / G, codes += 32) {
      if (stored - i >= 64 / G) {
        split_codes<G>(codes, rows.split[r] + i * G);
      } else {
        split_codes<G>(codes, stored - i, rows.split[r] + i * G);
      }
    }
  } else {
    rows.codes[r] = codes + at * G;
  }
  return stored;
}

// What rows store in a span, times B blocks of tokens from `block` on.
template <int G, int B>
void multiply_span(ManyRows<G>& rows, int count, int span, const Lanes (&x)[2], int64_t first,
                   int64_t block) {
  constexpr int kSpan = ManyRows<G>::kSpan, kCodes = kSpan * G * 16;
  constexpr uint64_t kStepPlaces = kStepColumns / 4;
  const int8_t* x_codes[B];
  const char *x_steps[B], *x_sums[B];
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b) {
    x_codes[b] = x[b].codes + first * (G * 16);
    x_steps[b] = reinterpret_cast<const char*>(x[b].steps + first * G / kStepColumns * 16);
    x_sums[b] = reinterpret_cast<const char*>(x[b].sums + first * 16);
  }
  for (int r = 0; r < count; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {  // of the next span
      const int64_t group = first + (span + 1) * kSpan;
      const int8_t* codes = x[b].codes + group * (G * 16) + r * (kCodes / kManyRows);
      for (int i = 0; i < kCodes / kManyRows; i += 64) __builtin_prefetch(codes + i, 0, 3);
      const float* sums = x[b].sums + group * 16 + r * (kSpan / kManyRows * 16);
      for (int i = 0; i < kSpan / kManyRows; ++i) __builtin_prefetch(sums + i * 16, 0, 3);
    }
    __m512 sum[B], rest[B];
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      sum[b] = _mm512_load_ps(rows.total[block + b][r]);
      rest[b] = simd::zero();
    }
    const int64_t begin = rows.end[r][span], end = rows.end[r][span + 1];
    const uint8_t* w = rows.codes[r] + begin * G;
    const float* pair = rows.pair[r] + 2 * begin;
    const uint16_t* const last = rows.place[r] + end;
    for (const uint16_t* place = rows.place[r] + begin; place < last; ++place, w += G, pair += 2) {
      const uint64_t at = *place;
      __m512i dots[B];
      const int8_t* codes[B];
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) {
        dots[b] = _mm512_setzero_si512();
        codes[b] = x_codes[b] + at * 64;
        __asm__("" : "+r"(codes[b]));  // a product with an index register is two operations
      }
#pragma GCC unroll 8
      for (int v = 0; v < G / 4; ++v) {
        const __m512i four = repeat<16>(w + 4 * v);
#pragma GCC unroll 2
        for (int b = 0; b < B; ++b) {
          dots[b] = _mm512_dpbusd_epi32(dots[b], four, _mm512_load_si512(codes[b] + 64 * v));
        }
      }
      const __m512 scale = simd::splat(pair[0]), offset = simd::splat(pair[1]);
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) {
        const __m512 steps = _mm512_load_ps(x_steps[b] + at / kStepPlaces * 64);
        const __m512 sums = _mm512_load_ps(x_sums[b] + at * (256 / G));
        sum[b] = simd::fma(_mm512_mul_ps(_mm512_cvtepi32_ps(dots[b]), steps), scale, sum[b]);
        rest[b] = simd::fma(sums, offset, rest[b]);
      }
    }
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      _mm512_store_ps(rows.total[block + b][r], _mm512_add_ps(sum[b], rest[b]));
    }
  }
}

// Rows [row, row + count) of the tokens of blocks [first, first + blocks).
template <int G>
void store_many(const SpmmArgs& a, const ManyRows<G>& rows, int64_t row, int count, int64_t first,
                int64_t blocks) {
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t token = (first + block) * 16;
    for (int r = 0; r < count; r += 16) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) v[i] = _mm512_load_si512(rows.total[block][r + i]);
      transpose(v);
      const int n = count - r < 16 ? count - r : 16;
      for (int t = 0; t < 16 && token + t < a.m; ++t) {
        store_rows(a, _mm512_castsi512_ps(v[t]), row + r, token + t, n);
      }
    }
  }
}

template <DType kW, int G>
void lanes_many(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  constexpr int kPiece = ManyRows<G>::kPiece, kSpan = ManyRows<G>::kSpan;
  const int64_t groups = a.w.cols / G, all_blocks = ceil_div(a.m, 16);
  const int64_t passes = ceil_div(all_blocks, kManyBlocks);
  ManyRows<G> rows;
  for (int64_t row = row_begin; row < row_end; row += kManyRows) {
    const int count = static_cast<int>(row_end - row < kManyRows ? row_end - row : kManyRows);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first_block = all_blocks * pass / passes;
      const int64_t blocks = all_blocks * (pass + 1) / passes - first_block;
      int64_t at[kManyRows];
      for (int r = 0; r < count; ++r) at[r] = a.w.row_offsets[row + r];
      __builtin_memset(rows.total, 0, sizeof rows.total);
      for (int64_t first = 0; first < groups; first += kPiece) {
        for (int r = 0; r < count; ++r) {
          at[r] += decode_row<kW, G>(a.w, row + r, first, at[r], r, rows);
        }
        const int64_t spans = ceil_div(groups - first < kPiece ? groups - first : kPiece, kSpan);
        for (int64_t block = 0; block < blocks; block += 2) {
          auto* prepared = const_cast<void*>(a.prepared);
          const bool two = block + 2 <= blocks;
          const Lanes x[2] = {Lanes(a, prepared, first_block + block),
                              Lanes(a, prepared, first_block + block + two)};
          const auto multiply = two ? multiply_span<G, 2> : multiply_span<G, 1>;
          for (int64_t span = 0; span < spans; ++span) {
            multiply(rows, count, static_cast<int>(span), x, first, block);
          }
        }
      }
      store_many(a, rows, row, count, first_block, blocks);
    }
  }
}

template <DType kW, int G>
void spmm_lanes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  if (a.m > 16) return lanes_many<kW, G>(a, row_begin, row_end);
  const bool by_token = AnyLanes::by_token(a);
  const auto pass = a.m > 8 ? lanes_pass<kW, G, 16, false>
                    : a.m <= 4
                        ? (by_token ? lanes_pass<kW, G, 4, true> : lanes_pass<kW, G, 4, false>)
                        : (by_token ? lanes_pass<kW, G, 8, true> : lanes_pass<kW, G, 8, false>);
  pass(a, row_begin, row_end, 0);
}

template <DType kW>
void spmm_lanes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  if (a.w.group_size == 16) return spmm_lanes<kW, 16>(a, row_begin, row_end);
  spmm_lanes<kW, 32>(a, row_begin, row_end);
}

}  // namespace

#define TAMIS_LANES_KERNEL(x, X)                                                               \
  const SpmmXForm spmm_lanes_##x##_avx512vbmi2 = {lanes_bytes<AnyLanes>,                       \
                                                  prepare_lanes<AnyLanes, X>, true};           \
  void spmm_groupq_u4_##x##_avx512vbmi2_lanes(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_lanes<DType::u4>(a, begin, end);                                                      \
  }                                                                                            \
  void spmm_groupq_u8_##x##_avx512vbmi2_lanes(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_lanes<DType::u8>(a, begin, end);                                                      \
  }

TAMIS_LANES_KERNEL(f32, float)
TAMIS_LANES_KERNEL(f16, F16)
TAMIS_LANES_KERNEL(bf16, BF16)

#undef TAMIS_LANES_KERNEL

#define TAMIS_EIGHTS_KERNEL(x, X)                                                               \
  const SpmmXForm spmm_eights_##x##_avx512vbmi2 = {eights_bytes, prepare_eights<X>};            \
  void spmm_groupq_u4_##x##_avx512vbmi2_eights(const SpmmArgs& a, int64_t begin, int64_t end) { \
    if (a.w.group_size == 16) return spmm_eights<Level512::U4<16>>(a, begin, end);              \
    spmm_eights<Level512::U4<32>>(a, begin, end);                                               \
  }                                                                                             \
  void spmm_groupq_u8_##x##_avx512vbmi2_eights(const SpmmArgs& a, int64_t begin, int64_t end) { \
    if (a.w.group_size == 16) return spmm_eights<Level512::U8<16>>(a, begin, end);              \
    spmm_eights<Level512::U8<32>>(a, begin, end);                                               \
  }

TAMIS_EIGHTS_KERNEL(f32, float)
TAMIS_EIGHTS_KERNEL(f16, F16)
TAMIS_EIGHTS_KERNEL(bf16, BF16)

#undef TAMIS_EIGHTS_KERNEL

}  // namespace tamis

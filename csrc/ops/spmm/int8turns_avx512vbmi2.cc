// bitmap and nm of i8 for 4 tokens: expanded weights stay in a register, x takes turns.
//
// y[m,n] = sum_k x[m,k] * w[n,k].  x: turns, i.e. for 64 columns of four tokens four vectors, in
// whose j-th lane l of 128 bits has columns [16l, 16l + 16) of token (l + j) % 4. So 64 weights as
// they are meet all four tokens in four products, and a chunk's four sums, turned back, add up to
// one vector, a lane a token: one conversion and one product with steps where codes-inl.h has four.
// Accumulates i32 within a chunk of columns, exactly, then f32.  Error: as in codes-inl.h.
//
// Tile: 4 rows, 16 sums and 4 totals in registers. Zen 4, cycles for 64 columns of a row, pipes 0
// and 1: 4 vpdpbusd, kmovq 1.0, vpexpandb 0.75, FMA 0.25: 6.0; measured 7.5 in cache, 8.7 cold,
// codes 9.1 and 10.3. Two rows 7.8 and 9.1. Eight tokens in two such halves, which so read x from
// L2 for every 8 rows a chunk at a time, take 13.6 (int8octets 10.7).
//
// Memory, needs and tail: as in codes-inl.h.
#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"
#include "ops/spmm/kernels.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

constexpr int kTurns = 4;  // tokens, and lanes of a vector
constexpr int kRows = 4;
constexpr int kTileRows = 8;
constexpr int64_t kWordBytes = 64 * kTurns;
constexpr int64_t kStepBytes = kStepColumns * kTurns;
constexpr int64_t kReadsPast = 64;

// The prepared x.
struct XTurns {
  int64_t fours;    // of tokens, the last of which may lack some
  int8_t* codes;    // [steps, fours, kStepWords, kTurns, 64]
  int32_t* starts;  // [chunks, fours, 16]: what sums begin with
  float* steps;     // [steps, fours, 16], by lanes
  int64_t bytes;

  TAMIS_INLINE XTurns(const SpmmArgs& a, void* prepared) : fours(ceil_div(a.m, kTurns)) {
    const int64_t code_bytes = step_count(a.w) * fours * kStepBytes;
    const int64_t start_bytes = chunk_limit(a.w) * fours * 64;
    codes = static_cast<int8_t*>(prepared);
    starts = reinterpret_cast<int32_t*>(codes + code_bytes);
    steps = reinterpret_cast<float*>(codes + code_bytes + start_bytes);
    bytes = code_bytes + start_bytes + step_count(a.w) * fours * 64;
  }
};

int64_t turns_bytes(const SpmmArgs& a) {
  return XTurns(a, nullptr).bytes;
}

// Lane l of v[(l + J) % 4].
template <int J>
TAMIS_INLINE __m512i turn(const __m512i (&v)[kTurns]) {
  const __m512i two = _mm512_mask_mov_epi64(v[J], 0x0c, v[(1 + J) % 4]);
  const __m512i three = _mm512_mask_mov_epi64(two, 0x30, v[(2 + J) % 4]);
  return _mm512_mask_mov_epi64(three, 0xc0, v[(3 + J) % 4]);
}

// Lane (l + j) % 4 of the result has lane l of v[j], added up.
TAMIS_INLINE __m512i turn_back(const __m512i (&v)[kTurns]) {
  const __m512i one = _mm512_shuffle_i32x4(v[1], v[1], 0x93);
  const __m512i two = _mm512_shuffle_i32x4(v[2], v[2], 0x4e);
  const __m512i three = _mm512_shuffle_i32x4(v[3], v[3], 0x39);
  return _mm512_add_epi32(_mm512_add_epi32(v[0], one), _mm512_add_epi32(two, three));
}

// Steps [part / parts) of all tokens, those that are missing included.
template <class X>
void prepare_turns(const SpmmArgs& a, void* prepared, int part, int parts) {
  const XTurns to(a, prepared);
  const int64_t count = step_count(a.w) * to.fours;
  for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
    const int64_t step = i / to.fours, four = i % to.fours, first = step * kStepColumns;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    __m512i codes[kTurns][kStepWords];
    for (int64_t t = 0; t < kTurns; ++t) {
      const int64_t token = four * kTurns + t;
      float of_token = 0;
      if (token < a.m) {
        of_token = quantize(static_cast<const X*>(a.x) + token * a.x_stride + first, n, codes[t]);
      } else {
        for (auto& word : codes[t]) word = _mm512_setzero_si512();
      }
      for (int64_t j = 0; j < 4; ++j) to.steps[i * 16 + t * 4 + j] = of_token;
    }
    int8_t* out = to.codes + i * kStepBytes;
    for (int w = 0; w < kStepWords; ++w) {
      const __m512i of_word[kTurns] = {codes[0][w], codes[1][w], codes[2][w], codes[3][w]};
      _mm512_store_si512(out + w * kWordBytes, turn<0>(of_word));
      _mm512_store_si512(out + w * kWordBytes + 64, turn<1>(of_word));
      _mm512_store_si512(out + w * kWordBytes + 128, turn<2>(of_word));
      _mm512_store_si512(out + w * kWordBytes + 192, turn<3>(of_word));
    }
    for (Chunks chunk(a.w, first); chunk.begin < first + n; chunk.next()) {
      __m512i sums[kTurns] = {};
      for (int64_t word = chunk.begin / 64; word * 64 < chunk.end; ++word) {
        const int8_t* of_word = out + word % kStepWords * kWordBytes;
        for (int j = 0; j < kTurns; ++j) {
          sums[j] =
              _mm512_dpbusd_epi32(sums[j], bytes_of(-128), _mm512_load_si512(of_word + j * 64));
        }
      }
      _mm512_store_si512(to.starts + (chunk.index * to.fours + four) * 16,
                         _mm512_sub_epi32(_mm512_setzero_si512(), turn_back(sums)));
    }
  }
}

// kTileRows rows of w, or fewer, at a chunk of columns, times four tokens.
struct TurnsTile {
  const int8_t* values[kTileRows];  // of each row, moving on with the chunks
  const int8_t* values_end;
  const uint64_t* mask;  // [rows, words] at the chunk's first word
  int64_t words;
  const int8_t* x;  // [steps, fours, kStepBytes] likewise
  const int32_t* starts;
  const float* steps;
  int64_t fours;
  const char* next_values;  // of a later tile, to fetch while this one is computed:
  const char* next_mask;
  int64_t next_row_bytes;  // of values a row and chunk
  int rows;
  alignas(64) simd::F32 total[kTileRows];
};

// R rows within one chunk.
template <int R>
struct TurnsSum {
  __m512i sum[R][kTurns];

  TAMIS_INLINE explicit TurnsSum(const int32_t* starts) {
    const __m512i start = _mm512_load_si512(starts);
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      sum[i][0] = start;
#pragma GCC unroll 4
      for (int j = 1; j < kTurns; ++j) sum[i][j] = _mm512_setzero_si512();
    }
  }

  // One word: its columns within the chunk, values counted on.
  template <bool kExact>
  TAMIS_INLINE void add(const int8_t* (&at)[R], const uint64_t* mask, int64_t words,
                        const int8_t* x, uint64_t within) {
    __m512i weights[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      const uint64_t bits = mask[i * words] & within;
      weights[i] = expand_codes<kExact>(bits, at[i]);
      at[i] += simd::popcount(bits);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kTurns; ++j) {
      // One load for all rows: of 512 bits one a cycle is all there are, and GCC would repeat it.
      __m512i tokens = _mm512_load_si512(x + j * 64);
      __asm__("" : "+v"(tokens));
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) dot(sum[i][j], weights[i], tokens);
    }
  }

  TAMIS_INLINE simd::F32 finish(int i) const { return _mm512_cvtepi32_ps(turn_back(sum[i])); }
};

// `count` whole chunks of kStepColumns, the first ones, of whole rows.
__attribute__((noinline)) void turns_steps(TurnsTile& tile, int64_t count) {
  constexpr int kMaskLines = kRows * kStepWords / 8;
  const int64_t lines = ceil_div(tile.next_row_bytes * kRows, kStepWords * 64);
  for (int r = 0; r < kTileRows; r += kRows) {
    const int8_t* at[kRows];
    simd::F32 total[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      at[i] = tile.values[r + i];
      total[i] = simd::zero();
    }
    const uint64_t* mask = tile.mask + r * tile.words;
    const char* next_values = tile.next_values + r * count * tile.next_row_bytes;
    const char* next_mask = tile.next_mask + r * count * kStepWords * 8;
    const int8_t* x = tile.x;
    const int32_t* starts = tile.starts;
    const float* steps = tile.steps;
    for (int64_t s = 0; s < count; ++s) {
      TurnsSum<kRows> sums(starts);
#pragma GCC unroll 4
      for (int w = 0; w < kStepWords; ++w, ++mask) {
        for (int64_t i = 0; i < lines; ++i) {
          __builtin_prefetch(next_values + (w * lines + i) * 64, 0, kCodesToL2);
        }
#pragma GCC unroll 2
        for (int i = w * kMaskLines / kStepWords; i < (w + 1) * kMaskLines / kStepWords; ++i) {
          __builtin_prefetch(next_mask + i * 64, 0, kCodesToL2);
        }
        sums.template add<false>(at, mask, tile.words, x + w * kWordBytes, ~uint64_t{0});
      }
      const simd::F32 step = _mm512_load_ps(steps);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) total[i] = simd::fma(sums.finish(i), step, total[i]);
      next_values += kRows * tile.next_row_bytes;
      next_mask += kMaskLines * 64;
      x += tile.fours * kStepBytes;
      starts += tile.fours * 16;
      steps += tile.fours * 16;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      tile.values[r + i] = at[i];
      tile.total[r + i] = total[i];
    }
  }
}

// Any chunk of any rows, and never past the end of the values. scales: [rows, groups] at the
// chunk's group, or null.
__attribute__((noinline)) void turns_part(TurnsTile& tile, int64_t begin, int64_t end,
                                          const float* scales, int64_t groups) {
  for (int r = 0; r < tile.rows; ++r) {
    TurnsSum<1> sums(tile.starts);
    const int8_t* at[1] = {tile.values[r]};
    const uint64_t* mask = tile.mask + r * tile.words;
    const int8_t* x = tile.x;
    for (int64_t word = begin / 64; word * 64 < end; ++word, ++mask, x += kWordBytes) {
      const uint64_t within = bits_within(word, begin, end);
      if (tile.values_end - at[0] < kReadsPast) {
        sums.add<true>(at, mask, tile.words, x, within);
      } else {
        sums.add<false>(at, mask, tile.words, x, within);
      }
    }
    tile.values[r] = at[0];
    simd::F32 v = sums.finish(0);
    if (scales) v = simd::mul(v, simd::splat(scales[r * groups]));
    tile.total[r] = simd::fma(v, _mm512_load_ps(tile.steps), tile.total[r]);
  }
}

// Outputs of tokens [token, token + kTurns).
void store_turns(const SpmmArgs& a, const TurnsTile& tile, int64_t row, int64_t token,
                 bool scaled) {
  const auto& v = tile.total;
  const __m512 low = simd::quad(v[0], v[1], v[2], v[3]), high = simd::quad(v[4], v[5], v[6], v[7]);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 0, 0, 0, 0, 0, 0, 0, 0);
  const simd::F32 scale = scaled ? simd::splat(1.0f) : simd::load(a.w.scales + row, tile.rows);
  for (int t = 0; t < kTurns && token + t < a.m; ++t) {
    const __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(4 * t));
    store_rows(a, simd::mul(_mm512_permutex2var_ps(low, at, high), scale), row, token + t,
               tile.rows);
  }
}

void turns_pass(const SpmmArgs& a, const XTurns& x, int64_t row, int64_t row_end, int64_t four) {
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const int64_t words = mask_words(a.w.cols), whole = a.w.cols / kStepColumns;
  const int64_t groups = a.w.group_size < a.w.cols ? ceil_div(a.w.cols, a.w.group_size) : 1;
  const int64_t ahead = code_rows_ahead(a.w, kTileRows);
  PageWalks walks(a.w, row, row_end);
  const int64_t near = row + ahead < row_end ? row + ahead : row_end;
  fetch_codes(values + row_start(a.w, row), values + row_start(a.w, near));
  fetch_codes(a.w.mask + row * words, a.w.mask + near * words);
  TurnsTile tile;
  tile.values_end = values + a.w.nnz;
  tile.words = words;
  tile.fours = x.fours;
  for (; row < row_end; row += kTileRows) {
    tile.rows = static_cast<int>(row_end - row < kTileRows ? row_end - row : kTileRows);
    for (int r = 0; r < tile.rows; ++r) tile.values[r] = values + row_start(a.w, row + r);
    for (auto& total : tile.total) total = simd::zero();
    walks.before(row + ahead + kTileRows);
    const int64_t next = row + ahead < a.w.rows ? row + ahead : a.w.rows;
    tile.next_values = reinterpret_cast<const char*>(values + row_start(a.w, next));
    tile.next_mask = reinterpret_cast<const char*>(a.w.mask + next * words);
    const int8_t* last = values + row_start(a.w, row + tile.rows);
    // Whole loads from the last row's last values on may pass the end.
    const bool steps =
        groups == 1 && tile.rows == kTileRows && tile.values_end - last >= kReadsPast;
    Chunks chunk(a.w);
    if (steps && whole > 0) {
      tile.next_row_bytes = (last - tile.values[0]) / (whole * kTileRows);
      tile.mask = a.w.mask + row * words;
      tile.x = x.codes + four * kStepBytes;
      tile.starts = x.starts + four * 16;
      tile.steps = x.steps + four * 16;
      turns_steps(tile, whole);
      while (chunk.more() && chunk.begin < whole * kStepColumns) chunk.next();
    } else {
      fetch_codes(tile.next_values, tile.next_values + (last - tile.values[0]));
      fetch_codes(tile.next_mask, tile.next_mask + tile.rows * words * 8);
    }
    for (; chunk.more(); chunk.next()) {
      const int64_t at = chunk.step() * x.fours + four;
      tile.mask = a.w.mask + row * words + chunk.begin / 64;
      tile.x = x.codes + at * kStepBytes + chunk.begin / 64 % kStepWords * kWordBytes;
      tile.starts = x.starts + (chunk.index * x.fours + four) * 16;
      tile.steps = x.steps + at * 16;
      turns_part(tile, chunk.begin, chunk.end,
                 groups > 1 ? a.w.scales + row * groups + chunk.group : nullptr, groups);
    }
    store_turns(a, tile, row, four * kTurns, groups > 1);
  }
}

void spmm_turns(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const XTurns x(a, const_cast<void*>(a.prepared));
  for (int64_t four = 0; four < x.fours; ++four) turns_pass(a, x, row_begin, row_end, four);
}

}  // namespace

#define TAMIS_TURNS_KERNEL(x, X)                                                               \
  const SpmmXForm spmm_turns_##x##_avx512vbmi2 = {turns_bytes, prepare_turns<X>, true};        \
  void spmm_bitmap_i8_##x##_avx512vbmi2_turns(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_turns(a, begin, end);                                                                 \
  }                                                                                            \
  void spmm_nm_i8_##x##_avx512vbmi2_turns(const SpmmArgs& a, int64_t begin, int64_t end) {     \
    spmm_turns(a, begin, end);                                                                 \
  }

TAMIS_TURNS_KERNEL(f32, float)
TAMIS_TURNS_KERNEL(f16, F16)
TAMIS_TURNS_KERNEL(bf16, BF16)

#undef TAMIS_TURNS_KERNEL

}  // namespace tamis

// Attention over kv_page records on AVX-512 VNNI: codes stay bytes and vpdpbusd multiplies 64 of
// them at once. The folded factors q * scale and p * scale are 16-bit integers x, rounded once more
// than their parts, and x = 256 * high + low goes in as two signed bytes, so there are two products
// where bf16 takes two of 32.
// Tile: a block of up to 512 tokens. All scores first, so that the softmax is one; then per group
// of channels the weights of the whole block share one step, so that integer sums run through it.
// Bound: 1024 vpdpbusd a page of 32 tokens, d = 128, four rows, at two a cycle: 0.17 of 0.40 us on
// Emerald Rapids; the others fold and round factors and take exponentials.
// Error: of a factor up to 1.5 * 2^-15 of the largest |q| times the largest scale of its page, or
// of the largest weight times the largest scale of its group: 2e-4 where bf16 has 6e-3. Fetches the
// next block while it works on this one, evenly.
#include "base/simd/lanes_avx512.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {
namespace {

constexpr int64_t kBlockTokens = 512;
constexpr int64_t kBlockPages = kBlockTokens / kKvLanes;
constexpr int64_t kChunk = 32;           // factors of a vector: their bytes are one vector too
constexpr int64_t kHalf = 16;            // codes that a step takes, 4 vectors of them
constexpr int64_t kChunkWords = 16;      // 8 words of high bytes, 8 of low ones
constexpr float kMostFactor = 32512.0f;  // 127 * 256: its high byte still rounds up
constexpr float kMostScale = 32767.0f;
// Of the lines to fetch, percent that go with folding factors, of keys or of values, and with the
// products; measured, in 8 bits 25 % faster than all of them with the products.
constexpr int64_t kFoldShare = 10, kProductShare = 40;
// What a product of factor and scale by vpmulhrsw, which halves 16 bits away, has to be times.
constexpr float kUnit = 32768.0f / (kMostFactor * kMostScale);

// Where 32 int16 in the order of vpackssdw have their high bytes, then their low ones, in the order
// in which codes come out of words.
template <int kBits>
struct ByteOrder {
  alignas(64) uint8_t at[64] = {};
  constexpr ByteOrder() {
    constexpr int kSteps = 8 / kBits;
    for (int i = 0; i < 32; ++i) {
      const int vector = i / 4, byte = i % 4;
      const int code =
          vector / kSteps * (32 / kBits) + 2 * (vector % kSteps + byte % 2 * kSteps) + byte / 2;
      const int place = code % 16 / 4 * 8 + code / 16 * 4 + code % 4;
      at[i] = static_cast<uint8_t>(2 * place + 1);
      at[32 + i] = static_cast<uint8_t>(2 * place);
    }
  }
};
template <int kBits>
constexpr ByteOrder<kBits> kByteOrder;

TAMIS_INLINE __m512i to_i16(simd::F32 low, simd::F32 high) {
  return _mm512_packs_epi32(_mm512_cvtps_epi32(low), _mm512_cvtps_epi32(high));
}

// 32 numbers times `factor`, or 16 and zeros, as int16.
template <class T>
TAMIS_INLINE __m512i to_i16(const T* from, int64_t left, float factor) {
  const simd::F32 f = simd::splat(factor);
  return to_i16(simd::mul(simd::load(from), f),
                left > kHalf ? simd::mul(simd::load(from + kHalf), f) : simd::zero());
}

// High bytes, then low bytes, of 32 factors x = 256 * high + low with signed low: adding 128 rounds
// the high byte and flips the sign of the low one.
template <int kBits>
TAMIS_INLINE void put_bytes(__m512i x, int32_t* out) {
  const __m512i half = _mm512_set1_epi16(128);
  const __m512i bytes = _mm512_xor_si512(_mm512_add_epi16(x, half), half);
  _mm512_store_si512(out, _mm512_permutexvar_epi8(_mm512_load_si512(kByteOrder<kBits>.at), bytes));
}

TAMIS_INLINE __m512i load_bits(const F16* p, int64_t left) {
  if (left > kHalf) return _mm512_loadu_si512(p);
  return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The largest of 32 f16 that are not negative.
TAMIS_INLINE float largest_f16(__m512i bits) {
  const __m256i half =
      _mm256_max_epu16(_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64(bits, 1));
  const __m128i eight =
      _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
  return _cvtsh_ss(static_cast<uint16_t>(~_mm_extract_epi16(least, 0)));
}

TAMIS_INLINE float inverse(float most) {
  return most > 0.0f ? kMostScale / most : 0.0f;
}

// q as int16 of each row's own step.
template <int R>
struct ByteQueries {
  alignas(64) int16_t q[R][kKvMaxHeadDim];
  float step[R];

  TAMIS_INLINE explicit ByteQueries(const AttentionPart& a) {
    for (int r = 0; r < R; ++r) {
      const float* from = a.q + r * a.head_dim;
      simd::F32 most = simd::zero();
      for (int64_t c = 0; c < a.head_dim; c += simd::kLanes) {
        most = lanes::max(most, lanes::magnitude(simd::load(from + c)));
      }
      const float largest = lanes::max_of(most);
      const float factor = largest > 0.0f ? kMostFactor / largest : 0.0f;
      step[r] = largest * kUnit;
      for (int64_t c = 0; c < a.head_dim; c += kChunk) {
        _mm512_store_si512(q[r] + c, to_i16(from + c, a.head_dim - c, factor));
      }
    }
  }
};

// The pages of a block that hold a token that counts.
struct PageBlock {
  int64_t pages = 0;
  bool whole = true;
  const uint8_t* record[kBlockPages];
  int64_t first[kBlockPages];  // tokens

  TAMIS_INLINE void find(const AttentionPart& a, int64_t unit, int64_t end) {
    const KvPageLayout& layout = a.segment->layout;
    pages = 0;
    whole = !a.bias;
    for (; unit < end; ++unit) {
      const int64_t page = a.index ? int64_t{a.index[unit]} : unit;
      const int64_t token = page * layout.tokens;
      if (token >= a.end || token + layout.tokens <= a.begin) continue;
      whole = whole && token >= a.begin && token + layout.tokens <= a.end;
      record[pages] = static_cast<const uint8_t*>(a.keys) + page * layout.bytes();
      first[pages++] = token;
    }
  }
};

// q * scale of one page, and what turns the integer sums into scores.
template <int R>
struct KeyFactors {
  alignas(64) int32_t bytes[R][kKvMaxHeadDim / kChunk * kChunkWords];
  float unit[kMaxRows], constant[kMaxRows];
};

template <int R>
struct ByteScratch {
  TileOf<kBlockTokens> tile;
  alignas(64) KeyFactors<R> keys[kBlockPages];
  alignas(64) int16_t p[R][kBlockPages * kChunk];           // weights, [page][chunk]
  alignas(64) int32_t values[kBlockPages][R][kChunkWords];  // [page][chunk][row], of one group
};

// sums[v][r] += 16 codes of kVectors vectors of lanes at `words`, which move on, times the factors
// of each row.
template <int kBits, int R, int kVectors>
TAMIS_INLINE void byte_products(const uint8_t* (&words)[kVectors], const int32_t* factors,
                                int64_t row_stride, __m512i (&high)[kVectors][R],
                                __m512i (&low)[kVectors][R]) {
  constexpr int kSteps = 8 / kBits;
  constexpr int64_t kRowBytes = 4 * kKvLanes;
#pragma GCC unroll 4
  for (int u = 0; u < kBits / 2; ++u) {
    __m512i word[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) word[v] = _mm512_loadu_si512(words[v] + u * kRowBytes);
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      __m512i code[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const __m512i at_zero = _mm512_srli_epi32(word[v], static_cast<unsigned>(kBits * i));
        code[v] =
            kBits == 8 ? word[v] : _mm512_and_si512(at_zero, _mm512_set1_epi8((1 << kBits) - 1));
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int32_t* at = factors + r * row_stride + u * kSteps + i;
        const __m512i more = _mm512_set1_epi32(at[0]), less = _mm512_set1_epi32(at[8]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          high[v][r] = _mm512_dpbusd_epi32(high[v][r], code[v], more);
          low[v][r] = _mm512_dpbusd_epi32(low[v][r], code[v], less);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) words[v] += kBits / 2 * kRowBytes;
}

TAMIS_INLINE simd::F32 joined(__m512i high, __m512i low, float unit, simd::F32 sum) {
  sum = simd::fma(_mm512_cvtepi32_ps(low), simd::splat(unit), sum);
  return simd::fma(_mm512_cvtepi32_ps(high), simd::splat(256.0f * unit), sum);
}

// The next block's records, fetched in the order of memory a few lines at every step: the L2
// streamer then runs ahead, and the queues never run empty.
struct Fetch {
  const uint8_t* at;
  int64_t lines;  // of a page

  // Of what a page has, the share of one of `steps` steps that together fetch `percent`.
  TAMIS_INLINE void some(int64_t percent, int64_t steps) {
    const int64_t n = (lines * percent / 100 + steps - 1) / steps;
    for (int64_t i = 0; i < n; ++i) prefetch(at + 64 * i);
    at += 64 * n;
  }
};

template <int kBits, int R, int kVectors>
TAMIS_INLINE void byte_scores(const uint8_t* codes, int64_t d, int64_t token,
                              const KeyFactors<R>& keys, int64_t steps, Fetch* fetch,
                              TileOf<kBlockTokens>* tile, int64_t slot) {
  constexpr int64_t kRowWords = kKvMaxHeadDim / kChunk * kChunkWords;
  const uint8_t* words[kVectors];
  __m512i high[kVectors][R], low[kVectors][R];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    words[v] = words_of<kBits>(codes, token + v * kKvLanes, d);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) high[v][r] = low[v][r] = _mm512_setzero_si512();
  }
  const int32_t* factors = keys.bytes[0];
  for (int64_t c = 0; c < d; c += kChunk, factors += kChunkWords) {
    byte_products<kBits, R>(words, factors, kRowWords, high, low);
    if (c + kHalf < d) byte_products<kBits, R>(words, factors + 4, kRowWords, high, low);
    fetch->some(kProductShare, steps);
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      lanes::store(joined(high[v][r], low[v][r], keys.unit[r], simd::splat(keys.constant[r])),
                   tile->p[r] + slot + v * kKvLanes);
    }
  }
}

// The factors of one page's keys.
template <int kBits, int R>
TAMIS_INLINE void fold_keys(const AttentionPart& a, const ByteQueries<R>& q, const uint8_t* record,
                            KeyFactors<R>* out, Fetch* fetch) {
  const KvPageLayout& layout = a.segment->layout;
  fetch->some(kFoldShare, 1);
  const int64_t d = a.head_dim;
  const F16* scale = halves(record, layout.key_scale());
  const F16* min = halves(record, layout.key_min());
  __m512i bits = _mm512_setzero_si512();
  for (int64_t c = 0; c < d; c += kChunk) {
    bits = _mm512_max_epu16(bits, load_bits(scale + c, d - c));
  }
  const float most = largest_f16(bits), factor = inverse(most);
  for (int64_t c = 0; c < d; c += kChunk) {
    const __m512i step = to_i16(scale + c, d - c, factor);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      put_bytes<kBits>(_mm512_mulhrs_epi16(_mm512_load_si512(q.q[r] + c), step),
                       out->bytes[r] + c / kChunk * kChunkWords);
    }
  }
  simd::F32 sum[kMaxRows];
  for (simd::F32& each : sum) each = simd::zero();
  for (int64_t c = 0; c < d; c += simd::kLanes) {
    const simd::F32 least = simd::load(min + c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[r] = simd::fma(simd::load(a.q + r * d + c), least, sum[r]);
  }
  lanes::store_sums(sum, out->constant);
  for (int r = 0; r < R; ++r) out->unit[r] = q.step[r] * most;
}

// Scores of a page to the tile's slots from `slot` on.
template <int kBits, int R>
TAMIS_INLINE void score_page(const KvPageLayout& layout, const uint8_t* record,
                             const KeyFactors<R>& keys, int64_t slot, TileOf<kBlockTokens>* tile,
                             Fetch* fetch) {
  const int64_t d = layout.head_dim;
  const int64_t steps = (layout.tokens + kChunk - 1) / kChunk * ((d + kHalf) / kChunk);
  const uint8_t* codes = record + layout.key_codes();
  int64_t t = 0;
  for (; t + 2 * kKvLanes <= layout.tokens; t += 2 * kKvLanes) {
    byte_scores<kBits, R, 2>(codes, d, t, keys, steps, fetch, tile, slot + t);
  }
  if (t < layout.tokens) {
    byte_scores<kBits, R, 1>(codes, d, t, keys, steps, fetch, tile, slot + t);
  }
}

template <int kBits, int R, int kVectors>
TAMIS_INLINE void weigh_bytes(const KvPageLayout& layout, const PageBlock& block, int64_t channel,
                              float unit, const ByteScratch<R>& scratch, Fetch* fetch,
                              AttentionState* s) {
  __m512i high[kVectors][R], low[kVectors][R];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) high[v][r] = low[v][r] = _mm512_setzero_si512();
  }
  const int64_t chunks = (layout.tokens + kChunk - 1) / kChunk;
  for (int64_t i = 0; i < block.pages; ++i) {
    const uint8_t* words[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      words[v] = words_of<kBits>(block.record[i] + layout.value_codes(), channel + v * kKvLanes,
                                 layout.tokens);
    }
    const int32_t* factors = scratch.values[i * chunks][0];
    fetch->some(kProductShare, layout.head_dim / (kVectors * kKvLanes));
    for (int64_t t = 0; t < layout.tokens; t += kChunk, factors += R * kChunkWords) {
      byte_products<kBits, R>(words, factors, kChunkWords, high, low);
      if (t + kHalf < layout.tokens) {
        byte_products<kBits, R>(words, factors + 4, kChunkWords, high, low);
      }
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* at = s->weighted[r] + channel + v * kKvLanes;
      lanes::store(joined(high[v][r], low[v][r], unit, simd::load(at)), at);
    }
  }
}

// The weights of the tile as int16.
template <int R>
TAMIS_INLINE void round_weights(const KvPageLayout& layout, int64_t pages,
                                ByteScratch<R>* scratch) {
  int64_t at = 0;
  for (int64_t i = 0; i < pages; ++i) {
    for (int64_t t = 0; t < layout.tokens; t += kChunk, at += kChunk) {
      for (int r = 0; r < R; ++r) {
        const float* p = scratch->tile.p[r] + i * layout.tokens + t;
        _mm512_store_si512(scratch->p[r] + at, to_i16(p, layout.tokens - t, kMostFactor));
      }
    }
  }
}

// Adds what the channels of one group get.
template <int kBits, int R>
TAMIS_INLINE void weigh_group(const AttentionPart& a, const PageBlock& block, int64_t group,
                              Fetch* fetch, ByteScratch<R>* scratch, AttentionState* s) {
  const KvPageLayout& layout = a.segment->layout;
  const int64_t tokens = layout.tokens, row = group * tokens;
  __m512i bits = _mm512_setzero_si512();
  for (int64_t i = 0; i < block.pages; ++i) {
    const F16* scale = halves(block.record[i], layout.value_scale()) + row;
    for (int64_t t = 0; t < tokens; t += kChunk) {
      bits = _mm512_max_epu16(bits, load_bits(scale + t, tokens - t));
    }
  }
  const float most = largest_f16(bits), factor = inverse(most);
  simd::F32 offset[R];
  for (int r = 0; r < R; ++r) offset[r] = simd::zero();
  int64_t at = 0;
  for (int64_t i = 0; i < block.pages; ++i) {
    const F16* scale = halves(block.record[i], layout.value_scale()) + row;
    const F16* min = halves(block.record[i], layout.value_min()) + row;
    for (int64_t t = 0; t < tokens; t += kChunk, ++at) {
      const __m512i step = to_i16(scale + t, tokens - t, factor);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        put_bytes<kBits>(_mm512_mulhrs_epi16(_mm512_load_si512(scratch->p[r] + at * kChunk), step),
                         scratch->values[at][r]);
      }
    }
    for (int64_t t = 0; t < tokens; t += simd::kLanes) {
      const simd::F32 least = simd::load(min + t);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        offset[r] = simd::fma(simd::load(scratch->tile.p[r] + i * tokens + t), least, offset[r]);
      }
    }
    fetch->some(kFoldShare, layout.groups());
  }
  const int64_t begin = group * layout.group, end = begin + layout.group;
  for (int r = 0; r < R; ++r) {
    const simd::F32 sum = simd::splat(simd::sum(offset[r]));
    for (int64_t c = begin; c < end; c += simd::kLanes) {
      lanes::store(simd::add(simd::load(s->weighted[r] + c), sum), s->weighted[r] + c);
    }
  }
  int64_t c = begin;
  for (; c + 2 * kKvLanes <= end; c += 2 * kKvLanes) {
    weigh_bytes<kBits, R, 2>(layout, block, c, kUnit * most, *scratch, fetch, s);
  }
  if (c < end) weigh_bytes<kBits, R, 1>(layout, block, c, kUnit * most, *scratch, fetch, s);
}

template <int R>
void attend_page_bytes(const AttentionPart& a, AttentionState* s) {
  const KvPageLayout& layout = a.segment->layout;
  const int64_t tokens = layout.tokens, step = kBlockTokens / tokens;
  const ByteQueries<R> q(a);
  ByteScratch<R> scratch;
  PageBlock block;
  start(s);
  for (int64_t unit = a.unit_begin; unit < a.unit_end; unit += step) {
    block.find(a, unit, unit + step < a.unit_end ? unit + step : a.unit_end);
    Fetch fetch{block.record[0] + step * layout.bytes(), layout.bytes() / 64};
    with_bits(layout.key_bits, [&](auto bits) __attribute__((always_inline)) {
      constexpr int kBits = decltype(bits)::kCount;
      for (int64_t i = 0; i < block.pages; ++i) {
        fold_keys<kBits>(a, q, block.record[i], &scratch.keys[i], &fetch);
      }
      for (int64_t i = 0; i < block.pages; ++i) {
        score_page<kBits>(layout, block.record[i], scratch.keys[i], i * tokens, &scratch.tile,
                          &fetch);
      }
    });
    if (block.pages == 0) continue;
    softmax<R>(
        a, block.pages * tokens, block.whole, &scratch.tile, s,
        [&](int64_t i) { return block.first[i / tokens] + i % tokens; }, [](int, float) {});
    round_weights(layout, block.pages, &scratch);
    with_bits(layout.value_bits, [&](auto bits) __attribute__((always_inline)) {
      for (int64_t g = 0; g < layout.groups(); ++g) {
        weigh_group<decltype(bits)::kCount>(a, block, g, &fetch, &scratch, s);
      }
    });
  }
}

}  // namespace

void sparse_attention_pages_f32_avx512vbmi2(const AttentionPart& a, AttentionState* s) {
  with_rows(a.rows, [&](auto rows) { attend_page_bytes<decltype(rows)::kCount>(a, s); });
}

}  // namespace tamis

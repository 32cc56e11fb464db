// Attention over kv_page records on AVX-512 VNNI: codes stay bytes and vpdpbusd multiplies 64 of
// them at once. The folded factors q * scale and p * scale are 16-bit integers x, rounded once more
// than their parts, and x = 256 * high + low goes in as two bytes, so there are two products where
// bf16 takes two of 32.
// Tile: a block of up to 512 tokens, page by page, twice. All scores first, so that the softmax is
// one; then the weights of the block, which share one step in each group of channels, so that
// integer sums run through it. Factors are folded a page ahead of their products.
// Bound: a page of 32 tokens, d = 128, four rows, 4 bits: 1024 vpdpbusd and 192 shifts and masks at
// two a cycle, 0.20 of 0.33 us on Emerald Rapids; at one product a cycle 0.28 of 0.41 on Zen 4; the
// others fold and round factors and take exponentials (bench/results/kv.md).
// Error: of a factor up to 1.5 * 2^-15 of the largest |q| times the largest scale of its page, or
// of the largest weight times the largest scale of its group: 2e-4 where bf16 has 6e-3.
// Tried: values group by group over all pages of a block, their sums in registers: the same in
// cache, but walking many pages of memory at once spoils the stream of the next block (8 bits 7 %,
// 4 bits 12 % slower). GF2P8AFFINEQB for shift and mask: 2 bits 4 % faster in cache, not from
// memory. Prefetching every second line: 30 % slower. bf16 pairs by vdpbf16ps, as many products: 15
// to 95 % slower on Zen 4, and on Emerald Rapids, where they take two cycles. On Zen 4 blocks of
// 256 and 1024 tokens, code words fetched into L1, values of two pages a turn: nothing.
#include "ops/sparse_attention/byte_factors_avx512vbmi2.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {
namespace {

constexpr int64_t kBlockTokens = 512;
constexpr int64_t kBlockPages = kBlockTokens / kKvLanes;

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

// q * scale of one page as bytes.
template <int R>
struct KeyFactors {
  alignas(64) int32_t bytes[R][kKvMaxHeadDim / kChunk * kChunkWords];
};

// What turns q and the scales of a page's keys into factors, and integer sums into scores.
struct KeyUnits {
  float inverse;
  float unit[kMaxRows], constant[kMaxRows];
};

// Integer sums of 16 channels.
template <int R>
struct ByteSums {
  alignas(64) int32_t high[R][kKvLanes], low[R][kKvLanes];
};

template <int R>
struct ByteScratch {
  static constexpr int64_t kMaxGroups = kKvMaxHeadDim / kKvLanes;
  TileOf<kBlockTokens> tile;
  alignas(64) int16_t p[R][kBlockPages * kChunk];  // weights, [page][chunk]
  KeyUnits units[kBlockPages];
  KeyFactors<R> keys[2];  // of the page at work and of the next one
  alignas(64) int32_t values[2][kMaxGroups][R][kKvMaxTokens / kChunk][kChunkWords];
  float most[kMaxGroups], inverses[kMaxGroups];           // of the scales of a group's values
  alignas(64) float offset[kMaxGroups][R][simd::kLanes];  // weights times least values
  ByteSums<R> sums[kMaxGroups];

  TAMIS_INLINE void clear(const KvPageLayout& layout) {
    for (int64_t g = 0; g < layout.groups(); ++g) {
      for (int r = 0; r < R; ++r) lanes::store(simd::zero(), offset[g][r]);
    }
    for (int64_t c = 0; c < layout.head_dim / kKvLanes; ++c) {
      for (int r = 0; r < R; ++r) {
        _mm512_store_si512(sums[c].high[r], _mm512_setzero_si512());
        _mm512_store_si512(sums[c].low[r], _mm512_setzero_si512());
      }
    }
  }
};

// The next block's records, fetched in the order of memory: each step fetches about as many lines
// as it reads, so that the queues never run empty and the L2 streamer runs ahead.
struct Fetch {
  const uint8_t* at;
  int64_t line;  // bytes: 64, or 0 where no block is known to follow

  TAMIS_INLINE Fetch(const AttentionPart& a, const KvPageLayout& layout, const PageBlock& block)
      : at(block.record[0]), line(0) {
    if (a.index) return;
    at += kBlockTokens / layout.tokens * layout.bytes();
    line = 64;
  }

  template <int kLines>
  TAMIS_INLINE void lines() {
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) {
      prefetch(at);
      at += line;
    }
  }
};

template <int kBits, int R, int kVectors>
TAMIS_INLINE void byte_scores(const uint8_t* codes, int64_t d, int64_t token,
                              const KeyFactors<R>& keys, const KeyUnits& units, int64_t slot,
                              Fetch* fetch, TileOf<kBlockTokens>* tile) {
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
  for (int64_t c = 0; c < d; c += kHalf, factors += kHalfWords) {
    byte_products<kBits, R>(words, factors, kRowWords, high, low);
    fetch->lines<kBits * kVectors / 2>();
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      lanes::store(joined(high[v][r], low[v][r], units.unit[r], simd::splat(units.constant[r])),
                   tile->p[r] + slot + v * kKvLanes);
    }
  }
}

// The units of a block's pages, and the largest scale of each group of its values.
template <int R>
TAMIS_INLINE void find_units(const AttentionPart& a, const KvPageLayout& layout,
                             const ByteQueries<R>& q, const PageBlock& block, float factor,
                             Fetch* fetch, ByteScratch<R>* scratch) {
  const int64_t d = a.head_dim, tokens = layout.tokens;
  for (int64_t i = 0; i < block.pages; ++i) {
    const F16* scale = halves(block.record[i], layout.key_scale());
    const F16* min = halves(block.record[i], layout.key_min());
    __m512i bits = _mm512_setzero_si512();
    for (int64_t c = 0; c < d; c += kChunk) {
      bits = _mm512_max_epu16(bits, load_bits(scale + c, d - c));
    }
    simd::F32 sum[kMaxRows];
    for (simd::F32& each : sum) each = simd::zero();
    for (int64_t c = 0; c < d; c += simd::kLanes) {
      fetch->lines<1>();
      const simd::F32 least = simd::load(min + c);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r] = simd::fma(simd::load(a.q + r * d + c), least, sum[r]);
    }
    const float most = largest_f16(bits);
    KeyUnits* out = &scratch->units[i];
    out->inverse = inverse(most);
    lanes::store_sums(sum, out->constant);
    for (int r = 0; r < R; ++r) {
      out->unit[r] = q.step[r] * most * factor;
      out->constant[r] *= factor;
    }
  }
  for (int64_t g = 0; g < layout.groups(); ++g) {
    __m512i bits = _mm512_setzero_si512();
    for (int64_t i = 0; i < block.pages; ++i) {
      const F16* scale = halves(block.record[i], layout.value_scale()) + g * tokens;
      for (int64_t t = 0; t < tokens; t += kChunk) {
        bits = _mm512_max_epu16(bits, load_bits(scale + t, tokens - t));
      }
    }
    scratch->most[g] = largest_f16(bits);
    scratch->inverses[g] = inverse(scratch->most[g]);
  }
}

// The factors of one page's keys.
template <int kBits, int R>
TAMIS_INLINE void fold_keys(const KvPageLayout& layout, const ByteQueries<R>& q,
                            const uint8_t* record, float inverse, KeyFactors<R>* out) {
  const F16* scale = halves(record, layout.key_scale());
  for (int64_t c = 0; c < layout.head_dim; c += kChunk) {
    const __m512i step = to_i16(scale + c, layout.head_dim - c, inverse);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      put_bytes<kBits>(_mm512_mulhrs_epi16(_mm512_load_si512(q.q[r] + c), step),
                       out->bytes[r] + c / kChunk * kChunkWords);
    }
  }
}

// Scores of the i-th page of a block to the tile; folds the factors of the next one meanwhile.
template <int kBits, int R>
TAMIS_INLINE void score_page(const KvPageLayout& layout, const ByteQueries<R>& q,
                             const PageBlock& block, int64_t i, Fetch* fetch,
                             ByteScratch<R>* scratch) {
  const int64_t d = layout.head_dim, slot = i * layout.tokens;
  const uint8_t* codes = block.record[i] + layout.key_codes();
  const KeyFactors<R>& keys = scratch->keys[i % 2];
  if (i + 1 < block.pages) {
    fold_keys<kBits>(layout, q, block.record[i + 1], scratch->units[i + 1].inverse,
                     &scratch->keys[(i + 1) % 2]);
  }
  int64_t t = 0;
  for (; t + 2 * kKvLanes <= layout.tokens; t += 2 * kKvLanes) {
    byte_scores<kBits, R, 2>(codes, d, t, keys, scratch->units[i], slot + t, fetch, &scratch->tile);
  }
  if (t < layout.tokens) {
    byte_scores<kBits, R, 1>(codes, d, t, keys, scratch->units[i], slot + t, fetch, &scratch->tile);
  }
}

// Adds the codes of one page and kVectors * 16 channels, times the weights of its tokens, to sums.
template <int kBits, int R, int kVectors>
TAMIS_INLINE void weigh_bytes(const KvPageLayout& layout, const uint8_t* record, int64_t channel,
                              const int32_t* factors, Fetch* fetch, ByteSums<R>* sums) {
  constexpr int64_t kRowWords = kKvMaxTokens / kChunk * kChunkWords;
  const uint8_t* words[kVectors];
  __m512i high[kVectors][R], low[kVectors][R];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    words[v] =
        words_of<kBits>(record + layout.value_codes(), channel + v * kKvLanes, layout.tokens);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      high[v][r] = _mm512_load_si512(sums[v].high[r]);
      low[v][r] = _mm512_load_si512(sums[v].low[r]);
    }
  }
  for (int64_t t = 0; t < layout.tokens; t += kHalf, factors += kHalfWords) {
    byte_products<kBits, R>(words, factors, kRowWords, high, low);
    fetch->lines<kBits * kVectors / 2>();
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      _mm512_store_si512(sums[v].high[r], high[v][r]);
      _mm512_store_si512(sums[v].low[r], low[v][r]);
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

// Factors of one group of the values of a block's i-th page.
template <int kBits, int R>
TAMIS_INLINE void fold_weights(const KvPageLayout& layout, const PageBlock& block, int64_t i,
                               int64_t g, ByteScratch<R>* scratch) {
  const int64_t tokens = layout.tokens, chunks = (tokens + kChunk - 1) / kChunk;
  const F16* scale = halves(block.record[i], layout.value_scale()) + g * tokens;
  const F16* min = halves(block.record[i], layout.value_min()) + g * tokens;
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t t = k * kChunk;
    const __m512i step = to_i16(scale + t, tokens - t, scratch->inverses[g]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const int16_t* p = scratch->p[r] + (i * chunks + k) * kChunk;
      put_bytes<kBits>(_mm512_mulhrs_epi16(_mm512_load_si512(p), step),
                       scratch->values[i % 2][g][r][k]);
    }
  }
  simd::F32 offset[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) offset[r] = simd::load(scratch->offset[g][r]);
  for (int64_t t = 0; t < tokens; t += simd::kLanes) {
    const simd::F32 least = simd::load(min + t);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      offset[r] = simd::fma(simd::load(scratch->tile.p[r] + i * tokens + t), least, offset[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) lanes::store(offset[r], scratch->offset[g][r]);
}

// Adds what a block's i-th page gives its channels; folds the factors of the next one meanwhile.
template <int kBits, int R>
TAMIS_INLINE void weigh_page_bytes(const KvPageLayout& layout, const PageBlock& block, int64_t i,
                                   Fetch* fetch, ByteScratch<R>* scratch) {
  for (int64_t g = 0; g < layout.groups(); ++g) {
    if (i + 1 < block.pages) fold_weights<kBits>(layout, block, i + 1, g, scratch);
    const int32_t* factors = scratch->values[i % 2][g][0][0];
    const int64_t end = (g + 1) * layout.group;
    int64_t c = g * layout.group;
    for (; c + 2 * kKvLanes <= end; c += 2 * kKvLanes) {
      weigh_bytes<kBits, R, 2>(layout, block.record[i], c, factors, fetch,
                               scratch->sums + c / kKvLanes);
    }
    if (c < end) {
      weigh_bytes<kBits, R, 1>(layout, block.record[i], c, factors, fetch,
                               scratch->sums + c / kKvLanes);
    }
  }
}

// Adds a block's sums to the state.
template <int R>
TAMIS_INLINE void add_sums(const KvPageLayout& layout, const ByteScratch<R>& scratch,
                           AttentionState* s) {
  for (int64_t g = 0; g < layout.groups(); ++g) {
    const float unit = kUnit * scratch.most[g];
    for (int r = 0; r < R; ++r) {
      const simd::F32 offset = simd::splat(simd::sum(simd::load(scratch.offset[g][r])));
      for (int64_t c = g * layout.group; c < (g + 1) * layout.group; c += kKvLanes) {
        const ByteSums<R>& sums = scratch.sums[c / kKvLanes];
        float* at = s->weighted[r] + c;
        lanes::store(joined(_mm512_load_si512(sums.high[r]), _mm512_load_si512(sums.low[r]), unit,
                            simd::add(simd::load(at), offset)),
                     at);
      }
    }
  }
}

// 2^x for -126 <= x <= 127, within 3e-6: the weights become integers of 2^-15.
TAMIS_INLINE simd::F32 power_of_two(simd::F32 x) {
  const simd::F32 round = simd::splat(0x1.8p23f);
  const simd::F32 n = simd::add(x, round);
  const simd::F32 f = lanes::sub(x, lanes::sub(n, round));
  simd::F32 y = simd::splat(0x1.3997d6p-7f);
  y = simd::fma(y, f, simd::splat(0x1.ca1442p-5f));
  y = simd::fma(y, f, simd::splat(0x1.ec06dap-3f));
  y = simd::fma(y, f, simd::splat(0x1.62e0dcp-1f));
  y = simd::fma(y, f, simd::splat(0x1.ffffe8p-1f));
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}

// The softmax of scores in units of ln 2, all of which count.
template <int R>
TAMIS_INLINE void softmax_of_two(const AttentionPart& a, int64_t slots, TileOf<kBlockTokens>* tile,
                                 Fetch* fetch, AttentionState* s) {
  simd::F32 most[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) most[r] = simd::load(tile->p[r]);
  for (int64_t i = simd::kLanes; i < slots; i += simd::kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) most[r] = lanes::max(most[r], simd::load(tile->p[r] + i));
  }
  simd::F32 shift[R], sum[R];
  for (int r = 0; r < R; ++r) {
    raise(a, r, lanes::max_of(most[r]) * kLn2, s, [](int, float) {});
    shift[r] = simd::splat(s->largest[r] * kPerLn2);
    sum[r] = simd::zero();
  }
  for (int64_t i = 0; i < slots; i += simd::kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* p = tile->p[r] + i;
      fetch->lines<1>();
      const simd::F32 x = lanes::max(lanes::sub(simd::load(p), shift[r]), simd::splat(-126.0f));
      const simd::F32 weight = power_of_two(x);
      lanes::store(weight, p);
      sum[r] = simd::add(sum[r], weight);
    }
  }
  for (int r = 0; r < R; ++r) s->sum[r] += simd::sum(sum[r]);
}

template <int R>
TAMIS_INLINE void attend_page_bytes(const AttentionPart& a, const KvPageLayout& layout,
                                    AttentionState* s) {
  const int64_t tokens = layout.tokens, step = kBlockTokens / tokens;
  const ByteQueries<R> q(a);
  ByteScratch<R> scratch;
  PageBlock block;
  start(s);
  for (int64_t unit = a.unit_begin; unit < a.unit_end; unit += step) {
    block.find(a, unit, unit + step < a.unit_end ? unit + step : a.unit_end);
    if (block.pages == 0) continue;
    const bool plain = block.whole && a.softcap == 0.0f;
    Fetch fetch(a, layout, block);
    find_units(a, layout, q, block, plain ? a.scale * kPerLn2 : 1.0f, &fetch, &scratch);
    with_bits(layout.key_bits, [&](auto bits) __attribute__((always_inline)) {
      constexpr int kBits = decltype(bits)::kCount;
      fold_keys<kBits>(layout, q, block.record[0], scratch.units[0].inverse, &scratch.keys[0]);
      for (int64_t i = 0; i < block.pages; ++i) {
        score_page<kBits>(layout, q, block, i, &fetch, &scratch);
      }
    });
    if (plain) {
      softmax_of_two<R>(a, block.pages * tokens, &scratch.tile, &fetch, s);
    } else {
      softmax<R>(
          a, block.pages * tokens, block.whole, &scratch.tile, s,
          [&](int64_t i) { return block.first[i / tokens] + i % tokens; }, [](int, float) {});
    }
    round_weights(layout, block.pages, &scratch);
    scratch.clear(layout);
    with_bits(layout.value_bits, [&](auto bits) __attribute__((always_inline)) {
      constexpr int kBits = decltype(bits)::kCount;
      for (int64_t g = 0; g < layout.groups(); ++g) {
        fold_weights<kBits>(layout, block, 0, g, &scratch);
      }
      for (int64_t i = 0; i < block.pages; ++i) {
        weigh_page_bytes<kBits>(layout, block, i, &fetch, &scratch);
      }
    });
    add_sums(layout, scratch, s);
  }
}

template <int R>
void attend_any_pages(const AttentionPart& a, AttentionState* s) {
  attend_page_bytes<R>(a, a.segment->layout, s);
}

// Pages of 32 tokens in groups of 32 channels.
template <int R>
void attend_usual_pages(const AttentionPart& a, AttentionState* s) {
  KvPageLayout layout = a.segment->layout;
  layout.tokens = layout.group = 32;
  attend_page_bytes<R>(a, layout, s);
}

}  // namespace

void sparse_attention_pages_f32_avx512vbmi2(const AttentionPart& a, AttentionState* s) {
  const KvPageLayout& layout = a.segment->layout;
  with_rows(a.rows, [&](auto rows) {
    constexpr int kRows = decltype(rows)::kCount;
    if (layout.tokens == 32 && layout.group == 32) {
      attend_usual_pages<kRows>(a, s);
    } else {
      attend_any_pages<kRows>(a, s);
    }
  });
}

}  // namespace tamis

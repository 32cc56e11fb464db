// Attention of up to kPrefillRows queries over bf16 keys and values with AMX: bf16 products by
// tdpbf16ps, f32 scores, weights rounded to bf16, f32 outputs.
//   s[i,t] = q[i] . k[t];  o[i] = sum_t exp(scale * (s[i,t] - m)) v[t] / sum_t
// Tile: kBlockRows queries times kPrefillKeys tokens, an item. Queries and weights are left-hand
// tiles as they lie; keys and values become right-hand tiles (pairs of channels, pairs of tokens)
// once for all queries of a thread: slots of memory keep them with the tokens they hold.
//
// Floor (Emerald Rapids): d / 512 cycles a query and token for the products; softmax 5 cycles for
// 16, so both take as long at d = 80. They run beside each other: while the weights of an item are
// computed, the tiles multiply the next item's scores and the last one's outputs.
//
// m is within kSlack of the largest score that a query has seen, in powers of two: outputs are
// multiplied only when it falls behind, which after a few tiles is hardly ever.
// Error: weights and outputs are rounded to bf16; 2^x within 3e-6; tdpbf16ps takes denormals as 0.
// Needs: d a multiple of 16, rows of d contiguous elements.   Tail: channels up to a multiple of
// 32, tokens and queries past the last are zeros that no query sees or that are not stored.
#include "base/simd/amx.h"
#include "base/simd/lanes_avx512.h"
#include "base/simd/transpose16.h"
#include "ops/prefill_attention/kernels.h"

// As in avx512.h: undefined operands inside GCC's own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace tamis {
namespace {

constexpr int kBlockRows = 2 * kTileRows;
constexpr int kTileTokens = kPrefillKeys / 16;  // tiles of scores for 16 queries
constexpr int64_t kTileFloats = kTileBytes / 4;
constexpr float kLowest = -0x1p100f;  // below every score
constexpr float kHidden = -__builtin_inff();
constexpr float kSlack = 8.0f;
constexpr float kLog2e = 0x1.715476p+0f;

// 2^x for x <= kSlack, within 3e-6 of it; 0 below -126, as in lanes::exp.
TAMIS_INLINE __m512 exp2(__m512 x) {
  const __mmask16 present = _mm512_cmp_ps_mask(x, simd::splat(-126.0f), _CMP_NLT_UQ);
  const __m512 f = _mm512_reduce_ps(x, 1);  // x - floor(x)
  __m512 y = simd::splat(0x1.b7f734p-7f);
  y = simd::fma(y, f, simd::splat(0x1.abf868p-5f));
  y = simd::fma(y, f, simd::splat(0x1.ee2452p-3f));
  y = simd::fma(y, f, simd::splat(0x1.62d6c6p-1f));
  y = simd::fma(y, f, simd::splat(1.0f));
  return _mm512_maskz_scalef_ps(present, y, x);
}

// ---- keys and values as tiles

// kPrefillKeys tokens: which, and their tiles: keys [4 of tokens][steps], values [2 * steps of
// channels][2], where a step is 32 channels.
struct Slot {
  const void *keys, *values;
  int64_t count;
  int32_t tokens[kPrefillKeys];

  TAMIS_INLINE bool holds(const PrefillPart& a, const int32_t* list, int64_t n) const {
    return keys == a.keys && values == a.values && count >= n &&
           __builtin_memcmp(tokens, list, static_cast<size_t>(n) * sizeof(int32_t)) == 0;
  }
};

// What PrefillPart::memory holds.
struct Memory {
  int64_t steps, slots, slot_bytes;
  char *queries, *tiles;         // [rows / 16, steps], [slots, slot_bytes]
  float* outputs;                // [rows / 16, 2 * steps] tiles
  float *scores[2], *factor[2];  // of an item: [2, kTileTokens] tiles, [kBlockRows]
  char* weights[2];              // [2, kPrefillKeys / 32] tiles
  float *largest, *limit, *sum;  // [rows], [rows], [rows, 16]
  Slot* slot;                    // [slots]

  TAMIS_INLINE explicit Memory(const PrefillPart& a)
      : steps((a.head_dim + 31) / 32),
        slots(prefill_slots(a.head_dim, a.most)),
        slot_bytes(prefill_slot_bytes(a.head_dim)) {
    char* at = reinterpret_cast<char*>(a.memory);
    const auto take = [&at](int64_t bytes) {
      char* p = at;
      at += (bytes + 63) / 64 * 64;
      return p;
    };
    const auto floats = [&take](int64_t n) { return reinterpret_cast<float*>(take(4 * n)); };
    constexpr int64_t kRows = kPrefillRows, kItem = int64_t{kBlockRows} * kPrefillKeys;
    queries = take(kRows * steps * 64);
    outputs = floats(kRows * steps * 32);
    for (int i = 0; i < 2; ++i) {
      scores[i] = floats(kItem);
      weights[i] = take(2 * kItem);
      factor[i] = floats(kBlockRows);
    }
    largest = floats(kRows);
    limit = floats(kRows);
    sum = floats(kRows * 16);
    slot = reinterpret_cast<Slot*>(take(slots * int64_t{sizeof(Slot)}));
    tiles = take(slots * slot_bytes);
  }
  TAMIS_INLINE char* keys(const Slot* s) const { return tiles + (s - slot) * slot_bytes; }
  TAMIS_INLINE char* values(const Slot* s) const { return keys(s) + slot_bytes / 2; }
};
static_assert(sizeof(Slot) <= kPrefillTagBytes, "prefill_tile_floats counts the slots' tags");

// 32 channels from c on, zeros past d.
TAMIS_INLINE __m512i channels(const uint16_t* x, int64_t c, int64_t d) {
  return d - c >= 32
             ? _mm512_loadu_si512(x + c)
             : _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + c)));
}

void pack(const PrefillPart& a, const Memory& m, const int32_t* tokens, int64_t count, Slot* slot) {
  slot->keys = a.keys;
  slot->values = a.values;
  slot->count = count;
  __builtin_memcpy(slot->tokens, tokens, static_cast<size_t>(count) * sizeof(int32_t));
  const auto row = [&](const void* x, int64_t stride, int64_t t, int64_t c) {
    const auto* from = static_cast<const uint16_t*>(x);
    return t < count ? channels(from + int64_t{tokens[t]} * stride, c, a.head_dim)
                     : _mm512_setzero_si512();
  };
  char* to = m.keys(slot);
  for (int64_t t = 0; t < kPrefillKeys; t += 16) {
    for (int64_t s = 0; s < m.steps; ++s, to += kTileBytes) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) v[i] = row(a.keys, a.key_stride, t + i, 32 * s);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * kTileRowBytes, v[i]);
    }
  }
  // Words of two tokens in turn: 0, 32, 1, 33, ... and from 16, 48 on.
  const __m512i count_up = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i low =
      _mm512_or_si512(count_up, _mm512_slli_epi32(count_up, 16)) | _mm512_set1_epi32(32 << 16);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  to = m.values(slot);
  for (int64_t s = 0; s < m.steps; ++s, to += 4 * kTileBytes) {
    for (int64_t t = 0; t < kPrefillKeys; t += 2) {
      const __m512i even = row(a.values, a.value_stride, t, 32 * s);
      const __m512i odd = row(a.values, a.value_stride, t + 1, 32 * s);
      char* at = to + t / 2 * kTileRowBytes;  // both halves of the tokens, then the next channels
      _mm512_store_si512(at, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_store_si512(at + 2 * kTileBytes, _mm512_permutex2var_epi16(even, high, odd));
    }
  }
}

// ---- items

struct Item {
  Slot* slot;
  const int32_t* tokens;
  int64_t count, block;  // of tokens; of queries
  bool whole;            // every query sees every token
};

// All pairs of kPrefillKeys tokens and kBlockRows queries of which any sees any, in order.
struct Items {
  const PrefillPart& a;
  const Memory& m;
  int64_t blocks, low[kPrefillRows / kBlockRows], high[kPrefillRows / kBlockRows];
  int64_t first = 0, block = 0;
  Slot *now = nullptr, *before = nullptr;  // of the chunk and of the one before, both in use

  TAMIS_INLINE Items(const PrefillPart& part, const Memory& memory)
      : a(part), m(memory), blocks((part.rows + kBlockRows - 1) / kBlockRows) {
    for (int64_t b = 0; b < blocks; ++b) {
      low[b] = high[b] = a.position[b * kBlockRows];
      for (int64_t i = b * kBlockRows; i < (b + 1) * kBlockRows && i < a.rows; ++i) {
        low[b] = a.position[i] < low[b] ? a.position[i] : low[b];
        high[b] = a.position[i] > high[b] ? a.position[i] : high[b];
      }
    }
  }

  TAMIS_INLINE Slot* find(const int32_t* tokens, int64_t count) const {
    int64_t at = tokens[0] / kPrefillKeys % m.slots;
    if (m.slot[at].holds(a, tokens, count)) return m.slot + at;
    while (m.slot + at == now || m.slot + at == before) at = (at + 1) % m.slots;
    if (!m.slot[at].holds(a, tokens, count)) pack(a, m, tokens, count, m.slot + at);
    return m.slot + at;
  }

  bool next(Item* item) {
    for (; first < a.count; first += kPrefillKeys, block = 0) {
      const int64_t count = a.count - first < kPrefillKeys ? a.count - first : kPrefillKeys;
      const int32_t* tokens = a.tokens + first;
      const int64_t lowest = tokens[0], highest = tokens[count - 1];
      for (; block < blocks; ++block) {
        if (a.causal && lowest > high[block]) continue;
        if (a.window > 0 && lowest >= a.sink && highest <= low[block] - a.window) continue;
        if (!now || !now->holds(a, tokens, count)) {
          Slot* found = find(tokens, count);
          before = now;
          now = found;
        }
        const bool past = !a.causal || highest <= low[block];
        const bool inside = a.window == 0 || highest < a.sink || lowest > high[block] - a.window;
        *item = {now, tokens, count, block, count == kPrefillKeys && past && inside};
        ++block;
        return true;
      }
    }
    return false;
  }
};

// ---- products

// Scores of an item into s; chore() runs beside each of the 2 * steps.
template <class Chore>
TAMIS_INLINE void multiply_keys(const Memory& m, const Item& item, float* s, const Chore& chore) {
  const char* q = m.queries + item.block * 2 * m.steps * kTileBytes;
  const char* k = m.keys(item.slot);
  const int64_t half = m.steps * kTileBytes;
  for (int64_t t = 0; t < kTileTokens; t += 2, k += 2 * half, s += 2 * kTileFloats) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t at = 0; at < half; at += kTileBytes) {
      tiles_fence();
      _tile_loadd(4, q + at, kTileRowBytes);
      _tile_loadd(6, k + at, kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, k + half + at, kTileRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, q + half + at, kTileRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      chore();
    }
    _tile_stored(0, s, kTileRowBytes);
    _tile_stored(1, s + kTileFloats, kTileRowBytes);
    _tile_stored(2, s + kTileTokens * kTileFloats, kTileRowBytes);
    _tile_stored(3, s + (kTileTokens + 1) * kTileFloats, kTileRowBytes);
    tiles_fence();
  }
}

// Adds an item's weights p times its values to the outputs; chore() as above.
template <class Chore>
TAMIS_INLINE void multiply_values(const Memory& m, const Item& item, const char* p,
                                  const Chore& chore) {
  constexpr int64_t kHalf = kPrefillKeys / 32 * kTileBytes;
  const char* v = m.values(item.slot);
  float* o = m.outputs + item.block * 4 * m.steps * kTileFloats;
  const int64_t half = 2 * m.steps * kTileFloats;
  for (int64_t c = 0; c < m.steps; ++c, o += 2 * kTileFloats, v += 2 * kHalf) {
    tiles_fence();
    _tile_loadd(0, o, kTileRowBytes);
    _tile_loadd(1, o + kTileFloats, kTileRowBytes);
    _tile_loadd(2, o + half, kTileRowBytes);
    _tile_loadd(3, o + half + kTileFloats, kTileRowBytes);
    for (int64_t at = 0; at < kHalf; at += kTileBytes) {
      tiles_fence();
      _tile_loadd(4, p + at, kTileRowBytes);
      _tile_loadd(6, v + at, kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, v + kHalf + at, kTileRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, p + kHalf + at, kTileRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      chore();
    }
    _tile_stored(0, o, kTileRowBytes);
    _tile_stored(1, o + kTileFloats, kTileRowBytes);
    _tile_stored(2, o + half, kTileRowBytes);
    _tile_stored(3, o + half + kTileFloats, kTileRowBytes);
    tiles_fence();
  }
}

// ---- softmax

// Scores of a query to weights. unit: what a score is multiplied by to be a logarithm to base 2.
struct Softmax {
  const PrefillPart& a;
  const Memory& m;
  const float unit;
  const bool plain;  // scores are as the products left them

  TAMIS_INLINE Softmax(const PrefillPart& part, const Memory& memory)
      : a(part),
        m(memory),
        unit(part.softcap > 0.0f || part.scale <= 0.0f ? kLog2e : part.scale * kLog2e),
        plain(part.softcap <= 0.0f && part.scale > 0.0f) {}

  TAMIS_INLINE __m512 scaled(__m512 v) const {
    v = simd::mul(v, simd::splat(a.scale));
    if (a.softcap <= 0.0f) return v;
    const __m512 x = simd::mul(v, simd::splat(1.0f / a.softcap));  // softcap * tanh(x)
    const __m512 e = lanes::exp(simd::mul(lanes::magnitude(x), simd::splat(-2.0f)));
    const __m512 one = simd::splat(1.0f);
    const __m512 tanh = lanes::div(lanes::sub(one, e), simd::add(one, e));
    return simd::mul(lanes::with_sign(tanh, v), simd::splat(a.softcap));
  }

  TAMIS_INLINE __m512 hide(const Item& item, __m512 v, int64_t t, int32_t position) const {
    const auto real = static_cast<__mmask16>(
        _bzhi_u32(0xffff, static_cast<unsigned>(item.count - t < 0    ? 0
                                                : item.count - t < 16 ? item.count - t
                                                                      : 16)));
    const __m512i token = _mm512_maskz_loadu_epi32(real, item.tokens + t);
    const __m512i p = _mm512_set1_epi32(position);
    __mmask16 seen = real;
    if (a.causal) seen = _mm512_mask_cmple_epi32_mask(seen, token, p);
    if (a.window > 0) {
      const __m512i last = _mm512_set1_epi32(position - static_cast<int32_t>(a.window));
      seen = seen & (_mm512_cmpgt_epi32_mask(token, last) |
                     _mm512_cmplt_epi32_mask(token, _mm512_set1_epi32(static_cast<int>(a.sink))));
    }
    return _mm512_mask_mov_ps(simd::splat(kHidden), seen, v);
  }

  // A new largest score of query r, row i of its item; the factor that outputs are to shrink by.
  __attribute__((noinline)) float raise(int64_t r, __m512 v) const {
    const float largest = _mm512_reduce_max_ps(v);
    const float factor = _mm512_cvtss_f32(exp2(simd::splat((m.largest[r] - largest) * unit)));
    m.largest[r] = largest;
    m.limit[r] = largest + kSlack / unit;
    _mm512_store_ps(m.sum + 16 * r, simd::mul(_mm512_load_ps(m.sum + 16 * r), simd::splat(factor)));
    return factor;
  }

  // Scores of row i at s as they are to be: scaled and capped, kHidden where it sees nothing.
  __attribute__((noinline)) void adjust(const Item& item, int64_t r, float* s) const {
    const int32_t position = a.position[r < a.rows ? r : a.rows - 1];
    for (int t = 0; t < kTileTokens; ++t, s += kTileFloats) {
      __m512 v = _mm512_load_ps(s);
      if (!plain) v = scaled(v);
      if (!item.whole) v = hide(item, v, 16 * t, position);
      _mm512_store_ps(s, v);
    }
  }

  // Row i of an item: s and p as multiply_* take them. True if its outputs are to shrink.
  TAMIS_INLINE bool row(const Item& item, int64_t i, float* s, char* p, float* factor) const {
    const int64_t r = item.block * kBlockRows + i;
    s += i / 16 * kTileTokens * kTileFloats + i % 16 * 16;
    p += i / 16 * (kPrefillKeys / 32) * kTileBytes + i % 16 * kTileRowBytes;
    if (!item.whole || !plain) adjust(item, r, s);
    __m512 v[kTileTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTileTokens; ++t) v[t] = _mm512_load_ps(s + t * kTileFloats);
    const __m512 most = lanes::max(lanes::max(v[0], v[1]), lanes::max(v[2], v[3]));
    const bool raised = lanes::above(most, simd::splat(m.limit[r])) != 0;
    if (__builtin_expect(raised, 0)) factor[i] = raise(r, most);
    const __m512 shift = simd::splat(m.largest[r] * unit), by = simd::splat(unit);
#pragma GCC unroll 4
    for (int t = 0; t < kTileTokens; ++t) v[t] = exp2(_mm512_fmsub_ps(v[t], by, shift));
    const __m512 sum = simd::add(simd::add(v[0], v[1]), simd::add(v[2], v[3]));
    _mm512_store_ps(m.sum + 16 * r, simd::add(_mm512_load_ps(m.sum + 16 * r), sum));
#pragma GCC unroll 2
    for (int t = 0; t < kTileTokens; t += 2) {
      _mm512_store_si512(p + t / 2 * kTileBytes, (__m512i)_mm512_cvtne2ps_pbh(v[t + 1], v[t]));
    }
    return raised;
  }

  // Outputs of the rows in `raised`, times their factors.
  void shrink(int64_t block, uint32_t raised, const float* factor) const {
    for (; raised; raised &= raised - 1) {
      const int64_t i = __builtin_ctz(raised);
      float* o = m.outputs + (block * 2 + i / 16) * 2 * m.steps * kTileFloats + i % 16 * 16;
      for (int64_t c = 0; c < 2 * m.steps; ++c, o += kTileFloats) {
        _mm512_store_ps(o, simd::mul(_mm512_load_ps(o), simd::splat(factor[i])));
      }
    }
  }
};

// ---- the parts of a call

TAMIS_INLINE void start(const PrefillPart& a, const Memory& m) {
  if (a.fresh) {
    for (int64_t i = 0; i < m.slots; ++i) m.slot[i].keys = nullptr;
  }
  const int64_t rows = (a.rows + kBlockRows - 1) / kBlockRows * kBlockRows;
  for (int64_t r = 0; r < rows; ++r) {
    char* to = m.queries + r / 16 * m.steps * kTileBytes + r % 16 * kTileRowBytes;
    for (int64_t s = 0; s < m.steps; ++s, to += kTileBytes) {
      const auto* q = static_cast<const uint16_t*>(a.q[r < a.rows ? r : 0]);
      _mm512_store_si512(to, r < a.rows ? channels(q, 32 * s, a.head_dim) : _mm512_setzero_si512());
    }
    m.largest[r] = m.limit[r] = kLowest;
    _mm512_store_ps(m.sum + 16 * r, simd::zero());
  }
  __builtin_memset(m.outputs, 0, static_cast<size_t>(rows * m.steps * 32) * sizeof(float));
}

TAMIS_INLINE void finish(const PrefillPart& a, const Memory& m, float unit) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float sum = _mm512_reduce_add_ps(_mm512_load_ps(m.sum + 16 * r));
    const __m512 factor = simd::splat(sum > 0.0f ? 1.0f / sum : 0.0f);
    const float* from = m.outputs + r / 16 * 2 * m.steps * kTileFloats + r % 16 * 16;
    auto* to = static_cast<uint16_t*>(a.out[r]);
    for (int64_t c = 0; c < a.head_dim; c += 16, from += kTileFloats) {
      const __m256bh narrow = _mm512_cvtneps_pbh(simd::mul(_mm512_load_ps(from), factor));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + c), (__m256i)narrow);
    }
    if (!a.lse) continue;
    *a.lse[r] = sum > 0.0f ? m.largest[r] * (unit / kLog2e) + __builtin_logf(sum) : kHidden;
  }
}

}  // namespace

void prefill_attention_bf16_amx(const PrefillPart& a) {
  const Memory m(a);
  start(a, m);
  const Softmax softmax(a, m);
  {
    const TileRegisters registers;
    Items items(a, m);
    Item last, item, next;
    bool some = items.next(&item), any = false;
    uint32_t shrinks = 0;  // rows of the last item
    int turn = 0;          // whose scores and weights are the item's; the others, its neighbours'
    if (some) multiply_keys(m, item, m.scores[turn], [] {});
    while (some) {
      const bool more = items.next(&next);
      uint32_t raised = 0;
      if (any) softmax.shrink(last.block, shrinks, m.factor[turn ^ 1]);
      int64_t row = 0, due = 0;
      const auto chore = [&]() __attribute__((always_inline)) {
        for (due += kBlockRows; row * 4 * m.steps < due; ++row) {
          const bool up = softmax.row(item, row, m.scores[turn], m.weights[turn], m.factor[turn]);
          raised |= static_cast<uint32_t>(up) << row;
        }
      };
      if (more) multiply_keys(m, next, m.scores[turn ^ 1], chore);
      if (any) multiply_values(m, last, m.weights[turn ^ 1], chore);
      while (row < kBlockRows) chore();
      shrinks = raised;
      last = item;
      item = next;
      some = more;
      any = true;
      turn ^= 1;
    }
    if (any) {
      softmax.shrink(last.block, shrinks, m.factor[turn ^ 1]);
      multiply_values(m, last, m.weights[turn ^ 1], [] {});
    }
  }
  finish(a, m, softmax.unit);
}

}  // namespace tamis

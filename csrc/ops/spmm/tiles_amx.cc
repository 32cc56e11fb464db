// bitmap, nm, csr8 and groupq of bf16 with AMX: pairs of columns by tdpbf16ps, which takes denormal
// inputs as zero and flushes denormal sums; the rounding to bf16 flushes denormals too.
#include "base/simd/avx512.h"
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/groupq_pairs.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/tiles_many-inl.h"

namespace tamis {
namespace {

struct Bf16Tiles {
  using W = BF16;
  using Pending = NoPending;
  static constexpr bool kSumsStay = true;
  static constexpr int64_t kWordSteps = 2;
  static constexpr int64_t kReadsPast = Bf16Pair::kReadsPast;

  const char* x;

  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const W* p, char* out) {
    Bf16Pair::expand<kExact>(bits, p, reinterpret_cast<uint32_t*>(out));
  }
  template <int P>
  static TAMIS_INLINE void products() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if (P == 2) {
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  // Rows [row, row + n) of 16 tokens, a vector of rows each.
  static TAMIS_INLINE void store(const SpmmArgs& a, const __m512i (&v)[kPanelTokens], int64_t row,
                                 int n, int64_t token) {
    const auto* bias = static_cast<const BF16*>(a.bias);
    const simd::F32 start = bias ? simd::load(bias + row, n) : simd::zero();
    auto* y = static_cast<BF16*>(a.y) + token * a.y_stride + row;
#pragma GCC unroll 16
    for (int t = 0; t < kPanelTokens; ++t, y += a.y_stride) {
      if (token + t >= a.m) return;
      const __m256bh narrow = _mm512_cvtneps_pbh(simd::add(_mm512_castsi512_ps(v[t]), start));
      _mm256_mask_storeu_epi16(y, simd::first(n), (__m256i)narrow);
    }
  }
};

// More tokens than a pair of panels holds, and groupq, have a loop of their own (tiles_many-inl.h).
TAMIS_INLINE bool has_many(const SpmmArgs& a) {
  return a.m > 2 * kPanelTokens || a.w.format == Format::groupq;
}

// A pair of columns of a panel: of as many tokens as there are, four by four, so that less of x
// comes from L2 beside the weights.
int64_t pair_bytes(const SpmmArgs& a) {
  return a.m < kPanelTokens && !has_many(a) ? ceil_div(a.m, 4) * 16 : kTileRowBytes;
}

TilePlan plan_of(const SpmmArgs& a) {
  const int64_t panels = ceil_div(a.m, kPanelTokens);
  const int64_t columns = has_many(a) ? many_columns(a.w.cols, panels) : kStepColumns;
  const int64_t chunk_bytes = columns / 2 * pair_bytes(a);
  return {a, ceil_div(a.w.cols, columns) * panels * chunk_bytes, pair_bytes(a), chunk_bytes,
          columns};
}

int64_t tiles_bytes(const SpmmArgs& a) {
  return plan_of(a).bytes;
}

// Panels [part / parts) of all chunks: 32 columns of 16 tokens are 16 vectors, transposed.
void prepare_tiles(const SpmmArgs& a, void* prepared, int part, int parts) {
  const TilePlan plan = plan_of(a);
  const int64_t panels = plan.panels, columns = plan.columns, row_bytes = plan.row_bytes;
  const auto lanes = simd::first(static_cast<int>(row_bytes / 4));
  const int64_t count = ceil_div(a.w.cols, columns) * panels;
  for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
    const int64_t panel = i % panels, first = i / panels * columns;
    const int64_t end = first + columns < a.w.cols ? first + columns : a.w.cols;
    const int64_t tokens = a.m - panel * kPanelTokens;
    const auto* x = static_cast<const BF16*>(a.x) + panel * kPanelTokens * a.x_stride;
    auto* out = static_cast<char*>(prepared) + i * plan.chunk_bytes;
    for (int64_t column = first; column < end; column += 32, out += kTileRows * row_bytes) {
      const auto mine = static_cast<__mmask32>(
          _bzhi_u32(~0u, static_cast<unsigned>(end - column < 32 ? end - column : 32)));
      __m512i v[kPanelTokens];
#pragma GCC unroll 16
      for (int t = 0; t < kPanelTokens; ++t) {
        const bool there = t < tokens;
        v[t] =
            _mm512_maskz_loadu_epi16(there ? mine : 0, x + (there ? t : 0) * a.x_stride + column);
      }
      transpose(v);
#pragma GCC unroll 16
      for (int u = 0; u < kTileRows; ++u) {
        _mm512_mask_storeu_epi32(out + u * row_bytes, lanes, v[u]);
      }
    }
    // The second half of a last word.
    if (ceil_div(end, 32) % 2 != 0) {
      __builtin_memset(out, 0, static_cast<size_t>(kTileRows * row_bytes));
    }
  }
}

// Rows whose values are bf16.
struct FloatRows {
  const MatrixView& w;
  const BF16* values;
  int64_t words;
  const BF16* p = nullptr;

  TAMIS_INLINE explicit FloatRows(const MatrixView& of)
      : w(of), values(static_cast<const BF16*>(of.values)), words(mask_words(of.cols)) {}
  TAMIS_INLINE int64_t place() const { return p - values; }
  TAMIS_INLINE bool near_end(int64_t count) const {
    return w.nnz - place() < count * 64 + Bf16Pair::kReadsPast;
  }
};

// Rows of bitmap and nm.
struct MaskedRows : FloatRows {
  const uint64_t* mask = nullptr;
  Ask of_values{}, of_mask{};

  using FloatRows::FloatRows;
  TAMIS_INLINE int64_t start(int64_t row) const { return tile_row_start(w, row); }
  TAMIS_INLINE void begin(int64_t row, int64_t word, int64_t place) {
    mask = w.mask + row * words + word;
    p = values + place;
  }
  template <int kWords, bool kExact>
  TAMIS_INLINE void expand(char* out) {
#pragma GCC unroll 4
    for (int i = 0; i < kWords; ++i, out += 128) {
      Bf16Pair::expand<kExact>(mask[i], p, reinterpret_cast<uint32_t*>(out));
      p += simd::popcount(mask[i]);
    }
    mask += kWords;
  }
  TAMIS_INLINE void begin_ask(int64_t row, int64_t word, int64_t place) {
    const int64_t usual = w.nnz * kUnitWords / (w.rows * words);
    of_values = {reinterpret_cast<const char*>(values + place), 2 * usual};
    of_mask = {reinterpret_cast<const char*>(w.mask + row * words + word), 8 * kUnitWords};
  }
  TAMIS_INLINE void ask() {
    of_values.some();
    of_mask.some();
  }
};

// Rows of csr8.
struct ListedRows : FloatRows {
  const uint8_t *all_counts, *all_columns;
  const uint8_t *counts = nullptr, *columns = nullptr;
  Ask of_values{}, of_columns{}, of_counts{};

  TAMIS_INLINE explicit ListedRows(const MatrixView& of)
      : FloatRows(of), all_counts(of.col_bytes), all_columns(of.col_bytes + of.rows * words) {}
  TAMIS_INLINE int64_t start(int64_t row) const { return w.row_offsets[row]; }
  TAMIS_INLINE void begin(int64_t row, int64_t word, int64_t place) {
    counts = all_counts + row * words + word;
    columns = all_columns + place;
    p = values + place;
  }
  template <int kWords, bool kExact>
  TAMIS_INLINE void expand(char* out) {
#pragma GCC unroll 4
    for (int i = 0; i < kWords; ++i, out += 128) {
      const int count = counts[i];
      Bf16Pair::expand<kExact>(mask_of(columns, count), p, reinterpret_cast<uint32_t*>(out));
      columns += count;
      p += count;
    }
    counts += kWords;
  }
  TAMIS_INLINE void begin_ask(int64_t row, int64_t word, int64_t place) {
    const int64_t usual = w.nnz * kUnitWords / (w.rows * words);
    of_values = {reinterpret_cast<const char*>(values + place), 2 * usual};
    of_columns = {reinterpret_cast<const char*>(all_columns + place), usual};
    of_counts = {reinterpret_cast<const char*>(all_counts + row * words + word), kUnitWords};
  }
  TAMIS_INLINE void ask() {
    of_values.some();
    of_columns.some();
    of_counts.some();
  }
};

// Rows of groupq; places count groups.
template <DType kW, int G>
struct GroupRows {
  static constexpr int64_t kBytes = kW == DType::u4 ? G / 2 : G;
  static constexpr int64_t kWordGroups = 64 / G;

  const MatrixView& w;
  const uint8_t* values;
  const uint64_t* mask = nullptr;
  int64_t first = 0, at = 0;  // groups: of the row, the next column's; stored, the next
  Ask of_values{}, of_scales{}, of_mask{};

  TAMIS_INLINE explicit GroupRows(const MatrixView& of)
      : w(of), values(static_cast<const uint8_t*>(of.values)) {}
  TAMIS_INLINE const uint64_t* mask_row(int64_t row) const {
    return w.mask + row * mask_words(w.cols / G);
  }
  TAMIS_INLINE int64_t start(int64_t row) const { return w.row_offsets[row]; }
  TAMIS_INLINE void begin(int64_t row, int64_t word, int64_t place_of) {
    mask = mask_row(row);
    first = word * kWordGroups;
    at = place_of;
  }
  TAMIS_INLINE int64_t place() const { return at; }
  TAMIS_INLINE bool near_end(int64_t) const { return false; }
  template <int kWords, bool kExact>
  TAMIS_INLINE void expand(char* out) {
    for (int i = 0; i < kWords; ++i, out += 128, first += kWordGroups) {
      const auto bits =
          static_cast<uint32_t>(mask[first / 64] >> (first % 64)) & ((1u << kWordGroups) - 1);
      put_groups<kW, G>(values + at * kBytes, w.group_scales + 2 * at, bits,
                        reinterpret_cast<uint32_t*>(out));
      at += simd::popcount(bits);
    }
  }
  TAMIS_INLINE void begin_ask(int64_t row, int64_t word, int64_t place_of) {
    const int64_t usual = w.nnz / G * kUnitWords / (w.rows * mask_words(w.cols));
    of_values = {reinterpret_cast<const char*>(values + place_of * kBytes), usual * kBytes};
    of_scales = {reinterpret_cast<const char*>(w.group_scales + 2 * place_of), usual * 4};
    of_mask = {reinterpret_cast<const char*>(mask_row(row) + word * kWordGroups / 64),
               kUnitWords * kWordGroups / 8};
  }
  TAMIS_INLINE void ask() {
    of_values.some();
    of_scales.some();
    of_mask.some();
  }
};

template <DType kW>
void spmm_group_tiles(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const TilePlan plan = plan_of(a);
  if (a.w.group_size == 16) {
    return spmm_many_tiles<Bf16Tiles>(a, GroupRows<kW, 16>(a.w), plan, row_begin, row_end);
  }
  spmm_many_tiles<Bf16Tiles>(a, GroupRows<kW, 32>(a.w), plan, row_begin, row_end);
}

void spmm_bf16_tiles(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const TilePlan plan = plan_of(a);
  if (has_many(a)) {
    if (a.w.format != Format::csr8) {
      return spmm_many_tiles<Bf16Tiles>(a, MaskedRows(a.w), plan, row_begin, row_end);
    }
    return spmm_many_tiles<Bf16Tiles>(a, ListedRows(a.w), plan, row_begin, row_end);
  }
  MatrixView w = a.w;
  w.group_size = w.cols;  // so that chunks are those of x
  spmm_tiles(a, w, Bf16Tiles{static_cast<const char*>(a.prepared)}, plan, row_begin, row_end);
}

}  // namespace

const SpmmXForm spmm_tiles_bf16_amx = {tiles_bytes, prepare_tiles};

#define TAMIS_TILES_KERNEL(format)                                                          \
  void spmm_##format##_bf16_bf16_amx_tiles(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_bf16_tiles(a, begin, end);                                                         \
  }
TAMIS_TILES_KERNEL(bitmap)
TAMIS_TILES_KERNEL(nm)
TAMIS_TILES_KERNEL(csr8)
#undef TAMIS_TILES_KERNEL

#define TAMIS_TILES_KERNEL(code)                                                            \
  void spmm_groupq_##code##_bf16_amx_tiles(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_group_tiles<DType::code>(a, begin, end);                                           \
  }
TAMIS_TILES_KERNEL(u4)
TAMIS_TILES_KERNEL(u8)
#undef TAMIS_TILES_KERNEL

}  // namespace tamis

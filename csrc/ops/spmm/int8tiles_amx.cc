// bitmap and nm of i8 with AMX: tdpbssd on codes of both; exact within a chunk of columns, then
// f32.
//
// x: quads, whose 64 columns of 16 tokens are one right-hand tile.  Error: as in codes-inl.h.
#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/quads_avx512vbmi2.h"
#include "ops/spmm/tiles-inl.h"

namespace tamis {
namespace {

// Integer sums of up to two panels on their way to f32: a tile at every step of the next panels.
struct CodePending {
  alignas(64) TileSums sums[2][2];    // [turn, panel]
  int turn = 0, part = 0, parts = 0;  // tiles done, of all
  TileSums* to = nullptr;
  const float* steps = nullptr;   // of x, [panels, 16]
  const float* scales = nullptr;  // of w, `groups` apart; null: one for the row, applied at the end
  int64_t groups = 0;
  int rows = 0;  // that exist
  bool first = false;

  TAMIS_INLINE TileSums* other() { return sums[turn]; }
  TAMIS_INLINE void some() {
    if (part < parts) finish();
  }
  TAMIS_INLINE void all() {
    while (part < parts) finish();
  }

  TAMIS_INLINE void finish() {
    const int panel = part / 2, half = part % 2;
    const auto& from = sums[turn ^ 1][panel][half];
    auto& total = to[panel][half];
    const simd::F32 step = _mm512_load_ps(steps + panel * kQuadTokens);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      simd::F32 v = _mm512_cvtepi32_ps(_mm512_load_si512(from[i]));
      if (scales) {
        const int row = half * kTileRows + i;
        v = simd::mul(v, simd::splat(scales[(row < rows ? row : 0) * groups]));
      }
      const simd::F32 before = first ? simd::zero() : _mm512_load_ps(total[i]);
      _mm512_store_ps(total[i], simd::fma(v, step, before));
    }
    ++part;
  }
};

struct CodeTiles {
  using W = int8_t;
  using Pending = CodePending;
  static constexpr bool kSumsStay = false;
  static constexpr int64_t kWordSteps = 1;
  static constexpr int64_t kReadsPast = 64;

  const char* x;
  XQuads quads;

  TAMIS_INLINE explicit CodeTiles(const SpmmArgs& a)
      : x(static_cast<const char*>(a.prepared)), quads(a, const_cast<void*>(a.prepared)) {}

  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const W* p, char* out) {
    const __m512i packed =
        kExact ? _mm512_maskz_loadu_epi8(
                     _bzhi_u64(~uint64_t{0}, static_cast<unsigned>(simd::popcount(bits))), p)
               : _mm512_loadu_si512(p);
    _mm512_storeu_si512(out, _mm512_mask_expand_epi8(simd::opaque_zero(), bits, packed));
  }
  template <int P>
  static TAMIS_INLINE void products() {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(2, 5, 6);
    if (P == 2) {
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
  }
  // The sums of these panels follow.
  TAMIS_INLINE void hand_over(const SpmmArgs& a, CodePending& pending, const TileChunk& c,
                              int64_t panel, int panels, TileSums* to) const {
    pending.turn ^= 1;
    pending.part = 0;
    pending.parts = 2 * panels;
    pending.to = to;
    pending.steps = quads.steps + (c.step * quads.panels + panel) * kQuadTokens;
    pending.groups = a.w.group_size < a.w.cols ? ceil_div(a.w.cols, a.w.group_size) : 1;
    pending.scales = pending.groups > 1 ? a.w.scales + c.row * pending.groups + c.group : nullptr;
    pending.rows = static_cast<int>(a.w.rows - c.row < kPanelRows ? a.w.rows - c.row : kPanelRows);
    pending.first = c.first;
  }
  // Rows [row, row + n) of 16 tokens, a vector of rows each.
  static TAMIS_INLINE void store(const SpmmArgs& a, const __m512i (&v)[kPanelTokens], int64_t row,
                                 int n, int64_t token) {
    const bool grouped = a.w.group_size < a.w.cols;
    const simd::F32 scale = grouped ? simd::splat(1.0f) : simd::load(a.w.scales + row, n);
    for (int t = 0; t < kPanelTokens && token + t < a.m; ++t) {
      store_rows(a, simd::mul(_mm512_castsi512_ps(v[t]), scale), row, token + t, n);
    }
  }
};

TilePlan plan_of(const SpmmArgs& a) {
  return {a, XQuads(a, nullptr).bytes, kTileRowBytes, kStepColumns * kQuadTokens};
}

int64_t tiles_bytes(const SpmmArgs& a) {
  return plan_of(a).bytes;
}

void spmm_code_tiles(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  spmm_tiles(a, a.w, CodeTiles(a), plan_of(a), row_begin, row_end);
}

}  // namespace

#define TAMIS_TILES_KERNEL(x, X)                                                           \
  const SpmmXForm spmm_codetiles_##x##_amx = {tiles_bytes, prepare_quads<X>, true};        \
  void spmm_bitmap_i8_##x##_amx_codetiles(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_code_tiles(a, begin, end);                                                        \
  }                                                                                        \
  void spmm_nm_i8_##x##_amx_codetiles(const SpmmArgs& a, int64_t begin, int64_t end) {     \
    spmm_code_tiles(a, begin, end);                                                        \
  }

TAMIS_TILES_KERNEL(f32, float)
TAMIS_TILES_KERNEL(f16, F16)
TAMIS_TILES_KERNEL(bf16, BF16)

#undef TAMIS_TILES_KERNEL

}  // namespace tamis

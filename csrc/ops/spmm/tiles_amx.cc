// bitmap, nm and csr8 of bf16 with AMX: pairs of columns by tdpbf16ps, which takes denormal inputs
// as zero and flushes denormal sums; the rounding to bf16 flushes denormals too.
#include "base/simd/avx512.h"
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/tiles-inl.h"

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

// A pair of columns of a panel: of as many tokens as there are, four by four, so that less of x
// comes from L2 beside the weights.
int64_t pair_bytes(int64_t tokens) {
  return tokens < kPanelTokens ? ceil_div(tokens, 4) * 16 : kTileRowBytes;
}

TilePlan plan_of(const SpmmArgs& a) {
  const int64_t step_bytes = kStepColumns / 2 * pair_bytes(a.m);
  const int64_t steps = ceil_div(a.w.cols, kStepColumns) * ceil_div(a.m, kPanelTokens);
  return {a, steps * step_bytes, pair_bytes(a.m), step_bytes};
}

int64_t tiles_bytes(const SpmmArgs& a) {
  return plan_of(a).bytes;
}

// Panels [part / parts) of all 256 columns: 32 columns of 16 tokens are 16 vectors, transposed.
void prepare_tiles(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t panels = ceil_div(a.m, kPanelTokens), row_bytes = pair_bytes(a.m);
  const auto lanes = simd::first(static_cast<int>(row_bytes / 4));
  const int64_t count = ceil_div(a.w.cols, kStepColumns) * panels;
  for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
    const int64_t panel = i % panels, first = i / panels * kStepColumns;
    const int64_t end = first + kStepColumns < a.w.cols ? first + kStepColumns : a.w.cols;
    const int64_t tokens = a.m - panel * kPanelTokens;
    const auto* x = static_cast<const BF16*>(a.x) + panel * kPanelTokens * a.x_stride;
    auto* out = static_cast<char*>(prepared) + i * (kStepColumns / 2 * row_bytes);
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

void spmm_bf16_tiles(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  MatrixView w = a.w;
  w.group_size = w.cols;  // so that chunks are those of x
  spmm_tiles(a, w, Bf16Tiles{static_cast<const char*>(a.prepared)}, plan_of(a), row_begin, row_end);
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

}  // namespace tamis

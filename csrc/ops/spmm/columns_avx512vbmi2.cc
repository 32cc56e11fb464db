// bitmap and nm for about 16 tokens with VBMI2, products in f32.
#include "base/simd/avx512.h"
#include "ops/spmm/bf16_split.h"
#include "ops/spmm/columns-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

using F32ByF32 = F32Unit<float, float>;

// Units of 32 columns in the order of Bf16Split.
struct SplitUnit : F32Unit<BF16, BF16> {
  static constexpr int64_t kReadsPast = Bf16Split::kColumns;

  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const BF16* p, float* out) {
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s, out += Bf16Split::kColumns) {
      const auto mine = static_cast<uint32_t>(bits >> (32 * s));
      simd::F32 halves[2];
      Bf16Split::expand<kExact>(mine, p, halves);
      simd::store(halves[0], out);
      simd::store(halves[1], out + kLanes);
      p += simd::popcount(mine);
    }
  }
};

void prepare_split(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t words = mask_words(a.w.cols);
  const int64_t first = words * part / parts * 64, last = words * (part + 1) / parts * 64;
  const auto* x = static_cast<const BF16*>(a.x);
  auto* out = static_cast<float*>(prepared) + first * kLanes;
  for (int64_t token = 0; token < a.m;
       token += kLanes, out += (words * 64 - (last - first)) * kLanes) {
    for (int64_t column = first; column < last; column += Bf16Split::kColumns) {
      const int64_t left = a.w.cols - column;
      const int there = static_cast<int>(left < 0 ? 0 : left < 32 ? left : 32);
      __m512i halves[2][kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t row = token + i < a.m ? token + i : a.m - 1;
        simd::F32 mine[2];
        Bf16Split::load(x + row * a.x_stride + (there ? column : 0), there, mine);
        for (int h = 0; h < 2; ++h) halves[h][i] = _mm512_castps_si512(mine[h]);
      }
      for (auto& half : halves) {
        transpose(half);
#pragma GCC unroll 16
        for (auto& unit : half) {
          _mm512_store_si512(out, unit);
          out += kLanes;
        }
      }
    }
  }
}

}  // namespace

TAMIS_COLUMNS_FORM(f32, avx512vbmi2, F32ByF32)
const SpmmXForm spmm_columns_bf16_avx512vbmi2 = {columns_bytes<SplitUnit>, prepare_split};

TAMIS_COLUMNS_KERNELS(f32, f32, avx512vbmi2, F32ByF32)
TAMIS_COLUMNS_KERNELS(bf16, bf16, avx512vbmi2, SplitUnit)

}  // namespace tamis

// csr8 with BF16: 32 values per step, vdpbf16ps.
// vdpbf16ps takes denormal inputs as zero and flushes denormal sums.
#include "base/simd/avx512.h"
#include "ops/spmm/csr8-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct PickDot {
  using W = BF16;
  using X = BF16;
  struct Chunk {
    __m512i part[2];
  };
  static constexpr int kLanes = 32;
  static constexpr int rows(int) { return 4; }

  static TAMIS_INLINE __mmask32 lanes(int n) { return _bzhi_u32(~0u, static_cast<unsigned>(n)); }
  static TAMIS_INLINE Chunk load(const X* p) {
    return {{_mm512_loadu_si512(p), _mm512_loadu_si512(p + 32)}};
  }
  static TAMIS_INLINE Chunk load(const X* p, int n) {
    return {{_mm512_maskz_loadu_epi16(lanes(n), p),
             n > 32 ? _mm512_maskz_loadu_epi16(lanes(n - 32), p + 32) : _mm512_setzero_si512()}};
  }
  static TAMIS_INLINE __m512i values(const W* p, int n) {
    return _mm512_maskz_loadu_epi16(lanes(n), p);
  }
  static TAMIS_INLINE __m512i columns(const uint8_t* p, int n) {
    return _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(lanes(n), p));
  }
  static TAMIS_INLINE __m512i pick(const Chunk& x, __m512i at) {
    return _mm512_permutex2var_epi16(x.part[0], at, x.part[1]);
  }
  static TAMIS_INLINE __m512 dot(__m512 sum, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
  }
};

}  // namespace

TAMIS_CSR8_KERNEL(bf16, bf16, avx512bf16, PickDot)

}  // namespace tamis

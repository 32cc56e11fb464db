// csr8 on NEON: 8 values per step, the inputs of a word loaded from L1 lane by lane.
#include "base/simd/neon.h"
#include "ops/spmm/csr8-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct Columns {
  uint8_t at[8];
};

template <class WType, class XType>
struct PickLanes {
  using W = WType;
  using X = XType;
  using Chunk = const X*;
  static constexpr int kLanes = simd::kLanes;
  static constexpr int rows(int tokens) { return tokens <= 2 ? 4 : 2; }

  static TAMIS_INLINE Chunk load(const X* p) { return p; }
  static TAMIS_INLINE Chunk load(const X* p, int) { return p; }
  static TAMIS_INLINE simd::F32 values(const W* p, int n) {
    return n >= kLanes ? simd::load(p) : simd::load(p, n);
  }
  // Lanes past n: column 0, which every word has.
  static TAMIS_INLINE Columns columns(const uint8_t* p, int n) {
    Columns c = {};
    if (n >= kLanes) {
      __builtin_memcpy(c.at, p, sizeof c.at);
    } else {
      for (int i = 0; i < n; ++i) c.at[i] = p[i];
    }
    return c;
  }
  static TAMIS_INLINE simd::F32 pick(Chunk x, const Columns& c) {
    return simd::pick(x, [&c](int i) __attribute__((always_inline)) { return c.at[i] & 63; });
  }
  static TAMIS_INLINE simd::F32 dot(simd::F32 sum, simd::F32 w, simd::F32 x) {
    return simd::fma(w, x, sum);
  }
};

using F32ByF32 = PickLanes<float, float>;
using F16ByF32 = PickLanes<F16, float>;
using F16ByF16 = PickLanes<F16, F16>;
using Bf16ByF32 = PickLanes<BF16, float>;
using Bf16ByBf16 = PickLanes<BF16, BF16>;

}  // namespace

TAMIS_CSR8_KERNEL(f32, f32, neon, F32ByF32)
TAMIS_CSR8_KERNEL(f16, f32, neon, F16ByF32)
TAMIS_CSR8_KERNEL(f16, f16, neon, F16ByF16)
TAMIS_CSR8_KERNEL(bf16, f32, neon, Bf16ByF32)
TAMIS_CSR8_KERNEL(bf16, bf16, neon, Bf16ByBf16)

}  // namespace tamis

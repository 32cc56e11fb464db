// bitmap and nm of bf16 for a few tokens with VBMI2: vpexpandw, then even and odd columns as f32.
#include "base/simd/avx512.h"
#include "ops/spmm/bf16_split.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/strips-inl.h"

namespace tamis {
namespace {

struct StripSplit : StripFloats {
  using W = BF16;
  using X = BF16;
  static constexpr int kColumns = Bf16Split::kColumns;
  static constexpr int kReadsPast = kColumns;
  static constexpr bool kAhead = true;

  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const W* p, simd::F32 (&w)[2]) {
    Bf16Split::expand<kExact>(static_cast<uint32_t>(bits), p, w);
  }
  static TAMIS_INLINE void put(const X* x, int n, float* out) {
    simd::F32 halves[2];
    Bf16Split::load(x, n, halves);
    simd::store(halves[0], out);
    simd::store(halves[1], out + simd::kLanes);
  }
};

}  // namespace

TAMIS_STRIPS_FORM(bf16, avx512vbmi2, StripSplit)
TAMIS_STRIPS_KERNELS(bf16, bf16, avx512vbmi2, StripSplit)

}  // namespace tamis

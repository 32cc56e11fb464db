// bitmap and nm of i8 for 5 to 8 tokens: quads in panels of eight, by the loop that expands the
// next columns beside products.
//
// y[m,n] = sum_k x[m,k] * w[n,k].  Error: as in codes-inl.h.  More tokens take a panel each after
// the other, so int8quads does those.
#include "base/simd/avx512.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/quads_beside_avx512vbmi2.h"

namespace tamis {
namespace {

constexpr int kOctet = 8;

int64_t octets_bytes(const SpmmArgs& a) {
  return XQuads(a, nullptr, kOctet).bytes;
}

template <class X>
void prepare(const SpmmArgs& a, void* prepared, int part, int parts) {
  prepare_panels<X>(a, XQuads(a, prepared, kOctet), part, parts);
}

void spmm_octets(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  spmm_beside<kOctet>(a, XQuads(a, const_cast<void*>(a.prepared), kOctet), row_begin, row_end);
}

}  // namespace

#define TAMIS_OCTETS_KERNEL(x, X)                                                               \
  const SpmmXForm spmm_octets_##x##_avx512vbmi2 = {octets_bytes, prepare<X>, true};             \
  void spmm_bitmap_i8_##x##_avx512vbmi2_octets(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_octets(a, begin, end);                                                                 \
  }                                                                                             \
  void spmm_nm_i8_##x##_avx512vbmi2_octets(const SpmmArgs& a, int64_t begin, int64_t end) {     \
    spmm_octets(a, begin, end);                                                                 \
  }

TAMIS_OCTETS_KERNEL(f32, float)
TAMIS_OCTETS_KERNEL(f16, F16)
TAMIS_OCTETS_KERNEL(bf16, BF16)

#undef TAMIS_OCTETS_KERNEL

}  // namespace tamis

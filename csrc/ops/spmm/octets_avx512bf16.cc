// bitmap and nm for 7 and 8 tokens on hosts with VBMI2 and BF16: eight tokens of four columns of
// bf16 in a vector, by vdpbf16ps, or of two columns of f32.
#include "base/simd/avx512.h"
#include "ops/spmm/beside-inl.h"
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

constexpr int64_t kOctet = 8;

template <class X>
int64_t octets_bytes(const SpmmArgs& a) {
  return ceil_div(a.m, kOctet) * kOctet * mask_words(a.w.cols) * 64 *
         static_cast<int64_t>(sizeof(X));
}

// Words [part / parts) of all tokens, those that are missing included.
template <class X>
void prepare_octets(const SpmmArgs& a, void* prepared, int part, int parts) {
  constexpr int64_t kEach = 8 / sizeof(X), kWordBytes = 64 * sizeof(X);
  const int64_t words = mask_words(a.w.cols);
  for (int64_t token = 0; token < ceil_div(a.m, kOctet) * kOctet; ++token) {
    const auto* x = static_cast<const X*>(a.x) + token * a.x_stride;
    char* block = static_cast<char*>(prepared) + token / kOctet * kOctet * words * kWordBytes;
    for (int64_t word = words * part / parts; word < words * (part + 1) / parts; ++word) {
      const int64_t left = a.w.cols - word * 64;
      alignas(64) X columns[64] = {};
      if (token < a.m) {
        __builtin_memcpy(columns, x + word * 64,
                         sizeof(X) * static_cast<size_t>(left < 64 ? left : 64));
      }
      char* out = block + word * kOctet * kWordBytes + token % kOctet * 8;
      for (int i = 0; i < 64 / kEach; ++i) __builtin_memcpy(out + i * 64, columns + kEach * i, 8);
    }
  }
}

}  // namespace

const SpmmXForm spmm_octets_bf16_avx512bf16 = {octets_bytes<BF16>, prepare_octets<BF16>};
const SpmmXForm spmm_octets_f32_avx512bf16 = {octets_bytes<float>, prepare_octets<float>};

TAMIS_BESIDE_KERNELS(bf16, bf16, avx512bf16, octets, BesidePair, kOctet)
TAMIS_BESIDE_KERNELS(f32, f32, avx512bf16, octets, BesideF32, kOctet)

}  // namespace tamis

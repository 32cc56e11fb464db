// bitmap and nm of bf16 for 7 and 8 tokens with VBMI2 and BF16: four columns of eight tokens in a
// vector, by vdpbf16ps.
#include "base/simd/avx512.h"
#include "ops/spmm/beside_avx512bf16.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

constexpr int64_t kOctet = 8;

int64_t octets_bytes(const SpmmArgs& a) {
  return ceil_div(a.m, kOctet) * kOctet * mask_words(a.w.cols) * 128;
}

// Words [part / parts) of all tokens, those that are missing included.
void prepare_octets(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t words = mask_words(a.w.cols);
  for (int64_t token = 0; token < ceil_div(a.m, kOctet) * kOctet; ++token) {
    const auto* x = static_cast<const BF16*>(a.x) + token * a.x_stride;
    char* block = static_cast<char*>(prepared) + token / kOctet * kOctet * words * 128;
    for (int64_t word = words * part / parts; word < words * (part + 1) / parts; ++word) {
      const int64_t left = a.w.cols - word * 64;
      alignas(64) BF16 columns[64] = {};
      if (token < a.m)
        __builtin_memcpy(columns, x + word * 64, 2 * static_cast<size_t>(left < 64 ? left : 64));
      char* out = block + word * kOctet * 128 + token % kOctet * 8;
      for (int i = 0; i < 16; ++i) __builtin_memcpy(out + i * 64, columns + 4 * i, 8);
    }
  }
}

}  // namespace

const SpmmXForm spmm_octets_bf16_avx512bf16 = {octets_bytes, prepare_octets};

void spmm_bitmap_bf16_bf16_avx512bf16_octets(const SpmmArgs& a, int64_t begin, int64_t end) {
  spmm_beside<kOctet>(a, begin, end);
}
void spmm_nm_bf16_bf16_avx512bf16_octets(const SpmmArgs& a, int64_t begin, int64_t end) {
  spmm_beside<kOctet>(a, begin, end);
}

}  // namespace tamis

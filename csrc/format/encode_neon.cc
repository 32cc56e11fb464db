// i8 codes of weights on NEON: the same bits as encode_scalar, eight weights at a time.
#include "base/simd/neon.h"
#include "format/encode.h"

namespace tamis {
namespace {

// Saturating moves clamp to [-128, 127]; |w / divisor| rounds to 127 at most where a weight is
// kept.
TAMIS_INLINE int8x8_t eight(simd::F32 w, float32x4_t divisor) {
  const int32x4_t low = vcvtnq_s32_f32(vdivq_f32(w.low, divisor));  // rounds to even
  const int32x4_t high = vcvtnq_s32_f32(vdivq_f32(w.high, divisor));
  return vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high)));
}

template <class T>
void encode(const T* w, int n, float divisor, int8_t* codes) {
  const float32x4_t by = vdupq_n_f32(divisor);
  int j = 0;
  for (; j + 8 <= n; j += 8) vst1_s8(codes + j, eight(simd::load(w + j), by));
  if (j < n) {
    int8_t rest[8];
    vst1_s8(rest, eight(simd::load(w + j, n - j), by));
    for (int i = 0; i < n - j; ++i) codes[j + i] = rest[i];
  }
}

}  // namespace

void encode_neon(const void* w, DType dtype, int n, float divisor, int8_t* codes) {
  switch (dtype) {
    case DType::f32:
      return encode(static_cast<const float*>(w), n, divisor, codes);
    case DType::f16:
      return encode(static_cast<const F16*>(w), n, divisor, codes);
    default:
      return encode(static_cast<const BF16*>(w), n, divisor, codes);
  }
}

}  // namespace tamis

// codes[j] = round_to_even(w[j] / divisor) of kept weights, all of which lie in [-127, 127] then;
// the codes of other weights are arbitrary. The same bits on every host.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/isa.h"

namespace tamis {

// w: n weights of dtype f32, f16 or bf16; divisor > 0.
using Encode = void (*)(const void* w, DType dtype, int n, float divisor, int8_t* codes);

void encode_scalar(const void* w, DType dtype, int n, float divisor, int8_t* codes);
void encode_avx2(const void* w, DType dtype, int n, float divisor, int8_t* codes);
void encode_neon(const void* w, DType dtype, int n, float divisor, int8_t* codes);

// The fastest that the active ISA level has.
inline Encode host_encode() {
#if defined(__x86_64__)
  if ((active_isa() & isa::avx2) == isa::avx2) return encode_avx2;
#elif defined(__aarch64__)
  if ((active_isa() & isa::neon) == isa::neon) return encode_neon;
#endif
  return encode_scalar;
}

inline constexpr float kLargestF16 = 65504.0f;

// Codes in [0, highest] of a group's n weights, a multiple of 8 and at most 32, and as f16 their
// scale and zero point: w = scale * (code - zero). A weight that keep (null: all are kept) leaves
// out counts as 0. False if no f16 scale spans them, which Inf and NaN among them make so.
using EncodeGroup = bool (*)(const void* w, DType dtype, const uint8_t* keep, int n, float highest,
                             uint8_t* codes, uint16_t* scale);

bool encode_group_scalar(const void* w, DType dtype, const uint8_t* keep, int n, float highest,
                         uint8_t* codes, uint16_t* scale);
bool encode_group_avx2(const void* w, DType dtype, const uint8_t* keep, int n, float highest,
                       uint8_t* codes, uint16_t* scale);

inline EncodeGroup host_encode_group() {
#if defined(__x86_64__)
  if ((active_isa() & isa::avx2) == isa::avx2) return encode_group_avx2;
#endif
  return encode_group_scalar;
}

}  // namespace tamis

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

// Groups of n weights, a multiple of 8 and at most 32, of one row.
struct GroupSource {
  const void* w;  // the row, of dtype f32, f16 or bf16
  DType dtype;
  const uint8_t* keep;  // likewise; null: all are kept
  int n;
};

inline constexpr int kEncodeGroups = 8;

// Codes in [0, highest] of `count` <= kEncodeGroups groups, which start at columns at[], and as f16
// their scales and zero points: w = scale * (code - zero). A weight that keep leaves out counts as
// 0. codes: [count, n]; scales: [count, 2]. False if no f16 scale spans one of the groups, which
// Inf and NaN among them make so.
using EncodeGroups = bool (*)(const GroupSource& row, const int64_t* at, int count, float highest,
                              uint8_t* codes, uint16_t* scales);

bool encode_groups_scalar(const GroupSource& row, const int64_t* at, int count, float highest,
                          uint8_t* codes, uint16_t* scales);
bool encode_groups_avx2(const GroupSource& row, const int64_t* at, int count, float highest,
                        uint8_t* codes, uint16_t* scales);

inline EncodeGroups host_encode_groups() {
#if defined(__x86_64__)
  if ((active_isa() & isa::avx2) == isa::avx2) return encode_groups_avx2;
#endif
  return encode_groups_scalar;
}

}  // namespace tamis

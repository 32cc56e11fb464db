// Scores as whole numbers, which add up alike in any order: what kv_select by top_p counts with, so
// that every backend takes the same units.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TAMIS_BOTH __host__ __device__ inline
#else
#define TAMIS_BOTH inline
#endif

namespace tamis {

// How many bits more than a float's 24 a score of the largest exponent gets among so many units:
// all of them then add up below 2^62, and, up to 2^22 units, thirds of a score's bits below 2^32.
TAMIS_BOTH int32_t share_room(int64_t units) {
  int32_t width = 0;
  while (units >> width != 0) ++width;
  const int32_t thirds = 69 - 3 * width > 3 ? 69 - 3 * width : 3;
  return 38 - width < thirds ? 38 - width : thirds;
}

TAMIS_BOTH int32_t share_exponent(uint32_t bits) {
  return bits >> 23 > 1 ? static_cast<int32_t>(bits >> 23) : 1;
}

// Whether the bits of a float count: above 0 and no NaN.
TAMIS_BOTH bool has_share(uint32_t bits) {
  return bits - 1 < 0x7f800000u;
}

// A score's bits as a whole number of units of the last of `room` bits below the largest score's
// exponent; 0 where it has no share.
TAMIS_BOTH uint64_t share_of(uint32_t bits, int32_t largest, int32_t room) {
  if (!has_share(bits)) return 0;
  const uint64_t significand = (bits & 0x7fffffu) | (bits >> 23 != 0 ? 0x800000u : 0u);
  const int32_t shift = share_exponent(bits) - largest + room;
  if (shift >= 0) return significand << shift;
  return shift > -24 ? significand >> -shift : 0;
}

// What shares must reach: top_p of all, rounded up.
TAMIS_BOTH uint64_t share_wanted(double top_p, uint64_t all) {
  const double exact = top_p * static_cast<double>(all);
  auto wanted = static_cast<uint64_t>(exact);
  if (static_cast<double>(wanted) < exact) ++wanted;
  return wanted < all ? wanted : all;
}

}  // namespace tamis

#undef TAMIS_BOTH

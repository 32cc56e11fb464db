// From the word and the packed values of a t16 record to the A fragments of one lane.
#pragma once

#include "base/cuda/dev.h"

namespace tamis {

// Where a lane's values of each run begin, in bytes, when the record begins at `record`. Nibble
// counts, times the two bytes of a value, are summed over lanes in byte fields: the 31 lanes before
// a lane hold at most 248, and a carry out of the inclusive sum leaves with this lane's own counts.
TAMIS_DEVICE void first_values(uint32_t record, uint32_t word, const dev::Word4& starts,
                               uint32_t (&at)[8]) {
  uint32_t counts = word - (word >> 1 & 0x55555555u);
  counts = (counts & 0x33333333u) + (counts >> 2 & 0x33333333u);
  const uint32_t low = counts << 1 & 0x1e1e1e1eu, high = counts >> 3 & 0x1e1e1e1eu;
  uint32_t low_sum = low, high_sum = high;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    low_sum = dev::prefix_step(low_sum, distance);
    high_sum = dev::prefix_step(high_sum, distance);
  }
  low_sum -= low;
  high_sum -= high;
  const uint32_t pairs[4] = {starts.x, starts.y, starts.z,
                             starts.w};  // low run, high run of a step
#pragma unroll
  for (uint32_t step = 0; step < 4; ++step) {
    at[2 * step] = record + (pairs[step] & 0xffffu) + dev::byte_permute(low_sum, 0, 0x4440u + step);
    at[2 * step + 1] =
        record + (pairs[step] >> 16) + dev::byte_permute(high_sum, 0, 0x4440u + step);
  }
}

// Two neighbouring weights; `at` moves past those that are kept.
template <class Load>
TAMIS_DEVICE uint32_t expand_pair(const Load& load, uint32_t bits, uint32_t& at) {
  uint32_t pair = 0;
  if (bits & 1u) {
    pair = load(at);
    at += 2;
  }
  if (bits & 2u) {
    pair = dev::byte_permute(pair, load(at), 0x5410);
    at += 2;
  }
  return pair;
}

// The A fragment of one step: {row g, row g + 8} x {columns 0 and 1, 2 and 3} of the lane's four.
template <class Load>
TAMIS_DEVICE void expand_step(const Load& load, uint32_t bits, uint32_t& low, uint32_t& high,
                              uint32_t (&a)[4]) {
  a[0] = expand_pair(load, bits, low);
  a[1] = expand_pair(load, bits >> 4, high);
  a[2] = expand_pair(load, bits >> 2, low);
  a[3] = expand_pair(load, bits >> 6, high);
}

}  // namespace tamis

// Words of codes of 2, 4 or 8 bits to pairs of 16-bit floats, without conversions: a code stands in
// the low bits of a significand whose steps are 1.
#pragma once

#include "base/cuda/dev.h"

namespace tamis {

// The same pairs as f16 below its smallest normal number, which products take as exactly as others:
// one instruction a pair. Pair i counts 2^(kBits * (i % (8 / kBits)) - 24) a step.
template <int kBits>
TAMIS_DEVICE void raw_pairs(uint32_t word, uint32_t (&pairs)[16 / kBits]) {
  constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x00010001u;
#pragma unroll
  for (int i = 0; i < 16 / kBits; ++i) {
    constexpr int kOfByte = 8 / kBits;
    pairs[i] = (i < kOfByte ? word : word >> 8) & (kMask << i % kOfByte * kBits);
  }
}

// A lane's pairs of neighbouring codes of a word, as f16: pair i is codes 2i and 2i + 1.
template <int kBits>
TAMIS_DEVICE void code_pairs(uint32_t word, uint32_t (&pairs)[16 / kBits]) {
  constexpr uint32_t kMagic = 0x64006400u;  // 1024 in both halves; a step of 1
  constexpr uint32_t kMinus1024 = 0xe400e400u;
  constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x00010001u;
  if constexpr (kBits == 8) {
    pairs[0] = dev::fma_f16x2(dev::and_or(word, kMask, kMagic), 0x3c003c00u, kMinus1024);
    pairs[1] = dev::fma_f16x2(dev::and_or(word >> 8, kMask, kMagic), 0x3c003c00u, kMinus1024);
  } else {
    // Codes that stand higher in their half count 2^kBits, ... times as much: scaled back by the
    // same instruction that subtracts 1024, so a shift serves 8 bits of each half.
#pragma unroll
    for (int byte = 0; byte < 2; ++byte) {
      const uint32_t w = byte == 0 ? word : word >> 8;
#pragma unroll
      for (int i = 0; i < 8 / kBits; ++i) {
        constexpr uint32_t kOne = 0x3c00u;
        const uint32_t factor = (kOne - (static_cast<uint32_t>(i * kBits) << 10)) * 0x00010001u;
        const uint32_t minus = (0xe400u - (static_cast<uint32_t>(i * kBits) << 10)) * 0x00010001u;
        pairs[byte * (8 / kBits) + i] =
            dev::fma_f16x2(dev::and_or(w, kMask << i * kBits, kMagic), factor, minus);
      }
    }
  }
}

}  // namespace tamis

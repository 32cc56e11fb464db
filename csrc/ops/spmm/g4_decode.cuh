// From a g4 record to the A fragments of one lane: codes become 16-bit
// floats by OR with a power of two, the zero point and that power leave in one subtraction, which
// is exact, then the scale: one rounding in f16, two in bf16 (of the scale, of the product).
#pragma once

#include "base/cuda/dev.h"
#include "format/g4.h"

namespace tamis {

// Eight pairs of a unit: pair i is columns 2i and 2i + 1. scale: f16, zero point in the high half.
template <DType kType>
TAMIS_DEVICE void g4_unit(const dev::Word2& codes, uint32_t scale, uint32_t (&pairs)[8]) {
  const uint32_t words[2] = {codes.x, codes.y};
  if constexpr (kType == DType::f16) {
    const uint32_t step = dev::byte_permute(scale, 0, 0x1010);
    const uint32_t zero = dev::byte_permute(scale, 0, 0x3232);
    const uint32_t low = dev::fma_f16x2(zero, 0xbc00bc00u, 0xe400e400u);   // -(1024 + zero)
    const uint32_t high = dev::fma_f16x2(zero, 0xbc00bc00u, 0xd400d400u);  // -(64 + zero)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = words[i / 4] >> (i % 4 / 2 * 8);
      const uint32_t code =
          i % 2 == 0
              ? dev::fma_f16x2(dev::and_or(word, 0x000f000fu, 0x64006400u), 0x3c003c00u, low)
              : dev::fma_f16x2(dev::and_or(word, 0x00f000f0u, 0x64006400u), 0x2c002c00u, high);
      pairs[i] = dev::mul_f16x2(code, step);
    }
  } else {
    const float z = dev::f16_to_f32(static_cast<uint16_t>(scale >> 16));
    const float s = dev::f16_to_f32(static_cast<uint16_t>(scale));
    const uint32_t step = dev::pack_bf16(s, s), minus = dev::pack_bf16(-128 - z, -128 - z);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = words[i / 4] >> (i % 4 * 4);
      const uint32_t code =
          dev::fma_bf16x2(dev::and_or(word, 0x000f000fu, 0x43004300u), 0x3f803f80u, minus);
      pairs[i] = dev::fma_bf16x2(code, step, 0x80008000u);
    }
  }
}

// What a lane reads of a record: its two units' codes and scales, 0 where they are dropped, which
// makes weights of 0 * (0 - 0).
struct G4Units {
  dev::Word2 codes[2];
  uint32_t scale[2];

  TAMIS_DEVICE void load(const uint8_t* record, const dev::Word2& mask, uint32_t lane) {
    const uint32_t before = (1u << lane) - 1, low = dev::popcount(mask.x);
    const uint32_t kept = low + dev::popcount(mask.y);
    const uint32_t rank[2] = {static_cast<uint32_t>(dev::popcount(mask.x & before)),
                              low + dev::popcount(mask.y & before)};
    const uint8_t* first = record + g4::kMaskBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      codes[half] = {0, 0};
      scale[half] = 0;
      if ((half == 0 ? mask.x : mask.y) >> lane & 1u) {
        codes[half] = dev::load_stream(
            reinterpret_cast<const dev::Word2*>(first + g4::kCodeBytes * rank[half]));
        scale[half] = dev::load_stream(reinterpret_cast<const uint32_t*>(
            first + g4::kCodeBytes * kept + g4::kScaleBytes * rank[half]));
      }
    }
  }

  // a[step]: rows g and g + 8, columns 16t + 4 step to 16t + 4 step + 3, as of t16.
  template <DType kType>
  TAMIS_DEVICE void expand(uint32_t (&a)[4][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t pairs[8];
      g4_unit<kType>(codes[half], scale[half], pairs);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        a[step][half] = pairs[2 * step];
        a[step][half + 2] = pairs[2 * step + 1];
      }
    }
  }
};

}  // namespace tamis

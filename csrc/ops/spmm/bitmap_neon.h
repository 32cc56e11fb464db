// Steps of bitmap and nm on NEON: 8 columns, expanded by tbl from where their values are.
//
// Where each step of a word begins comes from one cnt and one multiplication per 64 columns: the
// bytes of counts * 0x0101010101010101 are the sums of all counts up to them, so no chain of counts
// and pointers remains. Per step and row: a field of the mask indexes the table, a field of the
// sums the values; 16-bit values take one load and one or two tbl, f32 two of each for 4 columns.
#pragma once

#include "base/simd/neon.h"
#include "ops/spmm/bitmap-inl.h"

namespace tamis {
namespace {

TAMIS_INLINE uint64_t byte_counts(uint64_t bits) {
  return vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(bits))), 0);
}

// Of 2-byte values.
struct HalfStarts {
  uint64_t ends;  // byte s: bytes of the values of steps 0 to s
  int64_t count;

  HalfStarts() = default;
  TAMIS_INLINE explicit HalfStarts(uint64_t bits) {
    ends = byte_counts(bits) * 0x0202020202020202u;
    count = static_cast<int64_t>(ends >> 57);
  }
  TAMIS_INLINE const void* at(const void* values, int s) const {
    return static_cast<const char*>(values) + (s ? ends >> (8 * s - 8) & 0xff : 0);
  }
};

// Of f32, where 4 columns are a piece: two in each byte of the mask.
struct WordStarts {
  uint64_t first, second;  // byte s: bytes of the values before each piece of step s
  int64_t count;

  WordStarts() = default;
  TAMIS_INLINE explicit WordStarts(uint64_t bits) {
    const uint64_t ends = byte_counts(bits) * 0x0101010101010101u;
    first = ends << 10;  // no byte passes 4 * 56
    second = first + (byte_counts(bits & 0x0f0f0f0f0f0f0f0fu) << 2);
    count = static_cast<int64_t>(ends >> 56);
  }
};

// For 4 mask bits: the bytes of each lane's value within 16 packed ones.
struct PieceTable {
  alignas(64) uint8_t byte[16][16];

  constexpr PieceTable() : byte() {
    for (int bits = 0; bits < 16; ++bits) {
      int from = 0;
      for (int lane = 0; lane < 4; ++lane) {
        const bool present = bits >> lane & 1;
        for (int i = 0; i < 4; ++i) {
          byte[bits][4 * lane + i] = static_cast<uint8_t>(present ? 4 * from + i : 0xff);
        }
        from += present;
      }
    }
  }
};
constexpr PieceTable kPieces;

template <class X>
struct F32Columns : ExpandF32<float, X> {
  using Starts = WordStarts;
  static TAMIS_INLINE float32x4_t piece(uint64_t bits, uint64_t start, const float* values) {
    return vreinterpretq_f32_u8(
        vqtbl1q_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(values) + (start & 0xff)),
                   vld1q_u8(kPieces.byte[bits & 0xf])));
  }
  static TAMIS_INLINE simd::F32 expand_at(uint64_t bits, int s, const Starts& starts,
                                          const float* values) {
    return {piece(bits >> (8 * s), starts.first >> (8 * s), values),
            piece(bits >> (8 * s + 4), starts.second >> (8 * s), values)};
  }
};

template <class W, class X>
struct HalfColumns : ExpandF32<W, X> {
  using Starts = HalfStarts;
  static TAMIS_INLINE simd::F32 expand_at(uint64_t bits, int s, const Starts& starts,
                                          const W* values) {
    const auto mine = static_cast<uint32_t>(bits >> (8 * s) & 0xff);
    return simd::spread(mine, static_cast<const W*>(starts.at(values, s)));
  }
};

}  // namespace
}  // namespace tamis

// Steps of bitmap and nm on AVX2: 8 columns, expanded by table from where their values are.
//
// Instructions are the limit, six a cycle, so a step takes as few as it can: a rotation and an AND
// make 8 mask bits the offset of a table's row; a shift and a popcnt say where the step's values
// begin, without a chain through the steps before; a load, the shuffle and the product remain.
//
// Tried (Zen 4, one token, cycles for 8 columns in cache, bf16 and f32): bits by shift and zero
// extension, pointers advanced step by step 2.2 and 2.5; so with the rotation 1.9 to 2.2 and 2.3 to
// 2.75; where steps begin counted in vectors and read from the stack 2.6 to 3.0 and 3.0 to 3.7;
// this 1.7 and 2.2, with two rows for four 1.8 and 2.5.
#pragma once

#include <bit>

#include "base/simd/avx2.h"
#include "ops/spmm/bitmap-inl.h"

namespace tamis {
namespace {

TAMIS_INLINE const char* expand_table(const float*) {
  return reinterpret_cast<const char*>(simd::kExpand.position);
}
TAMIS_INLINE const char* expand_table(const BF16*) {
  return reinterpret_cast<const char*>(simd::kExpand.high_half);
}
TAMIS_INLINE const char* expand_table(const F16*) {
  return reinterpret_cast<const char*>(simd::kExpand.half);
}

template <class W>
struct Word {
  const char* table;
  int64_t count;  // of values

  Word() = default;
  TAMIS_INLINE explicit Word(uint64_t bits)
      : table(expand_table(static_cast<const W*>(nullptr))), count(simd::popcount(bits)) {
    asm("" : "+r"(table));  // else GCC adds where the table begins to every offset
  }
};

template <class WType, class XType>
struct ExpandAt : ExpandF32<WType, XType> {
  using Starts = Word<WType>;
  static constexpr int rows(int tokens) { return tokens <= 2 ? 4 : 2; }

  static TAMIS_INLINE simd::F32 expand_at(uint64_t bits, int s, const Starts& word,
                                          const WType* values) {
    constexpr int kRow = kDType<WType> == DType::f16 ? 4 : 5;  // log2 of bytes
    const uint64_t at = std::rotr(bits, 8 * s - kRow) & uint64_t{0xff} << kRow;
    const WType* first = values + (s ? simd::popcount(bits << (64 - 8 * s)) : 0);
    return simd::spread_by(word.table + at, first);
  }
};

}  // namespace
}  // namespace tamis

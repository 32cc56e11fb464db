// Scores of labels, one token at a time.
#include "base/simd/lanes_scalar.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/labels-inl.h"

namespace tamis {
namespace {

struct LabelDots {
  using Sum = int32_t;
  using Codes = uint32_t;
  static TAMIS_INLINE Sum zero() { return 0; }
  static TAMIS_INLINE Codes split(const uint8_t* words) { return lanes::load_words(words); }
  static TAMIS_INLINE Sum dot(Sum sum, Codes codes, const int8_t* q8) {
    for (int j = 0; j < 8; ++j) {
      sum += static_cast<int32_t>(codes >> code_bit(j) & 15) * int32_t{q8[j]};
    }
    return sum;
  }
  static TAMIS_INLINE lanes::F32 to_f32(Sum sum) { return static_cast<float>(sum); }
};

}  // namespace

TAMIS_SCORE_LABELS(LabelDots, scalar)

}  // namespace tamis

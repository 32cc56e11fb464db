// Scores of labels on NEON with dot products: four codes of four tokens an sdot.
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/labels_neon.h"

namespace tamis {
namespace {

struct LabelDots : LabelCodes {
  static TAMIS_INLINE Sum dot(Sum sum, const Codes& codes, const int8_t* q8) {
    const int8x8_t q = vld1_s8(q8);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      sum.part[i] = vdotq_lane_s32(sum.part[i], codes.low[i], q, 0);
      sum.part[i] = vdotq_lane_s32(sum.part[i], codes.high[i], q, 1);
    }
    return sum;
  }
};

}  // namespace

TAMIS_SCORE_LABELS(LabelDots, neon_dot)

}  // namespace tamis

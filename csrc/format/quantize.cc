// Scales of i8 values.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "base/dtype.h"
#include "base/status.h"
#include "format/format.h"
#include "format/matrix.h"
#include "format/rows.h"
#include "format/values.h"
#include "format/words.h"

namespace tamis {
namespace {

// Largest magnitude among the kept weights of columns [begin, end). Magnitudes of floats order
// like their bit patterns, with NaN above Inf, so an integer maximum loses neither. Signed, as
// baseline SIMD has no unsigned maximum.
template <class T>
T max_magnitude(const KeptRows<T>& kept, int64_t row, int64_t begin, int64_t end) {
  using Signed = std::make_signed_t<T>;
  constexpr auto kMagnitude = std::numeric_limits<Signed>::max();
  const T* w = kept.w + row * kept.stride;
  Signed best = 0;
  if (kept.keep == nullptr) {
    for (int64_t j = begin; j < end; ++j) {
      best = std::max(best, static_cast<Signed>(w[j] & kMagnitude));
    }
  } else {
    const uint8_t* keep = kept.keep + row * kept.cols;
    for (int64_t j = begin; j < end; ++j) {
      // Not a branch: random masks mispredict half of them, which took three quarters of packing.
      const auto stays = static_cast<Signed>(-static_cast<int>(keep[j] != 0));
      best = std::max(best, static_cast<Signed>(w[j] & kMagnitude & stays));
    }
  }
  return static_cast<T>(best);
}

float scale_of(float absmax, float limit) {
  const float scale = absmax / limit;
  // Among denormals the quotient may lose all its bits; the next one up still covers absmax.
  if (scale * limit < absmax && scale < std::numeric_limits<float>::min()) {
    return std::nextafter(scale, std::numeric_limits<float>::max());
  }
  return scale;
}

}  // namespace

Status write_scales(const DenseView& w, const PackSpec& spec, float* scales) {
  const int64_t group = group_columns(w.cols, spec.group_size);
  const int64_t groups = scale_groups(w.cols, spec.group_size);
  const auto limit = static_cast<float>(spec.code_limit);
  FirstFailure failure;
  with_kept(w, [&]<class T>(const KeptRows<T>& kept) {
    for_rows(w.rows, w.cols, [&](int64_t row_begin, int64_t row_end) {
      for (int64_t r = row_begin; r < row_end; ++r) {
        for (int64_t g = 0; g < groups; ++g) {
          const T bits = max_magnitude(kept, r, g * group, std::min(w.cols, (g + 1) * group));
          float absmax;
          if constexpr (sizeof(T) == 4) {
            absmax = std::bit_cast<float>(bits);
          } else {
            absmax = w.dtype == DType::f16 ? f32_from_f16(bits) : f32_from_bf16(bits);
          }
          if (!std::isfinite(absmax)) return failure.report(r);
          scales[r * groups + g] = scale_of(absmax, limit);
        }
      }
    });
  });
  if (!failure.any()) return {};
  return error(Code::invalid_argument,
               "pack: w: got Inf or NaN among the kept weights of row %lld, wanted finite weights "
               "for i8 values",
               static_cast<long long>(failure.position()));
}

}  // namespace tamis

// Lines of later rows, values before masks, to fetch evenly while rows before them are computed.
#pragma once

#include <cstdint>

#include "base/simd/element.h"
#include "format/matrix.h"

namespace tamis {

struct Later {
  const char *at, *end, *mask, *mask_end;
  int64_t lines;  // with every step

  TAMIS_INLINE Later(const char* values, const char* values_end, const char* masks,
                     const char* masks_end, int64_t steps)
      : at(values),
        end(values_end),
        mask(masks),
        mask_end(masks_end),
        lines(ceil_div((values_end - values + masks_end - masks) / 64 + 2, steps)) {}

  // Where the next `words` words' lines begin.
  TAMIS_INLINE const char* take(int64_t words) {
    if (at >= end) {
      at = mask;
      end = mask_end;
      mask = mask_end;
    }
    if (at >= end) lines = 0;
    const char* from = at;
    at += words * lines * 64;
    return from;
  }
};

}  // namespace tamis

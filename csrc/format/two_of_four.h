// Which columns of four at most two kept ones are, as sparse tensor cores are told.
#pragma once

#include <cstdint>

#include "base/numeric.h"

namespace tamis {

// From the bits of four columns: two rising places, and which of the kept values lies at each;
// where fewer are kept, none (-1), so a zero.
struct TwoOfFour {
  uint32_t place[2] = {0, 1};
  int from[2] = {-1, -1};

  explicit TwoOfFour(uint32_t bits) {
    const int kept = popcount(bits);
    if (kept == 2) {
      place[0] = static_cast<uint32_t>(__builtin_ctz(bits));
      place[1] = 31 - static_cast<uint32_t>(__builtin_clz(bits));
      from[0] = 0;
      from[1] = 1;
    } else if (kept == 1) {  // beside any other place, in order
      const auto only = static_cast<uint32_t>(__builtin_ctz(bits));
      place[0] = only == 3 ? 0 : only;
      place[1] = 3;
      from[only == 3 ? 1 : 0] = 0;
    }
  }
};

}  // namespace tamis

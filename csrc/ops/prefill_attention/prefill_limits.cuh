// Numbers of lists on a device, which nobody has checked, brought into their range.
#pragma once

#include "base/cuda/dev.h"

namespace tamis {

TAMIS_DEVICE int32_t clamped(int32_t x, int32_t least, int32_t most) {
  return x < least ? least : x > most ? most : x;
}

}  // namespace tamis

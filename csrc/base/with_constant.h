// A run-time number as one of a few constants.
#pragma once

#include <type_traits>

namespace tamis {

// Calls fn with the one of these constants that `value` is, the last one if none.
template <int kFirst, int... kRest, class Fn>
auto with_constant(int value, const Fn& fn) {
  if constexpr (sizeof...(kRest) == 0) {
    return fn(std::integral_constant<int, kFirst>());
  } else {
    return value == kFirst ? fn(std::integral_constant<int, kFirst>())
                           : with_constant<kRest...>(value, fn);
  }
}

}  // namespace tamis

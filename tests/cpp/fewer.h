// Emulated processors run a sample: TAMIS_CASES_ONE_OF=N in the environment keeps one of N cases.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace tamis::test {

// True for one of N calls or numbers in a row. Choose N prime: it then shares no period with the
// loops that make the cases.
inline bool keeps_case(uint64_t number) {
  static const uint64_t one_of = [] {
    const char* text = std::getenv("TAMIS_CASES_ONE_OF");
    const long long n = text ? std::atoll(text) : 1;
    return static_cast<uint64_t>(n > 1 ? n : 1);
  }();
  return number % one_of == 0;
}

}  // namespace tamis::test

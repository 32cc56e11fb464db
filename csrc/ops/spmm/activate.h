// The end of a fused product: y[t, n] = f(y[t, n]) * multiplier[t, n] on rows [row_begin, row_end)
// of all tokens, in place, while they are in the cache of the core that wrote them.
//
// y was rounded to its dtype by the product; f and the multiplication run in f32 and round once.
#pragma once

#include "base/isa.h"
#include "ops/spmm/spmm.h"

namespace tamis {

using ActivateKernel = void (*)(const SpmmArgs&, int64_t row_begin, int64_t row_end);

void activate_scalar(const SpmmArgs&, int64_t row_begin, int64_t row_end);
void activate_avx2(const SpmmArgs&, int64_t row_begin, int64_t row_end);
void activate_avx512(const SpmmArgs&, int64_t row_begin, int64_t row_end);
void activate_neon(const SpmmArgs&, int64_t row_begin, int64_t row_end);

// The best that `isa` has.
inline ActivateKernel choose_activate([[maybe_unused]] IsaBits isa) {
#if defined(__x86_64__)
  if ((isa & isa::avx512) == isa::avx512) return activate_avx512;
  if ((isa & isa::avx2) == isa::avx2) return activate_avx2;
#elif defined(__aarch64__)
  if ((isa & isa::neon) == isa::neon) return activate_neon;
#endif
  return activate_scalar;
}

}  // namespace tamis

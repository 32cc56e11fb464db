// sum[r][t] += w[e][r] * row(e)[t] over entries e: the wide product. A row is T vectors of a dense
// matrix, found by an offset; R sums share each loaded row.
//
// Needs simd.h of an ISA before it: F32, kLanes, load, Scalars.
#pragma once

#include <cstdint>

#include "base/simd/element.h"

namespace tamis {
namespace {

// Which elements T vectors hold: neighbours; neighbours but for the last vector, which ends where
// the row does and so overlaps the one before; or fewer than one vector.
struct Whole {
  template <int T>
  TAMIS_INLINE simd::F32 load(const float* p, int t) const {
    return simd::load(p + t * simd::kLanes);
  }
  template <int T>
  TAMIS_INLINE void store(simd::F32 v, float* p, int t) const {
    simd::store(v, p + t * simd::kLanes);
  }
};
struct Overlapping {
  int64_t last;  // offset of the last vector
  template <int T>
  TAMIS_INLINE simd::F32 load(const float* p, int t) const {
    return simd::load(t + 1 < T ? p + t * simd::kLanes : p + last);
  }
  template <int T>
  TAMIS_INLINE void store(simd::F32 v, float* p, int t) const {
    simd::store(v, t + 1 < T ? p + t * simd::kLanes : p + last);
  }
};
struct Partial {
  int count;
  template <int T>
  TAMIS_INLINE simd::F32 load(const float* p, int /*t*/) const {
    return simd::load(p, count);
  }
  template <int T>
  TAMIS_INLINE void store(simd::F32 v, float* p, int /*t*/) const {
    simd::store(v, p, count);
  }
};

// sum[r] += w's r-th number of those that start at `first` times the row that starts at `from`.
template <int R, int T, class Weights, class Extent>
TAMIS_INLINE void add_weighted_row(const Weights& w, int first, const float* from, Extent extent,
                                   simd::F32 (&sum)[R][T]) {
  asm("" : "+r"(from));  // or GCC adds every vector's distance to the offset, not to the address
  simd::F32 row[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) row[t] = extent.template load<T>(from, t);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[r][t] = w.fma(first + r, row[t], sum[r][t]);
  }
}

TAMIS_INLINE const float* bytes_after(const float* p, int64_t bytes) {
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(p) + bytes);
}

// Entries [begin, end): w of entry e is values[e * stride + r], its row lies offset(e) bytes after
// x.
template <int R, int T, class Offset, class Extent>
TAMIS_INLINE void add_weighted_rows(const float* values, int64_t stride, int64_t begin, int64_t end,
                                    const float* x, Offset offset, Extent extent,
                                    simd::F32 (&sum)[R][T]) {
  int64_t e = begin;
  if constexpr (R == 1) {  // bound by loads: four weights are one
    if (stride == 1) {
      for (; e + 4 <= end; e += 4) {
        const simd::Scalars<4> w{values + e};
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
          add_weighted_row(w, i, bytes_after(x, offset(e + i)), extent, sum);
      }
    }
  }
  for (; e < end; ++e) {
    const simd::Scalars<R> w{values + e * stride};
    add_weighted_row(w, 0, bytes_after(x, offset(e)), extent, sum);
  }
}

}  // namespace
}  // namespace tamis

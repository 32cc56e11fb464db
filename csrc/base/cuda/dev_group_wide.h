// Dense products of warpgroups whose second operand is weights: 64 to 128 rows of it, any multiple
// of 16. Beside dev_group.h, for the kernels that take them.
#pragma once

#include <cstdint>

#include "base/cuda/dev.h"

namespace tamis::dev {

#if defined(TAMIS_CUDA_SIM)
template <int kTiles>
void group_wide_bf16(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
  group_shared_bf16<true>(c, a, b);
}
template <int kTiles>
void group_wide_f16(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
  group_shared_f16<true>(c, a, b);
}
#else

#define TAMIS_S2(t)                                                              \
  "+f"(c[t][0]), "+f"(c[t][1]), "+f"(c[t][2]), "+f"(c[t][3]), "+f"(c[t + 1][0]), \
      "+f"(c[t + 1][1]), "+f"(c[t + 1][2]), "+f"(c[t + 1][3])
#define TAMIS_S8 TAMIS_S2(0), TAMIS_S2(2), TAMIS_S2(4), TAMIS_S2(6)
#define TAMIS_N32                                                                              \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31"
#define TAMIS_N40 TAMIS_N32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define TAMIS_N48 TAMIS_N40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define TAMIS_N56 TAMIS_N48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define TAMIS_N64 TAMIS_N56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define TAMIS_WIDE(kind, rows, d, rest, ...)                                             \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #rows "k16.f32." kind "." kind " {" d \
               "}, " rest ", 1, 1, 1, 0, 0;"                                             \
               : __VA_ARGS__                                                             \
               : "l"(a), "l"(b))
#define TAMIS_WIDES(kind)                                                             \
  if constexpr (kTiles == 8) {                                                        \
    TAMIS_WIDE(kind, 64, TAMIS_N32, "%32, %33", TAMIS_S8);                            \
  } else if constexpr (kTiles == 10) {                                                \
    TAMIS_WIDE(kind, 80, TAMIS_N40, "%40, %41", TAMIS_S8, TAMIS_S2(8));               \
  } else if constexpr (kTiles == 12) {                                                \
    TAMIS_WIDE(kind, 96, TAMIS_N48, "%48, %49", TAMIS_S8, TAMIS_S2(8), TAMIS_S2(10)); \
  } else if constexpr (kTiles == 14) {                                                \
    TAMIS_WIDE(kind, 112, TAMIS_N56, "%56, %57", TAMIS_S8, TAMIS_S2(8), TAMIS_S2(10), \
               TAMIS_S2(12));                                                         \
  } else {                                                                            \
    static_assert(kTiles == 16, "64, 80, 96, 112 or 128 rows of b");                  \
    TAMIS_WIDE(kind, 128, TAMIS_N64, "%64, %65", TAMIS_S8, TAMIS_S2(8), TAMIS_S2(10), \
               TAMIS_S2(12), TAMIS_S2(14));                                           \
  }

// c += a * b for 64 rows of a, 8 kTiles rows of b and 16 columns, both in shared memory: matrix_at
// their columns. Of its 16 rows of `a` a warp has the sums of mma_*.
template <int kTiles>
TAMIS_DEVICE void group_wide_bf16(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_WIDES("bf16")
#endif
}
template <int kTiles>
TAMIS_DEVICE void group_wide_f16(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_WIDES("f16")
#endif
}
#undef TAMIS_S2
#undef TAMIS_S8
#undef TAMIS_N32
#undef TAMIS_N40
#undef TAMIS_N48
#undef TAMIS_N56
#undef TAMIS_N64
#undef TAMIS_WIDE
#undef TAMIS_WIDES
#endif

}  // namespace tamis::dev

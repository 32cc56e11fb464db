// Dense products of warpgroups with both operands in shared memory: a part of dev.h, which includes
// it.
#pragma once

#include <cstdint>

namespace tamis::dev {

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
#define TAMIS_SHARED(kind, rows, d, rest, ...)                                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #rows "k16.f32." kind "." kind " {" d \
               "}, " rest ", 1, 1, 0, 0;"                                                \
               : __VA_ARGS__                                                             \
               : "l"(a), "l"(b), "n"(static_cast<int>(kAdds)))
#define TAMIS_SHAREDS(kind)                                                                  \
  if constexpr (kTiles == 8) {                                                               \
    TAMIS_SHARED(kind, 64, TAMIS_N32, "%32, %33, %34", TAMIS_S8);                            \
  } else if constexpr (kTiles == 10) {                                                       \
    TAMIS_SHARED(kind, 80, TAMIS_N40, "%40, %41, %42", TAMIS_S8, TAMIS_S2(8));               \
  } else if constexpr (kTiles == 12) {                                                       \
    TAMIS_SHARED(kind, 96, TAMIS_N48, "%48, %49, %50", TAMIS_S8, TAMIS_S2(8), TAMIS_S2(10)); \
  } else if constexpr (kTiles == 14) {                                                       \
    TAMIS_SHARED(kind, 112, TAMIS_N56, "%56, %57, %58", TAMIS_S8, TAMIS_S2(8), TAMIS_S2(10), \
                 TAMIS_S2(12));                                                              \
  } else {                                                                                   \
    static_assert(kTiles == 16, "64, 80, 96, 112 or 128 rows of b");                         \
    TAMIS_SHARED(kind, 128, TAMIS_N64, "%64, %65, %66", TAMIS_S8, TAMIS_S2(8), TAMIS_S2(10), \
                 TAMIS_S2(12), TAMIS_S2(14));                                                \
  }

// c += a * b for 64 rows of a, 8 kTiles rows of b and 16 columns: matrix_at the columns of each. Of
// its 16 rows of `a` a warp has the sums of mma_*. kAdds: to c, which else need not be set.
template <bool kAdds, int kTiles>
TAMIS_DEVICE void group_shared_bf16(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_SHAREDS("bf16")
#endif
}
template <bool kAdds, int kTiles>
TAMIS_DEVICE void group_shared_f16(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_SHAREDS("f16")
#endif
}
#undef TAMIS_SHAREDS
#undef TAMIS_SHARED
#undef TAMIS_S2
#undef TAMIS_S8
#undef TAMIS_N32
#undef TAMIS_N40
#undef TAMIS_N48
#undef TAMIS_N56
#undef TAMIS_N64

}  // namespace tamis::dev

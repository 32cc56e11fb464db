// Dense products of warpgroups with the first operand in registers: a part of dev.h, which includes
// it.
#pragma once

#include <cstdint>

namespace tamis::dev {

#define TAMIS_S4(t) "+f"(c[t][0]), "+f"(c[t][1]), "+f"(c[t][2]), "+f"(c[t][3])
#define TAMIS_S8(t) TAMIS_S4(t), TAMIS_S4(t + 1)
#define TAMIS_S16(t) TAMIS_S8(t), TAMIS_S8(t + 2)
#define TAMIS_S32(t) TAMIS_S16(t), TAMIS_S16(t + 4)
#define TAMIS_S64(t) TAMIS_S32(t), TAMIS_S32(t + 8)
#define TAMIS_N10(t) \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define TAMIS_N16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define TAMIS_N32 TAMIS_N16 ",%16,%17,%18,%19," TAMIS_N10(2) "%30,%31"
#define TAMIS_N64 \
  TAMIS_N32 ",%32,%33,%34,%35,%36,%37,%38,%39," TAMIS_N10(4) TAMIS_N10(5) "%60,%61,%62,%63"
#define TAMIS_N128                                                                           \
  TAMIS_N64 ",%64,%65,%66,%67,%68,%69," TAMIS_N10(7) TAMIS_N10(8) TAMIS_N10(9) TAMIS_N10(10) \
      TAMIS_N10(11) "%120,%121,%122,%123,%124,%125,%126,%127"
#define TAMIS_GROUP(kind, transposed, tokens, d, rest, ...)                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #tokens "k16.f32." kind "." kind " {" d \
               "}, " rest ", 1, 1, 1, " #transposed ";"                                    \
               : __VA_ARGS__                                                               \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b))
#define TAMIS_GROUPS(kind, transposed)                                                          \
  if constexpr (kTiles == 4) {                                                                  \
    TAMIS_GROUP(kind, transposed, 32, TAMIS_N16, "{%16,%17,%18,%19}, %20", TAMIS_S16(0));       \
  } else if constexpr (kTiles == 8) {                                                           \
    TAMIS_GROUP(kind, transposed, 64, TAMIS_N32, "{%32,%33,%34,%35}, %36", TAMIS_S32(0));       \
  } else if constexpr (kTiles == 16) {                                                          \
    TAMIS_GROUP(kind, transposed, 128, TAMIS_N64, "{%64,%65,%66,%67}, %68", TAMIS_S64(0));      \
  } else {                                                                                      \
    static_assert(kTiles == 32, "32, 64, 128 or 256 tokens");                                   \
    TAMIS_GROUP(kind, transposed, 256, TAMIS_N128, "{%128,%129,%130,%131}, %132", TAMIS_S64(0), \
                TAMIS_S64(16));                                                                 \
  }

// c += a * b for 64 rows, 8 kTiles tokens (the rows of b) and 16 columns: of its 16 rows of `a` a
// warp has the fragments and sums of mma_*. b: matrix_at the columns.
template <int kTiles>
TAMIS_DEVICE void group_bf16(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_GROUPS("bf16", 0)
#endif
}
template <int kTiles>
TAMIS_DEVICE void group_f16(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_GROUPS("f16", 0)
#endif
}

// The same where b lies with its 8 kTiles columns in rows, of which these are 16: matrix_of_rows.
template <int kTiles>
TAMIS_DEVICE void group_rows_bf16(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_GROUPS("bf16", 1)
#endif
}
template <int kTiles>
TAMIS_DEVICE void group_rows_f16(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_GROUPS("f16", 1)
#endif
}
#undef TAMIS_GROUPS
#undef TAMIS_GROUP
#undef TAMIS_S4
#undef TAMIS_S8
#undef TAMIS_S16
#undef TAMIS_S32
#undef TAMIS_S64
#undef TAMIS_N10
#undef TAMIS_N16
#undef TAMIS_N32
#undef TAMIS_N64
#undef TAMIS_N128

}  // namespace tamis::dev

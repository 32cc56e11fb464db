// Tensor cores, of a warp and of four: a part of dev.h, which includes it.
#pragma once

#include <cstdint>

namespace tamis::dev {

// ---- tensor cores: c += a * b for fragments of m16n8k16

TAMIS_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
TAMIS_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a * b for m16n8k32 of bytes, a from 0 to 255 and b signed: lane 4g + t has four neighbours
// from 4t on of rows g and g + 8 of a, then from 16 + 4t on; the same of column g of b.
TAMIS_DEVICE void mma_bytes(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Both signed.
TAMIS_DEVICE void mma_signed_bytes(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Signed bytes for m16n8k64 with two of every four elements of a row of `a` kept: lane 4g + t has
// four kept elements from 4t on of rows g and g + 8, then from 16 + 4t on; b: four neighbours from
// 16j + 4t on of column g for j = 0 to 3. places: two bits for each kept element; lane 4g + 2c + h
// gives those of columns 32c to 32c + 31 of row g + 8h.
TAMIS_DEVICE void mma_sparse_bytes(int32_t (&c)[4], const Word4& a, const Word4& b,
                                   uint32_t places) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0x0;"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w),
        "r"(places));
}

// The same for m16n8k32 with two of every four elements of a row of `a` kept. places: two bits for
// each kept element, which of its four it is; lanes 4g + 2 kSelector and the next give those of the
// first and second eight of rows g (low half) and g + 8.
template <int kSelector>
TAMIS_DEVICE void mma_sparse_bf16(float (&c)[4], const Word4& a, const Word4& b, uint32_t places) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(places),
        "n"(kSelector));
}
template <int kSelector>
TAMIS_DEVICE void mma_sparse_f16(float (&c)[4], const Word4& a, const Word4& b, uint32_t places) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(places),
        "n"(kSelector));
}

// ---- warpgroups (sm_90a): products of four neighbouring warps, a multiple of four first, that run
// by themselves until waited for. Fragments of a are read, and sums written, until then.

// Between this thread's writes to registers and products that take them.
TAMIS_DEVICE void fence_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
TAMIS_DEVICE void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until at most kGroupsLeft of the newest groups are running.
template <int kGroupsLeft, int kTiles>
TAMIS_DEVICE void wait_products(float (&c)[kTiles][4]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
#endif
  if constexpr (kGroupsLeft == 0) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {  // no sum is read before
      asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
    }
  }
}
// The same for sums c of groups that are not among the newest kGroupsLeft, which go on running.
template <int kGroupsLeft, int kTiles>
TAMIS_DEVICE void wait_older_products(float (&c)[kTiles][4]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
  }
#endif
}
// Between what this thread wrote to shared memory and a barrier after which products read it.
TAMIS_DEVICE void fence_shared_products() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Matrix b in shared memory from `at` on: rows of 128 bytes, the 16 bytes j of row r at j ^ r % 8,
// groups of eight rows one after another. A part of its columns begins some 32 bytes further.
TAMIS_DEVICE uint64_t matrix_at(uint32_t at) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupOf8 = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kGroupOf8 | uint64_t{1} << 16 | (shared_address(at) & 0x3ffffu) >> 4;
}

// Matrix b whose rows are those that products add over: parts of 64 columns lie `part_bytes` apart,
// each as rows of 128 bytes from `at` on as above. 16 rows on it begins 2048 bytes further.
TAMIS_DEVICE uint64_t matrix_of_rows(uint32_t at, uint32_t part_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupOf8 = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kGroupOf8 | uint64_t{part_bytes / 16} << 16 |
         (shared_address(at) & 0x3ffffu) >> 4;
}
// Some bytes, a multiple of 16, further.
TAMIS_DEVICE uint64_t further(uint64_t matrix, uint32_t bytes) {
  return matrix + bytes / 16;
}

#define TAMIS_SUMS(t) "+f"(c[t][0]), "+f"(c[t][1]), "+f"(c[t][2]), "+f"(c[t][3])
#define TAMIS_SUMS2(t) TAMIS_SUMS(t), TAMIS_SUMS(t + 1)
#define TAMIS_SUMS4(t) TAMIS_SUMS2(t), TAMIS_SUMS2(t + 2)
#define TAMIS_SUMS8(t) TAMIS_SUMS4(t), TAMIS_SUMS4(t + 4)
#define TAMIS_SUMS16(t) TAMIS_SUMS8(t), TAMIS_SUMS8(t + 8)
#define TAMIS_D4 "%0,%1,%2,%3"
#define TAMIS_D8 TAMIS_D4 ",%4,%5,%6,%7"
#define TAMIS_D16 TAMIS_D8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define TAMIS_D32 TAMIS_D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define TAMIS_D64                                                                             \
  TAMIS_D32                                                                                   \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define TAMIS_D96                                                                             \
  TAMIS_D64                                                                                   \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85," \
  "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define TAMIS_D128                                                                               \
  TAMIS_D96                                                                                      \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114," \
  "%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define TAMIS_PRODUCT(kind, tokens, d, rest, ...)                                             \
  asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #tokens "k32.f32." kind "." kind " {" d \
               "}, " rest ", 1, 1, 1, 0;"                                                     \
               : __VA_ARGS__                                                                  \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(places), "n"(kSelector))
#define TAMIS_PRODUCTS(kind)                                                                    \
  if constexpr (kTiles == 1) {                                                                  \
    TAMIS_PRODUCT(kind, 8, TAMIS_D4, "{%4,%5,%6,%7}, %8, %9, %10", TAMIS_SUMS(0));              \
  } else if constexpr (kTiles == 2) {                                                           \
    TAMIS_PRODUCT(kind, 16, TAMIS_D8, "{%8,%9,%10,%11}, %12, %13, %14", TAMIS_SUMS2(0));        \
  } else if constexpr (kTiles == 4) {                                                           \
    TAMIS_PRODUCT(kind, 32, TAMIS_D16, "{%16,%17,%18,%19}, %20, %21, %22", TAMIS_SUMS4(0));     \
  } else if constexpr (kTiles == 8) {                                                           \
    TAMIS_PRODUCT(kind, 64, TAMIS_D32, "{%32,%33,%34,%35}, %36, %37, %38", TAMIS_SUMS8(0));     \
  } else if constexpr (kTiles == 16) {                                                          \
    TAMIS_PRODUCT(kind, 128, TAMIS_D64, "{%64,%65,%66,%67}, %68, %69, %70", TAMIS_SUMS16(0));   \
  } else if constexpr (kTiles == 24) {                                                          \
    TAMIS_PRODUCT(kind, 192, TAMIS_D96, "{%96,%97,%98,%99}, %100, %101, %102", TAMIS_SUMS16(0), \
                  TAMIS_SUMS8(16));                                                             \
  } else {                                                                                      \
    static_assert(kTiles == 32, "8, 16, 32, 64, 128, 192 or 256 tokens");                       \
    TAMIS_PRODUCT(kind, 256, TAMIS_D128, "{%128,%129,%130,%131}, %132, %133, %134",             \
                  TAMIS_SUMS16(0), TAMIS_SUMS16(16));                                           \
  }

// c += a * b for 64 rows, 8 kTiles tokens (the rows of b) and 32 columns, two of every four
// elements of a row of `a` kept: of its 16 rows a warp has the fragments, places and sums of
// mma_sparse_*. b: matrix_at the columns.
template <int kSelector, int kTiles>
TAMIS_DEVICE void group_sparse_bf16(float (&c)[kTiles][4], const Word4& a, uint64_t b,
                                    const uint32_t& places) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_PRODUCTS("bf16")
#endif
}
template <int kSelector, int kTiles>
TAMIS_DEVICE void group_sparse_f16(float (&c)[kTiles][4], const Word4& a, uint64_t b,
                                   const uint32_t& places) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  TAMIS_PRODUCTS("f16")
#endif
}
#undef TAMIS_PRODUCTS
#undef TAMIS_PRODUCT
#undef TAMIS_SUMS
#undef TAMIS_SUMS2
#undef TAMIS_SUMS4
#undef TAMIS_SUMS8
#undef TAMIS_SUMS16
#undef TAMIS_D4
#undef TAMIS_D8
#undef TAMIS_D16
#undef TAMIS_D32
#undef TAMIS_D64
#undef TAMIS_D96
#undef TAMIS_D128

}  // namespace tamis::dev

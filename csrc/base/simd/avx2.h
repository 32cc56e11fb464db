// AVX2 + FMA + F16C primitives of the kernels: 8 f32 lanes. Same names as avx512.h.
//
// There is no expand instruction: a table indexed by 8 mask bits holds the shuffle that does it.
// | what        | instructions                        | table                               |
// | expand f32  | vpermps, vblendvps                  | 8 x u32 positions, sign = present   |
// | expand bf16 | vbroadcasti128, vpshufb             | 32 B: bf16 to the high half of f32  |
// | expand f16  | vpshufb (xmm), vcvtph2ps            | the even halves of the bf16 table   |
#pragma once

#include <immintrin.h>

#include "base/simd/element.h"

namespace tamis::avx2 {
namespace {

using F32 = __m256;
inline constexpr int kLanes = 8;

TAMIS_INLINE F32 zero() {
  return _mm256_setzero_ps();
}
TAMIS_INLINE F32 splat(float v) {
  return _mm256_set1_ps(v);
}
TAMIS_INLINE F32 add(F32 a, F32 b) {
  return _mm256_add_ps(a, b);
}
TAMIS_INLINE F32 mul(F32 a, F32 b) {
  return _mm256_mul_ps(a, b);
}
TAMIS_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return _mm256_fmadd_ps(a, b, c);
}
// R neighbouring numbers to multiply vectors by.
template <int R>
struct Scalars {
  const float* p;
  TAMIS_INLINE F32 fma(int r, F32 x, F32 c) const { return avx2::fma(splat(p[r]), x, c); }
};
TAMIS_INLINE float sum(F32 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Lane i = sum of v[i], i < N of 1, 2, 4 or 8; what the other lanes hold is not said. Adds
// transposed vectors: a third of the instructions of N separate sums.
TAMIS_INLINE F32 sums(const F32 (&v)[1]) {
  return _mm256_castps128_ps256(_mm_set_ss(sum(v[0])));
}
TAMIS_INLINE F32 add_halves(F32 v) {  // 8 lanes to 4, four apart
  return _mm256_castps128_ps256(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
TAMIS_INLINE F32 quad(F32 a, F32 b, F32 c, F32 d) {  // in each four lanes: a, b, c, d
  return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
}
TAMIS_INLINE F32 sums(const F32 (&v)[2]) {
  const F32 ab = _mm256_hadd_ps(v[0], v[1]);
  return add_halves(_mm256_hadd_ps(ab, ab));
}
TAMIS_INLINE F32 sums(const F32 (&v)[4]) {
  return add_halves(quad(v[0], v[1], v[2], v[3]));
}
TAMIS_INLINE F32 sums(const F32 (&v)[8]) {
  const F32 low = quad(v[0], v[1], v[2], v[3]), high = quad(v[4], v[5], v[6], v[7]);
  return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

TAMIS_INLINE int popcount(uint64_t bits) {
  return static_cast<int>(_mm_popcnt_u64(bits));
}

// For each byte of mask bits: where each lane's value is among the packed ones.
struct ExpandTable {
  alignas(32) uint32_t position[256][8];   // f32: index | sign bit when present
  alignas(32) uint8_t high_half[256][32];  // bf16: byte shuffle within 16 packed bytes; 0x80 zeroes
  alignas(16) uint8_t half[256][16];       // f16: the same, packed halves

  constexpr ExpandTable() : position(), high_half(), half() {
    for (int bits = 0; bits < 256; ++bits) {
      int from = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool present = bits >> lane & 1;
        position[bits][lane] = present ? 0x80000000u | static_cast<uint32_t>(from) : 0u;
        for (int byte = 0; byte < 2; ++byte) {
          const auto source = static_cast<uint8_t>(present ? 2 * from + byte : 0x80);
          high_half[bits][4 * lane + byte] = 0x80;
          high_half[bits][4 * lane + 2 + byte] = source;
          half[bits][2 * lane + byte] = source;
        }
        from += present;
      }
    }
  }
};
constexpr ExpandTable kExpand;

TAMIS_INLINE __m128i load_halves(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
TAMIS_INLINE F32 widen_bf16(__m128i v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

// kLanes elements.
TAMIS_INLINE F32 load(const float* p) {
  return _mm256_loadu_ps(p);
}
TAMIS_INLINE F32 load(const BF16* p) {
  return widen_bf16(load_halves(p));
}
TAMIS_INLINE F32 load(const F16* p) {
  return _mm256_cvtph_ps(load_halves(p));
}
TAMIS_INLINE F32 load(const int8_t* p) {
  const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
}

// The first n elements in a buffer of kLanes, zero after them.
template <class T>
struct Copy {
  TAMIS_INLINE Copy(const T* p, int n) {
    for (int i = 0; i < n; ++i) element[i] = p[i];
  }
  alignas(32) T element[kLanes] = {};
};

// The first n elements, n <= kLanes, nothing past them; zero elsewhere.
TAMIS_INLINE F32 load(const float* p, int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
}
template <class T>
TAMIS_INLINE F32 load(const T* p, int n) {
  const Copy<T> copy(p, n);
  return load(copy.element);
}

// By a row of the table.
TAMIS_INLINE F32 spread_by(const void* row, const float* p) {
  const __m256i position = _mm256_load_si256(static_cast<const __m256i*>(row));
  const __m256 placed = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), position);
  return _mm256_blendv_ps(_mm256_setzero_ps(), placed, _mm256_castsi256_ps(position));
}
TAMIS_INLINE F32 spread_by(const void* row, const BF16* p) {
  const __m256i packed = _mm256_broadcastsi128_si256(load_halves(p));
  const __m256i bytes = _mm256_load_si256(static_cast<const __m256i*>(row));
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(packed, bytes));
}
TAMIS_INLINE F32 spread_by(const void* row, const F16* p) {
  return _mm256_cvtph_ps(_mm_shuffle_epi8(load_halves(p), load_halves(row)));
}
TAMIS_INLINE F32 spread(uint32_t bits, const float* p) {
  return spread_by(kExpand.position[bits], p);
}
TAMIS_INLINE F32 spread(uint32_t bits, const BF16* p) {
  return spread_by(kExpand.high_half[bits], p);
}
TAMIS_INLINE F32 spread(uint32_t bits, const F16* p) {
  return spread_by(kExpand.half[bits], p);
}

// The packed values at p to the lanes whose bit is set, zero elsewhere. Reads kLanes elements; with
// kExact no more than popcount(bits).
inline constexpr int kReadsPast = kLanes;

template <bool kExact, class T>
TAMIS_INLINE F32 expand(uint32_t bits, const T* p) {
  if constexpr (!kExact) return spread(bits, p);
  const Copy<T> copy(p, popcount(bits));
  return spread(bits, copy.element);
}

// Four lanes, then zeros.
TAMIS_INLINE F32 join(const __m128 (&q)[1]) {
  return _mm256_zextps128_ps256(q[0]);
}

// x[indices[i]], kLanes of them; or the first n <= kLanes, zero after them.
TAMIS_INLINE F32 gather(const float* x, const int32_t* indices) {
  const auto* p = reinterpret_cast<const __m256i*>(indices);
  return _mm256_i32gather_ps(x, _mm256_loadu_si256(p), 4);
}
template <class T>
TAMIS_INLINE F32 gather(const T* x, const int32_t* indices) {
  __m128i v = _mm_setzero_si128();
  v = _mm_insert_epi16(v, x[indices[0]].bits, 0);
  v = _mm_insert_epi16(v, x[indices[1]].bits, 1);
  v = _mm_insert_epi16(v, x[indices[2]].bits, 2);
  v = _mm_insert_epi16(v, x[indices[3]].bits, 3);
  v = _mm_insert_epi16(v, x[indices[4]].bits, 4);
  v = _mm_insert_epi16(v, x[indices[5]].bits, 5);
  v = _mm_insert_epi16(v, x[indices[6]].bits, 6);
  v = _mm_insert_epi16(v, x[indices[7]].bits, 7);
  return load(reinterpret_cast<const T*>(&v));
}
template <class T>
TAMIS_INLINE F32 gather(const T* x, const int32_t* indices, int n) {
  Copy<T> copy(x, 0);
  for (int i = 0; i < n; ++i) copy.element[i] = x[indices[i]];
  return load(copy.element);
}

TAMIS_INLINE float to_f32(float v) {
  return v;
}
TAMIS_INLINE float to_f32(F16 v) {
  return _cvtsh_ss(v.bits);
}
TAMIS_INLINE float to_f32(BF16 v) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(v.bits) << 16);
}

TAMIS_INLINE void store(float v, float* p) {
  *p = v;
}
TAMIS_INLINE void store(float v, F16* p) {
  p->bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
}
TAMIS_INLINE void store(float v, BF16* p) {
  const auto u = __builtin_bit_cast(uint32_t, v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(v != v ? (u >> 16) | 0x40u : rounded);
}

TAMIS_INLINE void store(F32 v, float* p) {
  _mm256_storeu_ps(p, v);
}
// The first n lanes, n <= kLanes, and nothing past them.
TAMIS_INLINE void store(F32 v, float* p, int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane), v);
}
template <class T>
TAMIS_INLINE void store(F32 v, T* p, int n) {
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, v);
  for (int i = 0; i < n; ++i) store(lanes[i], p + i);
}

}  // namespace
}  // namespace tamis::avx2

namespace tamis {
namespace simd = avx2;
}

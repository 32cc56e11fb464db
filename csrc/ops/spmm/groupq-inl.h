// y[m,n] = sum_k x[m,k] * w[n,k].  w: groupq, u4 or u8; x: groups, i.e. f32, so nothing of it is
// lost (W4A16, W8A16) and one loop serves every dtype of x; accumulates f32, kLanes lanes a chain.
//
// x: blocks of kGroupTokens tokens; in each [groups][tokens][group_size], so that one offset finds
// a group's columns of all tokens. Level::kTransposed says which order 16 columns are in.
//
// Tile: one row times up to kGroupTokens tokens. Only stored groups are met: their places and
// scales are decoded kMostGroups columns' groups at a time, then each costs its weights once and a
// product per token.
//
// Bytes: 12 a stored group of 16 u4. Memory: one row is one stream; the next rows' codes and
// scales are fetched kGroupsAhead bytes of codes ahead (scales too: 1.10x at one token).   Tail:
// none within a group; single groups after unrolled ones.
#pragma once

#include "ops/spmm/groupq_rows.h"

namespace tamis {
namespace {

inline constexpr int kGroupTokens = simd::kLanes == 16 ? 8 : 4;
inline constexpr int64_t kGroupsAhead = 4096;
inline constexpr int kGroupsToL2 = 2;
inline constexpr int kParts = 16 / simd::kLanes;  // vectors of 16 columns

// First token of the block that `token` is in, and its tokens.
struct TokenBlock {
  int64_t begin, tokens;
  const float* x;

  TAMIS_INLINE TokenBlock(const SpmmArgs& a, const void* prepared, int64_t token)
      : begin(token / kGroupTokens * kGroupTokens),
        tokens(a.m - begin < kGroupTokens ? a.m - begin : kGroupTokens),
        x(static_cast<const float*>(prepared) + begin * a.w.cols) {}
};

TAMIS_INLINE int64_t groups_bytes(const SpmmArgs& a) {
  return a.m * a.w.cols * 4;
}

// Groups [part / parts) of every token.
template <class Level, class X>
TAMIS_INLINE void prepare_groups(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t size = a.w.group_size, groups = a.w.cols / size;
  const bool transposed = Level::kTransposed && a.w.dtype == DType::u4 && size == 16;
  for (int64_t token = 0; token < a.m; ++token) {
    const TokenBlock block(a, prepared, token);
    const auto* x = static_cast<const X*>(a.x) + token * a.x_stride;
    for (int64_t g = groups * part / parts; g < groups * (part + 1) / parts; ++g) {
      float* to = const_cast<float*>(block.x) + (g * block.tokens + token - block.begin) * size;
      for (int64_t j = 0; j < size; j += simd::kLanes) {
        simd::F32 v = simd::load(x + g * size + j);
        if constexpr (Level::kTransposed) {
          if (transposed) v = Level::transpose(v);
        }
        simd::store(v, to + j, simd::kLanes);
      }
    }
  }
}

// `U` groups from group i of the decoded ones on, each to sums of its own.
template <class Step, int U, int M>
TAMIS_INLINE void multiply_groups(simd::F32 (&sum)[U][M], const StoredGroups& groups, int64_t i,
                                  const uint8_t* codes, const float* x) {
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) {
    const auto* columns =
        reinterpret_cast<const float*>(reinterpret_cast<const char*>(x) + groups.x[i + u]);
    simd::F32 w[Step::kColumns / simd::kLanes];
    Step::weights(codes + u * Step::kBytes, groups.scale[i + u], groups.offset[i + u], w);
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
#pragma GCC unroll 4
      for (int j = 0; j < Step::kColumns / simd::kLanes; ++j) {
        sum[u][t] =
            simd::fma(w[j], simd::load(columns + t * Step::kColumns + j * simd::kLanes), sum[u][t]);
      }
    }
  }
}

// Rows [row, row_end) for the M tokens of a block.
template <class Step, int M>
void groupq_pass(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  constexpr int U = M == 1 ? 4 : M == 2 ? 2 : 1;  // chains enough for an FMA's latency
  const TokenBlock block(a, a.prepared, token);
  const int64_t groups = a.w.cols / Step::kColumns;
  const auto* values = static_cast<const uint8_t*>(a.w.values);
  StoredGroups stored;
  for (; row < row_end; ++row) {
    simd::F32 sum[U][M], one[1][M];
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      one[0][t] = simd::zero();
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) sum[u][t] = simd::zero();
    }
    int64_t at = a.w.row_offsets[row];
    for (int64_t first = 0; first < groups; first += kMostGroups, at += stored.count) {
      decode_groups<typename Step::Decode>(a.w, row, first, at, M * Step::kColumns * 4, stored);
      const uint8_t* codes = values + at * Step::kBytes;
      const float* x = block.x + first * M * Step::kColumns;
      constexpr int kUnroll = U > 4 ? U : 4;
      int64_t i = 0;
      for (; i + kUnroll <= stored.count; i += kUnroll, codes += kUnroll * Step::kBytes) {
        __builtin_prefetch(codes + kGroupsAhead, 0, kGroupsToL2);
        if (i % 16 == 0) {  // their scales: half as many bytes
          __builtin_prefetch(a.w.group_scales + 2 * (at + i) + kGroupsAhead / 4, 0, kGroupsToL2);
        }
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; u += U) {
          multiply_groups<Step>(sum, stored, i + u, codes + u * Step::kBytes, x);
        }
      }
      for (; i < stored.count; ++i, codes += Step::kBytes) {
        multiply_groups<Step>(one, stored, i, codes, x);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) one[0][t] = simd::add(one[0][t], sum[u][t]);
      store_output(a, simd::sum(one[0][t]), row, token + t);
    }
  }
}

// Rows per turn over all blocks of tokens: few enough for their weights to stay in L1.
inline constexpr int64_t kGroupsTurnBytes = 16 * 1024;

template <class Step>
void spmm_groupq(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Pass = void (*)(const SpmmArgs&, int64_t, int64_t, int64_t);
  constexpr int kMax = kGroupTokens;
  static_assert(kMax == 4 || kMax == 8, "the table below has one entry per number of tokens");
  static constexpr Pass kPass[] = {
      groupq_pass<Step, 1>, groupq_pass<Step, 2>, groupq_pass<Step, 3>,   groupq_pass<Step, 4>,
      groupq_pass < Step,   kMax == 4 ? 4 : 5 >,  groupq_pass < Step,     kMax == 4 ? 4 : 6 >,
      groupq_pass < Step,   kMax == 4 ? 4 : 7 >,  groupq_pass<Step, kMax>};
  if (a.m <= kMax) return kPass[a.m - 1](a, row_begin, row_end, 0);
  const int64_t row_bytes = a.w.nnz / a.w.rows * 3 / 4 + 1;
  const int64_t turn = row_bytes > kGroupsTurnBytes ? 1 : kGroupsTurnBytes / row_bytes;
  for (int64_t row = row_begin; row < row_end; row += turn) {
    const int64_t end = row + turn < row_end ? row + turn : row_end;
    for (int64_t token = 0; token < a.m; token += kMax) {
      kPass[(a.m - token < kMax ? a.m - token : kMax) - 1](a, row, end, token);
    }
  }
}

template <template <int> class Step>
void spmm_groupq_any(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  if (a.w.group_size == 16) return spmm_groupq<Step<16>>(a, row_begin, row_end);
  spmm_groupq<Step<32>>(a, row_begin, row_end);
}

}  // namespace
}  // namespace tamis

// The x forms of one level and its kernels: Level::U4<G> and Level::U8<G> are the steps.
#define TAMIS_GROUPQ_KERNELS_OF(x, X, level, Level)                                           \
  namespace {                                                                                 \
  int64_t groups_bytes_##x(const SpmmArgs& a) {                                               \
    return groups_bytes(a);                                                                   \
  }                                                                                           \
  void prepare_groups_##x(const SpmmArgs& a, void* prepared, int part, int parts) {           \
    prepare_groups<Level, X>(a, prepared, part, parts);                                       \
  }                                                                                           \
  }                                                                                           \
  const SpmmXForm spmm_groups_##x##_##level = {groups_bytes_##x, prepare_groups_##x};         \
  void spmm_groupq_u4_##x##_##level##_groups(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_groupq_any<Level::U4>(a, begin, end);                                                \
  }                                                                                           \
  void spmm_groupq_u8_##x##_##level##_groups(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_groupq_any<Level::U8>(a, begin, end);                                                \
  }
#define TAMIS_GROUPQ_KERNELS(level, Level)          \
  TAMIS_GROUPQ_KERNELS_OF(f32, float, level, Level) \
  TAMIS_GROUPQ_KERNELS_OF(f16, F16, level, Level)   \
  TAMIS_GROUPQ_KERNELS_OF(bf16, BF16, level, Level)

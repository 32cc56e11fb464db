// groupq with sdot: codes of w times 8-bit codes of x (W4A8, W8A8).
//
// y[m,n] = sum_k x[m,k] * w[n,k].  x: lanes, i.e. codes in blocks of T = 1, 4 or 8 tokens, one step
// per token and kStepColumns columns (codes.h); a vector is 4 tokens times 4 columns, so that a
// lane of 4 codes of w meets them, or 16 columns of one token. For each stored group
//   y += scale * step * sum(codes of w * codes of x) - scale * zero * step * sum(codes of x),
// whose last sums are made once a call. Codes of 8 bits are taken as code - 128, and zero - 128.
// Error: that of x, at most half a step per element of a stored group, plus c * eps * sum |w||x| of
// the f32 sums.
//
// Tile: one row times a block. Per group of 16 and 4 tokens: 2 to split codes of 4 bits, 4 sdot,
// scvtf, fmul, two fmla, where f32 (groups) takes 28; one token: 8, where f32 takes 16.
//
// Needs: codes of missing tokens zero.   Tail: none within a group; single groups after four.
// A token with NaN or Inf gets NaN where a row stores a group among those kStepColumns columns.
#include "ops/spmm/codes_neon.h"
#include "ops/spmm/groupq_neon.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

constexpr int kRowsAtOnce = simd::kLanes;  // whose outputs are stored together
constexpr int64_t kLanesAhead = 4096;

int64_t block_tokens(int64_t m) {
  return m == 1 ? 1 : m <= 4 ? 4 : 8;
}

// One block of the prepared x.
struct XLanes {
  int8_t* codes;  // [columns / 4][T][4]
  float* sums;    // [groups][T]: step times sum of codes
  float* steps;   // [steps][T]
  int64_t bytes;

  TAMIS_INLINE XLanes(const SpmmArgs& a, void* prepared, int64_t block) {
    const int64_t tokens = block_tokens(a.m), groups = a.w.cols / a.w.group_size;
    bytes = tokens * (a.w.cols + 4 * groups + 4 * step_count(a.w));
    codes = static_cast<int8_t*>(prepared) + block * bytes;
    sums = reinterpret_cast<float*>(codes + a.w.cols * tokens);
    steps = sums + groups * tokens;
  }
};

int64_t lanes_bytes(const SpmmArgs& a) {
  return XLanes(a, nullptr, 0).bytes * ceil_div(a.m, block_tokens(a.m));
}

// Steps [part / parts) of all tokens, those that are missing included.
template <class X>
void prepare_lanes(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t tokens = block_tokens(a.m), size = a.w.group_size, steps = step_count(a.w);
  for (int64_t s = steps * part / parts; s < steps * (part + 1) / parts; ++s) {
    const int64_t first = s * kStepColumns;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    for (int64_t token = 0; token < ceil_div(a.m, tokens) * tokens; ++token) {
      const XLanes to(a, prepared, token / tokens);
      const int64_t t = token % tokens;
      alignas(16) int8_t codes[kStepColumns] = {};
      float step = 0;
      if (token < a.m) {
        step = quantize(static_cast<const X*>(a.x) + token * a.x_stride + first, n, codes);
      }
      int8_t* out = to.codes + first * tokens + t * 4;
      for (int64_t j = 0; j < n; j += 4, out += 4 * tokens) __builtin_memcpy(out, codes + j, 4);
      for (int64_t g = 0; g < n / size; ++g) {
        int32_t sum = 0;
        for (int64_t j = g * size; j < (g + 1) * size; j += 16) {
          sum += vaddlvq_s8(vld1q_s8(codes + j));
        }
        to.sums[(first / size + g) * tokens + t] = step * static_cast<float>(sum);
      }
      to.steps[s * tokens + t] = step;
    }
  }
}

// sum + x times lane `lane` of 4 codes.
TAMIS_INLINE int32x4_t dot(int32x4_t sum, int8x16_t x, int8x8_t w, int lane) {
  return lane == 0 ? vdotq_lane_s32(sum, x, w, 0) : vdotq_lane_s32(sum, x, w, 1);
}
TAMIS_INLINE int32x4_t dot(int32x4_t sum, int8x16_t x, int8x16_t w, int lane) {
  switch (lane) {
    case 0:
      return vdotq_laneq_s32(sum, x, w, 0);
    case 1:
      return vdotq_laneq_s32(sum, x, w, 1);
    case 2:
      return vdotq_laneq_s32(sum, x, w, 2);
    default:
      return vdotq_laneq_s32(sum, x, w, 3);
  }
}

// A group's codes in order, kColumns a register; `sixteen` are columns 16 i and on.
template <DType kW, int G>
struct GroupCodes {  // u8
  static constexpr int kBias = 128, kBytes = G, kColumns = 16;
  int8x16_t part[G / 16];

  TAMIS_INLINE explicit GroupCodes(const uint8_t* p) {
    for (int i = 0; i < G / 16; ++i) {
      part[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(128)));
    }
  }
  TAMIS_INLINE int8x16_t sixteen(int i) const { return part[i]; }
};
template <>
struct GroupCodes<DType::u4, 32> {
  static constexpr int kBias = 0, kBytes = 16, kColumns = 16;
  int8x16_t part[2];

  TAMIS_INLINE explicit GroupCodes(const uint8_t* p) {
    const uint8x16_t both = vld1q_u8(p);
    part[0] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    part[1] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
  }
  TAMIS_INLINE int8x16_t sixteen(int i) const { return part[i]; }
};
template <>
struct GroupCodes<DType::u4, 16> {
  static constexpr int kBias = 0, kBytes = 8, kColumns = 8;
  int8x8_t part[2];

  TAMIS_INLINE explicit GroupCodes(const uint8_t* p) {
    const uint8x8_t both = vld1_u8(p);
    part[0] = vreinterpret_s8_u8(vand_u8(both, vdup_n_u8(15)));
    part[1] = vreinterpret_s8_u8(vshr_n_u8(both, 4));
  }
  TAMIS_INLINE int8x16_t sixteen(int /*i*/) const { return vcombine_s8(part[0], part[1]); }
};

// Sums of a row times a block, T / 4 vectors.
template <int T>
struct BlockSums {
  float32x4_t products[T / 4], rest[T / 4];

  TAMIS_INLINE BlockSums() {
    for (int v = 0; v < T / 4; ++v) products[v] = rest[v] = vdupq_n_f32(0.0f);
  }
  // Adds a stored group, whose codes are at `codes` and columns those of group g.
  template <DType kW, int G>
  TAMIS_INLINE void add(const XLanes& x, int64_t g, const uint8_t* codes, float scale,
                        float offset) {
    using Codes = GroupCodes<kW, G>;
    const Codes w(codes);
    const int8_t* columns = x.codes + g * (G * T);
    const float* steps = x.steps + g / (kStepColumns / G) * T;
#pragma GCC unroll 2
    for (int v = 0; v < T / 4; ++v) {
      int32x4_t dots = vdupq_n_s32(0);
#pragma GCC unroll 8
      for (int c = 0; c < G; c += 4) {
        dots = dot(dots, vld1q_s8(columns + c * T + 16 * v), w.part[c / Codes::kColumns],
                   c % Codes::kColumns / 4);
      }
      const float32x4_t in_steps = vmulq_f32(vcvtq_f32_s32(dots), vld1q_f32(steps + 4 * v));
      products[v] = vfmaq_n_f32(products[v], in_steps, scale);
      rest[v] = vfmaq_n_f32(rest[v], vld1q_f32(x.sums + g * T + 4 * v), offset);
    }
  }
  TAMIS_INLINE void add(const BlockSums& other) {
    for (int v = 0; v < T / 4; ++v) {
      products[v] = vaddq_f32(products[v], other.products[v]);
      rest[v] = vaddq_f32(rest[v], other.rest[v]);
    }
  }
  TAMIS_INLINE void store(float (&out)[T]) const {
    for (int v = 0; v < T / 4; ++v) vst1q_f32(out + 4 * v, vaddq_f32(products[v], rest[v]));
  }
};

// One token: a vector holds parts of its sum.
template <>
struct BlockSums<1> {
  float32x4_t products = vdupq_n_f32(0.0f);
  float rest = 0;

  template <DType kW, int G>
  TAMIS_INLINE void add(const XLanes& x, int64_t g, const uint8_t* codes, float scale,
                        float offset) {
    const GroupCodes<kW, G> w(codes);
    int32x4_t dots = vdupq_n_s32(0);
#pragma GCC unroll 2
    for (int i = 0; i < G / 16; ++i) {
      dots = vdotq_s32(dots, w.sixteen(i), vld1q_s8(x.codes + g * G + 16 * i));
    }
    products = vfmaq_n_f32(products, vcvtq_f32_s32(dots), scale * x.steps[g / (kStepColumns / G)]);
    rest += x.sums[g] * offset;
  }
  TAMIS_INLINE void add(const BlockSums& other) {
    products = vaddq_f32(products, other.products);
    rest += other.rest;
  }
  TAMIS_INLINE void store(float (&out)[1]) const { out[0] = vaddvq_f32(products) + rest; }
};

// One row times a block: a sum per token.
template <DType kW, int G, int T>
TAMIS_INLINE void lanes_row(const SpmmArgs& a, const XLanes& x, int64_t row, StoredGroups& stored,
                            float (&out)[T]) {
  using Codes = GroupCodes<kW, G>;
  // Each with chains of its own, or the latency of fmla would be what a group costs.
  constexpr int kBatch = 4;
  const int64_t groups = a.w.cols / G;
  BlockSums<T> sum[kBatch];
  int64_t at = a.w.row_offsets[row];
  for (int64_t first = 0; first < groups; first += kMostGroups, at += stored.count) {
    decode_groups<DecodeNeon<Codes::kBias>>(a.w, row, first, at, 1, stored);
    const uint8_t* codes = static_cast<const uint8_t*>(a.w.values) + at * Codes::kBytes;
    const auto multiply = [&](int64_t i, int j) __attribute__((always_inline)) {
      sum[j].template add<kW, G>(x, first + stored.x[i], codes + i * Codes::kBytes, stored.scale[i],
                                 stored.offset[i]);
    };
    int64_t i = 0;
    for (; i + kBatch <= stored.count; i += kBatch) {
      __builtin_prefetch(codes + i * Codes::kBytes + kLanesAhead, 0, kCodesToL2);
#pragma GCC unroll 4
      for (int j = 0; j < kBatch; ++j) multiply(i + j, j);
    }
    for (; i < stored.count; ++i) multiply(i, 0);
  }
#pragma GCC unroll 4
  for (int j = 1; j < kBatch; ++j) sum[0].add(sum[j]);
  sum[0].store(out);
}

template <DType kW, int G, int T>
void lanes_pass(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  const XLanes x(a, const_cast<void*>(a.prepared), token / T);
  const int64_t tokens = a.m - token < T ? a.m - token : T;
  StoredGroups stored;
  float out[T][kRowsAtOnce] = {};
  for (; row < row_end; row += kRowsAtOnce) {
    const int rows = static_cast<int>(row_end - row < kRowsAtOnce ? row_end - row : kRowsAtOnce);
    for (int r = 0; r < rows; ++r) {
      float of_row[T];
      lanes_row<kW, G, T>(a, x, row + r, stored, of_row);
      for (int t = 0; t < T; ++t) out[t][r] = of_row[t];
    }
    for (int64_t t = 0; t < tokens; ++t) {
      store_rows(a, simd::load(out[t]), row, token + t, rows);
    }
  }
}

// Rows per turn over all blocks of tokens: few enough for their weights to stay in L1.
constexpr int64_t kLanesTurnBytes = 16 * 1024;

template <DType kW, int G>
void spmm_lanes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  if (a.m == 1) return lanes_pass<kW, G, 1>(a, row_begin, row_end, 0);
  if (a.m <= 4) return lanes_pass<kW, G, 4>(a, row_begin, row_end, 0);
  const int64_t row_bytes = a.w.nnz / a.w.rows + 1;
  const int64_t rows = kLanesTurnBytes / row_bytes / kRowsAtOnce * kRowsAtOnce;
  const int64_t turn = rows < kRowsAtOnce ? kRowsAtOnce : rows;
  for (int64_t row = row_begin; row < row_end; row += turn) {
    const int64_t end = row + turn < row_end ? row + turn : row_end;
    for (int64_t token = 0; token < a.m; token += 8) lanes_pass<kW, G, 8>(a, row, end, token);
  }
}

template <DType kW>
void spmm_lanes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  if (a.w.group_size == 16) return spmm_lanes<kW, 16>(a, row_begin, row_end);
  spmm_lanes<kW, 32>(a, row_begin, row_end);
}

}  // namespace

#define TAMIS_LANES_KERNEL(x, X)                                                            \
  const SpmmXForm spmm_lanes_##x##_neon_dot = {lanes_bytes, prepare_lanes<X>, true};        \
  void spmm_groupq_u4_##x##_neon_dot_lanes(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_lanes<DType::u4>(a, begin, end);                                                   \
  }                                                                                         \
  void spmm_groupq_u8_##x##_neon_dot_lanes(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_lanes<DType::u8>(a, begin, end);                                                   \
  }

TAMIS_LANES_KERNEL(f32, float)
TAMIS_LANES_KERNEL(f16, F16)
TAMIS_LANES_KERNEL(bf16, BF16)

#undef TAMIS_LANES_KERNEL

}  // namespace tamis

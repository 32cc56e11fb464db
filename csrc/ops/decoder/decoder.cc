// decoder: products by spmm, attention by sparse_attention, and the little between them.
#include "ops/decoder/decoder.h"

#include <algorithm>
#include <cmath>

#include "base/numeric.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

struct F32 {
  using Bits = float;
  static float load(float v) { return v; }
  static float store(float v) { return v; }
};
struct F16 {
  using Bits = uint16_t;
  static float load(uint16_t v) { return f32_from_f16(v); }
  static uint16_t store(float v) { return f16_from_f32(v); }
};
struct BF16 {
  using Bits = uint16_t;
  static float load(uint16_t v) { return f32_from_bf16(v); }
  static uint16_t store(float v) { return bf16_from_f32(v); }
};

template <class Fn>
void with_type(DType dtype, const Fn& fn) {
  if (dtype == DType::f32) return fn(F32());
  if (dtype == DType::f16) return fn(F16());
  fn(BF16());
}

// Element `i` of an array of dtype.
void* at(void* p, DType dtype, int64_t i) {
  return static_cast<uint8_t*>(p) + i * size_of(dtype);
}

void normalize(DType dtype, int64_t m, int64_t n, const void* x, const DecoderNorm& norm,
               void* out) {
  with_type(dtype, [&]<class T>(T) {
    using Bits = typename T::Bits;
    const auto* weight = static_cast<const Bits*>(norm.weight);
    for (int64_t t = 0; t < m; ++t) {
      const auto* from = static_cast<const Bits*>(x) + t * n;
      auto* to = static_cast<Bits*>(out) + t * n;
      constexpr int kChains = 8;  // else each addition waits for the last
      float part[kChains] = {};
      int64_t i = 0;
      for (; i + kChains <= n; i += kChains) {
        for (int c = 0; c < kChains; ++c) {
          const float v = T::load(from[i + c]);
          part[c] += v * v;
        }
      }
      float sum = 0;
      for (; i < n; ++i) sum += T::load(from[i]) * T::load(from[i]);
      for (const float p : part) sum += p;
      const float factor = 1.0f / std::sqrt(sum / static_cast<float>(n) + norm.eps);
      for (i = 0; i < n; ++i) {
        const float v = T::load(T::store(T::load(from[i]) * factor));
        to[i] = T::store(T::load(weight[i]) * v);
      }
    }
  });
}

// x [m, heads, d] in place.
void turn(const DecoderInputs& a, int64_t heads, void* x) {
  with_type(a.dtype, [&]<class T>(T) {
    using Bits = typename T::Bits;
    const int64_t d = a.head_dim, half = d / 2;
    for (int64_t t = 0; t < a.m; ++t) {
      const int64_t position = a.positions == 1 ? 0 : t;
      const auto* cos = static_cast<const Bits*>(a.cos) + position * d;
      const auto* sin = static_cast<const Bits*>(a.sin) + position * d;
      for (int64_t h = 0; h < heads; ++h) {
        auto* to = static_cast<Bits*>(x) + (t * heads + h) * d;
        const auto product = [](Bits v, Bits by) {
          return T::load(T::store(T::load(v) * T::load(by)));
        };
        for (int64_t i = 0; i < half; ++i) {
          const Bits low = to[i], high = to[i + half];
          to[i] = T::store(product(low, cos[i]) - product(high, sin[i]));
          to[i + half] = T::store(product(high, cos[i + half]) + product(low, sin[i + half]));
        }
      }
    }
  });
}

// y = x + y.
void add(DType dtype, int64_t n, const void* x, void* y) {
  with_type(dtype, [&]<class T>(T) {
    using Bits = typename T::Bits;
    const auto* from = static_cast<const Bits*>(x);
    auto* to = static_cast<Bits*>(y);
    for (int64_t i = 0; i < n; ++i) to[i] = T::store(T::load(from[i]) + T::load(to[i]));
  });
}

SpmmArgs product(DType dtype, int64_t m, const void* x, const DecoderLinear& linear, void* y) {
  return {.w = linear.w,
          .x_dtype = dtype,
          .m = m,
          .x = x,
          .x_stride = linear.w.cols,
          .bias = linear.bias,
          .y = y,
          .y_stride = linear.w.rows};
}

// "" if the weight has this shape.
Status check_shape(const char* name, const DecoderLinear& linear, int64_t rows, int64_t cols) {
  if (linear.w.rows == rows && linear.w.cols == cols) return {};
  return error(Code::invalid_argument, "decoder: %s: got shape [%lld, %lld], wanted [%lld, %lld]",
               name, static_cast<long long>(linear.w.rows), static_cast<long long>(linear.w.cols),
               static_cast<long long>(rows), static_cast<long long>(cols));
}

Status check_common(DType dtype, int64_t m, int64_t head_dim) {
  if (!is_float(dtype)) {
    return error(Code::unsupported_dtype, "decoder: dtype: got %s, wanted f32, f16 or bf16",
                 name_of(dtype));
  }
  if (m < 0 || head_dim < 2 || head_dim % 2 != 0) {
    return error(Code::invalid_argument,
                 "decoder: m, head_dim: got %lld and %lld, wanted at least 0 and an even number",
                 static_cast<long long>(m), static_cast<long long>(head_dim));
  }
  return {};
}

}  // namespace

Status decoder_inputs(const DecoderInputs& a) {
  TAMIS_RETURN_IF_ERROR(check_common(a.dtype, a.m, a.head_dim));
  const int64_t hidden = a.q.w.cols, d = a.head_dim;
  const int64_t heads = a.q.w.rows / d, kv_heads = a.k.w.rows / d;
  TAMIS_RETURN_IF_ERROR(check_shape("q", a.q, heads * d, hidden));
  TAMIS_RETURN_IF_ERROR(check_shape("k", a.k, kv_heads * d, hidden));
  TAMIS_RETURN_IF_ERROR(check_shape("v", a.v, kv_heads * d, hidden));
  if (a.positions != 1 && a.positions != a.m) {
    return error(Code::invalid_argument, "decoder: positions: got %lld, wanted 1 or %lld",
                 static_cast<long long>(a.positions), static_cast<long long>(a.m));
  }
  if (a.m == 0) return {};
  normalize(a.dtype, a.m, hidden, a.x, a.norm, a.workspace);
  TAMIS_RETURN_IF_ERROR(spmm(product(a.dtype, a.m, a.workspace, a.q, a.queries)));
  TAMIS_RETURN_IF_ERROR(spmm(product(a.dtype, a.m, a.workspace, a.k, a.keys)));
  TAMIS_RETURN_IF_ERROR(spmm(product(a.dtype, a.m, a.workspace, a.v, a.values)));
  turn(a, heads, a.queries);
  turn(a, kv_heads, a.keys);
  return {};
}

int64_t decoder_workspace(const DecoderOutputs& a) {
  const int64_t hidden = a.o.w.rows;
  return a.m * (std::max(a.heads * a.head_dim, hidden) + hidden + 2 * a.gate.w.rows);
}

Status decoder_outputs(const DecoderOutputs& a) {
  TAMIS_RETURN_IF_ERROR(check_common(a.dtype, a.m, a.head_dim));
  const int64_t hidden = a.o.w.rows, inner = a.gate.w.rows, width = a.heads * a.head_dim;
  if (a.kv_heads < 1 || a.heads % a.kv_heads != 0) {
    return error(Code::invalid_argument,
                 "decoder: kv_heads: got %lld for %lld heads, wanted a divisor of them",
                 static_cast<long long>(a.kv_heads), static_cast<long long>(a.heads));
  }
  TAMIS_RETURN_IF_ERROR(check_shape("o", a.o, hidden, width));
  TAMIS_RETURN_IF_ERROR(check_shape("gate", a.gate, inner, hidden));
  TAMIS_RETURN_IF_ERROR(check_shape("up", a.up, inner, hidden));
  TAMIS_RETURN_IF_ERROR(check_shape("down", a.down, hidden, inner));
  if (a.m == 0) return {};
  const DType dtype = a.dtype;
  void* n = a.workspace;  // attention's result, then the second norm's
  void* h = at(n, dtype, a.m * std::max(width, hidden));
  void* up = at(h, dtype, a.m * hidden);
  void* gated = at(up, dtype, a.m * inner);

  const KvSegment past{.storage = dtype == DType::f32   ? KvStorage::f32
                                  : dtype == DType::f16 ? KvStorage::f16
                                                        : KvStorage::bf16,
                       .tokens = a.tokens,
                       .keys = a.keys,
                       .values = a.values,
                       .key_batch_stride = a.key_strides[0],
                       .key_head_stride = a.key_strides[1],
                       .key_token_stride = a.key_strides[2],
                       .value_batch_stride = a.value_strides[0],
                       .value_head_stride = a.value_strides[1],
                       .value_token_stride = a.value_strides[2]};
  TAMIS_RETURN_IF_ERROR(sparse_attention({.q_dtype = dtype,
                                          .batch = a.m,
                                          .kv_heads = a.kv_heads,
                                          .rows = a.heads / a.kv_heads,
                                          .head_dim = a.head_dim,
                                          .q = a.queries,
                                          .out = n,
                                          .scale = a.scale,
                                          .segments = {&past, 1}}));
  TAMIS_RETURN_IF_ERROR(spmm(product(dtype, a.m, n, a.o, h)));
  add(dtype, a.m * hidden, a.x, h);

  normalize(dtype, a.m, hidden, h, a.norm, n);
  TAMIS_RETURN_IF_ERROR(spmm(product(dtype, a.m, n, a.up, up)));
  SpmmArgs gate = product(dtype, a.m, n, a.gate, gated);
  gate.activation = Activation::silu;
  gate.multiplier = up;
  gate.multiplier_stride = inner;
  TAMIS_RETURN_IF_ERROR(spmm(gate));
  TAMIS_RETURN_IF_ERROR(spmm(product(dtype, a.m, gated, a.down, a.y)));
  add(dtype, a.m * hidden, h, a.y);
  return {};
}

}  // namespace tamis

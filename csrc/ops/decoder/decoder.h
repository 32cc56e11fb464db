// decoder: a decoder layer of Llama's form on one new token of each of m sequences, in two calls,
// between which the caller appends keys and values to its cache.
//
//   n = norm(x);  q = turn(n Wq^T);  keys' = turn(n Wk^T);  values' = n Wv^T
//   h = x + attention(q, keys, values) Wo^T;  y = h + (silu(n Wg^T) * (n Wu^T)) Wd^T,  n = norm(h)
//
// norm(x) = x / sqrt(mean(x^2) + eps) * weight. turn rotates the halves (a, b) of each head:
// (a cos - b sin, b cos + a sin). Products, norms, softmax and the gate are f32; what one of them
// hands to the next is rounded to dtype, as it is where each is a module of its own.
// What it saves is calls: the arithmetic beside the products is a hundredth of theirs.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/status.h"
#include "format/matrix.h"

namespace tamis {

struct DecoderLinear {
  MatrixView w;
  const void* bias = nullptr;  // [rows] of dtype, or null
};

struct DecoderNorm {
  const void* weight = nullptr;  // [hidden] of dtype
  float eps = 0;
};

// First half. Every array is contiguous and of dtype (f32, f16 or bf16).
struct DecoderInputs {
  DType dtype = DType::f32;
  int64_t m = 0, head_dim = 0;
  const void* x = nullptr;  // [m, hidden], hidden = q.w.cols
  DecoderNorm norm;
  DecoderLinear q, k, v;  // [h * head_dim, hidden], [g * head_dim, hidden] twice
  const void* cos = nullptr;
  const void* sin = nullptr;  // [m, head_dim] or, where all share a position, [1, head_dim]
  int64_t positions = 1;      // m or 1
  void* queries = nullptr;    // [m, h, head_dim]
  void* keys = nullptr;       // [m, g, head_dim]
  void* values = nullptr;     // [m, g, head_dim]
  void* workspace = nullptr;  // [m, hidden]
};

// Second half.
struct DecoderOutputs {
  DType dtype = DType::f32;
  int64_t m = 0, head_dim = 0, heads = 0, kv_heads = 0, tokens = 0;
  const void* x = nullptr;        // [m, hidden]: what the layer was given
  const void* queries = nullptr;  // [m, heads, head_dim]
  const void* keys = nullptr;     // [m, kv_heads, tokens, head_dim], strides in elements
  const void* values = nullptr;
  int64_t key_strides[3] = {}, value_strides[3] = {};
  float scale = 1.0f;
  DecoderLinear o;  // [hidden, heads * head_dim]
  DecoderNorm norm;
  DecoderLinear gate, up, down;  // [inner, hidden] twice, [hidden, inner]
  void* y = nullptr;             // [m, hidden]
  void* workspace = nullptr;     // decoder_workspace elements
};

// Elements of dtype that decoder_outputs wants as workspace.
int64_t decoder_workspace(const DecoderOutputs& a);

// Check shapes and run on the pool. Allocate nothing.
Status decoder_inputs(const DecoderInputs& a);
Status decoder_outputs(const DecoderOutputs& a);

}  // namespace tamis

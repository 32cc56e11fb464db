// decoder: layers of Llama's form on one new token of each of m sequences, in one call.
//
//   n = norm(x);  q = turn(n Wq^T);  the cache gains turn(n Wk^T) and n Wv^T
//   h = x + attention(q, keys, values) Wo^T;  y = h + (silu(n Wg^T) * (n Wu^T)) Wd^T,  n = norm(h)
//
// y of a layer is x of the next. norm(x) = x / sqrt(mean(x^2) + eps) * weight. turn rotates the
// halves (a, b) of each head: (a cos - b sin, b cos + a sin). Products, norms, softmax and the gate
// are f32; what one of them hands to the next is rounded to dtype, as it is where each is a module
// of its own. What it saves is calls: the arithmetic beside the products is a hundredth of theirs.
#pragma once

#include <cstdint>
#include <span>

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

struct DecoderLayer {
  DecoderNorm before, after;
  DecoderLinear q, k, v;         // [h * head_dim, hidden], [g * head_dim, hidden] twice
  DecoderLinear o;               // [hidden, h * head_dim]
  DecoderLinear gate, up, down;  // [inner, hidden] twice, [hidden, inner]
  float scale = 1.0f;            // of the scores
};

// Keys and values of a layer, [m, g, room, head_dim] each, contiguous: `tokens` of them are there,
// the next is written.
struct DecoderCache {
  void* keys = nullptr;
  void* values = nullptr;
  int64_t room = 0;
};

// Every array is contiguous and of dtype (f32, f16 or bf16).
struct DecoderArgs {
  DType dtype = DType::f32;
  int64_t m = 0, head_dim = 0, tokens = 0;
  const void* x = nullptr;  // [m, hidden], hidden = q.w.cols
  const void* cos = nullptr;
  const void* sin = nullptr;  // [m, head_dim] or, where all share a position, [1, head_dim]
  int64_t positions = 1;      // m or 1
  std::span<const DecoderLayer> layers;
  std::span<const DecoderCache> caches;  // as many
  DecoderNorm last;                      // after all layers, if it has a weight
  void* y = nullptr;                     // [m, hidden]; must not overlap x
  void* workspace = nullptr;             // decoder_workspace elements
};

// Elements of dtype that decoder wants as workspace.
int64_t decoder_workspace(const DecoderArgs& a);

// Checks shapes and runs on the pool. Allocates nothing.
Status decoder(const DecoderArgs& a);

}  // namespace tamis

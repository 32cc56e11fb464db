// prefill_attention in double: every pair of query and token asked whether it is seen.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/elements.h"
#include "format/matrix.h"
#include "ops/prefill_attention/prefill_attention.h"

namespace tamis {
namespace {

double element(const PrefillArray& x, DType type, int64_t b, int64_t head, int64_t token,
               int64_t c) {
  const int64_t i = b * x.batch_stride + head * x.head_stride + token * x.token_stride + c;
  return load_element(type, x.data, i);
}

bool lists(const PrefillList& list, int64_t batch, int64_t number) {
  if (!list.data) return true;
  const int32_t* x = list.data + batch * list.stride;
  return std::find(x, x + (list.count ? list.count[batch] : list.stride), number) !=
         x + (list.count ? list.count[batch] : list.stride);
}

bool sees(const PrefillArgs& a, int64_t b, int64_t h, int64_t p, int64_t t) {
  const int64_t pattern = h / (a.heads / a.pattern_heads);
  if (a.causal && t > p) return false;
  if (a.begin && t < a.begin[b]) return false;
  if (a.window && t >= a.sink[pattern] && t <= p - a.window[pattern]) return false;
  if (!lists(a.columns, b, t)) return false;
  if (a.blocks.size == 0) return true;
  const int64_t blocks = ceil_div(a.tokens, a.blocks.size);
  const int32_t* offset = a.blocks.offsets + pattern * (blocks + 1) + p / a.blocks.size;
  const int32_t* columns = a.blocks.columns + pattern * a.blocks.stride;
  return std::find(columns + offset[0], columns + offset[1], t / a.blocks.size) !=
         columns + offset[1];
}

void attend(const PrefillArgs& a, int64_t b, int64_t h, int64_t i, double* out, double* lse) {
  const int64_t g = h / (a.heads / a.kv_heads);
  std::vector<int64_t> seen;
  std::vector<double> scores;
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t t = 0; t < a.tokens; ++t) {
    if (!sees(a, b, h, a.first + i, t)) continue;
    double score = 0;
    for (int64_t c = 0; c < a.head_dim; ++c) {
      score += element(a.q, a.q_dtype, b, h, i, c) * element(a.keys, a.kv_dtype, b, g, t, c);
    }
    score *= a.scale;
    if (a.softcap > 0) score = a.softcap * std::tanh(score / a.softcap);
    seen.push_back(t);
    scores.push_back(score);
    largest = std::max(largest, score);
  }
  for (const double s : scores) sum += std::exp(s - largest);
  for (size_t j = 0; j < seen.size(); ++j) {
    const double p = std::exp(scores[j] - largest) / sum;
    for (int64_t c = 0; c < a.head_dim; ++c) {
      out[c] += p * element(a.values, a.kv_dtype, b, g, seen[j], c);
    }
  }
  if (lse && !seen.empty()) *lse = largest + std::log(sum);
}

}  // namespace

Status prefill_attention_reference(const PrefillArgs& a, double* out, double* lse) {
  TAMIS_RETURN_IF_ERROR(check_prefill_attention(a));
  for (int64_t row = 0; row < a.batch * a.heads * a.queries; ++row) {
    std::fill_n(out + row * a.head_dim, a.head_dim, 0.0);
    if (lse) lse[row] = -std::numeric_limits<double>::infinity();
    const int64_t head = row / a.queries, i = row % a.queries;
    if (!lists(a.rows, head / a.heads, i)) continue;
    attend(a, head / a.heads, head % a.heads, i, out + row * a.head_dim, lse ? lse + row : nullptr);
  }
  return {};
}

}  // namespace tamis

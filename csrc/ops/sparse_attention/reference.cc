// sparse_attention in double, token by token.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/elements.h"
#include "ops/sparse_attention/check.h"

namespace tamis {
namespace {

double element(const void* x, KvStorage storage, int64_t i) {
  const DType type = storage == KvStorage::f16    ? DType::f16
                     : storage == KvStorage::bf16 ? DType::bf16
                                                  : DType::f32;
  return load_element(type, x, i);
}

// One token as every row of its head sees it.
struct Token {
  std::vector<double> key, value;
  double bias;
};

// The key of token `id` of a low-rank segment; its coordinates begin at `batch_at` + id * stride.
std::vector<double> product(const KvSegment& s, int64_t head, int64_t batch_at, int64_t id,
                            int64_t d) {
  const KvLowRank& l = s.low_rank;
  const KvStorage type = elements_of(s.storage);
  std::vector<double> key(static_cast<size_t>(d));
  for (int64_t j = 0; j < l.rank; ++j) {
    const double x = element(s.keys, type, batch_at + id * s.key_token_stride + j);
    for (int64_t c = 0; c < d; ++c) {
      key[static_cast<size_t>(c)] += x * element(l.basis, type, (head * l.rank + j) * d + c);
    }
  }
  for (int64_t c = 0; c < l.pairs; ++c) {
    const float* fine = l.turns + id % kTurnFine * 2 * l.pairs + c;
    const float* coarse = l.turns + (kTurnFine + id / kTurnFine) * 2 * l.pairs + c;
    const double angle =
        std::atan2(fine[l.pairs], fine[0]) + std::atan2(coarse[l.pairs], coarse[0]);
    double &first = key[static_cast<size_t>(c)], &second = key[static_cast<size_t>(c + l.pairs)];
    const double turned = first * std::cos(angle) - second * std::sin(angle);
    second = second * std::cos(angle) + first * std::sin(angle);
    first = turned;
  }
  return key;
}

void add_unit(const SparseAttentionArgs& a, const KvSegment& s, int64_t head, int64_t unit,
              std::vector<Token>* out) {
  const int64_t each = unit_tokens(s), d = a.head_dim;
  const int64_t batch = head / a.kv_heads, g = head % a.kv_heads;
  const bool pages = s.storage == KvStorage::pages;
  const bool low_rank = elements_of(s.storage) != s.storage;
  std::vector<float> keys(static_cast<size_t>(each * d)), values(keys.size());
  if (pages) {
    unpack_kv_page(s.layout,
                   static_cast<const uint8_t*>(s.keys) + batch * s.key_batch_stride +
                       g * s.key_head_stride + unit * s.layout.bytes(),
                   keys.data(), values.data());
  }
  for (int64_t t = 0; t < each; ++t) {
    const int64_t id = unit * each + t;
    if (id < first_token(s, head) || id >= last_token(s, head)) continue;
    Token token{{}, {}, s.bias ? s.bias[head * s.tokens + id] : 0.0};
    if (low_rank) token.key = product(s, head, batch * s.key_batch_stride, id, d);
    for (int64_t c = 0; c < d; ++c) {
      const int64_t key =
          batch * s.key_batch_stride + g * s.key_head_stride + id * s.key_token_stride + c;
      const int64_t value =
          batch * s.value_batch_stride + g * s.value_head_stride + id * s.value_token_stride + c;
      if (!low_rank) {
        token.key.push_back(pages ? keys[static_cast<size_t>(t * d + c)]
                                  : element(s.keys, s.storage, key));
      }
      token.value.push_back(pages ? values[static_cast<size_t>(t * d + c)]
                                  : element(s.values, elements_of(s.storage), value));
    }
    out->push_back(token);
  }
}

void attend(const SparseAttentionArgs& a, const std::vector<Token>& tokens, int64_t row,
            double* out, double* lse) {
  const int64_t d = a.head_dim;
  std::vector<double> scores;
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const Token& token : tokens) {
    double score = 0;
    for (int64_t c = 0; c < d; ++c) {
      score += load_element(a.q_dtype, a.q, row * d + c) * token.key[static_cast<size_t>(c)];
    }
    score *= a.scale;
    if (a.softcap > 0) score = a.softcap * std::tanh(score / a.softcap);
    scores.push_back(score + token.bias);
    largest = std::max(largest, scores.back());
  }
  for (int64_t c = 0; c < d; ++c) out[row * d + c] = 0;
  if (largest > -std::numeric_limits<double>::infinity()) {
    for (const double score : scores) sum += std::exp(score - largest);
    for (size_t t = 0; t < tokens.size(); ++t) {
      const double p = std::exp(scores[t] - largest) / sum;
      for (int64_t c = 0; c < d; ++c) {
        out[row * d + c] += p * tokens[t].value[static_cast<size_t>(c)];
      }
    }
  }
  if (lse) lse[row] = largest + std::log(sum);
}

}  // namespace

Status sparse_attention_reference(const SparseAttentionArgs& a, double* out, double* lse) {
  TAMIS_RETURN_IF_ERROR(check_sparse_attention(a));
  for (int64_t head = 0; head < a.batch * a.kv_heads; ++head) {
    std::vector<Token> tokens;
    for (const KvSegment& s : a.segments) {
      for (int64_t i = 0; i < unit_count(s, head); ++i) {
        add_unit(a, s, head, s.index ? s.index[head * s.index_stride + i] : i, &tokens);
      }
    }
    for (int64_t r = 0; r < a.rows; ++r) attend(a, tokens, head * a.rows + r, out, lse);
  }
  return {};
}

}  // namespace tamis

// What every call of sparse_attention is checked for.
#include "ops/sparse_attention/check.h"

#include <algorithm>

namespace tamis {
namespace {

Status bad_count(const char* what, int64_t got, int64_t most) {
  return error(Code::invalid_argument, "sparse_attention: %s: got %lld, wanted 0 to %lld", what,
               static_cast<long long>(got), static_cast<long long>(most));
}

Status check_lists(const KvSegment& s, int64_t heads) {
  const int64_t units = s.tokens / unit_tokens(s);
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t listed = s.index ? s.index_stride : units;
    const int64_t count = unit_count(s, head);
    if (count < 0 || count > listed) return bad_count("count", count, listed);
    if (!s.index || count == 0) continue;
    const int32_t* list = s.index + head * s.index_stride;
    int32_t least = list[0], most = list[0];  // without a branch for each
    for (int64_t i = 1; i < count; ++i) {
      least = std::min(least, list[i]);
      most = std::max(most, list[i]);
    }
    if (least < 0) return bad_count("index", least, units - 1);
    if (most >= units) return bad_count("index", most, units - 1);
  }
  return {};
}

Status check_low_rank(const KvLowRank& l, const SparseAttentionArgs& a) {
  if (l.rank < 1 || !l.basis) {
    return error(Code::invalid_argument,
                 "sparse_attention: basis: got rank %lld%s, wanted an array of at least one row",
                 static_cast<long long>(l.rank), l.basis ? "" : " and null");
  }
  if (l.pairs < 0 || 2 * l.pairs > a.head_dim || (l.pairs > 0 && !l.turns)) {
    return error(Code::invalid_argument,
                 "sparse_attention: turns: got %lld pairs%s, wanted a table of 0 to %lld",
                 static_cast<long long>(l.pairs), l.turns ? "" : " and null",
                 static_cast<long long>(a.head_dim / 2));
  }
  return {};
}

Status check_segment(const KvSegment& s, const SparseAttentionArgs& a) {
  const bool pages = s.storage == KvStorage::pages;
  if (pages) {
    TAMIS_RETURN_IF_ERROR(check_kv_page(s.layout));
    if (s.layout.head_dim != a.head_dim || s.tokens % s.layout.tokens != 0) {
      return error(Code::invalid_argument,
                   "sparse_attention: layout: got pages of %d tokens, d = %d for %lld tokens, d = "
                   "%lld, wanted the same d and whole pages",
                   s.layout.tokens, s.layout.head_dim, static_cast<long long>(s.tokens),
                   static_cast<long long>(a.head_dim));
    }
  }
  if (s.tokens < 0) return bad_count("tokens", s.tokens, INT32_MAX);
  if (s.tokens > 0 && (!s.keys || (!pages && !s.values))) {
    return error(Code::invalid_argument, "sparse_attention: keys, values: got null, wanted arrays");
  }
  if (elements_of(s.storage) != s.storage) TAMIS_RETURN_IF_ERROR(check_low_rank(s.low_rank, a));
  return check_lists(s, a.batch * a.kv_heads);
}

}  // namespace

int64_t unit_tokens(const KvSegment& s) {
  return s.storage == KvStorage::pages ? s.layout.tokens : 1;
}

int64_t unit_count(const KvSegment& s, int64_t head) {
  if (s.count) return s.count[head];
  return s.index ? s.index_stride : s.tokens / unit_tokens(s);
}

int64_t first_token(const KvSegment& s, int64_t head) {
  return s.begin ? std::max<int64_t>(s.begin[head], 0) : 0;
}

int64_t last_token(const KvSegment& s, int64_t head) {
  return s.end ? std::min<int64_t>(s.end[head], s.tokens) : s.tokens;
}

Status check_sparse_attention(const SparseAttentionArgs& a) {
  if (a.batch < 0 || a.kv_heads < 0 || a.rows < 0) {
    return error(Code::invalid_argument,
                 "sparse_attention: q: got shape [%lld, %lld, %lld, d], wanted none below 0",
                 static_cast<long long>(a.batch), static_cast<long long>(a.kv_heads),
                 static_cast<long long>(a.rows));
  }
  if (a.head_dim < 16 || a.head_dim > kKvMaxHeadDim || a.head_dim % 16 != 0) {
    return error(Code::invalid_argument,
                 "sparse_attention: head_dim: got %lld, wanted a multiple of 16 from 16 to %d",
                 static_cast<long long>(a.head_dim), kKvMaxHeadDim);
  }
  if (a.q_dtype != DType::f32 && a.q_dtype != DType::f16 && a.q_dtype != DType::bf16) {
    return error(Code::unsupported_dtype, "sparse_attention: q: got %s, wanted f32, f16 or bf16",
                 name_of(a.q_dtype));
  }
  if (a.batch * a.kv_heads * a.rows > 0 && (!a.q || !a.out)) {
    return error(Code::invalid_argument, "sparse_attention: q, out: got null, wanted arrays");
  }
  for (const KvSegment& s : a.segments) TAMIS_RETURN_IF_ERROR(check_segment(s, a));
  return {};
}

}  // namespace tamis

// What kv_estimate, kv_mass and kv_select accept.
#include "ops/kv_select/check.h"

#include <algorithm>

namespace tamis {
namespace {

using kv_select_checks::bad;
using kv_select_checks::check_float;
using kv_select_checks::check_head_dim;

Status check_units(const KvUnits& u, int64_t kv_heads, int64_t d) {
  if (u.units < 0 || u.units > INT32_MAX) return bad("units", u.units, "0 to 2^31 - 1");
  if (u.units > 0 && !u.data) return error(Code::invalid_argument, "kv_select: units: got null");
  if (u.kind != KvSummary::labels) return check_float("units", u.dtype);
  TAMIS_RETURN_IF_ERROR(check_kv_label(u.labels));
  if (!u.channels) return error(Code::invalid_argument, "kv_select: channels: got null");
  for (int64_t i = 0; i < kv_heads * u.labels.channels; ++i) {
    if (u.channels[i] < 0 || u.channels[i] >= d) return bad("channels", u.channels[i], "below d");
  }
  return {};
}

Status check_q(DType type, const void* q, const float* out, int64_t rows, int64_t d) {
  TAMIS_RETURN_IF_ERROR(check_float("q", type));
  TAMIS_RETURN_IF_ERROR(check_head_dim(d));
  if (rows > 0 && (!q || !out)) return error(Code::invalid_argument, "kv_select: q, out: got null");
  return {};
}

}  // namespace

Status check_kv_estimate(const KvEstimateArgs& a) {
  if (std::min({a.batch, a.kv_heads, a.rows}) < 0) return bad("q", -1, "no size below 0");
  TAMIS_RETURN_IF_ERROR(check_q(a.q_dtype, a.q, a.out, a.batch * a.kv_heads * a.rows, a.head_dim));
  return check_units(a.units, a.kv_heads, a.head_dim);
}

Status check_kv_mass(const KvMassArgs& a) {
  if (std::min({a.batch, a.kv_heads, a.heads, a.queries}) < 0) {
    return bad("q", -1, "no size below 0");
  }
  TAMIS_RETURN_IF_ERROR(
      check_q(a.q_dtype, a.q, a.out, a.batch * a.kv_heads * a.heads * a.queries, a.head_dim));
  if (!a.positions && a.queries > a.keys.units) {
    return bad("queries", a.queries, "no more than tokens");
  }
  for (int64_t i = 0; a.positions && i < a.queries; ++i) {
    const int32_t p = a.positions[i];
    if (p < 0 || p >= a.keys.units) return bad("positions", p, "numbers of tokens");
    if (i > 0 && p < a.positions[i - 1]) return bad("positions", p, "none below the one before");
  }
  if (a.keys.kind != KvSummary::rows) return bad("keys", 1, "rows");
  return check_units(a.keys, a.kv_heads, a.head_dim);
}

Status check_kv_select(const KvSelectArgs& a) {
  if (a.heads < 0 || a.units < 0 || a.units > INT32_MAX) return bad("units", a.units, "0 or more");
  if (std::min({a.k, a.sink, a.recent}) < 0) return bad("k, sink, recent", -1, "none below 0");
  if (a.heads > 0 &&
      (!a.count || (a.units > 0 && (!a.scores || (a.index_stride > 0 && !a.index))))) {
    return error(Code::invalid_argument, "kv_select: scores, index, count: got null");
  }
  if (a.page < 1) return bad("page", a.page, "1 or more");
  if (a.top_p < 0 || a.top_p > 1) return bad("top_p", -1, "0 to 1");
  for (int64_t h = 0; h < a.heads; ++h) {
    const int64_t k = a.budget ? a.budget[h] : a.k;
    if (k < 0) return bad("budget", k, "none below 0");
    const int64_t most =
        std::min(a.units, a.top_p > 0 ? a.units : std::max(k, a.sink + a.recent)) * a.page;
    if (most > a.index_stride) return bad("index_stride", a.index_stride, "room for the budget");
  }
  return {};
}

Status check_kv_choose(const KvChooseArgs& a) {
  float unread = 0.0f;
  KvEstimateArgs e = a.estimate;
  e.out = &unread;
  TAMIS_RETURN_IF_ERROR(check_kv_estimate(e));
  KvSelectArgs s = a.select;
  s.heads = e.batch * e.kv_heads;
  s.units = e.units.units;
  s.scores = &unread;
  s.top_p = 0.0;
  TAMIS_RETURN_IF_ERROR(check_kv_select(s));
  for (int64_t h = 0; a.by_row && h < s.heads; ++h) {
    const int64_t k = std::max<int64_t>(s.budget ? s.budget[h] : s.k, s.sink + s.recent);
    const int64_t most = std::min(s.units, std::min(k, s.units) * e.rows) * s.page;
    if (most > s.index_stride) return bad("index_stride", s.index_stride, "room for every row");
  }
  return {};
}

Status check_kv_summarize(const KvSummarizeArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_float("keys", a.dtype));
  if (a.kind == KvSummary::labels) return bad("kind", 2, "bounds or rows");
  if (std::min({a.batch, a.kv_heads, a.pages}) < 0) return bad("keys", -1, "no size below 0");
  if (a.page < 1) return bad("page", a.page, "1 or more");
  TAMIS_RETURN_IF_ERROR(check_head_dim(a.head_dim));
  const bool lacks = !a.keys || !a.out || (a.kind == KvSummary::rows && !a.alike);
  if (a.batch * a.kv_heads * a.pages > 0 && lacks) {
    return error(Code::invalid_argument, "kv_select: keys, out, alike: got null");
  }
  return {};
}

}  // namespace tamis

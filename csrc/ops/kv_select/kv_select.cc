// kv_select: the lists, the choice of kernels, and kv_estimate and kv_mass over scores.h.
#include "ops/kv_select/kv_select.h"

#include <algorithm>
#include <cmath>

#include "base/machine.h"
#include "format/matrix.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/scores.h"

namespace tamis {
namespace {

constexpr KvScoreRow kScores[] = {
#define TAMIS_KV_SCORE(kind, dtype, q, level)       \
  {"kv_select_" #kind "_" #dtype "_" #q "_" #level, \
   KvSummary::kind,                                 \
   DType::dtype,                                    \
   DType::q,                                        \
   isa::level,                                      \
   &kv_select_##kind##_##dtype##_##q##_##level},
#define TAMIS_KV_REDUCE(level)
#define TAMIS_KV_SUMMARY(dtype, level)
#include "ops/kv_select/kernels.def"
#undef TAMIS_KV_SCORE
#undef TAMIS_KV_REDUCE
#undef TAMIS_KV_SUMMARY
};

const KvReduceRow kReductions[] = {
#define TAMIS_KV_SCORE(kind, dtype, q, level)
#define TAMIS_KV_REDUCE(level) kv_select_reduce_##level,
#define TAMIS_KV_SUMMARY(dtype, level)
#include "ops/kv_select/kernels.def"
#undef TAMIS_KV_SCORE
#undef TAMIS_KV_REDUCE
#undef TAMIS_KV_SUMMARY
};

int64_t first_of(const int32_t* begin, int64_t head, int64_t units) {
  return begin ? std::clamp<int64_t>(begin[head], 0, units) : 0;
}

ScoreJob estimate_job(const void* context, int64_t head, int64_t /*number*/) {
  const auto& a = *static_cast<const KvEstimateArgs*>(context);
  return {head, 0, a.rows, first_of(a.begin, head, a.units.units), a.units.units, 0};
}

void estimate_end(const void* context, const KvReduceRow& reduce, const ScoreJob& job,
                  const float* s, int64_t stride, const float* shift, int64_t first, int64_t last) {
  const auto& a = *static_cast<const KvEstimateArgs*>(context);
  reduce.largest(s, stride, job.rows, shift, last - first,
                 a.out + job.head * a.units.units + first);
}

int64_t tiles_of(const KvMassArgs& a) {
  return ceil_div(a.queries, kMassQueries);
}

ScoreJob mass_job(const void* context, int64_t head, int64_t number) {
  const auto& a = *static_cast<const KvMassArgs*>(context);
  const int64_t query_head = number / tiles_of(a), i = number % tiles_of(a) * kMassQueries;
  return {head,
          query_head * a.queries + i,
          std::min<int64_t>(kMassQueries, a.queries - i),
          first_of(a.begin, head, a.keys.units),
          a.keys.units - a.queries + i + 1,
          1,
          a.positions ? a.positions + i : nullptr};
}

void mass_end(const void* context, const KvReduceRow& reduce, const ScoreJob& job, const float* s,
              int64_t stride, const float* shift, int64_t first, int64_t last) {
  const auto& a = *static_cast<const KvMassArgs*>(context);
  reduce.weights(s, stride, job.rows, shift, 1.0f / static_cast<float>(a.heads), last - first,
                 a.out + job.head * a.keys.units + first);
}

}  // namespace

std::span<const KvScoreRow> kv_score_kernels() {
  return kScores;
}

std::span<const KvReduceRow> kv_reduce_kernels() {
  return kReductions;
}

const KvScoreRow* choose_kv_score(KvSummary kind, DType dtype, DType q_dtype, IsaBits isa) {
  isa = without_slow_bf16(isa);
  for (const KvScoreRow& row : kScores) {
    if (row.kind == kind && row.dtype == dtype &&
        (row.q_dtype == DType::f32 || row.q_dtype == q_dtype) && (row.isa & isa) == row.isa) {
      return &row;
    }
  }
  return nullptr;
}

const KvReduceRow& choose_kv_reduce(IsaBits isa) {
  for (const KvReduceRow& row : kReductions) {
    if ((row.isa & isa) == row.isa) return row;
  }
  return kReductions[std::size(kReductions) - 1];
}

float round_to_bytes(const float* q, int64_t n, int8_t* out) {
  float most = 0.0f;
  for (int64_t c = 0; c < n; ++c) most = std::max(most, std::fabs(q[c]));
  const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
  for (int64_t c = 0; c < n; ++c) out[c] = static_cast<int8_t>(std::lrintf(q[c] * inverse));
  return most / 127.0f;
}

Status kv_estimate(const KvEstimateArgs& args) {
  return kv_estimate_on(active_isa(), args);
}

Status kv_estimate_on(IsaBits isa, const KvEstimateArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_estimate(a));
  const int64_t heads = a.batch * a.kv_heads, units = a.units.units;
  if (heads * a.rows * units == 0) return {};
  for (int64_t h = 0; a.begin && h < heads; ++h) {
    std::fill_n(a.out + h * units, first_of(a.begin, h, units), -INFINITY);
  }
  const ScoreProblem problem{.q_dtype = a.q_dtype,
                             .q = a.q,
                             .heads = heads,
                             .kv_heads = a.kv_heads,
                             .rows_of_head = a.rows,
                             .width = a.head_dim,
                             .scale = a.scale,
                             .units = a.units,
                             .most_rows = a.rows,
                             .normalize = a.reduce == KvReduce::log_weight,
                             .isa = isa};
  return for_scores(problem, 1, &estimate_job, {.finish = &estimate_end}, &a);
}

Status kv_mass(const KvMassArgs& args) {
  return kv_mass_on(active_isa(), args);
}

Status kv_mass_on(IsaBits isa, const KvMassArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_mass(a));
  const int64_t heads = a.batch * a.kv_heads;
  if (heads * a.heads * a.queries == 0) return {};
  const ScoreProblem problem{.q_dtype = a.q_dtype,
                             .q = a.q,
                             .heads = heads,
                             .kv_heads = a.kv_heads,
                             .rows_of_head = a.heads * a.queries,
                             .width = a.head_dim,
                             .scale = a.scale,
                             .units = a.keys,
                             .most_rows = kMassQueries,
                             .normalize = true,
                             .isa = isa};
  return for_scores(problem, a.heads * tiles_of(a), &mass_job, {.finish = &mass_end}, &a);
}

}  // namespace tamis

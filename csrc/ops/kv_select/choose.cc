// kv_choose: each head's scores are chosen from while they are in cache, on the threads that made
// them.
#include <algorithm>
#include <bit>
#include <cmath>

#include "format/matrix.h"
#include "ops/kv_select/scores.h"
#include "ops/kv_select/select.h"

namespace tamis {
namespace {

// Bits of one word of a set of units.
constexpr int64_t kBits = 64;

struct Choice {
  const KvEstimateArgs& estimate;
  KvSelectArgs select;
  bool by_row;
};

// Memory of one head's choice: a set of units, a list of them, candidates.
struct Spare {
  uint64_t* set;
  int32_t* list;
  float* buffer;

  static int64_t words(int64_t units) { return ceil_div(units, kBits); }
  static int64_t floats(int64_t units) { return 2 * words(units) + 2 * units + 1; }
  Spare(float* from, int64_t units) {
    auto* aligned =
        reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(from) + sizeof(uint64_t) - 1) /
                                    sizeof(uint64_t) * sizeof(uint64_t));
    set = aligned;
    list = reinterpret_cast<int32_t*>(aligned + words(units));
    buffer = reinterpret_cast<float*>(list + units);
  }
};

ScoreJob job_of(const void* context, int64_t head, int64_t /*number*/) {
  const auto& c = *static_cast<const Choice*>(context);
  const int64_t units = c.select.units;
  const int64_t begin = c.select.begin ? std::clamp<int64_t>(c.select.begin[head], 0, units) : 0;
  return {head, 0, c.estimate.rows, begin, units, 0};
}

// The union of the rows' choices to out; how many.
int64_t by_row(const Choice& c, const KvReduceRow& reduce, const ScoreJob& job, const float* s,
               int64_t stride, const Spare& spare, int32_t* out) {
  const int64_t words = Spare::words(c.select.units);
  std::fill_n(spare.set, words, 0);
  for (int64_t r = 0; r < job.rows; ++r) {
    const int64_t count =
        select_units(c.select, reduce, job.head, s + r * stride, spare.buffer, spare.list);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t unit = spare.list[i];
      spare.set[unit / kBits] |= uint64_t{1} << (unit % kBits);
    }
  }
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) {
    for (uint64_t left = spare.set[w]; left != 0; left &= left - 1) {
      out[count++] = static_cast<int32_t>(w * kBits + std::countr_zero(left));
    }
  }
  return count;
}

void choose(const void* context, const KvReduceRow& reduce, const ScoreJob& job, const float* s,
            int64_t stride, const float* shift, float* memory) {
  const auto& c = *static_cast<const Choice*>(context);
  const Spare spare(memory, c.select.units);
  int32_t* out = c.select.index + job.head * c.select.index_stride;
  if (c.by_row) {
    put_tokens(c.select, job.head, by_row(c, reduce, job, s, stride, spare, out));
    return;
  }
  auto* most = reinterpret_cast<float*>(spare.list);
  reduce.largest(s + job.begin, stride, job.rows, shift, job.end - job.begin, most + job.begin);
  put_tokens(c.select, job.head, select_units(c.select, reduce, job.head, most, spare.buffer, out));
}

}  // namespace

Status kv_choose(const KvChooseArgs& args) {
  return kv_choose_on(active_isa(), args);
}

Status kv_choose_on(IsaBits isa, const KvChooseArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_choose(a));
  const KvEstimateArgs& e = a.estimate;
  const int64_t heads = e.batch * e.kv_heads, units = e.units.units;
  if (heads * e.rows * units == 0) {
    std::fill_n(a.select.count, heads, 0);
    return {};
  }
  Choice choice{.estimate = e, .select = a.select, .by_row = a.by_row};
  choice.select.units = units;
  choice.select.begin = e.begin;
  choice.select.top_p = 0.0;
  const ScoreProblem problem{.q_dtype = e.q_dtype,
                             .q = e.q,
                             .heads = heads,
                             .kv_heads = e.kv_heads,
                             .rows_of_head = e.rows,
                             .width = e.head_dim,
                             .scale = e.scale,
                             .units = e.units,
                             .most_rows = e.rows,
                             .normalize = !a.by_row && e.reduce == KvReduce::log_weight,
                             .spare_floats = Spare::floats(units),
                             .isa = isa};
  return for_scores(problem, 1, &job_of, {.done = &choose}, &choice);
}

}  // namespace tamis

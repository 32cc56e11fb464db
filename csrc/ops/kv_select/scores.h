// What kv_estimate, kv_mass and kv_choose share: scores of a few rows over all units of one KV
// head, in two passes over chunks of units, on the threads of this process.
#pragma once

#include "ops/kv_select/kv_select.h"

namespace tamis {

// Rows [first_row, first_row + rows) of head `head` (batch and KV head as one number). Row i sees
// units [begin, end_of(i)): as positions say, or [begin, end + i * step), where step is 0, or 1
// where rows are consecutive queries. No row sees fewer than the one before.
struct ScoreJob {
  int64_t head, first_row, rows;
  int64_t begin, end, step;
  const int32_t* positions = nullptr;

  int64_t end_of(int64_t i) const { return positions ? positions[i] + 1 : end + i * step; }
};

// Everything that jobs have in common. rows_of_head: of q. width: of a row of q as given.
struct ScoreProblem {
  DType q_dtype;
  const void* q;
  int64_t heads, kv_heads, rows_of_head, width;
  float scale;
  KvUnits units;
  int64_t most_rows;  // of a job
  // What becomes of a job's scores over units [first, last): s[row][unit - first], rows `stride`
  // apart; shift[row] is the logarithm of the row's sum of exponentials, +inf if it sees nothing,
  // or 0 unless `normalize`.
  bool normalize;
  int64_t spare_floats = 0;  // for ScoreDone
  IsaBits isa;
};

using ScoreFinish = void (*)(const void* context, const KvReduceRow& reduce, const ScoreJob& job,
                             const float* s, int64_t stride, const float* shift, int64_t first,
                             int64_t last);

// The same of all units of a job at once, s[row][unit]; spare is memory of the calling thread.
using ScoreDone = void (*)(const void* context, const KvReduceRow& reduce, const ScoreJob& job,
                           const float* s, int64_t stride, const float* shift, float* spare);

struct ScoreEnd {
  ScoreFinish finish = nullptr;
  ScoreDone done = nullptr;
};

// Runs jobs 0 .. jobs_of_head of every head; those of one head one after another.
Status for_scores(const ScoreProblem& p, int64_t jobs_of_head,
                  ScoreJob (*job)(const void* context, int64_t head, int64_t number),
                  const ScoreEnd& end, const void* context);

}  // namespace tamis

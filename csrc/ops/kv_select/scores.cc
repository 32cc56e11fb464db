#include "ops/kv_select/scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/elements.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "format/matrix.h"

namespace tamis {
namespace {

// Units of a chunk: its scores stay in L1 between the passes of one row, its keys in L2 for all
// rows.
constexpr int64_t kChunk = 1024;

// q as kernels want it, of all heads and rows: f32 [width of a unit], or bytes and two factors.
struct Queries {
  int64_t width;  // f32 per row
  float* q;
  int8_t* q8;
  float *step, *sum;
};

void prepare(const ScoreProblem& p, const Queries& out) {
  const int64_t r = p.units.labels.channels;
  for (int64_t row = 0; row < p.heads * p.rows_of_head; ++row) {
    const int64_t from = row * p.width;
    if (p.units.kind == KvSummary::labels) {
      const int32_t* channel = p.units.channels + row / p.rows_of_head % p.kv_heads * r;
      float chosen[kLabelMaxChannels];
      for (int64_t c = 0; c < r; ++c) chosen[c] = load_element(p.q_dtype, p.q, from + channel[c]);
      const float step = round_to_bytes(chosen, r, out.q8 + row * r) * p.scale;
      int32_t sum = 0;
      for (int64_t c = 0; c < r; ++c) sum += out.q8[row * r + c];
      out.step[row] = step;
      out.sum[row] = step * static_cast<float>(sum);
      continue;
    }
    float* q = out.q + row * out.width;
    for (int64_t c = 0; c < p.width; ++c) {
      const float x = load_element(p.q_dtype, p.q, from + c);
      if (p.units.kind == KvSummary::bounds) {
        q[c] = std::min(x, 0.0f);
        q[p.width + c] = std::max(x, 0.0f);
      } else {
        q[c] = x;
      }
    }
  }
}

const void* unit_zero(const KvUnits& u, int64_t batch, int64_t g) {
  const int64_t size = u.kind == KvSummary::labels ? 1 : size_of(u.dtype);
  return static_cast<const uint8_t*>(u.data) + (batch * u.batch_stride + g * u.head_stride) * size;
}

// Scores and, per chunk and row, what stats() says of them.
struct Memory {
  float* scores;         // [most_rows, units]
  float *largest, *sum;  // [chunks, most_rows]
  float* shift;          // [most_rows]
  float* spare;
};

int64_t floats_of(const ScoreProblem& p) {
  const int64_t chunks = ceil_div(p.units.units, kChunk);
  return p.most_rows * (p.units.units + 2 * chunks + 1) + p.spare_floats;
}

Memory carve(const ScoreProblem& p, float* from) {
  const int64_t chunks = ceil_div(p.units.units, kChunk);
  float* largest = from + p.most_rows * p.units.units;
  float* sum = largest + p.most_rows * chunks;
  float* shift = sum + p.most_rows * chunks;
  return {from, largest, sum, shift, shift + p.most_rows};
}

struct Run {
  const ScoreProblem& p;
  const KvScoreRow& row;
  const KvReduceRow& reduce;
  Queries queries;
  const ScoreEnd& finally;
  const void* context;

  static int64_t seen(const ScoreJob& job) { return job.end_of(job.rows - 1); }

  // Scores of units [first, last) into memory, -inf for what a row does not see.
  void score(const ScoreJob& job, int64_t chunk, const Memory& m) const {
    const int64_t first = std::max(chunk * kChunk, job.begin);
    const int64_t last = std::min((chunk + 1) * kChunk, seen(job));
    if (first >= last) return;
    const int64_t n = p.units.units;
    KvScorePart part{.x = unit_zero(p.units, job.head / p.kv_heads, job.head % p.kv_heads),
                     .unit_stride = p.units.unit_stride,
                     .width = queries.width,
                     .q = nullptr,
                     .scale = p.scale,
                     .q8 = nullptr,
                     .step = {},
                     .sum = {},
                     .labels = p.units.labels,
                     .rows = 0,
                     .begin = first,
                     .end = last,
                     .out = nullptr,
                     .out_stride = n};
    for (int64_t r = 0; r < job.rows; r += kSelectRows) {
      part.rows = std::min<int64_t>(kSelectRows, job.rows - r);
      const int64_t at = job.head * p.rows_of_head + job.first_row + r;
      part.out = m.scores + r * n + first;
      if (p.units.kind == KvSummary::labels) {
        part.q8 = queries.q8 + at * p.units.labels.channels;
        for (int64_t i = 0; i < part.rows; ++i) {
          part.step[i] = queries.step[at + i];
          part.sum[i] = queries.sum[at + i];
        }
      } else {
        part.q = queries.q + at * queries.width;
      }
      row.run(part);
    }
    for (int64_t r = 0; r < job.rows; ++r) {
      float* s = m.scores + r * n;
      for (int64_t u = std::max(first, job.end_of(r)); u < last; ++u) s[u] = -INFINITY;
      if (!p.normalize) continue;
      reduce.stats(s + first, last - first, &m.largest[chunk * p.most_rows + r],
                   &m.sum[chunk * p.most_rows + r]);
    }
  }

  void normalize(const ScoreJob& job, const Memory& m) const {
    const int64_t chunks = ceil_div(seen(job), kChunk);
    for (int64_t r = 0; r < job.rows; ++r) {
      m.shift[r] = 0.0f;
      if (!p.normalize) continue;
      float largest = -INFINITY, sum = 0.0f;
      for (int64_t c = job.begin / kChunk; c < chunks; ++c) {
        largest = std::max(largest, m.largest[c * p.most_rows + r]);
      }
      for (int64_t c = job.begin / kChunk; c < chunks; ++c) {
        const int64_t at = c * p.most_rows + r;
        if (m.largest[at] > -INFINITY) sum += m.sum[at] * std::exp(m.largest[at] - largest);
      }
      m.shift[r] = largest > -INFINITY ? largest + std::log(sum) : INFINITY;
    }
  }

  void end(const ScoreJob& job, int64_t chunk, const Memory& m) const {
    const int64_t first = std::max(chunk * kChunk, job.begin);
    const int64_t last = std::min((chunk + 1) * kChunk, seen(job));
    if (first >= last) return;
    finally.finish(context, reduce, job, m.scores + first, p.units.units, m.shift, first, last);
  }

  void done(const ScoreJob& job, const Memory& m) const {
    finally.done(context, reduce, job, m.scores, p.units.units, m.shift, m.spare);
  }
};

}  // namespace

Status for_scores(const ScoreProblem& p, int64_t jobs_of_head,
                  ScoreJob (*job)(const void*, int64_t, int64_t), const ScoreEnd& end,
                  const void* context) {
  const bool labels = p.units.kind == KvSummary::labels;
  const DType dtype = labels ? DType::f32 : p.units.dtype;
  const KvSummary kind = labels ? KvSummary::labels : KvSummary::rows;
  const int64_t rows = p.heads * p.rows_of_head;
  const int64_t width = labels ? 0 : p.units.kind == KvSummary::bounds ? 2 * p.width : p.width;
  const int64_t bytes_as_floats = labels ? ceil_div(rows * p.units.labels.channels, 4) : 0;
  const int64_t query_floats = rows * (width + 2) + bytes_as_floats;
  // A thread is worth it from some 10 us of work on: as many labels, or elements of rows by lanes.
  const int64_t work =
      p.heads * p.most_rows * jobs_of_head * p.units.units * (labels ? 1 : ceil_div(width, 16));
  const int threads = static_cast<int>(std::clamp<int64_t>(work >> 15, 1, int64_t{num_threads()}));
  const bool by_heads = p.heads >= threads;
  const int64_t slots = by_heads ? threads : 1;
  auto* memory = static_cast<float*>(
      scratch((query_floats + slots * floats_of(p)) * static_cast<int64_t>(sizeof(float))));
  if (!memory) return error(Code::out_of_memory, "kv_select: no memory for scores");
  float* step = memory + rows * width;
  const Queries queries{width, memory, reinterpret_cast<int8_t*>(step + 2 * rows), step,
                        step + rows};
  prepare(p, queries);
  const Run run{p,
                *choose_kv_score(kind, dtype, p.q_dtype, p.isa),
                choose_kv_reduce(p.isa),
                queries,
                end,
                context};
  const auto whole = [&](int64_t head, const Memory& m) {
    for (int64_t i = 0; i < jobs_of_head; ++i) {
      const ScoreJob j = job(context, head, i);
      const int64_t chunks = ceil_div(run.seen(j), kChunk);
      for (int64_t c = 0; c < chunks; ++c) run.score(j, c, m);
      run.normalize(j, m);
      for (int64_t c = 0; end.finish && c < chunks; ++c) run.end(j, c, m);
      if (end.done) run.done(j, m);
    }
  };
  if (by_heads) {
    const auto heads = [&](int thread, int count) {
      const Memory m = carve(p, memory + query_floats + thread * floats_of(p));
      for (int64_t h = p.heads * thread / count; h < p.heads * (thread + 1) / count; ++h) {
        whole(h, m);
      }
    };
    threads > 1 ? parallel(threads, heads) : heads(0, 1);
    return {};
  }
  const Memory m = carve(p, memory + query_floats);
  for (int64_t h = 0; h < p.heads; ++h) {
    for (int64_t i = 0; i < jobs_of_head; ++i) {
      const ScoreJob j = job(context, h, i);
      const int64_t chunks = ceil_div(run.seen(j), kChunk);
      parallel(threads, [&](int thread, int count) {
        for (int64_t c = thread; c < chunks; c += count) run.score(j, c, m);
      });
      run.normalize(j, m);
      if (end.finish) {
        parallel(threads, [&](int thread, int count) {
          for (int64_t c = thread; c < chunks; c += count) run.end(j, c, m);
        });
      }
      if (end.done) run.done(j, m);
    }
  }
  return {};
}

}  // namespace tamis

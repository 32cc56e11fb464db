// sparse_attention: cuts segments into tasks, runs them on the threads of this process and merges
// their states by the logarithm of their sums.
#include "ops/sparse_attention/sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/elements.h"
#include "base/machine.h"
#include "base/numeric.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "format/matrix.h"
#include "ops/sparse_attention/check.h"
#include "ops/sparse_attention/kernels.h"

namespace tamis {
namespace {

constexpr AttentionRow kKernels[] = {
#define TAMIS_ATTENTION(storage, q, level)                                                   \
  {"sparse_attention_" #storage "_" #q "_" #level, KvStorage::storage, DType::q, isa::level, \
   &sparse_attention_##storage##_##q##_##level},
#include "ops/sparse_attention/kernels.def"
#undef TAMIS_ATTENTION
};

// Tokens of a small task. Its keys and values stay in L2 for the passes over more than kMaxRows
// rows, and one core takes some 5 us for it, several times what a thread costs.
constexpr int64_t kTaskTokens = 512;
// Fewer and larger tasks of one pass leave fewer partial sums, which go through memory too (pages
// of 2 to 8 bits at 16k tokens: 2 to 3 %), as long as there are enough tasks for many threads.
constexpr int64_t kEnoughTasks = 64, kMostTaskTokens = 8 * kTaskTokens;

// Tasks are numbered head by head, segment by segment, chunk by chunk.
struct Task {
  int64_t head;  // batch and KV head as one number
  const KvSegment* segment;
  int64_t unit_begin, unit_end;
};

struct Span {
  int64_t begin, end;
};

// Units of a segment's list that may count. Those at its start that do not are left out, so a list
// that names padding and one that does not add up alike.
Span units_of(const KvSegment& s, int64_t head) {
  const int64_t count = unit_count(s, head), each = unit_tokens(s);
  if (s.index) {
    const int32_t* list = s.index + head * s.index_stride;
    int64_t first = 0;
    while (first < count && (list[first] + 1) * each <= first_token(s, head)) ++first;
    return {first, count};
  }
  const int64_t begin = std::min(first_token(s, head) / each, count);
  const int64_t end =
      std::min((std::max<int64_t>(last_token(s, head), 0) + each - 1) / each, count);
  return {begin, std::max(begin, end)};
}

// Tokens of a task of this call, a multiple of kTaskTokens, whatever the threads.
int64_t task_tokens(const SparseAttentionArgs& a) {
  if (a.rows > kMaxRows) return kTaskTokens;
  int64_t tokens = 0;
  for (int64_t head = 0; head < a.batch * a.kv_heads; ++head) {
    for (const KvSegment& s : a.segments) {
      const Span units = units_of(s, head);
      tokens += (units.end - units.begin) * unit_tokens(s);
    }
  }
  const int64_t each = tokens / kEnoughTasks / kTaskTokens * kTaskTokens;
  return std::clamp(each, kTaskTokens, kMostTaskTokens);
}

// Calls fn(task, number, tokens before it) for every task of `task` tokens of heads [0, heads).
template <class Fn>
void for_tasks(const SparseAttentionArgs& a, int64_t task, const Fn& fn) {
  int64_t number = 0, tokens = 0;
  for (int64_t head = 0; head < a.batch * a.kv_heads; ++head) {
    for (const KvSegment& s : a.segments) {
      const Span all = units_of(s, head);
      const int64_t each = unit_tokens(s), step = task / each;
      for (int64_t begin = all.begin; begin < all.end; begin += step) {
        const int64_t end = std::min(begin + step, all.end);
        fn(Task{head, &s, begin, end}, number++, tokens);
        tokens += (end - begin) * each;
      }
    }
  }
}

// What a task leaves: [rows] of largest, sum, weighted [d].
struct Partials {
  float* data;
  int64_t rows, width;  // width: d + 2

  float* row(int64_t task, int64_t r) const { return data + (task * rows + r) * width; }
};

const void* offset(const void* p, int64_t bytes) {
  return static_cast<const uint8_t*>(p) + bytes;
}

void run_task(const SparseAttentionArgs& a, const AttentionRow& row, const Task& task,
              const float* q, int64_t number, const Partials& partials) {
  const KvSegment& s = *task.segment;
  const int64_t batch = task.head / a.kv_heads, g = task.head % a.kv_heads;
  const bool pages = s.storage == KvStorage::pages;
  const int64_t size = pages ? 1 : elements_of(s.storage) == KvStorage::f32 ? 4 : 2;
  AttentionPart part{
      .segment = &s,
      .q = nullptr,
      .rows = 0,
      .head_dim = a.head_dim,
      .scale = a.scale,
      .softcap = a.softcap,
      .keys = offset(s.keys, (batch * s.key_batch_stride + g * s.key_head_stride) * size),
      .values =
          pages ? nullptr
                : offset(s.values, (batch * s.value_batch_stride + g * s.value_head_stride) * size),
      .basis = offset(s.low_rank.basis, task.head * s.low_rank.rank * a.head_dim * size),
      .index = s.index ? s.index + task.head * s.index_stride : nullptr,
      .bias = s.bias ? s.bias + task.head * s.tokens : nullptr,
      .begin = first_token(s, task.head),
      .end = last_token(s, task.head),
      .unit_begin = task.unit_begin,
      .unit_end = task.unit_end};
  AttentionState state;
  for (int64_t r = 0; r < a.rows; r += kMaxRows) {
    part.rows = std::min<int64_t>(kMaxRows, a.rows - r);
    part.q = q + (task.head * a.rows + r) * a.head_dim;
    row.run(part, &state);
    for (int64_t i = 0; i < part.rows; ++i) {
      float* out = partials.row(number, r + i);
      out[0] = state.largest[i];
      out[1] = state.sum[i];
      std::memcpy(out + 2, state.weighted[i], static_cast<size_t>(a.head_dim) * sizeof(float));
    }
  }
}

// One row of one head from tasks [begin, end).
void merge(const SparseAttentionArgs& a, const Partials& partials, Span tasks, int64_t head,
           int64_t r) {
  constexpr float kNever = -INFINITY;
  float largest = kNever, sum = 0.0f;
  for (int64_t t = tasks.begin; t < tasks.end; ++t) {
    largest = std::max(largest, partials.row(t, r)[0]);
  }
  float weighted[kKvMaxHeadDim] = {};
  for (int64_t t = tasks.begin; t < tasks.end; ++t) {
    const float* from = partials.row(t, r);
    if (from[0] == kNever) continue;
    const float factor = std::exp(from[0] - largest);
    sum += factor * from[1];
    for (int64_t c = 0; c < a.head_dim; ++c) weighted[c] += factor * from[2 + c];
  }
  const int64_t row = head * a.rows + r;
  const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
  for (int64_t c = 0; c < a.head_dim; ++c) {
    store_element(a.q_dtype, weighted[c] * inverse, a.out, row * a.head_dim + c);
  }
  if (a.lse) a.lse[row] = sum > 0.0f ? largest + std::log(sum) : kNever;
}

// q as f32: itself, or a copy in `copy`.
const float* f32_queries(const SparseAttentionArgs& a, float* copy) {
  if (a.q_dtype == DType::f32) return static_cast<const float*>(a.q);
  const auto* q = static_cast<const uint16_t*>(a.q);
  const int64_t count = a.batch * a.kv_heads * a.rows * a.head_dim;
  for (int64_t i = 0; i < count; ++i) {
    copy[i] = a.q_dtype == DType::f16 ? f32_from_f16(q[i]) : f32_from_bf16(q[i]);
  }
  return copy;
}

}  // namespace

std::span<const AttentionRow> sparse_attention_kernels() {
  return kKernels;
}

const AttentionRow* choose_sparse_attention(KvStorage storage, DType q_dtype, IsaBits isa) {
  isa = without_slow_bf16(isa);
  for (const AttentionRow& row : kKernels) {
    if (row.storage == storage && (row.q_dtype == DType::f32 || row.q_dtype == q_dtype) &&
        (row.isa & isa) == row.isa) {
      return &row;
    }
  }
  return nullptr;
}

Status sparse_attention(const SparseAttentionArgs& args) {
  return sparse_attention_on(active_isa(), args);
}

Status sparse_attention_on(IsaBits isa, const SparseAttentionArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_sparse_attention(a));
  const int64_t heads = a.batch * a.kv_heads;
  if (heads * a.rows == 0) return {};
  const int64_t each = task_tokens(a);
  int64_t tasks = 0, tokens = 0;
  for_tasks(a, each, [&](const Task& task, int64_t number, int64_t before) {
    tasks = number + 1;
    tokens = before + (task.unit_end - task.unit_begin) * unit_tokens(*task.segment);
  });
  const int64_t queries = a.q_dtype == DType::f32 ? 0 : heads * a.rows * a.head_dim;
  const int64_t width = a.head_dim + 2;
  const int64_t floats = queries + tasks * a.rows * width;
  auto* memory = static_cast<float*>(scratch(floats * static_cast<int64_t>(sizeof(float))));
  if (!memory) return error(Code::out_of_memory, "sparse_attention: no memory for partial sums");
  const Partials partials{memory + queries, a.rows, width};
  const float* q = f32_queries(a, memory);
  const auto run = [&](int thread, int threads) {
    for_tasks(a, each, [&](const Task& task, int64_t number, int64_t before) {
      if (before * threads / tokens != thread) return;
      const AttentionRow* row = choose_sparse_attention(task.segment->storage, a.q_dtype, isa);
      run_task(a, *row, task, q, number, partials);
    });
  };
  const int threads = static_cast<int>(std::min<int64_t>(num_threads(), tasks));
  if (threads > 1) {
    parallel(threads, run);
  } else if (tasks > 0) {
    run(0, 1);
  }
  int64_t task = 0;
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t first = task;
    for (const KvSegment& s : a.segments) {
      const Span units = units_of(s, head);
      task += ceil_div(units.end - units.begin, each / unit_tokens(s));
    }
    for (int64_t r = 0; r < a.rows; ++r) merge(a, partials, {first, task}, head, r);
  }
  return {};
}

}  // namespace tamis

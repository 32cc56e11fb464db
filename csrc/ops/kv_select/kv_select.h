// kv_select: which units of a KV cache a step reads. Functions over scores, which share kernels,
// and the summaries that they read:
//   kv_estimate  out[u] = max_r e[r,u],  e[r,u] = scale * q[r] . x[u], or its softmax weight
//   kv_mass      out[t] += mean over a group's heads of sum_i softmax_t(scale * q[i] . k[t])
//   kv_select    the units with the largest scores, exactly
//   kv_choose    both in one: kv_select of kv_estimate, by head or by row
// A unit is a token (keys, labels) or a page (bounds, means). Scores are held for the heads of one
// group (kv_estimate) or kMassQueries queries (kv_mass) at a time, never for all queries.
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"
#include "format/kv_label.h"

namespace tamis {

// How x[u] is stored and multiplied.
//   rows    [units, d]: keys themselves or means of pages; e = q . x.
//   bounds  [units, 2, d], smallest and largest key of each channel of a page: e is the upper bound
//           sum_c max(q_c low_c, q_c high_c) (Quest, arXiv:2406.10774, sec. 3.3).
//   labels  kv_label records: e = sum over r channels, q there rounded to 8 bits, step max|q| / 127
//           (Double Sparsity, arXiv:2408.07092, sec. 3).
enum class KvSummary : uint8_t { rows, bounds, labels };

// What rows of a group's heads come to.
enum class KvReduce : uint8_t {
  score,       // the largest score
  log_weight,  // the largest score - log sum exp of its row: order of the largest softmax weights
};

// Memory of summaries [b, g, units]; strides in elements (rows, bounds: of dtype) or bytes
// (labels: of records; unit_stride is unused).
struct KvUnits {
  KvSummary kind = KvSummary::rows;
  DType dtype = DType::f32;  // rows, bounds
  int64_t units = 0;
  const void* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, unit_stride = 0;
  KvLabelLayout labels = {};
  const int32_t* channels = nullptr;  // labels: [g, r]
};

// q: [b, g, rows, d] contiguous. begin [b, g] or null: units before it get -inf and no weight.
// out: [b, g, units] f32.
struct KvEstimateArgs {
  DType q_dtype = DType::f32;
  int64_t batch = 0, kv_heads = 0, rows = 0, head_dim = 0;
  const void* q = nullptr;
  float scale = 1.0f;
  KvUnits units;
  KvReduce reduce = KvReduce::log_weight;
  const int32_t* begin = nullptr;
  float* out = nullptr;
};

// q: [b, g, heads, n, d] contiguous, `heads` query heads a KV head; query i stands at token
// units - n + i and sees those up to itself. out: [b, g, units] f32, added to.
struct KvMassArgs {
  DType q_dtype = DType::f32;
  int64_t batch = 0, kv_heads = 0, heads = 0, queries = 0, head_dim = 0;
  const void* q = nullptr;
  float scale = 1.0f;
  KvUnits keys;                        // rows
  const int32_t* positions = nullptr;  // [queries], last token that each sees, none below the one
                                       // before; null: the queries of the last tokens
  const int32_t* begin = nullptr;
  float* out = nullptr;
};

// scores: [heads, units] f32, contiguous; NaN ranks last. Of units [begin, units) of each head, the
// first `sink`, the last `recent` and the best others, k in all; ties go to the lower unit.
// index: [heads, index_stride] ascending, each unit written as `page` consecutive tokens;
// count [heads]: tokens written.
struct KvSelectArgs {
  int64_t heads = 0, units = 0;
  const float* scores = nullptr;
  const int32_t* budget = nullptr;  // [heads] k, or null: `k` for all
  int64_t k = 0;
  // Above 0: instead of k, the fewest whose scores (below 0 they count 0) reach this share of all,
  // in sums of whole numbers that are the same in any order (share.h).
  double top_p = 0.0;
  int64_t sink = 0, recent = 0, page = 1;
  const int32_t* begin = nullptr;  // [heads]
  int32_t* index = nullptr;
  int64_t index_stride = 0;
  int32_t* count = nullptr;
};

// kv_select of kv_estimate without the scores in memory. By row: every row takes its own k units
// by its scores and the list is their union, of which a head needs room for rows * k.
// estimate.out and select's heads, units, scores, begin and top_p are not read.
struct KvChooseArgs {
  KvEstimateArgs estimate;
  KvSelectArgs select;
  bool by_row = false;
};

// Labels of `count` tokens of every head, the first of which is token `first`, to where kv_estimate
// finds them. keys: [b, g, count, d], strides in elements, d contiguous. channels: [g, r]. records:
// [b, g, ...] of kv_label with strides in bytes.
struct KvAppendLabelsArgs {
  KvLabelLayout labels;
  DType keys_dtype = DType::f32;
  int64_t batch = 0, kv_heads = 0, head_dim = 0;
  const void* keys = nullptr;
  int64_t key_batch_stride = 0, key_head_stride = 0, key_token_stride = 0;
  const int32_t* channels = nullptr;
  int64_t first = 0, count = 0;
  void* records = nullptr;
  int64_t batch_stride_bytes = 0, head_stride_bytes = 0;
};

// Summaries of whole pages, as kv_estimate reads them, of every head.
//   bounds  smallest and largest key of each channel, [2, d] a page, exactly.
//   rows    the mean key, [d] a page, rounded once; `alike`: the smallest cosine of that mean and a
//           key of the page (which chunks are odd: ShadowKV, arXiv:2410.21465, sec. 4.2).
// keys: [b, g, pages * page, d], strides in elements, d contiguous. out: [b, g, pages, ...] of the
// keys' dtype and alike [b, g, pages], both contiguous.
struct KvSummarizeArgs {
  KvSummary kind = KvSummary::bounds;
  DType dtype = DType::f32;
  int64_t batch = 0, kv_heads = 0, head_dim = 0, pages = 0, page = 16;
  const void* keys = nullptr;
  int64_t key_batch_stride = 0, key_head_stride = 0, key_token_stride = 0;
  void* out = nullptr;
  float* alike = nullptr;  // rows
};

// Elements of a page's summary.
constexpr int64_t kv_summary_width(KvSummary kind, int64_t head_dim) {
  return kind == KvSummary::bounds ? 2 * head_dim : head_dim;
}

// Pages of one head.
struct KvSummaryPart {
  KvSummary kind;
  const void* keys;
  int64_t token_stride, head_dim, page, pages;
  void* out;
  float* alike;
};
using KvSummaryKernel = void (*)(const KvSummaryPart&);

inline constexpr int kSelectRows = 4;      // rows that share one pass over the units
inline constexpr int kMassQueries = 16;    // rows whose scores kv_mass holds at a time
inline constexpr int kMaxWidth = 2 * 256;  // of a unit's row

// Scores of units [begin, end) for up to kSelectRows rows: out[r * out_stride + u - begin]. x: unit
// 0. labels: q8 [rows, r] and, of each row, its step (scale included) and step * sum of q8.
struct KvScorePart {
  const void* x;
  int64_t unit_stride, width;
  const float* q;  // [rows, width]
  float scale;
  const int8_t* q8;
  float step[kSelectRows], sum[kSelectRows];
  KvLabelLayout labels;
  int64_t rows, begin, end;
  float* out;
  int64_t out_stride;
};
using KvScoreKernel = void (*)(const KvScorePart&);

// One line of kernels.def.
struct KvScoreRow {
  const char* name;  // kv_select_<what>_<isa>
  KvSummary kind;    // rows serves bounds too
  DType dtype;
  DType q_dtype;  // bf16: products of bf16, q as given; f32: any q
  IsaBits isa;
  KvScoreKernel run;
};

// What is done with scores, per ISA.
struct KvReduceRow {
  const char* name;
  IsaBits isa;
  // Largest of s[0 .. n) and sum of exp(s - largest); -inf and 0 for none.
  void (*stats)(const float* s, int64_t n, float* largest, float* sum);
  // out[i] = max_r s[r][i] - shift[r].
  void (*largest)(const float* s, int64_t stride, int64_t rows, const float* shift, int64_t n,
                  float* out);
  // out[i] += factor * sum_r exp(s[r][i] - shift[r]); shift is at least the row's largest.
  void (*weights)(const float* s, int64_t stride, int64_t rows, const float* shift, float factor,
                  int64_t n, float* out);
  // Copies those with low <= s <= high to out, which holds n; counts them and those above high.
  int64_t (*between)(const float* s, int64_t n, float low, float high, float* out, int64_t* above);
  // How many of s lie above the threshold.
  int64_t (*count)(const float* s, int64_t n, float threshold);
  // first + i of all s[i] > threshold and of the first `ties` equal to it; how many.
  int64_t (*above)(const float* s, int64_t n, float threshold, int64_t ties, int32_t first,
                   int32_t* out);
};

struct KvSummaryRow {
  const char* name;  // kv_select_summary_<dtype>_<isa>
  DType dtype;
  IsaBits isa;
  KvSummaryKernel run;
};

std::span<const KvScoreRow> kv_score_kernels();
std::span<const KvSummaryRow> kv_summary_kernels();
std::span<const KvReduceRow> kv_reduce_kernels();

// First row that fits and is not slow there (without_slow_bf16); null if none. Pure.
const KvScoreRow* choose_kv_score(KvSummary kind, DType dtype, DType q_dtype, IsaBits isa);
const KvReduceRow& choose_kv_reduce(IsaBits isa);
const KvSummaryRow* choose_kv_summary(DType dtype, IsaBits isa);

// Check, choose for this host, run on the pool. kv_select depends on the scores alone, so it is the
// same on every ISA; no result depends on the number of threads.
Status kv_estimate(const KvEstimateArgs& args);
Status kv_mass(const KvMassArgs& args);
Status kv_select(const KvSelectArgs& args);
Status kv_choose(const KvChooseArgs& args);
Status kv_append_labels(const KvAppendLabelsArgs& args);
Status kv_summarize(const KvSummarizeArgs& args);

// The same with the kernels of one ISA level: for tests.
Status kv_estimate_on(IsaBits isa, const KvEstimateArgs& args);
Status kv_mass_on(IsaBits isa, const KvMassArgs& args);
Status kv_select_on(IsaBits isa, const KvSelectArgs& args);
Status kv_choose_on(IsaBits isa, const KvChooseArgs& args);
Status kv_summarize_on(IsaBits isa, const KvSummarizeArgs& args);

// In double, from unpacked labels; out is f64 and, for mass, overwritten. Selection by sorting.
Status kv_estimate_reference(const KvEstimateArgs& args, double* out);
Status kv_mass_reference(const KvMassArgs& args, double* out);
Status kv_select_reference(const KvSelectArgs& args);
Status kv_summarize_reference(const KvSummarizeArgs& args, double* out, double* alike);

// Shapes and null pointers.
Status check_kv_estimate(const KvEstimateArgs& args);
Status check_kv_mass(const KvMassArgs& args);
Status check_kv_select(const KvSelectArgs& args);
Status check_kv_choose(const KvChooseArgs& args);
Status check_kv_summarize(const KvSummarizeArgs& args);

// q of one row rounded to 8 bits: its step; 0 where q is 0.
float round_to_bytes(const float* q, int64_t n, int8_t* out);

}  // namespace tamis

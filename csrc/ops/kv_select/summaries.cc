// kv_summarize: the choice of a kernel and its pages on the threads of this process.
#include <algorithm>

#include "base/parallel.h"
#include "ops/kv_select/kernels.h"

namespace tamis {
namespace {

constexpr KvSummaryRow kKernels[] = {
#define TAMIS_KV_SCORE(kind, dtype, q, level)
#define TAMIS_KV_REDUCE(level)
#define TAMIS_KV_SUMMARY(dtype, level)                               \
  {"kv_select_summary_" #dtype "_" #level, DType::dtype, isa::level, \
   &kv_select_summary_##dtype##_##level},
#include "ops/kv_select/kernels.def"
#undef TAMIS_KV_SCORE
#undef TAMIS_KV_REDUCE
#undef TAMIS_KV_SUMMARY
};

}  // namespace

std::span<const KvSummaryRow> kv_summary_kernels() {
  return kKernels;
}

const KvSummaryRow* choose_kv_summary(DType dtype, IsaBits isa) {
  for (const KvSummaryRow& row : kKernels) {
    if (row.dtype == dtype && (row.isa & isa) == row.isa) return &row;
  }
  return nullptr;
}

Status kv_summarize(const KvSummarizeArgs& args) {
  return kv_summarize_on(active_isa(), args);
}

Status kv_summarize_on(IsaBits isa, const KvSummarizeArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_summarize(a));
  const int64_t heads = a.batch * a.kv_heads, width = kv_summary_width(a.kind, a.head_dim);
  if (heads * a.pages == 0) return {};
  const KvSummaryRow* row = choose_kv_summary(a.dtype, isa);
  const int64_t size = size_of(a.dtype);
  const auto run = [&](int thread, int threads) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t first = a.pages * thread / threads, last = a.pages * (thread + 1) / threads;
      const int64_t from = h / a.kv_heads * a.key_batch_stride + h % a.kv_heads * a.key_head_stride;
      row->run({.kind = a.kind,
                .keys = static_cast<const uint8_t*>(a.keys) +
                        (from + first * a.page * a.key_token_stride) * size,
                .token_stride = a.key_token_stride,
                .head_dim = a.head_dim,
                .page = a.page,
                .pages = last - first,
                .out = static_cast<uint8_t*>(a.out) + (h * a.pages + first) * width * size,
                .alike = a.alike ? a.alike + h * a.pages + first : nullptr});
    }
  };
  // Reading a page's keys takes some 100 ns, a thread some microseconds.
  const int threads = static_cast<int>(
      std::clamp<int64_t>(heads * a.pages >> 7, 1, std::min<int64_t>(num_threads(), a.pages)));
  threads > 1 ? parallel(threads, run) : run(0, 1);
  return {};
}

}  // namespace tamis

// Walks of a weight's pages, and what kernels of few tokens do by the host.
#include "ops/spmm/pages.h"

#include <algorithm>

#include "base/machine.h"

namespace tamis {
namespace {

constexpr int64_t kPage = 4096;
constexpr FewTokens kAsZen4{.burst_bytes = 128 * 1024,
                            .code_bursts = 128 * 1024,
                            .strip_bytes = 24 * 1024,
                            .strip_rows = 64,
                            .expand_beside = true};
constexpr FewTokens kAsIntel{.burst_bytes = 64 * 1024,
                             .code_bursts = 0,
                             .strip_bytes = 32 * 1024,
                             .strip_rows = 16,
                             .expand_beside = false};

// Rows before `row`: bytes of their values, and of what stands beside values.
struct Before {
  int64_t values, beside;
};

Before bytes_of(const MatrixView& w, int64_t row) {
  const int64_t width = size_of(w.dtype);
  switch (w.format) {
    case Format::bitmap:
      return {w.row_offsets[row] * width, row * mask_words(w.cols) * 8};
    case Format::nm:
      return {row * (w.cols / w.of * w.keep) * width, row * mask_words(w.cols) * 8};
    case Format::csr8:
      return {w.row_offsets[row] * width, w.row_offsets[row]};
    case Format::groupq:
      return {value_elements(w.dtype, w.row_offsets[row] * w.group_size) * width,
              w.row_offsets[row] * 4};
    case Format::csr:
    case Format::block:
      break;
  }
  return {0, 0};
}

const void* beside(const MatrixView& w) {
  if (w.format == Format::csr8) return w.col_bytes + w.rows * mask_words(w.cols);
  if (w.format == Format::groupq) return w.group_scales;
  return w.mask;
}

void ask(const void* array, int64_t begin, int64_t end) {
  const auto* p = static_cast<const char*>(array);
  for (int64_t at = begin; at < end; at += kPage) __builtin_prefetch(p + at, 0, 2);
}

}  // namespace

const FewTokens& few_tokens(IsaBits isa) {
  return has_intel_costs(isa) ? kAsIntel : kAsZen4;
}

const FewTokens& few_tokens() {
  static const FewTokens& here = few_tokens(host_isa());
  return here;
}

PageWalks::PageWalks(const MatrixView& w, int64_t row, int64_t row_end)
    : w_(w), next_(row), end_(row_end), burst_(1) {
  if (row >= row_end) return;
  const Before first = bytes_of(w, row), last = bytes_of(w, row_end);
  const int64_t bytes = last.values - first.values + last.beside - first.beside;
  const FewTokens& here = few_tokens();
  const int64_t burst_bytes = is_float(w.dtype) ? here.burst_bytes : here.code_bursts;
  if (burst_bytes == 0 || bytes <= burst_bytes) {  // so few pages that their translations stay
    next_ = row_end;
    return;
  }
  burst_ = std::max<int64_t>(1, burst_bytes * (row_end - row) / bytes);
  walk();
}

void PageWalks::walk() {
  const int64_t end = std::min(next_ + burst_, end_);
  const Before from = bytes_of(w_, next_), to = bytes_of(w_, end);
  ask(w_.values, from.values, to.values);
  ask(beside(w_), from.beside, to.beside);
  next_ = end;
}

}  // namespace tamis

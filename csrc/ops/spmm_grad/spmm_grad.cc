// spmm_grad on the processor: operands are turned, 64 tokens at a time, so that a row of w meets
// tokens in lanes; spmm_t shares out tokens, sddmm rows.
#include "ops/spmm_grad/spmm_grad.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/elements.h"
#include "base/numeric.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "base/simd/element.h"
#include "ops/spmm_grad/kernels.h"
#include "ops/spmm_grad/row_entries.h"

namespace tamis {
namespace {

constexpr SpmmGradRow kKernels[] = {
#define TAMIS_SPMM_GRAD(level) \
  {"spmm_grad_f32_" #level, isa::level, &spmm_t_f32_##level, &sddmm_f32_##level},
#include "ops/spmm_grad/kernels.def"
#undef TAMIS_SPMM_GRAD
};

constexpr int64_t kRowsTurned = 16;       // columns of dy, a line of f32
constexpr int64_t kThreadWork = 1 << 18;  // products; fewer would not pay for waking a thread

float widened(float v) {
  return v;
}
float widened(F16 v) {
  return f32_from_f16(v.bits);
}
float widened(BF16 v) {
  return f32_from_bf16(v.bits);
}

// to[c * kGradTokens + t] = from[t * stride + c], f32; tokens from `tokens` on are zero.
template <class T>
void turn_of(const T* from, int64_t stride, int64_t tokens, int64_t columns, float* to) {
  for (int64_t first = 0; first < columns; first += kRowsTurned) {
    const int64_t last = std::min(first + kRowsTurned, columns);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = first; c < last; ++c) {
        to[c * kGradTokens + t] = widened(from[t * stride + c]);
      }
    }
    if (tokens == kGradTokens) continue;
    for (int64_t c = first; c < last; ++c) {
      std::fill(to + c * kGradTokens + tokens, to + (c + 1) * kGradTokens, 0.0f);
    }
  }
}

void turn(DType type, const void* from, int64_t at, int64_t stride, int64_t tokens, int64_t columns,
          float* to) {
  switch (type) {
    case DType::f16:
      return turn_of(static_cast<const F16*>(from) + at, stride, tokens, columns, to);
    case DType::bf16:
      return turn_of(static_cast<const BF16*>(from) + at, stride, tokens, columns, to);
    default:
      return turn_of(static_cast<const float*>(from) + at, stride, tokens, columns, to);
  }
}

void turn_back(DType type, const float* from, int64_t tokens, int64_t columns, void* to, int64_t at,
               int64_t stride) {
  for (int64_t first = 0; first < columns; first += kRowsTurned) {
    const int64_t last = std::min(first + kRowsTurned, columns);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = first; c < last; ++c) {
        store_element(type, from[c * kGradTokens + t], to, at + t * stride + c);
      }
    }
  }
}

int64_t lines(int64_t bytes) {
  return ceil_div(bytes, 64) * 64;
}

// Memory of a thread, cut in pieces on lines.
class Pieces {
 public:
  explicit Pieces(int64_t bytes) : next_(static_cast<uint8_t*>(scratch(bytes))) {}
  explicit operator bool() const { return next_ != nullptr; }
  template <class T>
  T* take(int64_t count) {
    auto* piece = reinterpret_cast<T*>(next_);
    next_ += lines(count * static_cast<int64_t>(sizeof(T)));
    return piece;
  }

 private:
  uint8_t* next_;
};

Status no_memory(const char* op) {
  return error(Code::out_of_memory, "%s: no memory for turned operands", op);
}

int threads_for(const MatrixView& w, int64_t m, int64_t most) {
  const int64_t useful = std::min(w.nnz * std::max<int64_t>(m, 1) / kThreadWork, most);
  return static_cast<int>(std::clamp<int64_t>(useful, 1, num_threads()));
}

template <class Fn>
void on_threads(int threads, const Fn& fn) {
  if (threads > 1) {
    parallel(threads, fn);
  } else {
    fn(0, 1);
  }
}

// First row with at least part/parts of all values before it.
int64_t split_rows(const MatrixView& w, int64_t part, int64_t parts) {
  if (part == parts) return w.rows;
  const int64_t goal = w.nnz / parts * part;
  int64_t low = 0, high = w.rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (row_start(w, middle) < goal) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// dx of tokens [first, first + tokens).
void spmm_t_tokens(const SpmmGradRow& row, const SpmmTArgs& a, int64_t first, int64_t tokens,
                   Pieces memory) {
  const int64_t n = a.w.rows, k = a.w.cols;
  auto* dx = memory.take<float>(k * kGradTokens);
  auto* dy = memory.take<float>(kRowsTurned * kGradTokens);
  auto* columns = memory.take<int32_t>(k);
  auto* values = memory.take<float>(k);
  std::memset(dx, 0, static_cast<size_t>(k * kGradTokens) * sizeof(float));
  for (int64_t r = 0; r < n; ++r) {
    if (r % kRowsTurned == 0) {
      turn(a.dtype, a.dy, first * a.dy_stride + r, a.dy_stride, tokens,
           std::min(kRowsTurned, n - r), dy);
    }
    const RowEntries e = row_entries(a.w, r, columns);
    const float* w = static_cast<const float*>(a.w.values) + e.first;
    if (a.w.dtype != DType::f32) {
      for (int64_t i = 0; i < e.count; ++i) {
        values[i] = load_element(a.w.dtype, a.w.values, e.first + i);
      }
      w = values;
    }
    row.spmm_t(e.columns, w, e.count, dy + r % kRowsTurned * kGradTokens, dx);
  }
  turn_back(a.dtype, dx, tokens, k, a.dx, first * a.dx_stride, a.dx_stride);
}

// dw of rows [begin, end).
void sddmm_rows(const SpmmGradRow& row, const SddmmArgs& a, int64_t begin, int64_t end,
                Pieces memory) {
  const int64_t k = a.w.cols, first = row_start(a.w, begin);
  const int64_t count = row_start(a.w, end) - first;
  auto* x = memory.take<float>(k * kGradTokens);
  auto* dy = memory.take<float>(kRowsTurned * kGradTokens);
  auto* columns = memory.take<int32_t>(k);
  float* sums =
      a.w.dtype == DType::f32 ? static_cast<float*>(a.dw) + first : memory.take<float>(count);
  std::fill(sums, sums + count, 0.0f);
  for (int64_t t = 0; t < a.m; t += kGradTokens) {
    const int64_t tokens = std::min(kGradTokens, a.m - t);
    turn(a.dtype, a.x, t * a.x_stride, a.x_stride, tokens, k, x);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t in_turn = (r - begin) % kRowsTurned;
      if (in_turn == 0) {
        turn(a.dtype, a.dy, t * a.dy_stride + r, a.dy_stride, tokens,
             std::min(kRowsTurned, end - r), dy);
      }
      const RowEntries e = row_entries(a.w, r, columns);
      row.sddmm(e.columns, e.count, dy + in_turn * kGradTokens, x, sums + (e.first - first));
    }
  }
  if (a.w.dtype == DType::f32) return;
  for (int64_t i = 0; i < count; ++i) store_element(a.w.dtype, sums[i], a.dw, first + i);
}

}  // namespace

std::span<const SpmmGradRow> spmm_grad_kernels() {
  return kKernels;
}

const SpmmGradRow& choose_spmm_grad(IsaBits isa) {
  const SpmmGradRow* row = kKernels;
  while ((row->isa & isa) != row->isa) ++row;  // the last needs nothing
  return *row;
}

Status spmm_t(const SpmmTArgs& args) {
  return spmm_t_with(choose_spmm_grad(active_isa()), args);
}

Status sddmm(const SddmmArgs& args) {
  return sddmm_with(choose_spmm_grad(active_isa()), args);
}

Status spmm_t_with(const SpmmGradRow& row, const SpmmTArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_spmm_t(a));
  if (a.m == 0 || a.w.cols == 0) return {};
  const int64_t blocks = ceil_div(a.m, kGradTokens), k = a.w.cols;
  const int64_t bytes =
      lines(4 * k * kGradTokens) + lines(4 * kRowsTurned * kGradTokens) + 2 * lines(4 * k);
  std::atomic<bool> failed{false};
  on_threads(threads_for(a.w, a.m, blocks), [&](int thread, int count) {
    Pieces memory(bytes);
    if (!memory) {
      failed = true;
      return;
    }
    for (int64_t b = blocks * thread / count; b < blocks * (thread + 1) / count; ++b) {
      const int64_t first = b * kGradTokens;
      spmm_t_tokens(row, a, first, std::min(kGradTokens, a.m - first), memory);
    }
  });
  return failed ? no_memory("spmm_t") : Status{};
}

Status sddmm_with(const SpmmGradRow& row, const SddmmArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_sddmm(a));
  if (a.w.nnz == 0) return {};
  const int64_t k = a.w.cols;
  std::atomic<bool> failed{false};
  on_threads(threads_for(a.w, a.m, a.w.rows), [&](int thread, int count) {
    const int64_t begin = split_rows(a.w, thread, count);
    const int64_t end = split_rows(a.w, thread + 1, count);
    if (begin == end) return;
    const int64_t sums = a.w.dtype == DType::f32 ? 0 : row_start(a.w, end) - row_start(a.w, begin);
    Pieces memory(lines(4 * k * kGradTokens) + lines(4 * kRowsTurned * kGradTokens) + lines(4 * k) +
                  lines(4 * sums));
    if (memory) {
      sddmm_rows(row, a, begin, end, memory);
    } else {
      failed = true;
    }
  });
  return failed ? no_memory("sddmm") : Status{};
}

}  // namespace tamis
